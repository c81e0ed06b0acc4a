"""Alarms: warn of what goes wrong slowly, and change nothing; `docs/guards.md` has the reasons of the thresholds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssrseg.adapt.batch import Pseudo
from ssrseg.inference import Scores
from ssrseg.models.segmenter import Segmenter
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext

MUCH_WAITING = 0.3
"""Share of the time spent waiting for data from which on a note is worth it: without, a run is 1.4 times as fast."""


@dataclass
class ForgettingDetector:
    """Detect when a value that was learned is lost; again only after it was learned anew."""

    learned: float  # it is, when the value reaches this `patience` times in a row
    lost: float  # it is, when the value is below this `patience` times in a row
    patience: int = 1
    highest: dict[str, float] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    streaks: dict[str, int] = field(default_factory=dict)
    """Times in a row: positive while a value is high, negative while it is low."""

    def update(self, values: Mapping[str, float | None]) -> list[str]:
        """Return the names that have just been lost; a value of `None` is left out."""
        fallen = []
        for name, value in ((name, value) for name, value in values.items() if value is not None):
            self.highest[name] = max(value, self.highest.get(name, 0.0))
            streak, high, low = self.streaks.get(name, 0), value >= self.learned, value < self.lost
            self.streaks[name] = streak = max(streak, 0) + 1 if high else min(streak, 0) - 1 if low else 0
            if streak >= self.patience and name not in self.known:
                self.known.append(name)
            elif streak <= -self.patience and name in self.known:
                self.known.remove(name)
                fallen.append(name)
        return fallen


class ClassCollapse(Observer):
    """Warn when a class that was learned has gone from the pseudo-labels, or from the student's predictions.

    Pixels are counted on the device; the counts are read at log steps, and the share of each class since the step
    before is journaled as a record `labels`.
    """

    kept = ("counts", "window", "steps")

    def __init__(self, context: RunContext, journal: Journal) -> None:
        train, self._classes = context.settings.train, context.space.names
        self._config, self._every, self._warmup = train.guard, train.log_every, context.settings.optim.warmup
        self._journal = journal
        self.counts = torch.zeros(256, dtype=torch.int64)
        self.window, self.steps = [0] * len(self._classes), 0
        self._shares = ForgettingDetector(train.guard.learned_share, train.guard.lost_share, patience=2)
        self._ious = ForgettingDetector(train.guard.learned_iou, train.guard.lost_iou)

    def state(self) -> dict[str, Any]:
        kept = {"counts": self.counts.cpu(), "shares": asdict(self._shares), "ious": asdict(self._ious)}
        return super().state() | kept

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        for detector, before in ((self._shares, state["shares"]), (self._ious, state["ious"])):
            vars(detector).update({name: before[name] for name in ("highest", "known", "streaks")})

    def labelled(self, pseudo: Pseudo, valid: Tensor) -> None:
        """Count the trustworthy pixels of each class. Not by `bincount`, which waits for the labels."""
        counts = self.counts.to(pseudo.labels.device, non_blocking=True)
        self.counts = counts.scatter_add(0, pseudo.labels.flatten(), valid.flatten().to(counts.dtype))

    def stepped(self, result: StepResult) -> None:
        self.steps, step = self.steps + 1, result.step
        if step % self._every:
            return
        counts = self.counts.tolist()[: len(self._classes)]
        self.counts = torch.zeros_like(self.counts)
        if not sum(counts):  # no teacher labels
            return
        self._journal.write("labels", step, shares=self._named(counts))
        self.window = [before + now for before, now in zip(self.window, counts, strict=True)]
        if self.steps < self._config.window:
            return
        if step - self.steps >= self._warmup:  # before, the labels are noise, in which any class may be frequent
            for name in self._shares.update(self._named(self.window)):
                self._journal.warn(
                    step,
                    f"The class {name} has collapsed in the pseudo-labels: it held {self._shares.highest[name]:.2%} of "
                    f"them at most, and less than {self._config.lost_share:.3%} of those of steps "
                    f"{step - 2 * self.steps + 1} to {step}.",
                )
        self.window, self.steps = [0] * len(self._classes), 0

    def scored(self, step: int, student: Scores) -> None:
        """Compare the student's scores with those before."""
        for name in self._ious.update(dict(zip(self._classes, student.iou, strict=True))):
            self._journal.warn(
                step,
                f"The class {name} has collapsed on the validation images: its IoU was {self._ious.highest[name]:.1%} "
                f"at best and is below {self._config.lost_iou:.1%} at step {step}.",
            )

    def _named(self, counts: list[int]) -> dict[str, float]:
        return {name: count / sum(counts) for name, count in zip(self._classes, counts, strict=True)}


class Divergence(Observer):
    """Warn when the student has left its teacher: once, and again only after it was near.

    The journal gets a record `teacher` at log steps: their distance, as a share of the student's own length.
    """

    kept = ("warned",)

    def __init__(self, context: RunContext, journal: Journal) -> None:
        train, self._method = context.settings.train, context.method
        self._far, self._every, self._journal = train.guard.apart, train.log_every, journal
        self.warned = False

    def stepped(self, result: StepResult) -> None:
        teacher = self._method.teacher.segmenter
        if teacher is None or result.step % self._every:
            return
        distance = float(distance_between(self._method.learner.student, teacher))
        self._journal.write("teacher", result.step, distance=distance)
        if distance > self._far and not self.warned:
            self._journal.warn(
                result.step,
                f"Student and teacher are far apart: at step {result.step} their distance is {distance:.2f} of the "
                f"student's length, more than {self._far:g}. The teacher does not follow, so its labels are those of "
                "another model: lower optim.lr, lengthen optim.warmup, or lower method.teacher.decay.",
            )
        self.warned = distance > self._far


@torch.no_grad()
def distance_between(student: Segmenter, teacher: Segmenter) -> Tensor:
    """|student - teacher| / |student| over all parameters: a scalar on the device; 0 is equal, 1 is as far as zero."""
    pairs = list(zip(student.parameters(), teacher.parameters(), strict=True))
    apart = torch.stack([torch.linalg.vector_norm(mine - theirs) for mine, theirs in pairs])
    length = torch.stack([torch.linalg.vector_norm(mine) for mine, _ in pairs])
    share: Tensor = torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(length)
    return share


class DataWait(Observer):
    """Record how long the loop waits for data at log steps; note once when it is much, and warn of each stall.

    The journal gets a record `data`: `data_wait` in seconds, and its share of the time since the one before.
    """

    kept = ("noted",)

    def __init__(self, context: RunContext, journal: Journal) -> None:
        train, self._workers = context.settings.train, context.settings.loader.workers
        self._long, self._every, self._journal = train.guard.stall_seconds, train.log_every, journal
        self._waited, self._since = 0.0, time.perf_counter()
        self._records, self.noted = 0, False

    def stepped(self, result: StepResult) -> None:
        step, now = result.step, time.perf_counter()
        self._waited += result.waited
        if result.waited > self._long:
            self._journal.warn(
                step,
                f"Step {step} waited {result.waited:.0f} s for its data, more than {self._long:g} s: a slow "
                "or hanging disk, or a worker that was stopped.",
            )
        if step % self._every:
            return
        share = self._waited / (now - self._since)
        self._journal.write("data", step, data_wait=round(self._waited, 3), share=round(share, 3))
        if share > MUCH_WAITING and self._records and not self.noted:  # the first steps wait for the workers to start
            self.noted = True
            self._journal.note(
                step,
                f"The run waits for its data {share:.0%} of the time: more loader.workers (now {self._workers}), "
                "smaller images or a faster disk would make it faster.",
            )
        self._waited, self._since, self._records = 0.0, now, self._records + 1
