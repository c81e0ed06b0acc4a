"""The learner, its early backward, and the step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssrseg.adapt.batch import Batch, Pseudo, View
from ssrseg.adapt.norms import still_statistics
from ssrseg.adapt.terms import Term
from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter

ViewMaker = Callable[[Batch, Pseudo], View]
"""Makes a view from the batch and the teacher's labels."""


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Differentiate a loss by every input, `None` where it does not depend on it, and free its graph.

    As in a backward pass outside of autocast, every operation runs in the type of its forward.
    """
    with torch.autocast(loss.device.type, enabled=False):
        return torch.autograd.grad(loss, inputs, allow_unused=True)


class _WithGradients(torch.autograd.Function):
    """Attach gradients that are known already: the loss of its inputs, whose backward returns them times its factor."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, found: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*found)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(factor * gradient for gradient in ctx.saved_tensors)


class Learner(nn.Module):
    """Hold the student and its terms, which is all that is trained.

    Data parallelism wraps this and nothing else: an encoder or head called outside the wrapped `forward` gives
    every process other gradients, without any error.

    `head_only` freezes the backbone: no gradients, and its BatchNorm as at inference. `statistics_of` names the views
    that move the running statistics, where not all do (domain-specific statistics: those of the domain it is for).
    """

    def __init__(
        self,
        student: Segmenter,
        terms: Mapping[str, Term],
        *,
        head_only: bool = False,
        statistics_of: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.terms = nn.ModuleDict(dict(terms))
        self.head_only, self.statistics_of = head_only, statistics_of
        self.gradients: Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor | None]] = gradients
        """Computes a term's gradients; a tool that measures wraps it."""
        if head_only:
            student.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if self.head_only:
            self.student.backbone.eval()
        return self

    def forward(self, view: View) -> dict[str, Tensor]:
        """Encode the view once and return the losses of its terms, named `view/term`.

        Early backward: each term is back-propagated to the shared features as soon as its loss is computed, which frees
        its activations before the next term begins, so the two branches of SSR are never in memory together. The
        backward pass of the returned losses goes through the backbone.
        """
        moves = self.statistics_of is None or view.name in self.statistics_of
        with nullcontext() if moves else still_statistics(self.student):
            features = self.student.encode(view.images, view.window)
            return {
                f"{view.name}/{name}": self._early_backward(term, view, features)
                for name, term in cast(Mapping[str, Term], self.terms).items()
                if view.name in term.views
            }

    def _early_backward(self, term: Term, view: View, features: list[Tensor]) -> Tensor:
        leaves = [level.detach().requires_grad_(level.requires_grad) for level in features]
        # Views of the leaves, since hooks on the inputs of a module do not work on leaves whose gradient is asked for.
        loss: Tensor = term.weight * term(view, [leaf.view_as(leaf) for leaf in leaves], self.student)
        if not loss.requires_grad:
            return loss
        inputs = [(level, leaf) for level, leaf in zip(features, leaves, strict=True) if level.requires_grad]
        inputs += [(weight, weight) for weight in self.parameters() if weight.requires_grad]
        outer, inner = zip(*inputs, strict=True)
        pairs = zip(outer, self.gradients(loss, inner), strict=True)
        reached = [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]
        tensors, found = zip(*reached, strict=True)
        settled: Tensor = _WithGradients.apply(loss.detach(), found, *tensors)
        return settled


def adapt(
    learner: Callable[[View], dict[str, Tensor]],
    teacher: Callable[..., Pseudo],
    makers: Sequence[ViewMaker],
    batch: Batch,
    backward: Callable[[Tensor], None],
    around: Callable[[bool], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Tensor]:
    """Compute one step's gradients: the teacher labels the target, then each view has its own forward and backward.

    The gradients are those of the sum of all losses, with the activations of one view in memory. The caller calls
    `teacher.update` before and `optimizer.step` after.

    Args:
        learner: view -> losses.
        teacher: target images, valid, inside -> pseudo-labels; regions come last, where the batch has them.
        makers: make the views, in order.
        batch: of this process.
        backward: back-propagates a loss.
        around: whether the view is the last -> context of its forward and backward. Processes exchange their gradients
            in the last view's.

    Returns:
        Detached losses, named `view/term`.

    Raises:
        UserError: no term names a view.
    """
    regions = () if batch.regions is None else (batch.regions,)
    pseudo = teacher(batch.target, batch.valid, batch.target_inside, *regions)
    values: dict[str, Tensor] = {}
    for left, make in zip(reversed(range(len(makers))), makers, strict=True):
        view = make(batch, pseudo)
        with around(left == 0):
            losses = learner(view)
            if not losses:
                raise UserError(
                    "A view was made that no term asks anything of: leave its maker out, or name it in a term's views."
                )
            backward(torch.stack([*losses.values()]).sum())
        values |= {name: loss.detach() for name, loss in losses.items()}
    return values
