"""Evaluation in training: on labelled target images, where there are any, and without labels to choose a student."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, Subset

from ssrseg.adapt import distributed
from ssrseg.config import Data, SelectionConfig
from ssrseg.data import find_bounded, read_image
from ssrseg.data.datasets import bounded
from ssrseg.inference import Scores, evaluate_model, evaluating
from ssrseg.inference.criteria import CriteriaAccumulator
from ssrseg.inference.evaluate import names_of
from ssrseg.inference.sliding_window import Infer
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.runs.atomic import read_json, write_atomically, write_json
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext

CONFIDENT = 0.968
"""Threshold of a method that sets none: DACS's."""


class Evaluation(Observer):
    """Evaluate every `train.evaluate_every` steps and after the last; keep the best student, write scores.json.

    Every process scores its share of the images with the same weights; the first one writes, a record `eval` too, and
    calls `on_scores` with the step and the student's scores. The last student is the result; the best one is an
    oracle's choice, made with target labels.
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
        if distributed.world() > 1:
            for buffer in model.buffers():  # the running statistics: everywhere those of the first process
                dist.broadcast(buffer, src=0)
        domains = names_of(self._context.settings.val or ())
        own = evaluate_model(model, self._dataset, self._infer, device=device, classes=classes, domains=domains)
        confusions = torch.stack([each.confusion for each in own.domains.values()] or [own.confusion])
        return Scores.of_domains(classes, distributed.all_sum(confusions.to(device)).cpu(), domains)

    def _write(self, step: int, student: Scores, teacher: Scores | None) -> None:
        folder, record, means = self._context.folder, dict[str, Any](step=step), dict[str, Any]()
        for name, scores in (("student", student), ("teacher", teacher)):
            whole = scores and scores.to_dict()
            means[name] = whole and {key: whole[key] for key in ("miou", "pixel_accuracy")}
            if scores and scores.domains:
                means[name]["domains"] = {key: {"miou": each.miou} for key, each in scores.domains.items()}
            record[name] = scores and whole and {**whole, "confusion": scores.confusion.tolist()}
        self._journal.write("eval", step, **means)
        self._on_scores(step, student)
        self._journal.screen.show_score(step, student.miou, None if teacher is None else teacher.miou)
        fields = {"classes": self._context.space.names, "last": record}
        if self.best is None or student.miou > self.best:
            self.best = student.miou
            fields["best"] = record
            save_segmenter(self._context.method.learner.student, folder.student_best)
        write_json(folder.scores, {**read_json(folder.scores), **fields})


class Selection(Observer):
    """At every evaluation, journal the criteria and keep the students that are best so far by each.

    It reads no label. Where the run is scored on labelled images too, scores.json holds beside each choice how good it
    truly was. The journal gets a record `selection`. The first process does so; all of them agree on an early stop.
    """

    everywhere = True
    kept = ("chosen", "stalled", "step")

    def __init__(
        self, context: RunContext, target: Data, config: SelectionConfig, infer: Infer, journal: Journal
    ) -> None:
        self._context, self._config, self._infer, self._journal = context, config, infer, journal
        teacher = context.settings.method.teacher
        self._threshold = CONFIDENT if teacher is None or teacher.threshold is None else teacher.threshold
        self._images = find_bounded(target, at_most=config.images)
        self.chosen: dict[str, dict[str, Any]] = {}
        self._stop, self.stalled, self.step = context.settings.train.early_stop, 0, 0

    @property
    def ended(self) -> bool:
        return self._stop is not None and self.stalled >= self._stop.patience

    def stepped(self, result: StepResult) -> None:
        train, fabric, self.step = self._context.settings.train, self._context.fabric, result.step
        if self.step % train.evaluate_every and self.step != train.steps:
            return
        if fabric.is_global_zero:
            self._select(self.step)
        if self._stop is not None:
            better = self.chosen.get(self._stop.by, {}).get("step") == self.step
            stalled = torch.tensor(0 if better else self.stalled + 1, device=fabric.device)
            self.stalled = int(distributed.all_sum(stalled * fabric.is_global_zero))

    def finished(self) -> None:
        """Say so where the run ends early."""
        if self._stop is not None and self.ended and self.step < self._context.settings.train.steps:
            best = self.chosen.get(self._stop.by, {"step": 0})["step"]
            self._journal.write("stopped", self.step, by=self._stop.by, best=best)
            self._journal.note(
                self.step,
                f"stopped early at step {self.step}: {self._stop.by} has not improved for {self.stalled} selections, "
                f"since step {best} (train.early_stop)",
            )

    def _select(self, step: int) -> None:
        folder = self._context.folder
        values, parts = self._criteria()
        self._journal.write("selection", step, criteria=values, parts=parts)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        self._journal.screen.print(f"step {step}: without labels: {shown}")
        scores = read_json(folder.scores)
        truth = scores.get("last") or {}
        miou = truth["student"]["miou"] if truth.get("step") == step else None
        saved: Path | None = None
        for name, value in values.items():
            if value is None or (name in self.chosen and value <= self.chosen[name]["value"]):
                continue
            self.chosen[name] = {"step": step, "value": value, "miou": miou}
            if name not in self._config.keep:
                continue
            path = folder.student_best_by(name)
            if saved is None:
                save_segmenter(self._context.method.learner.student, path)
                saved = path
            else:
                write_atomically(path, partial(_link, saved))
        write_json(folder.scores, {**scores, "selection": self.chosen})

    def _criteria(self) -> tuple[dict[str, float | None], ...]:
        student, teacher = self._context.method.learner.student, self._context.method.teacher.segmenter
        found = CriteriaAccumulator(student.num_classes, self._threshold, self._config.pixels)
        for path, bound in self._images:
            image = bounded(read_image(path, student.reading), bound)
            image = image.to(self._context.fabric.device)[None].float() / 255
            with evaluating(student):
                logits = self._infer(student, image, None)[0]
            ids = None
            if teacher is not None:
                with evaluating(teacher):
                    ids = self._infer(teacher, image, None)[0].argmax(dim=0)
            with torch.inference_mode():
                found.add(logits, ids)
        return found.criteria()


def _link(source: Path, target: Path) -> None:
    """Give a file, which is never written to again, a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
