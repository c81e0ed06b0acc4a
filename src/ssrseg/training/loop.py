"""The training loop: one for every method, from the CPU to many devices."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
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
from ssrseg.adapt.norms import still_statistics
from ssrseg.config import Settings
from ssrseg.data.loader import RawBatch
from ssrseg.training.optim import set_learning_rates


@dataclass(frozen=True)
class StepResult:
    """The state of a run after a step."""

    step: int  # completed steps
    losses: dict[str, Tensor]  # detached, on the device, named `view/term`: means over all processes
    rate: float  # learning rate of the backbone in this step
    images: int  # source images per step, over all processes
    waited: float = 0.0  # seconds that the loop waited for the step's data


class Observer:
    """Base class of what watches a run: journals, scores, saves, draws. Each method does nothing until overridden."""

    everywhere: ClassVar[bool] = False
    """Whether it watches in every process, because it computes with all of them; else in the first only."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that checkpoints hold: tensors and plain values."""

    @property
    def ended(self) -> bool:
        """Whether it ends the run before the last step; all processes must answer alike, and without the device."""
        return False

    def saw(self, step: int, view: View) -> None:
        """Look at a view, made in the step that follows `step` completed ones."""

    def labelled(self, pseudo: Pseudo, valid: Tensor) -> None:
        """Look at the teacher's labels of target images; `valid` (B', H, W) bool is where they may be trusted."""

    def computed(self, step: int, raws: Sequence[RawBatch], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """Look at the gradients of step number `step`, from 1, which the optimiser has not used yet.

        `losses` are those of each of the step's batches `raws`, in this process.
        """

    def stepped(self, result: StepResult) -> None:
        """Look at a completed step."""

    def finished(self) -> None:
        """Finish, after the last step."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for this observer to go on: tensors and plain values."""
        return {name: getattr(self, name) for name in self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a `state`; one of an earlier version may lack what is new since."""
        vars(self).update({name: state[name] for name in self.kept if name in state})


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
    """Train from `start` completed steps to the end, or until an observer has `ended`.

    The method is moved to the device of `fabric`, which is launched; the optimiser has the parameters of its learner.
    The batches are those from step `start` on, `train.accumulate` of them for each step. Observers are called for
    every view and step, in order.
    """
    method.to(fabric.device)
    learner, wrapped = fabric.setup(method.learner, optimizer)
    learner.train()

    def label(images: Tensor, valid: Tensor, *more: Tensor | None) -> Pseudo:
        with fabric.autocast():
            pseudo: Pseudo = method.teacher(images, valid, *more)
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
    stream = iter(batches)
    for step in range(start, steps):
        if any(observer.ended for observer in observers):
            break
        set_learning_rates(optimizer, settings.optim, step, steps)
        method.teacher.update(method.learner.student, step)
        optimizer.zero_grad(set_to_none=True)
        makers = [partial(make_and_show, make, observers, step) for make in method.makers]
        began = time.perf_counter()
        raws = [next(stream) for _ in range(accumulate)]
        waited, parts = time.perf_counter() - began, []
        for number, raw in enumerate(raws, start=1):
            batch = to_batch(raw, fabric.device)
            parts.append(adapt(learner, label, makers, batch, backward, partial(exchanging, number == accumulate)))
        for observer in observers:
            observer.computed(step + 1, raws, parts)
        wrapped.step()
        means = distributed.all_mean(torch.stack([torch.stack(list(part.values())) for part in parts]).mean(dim=0))
        losses, images = dict(zip(parts[0], means, strict=True)), settings.loader.batch * accumulate * fabric.world_size
        result = StepResult(step + 1, losses, optimizer.param_groups[0]["lr"], images, waited)
        for observer in observers:
            observer.stepped(result)
    for observer in observers:
        observer.finished()


def to_batch(raw: RawBatch, device: torch.device) -> Batch:
    """Copy bytes to the device, then cast to floats in [0, 1]: the only cast."""
    batch = Batch(**{name: value for name, value in vars(raw).items() if name != "names"}).to(device)
    images = {"source": batch.source, "target": batch.target, "labelled": batch.labelled}
    ids = {"labels": batch.labels, "labelled_labels": batch.labelled_labels, "regions": batch.regions}
    cast = {name: value / 255 for name, value in images.items() if value is not None}
    return replace(batch, **cast, **{name: value.long() for name, value in ids.items() if value is not None})


def make_and_show(make: ViewMaker, observers: Sequence[Observer], step: int, batch: Batch, pseudo: Pseudo) -> View:
    """Make a view, and call the observers for it."""
    view = make(batch, pseudo)
    for observer in observers:
        observer.saw(step, view)
    return view
