"""Strong augmentation of image batches in [0, 1], with the arithmetic that the published numbers used.

Colour operations follow kornia 0.5.8 (additive brightness, uncentred contrast), which torchvision's do not.
Every factor is drawn on the CPU, so nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import to_device


def adjust_brightness(images: Tensor, factor: float) -> Tensor:
    """Add factor - 1 and clamp to [0, 1]."""
    return (images + (factor - 1)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: float) -> Tensor:
    """Multiply by factor, clamped to [0, 1]: not centred on the mean."""
    return (images * factor).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV by factor, in [0, 1]."""
    if images.shape[1] != 3:
        return _of_rgb(images, factor, adjust_saturation)
    hue, saturation, value = rgb_to_hsv(images)
    return hsv_to_rgb(hue, (saturation * factor).clamp(0, 1), value)


def adjust_hue(images: Tensor, factor: float) -> Tensor:
    """Turn the hue by `factor` of a full turn."""
    if images.shape[1] != 3:
        return _of_rgb(images, factor, adjust_hue)
    hue, saturation, value = rgb_to_hsv(images)
    return hsv_to_rgb((hue + factor) % 1, saturation, value)


def _of_rgb(images: Tensor, factor: float, adjust: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Adjust the first three of more bands; fewer have no colour."""
    return torch.cat([adjust(images[:, :3], factor), images[:, 3:]], dim=1) if images.shape[1] > 3 else images


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


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def color_jitter(images: Tensor, factors: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Adjust the colours of each image in its own order.

    Args:
        images: (B, C, H, W) in [0, 1]; of other bands than RGB, saturation and hue are those of the first three.
        factors: (4, B): of `ADJUSTMENTS`; on the CPU.
        orders: for each image, the indices of its adjustments.
    """
    jittered = list(images.split(1))
    for i, (own, order) in enumerate(zip(factors.T.tolist(), orders, strict=True)):
        for kind in order:
            jittered[i] = ADJUSTMENTS[kind](jittered[i], own[kind])
    return torch.cat(jittered)


def gaussian_blur(images: Tensor, sigma: Sequence[float]) -> Tensor:
    """Blur each image by its own sigma (pixels); the kernel has the largest odd length up to ceil(side / 10)."""
    batch, channels, height, width = images.shape
    for dim, side in ((2, height), (3, width)):
        length = (math.ceil(0.1 * side) - 1) // 2 * 2 + 1
        offsets = torch.arange(length) - length // 2
        kernels = torch.exp(-(offsets**2) / (2 * torch.tensor(sigma, dtype=torch.float64)[:, None] ** 2))
        kernels = to_device((kernels / kernels.sum(dim=1, keepdim=True)).to(images.dtype), images.device)  # (B, length)
        shape = [batch * channels, 1, 1, 1]
        shape[dim] = length
        pad = [0, 0, length // 2, length // 2] if dim == 2 else [length // 2, length // 2, 0, 0]
        padded = F.pad(images, pad, mode="reflect").flatten(0, 1)[None]
        weight = kernels.repeat_interleave(channels, dim=0).view(shape)
        images = F.conv2d(padded, weight, groups=batch * channels).view(batch, channels, height, width)
    return images


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
        jitter, blur = torch.rand(2, generator=self.generator).tolist()
        count, rows = distributed.world() * len(images), distributed.rows(len(images))
        own, times = (count, 1) if self.per_image else (1, count)
        if jitter > self.jitter_skipped:
            factors = (2 * torch.rand(4, count, generator=self.generator) - 1) * self.strength
            factors[:3] += 1
            orders = [torch.randperm(4, generator=self.generator).tolist() for _ in range(own)] * times
            images = color_jitter(images, factors[:, rows], orders[rows])
        if blur > self.blur_skipped:
            sigma = (0.15 + torch.rand(own, generator=self.generator)).tolist() * times
            images = gaussian_blur(images, sigma[rows])
        return images


@dataclass(frozen=True)
class PhotometricDistortion:
    """Distort colours as source-only training does, per image: brightness, contrast, saturation, hue.

    Each with probability 1/2; contrast comes second or last. The references work on 8-bit OpenCV images and round
    after each step; this works on [0, 1] without rounding.
    """

    generator: Generator

    def __call__(self, images: Tensor) -> Tensor:
        count, rows = distributed.world() * len(images), distributed.rows(len(images))
        factors, orders = torch.empty(4, count), list[list[int]]()
        for i in range(count):
            brightness, contrast, saturation, hue, early = (torch.rand(5, generator=self.generator) < 0.5).tolist()
            strengths = (2 * torch.rand(4, generator=self.generator) - 1) * torch.tensor([32 / 255, 0.5, 0.5, 0.1])
            factors[:, i] = strengths + torch.tensor([1, 1, 1, 0])
            early, late = contrast and early, contrast and not early
            orders.append([0] * brightness + [1] * early + [2] * saturation + [3] * hue + [1] * late)
        return color_jitter(images, factors[:, rows], orders[rows])


@dataclass(frozen=True)
class GlobalIntensity:
    """Give images other colours by small random networks that look at one pixel each, so that only shapes stay.

    Each image has a network of its own and is blended with what that makes of it: GIN (Ouyang et al., Causality-
    inspired Single-source Domain Generalization for Medical Image Segmentation, IEEE TMI 2023, arXiv 2111.12525).
    Theirs has kernels of 1 or 3, of which the latter move edges away from their labels; here all are 1.

    Args:
        generator: on the CPU, alike in every process.
        probability: of an image to be changed.
        layers: of the network, leaky ReLUs between them.
        channels: between its layers.
    """

    generator: Generator
    probability: float = 0.25
    layers: int = 4
    channels: int = 2

    def __call__(self, images: Tensor) -> Tensor:
        bands, count = images.shape[1], distributed.world() * len(images)
        widths = (bands, *[self.channels] * (self.layers - 1), bands)
        chosen, share = torch.rand(2, count, generator=self.generator)
        share = torch.where(chosen < self.probability, share, 0)
        weights = [torch.randn(count, new, old + 1, generator=self.generator) for old, new in pairwise(widths)]
        rows = distributed.rows(len(images))
        share, *weights = (to_device(each[rows], images.device) for each in (share, *weights))
        return global_intensity(images, share, weights)


def global_intensity(images: Tensor, share: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Blend images with what a random network makes of their pixels.

    Both are centred, and as far from their mean (Frobenius norm). What leaves [0, 1] is moved, then scaled into it.

    Args:
        images: (B, C, H, W) in [0, 1].
        share: (B,) in [0, 1], of the network's image; an image of share 0 is unchanged.
        weights: of each layer (B, out, in + 1), the last column a shift in deviations of what comes in.
    """
    pixels = images.flatten(2)
    mean = pixels.mean(dim=2, keepdim=True)
    made = centred = pixels - mean
    for number, weight in enumerate(weights):
        made = F.leaky_relu(made) if number else made
        shift = weight[:, :, -1:] * made.std(dim=(1, 2), keepdim=True)
        made = torch.baddbmm(shift, weight[:, :, :-1], made)
    made = made - made.mean(dim=2, keepdim=True)
    made = made * (norm(centred) / norm(made).clamp(min=1e-6))
    blended = centred.lerp(made, share[:, None, None]) + mean
    blended = blended - blended.amin(dim=(1, 2), keepdim=True).clamp(max=0)
    blended = blended / blended.amax(dim=(1, 2), keepdim=True).clamp(min=1)
    return torch.where(share[:, None, None, None] > 0, blended.view_as(images), images)


def fourier_adapt(images: Tensor, others: Tensor, beta: float = 0.01) -> Tensor:
    """Give images the look of others: their amplitudes of low frequencies (FDA, Yang & Soatto, CVPR 2020, section 3.1).

    Args:
        images: (B, C, H, W) in [0, 1]; float32, as half precision has not every size of transform.
        others: (B, C, h, w) in [0, 1], one for each; of another size, they are resized.
        beta: share of the shorter side up to which frequencies are replaced; 0 gives the mean colour alone.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    size = (images.shape[-2], images.shape[-1])
    if others.shape[-2:] != size:
        others = F.interpolate(others, size, mode="bilinear")
    own, other = torch.fft.fft2(images), torch.fft.fft2(others)
    rows, columns = ((torch.fft.fftfreq(side) * side).round().abs() <= int(beta * min(size)) for side in size)
    low = to_device(rows[:, None] & columns, images.device)
    changed = torch.polar(torch.where(low, other.abs(), own.abs()), own.angle())
    adapted: Tensor = torch.fft.ifft2(changed).real.clamp(0, 1)
    return adapted


def norm(pixels: Tensor) -> Tensor:
    """Frobenius norm of each image, (B, C, N) -> (B, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(pixels, dim=(1, 2), keepdim=True)
    return length
