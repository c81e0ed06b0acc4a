"""Resize, crop, flip: an image and its label together."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms import functional as V

from ssrseg.config.data import Bound, ExactSize, ImageMargins, JitterConfig, Margins
from ssrseg.data.label_spaces import IGNORE

Box = tuple[slice, slice]
"""Rows and columns."""
CHECKS = 10
"""Crops that are tested before one is taken untested (DAFormer code)."""


def rescale_size(width: int, height: int, bound: Bound) -> tuple[int, int]:
    """Compute the (width, height) that fits into `bound`, aspect ratio kept: GTA5's 1914x1052 in 1280x720 is 1280x704.

    The long side is bounded by the long side of `bound`, the short by the short. An exact size is itself.
    """
    if isinstance(bound, ExactSize):
        return bound.exact
    factor = min(max(bound) / max(width, height), min(bound) / min(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize RGB bytes (3, H, W) to `size` (width, height), bilinear without antialiasing: the references' OpenCV."""
    width, height = size
    if image.shape[-2:] == (height, width):
        return image
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def rows_needed(old: int, new: int, last: int) -> int:
    """Return how many of `old` rows the first `last` of `new` resized ones are made of, at most."""
    return last if old == new else min(old, math.ceil(last * old / new) + 2)


def resize_crop(pixels: npt.NDArray[np.uint8], size: tuple[int, int], box: Box) -> npt.NDArray[np.uint8]:
    """Cut a box (h, w, 3) out of a resized image, bit for bit; nothing below or right of it is computed.

    What lies above and left is computed: only from the corner on do all weights stay those of the whole image.
    `pixels` is the image (H, W, 3), `size` its (width, height) after resizing, where the box lies.
    """
    rows, columns = box
    height, width = pixels.shape[:2]
    if size == (width, height):
        return pixels[rows, columns]
    below, right = rows_needed(height, size[1], rows.stop), rows_needed(width, size[0], columns.stop)
    fx, fy = size[0] / width, size[1] / height
    part = cv2.resize(pixels[:below, :right], None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return np.asarray(part.reshape(*part.shape[:2], -1)[rows, columns], np.uint8)  # of one band, the axis is dropped


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize class ids (H, W) to (height, width), nearest: source index is floor(target index x scale), as OpenCV."""
    width, height = size
    if labels.shape == (height, width):
        return labels
    return torch.from_numpy(cv2.resize(labels.numpy(), size, interpolation=cv2.INTER_NEAREST))


def pad(image: Tensor, size: tuple[int, int], value: int) -> Tensor:
    """Pad the last two dimensions to at least (height, width), right and below."""
    height, width = image.shape[-2:]
    below, right = max(0, size[0] - height), max(0, size[1] - width)
    return F.pad(image, (0, right, 0, below), value=value) if below or right else image


def valid_pixels(size: tuple[int, int], margins: Margins) -> Tensor:
    """Tell where an image of `size` (width, height) lies inside of its margins, (H, W) bool: resized as labels are.

    It is all of the image where the margins are rows of the crop.
    """
    width, height = size
    if not isinstance(margins, ImageMargins):
        return torch.ones(height, width, dtype=torch.bool)
    (top, bottom, left, right), (columns, rows) = margins.sides, margins.of
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return ((row >= top) & (row < rows - bottom))[:, None] & ((column >= left) & (column < columns - right))


def random_box(height: int, width: int, crop: tuple[int, int], generator: Generator) -> Box:
    """Draw a crop's rows and columns, uniform over all places."""
    top = _integer(max(0, height - crop[0]) + 1, generator)
    left = _integer(max(0, width - crop[1]) + 1, generator)
    return slice(top, top + crop[0]), slice(left, left + crop[1])


def retry(draw: Callable[[], Box], accept: Callable[[Box], bool]) -> Box:
    """Draw until `accept` is true; after ten failures take the next draw untested (DAFormer code)."""
    for _ in range(CHECKS):
        box = draw()
        if accept(box):
            return box
    return draw()


def is_varied(labels: Tensor, max_share: float) -> bool:
    """Return whether the labelled pixels show at least two classes, none of which covers `max_share` or more.

    `labels` are class ids, uint8, of any shape; a `max_share` of 1 accepts everything.
    """
    if max_share >= 1:
        return True
    counts = torch.bincount(labels.flatten(), minlength=256)
    counts[IGNORE] = 0
    return int((counts > 0).sum()) > 1 and float(counts.max() / counts.sum()) < max_share


def mirrored(generator: Generator, probability: float) -> bool:
    """Draw whether to mirror."""
    return float(torch.rand((), generator=generator)) < probability


def _integer(high: int, generator: Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def jitter(pixels: npt.NDArray[np.uint8], config: JitterConfig, generator: Generator) -> npt.NDArray[np.uint8]:
    """Adjust brightness, contrast, saturation and hue of an image (H, W, 3) by random factors in a random order."""
    draws = (2 * torch.rand(4, generator=generator) - 1).tolist()
    factors = [1 + config.strength * draw for draw in draws[:3]] + [config.hue * draws[3]]
    adjustments = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    for i in torch.randperm(4, generator=generator).tolist():
        image = adjustments[i](image, factors[i])
    return np.asarray(image.permute(1, 2, 0).contiguous().numpy(), np.uint8)
