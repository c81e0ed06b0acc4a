"""Evaluation during training: student and teacher on labelled target images, where there are any."""

from __future__ import annotations

import json
from collections.abc import Callable, Sized
from typing import Any, cast

from torch.utils.data import Dataset, Subset

from ssrseg.adapt import distributed
from ssrseg.inference import Scores, evaluate_model
from ssrseg.inference.sliding_window import Infer
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.runs.atomic import write_json
from ssrseg.runs.folder import RunFolder
from ssrseg.training.distributed import same_buffers
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext


class Evaluation(Observer):
    """Evaluate every `train.evaluate_every` steps and after the last; keep the best student, write scores.json.

    Every process scores its share of the images with the same weights; the first one writes. The last student is the
    result; the best one is an oracle's choice, made with target labels.

    Args:
        context: the run.
        dataset: labelled target images.
        infer: how an image becomes logits.
        journal: gets a record `eval`.
        on_scores: called with the step and the student's scores, in the first process.
    """

    everywhere = True
    kept = ("best",)

    def __init__(
        self,
        context: RunContext,
        dataset: Dataset[Any],
        infer: Infer,
        journal: Journal,
        on_scores: Callable[[int, Scores], None] = lambda step, scores: None,
    ) -> None:
        self._context, self._infer, self._journal, self._on_scores = context, infer, journal, on_scores
        self._dataset = Subset(dataset, range(distributed.rank(), len(cast(Sized, dataset)), distributed.world()))
        self.best: float | None = None

    def stepped(self, result: StepResult) -> None:
        train, method = self._context.settings.train, self._context.method
        if result.step % train.evaluate_every and result.step != train.steps:
            return
        student = self._evaluate(method.learner.student)
        teacher = None if method.teacher.segmenter is None else self._evaluate(method.teacher.segmenter)
        if self._context.fabric.is_global_zero:
            self._write(result.step, student, teacher)

    def _evaluate(self, model: Segmenter) -> Scores:
        device, classes = self._context.fabric.device, self._context.space.names
        same_buffers(model)
        own = evaluate_model(model, self._dataset, self._infer, device=device, classes=classes)
        return Scores(own.classes, distributed.all_sum(own.confusion.to(device)).cpu())

    def _write(self, step: int, student: Scores, teacher: Scores | None) -> None:
        folder, record, means = self._context.folder, dict[str, Any](step=step), dict[str, Any]()
        for name, scores in (("student", student), ("teacher", teacher)):
            whole = scores and scores.to_dict()
            means[name] = whole and {key: whole[key] for key in ("miou", "pixel_accuracy")}
            record[name] = scores and whole and {**whole, "confusion": scores.confusion.tolist()}
        self._journal.write("eval", step, **means)
        self._on_scores(step, student)
        self._journal.screen.show_score(step, student.miou, None if teacher is None else teacher.miou)
        fields = {"classes": self._context.space.names, "last": record}
        if self.best is None or student.miou > self.best:
            self.best = student.miou
            fields["best"] = record
            save_segmenter(self._context.method.learner.student, folder.student_best)
        write_json(folder.scores, {**read_scores(folder), **fields})


def read_scores(folder: RunFolder) -> dict[str, Any]:
    """Read scores.json; empty when nothing was scored yet."""
    scores: dict[str, Any] = json.loads(folder.scores.read_text("utf-8")) if folder.scores.exists() else {}
    return scores
