"""Scoring during training: student and teacher on labelled target images, where there are any."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ssrseg.adapt.methods import Method
from ssrseg.data import LabelSpace
from ssrseg.evaluation import Scores, evaluate_model
from ssrseg.files import write_json
from ssrseg.inference import Infer
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.training.checkpoints import save_checkpoint
from ssrseg.training.console import Screen
from ssrseg.training.folder import RunFolder
from ssrseg.training.journal import Journal
from ssrseg.training.loop import Moment, Observer


class Scoring(Observer):
    """Evaluates every `every` steps and after the last, keeps the best student, writes scores.json.

    The last student is the result; the best one is an oracle's choice, made with target labels.
    """

    def __init__(
        self,
        device: torch.device,
        method: Method,
        dataset: Dataset[Any],
        infer: Infer,
        folder: RunFolder,
        journal: Journal,
        screen: Screen,
        *,
        space: LabelSpace,
        every: int,
        steps: int,
        best: float | None = None,
    ) -> None:
        self._device, self._method, self._dataset, self._infer = device, method, dataset, infer
        self._folder, self._journal, self._screen = folder, journal, screen
        self._space, self._every, self._steps = space, every, steps
        self.best = best

    def stepped(self, moment: Moment) -> None:
        """Evaluate when it is time."""
        if moment.step % self._every == 0 or moment.step == self._steps:
            self._score(moment.step)

    def _score(self, step: int) -> None:
        student = self._evaluate(self._method.learner.student)
        averaged = self._method.teacher.segmenter
        teacher = None if averaged is None else self._evaluate(averaged)
        self._journal.write("eval", step, student=_summary(student), teacher=teacher and _summary(teacher))
        self._screen.score(step, student.miou, None if teacher is None else teacher.miou)
        scores = json.loads(self._folder.scores.read_text()) if self._folder.scores.exists() else {}
        record = {"step": step, "student": student.to_dict(), "teacher": teacher and teacher.to_dict()}
        if self.best is None or student.miou > self.best:
            self.best = student.miou
            scores["best"] = record
            save_segmenter(self._method.learner.student, self._folder.student_best)
        write_json(self._folder.scores, {**scores, "classes": self._space.names, "last": record})

    def _evaluate(self, model: Segmenter) -> Scores:
        return evaluate_model(model, self._dataset, self._infer, device=self._device, classes=self._space.names)


def _summary(scores: Scores) -> dict[str, Any]:
    """The means, as JSON takes them: what was not measured is null."""
    whole = scores.to_dict()
    return {name: whole[name] for name in ("miou", "pixel_accuracy")}


class Saving(Observer):
    """Writes the complete state every `every` steps, and the deployable student at the end."""

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        folder: RunFolder,
        *,
        every: int,
        steps: int,
        best: Callable[[], float | None],
    ) -> None:
        self._method, self._optimizer, self._folder = method, optimizer, folder
        self._every, self._steps, self._best = every, steps, best

    def stepped(self, moment: Moment) -> None:
        """Save when it is time."""
        if moment.step % self._every == 0 or moment.step == self._steps:
            save_checkpoint(self._folder.checkpoint, self._method, self._optimizer, step=moment.step, best=self._best())

    def finished(self) -> None:
        """The last student."""
        save_segmenter(self._method.learner.student, self._folder.student_last)
