"""Choosing a student without labels: criteria from unlabelled target images, and the best students by each.

Every criterion is higher for a model that it deems better. None of them sees whether a prediction is *right*: a model
that is sure, varied and wrong pleases them all.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.config import CRITERIA, DataConfig, SelectionConfig
from ssrseg.data import find_images, read_image
from ssrseg.data.datasets import bounded
from ssrseg.inference import Scores, evaluating
from ssrseg.inference.sliding_window import Infer
from ssrseg.models.segmenter import save_segmenter
from ssrseg.runs.atomic import write_atomically, write_json
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.evaluation import read_scores
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext

TEMPERATURE = 0.05
"""Of soft neighbourhood density (Saito et al. 2021 use one value for every task)."""

CONFIDENT = 0.968
"""Threshold of a method that sets none: DACS's."""


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of predictions (..., K), in nats: 0 when sure, log K when clueless; a probability of 0 adds nothing."""
    found: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return found


def soft_neighborhood_density(probabilities: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean entropy, in nats, of each prediction's soft choice of a neighbour among the others (N, K), N >= 2.

    Neighbours are chosen by a softmax over cosine similarities / temperature, oneself left out. It is high when every
    prediction has many others close by: 0 for N = 2, log(N - 1) when all are alike, so also when the model predicts
    one class everywhere. Saito et al.: Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft
    Neighborhood Density, ICCV 2021, section 3.
    """
    directions = F.normalize(probabilities, dim=1)
    similarities = (directions @ directions.T) / temperature
    similarities.fill_diagonal_(-math.inf)
    return entropy(similarities.softmax(dim=1)).mean()


def agreement(student: Tensor, teacher: Tensor, num_classes: int) -> Tensor:
    """Pixels (K, K), int64, by the class that the teacher gives (row) and the student (column); both are ids (N,)."""
    return torch.bincount(teacher * num_classes + student, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass
class CriteriaAccumulator:
    """Criteria over images of any size, added one by one.

    Information maximization is the entropy of the mean prediction (diversity) minus the mean entropy of predictions:
    their mutual information with the input, in nats. It is the negative of the IM loss of SHOT (Liang, Hu, Feng: Do We
    Really Need to Access the Source Data?, ICML 2020, section 3.2), used to choose models by Musgrave, Belongie, Lim
    (Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain Adaptation, 2022).

    Agreement of two networks as a sign of accuracy: Jiang et al., Assessing Generalization of SGD via Disagreement,
    ICLR 2022; here student and averaged teacher. The mean confidence: Hendrycks and Gimpel, A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples, ICLR 2017. The share of confident pixels is the trust of DACS.
    """

    num_classes: int
    threshold: float
    """Confidence from which a pixel counts as confident."""
    pixels: int
    """Of each image, for soft neighbourhood density."""
    _means: list[Tensor] = field(default_factory=list)
    _parts: list[list[float]] = field(default_factory=list)
    _confusion: Tensor | None = None

    def add(self, logits: Tensor, teacher: Tensor | None) -> None:
        """Add an image: the student's logits (K, H, W) and the teacher's class ids (H, W), if there is a teacher."""
        probabilities = logits.float().flatten(1).softmax(dim=0).T  # (pixels, K)
        confidence, student = probabilities.max(dim=1)
        # The pixels that are compared are drawn once for each size of image, the same at every evaluation.
        sample = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(0))[: self.pixels]
        parts = (
            entropy(probabilities).mean(),
            soft_neighborhood_density(probabilities[sample.to(logits.device)]),
            confidence.mean(),
            (confidence >= self.threshold).float().mean(),
        )
        self._parts.append(torch.stack(parts).tolist())
        self._means.append(probabilities.mean(dim=0).cpu().double())
        if teacher is not None:
            counts = agreement(student, teacher.flatten(), self.num_classes).cpu()
            self._confusion = counts if self._confusion is None else self._confusion + counts

    def criteria(self) -> dict[str, float | None]:
        """Return the criteria by their names in `CRITERIA`; `None` for what cannot be measured (no teacher, a NaN)."""
        agreed = self._agreement()
        varied, unsure = self._diversity(), self._mean(0)
        values = {
            "im": None if varied is None or unsure is None else varied - unsure,
            "snd": self._mean(1),
            "agreement": None if agreed is None else _finite(agreed.miou),
            "confidence": self._mean(2),
        }
        assert values.keys() == set(CRITERIA)
        return values

    def parts(self) -> dict[str, float | None]:
        """Return the parts of the criteria, and figures that are journaled beside them."""
        agreed = self._agreement()
        return {
            "entropy": self._mean(0),
            "diversity": self._diversity(),
            "confident_share": self._mean(3),
            "pixel_agreement": None if agreed is None else _finite(agreed.pixel_accuracy),
        }

    def _mean(self, part: int) -> float | None:
        return _finite(math.fsum(values[part] for values in self._parts) / len(self._parts))

    def _diversity(self) -> float | None:
        return _finite(float(entropy(torch.stack(self._means).mean(dim=0))))

    def _agreement(self) -> Scores | None:
        names = tuple(map(str, range(self.num_classes)))
        return None if self._confusion is None else Scores(names, self._confusion)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Selection(Observer):
    """At every evaluation, journal the criteria and keep the students that are best so far by each.

    It reads no label. Where the run is scored on labelled images too, scores.json holds beside each choice how good it
    truly was.

    Args:
        context: the run.
        target: images without labels.
        config: of the selection.
        infer: how an image becomes logits.
        journal: gets a record `selection`.
    """

    kept = ("chosen",)

    def __init__(
        self, context: RunContext, target: DataConfig, config: SelectionConfig, infer: Infer, journal: Journal
    ) -> None:
        self._context, self._config, self._infer, self._journal = context, config, infer, journal
        teacher = context.settings.method.teacher
        self._threshold = CONFIDENT if teacher is None or teacher.threshold is None else teacher.threshold
        paths, self._resize = find_images(target), target.resize
        count = min(config.images, len(paths))
        self._images = [paths[number * len(paths) // count] for number in range(count)]  # evenly spread
        self.chosen: dict[str, dict[str, Any]] = {}

    def stepped(self, result: StepResult) -> None:
        train, folder, step = self._context.settings.train, self._context.folder, result.step
        if step % train.evaluate_every and step != train.steps:
            return
        found = self._criteria()
        values = found.criteria()
        self._journal.write("selection", step, criteria=values, parts=found.parts())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        self._journal.screen.print(f"step {step}: without labels: {shown}")
        scores = read_scores(folder)
        truth = scores.get("last") or {}
        miou = truth["student"]["miou"] if truth.get("step") == step else None
        better = [name for name, value in values.items() if value is not None and self._beats(name, value)]
        self.chosen |= {name: {"step": step, "value": values[name], "miou": miou} for name in better}
        self._keep([folder.student_best_by(name) for name in better if name in self._config.keep])
        write_json(folder.scores, {**scores, "selection": self.chosen})

    def _beats(self, name: str, value: float) -> bool:
        return name not in self.chosen or value > self.chosen[name]["value"]

    def _criteria(self) -> CriteriaAccumulator:
        student, teacher = self._context.method.learner.student, self._context.method.teacher.segmenter
        found = CriteriaAccumulator(student.num_classes, self._threshold, self._config.pixels)
        for path in self._images:
            image = bounded(read_image(path), self._resize).to(self._context.fabric.device)[None].float() / 255
            with evaluating(student):
                logits = self._infer(student, image, None)[0]
            ids = None
            if teacher is not None:
                with evaluating(teacher):
                    ids = self._infer(teacher, image, None)[0].argmax(dim=0)
            with torch.inference_mode():
                found.add(logits, ids)
        return found

    def _keep(self, paths: Sequence[Path]) -> None:
        """Save the student under each name; on disk once."""
        for path in paths[:1]:
            save_segmenter(self._context.method.learner.student, path)
        for path in paths[1:]:
            write_atomically(path, lambda partial: _link(paths[0], partial))


def _link(source: Path, target: Path) -> None:
    """Give a file, which is never written to again, a second name; copy it where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
