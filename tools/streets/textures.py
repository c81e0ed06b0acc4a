"""Patterns that repeat, for the demo's materials."""

from __future__ import annotations

from functools import cache

import numpy as np

from streets.shapes import Floats

TILE = 64
"""Texels on a texture's side; a power of two."""

PLAIN, SPECKLE, CLOUDY, TILES, BRICKS, LEAVES, STREAKS = range(7)


@cache
def textures() -> Floats:
    """Patterns (7, TILE, TILE) that repeat, in about [-1, 1], in the order of their names above."""
    rng = np.random.default_rng(7)
    row, col = np.mgrid[:TILE, :TILE]
    plain = np.zeros((TILE, TILE))
    tiles = np.where((row % 16 < 2) | (col % 16 < 2), -1.0, 0.3)
    shifted = (col + (row // 8 % 2) * 8) % 16
    bricks = np.where((row % 8 < 2) | (shifted < 2), -1.0, 0.3) + 0.2 * rng.normal(size=(TILE, TILE))
    streaks = np.broadcast_to(rng.normal(size=TILE), (TILE, TILE)) * 0.5 + 0.25 * rng.normal(size=(TILE, TILE))
    leaves = np.tanh(2 * smooth_noise(rng, 0.8))
    speckle = np.clip(rng.normal(size=(TILE, TILE)), -2, 2) / 2
    return np.stack([plain, speckle, smooth_noise(rng, 1.5) / 2, tiles, bricks, leaves, streaks]).astype(np.float32)


def smooth_noise(rng: np.random.Generator, slope: float, size: int = TILE) -> Floats:
    """Repeating noise (size, size) of unit variance whose spectrum falls as frequency ** -slope."""
    across, down = np.fft.rfftfreq(size)[None], np.fft.fftfreq(size)[:, None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * frequency**-slope, s=(size, size))
    unit: Floats = (noise / noise.std()).astype(np.float32)
    return unit
