"""Choosing a student without labels: scores from unlabelled target images, and the best students by each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssrseg.config import DataConfig, SelectionConfig
from ssrseg.data import find_images, read_image
from ssrseg.data.datasets import bounded
from ssrseg.inference.sliding_window import Infer, evaluating
from ssrseg.models.segmenter import save_segmenter
from ssrseg.runs.atomic import write_atomically, write_json
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.criteria import Tally
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext

CONFIDENT = 0.968
"""Threshold of a method that sets none: DACS's."""


class Selection(Observer):
    """At every evaluation: the criteria into the journal, the students that are best so far into files.

    It reads no label. Where the run is scored on labelled images too, scores.json holds beside each choice how good it
    truly was.

    Args:
        context: the run; its settings have a target and `selection`.
        data: the target.
        config: of the selection.
        infer: how an image becomes logits.
        journal: gets a record `selection`.
        screen: shows a line.
    """

    def __init__(
        self,
        context: RunContext,
        data: DataConfig,
        config: SelectionConfig,
        infer: Infer,
        journal: Journal,
        screen: Screen,
    ) -> None:
        train, teacher = context.settings.train, context.settings.method.teacher
        self._every, self._steps, self._device = train.evaluate_every, train.steps, context.fabric.device
        self._threshold = CONFIDENT if teacher is None or teacher.threshold is None else teacher.threshold
        self._method, self._folder, self._config, self._infer = context.method, context.folder, config, infer
        self._images, self._resize = _spread(find_images(data), config.images), data.resize
        self._journal, self._screen = journal, screen
        self._chosen: dict[str, dict[str, Any]] = {}

    def state(self) -> dict[str, Any]:
        """The choices so far."""
        return {"chosen": {name: dict(choice) for name, choice in self._chosen.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the choices."""
        self._chosen = state["chosen"]

    def stepped(self, result: StepResult) -> None:
        """Look when it is time: with the evaluation on labelled images, and after it."""
        if result.step % self._every == 0 or result.step == self._steps:
            self._look(result.step)

    def _look(self, step: int) -> None:
        tally = self._tally()
        values = tally.criteria()
        self._journal.write("selection", step, criteria=values, parts=tally.parts())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        self._screen.say(f"step {step}: without labels: {shown}")
        better = [name for name, value in values.items() if value is not None and self._beats(name, value)]
        scores = json.loads(self._folder.scores.read_text()) if self._folder.scores.exists() else {}
        truth = scores.get("last") or {}
        miou = truth["student"]["miou"] if truth.get("step") == step else None
        self._chosen |= {name: {"step": step, "value": values[name], "miou": miou} for name in better}
        self._keep([name for name in better if name in self._config.keep])
        write_json(self._folder.scores, {**scores, "selection": self._chosen})

    def _beats(self, name: str, value: float) -> bool:
        return name not in self._chosen or value > self._chosen[name]["value"]

    def _tally(self) -> Tally:
        student, teacher = self._method.learner.student, self._method.teacher.segmenter
        tally = Tally(student.num_classes, self._threshold, self._config.pixels)
        for path in self._images:
            image = bounded(read_image(path), self._resize).to(self._device)[None].float() / 255
            with evaluating(student):
                logits = self._infer(student, image, None)[0]
            ids = None
            if teacher is not None:
                with evaluating(teacher):
                    ids = self._infer(teacher, image, None)[0].argmax(dim=0)
            with torch.inference_mode():
                tally.add(logits, ids)
        return tally

    def _keep(self, names: Sequence[str]) -> None:
        """The student under each name; on disk once."""
        paths = [best_by(self._folder.path, name) for name in names]
        for path in paths[:1]:
            save_segmenter(self._method.learner.student, path)
        for path in paths[1:]:
            write_atomically(path, lambda partial: _link(paths[0], partial))


def best_by(folder: Path, criterion: str) -> Path:
    """Where a run keeps the best student by a criterion."""
    return folder / f"student-best-by-{criterion}.safetensors"


def _link(source: Path, target: Path) -> None:
    """A second name for a file, which is never written to again; a copy where the file system has no such names."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of them, evenly spread."""
    count = min(count, len(paths))
    return [paths[number * len(paths) // count] for number in range(count)]
