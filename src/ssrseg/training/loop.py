"""The training loop: one for every method, from the CPU to many devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from ssrseg.adapt.batch import Batch, Pseudo, View
from ssrseg.adapt.learner import ViewMaker, adapt
from ssrseg.adapt.methods import Method
from ssrseg.config import Settings
from ssrseg.data.batches import Raw
from ssrseg.training.optim import set_learning_rates


@dataclass(frozen=True)
class Moment:
    """The state of a run after a step."""

    step: int
    """Completed steps."""
    losses: dict[str, Tensor]
    """Detached, on the device, named `view/term`."""
    rate: float
    """Learning rate of the backbone in this step."""
    images: int
    """Source images per step, over all processes."""


class Observer:
    """Watches a run: journals, scores, saves, draws. Each method does nothing until overridden."""

    def saw(self, step: int, view: View) -> None:
        """A view was made in the step that follows `step` completed ones."""

    def computed(self, step: int, raws: Sequence[Raw], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """The gradients of step number `step`, from 1, are there; the optimiser has not used them yet.

        `losses` are those of each of the step's batches `raws`, in this process.
        """

    def stepped(self, moment: Moment) -> None:
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
    batches: Iterable[Raw],
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
        batches: from step `start` on.
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
            return pseudo

    for step, raw in zip(range(start, settings.train.steps), batches, strict=False):
        set_learning_rates(optimizer, settings.optim, step, settings.train.steps)
        method.teacher.update(method.learner.student, step)
        optimizer.zero_grad(set_to_none=True)
        makers = [shown(make, observers, step) for make in method.makers]
        losses = adapt(learner, label, makers, to_batch(raw, fabric.device), fabric.backward)
        for observer in observers:
            observer.computed(step + 1, [raw], [losses])
        wrapped.step()
        rate = optimizer.param_groups[0]["lr"]
        moment = Moment(step + 1, losses, rate, len(raw.source) * fabric.world_size)
        for observer in observers:
            observer.stepped(moment)
    for observer in observers:
        observer.finished()


def to_batch(raw: Raw, device: torch.device) -> Batch:
    """Bytes to the device, then floats in [0, 1]: the only cast."""
    source, labels, target, valid = (
        part.to(device, non_blocking=True) for part in (raw.source, raw.labels, raw.target, raw.valid)
    )
    return Batch(source.float() / 255, labels.long(), target.float() / 255, valid)


def shown(make: ViewMaker, observers: Sequence[Observer], step: int) -> ViewMaker:
    """A view maker whose views the observers see."""

    def make_and_show(batch: Batch, pseudo: Pseudo) -> View:
        view = make(batch, pseudo)
        for observer in observers:
            observer.saw(step, view)
        return view

    return make_and_show
