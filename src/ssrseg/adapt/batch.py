"""The data of a step: a batch, the teacher's pseudo-labels, and the views made of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssrseg.models.description import Window


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device without waiting for the copy: to CUDA from page-locked memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """Hold the images and labels of one step; images are in [0, 1], of C bands: 3 for RGB."""

    source: Tensor  # (B, C, H, W)
    labels: Tensor  # (B, H, W) int64, IGNORE where unlabelled
    target: Tensor  # (B', C, H, W); B' is 0 for a method without a target
    valid: Tensor  # (B', H, W) bool: where a pseudo-label may be used (not on the own car, say)
    source_inside: Tensor | None = None  # (B, H, W) bool: no padding of images smaller than the crop; all if absent
    target_inside: Tensor | None = None  # (B', H, W) bool: likewise
    regions: Tensor | None = None  # (B', H, W) int64: ids of masks below `MOST_MASKS`, 0 where there is none
    labelled: Tensor | None = None  # (B'', C, H, W): target images with labels; absent for a method without
    labelled_labels: Tensor | None = None  # (B'', H, W) int64
    labelled_inside: Tensor | None = None  # (B'', H, W) bool: likewise

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to another device without waiting for the copy."""
        parts = {name: value for name, value in vars(self).items() if value is not None}
        moved = {name: value.to(device, non_blocking=True) for name, value in parts.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Pseudo:
    """Hold the teacher's labels of the target images and the trust in each pixel."""

    labels: Tensor  # (B', H, W) int64
    trust: Tensor  # (B', H, W) in [0, 1]


@dataclass(frozen=True)
class View:
    """Hold what the student is trained on: images, their labels, and the trust in each label.

    The trust is a factor of a pixel's loss: 1 for true labels, the teacher's confidence for pseudo-labels.
    """

    name: str
    images: Tensor  # (B, C, H, W) in [0, 1]
    labels: Tensor  # (B, H, W) int64
    trust: Tensor | None = None  # (B, H, W) in [0, 1]; 1 everywhere when absent
    inside: Tensor | None = None  # (B, H, W) bool: not padding; everywhere when absent
    clean: Tensor | None = None  # (B, C, H, W): the images before augmentation and masking, where they differ
    window: Window | None = None  # what a student that looks twice sees in detail, of every image

    def cut(self) -> View:
        """Return the view of its window alone; itself where it has none."""
        if self.window is None:
            return self
        rows, columns = self.window
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        cut: dict[str, Any] = {name: value[..., rows, columns] for name, value in tensors.items()}
        return replace(self, window=None, **cut)


IGNORE = 255
"""The label of pixels that belong to no class."""
