"""Scoring during training: student and teacher on labelled target images, where there are any."""

from __future__ import annotations

import json
from typing import Any

from torch.utils.data import Dataset

from ssrseg.evaluation import Scores, evaluate_model
from ssrseg.files import write_json
from ssrseg.inference import Infer
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.training.console import Screen
from ssrseg.training.journal import Journal
from ssrseg.training.loop import Moment, Observer
from ssrseg.training.setup import Setup


class Scoring(Observer):
    """Evaluates every `every` steps and after the last, keeps the best student, writes scores.json.

    The last student is the result; the best one is an oracle's choice, made with target labels.
    """

    def __init__(self, setup: Setup, dataset: Dataset[Any], infer: Infer, journal: Journal, screen: Screen) -> None:
        self._device, self._method, self._folder = setup.fabric.device, setup.method, setup.folder
        self._every, self._steps = setup.settings.train.evaluate_every, setup.settings.train.steps
        self._classes = setup.space.names
        self._dataset, self._infer, self._journal, self._screen = dataset, infer, journal, screen
        self._best: float | None = None

    def state(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a best score."""
        self._best = state["best"]

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
        if self._best is None or student.miou > self._best:
            self._best = student.miou
            scores["best"] = record
            save_segmenter(self._method.learner.student, self._folder.student_best)
        write_json(self._folder.scores, {**scores, "classes": self._classes, "last": record})

    def _evaluate(self, model: Segmenter) -> Scores:
        return evaluate_model(model, self._dataset, self._infer, device=self._device, classes=self._classes)


def _summary(scores: Scores) -> dict[str, Any]:
    """The means, as JSON takes them: what was not measured is null."""
    whole = scores.to_dict()
    return {name: whole[name] for name in ("miou", "pixel_accuracy")}
