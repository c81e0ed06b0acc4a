"""Strong augmentation of image batches in [0, 1], with the arithmetic that the published numbers used.

Colour operations follow kornia 0.5.8 (additive brightness, uncentred contrast), which torchvision's do not.
Every factor is drawn on the CPU, so nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ssrseg.adapt import ranks


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Add factor - 1; clamped to [0, 1]. Images (B, 3, H, W), factor (B, 1, 1)."""
    return (images + (factor[:, None] - 1)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by factor, clamped to [0, 1]: not centred on the mean."""
    return (images * factor[:, None]).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """S * factor in HSV, in [0, 1]."""
    hue, saturation, value = rgb_to_hsv(images)
    return hsv_to_rgb(hue, (saturation * factor).clamp(0, 1), value)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Hue turned by `factor` of a full turn."""
    hue, saturation, value = rgb_to_hsv(images)
    return hsv_to_rgb((hue + factor) % 1, saturation, value)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
"""In the order by which a jitter's `order` counts them."""


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns [0, 1), saturation and value in [0, 1]; each (B, H, W)."""
    red, green, blue = images.unbind(dim=1)
    value, low = images.amax(dim=1), images.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma == 0, 1, chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return (sextant / 6) % 1, chroma / (value + 1e-6), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `rgb_to_hsv`: (B, 3, H, W)."""

    def channel(offset: int) -> Tensor:
        k = (offset + hue * 6) % 6
        return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


def color_jitter(images: Tensor, factors: Tensor, order: Sequence[int]) -> Tensor:
    """The four adjustments, one after the other.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factors: (4, B): brightness, contrast, saturation, hue.
        order: permutation of 0..3.
    """
    factors = factors.to(images)[:, :, None, None]  # (4, B, 1, 1)
    for i in order:
        images = ADJUSTMENTS[i](images, factors[i])
    return images


def gaussian_blur(images: Tensor, sigma: Sequence[float]) -> Tensor:
    """Each image blurred by its own sigma (pixels); the kernel is the largest odd length within a tenth of the side."""
    batch, channels, height, width = images.shape
    for dim, side in ((2, height), (3, width)):
        length = blur_length(side)
        offsets = torch.arange(length) - length // 2
        kernels = torch.exp(-(offsets**2) / (2 * torch.tensor(sigma, dtype=torch.float64)[:, None] ** 2))
        kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images)  # (B, length)
        shape = [batch * channels, 1, 1, 1]
        shape[dim] = length
        pad = [0, 0, length // 2, length // 2] if dim == 2 else [length // 2, length // 2, 0, 0]
        padded = F.pad(images, pad, mode="reflect").flatten(0, 1)[None]
        weight = kernels.repeat_interleave(channels, dim=0).view(shape)
        images = F.conv2d(padded, weight, groups=batch * channels).view(batch, channels, height, width)
    return images


def blur_length(side: int) -> int:
    """Largest odd number that is not above ceil(side / 10)."""
    length = math.ceil(0.1 * side)
    return length - 1 + length % 2


@dataclass(frozen=True)
class StrongAugment:
    """Colour jitter, then blur; whether each happens is drawn once for the whole batch, over all processes (DACS).

    Args:
        generator: on the CPU, alike in every process.
        strength: brightness, contrast and saturation factors lie in 1 +- strength, hue in +- strength turns.
        jitter_skipped: chance of no jitter (the references call this their probability).
        blur_skipped: chance of no blur.
        per_image: every image has its own order of adjustments and its own sigma; else the batch shares them.
    """

    generator: Generator
    strength: float = 0.2
    jitter_skipped: float = 0.2
    blur_skipped: float = 0.5
    per_image: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Augmented images in [0, 1]."""
        jitter, blur = torch.rand(2, generator=self.generator).tolist()
        if jitter > self.jitter_skipped:
            images = self._jitter(images)
        if blur > self.blur_skipped:
            count = ranks.world() * len(images) if self.per_image else 1
            sigma = (0.15 + torch.rand(count, generator=self.generator)).tolist()
            own = sigma[ranks.rows(len(images))] if self.per_image else sigma * len(images)
            images = gaussian_blur(images, own)
        return images

    def _jitter(self, images: Tensor) -> Tensor:
        count, rows = ranks.world() * len(images), ranks.rows(len(images))
        factors = (2 * torch.rand(4, count, generator=self.generator) - 1) * self.strength
        factors[:3] += 1
        if not self.per_image:
            return color_jitter(images, factors[:, rows], self._order())
        orders = [self._order() for _ in range(count)]
        own = zip(images, factors[:, rows].T, orders[rows], strict=True)
        return torch.cat([color_jitter(image[None], factor[:, None], order) for image, factor, order in own])

    def _order(self) -> list[int]:
        order: list[int] = torch.randperm(4, generator=self.generator).tolist()
        return order


@dataclass(frozen=True)
class PhotometricDistortion:
    """The loader augmentation of source-only training, per image: brightness, contrast, saturation, hue.

    Each with probability 1/2; contrast comes second or last. The references work on 8-bit OpenCV images and round
    after each step; this works on [0, 1] without rounding.
    """

    generator: Generator

    def __call__(self, images: Tensor) -> Tensor:
        """Distorted images in [0, 1]."""
        draws = [self._draw() for _ in range(ranks.world() * len(images))][ranks.rows(len(images))]
        return torch.cat([self._distort(image[None], *draw) for image, draw in zip(images, draws, strict=True)])

    def _draw(self) -> tuple[list[bool], Tensor]:
        """Which steps are chosen, and by how much each changes the image."""
        chosen: list[bool] = (torch.rand(5, generator=self.generator) < 0.5).tolist()
        return chosen, 2 * torch.rand(4, 1, 1, 1, generator=self.generator) - 1

    def _distort(self, image: Tensor, chosen: list[bool], draws: Tensor) -> Tensor:
        brightness, contrast, saturation, hue = draws.to(image) * torch.tensor([32 / 255, 0.5, 0.5, 0.1]).view(
            4, 1, 1, 1
        ).to(image)
        steps = [(adjust_saturation, 1 + saturation, chosen[2]), (adjust_hue, hue, chosen[3])]
        steps.insert(0 if chosen[4] else 2, (adjust_contrast, 1 + contrast, chosen[1]))
        steps.insert(0, (adjust_brightness, 1 + brightness, chosen[0]))
        for adjust, factor, wanted in steps:
            image = adjust(image, factor) if wanted else image
        return image
