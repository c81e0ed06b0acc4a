"""What travels through a step: a batch, the teacher's answer, and the views made of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One step's data. Images are RGB in [0, 1]."""

    source: Tensor  # (B, 3, H, W)
    labels: Tensor  # (B, H, W) int64, IGNORE where unlabelled
    target: Tensor  # (B', 3, H, W); B' is 0 for a method without a target
    valid: Tensor  # (B', H, W) bool: may a pseudo-label here be trusted?

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device, without waiting for the copy."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Pseudo:
    """The teacher's labels for the target and the trust in each pixel."""

    labels: Tensor  # (B', H, W) int64
    weights: Tensor  # (B', H, W) in [0, 1]


@dataclass(frozen=True)
class View:
    """What the student looks at: images, labels, and a trust per pixel travel together."""

    name: str
    images: Tensor  # (B, 3, H, W) in [0, 1]
    labels: Tensor  # (B, H, W) int64
    weights: Tensor | None = None  # (B, H, W); 1 everywhere when absent


IGNORE = 255
"""The label of pixels that belong to no class."""
