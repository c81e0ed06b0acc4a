"""Scores of a confusion matrix: IoU and accuracy, per class and on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssrseg.data import SPACES
from ssrseg.data.label_spaces import IGNORE
from ssrseg.errors import UserError

PUBLISHED_SUBSETS = ("synthia16", "synthia13")
"""Label spaces over which those who adapt from SYNTHIA report means."""


def confusion_matrix(labels: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """Count pixels (K, K), int64: a row per true class, a column per predicted one; a label of 255 is not counted."""
    known = labels != IGNORE
    pairs = labels[known].long() * num_classes + ids[known]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass(frozen=True, eq=False)
class Scores:
    """Agreement of predictions with labels. All scores are fractions; what was not measured is `None`, its mean NaN."""

    classes: tuple[str, ...]
    confusion: Tensor
    """Pixels (K, K), int64: a row per true class, a column per predicted one."""
    subset: tuple[str, ...] = ()
    """Names of classes whose mean is asked for beside that of all."""
    boundary: Tensor | None = None
    """Pixels (K, 2), int64, of `boundary_counts`; absent where boundaries were not counted."""
    domains: Mapping[str, Scores] = field(default_factory=dict)
    """The same for each of several data sets by name; empty for one. The confusion is that of all of them."""

    @classmethod
    def of_domains(cls, classes: Sequence[str], confusions: Tensor, domains: Sequence[str]) -> Scores:
        """Make scores of the pixels (D, K, K) of each data set; of one, `domains` has no name."""
        parts = zip(domains, confusions, strict=False)
        own = {name: cls(tuple(classes), each) for name, each in parts}
        return cls(tuple(classes), confusions.sum(dim=0), domains=own)

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union per class; `None` for a class in neither truth nor prediction."""
        return _ratios(self._right, self.confusion.sum(0) + self.confusion.sum(1) - self._right)

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that occur; NaN when none does."""
        return _mean(self.iou)

    @property
    def dice(self) -> list[float | None]:
        """Dice or F1 score per class, 2 I / (2 I + missed + wrong); `None` as for IoU."""
        return _ratios(2 * self._right, self.confusion.sum(0) + self.confusion.sum(1))

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the classes that occur; NaN when none does."""
        return _mean(self.dice)

    @property
    def precision(self) -> list[float | None]:
        """Share of what is predicted as a class that is of it; `None` for a class that is never predicted."""
        return _ratios(self._right, self.confusion.sum(0))

    @property
    def boundary_iou(self) -> list[float | None]:
        """Boundary IoU per class (Cheng et al., CVPR 2021); `None` where it was not counted or does not occur."""
        return [None] * len(self.classes) if self.boundary is None else _ratios(*self.boundary.unbind(1))

    @property
    def boundary_miou(self) -> float:
        """Mean boundary IoU; NaN where none was counted."""
        return _mean(self.boundary_iou)

    @property
    def accuracy(self) -> list[float | None]:
        """Share of each class's pixels that was found (recall); `None` for a class that the truth does not contain."""
        return _ratios(self._right, self.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that is right; NaN when there is none."""
        return _mean(_ratios(self._right.sum().view(1), self.confusion.sum().view(1)))

    @property
    def _right(self) -> Tensor:
        return self.confusion.diagonal()

    def miou_over(self, names: Iterable[str]) -> float:
        """Mean IoU of some classes only, as SYNTHIA's 16 and 13 of Cityscapes' 19; raises `UserError` for no class."""
        names = tuple(names)
        check_names(names, self.classes)
        return _mean([value for name, value in zip(self.classes, self.iou, strict=True) if name in names])

    @property
    def subsets(self) -> dict[str, float]:
        """Mean IoU of parts of the classes: of SYNTHIA's 16 and 13, where they are among others, and of `subset`.

        The IoUs are those of all classes: what is taken for a class outside the part is wrong, as published.
        """
        published = {name: SPACES[name].names for name in PUBLISHED_SUBSETS}
        parts = {name: part for name, part in published.items() if set(part) < set(self.classes)}
        return {name: self.miou_over(part) for name, part in parts.items()} | (
            {"subset": self.miou_over(self.subset)} if self.subset else {}
        )

    def to_dict(self) -> dict[str, Any]:
        """Give what JSON takes: means, per class `iou`, `accuracy`, `dice` and `precision`, `subsets`, `domains`."""
        means = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "mean_dice": self.mean_dice}
        means |= {} if self.boundary is None else {"boundary_miou": self.boundary_miou}
        finite = {name: value if math.isfinite(value) else None for name, value in (means | self.subsets).items()}
        subsets = {name: finite.pop(name) for name in self.subsets}
        whole: dict[str, Any] = {**finite, "iou": self.iou, "accuracy": self.accuracy}
        whole |= {"dice": self.dice, "precision": self.precision}
        whole |= {} if self.boundary is None else {"boundary_iou": self.boundary_iou}
        whole |= {"subsets": subsets} if subsets else {}
        whole |= {"domains": {name: each.to_dict() for name, each in self.domains.items()}} if self.domains else {}
        return whole | ({"subset": self.subset} if self.subset else {})


def check_names(names: Iterable[str], classes: tuple[str, ...]) -> None:
    """Raise `UserError` for a name that is no class."""
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"There is no class {unknown[0]!r}; the classes are {', '.join(classes)}.")


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def _mean(values: Sequence[float | None]) -> float:
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured else math.nan
