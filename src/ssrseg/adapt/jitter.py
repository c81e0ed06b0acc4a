"""Colour jitter as torchvision has it, drawn from a generator that is passed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms import functional as F

ADJUSTMENTS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue of every image, in an order of its own.

    Args:
        generator: on the CPU.
        strength: the first three factors lie in 1 +- strength.
        hue: turns, +-.
    """

    generator: Generator
    strength: float = 0.5
    hue: float = 0.2

    def __call__(self, images: Tensor) -> Tensor:
        """Jittered images (B, 3, H, W) in [0, 1]."""
        return torch.stack([self._one(image) for image in images]) if len(images) else images

    def _one(self, image: Tensor) -> Tensor:
        draws = (2 * torch.rand(4, generator=self.generator) - 1).tolist()
        factors = [1 + self.strength * draw for draw in draws[:3]] + [self.hue * draws[3]]
        for i in torch.randperm(4, generator=self.generator).tolist():
            image = ADJUSTMENTS[i](image, factors[i])
        return image
