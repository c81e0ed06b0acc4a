"""The learner and the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

from torch import Tensor, nn

from ssrseg.adapt.batch import Batch, Pseudo, View
from ssrseg.adapt.settling import gradients, settled
from ssrseg.adapt.terms import Term
from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter


class ViewMaker(Protocol):
    """Makes what the student looks at from the batch and the teacher's labels."""

    def __call__(self, batch: Batch, pseudo: Pseudo, /) -> View:
        """The view."""
        ...


class Learner(nn.Module):
    """The student and its terms: everything that is trained.

    Data parallelism wraps this and nothing else: an encoder or head called outside the wrapped `forward` gives
    every process other gradients, without any error.
    """

    def __init__(self, student: Segmenter, terms: Mapping[str, Term], *, head_only: bool = False) -> None:
        super().__init__()
        self.student = student
        self.terms = nn.ModuleDict(dict(terms))
        self.head_only = head_only
        """The backbone stands still: no gradients, and its BatchNorm as at inference."""
        self.gradients: Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor | None]] = gradients
        """Takes a term's gradients; a tool that measures puts its own around it."""
        if head_only:
            student.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Learner:
        """Training mode, but for a backbone that stands still."""
        super().train(mode)
        if self.head_only:
            self.student.backbone.eval()
        return self

    def forward(self, view: View) -> dict[str, Tensor]:
        """Encode the view once; its terms share the features. Losses are named `view/term`.

        Of a term, what the backward pass needs is gone before the next begins: the two branches of SSR are never in
        memory together. The losses' own backward pass is that of the backbone.
        """
        features = self.student.encode(view.images)
        return {
            f"{view.name}/{name}": self._ask(term, view, features)
            for name, term in cast(Mapping[str, Term], self.terms).items()
            if view.name in term.views
        }

    def _ask(self, term: Term, view: View, features: list[Tensor]) -> Tensor:
        leaves = [level.detach().requires_grad_(level.requires_grad) for level in features]
        # Views, since hooks on the inputs of a module do not work on leaves whose gradient is asked for.
        loss: Tensor = term.weight * term(view, [leaf.view_as(leaf) for leaf in leaves], self.student)
        if not loss.requires_grad:
            return loss
        inputs = [(level, leaf) for level, leaf in zip(features, leaves, strict=True) if level.requires_grad]
        inputs += [(weight, weight) for weight in self.parameters() if weight.requires_grad]
        handed_on, differentiated = zip(*inputs, strict=True)
        return settled(loss, handed_on, self.gradients(loss, differentiated))


def adapt(
    learner: Callable[[View], dict[str, Tensor]],
    teacher: Callable[[Tensor, Tensor], Pseudo],
    makers: Sequence[ViewMaker],
    batch: Batch,
    backward: Callable[[Tensor], None],
    around: Callable[[bool], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Tensor]:
    """One step's gradients: the teacher labels the target; each view has its own backward, which frees its graph.

    The gradients are those of the sum of all losses, at a fraction of the saved activations. The optimiser and
    the teacher's average are the caller's: `teacher.update` comes before, `optimizer.step` after.

    Args:
        learner: a view's losses.
        teacher: labels target images.
        makers: of the views, in order.
        batch: of this process.
        backward: of a loss.
        around: the context of each view's forward and backward, told whether the view is the last: processes
            exchange their gradients then, and only then.

    Returns:
        Detached losses, named `view/term`.
    """
    pseudo = teacher(batch.target, batch.valid)
    values: dict[str, Tensor] = {}
    for left, make in zip(reversed(range(len(makers))), makers, strict=True):
        view = make(batch, pseudo)
        with around(left == 0):
            losses = learner(view)
            backward(sum_of(losses))
        values |= {name: loss.detach() for name, loss in losses.items()}
    return values


def sum_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of a view's losses.

    Raises:
        UserError: no term names the view.
    """
    if not losses:
        raise UserError(
            "A view was made that no term asks anything of: leave its maker out, or name it in a term's views."
        )
    first, *others = losses.values()
    return sum(others, first)
