"""The guard of a run's numbers: leave out, report and dump a step with NaN or infinite losses or gradients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import View
from ssrseg.config import OptimConfig
from ssrseg.data.loader import RawBatch
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically, write_json
from ssrseg.runs.folder import resume_command
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext

LAG = {"cuda": 1}
"""Steps by which the host looks later, by kind of device; a host that computes itself has the numbers at once."""

DIVERGED = 10.0
"""Times the loss of an untrained network, or the largest weight of one (1 at least): a run above it has diverged."""


class Fault(UserError):
    """A run that stopped because its numbers went wrong at `step`; the command line exits with code 3.

    It had completed `completed` steps by then. The step changed nothing, so its state is good, unless it has diverged.
    """

    exit_code = 3

    def __init__(self, message: str, step: int, completed: int, *, diverged: bool = False) -> None:
        super().__init__(message)
        self.step, self.completed, self.diverged = step, completed, diverged


@dataclass(frozen=True)
class BadStep:
    """A step of this process, or of another one, with NaN or infinite losses or gradients."""

    step: int  # its number, from 1, as in the journal
    losses: Sequence[Mapping[str, float]]  # of each batch of the step, named `view/term`
    gradients: Mapping[str, float]  # sum of absolute values by parameter
    raws: Sequence[RawBatch]  # the batches of the step
    origin: tuple[int, str] | None
    """Batch and view whose backward made the gradients so, where it was one of this process."""

    def suspects(self) -> list[RawBatch]:
        """Return the batches with a NaN or infinite loss, else the one of the gradient, else all of the step."""
        bad = [not all(map(math.isfinite, part.values())) for part in self.losses]
        if not any(bad) and self.origin is not None:
            return [self.raws[self.origin[0]]]
        return [raw for raw, is_bad in zip(self.raws, bad, strict=True) if is_bad or not any(bad)]

    def record(self) -> dict[str, Any]:
        """Return what is NaN or infinite, by part of the learner, and in which images: `fault.json`."""
        parts: dict[str, list[str]] = {}
        for name in self.gradients:  # `student.backbone.x` or `terms.regularizer.x`
            owner, part = name.split(".")[:2]
            parts.setdefault(f"the term {part}" if owner == "terms" else f"the {part}", []).append(name)
        bad = {part: [n for n in names if not math.isfinite(self.gradients[n])] for part, names in parts.items()}
        return {
            "step": self.step,
            "losses": [  # JSON has neither NaN nor infinity
                {name: value if math.isfinite(value) else str(value) for name, value in part.items()}
                for part in self.losses
            ],
            "gradients": {
                part: {"not_finite": len(names), "parameters": len(parts[part]), "first": names[0]}
                for part, names in bad.items()
                if names
            },
            "view": self.origin and self.origin[1],
            "source": [name for raw in self.suspects() for name in raw.names[: len(raw.source)]],
            "target": [name for raw in self.suspects() for name in raw.names[len(raw.source) :]],
        }

    def text(self, process: str = "") -> str:
        """Describe what is NaN or infinite, and in which images; `process` names this one where there are several."""
        found, after = self.record(), ""
        if self.origin is not None:
            batch, view = self.origin
            terms = [name.partition("/")[2] for name in self.losses[batch] if name.startswith(f"{view}/")]
            after = f" after the backward of view {view} (terms {', '.join(terms)})"
        losses = [
            f"the loss {name} is {value} (view {name.partition('/')[0]}, term {name.partition('/')[2]})"
            for part in found["losses"]
            for name, value in part.items()
            if isinstance(value, str)
        ]
        gradients = [
            f"{of['not_finite']} of {of['parameters']} in {part} (first {of['first']})"
            for part, of in found["gradients"].items()
        ]
        what = ", ".join(losses) or f"every loss is finite, but{after} these gradients are not: {', '.join(gradients)}"
        images = "; ".join(f"{domain} {', '.join(found[domain])}" for domain in ("source", "target") if found[domain])
        return f"Step {self.step}{process and f' in {process}'}: {what}. Images: {images}."

    def dump(self, folder: Path) -> None:
        """Write the suspected batches as `batch.safetensors`, and everything else as `fault.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        raws, kept = self.suspects(), ("source", "labels", "target", "valid", "labelled", "labelled_labels")
        tensors = {n: torch.cat([getattr(raw, n) for raw in raws]) for n in kept if getattr(raws[0], n) is not None}
        write_atomically(folder / "batch.safetensors", lambda partial: save_file(tensors, partial))
        write_json(folder / "fault.json", self.record())


class BufferBackup:
    """The buffers of modules (running statistics of BatchNorm) as they were before the step.

    A forward pass changes them before any loss is known.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._modules = modules
        self._buffers: list[list[Tensor]] | None = None
        self._before = [_flat(group) for group in self._groups()]

    @torch.no_grad()
    def settle(self, undo: Tensor) -> None:
        """Restore what was before where `undo` (a bool on the device) is true, else keep what is now."""
        self._buffers = self._buffers or self._groups()  # once, on the device: moving a module replaces its buffers
        for number, group in enumerate(self._buffers):
            before = self._before[number].to(group[0].device, non_blocking=True)
            settled = torch.where(undo, before, _flat(group))
            parts = torch.split(settled, [buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(parts, group, strict=True)])
            self._before[number] = settled

    def _groups(self) -> list[list[Tensor]]:
        groups: dict[torch.dtype, list[Tensor]] = {}
        for buffer in (buffer for module in self._modules for buffer in module.buffers()):
            groups.setdefault(buffer.dtype, []).append(buffer)
        return list(groups.values())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


class Guard(Observer):
    """Leave out every step with a NaN or infinite loss or gradient: it changes nothing, is saved, and stops the run.

    The device decides by itself: AdamW's fused kernel leaves weights and state alone where `found_inf` is 1. The
    numbers are read when they have arrived: on CUDA those of the step before, so that the message lags one step and
    the device never waits; elsewhere at once. Up to `train.guard.skip` such steps are skipped with a warning. Every
    process has a guard, and all come to the same verdict.
    """

    everywhere = True
    kept = ("skipped", "row", "sound", "untrained", "first_weight")

    def __init__(self, context: RunContext, journal: Journal) -> None:
        train, fabric, method = context.settings.train, context.fabric, context.method
        self._optimizer, self._folder = context.optimizer, context.folder
        self._journal, self._allowed = journal, train.guard.skip
        self._checkpoint_every, self._steps = train.checkpoint_every, train.steps
        self._rank = fabric.global_rank if fabric.world_size > 1 else None
        self._backup = BufferBackup([method.learner, method.teacher])
        self._named = list(method.learner.named_parameters())
        self._lag = LAG.get(fabric.device.type, 0)
        self._views: list[str] = []
        self._before: list[Tensor] = []
        self._pending: deque[Callable[[], BadStep | float]] = deque()
        self.skipped, self.row, self.sound, self._completed = 0, 0, 0, 0  # sound: the last step without a high loss
        self._lr, self._loss, self.untrained = context.settings.optim.lr, 0.0, math.log(len(context.space.names))
        self.first_weight = self._largest_weight()

    def state(self) -> dict[str, Any]:
        """Check the steps that were not checked yet, which may stop the run."""
        self._check(lag=0)
        return super().state()

    def saw(self, step: int, view: View) -> None:
        """Note the gradients of the views before, so that the view that spoils them can be named."""
        if self._views:
            self._before.append(torch.stack(self._gradients()[1]).sum())
        self._views.append(view.name)

    def computed(self, step: int, raws: Sequence[RawBatch], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """Set the optimiser's `found_inf`, and send the numbers to the host."""
        values = [loss.detach() for part in losses for loss in part.values()]
        parameters, norms = self._gradients()
        numbers = torch.stack([*values, *norms, *self._before])
        found = distributed.all_any(numbers.isfinite().all().logical_not()).float()
        self._optimizer.found_inf = found  # type: ignore[attr-defined]
        self._backup.settle(found.bool())
        arrived = torch.cuda.Event() if found.is_cuda else None
        sent = torch.cat([numbers, found[None]]).to("cpu", non_blocking=found.is_cuda)  # into page-locked memory
        if arrived is not None:
            arrived.record()
        names, views = [list(part) for part in losses], self._views

        def bad_step() -> BadStep | float:
            """Wait for the numbers; the loss of the step when all are finite."""
            if arrived is not None:
                arrived.synchronize()
            *read, any_bad = sent.tolist()
            if not any_bad:
                return float(sum(read[: len(values)])) / len(raws)
            left = iter(read)
            read_losses = [{name: next(left) for name in part} for part in names]
            gradients = {name: next(left) for name in parameters}
            after = zip(views, [*left, sum(gradients.values())], strict=False)  # the gradients after each backward
            bad = [(n * len(raws) // len(views), view) for n, (view, x) in enumerate(after) if not math.isfinite(x)]
            return BadStep(step, read_losses, gradients, raws, bad[0] if bad else None)

        self._pending.append(bad_step)
        self._views, self._before = [], []

    def _gradients(self) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Names of the parameters that have one, and its sum of absolute values: that of squares overflows earlier."""
        named = {name: parameter.grad for name, parameter in self._named if parameter.grad is not None}
        return tuple(named), tuple(torch._foreach_norm(list(named.values()), 1))

    def stepped(self, result: StepResult) -> None:
        """Check the step before; this one too where a checkpoint follows, which all processes do alike."""
        self._completed = result.step
        saved = result.step % self._checkpoint_every == 0 or result.step == self._steps
        self._check(lag=0 if saved else self._lag)

    def finished(self) -> None:
        self._check(lag=0)

    def _check(self, lag: int) -> None:
        stop: Fault | None = None
        while len(self._pending) > (0 if stop else lag):  # one more may be on its way: the saved state must include it
            step, number = self._pending.popleft()(), self._completed - len(self._pending)
            if isinstance(step, float):
                self._note(step, number)
                continue
            self.skipped, self.row = self.skipped + 1, self.row + 1
            folder = self._folder.fault(step.step, self._rank)
            step.dump(folder)
            where, diverged = "" if self._rank is None else f"process {self._rank}", self._diverged()
            text = f"{step.text(where)} No weight was changed; the batch lies in {folder}."
            if stop:
                self._journal.warn(step.step, text)
            elif self.skipped <= self._allowed and not diverged:
                self._journal.warn(step.step, f"{text} Skipped: number {self.skipped} of at most {self._allowed}.")
            else:
                after = f" after {self.skipped - 1} skipped steps" if self.skipped > 1 and self._allowed else ""
                text = f"{text} The run stopped{after}. {diverged or self._how_to_go_on()}"
                stop = Fault(text, step.step, self._completed, diverged=bool(diverged))
        if stop:
            raise stop

    def _note(self, loss: float, step: int) -> None:
        """Remember the loss of a good step."""
        self._loss, self.row = loss, 0
        self.untrained = max(loss, self.untrained) if step == 1 else self.untrained
        self.sound = self.sound if self._is_high(loss) else step

    def _is_high(self, loss: float) -> bool:
        return loss > DIVERGED * self.untrained

    def _largest_weight(self) -> float:
        return float(torch.stack(torch._foreach_norm([weight.detach() for _, weight in self._named], math.inf)).max())

    def _diverged(self) -> str:
        """Say by what the run has diverged, and what to do; "" when it has not. All processes come to the same."""
        weight, loss = self._largest_weight(), self._loss
        large = not weight <= DIVERGED * max(self.first_weight, 1)
        if not distributed.all_any(torch.tensor(large or self._is_high(loss), device=self._named[0][1].device)):
            return ""
        found = f"the loss was {loss:.3g} before this step (untrained {self.untrained:.3g})"
        if large:
            found += f", and the largest weight is {weight:.3g} (at first {self.first_weight:.3g})"
        lower = f"{min(self._lr / 10, OptimConfig().lr):g}"
        saved, again = (self._completed - 1) // self._checkpoint_every * self._checkpoint_every, "Start anew with"
        if self._folder.checkpoint.exists() and 0 < saved < self.sound:  # the loss after it was not high
            go_on = f"{resume_command(self._folder.path)} optim.lr={lower}"
            again = f"The checkpoint of step {saved} is from before: `{go_on}` goes on from there. Or start anew with"
        return (
            f"It has diverged: {found}. The weights are spoiled: they were not saved, and the same settings lead here "
            f"again, resumed or with steps skipped. {again} optim.lr={lower} (now {self._lr:g}) and another --out."
        )

    def _how_to_go_on(self) -> str:
        go_on = f"`{resume_command(self._folder.path)}` goes on after this step"
        if self.row > 1:
            return (
                f"{go_on}, but the {self.row} steps up to it were all so: this is no matter of one image. Look for a "
                "term or view that divides by zero, for train.precision=bf16, and lower optim.lr."
            )
        return f"{go_on}; a run with train.guard.skip={max(10, 2 * self._allowed)} leaves out so many by itself."
