"""Class priors of two domains: how they are counted, and their shift as a vector that is added to logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.inference.predictor import Predictor
from ssrseg.models.classes import matching
from ssrseg.models.segmenter import Segmenter

FLOOR = 0.5
"""Least count of a class: a class that no image shows would be forbidden, or forced, for ever."""


@dataclass(frozen=True)
class Priors:
    """Number of images of each domain in which every class occurs."""

    classes: tuple[str, ...]
    source: tuple[float, ...]
    target: tuple[float, ...]
    how: str = ""
    """By which rules they were counted."""

    @property
    def shift(self) -> Tensor:
        """B = ln p_t - ln p_s (K,): `Segmentation(shift=-b)` refines a classifier, `fold_shift` adjusts one."""
        return log_ratio(self.source, self.target)

    @property
    def rare(self) -> list[str]:
        """Classes whose count is floored in a domain: their shift is a guess."""
        pairs = zip(self.classes, self.source, self.target, strict=True)
        return [name for name, *counts in pairs if min(counts) < FLOOR]

    def of(self, classes: Sequence[str]) -> Priors:
        """Reorder to these classes; raises `UserError` when one was not counted."""
        places = matching(classes, self.classes)
        if unknown := [name for name, place in zip(classes, places, strict=True) if place is None]:
            raise UserError(f"The priors count {', '.join(self.classes)}, but not {unknown[0]!r}.")
        order = [place for place in places if place is not None]
        source, target = (tuple(counts[i] for i in order) for counts in (self.source, self.target))
        return Priors(tuple(classes), source, target, self.how)


def log_ratio(source: Sequence[float], target: Sequence[float]) -> Tensor:
    """Compute ln p_t - ln p_s per class (K,), float32; p(c) = n_c / sum n, counts no less than `FLOOR`."""
    before, after = (torch.tensor(counts, dtype=torch.float64).clamp(min=FLOOR) for counts in (source, target))
    return ((after / after.sum()).log() - (before / before.sum()).log()).float()


def fold_shift(segmenter: Segmenter, shift: Tensor) -> Segmenter:
    """Copy a segmenter and add `shift` (K,) to its logits, in one bias of its classifier: inference adjustment.

    It costs nothing at run time, and is exact: interpolation keeps constants.
    """
    if shift.shape != (segmenter.num_classes,):
        raise ValueError(f"expected a shift of {segmenter.num_classes} classes, found {tuple(shift.shape)}")
    adjusted = copy.deepcopy(segmenter)
    head: Any = adjusted.head
    classifier = head.classifiers[0]  # of summed ones any will do
    assert isinstance(classifier, nn.Conv2d)
    assert classifier.bias is not None
    with torch.no_grad():
        classifier.bias += shift.to(classifier.bias)
    return adjusted


def published_priors(task: str) -> Priors:
    """Read the counts of Undoing's release for a task; raises `UserError` for an unknown one.

    It is `gta5-cityscapes` (19 classes) or `synthia-cityscapes` (16); with `-attentive` behind it, the target's are
    those that the network with the head `aspp-attentive` predicts.
    """
    name = task.removesuffix("-attentive")
    tables = yaml.safe_load((resources.files("ssrseg") / "label_shift" / "published.yaml").read_text(encoding="utf-8"))
    if name not in tables:
        known = ", ".join(f"{known}, {known}-attentive" for known in tables)
        raise UserError(f"There is no file {task!r}, and there are published priors only for {known}.")
    table = tables[name]
    target = table["target_counts" if name == task else "target_counts_attentive"]
    return Priors(tuple(table["classes"]), tuple(table["source_counts"]), tuple(target), f"published: {task}")


def find_priors(name: str) -> Priors:
    """Read the priors of a file, or published ones by their task; raises `UserError` when it is neither."""
    return read_priors(Path(name)) if Path(name).is_file() else published_priors(name)


def read_priors(path: Path) -> Priors:
    """Read priors from JSON; raises `UserError` when that is not what lies there."""
    try:
        return TypeAdapter(Priors).validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the priors {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} does not hold priors (classes, source, target, how): {error}") from error


def image_scores(probabilities: Tensor) -> Tensor:
    """Compute s_c = ln of the mean over pixels of exp(P_c), between mean and maximum: (B, K, H, W) -> (B, K)."""
    pixels = math.log(probabilities.shape[-2] * probabilities.shape[-1])
    return probabilities.flatten(2).logsumexp(dim=2) - pixels


def target_counts(predictor: Predictor, images: Iterable[Tensor], frequency: Tensor) -> Tensor:
    """Count (K,) the images whose score of a class exceeds its share of the source's pixels (Undoing's release).

    Args:
        predictor: of the model, whose own probabilities are scored.
        images: RGB bytes (3, H, W), one by one, resized as the network wants them.
        frequency: (K,), shares of the labelled source pixels.
    """
    counts = torch.zeros(predictor.num_classes, device=predictor.device)
    threshold = frequency.to(predictor.device)
    for image in images:
        counts += image_scores(predictor.logits(image[None]).softmax(dim=1))[0] > threshold
    return counts.cpu()


def presence_counts(pixels: Tensor, min_share: float = 0.0) -> Tensor:
    """Count (K,) the files in which a class covers more than `min_share` of the labelled `pixels` (files, K)."""
    shares = pixels / pixels.sum(dim=1, keepdim=True).clamp(min=1)
    return (shares > min_share).float().sum(dim=0)
