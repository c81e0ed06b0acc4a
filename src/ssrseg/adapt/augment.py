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
from torchvision.transforms import functional as V

from ssrseg.adapt import distributed


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Add factor - 1 and clamp to [0, 1]; images (B, 3, H, W), factor (B, 1, 1)."""
    return (images + (factor[:, None] - 1)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by factor, clamped to [0, 1]: not centred on the mean."""
    return (images * factor[:, None]).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the saturation of HSV by factor, in [0, 1]."""
    return turn_hsv(images, factor, torch.zeros_like(factor))


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` of a full turn."""
    return turn_hsv(images, torch.ones_like(factor), factor)


def turn_hsv(images: Tensor, scale: Tensor, turn: Tensor) -> Tensor:
    """Multiply the saturation by `scale`, in [0, 1], and turn the hue by `turn` of a full turn; both (B, 1, 1)."""
    hue, saturation, value = rgb_to_hsv(images)
    return hsv_to_rgb((hue + turn) % 1, (saturation * scale).clamp(0, 1), value)


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert (B, 3, H, W) to hue in turns [0, 1), saturation and value in [0, 1]; each (B, H, W)."""
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
    """Invert `rgb_to_hsv`: (B, 3, H, W)."""

    def channel(offset: int) -> Tensor:
        k = (offset + hue * 6) % 6
        return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""As a jitter's `orders` count them."""
IDLE = (1.0, 1.0, 1.0, 0.0)
"""Factors that change nothing."""


def color_jitter(images: Tensor, factors: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Apply the four adjustments one after the other, to each image in its own order.

    The whole batch is processed at once, with as many operations for eight images as for two: whatever its order, an
    image sees shifts and scales, a turn through HSV, shifts and scales, another turn, shifts and scales. An image that
    has nothing to do is scaled by 1 or shifted by 0, which changes no bit.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factors: (4, B): brightness, contrast, saturation, hue; on the CPU.
        orders: B permutations of 0..3.
    """
    for doing in zip(*(_rounds(order) for order in orders), strict=True):
        if BRIGHTNESS in doing:
            images = adjust_brightness(images, _chosen(factors, doing, BRIGHTNESS, images))
        if CONTRAST in doing:
            images = adjust_contrast(images, _chosen(factors, doing, CONTRAST, images))
        if SATURATION in doing or HUE in doing:
            scale, turn = (_chosen(factors, doing, kind, images) for kind in (SATURATION, HUE))
            images = turn_hsv(images, scale, turn)
    return images


def _rounds(order: Sequence[int]) -> list[int | None]:
    """Spread an order over eight rounds such that every order turns through HSV in the third and in the sixth."""
    first, second = (place for place, kind in enumerate(order) if kind in (SATURATION, HUE))
    stages = order[:first], order[first + 1 : second], order[second + 1 :]
    before, between, after = ([*stage, *[None] * (2 - len(stage))] for stage in stages)
    return [*before, order[first], *between, order[second], *after]


def _chosen(factors: Tensor, doing: Sequence[int | None], kind: int, images: Tensor) -> Tensor:
    """Return the factors (B, 1, 1) of one adjustment; idle for the images that have another one now."""
    values = [factor if now == kind else IDLE[kind] for factor, now in zip(factors[kind].tolist(), doing, strict=True)]
    return torch.tensor(values).to(images)[:, None, None]


def _slices(images: Tensor) -> list[slice]:
    """Cut the batch for processing: whole for a device, which waits between operations, by image for a CPU's cache."""
    size = 1 if images.device.type == "cpu" else len(images)
    return [slice(start, start + size) for start in range(0, len(images), size)]


def gaussian_blur(images: Tensor, sigma: Sequence[float]) -> Tensor:
    """Blur each image by its own sigma (pixels); the kernel is the largest odd length within a tenth of the side."""
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
    """Return the largest odd number that is not above ceil(side / 10)."""
    length = math.ceil(0.1 * side)
    return length - 1 + length % 2


@dataclass(frozen=True)
class StrongAugment:
    """Jitter colours, then blur; whether each happens is drawn once for the whole batch, over all processes (DACS).

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
        """Augment images (B, 3, H, W) in [0, 1]."""
        jitter, blur = torch.rand(2, generator=self.generator).tolist()
        if jitter > self.jitter_skipped:
            images = self._jitter(images)
        if blur > self.blur_skipped:
            count = distributed.world() * len(images) if self.per_image else 1
            sigma = (0.15 + torch.rand(count, generator=self.generator)).tolist()
            own = sigma[distributed.rows(len(images))] if self.per_image else sigma * len(images)
            images = gaussian_blur(images, own)
        return images

    def _jitter(self, images: Tensor) -> Tensor:
        count, rows = distributed.world() * len(images), distributed.rows(len(images))
        factors = (2 * torch.rand(4, count, generator=self.generator) - 1) * self.strength
        factors[:3] += 1
        orders = [torch.randperm(4, generator=self.generator).tolist() for _ in range(count if self.per_image else 1)]
        orders = orders if self.per_image else orders * count
        factors, orders = factors[:, rows], orders[rows]
        return torch.cat([color_jitter(images[s], factors[:, s], orders[s]) for s in _slices(images)])


@dataclass(frozen=True)
class PhotometricDistortion:
    """Distort colours as source-only training does, per image: brightness, contrast, saturation, hue.

    Each with probability 1/2; contrast comes second or last. The references work on 8-bit OpenCV images and round
    after each step; this works on [0, 1] without rounding, on the whole batch at once.
    """

    generator: Generator

    def __call__(self, images: Tensor) -> Tensor:
        """Distort images (B, 3, H, W) in [0, 1]."""
        count, rows = distributed.world() * len(images), distributed.rows(len(images))
        drawn = [
            (torch.rand(5, generator=self.generator), torch.rand(4, generator=self.generator)) for _ in range(count)
        ]
        chosen = torch.stack([chances < 0.5 for chances, _ in drawn[rows]], dim=1)  # (5, B)
        strengths = torch.stack([2 * draws - 1 for _, draws in drawn[rows]], dim=1)  # (4, B)
        strengths = strengths * torch.tensor([32 / 255, 0.5, 0.5, 0.1])[:, None]
        return torch.cat([distort(images[s], chosen[:, s], strengths[:, s]) for s in _slices(images)])


def distort(images: Tensor, chosen: Tensor, strengths: Tensor) -> Tensor:
    """Distort each image (B, 3, H, W) by what was drawn for it.

    Args:
        images: in [0, 1].
        chosen: (5, B) bool: brightness, contrast, saturation, hue, and contrast second rather than last; on the CPU.
        strengths: (4, B): what the first four add to 1, or turn the hue by; on the CPU.
    """
    brightness, contrast, saturation, hue, early = chosen
    steps = (
        (adjust_brightness, 1 + strengths[0], brightness),
        (adjust_contrast, 1 + strengths[1], contrast & early),
        (adjust_saturation, 1 + strengths[2], saturation),
        (adjust_hue, strengths[3], hue),
        (adjust_contrast, 1 + strengths[1], contrast & ~early),
    )
    for adjust, factor, wanted in steps:
        wishes = wanted.tolist()
        if True not in wishes:
            continue
        adjusted = adjust(images, factor.to(images)[:, None, None])
        if False in wishes:
            adjusted = torch.where(wanted.to(images.device)[:, None, None, None], adjusted, images)
        images = adjusted
    return images


@dataclass(frozen=True)
class Jitter:
    """Jitter colours as torchvision does (Undoing): four adjustments of every image, in an order of its own.

    Args:
        generator: on the CPU.
        strength: the first three factors lie in 1 +- strength.
        hue: turns, +-.
    """

    generator: Generator
    strength: float = 0.5
    hue: float = 0.2

    def __call__(self, images: Tensor) -> Tensor:
        """Jitter images (B, 3, H, W) in [0, 1]."""
        return torch.stack([self._one(image) for image in images]) if len(images) else images

    def _one(self, image: Tensor) -> Tensor:
        adjustments = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
        draws = (2 * torch.rand(4, generator=self.generator) - 1).tolist()
        factors = [1 + self.strength * draw for draw in draws[:3]] + [self.hue * draws[3]]
        for i in torch.randperm(4, generator=self.generator).tolist():
            image = adjustments[i](image, factors[i])
        return image
