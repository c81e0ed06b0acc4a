"""The training loop: one for every method, from the CPU to many devices."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import Batch, Pseudo, View
from ssrseg.adapt.learner import ViewMaker, adapt
from ssrseg.adapt.methods import Method
from ssrseg.adapt.regularizer import still_statistics
from ssrseg.config import Settings
from ssrseg.data.loader import RawBatch
from ssrseg.training.optim import set_learning_rates


@dataclass(frozen=True)
class StepResult:
    """The state of a run after a step."""

    step: int
    """Completed steps."""
    losses: dict[str, Tensor]
    """Detached, on the device, named `view/term`: means over all processes."""
    rate: float
    """Learning rate of the backbone in this step."""
    images: int
    """Source images per step, over all processes."""
    waited: float = 0.0
    """Seconds that the loop waited for the step's data."""


class Observer:
    """Watches a run: journals, scores, saves, draws. Each method does nothing until overridden."""

    everywhere: ClassVar[bool] = False
    """Whether it watches in every process, because it computes with all of them; else in the first only."""

    def saw(self, step: int, view: View) -> None:
        """A view was made in the step that follows `step` completed ones."""

    def labelled(self, pseudo: Pseudo, valid: Tensor) -> None:
        """The teacher labelled target images; `valid` (B', H, W) bool is where their labels may be trusted."""

    def computed(self, step: int, raws: Sequence[RawBatch], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """The gradients of step number `step`, from 1, are there; the optimiser has not used them yet.

        `losses` are those of each of the step's batches `raws`, in this process.
        """

    def stepped(self, result: StepResult) -> None:
        """A step was completed."""

    def finished(self) -> None:
        """The last step was completed."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for this observer to go on: tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""


def fit(
    fabric: Fabric,
    method: Method,
    optimizer: Optimizer,
    batches: Iterable[RawBatch],
    settings: Settings,
    *,
    start: int = 0,
    observers: Sequence[Observer] = (),
) -> None:
    """Train from `start` completed steps to the end.

    Args:
        fabric: launched.
        method: on any device; moved.
        optimizer: over the parameters of `method.learner`.
        batches: from step `start` on, `train.accumulate` of them for each step.
        settings: schedule and length.
        start: completed steps.
        observers: told of every view and step, in order.
    """
    method.to(fabric.device)
    learner, wrapped = fabric.setup(method.learner, optimizer)
    learner.train()

    def label(images: Tensor, valid: Tensor) -> Pseudo:
        with fabric.autocast():
            pseudo: Pseudo = method.teacher(images, valid)
        for observer in observers:
            observer.labelled(pseudo, valid)
        return pseudo

    # What is recomputed in a backward pass must not move BatchNorm's statistics a second time.
    recomputed = method.learner.student.backbone if settings.train.activation_checkpointing else nn.Identity()

    def backward(loss: Tensor) -> None:
        with still_statistics(recomputed):
            fabric.backward(loss / settings.train.accumulate)

    def exchanging(last_batch: bool, last_view: bool) -> AbstractContextManager[None]:
        # Gradients are exchanged in a step's last backward, those of all its views and batches at once.
        return fabric.no_backward_sync(learner, enabled=not (last_batch and last_view))

    accumulate, steps = settings.train.accumulate, settings.train.steps
    stream = TimedIterator(batches)
    for step in range(start, steps):
        set_learning_rates(optimizer, settings.optim, step, steps)
        method.teacher.update(method.learner.student, step)
        optimizer.zero_grad(set_to_none=True)
        makers = [shown(make, observers, step) for make in method.makers]
        raws, parts = [next(stream) for _ in range(accumulate)], []
        for number, raw in enumerate(raws, start=1):
            batch = to_batch(raw, fabric.device)
            parts.append(adapt(learner, label, makers, batch, backward, partial(exchanging, number == accumulate)))
        for observer in observers:
            observer.computed(step + 1, raws, parts)
        wrapped.step()
        images = settings.loader.batch * accumulate * fabric.world_size
        result = StepResult(step + 1, mean_of(parts), optimizer.param_groups[0]["lr"], images, stream.lap())
        for observer in observers:
            observer.stepped(result)
    for observer in observers:
        observer.finished()


def mean_of(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean losses over the batches of a step and over all processes."""
    means = distributed.all_mean(torch.stack([torch.stack(list(part.values())) for part in parts]).mean(dim=0))
    return dict(zip(parts[0], means, strict=True))


class TimedIterator(Iterator[RawBatch]):
    """Batches, and how long the loop waited for them."""

    def __init__(self, batches: Iterable[RawBatch]) -> None:
        self._batches, self._waited = iter(batches), 0.0

    def __next__(self) -> RawBatch:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._waited += time.perf_counter() - began

    def lap(self) -> float:
        """Seconds of waiting since the lap before."""
        waited, self._waited = self._waited, 0.0
        return waited


def to_batch(raw: RawBatch, device: torch.device) -> Batch:
    """Bytes to the device, then floats in [0, 1]: the only cast."""
    source, labels, target, valid = (
        part.to(device, non_blocking=True) for part in (raw.source, raw.labels, raw.target, raw.valid)
    )
    return Batch(source / 255, labels.long(), target / 255, valid)


def shown(make: ViewMaker, observers: Sequence[Observer], step: int) -> ViewMaker:
    """A view maker whose views the observers see."""

    def make_and_show(batch: Batch, pseudo: Pseudo) -> View:
        view = make(batch, pseudo)
        for observer in observers:
            observer.saw(step, view)
        return view

    return make_and_show
