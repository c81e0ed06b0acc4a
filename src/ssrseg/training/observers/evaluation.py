"""Scoring during training: student and teacher on labelled target images, where there are any."""

from __future__ import annotations

import json
from collections.abc import Callable, Sized
from typing import Any, cast

from torch.utils.data import Dataset, Subset

from ssrseg.adapt import distributed
from ssrseg.inference.evaluate import Scores, evaluate_model
from ssrseg.inference.sliding_window import Infer
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.runs.atomic import write_json
from ssrseg.training.distributed import same_buffers
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext


class Scoring(Observer):
    """Evaluates every `every` steps and after the last, keeps the best student, writes scores.json.

    Every process scores its share of the images with the same weights; the first one writes. The last student is the
    result; the best one is an oracle's choice, made with target labels. `told` hears of the student's scores.
    """

    everywhere = True

    def __init__(
        self,
        context: RunContext,
        dataset: Dataset[Any],
        infer: Infer,
        journal: Journal,
        screen: Screen,
        told: Callable[[int, Scores], None],
    ) -> None:
        self._device, self._method, self._folder = context.fabric.device, context.method, context.folder
        self._every, self._steps = context.settings.train.evaluate_every, context.settings.train.steps
        self._classes = context.space.names
        self._first, self._infer, self._journal, self._screen = context.fabric.is_global_zero, infer, journal, screen
        self._dataset = Subset(dataset, range(distributed.rank(), len(cast(Sized, dataset)), distributed.world()))
        self._told = told
        self._best: float | None = None

    def state(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a best score."""
        self._best = state["best"]

    def stepped(self, result: StepResult) -> None:
        """Evaluate when it is time."""
        if result.step % self._every == 0 or result.step == self._steps:
            self._score(result.step)

    def _score(self, step: int) -> None:
        student = self._evaluate(self._method.learner.student)
        averaged = self._method.teacher.segmenter
        teacher = None if averaged is None else self._evaluate(averaged)
        if self._first:
            self._write(step, student, teacher)

    def _write(self, step: int, student: Scores, teacher: Scores | None) -> None:
        self._journal.write("eval", step, student=_summary(student), teacher=teacher and _summary(teacher))
        self._told(step, student)
        self._screen.score(step, student.miou, None if teacher is None else teacher.miou)
        scores = json.loads(self._folder.scores.read_text()) if self._folder.scores.exists() else {}
        record = {"step": step, "student": _whole(student), "teacher": teacher and _whole(teacher)}
        if self._best is None or student.miou > self._best:
            self._best = student.miou
            scores["best"] = record
            save_segmenter(self._method.learner.student, self._folder.student_best)
        write_json(self._folder.scores, {**scores, "classes": self._classes, "last": record})

    def _evaluate(self, model: Segmenter) -> Scores:
        same_buffers(model)
        own = evaluate_model(model, self._dataset, self._infer, device=self._device, classes=self._classes)
        return Scores(own.classes, distributed.total(own.confusion.to(self._device)).cpu())


def _whole(scores: Scores) -> dict[str, Any]:
    """All that is known, with the confusion matrix: pixels, a row per true class, a column per predicted one."""
    return {**scores.to_dict(), "confusion": scores.confusion.tolist()}


def _summary(scores: Scores) -> dict[str, Any]:
    """The means, as JSON takes them: what was not measured is null."""
    whole = scores.to_dict()
    return {name: whole[name] for name in ("miou", "pixel_accuracy")}
