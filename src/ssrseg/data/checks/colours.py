"""The colours of a data set's images: what makes two domains look different."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssrseg.data.images import as_rgb

PIXELS = 256
"""Rows and columns, about, from which the colour statistics of an image are computed."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in perceived brightness (ITU-R BT.601)."""

Moments = npt.NDArray[np.float64]
"""Colours of an image (2 C + 3,): means of its C bands in 0..255, means of their squares, mean and standard deviation
of the luma (ITU-R BT.601), and mean saturation: (max - min) / max, as in HSV; these of the bands shown as RGB."""


def colour_moments(image: Tensor) -> Moments:
    """Compute the statistics of one image: bytes (C, H, W)."""
    step = max(1, min(image.shape[1:]) // PIXELS)
    bands = image[:, ::step, ::step].numpy().astype(np.float64)
    rgb = as_rgb(image[:, ::step, ::step]).numpy().astype(np.float64)
    luma = np.tensordot(LUMA, rgb, axes=1)
    high, low = rgb.max(axis=0), rgb.min(axis=0)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1), 0)
    means = bands.mean(axis=(1, 2)), (bands**2).mean(axis=(1, 2))
    return np.concatenate([*means, [luma.mean(), luma.std(), saturation.mean()]])


def colour_facts(moments: Sequence[Moments]) -> dict[str, Any] | None:
    """Average over images, each counted once whatever its size; None without any.

    Returns:
        `mean` and `std` of each band over all pixels, `brightness`, `contrast` (the luma's standard
        deviation within an image) and `saturation`.
    """
    if not moments:
        return None
    average = np.mean(moments, axis=0)
    mean, square = np.split(average[:-3], 2)
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return {
        "mean": mean.tolist(),
        "std": spread.tolist(),
        **dict(zip(("brightness", "contrast", "saturation"), average[-3:].tolist(), strict=True)),
    }
