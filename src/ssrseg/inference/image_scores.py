"""Scores that need the images one by one: a table of each, and boundary IoU."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssrseg.data.label_spaces import IGNORE
from ssrseg.inference.metrics import Scores, confusion_matrix
from ssrseg.runs.atomic import write_text, writing

WIDTH = 0.02
"""Width of a boundary as a share of the image's diagonal (Cheng et al., CVPR 2021, section 5.1)."""


def boundary_counts(labels: Tensor, ids: Tensor, num_classes: int, width: float = WIDTH) -> Tensor:
    """Count pixels for boundary IoU (K, 2), int64: those in both boundaries of a class, and those in either.

    A boundary is what of a class lies within `width` times the image's diagonal of its contour, the image's edge
    included (Boundary IoU, Cheng et al., CVPR 2021, equation 2). Pixels of 255 in `labels` (H, W) are counted nowhere
    and are no contour.
    """
    true, found = labels.cpu().numpy(), ids.cpu().numpy()
    unknown = true == IGNORE
    distance = max(1, round(width * math.hypot(*true.shape)))

    def boundary(of: npt.NDArray[np.integer], number: int) -> npt.NDArray[np.bool_]:
        own = of == number
        padded = np.pad((own | unknown).astype(np.uint8), 1)  # what lies beyond the edge is another class
        inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance, borderValue=0)[1:-1, 1:-1]
        return np.asarray(own & (inner == 0) & ~unknown)

    counts = []
    for number in range(num_classes):
        if (true == number).any() or (found == number).any():
            one, other = boundary(true, number), boundary(found, number)
            counts.append((int((one & other).sum()), int((one | other).sum())))
        else:
            counts.append((0, 0))
    return torch.tensor(counts)


@dataclass
class ImageScores:
    """Collects what `evaluate_model` hands over of each image."""

    classes: Sequence[str]
    bounded: bool = False
    """Whether boundaries are counted, which takes as long as a small network."""
    images: list[tuple[Path, Scores]] = field(default_factory=list)

    def __call__(self, path: Path, labels: Tensor, ids: Tensor) -> None:
        """Score an image; labels and ids (H, W)."""
        count = len(self.classes)
        boundary = boundary_counts(labels, ids, count) if self.bounded else None
        confusion = confusion_matrix(labels.to(ids.device), ids, count).cpu()
        self.images.append((path, Scores(tuple(self.classes), confusion, boundary=boundary)))

    @property
    def boundary(self) -> Tensor | None:
        """Boundary counts (K, 2) of all images together."""
        counts = [scores.boundary for _, scores in self.images if scores.boundary is not None]
        return torch.stack(counts).sum(0) if counts else None

    def write(self, path: Path) -> None:
        """Write a line per image as CSV, the worst first: its scores, and IoU per class, empty where there is none."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        means = ["miou", "mean_dice", "pixel_accuracy", *(["boundary_miou"] if self.bounded else [])]
        table.writerow(["image", *means, *(f"iou {name}" for name in self.classes)])
        for image, scores in sorted(self.images, key=lambda entry: (math.isnan(entry[1].miou), entry[1].miou)):
            values = [*(getattr(scores, mean) for mean in means), *scores.iou]
            shown = [None if value is None or math.isnan(value) else f"{value:.6f}" for value in values]
            table.writerow([str(image), *shown])
        with writing(path):
            write_text(path, text.getvalue())
