"""How bright and colourful the images of a domain are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

PIXELS = 256
"""Rows and columns of an image that are looked at, about: enough for its statistics."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in perceived brightness (ITU-R BT.601)."""


@dataclass(frozen=True)
class Colour:
    """Of one image or the mean over many; all values in 0..255 but the saturation."""

    mean: tuple[float, float, float]
    """Of red, green and blue."""
    std: tuple[float, float, float]
    """Over all pixels of all images."""
    brightness: float
    """Mean luma (ITU-R BT.601)."""
    contrast: float
    """Standard deviation of the luma within an image, mean over images."""
    saturation: float
    """Mean of (max - min) / max over the three channels, that of HSV, in 0..1."""


def colour_of(image: Tensor) -> Colour:
    """Of one image: RGB bytes (3, H, W)."""
    step = max(1, min(image.shape[1:]) // PIXELS)
    rgb = image[:, ::step, ::step].numpy().astype(np.float64)
    luma = np.tensordot(LUMA, rgb, axes=1)
    high, low = rgb.max(axis=0), rgb.min(axis=0)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1), 0)
    return Colour(
        _triple(rgb.mean(axis=(1, 2))),
        _triple(rgb.std(axis=(1, 2))),
        float(luma.mean()),
        float(luma.std()),
        float(saturation.mean()),
    )


def mean_colour(colours: Sequence[Colour]) -> Colour:
    """Over images, each counted once whatever its size; at least one."""
    means, stds = (np.array([getattr(one, name) for one in colours]) for name in ("mean", "std"))
    mean = means.mean(axis=0)
    std = np.sqrt((stds**2 + means**2).mean(axis=0) - mean**2)
    plain = (float(np.mean([getattr(c, name) for c in colours])) for name in ("brightness", "contrast", "saturation"))
    return Colour(_triple(mean), _triple(std), *plain)


def _triple(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
