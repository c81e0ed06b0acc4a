"""The shift between two class priors, as a vector that is added to logits."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_json

FLOOR = 0.5
"""Least count of a class: a class that no image shows would be forbidden, or forced, for ever."""


@dataclass(frozen=True)
class Priors:
    """In how many images of each domain every class occurs."""

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
        """The same for these classes, in their order; raises `UserError` when one was not counted."""
        if unknown := [name for name in classes if name not in self.classes]:
            raise UserError(f"The priors count {', '.join(self.classes)}, but not {unknown[0]!r}.")
        order = [self.classes.index(name) for name in classes]
        source, target = (tuple(counts[i] for i in order) for counts in (self.source, self.target))
        return Priors(tuple(classes), source, target, self.how)


def log_ratio(source: Sequence[float], target: Sequence[float], *, floor: float = FLOOR) -> Tensor:
    """Ln p_t - ln p_s per class (K,), float32; p(c) = n_c / sum n, counts no less than `floor`."""
    before, after = (torch.tensor(counts, dtype=torch.float64).clamp(min=floor) for counts in (source, target))
    return ((after / after.sum()).log() - (before / before.sum()).log()).float()


def fold_shift(segmenter: Segmenter, shift: Tensor) -> Segmenter:
    """Inference adjustment: a copy whose logits have `shift` (K,) added, in one bias of its classifier.

    It costs nothing at run time, and is exact: interpolation keeps constants.
    """
    if shift.shape != (segmenter.num_classes,):
        raise ValueError(f"expected a shift of {segmenter.num_classes} classes, found {tuple(shift.shape)}")
    adjusted = copy.deepcopy(segmenter)
    classifier: Any = adjusted.head.classifier
    assert isinstance(classifier, nn.Conv2d)
    assert classifier.bias is not None
    with torch.no_grad():
        classifier.bias += shift.to(classifier.bias)
    return adjusted


def published_priors(task: str, *, attentive: bool = False) -> Priors:
    """The counts of Undoing's release: `gta5-cityscapes` (19 classes) or `synthia-cityscapes` (16).

    Args:
        task: which.
        attentive: the target's as the network with the head `aspp-attentive` sees them.

    Raises:
        UserError: no such task.
    """
    tables = yaml.safe_load((resources.files("ssrseg") / "label_shift" / "published.yaml").read_text())
    if task not in tables:
        raise UserError(f"There are no published priors for {task!r}: only for {', '.join(tables)}.")
    table = tables[task]
    target = table["target_counts_attentive" if attentive else "target_counts"]
    return Priors(tuple(table["classes"]), tuple(table["source_counts"]), tuple(target), f"published: {task}")


def find_priors(name: str) -> Priors:
    """Priors of a file, or published ones by their task; raises `UserError` when it is neither."""
    if Path(name).is_file():
        return read_priors(Path(name))
    try:
        return published_priors(name)
    except UserError as error:
        raise UserError(f"{name} is no file of priors, and {str(error)[0].lower()}{str(error)[1:]}") from error


def write_priors(path: Path, priors: Priors) -> None:
    """As JSON."""
    write_json(path, dataclasses.asdict(priors))


def read_priors(path: Path) -> Priors:
    """From JSON; raises `UserError` when that is not what lies there."""
    try:
        fields = json.loads(path.read_text())
        classes, source, target = (tuple(fields[key]) for key in ("classes", "source", "target"))
        return Priors(classes, source, target, str(fields["how"]))
    except OSError as error:
        raise UserError(f"Cannot read the priors {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold priors (classes, source, target, how): {error}") from error
