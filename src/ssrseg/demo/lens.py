"""What a camera does to light: exposure, cast, blur, noise and compression."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ssrseg.demo.shapes import Floats

_SPECTRUM = np.arange(8)
_DCT = (np.cos(np.pi * (2 * _SPECTRUM[None] + 1) * _SPECTRUM[:, None] / 16) / 2).astype(np.float32)
_DCT[0] /= np.float32(np.sqrt(2))
"""The orthonormal cosine basis of 8 samples, as JPEG uses it."""

_YCC = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)
"""RGB to luma and two chromas (ITU-R BT.601)."""


def virtual(image: Floats, rng: np.random.Generator) -> Floats:
    """A game's camera: only slightly soft."""
    return soften(image, 0.12)


def real(image: Floats, rng: np.random.Generator) -> Floats:
    """A cheap camera behind a windscreen: every picture has its own faults."""
    image = soften(image, float(rng.uniform(0.08, 0.3)))
    if rng.random() < 0.15:
        image = soften(image, 0.33)
    gains = np.exp(rng.normal((0.02, 0, -0.04), 0.03)) * np.exp(rng.normal(0.05, 0.1))
    image = image * gains.astype(np.float32) * vignette(image.shape[:2], float(rng.uniform(0.05, 0.3)))
    low, gamma = float(rng.uniform(0.0, 0.06)), float(rng.uniform(0.8, 1.15))
    image = low + (1 - low) * np.clip(image, 0, 1) ** np.float32(gamma)
    read, shot = rng.uniform((0.003, 0.004), (0.009, 0.018))
    image = image + rng.standard_normal(image.shape, np.float32) * (read + shot * np.sqrt(image)).astype(np.float32)
    return compress(image, float(rng.uniform(0.005, 0.02)))


def develop(image: Floats) -> npt.NDArray[np.uint8]:
    """[0, 1] to bytes."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def soften(image: Floats, share: float) -> Floats:
    """A three-pixel blur along both axes; `share` is the weight of each neighbour."""
    for axis in (0, 1):
        image = image * np.float32(1 - 2 * share) + np.float32(share) * (
            _moved(image, 1, axis) + _moved(image, -1, axis)
        )
    return image


def _moved(image: Floats, step: int, axis: int) -> Floats:
    """Shifted by one pixel, the border repeated."""
    order = np.clip(np.arange(image.shape[axis]) + step, 0, image.shape[axis] - 1)
    return np.take(image, order, axis)


def vignette(size: tuple[int, int], depth: float) -> Floats:
    """Brightness (H, W, 1) that falls by `depth` towards the corners."""
    row, col = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    fall: Floats = 1 - np.float32(depth / 2) * (row[:, None] ** 2 + col[None] ** 2)
    return fall[..., None]


def compress(image: Floats, step: float) -> Floats:
    """JPEG's loss: cosine coefficients of 8x8 blocks, rounded to multiples that grow with frequency."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge") @ _YCC.T
    blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8, 3).transpose(4, 0, 2, 1, 3)
    quantum = np.float32(step) * (1 + _SPECTRUM[:, None] + _SPECTRUM[None]).astype(np.float32)
    quanta = quantum * np.array([1, 2, 2], np.float32)[:, None, None, None, None]
    blocks = np.rint(_DCT @ blocks @ _DCT.T / quanta) * quanta
    decoded = (_DCT.T @ blocks @ _DCT).transpose(1, 3, 2, 4, 0).reshape(padded.shape)
    restored: Floats = (decoded @ np.linalg.inv(_YCC).T.astype(np.float32))[:height, :width]
    return restored
