"""What a camera does to light: exposure, cast, blur, noise and compression."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from streets.shapes import Floats

Bytes = npt.NDArray[np.uint8]

_FILM = 1 << 20
"""Length of the film, samples."""


def virtual(light: Floats, rng: np.random.Generator) -> Bytes:
    """A game's camera, only slightly soft: the picture (H, W, 3) of light (3, H, W) in [0, 1]."""
    return soften(develop(light), 0.12)


def real(light: Floats, rng: np.random.Generator) -> Bytes:
    """A cheap camera behind a windscreen: every picture has its own faults. Overwrites `light` (3, H, W)."""
    return from_jpeg(real_jpeg(light, rng))


def real_jpeg(light: Floats, rng: np.random.Generator) -> bytes:
    """The file that the camera of `real` stores."""
    gains = np.exp(np.array([0.07, 0.05, 0.01]) + 0.03 * rng.standard_normal(3) + 0.1 * rng.standard_normal())
    light *= gains.astype(np.float32)[:, None, None]
    light *= vignette(light.shape[1:], rng.uniform(0.05, 0.3))
    image = soften(develop(light), rng.uniform(0.08, 0.3))
    if rng.random() < 0.15:
        image = soften(image, 0.33)
    low, gamma = rng.uniform(0.0, 0.06), rng.uniform(0.8, 1.15)
    tones = low + (1 - low) * np.linspace(0, 1, 256) ** gamma
    image = _bytes(cv2.LUT(image, (255 * tones + 0.5).astype(np.uint8)))
    image = noisy(image, rng.uniform(0.003, 0.009), rng.uniform(0.004, 0.018), rng)
    return to_jpeg(image, int(rng.integers(55, 93)))


def develop(light: Floats) -> Bytes:
    """Light (3, H, W) from 0 upwards as bytes (H, W, 3); what is above 1 is white."""
    return _bytes(cv2.convertScaleAbs(cv2.merge(tuple(light)), alpha=255))


def soften(image: Bytes, share: float) -> Bytes:
    """A three-pixel blur along both axes; `share` is the weight of each neighbour."""
    kernel = np.array([share, 1 - 2 * share, share], np.float32)
    return _bytes(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE))


def vignette(size: tuple[int, ...], depth: float) -> Floats:
    """Brightness (H, W) that falls by `depth` towards the corners."""
    row, col = (np.arange(1 - side, side, 2, dtype=np.float32) / np.float32(side - 1) for side in size)
    fall: Floats = (1 - np.float32(depth / 2) * row**2)[:, None] - np.float32(depth / 2) * col**2
    return fall


def noisy(image: Bytes, read: float, shot: float, rng: np.random.Generator) -> Bytes:
    """An image after a sensor's noise: its deviation is `read` + `shot` * sqrt(brightness), brightness in [0, 1]."""
    deviation = 255 * (read + shot * np.sqrt(np.linspace(0, 1, 256)))
    start = int(rng.integers(_FILM // 2))
    grain = _film()[start : start + image.size]
    if grain.size < image.size:
        grain = np.resize(_film(), image.size)
    noise = np.asarray(cv2.LUT(image, deviation.astype(np.float32)), np.float32)
    noise *= grain.reshape(image.shape)
    return _bytes(cv2.add(image, noise, dtype=cv2.CV_8U))


@cache
def _film() -> Floats:
    """Noise of unit variance, drawn once: pictures take stretches of it, which start anywhere."""
    return np.random.default_rng(3).standard_normal(_FILM).astype(np.float32)


def compress(image: Bytes, quality: int) -> Bytes:
    """What JPEG leaves of an image (H, W, 3) in red, green and blue."""
    return from_jpeg(to_jpeg(image, quality))


def to_jpeg(image: Bytes, quality: int) -> bytes:
    """An RGB image (H, W, 3) as a JPEG file."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return bytes(encoded)


def from_jpeg(encoded: bytes) -> Bytes:
    """The RGB image (H, W, 3) of a JPEG file."""
    return _bytes(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB))


def _bytes(image: object) -> Bytes:
    """OpenCV's arrays by a more exact name."""
    return np.asarray(image, np.uint8)
