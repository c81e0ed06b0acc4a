"""The guard of a run's numbers: a step that is not finite changes nothing, and is named."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import View
from ssrseg.data.loader import Raw
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.faults import Fault, Finding
from ssrseg.training.setup import RunContext

Warn = Callable[[int, str], None]
"""Tells the user, and everything that is written down, of something at a step."""
LAG = {"cuda": 1}
"""Steps by which the host looks later, by kind of device; a host that computes itself has the numbers at once."""


class Readback:
    """Numbers on their way from the device: the queue goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        on_cuda = numbers.is_cuda
        self._numbers = numbers.to("cpu", non_blocking=on_cuda)  # into page-locked memory
        self._arrived = torch.cuda.Event() if on_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers; waits for those alone."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers


class Statistics:
    """The buffers of modules (running statistics of BatchNorm), and what they were before the step.

    A forward pass changes them before any loss is known.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._modules = modules
        self._buffers: list[list[Tensor]] | None = None
        self._before = [_flat(group) for group in self._groups()]

    @torch.no_grad()
    def settle(self, undo: Tensor) -> None:
        """Put back what was before where `undo` (a bool on the device) says so, else keep what is now."""
        self._buffers = self._buffers or self._groups()  # once, on the device: moving a module replaces its buffers
        for number, group in enumerate(self._buffers):
            before = self._before[number].to(group[0].device, non_blocking=True)
            settled = torch.where(undo, before, _flat(group))
            parts = torch.split(settled, [buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(parts, group, strict=True)])
            self._before[number] = settled

    def _groups(self) -> list[list[Tensor]]:
        groups: dict[torch.dtype, list[Tensor]] = {}
        for module in self._modules:
            for buffer in module.buffers():
                groups.setdefault(buffer.dtype, []).append(buffer)
        return list(groups.values())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@dataclass(frozen=True)
class Evidence:
    """What the guard keeps of a step until its numbers have arrived."""

    step: int
    raws: tuple[Raw, ...]
    losses: tuple[tuple[str, ...], ...]
    """Names, for each batch."""
    parameters: tuple[str, ...]
    """Names of those with a gradient."""
    views: tuple[str, ...]
    """In the order of their backwards, over all batches."""
    numbers: Readback
    """Losses, gradients, all gradients before each view but the first, and whether any process found a bad one."""

    def finding(self, process: str) -> Finding | None:
        """What is wrong with the step, if anything."""
        *numbers, found = self.numbers.read()
        if not found:
            return None
        left = iter(numbers)
        losses = tuple({name: next(left) for name in names} for names in self.losses)
        gradients = {name: next(left) for name in self.parameters}
        return Finding(self.step, losses, gradients, self.raws, self._origin(gradients, [*left]), process)

    def _origin(self, gradients: Mapping[str, float], before: Sequence[float]) -> tuple[int, str] | None:
        """Batch and view of the first backward after which the gradients are not finite."""
        for number, total in enumerate([*before, sum(gradients.values())]):
            if not math.isfinite(total) and number < len(self.views):
                return number * len(self.raws) // len(self.views), self.views[number]
        return None


class Guard(Observer):
    """A step with a loss or gradient that is not finite changes nothing; it is named, saved, and stops the run.

    The device decides by itself: AdamW's fused kernel leaves weights and state alone where `found_inf` is 1. The
    numbers are read when they have arrived: on CUDA those of the step before, so that the message lags one step and
    the device never waits; elsewhere at once. Up to `train.guard.skip` such steps are skipped with a warning.

    Every process has a guard, and all come to the same verdict.

    Args:
        context: the run.
        warn: told of skipped steps.
    """

    everywhere = True

    def __init__(self, context: RunContext, warn: Warn) -> None:
        train, fabric = context.settings.train, context.fabric
        self._learner, self._optimizer, self._folder = context.method.learner, context.optimizer, context.folder
        self._warn, self._allowed = warn, train.guard.skip
        self._checkpoint_every, self._steps = train.checkpoint_every, train.steps
        self._rank = fabric.global_rank if fabric.world_size > 1 else None
        self._statistics = Statistics([context.method.learner, context.method.teacher])
        self._named = list(context.method.learner.named_parameters())
        self._lag = LAG.get(fabric.device.type, 0)
        self._views: list[str] = []
        self._before: list[Tensor] = []
        self._pending: deque[Evidence] = deque()
        self._skipped, self._completed = 0, 0

    def state(self) -> dict[str, Any]:
        """How many steps were skipped; those that were not looked at yet are, which may stop the run."""
        self._look(lag=0)
        return {"skipped": self._skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._skipped = state["skipped"]

    def saw(self, step: int, view: View) -> None:
        """Note the gradients of the views before, so that the view that spoils them can be named."""
        if self._views:
            self._before.append(torch.stack(self._gradients()[1]).sum())
        self._views.append(view.name)

    def computed(self, step: int, raws: Sequence[Raw], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """Tell the optimiser whether the step is to be left out, and send the numbers off."""
        values = [loss.detach() for part in losses for loss in part.values()]
        parameters, norms = self._gradients()
        numbers = torch.stack([*values, *norms, *self._before])
        found = distributed.union(numbers.isfinite().all().logical_not()).float()
        self._optimizer.found_inf = found  # type: ignore[attr-defined]
        self._statistics.settle(found.bool())
        names = tuple(tuple(part) for part in losses)
        read = Readback(torch.cat([numbers, found[None]]))
        self._pending.append(Evidence(step, tuple(raws), names, parameters, tuple(self._views), read))
        self._views, self._before = [], []

    def _gradients(self) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Names of the parameters that have one, and its sum of absolute values: that of squares overflows earlier."""
        named = {name: parameter.grad for name, parameter in self._named if parameter.grad is not None}
        return tuple(named), tuple(torch._foreach_norm(list(named.values()), 1))

    def stepped(self, result: StepResult) -> None:
        """Look at the step before; at this one where a checkpoint follows, which all processes do alike."""
        self._completed = result.step
        saved = result.step % self._checkpoint_every == 0 or result.step == self._steps
        self._look(lag=0 if saved else self._lag)

    def finished(self) -> None:
        """Look at the rest."""
        self._look(lag=0)

    def _look(self, lag: int) -> None:
        while len(self._pending) > lag:
            finding = self._pending.popleft().finding(self._process)
            if finding is None:
                continue
            self._skipped += 1
            text = self._keep(finding)
            if self._skipped <= self._allowed:
                self._warn(finding.step, f"{text} Skipped: number {self._skipped} of at most {self._allowed}.")
                continue
            while self._pending:  # one more step may be on its way, and the state that is saved must know of it
                if (later := self._pending.popleft().finding(self._process)) is not None:
                    self._skipped += 1
                    self._warn(later.step, self._keep(later))
            self._stop(finding, text)

    def _keep(self, finding: Finding) -> str:
        """Save the batch; what to say of it."""
        folder = self._folder.fault(finding.step, self._rank)
        finding.write(folder)
        return f"{finding.text()} No weight was changed; the batch lies in {folder}."

    def _stop(self, finding: Finding, text: str) -> None:
        before = f" after {self._allowed} skipped steps" if self._allowed else ""
        raise Fault(
            f"{text} The run stopped{before}. `ssrseg train --resume --out {self._folder.path}` goes on after this "
            f"step; a run with train.guard.skip={max(10, 2 * self._allowed)} leaves out so many by itself.",
            finding.step,
            self._completed,
        )

    @property
    def _process(self) -> str:
        return "" if self._rank is None else f"process {self._rank}"
