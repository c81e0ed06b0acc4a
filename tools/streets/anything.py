"""Pictures of nothing in particular: random shapes of random stuff in random light, with the objects' ids.

The training distribution of the demo's foundation encoder. It shares no layout, colour or class with the two
street domains, and has no classes at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from streets import lens
from streets.shapes import Floats
from streets.textures import TILE, smooth_noise

Mask = npt.NDArray[np.bool_]
Outline = Callable[[Floats, Floats], Mask]
"""Which points (x (1, w), y (h, 1)) of [-1, 1] squared belong to a shape."""

Pair = npt.NDArray[np.float64]
"""x and y, pixels."""

PATTERNS = 48


def draw_anything(
    size: tuple[int, int], rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """One picture (H, W, 3) and the id of the object at each pixel (H, W)."""
    stuff = np.zeros(size, np.int32)  # index of the material at each pixel
    owners = _divide(stuff, rng)
    things = len(owners)
    for _ in range(int(rng.integers(4, 26))):
        _place(stuff, owners, things, rng)
        things += 1
    return _shine(_cover(stuff, len(owners), rng), rng), np.asarray(owners, np.int32)[stuff]


def _divide(stuff: npt.NDArray[np.int32], rng: np.random.Generator) -> list[int]:
    """Cut the background along waving lines; returns the owner of each of its materials."""
    height, width = stuff.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32)[None], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    pieces = int(rng.integers(1, 6))
    for piece in range(1, pieces):
        angle, offset, waves, phase = rng.uniform((0, -0.8, 1, 0), (6.28, 0.8, 8, 6.28))
        bend = float(rng.choice((0, 0, rng.uniform(0, 0.2))))
        across, along = np.cos(angle) * x + np.sin(angle) * y, np.sin(angle) * x - np.cos(angle) * y
        stuff[across + bend * np.sin(waves * along + phase) > offset] = piece
    return list(range(pieces))


def _place(stuff: npt.NDArray[np.int32], owners: list[int], thing: int, rng: np.random.Generator) -> None:
    """One object of one to five parts, anywhere, partly outside perhaps."""
    height, width = stuff.shape
    half = float(np.exp(rng.uniform(np.log(3), np.log(0.45 * height))))
    squeeze = float(np.exp(rng.normal(0, 0.5)))
    centre, halves = rng.uniform(0, (width, height)), np.array([half * squeeze, half / squeeze])
    _fill(stuff, _outline(rng), centre, halves, len(owners))
    owners.append(thing)
    if half < 6 or rng.random() < 0.4:
        return
    inside = stuff == len(owners) - 1
    for _ in range(int(rng.integers(1, 5))):
        part = np.zeros_like(inside, np.int32)
        _fill(part, _outline(rng), centre + rng.uniform(-0.8, 0.8, 2) * halves, halves * rng.uniform(0.1, 0.6, 2), 1)
        stuff[inside & (part == 1)] = len(owners)
        owners.append(thing)


def _fill(canvas: npt.NDArray[np.int32], outline: Outline, centre: Pair, halves: Pair, value: int) -> None:
    """Paint `value` where an outline, scaled by `halves` (x, y) pixels about `centre`, covers the canvas."""
    (left, top), (right, low) = (centre - halves).astype(int), (centre + halves).astype(int) + 1
    rows, cols = slice(max(0, top), max(0, low)), slice(max(0, left), max(0, right))
    window = canvas[rows, cols]
    y = (np.arange(rows.start, rows.start + window.shape[0], dtype=np.float32)[:, None] - centre[1]) / halves[1]
    x = (np.arange(cols.start, cols.start + window.shape[1], dtype=np.float32)[None] - centre[0]) / halves[0]
    window[outline(x, y)] = value


def _outline(rng: np.random.Generator) -> Outline:
    kinds = (_superellipse, _polygon, _blob, _bar, _ring, _bars)
    return kinds[int(rng.choice(len(kinds), p=(0.25, 0.25, 0.2, 0.15, 0.07, 0.08)))](rng)


def _cycle(x: Floats, period: float) -> Floats:
    """`x` modulo `period`; several times faster than `np.mod`."""
    rest: Floats = x - np.floor(x * np.float32(1 / period)) * np.float32(period)
    return rest


def _turn(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _superellipse(rng: np.random.Generator) -> Outline:
    power = float(rng.choice((1, 2, 2, 4, 20)))
    return lambda x, y: np.abs(x) ** power + np.abs(y) ** power < 0.95


def _polygon(rng: np.random.Generator) -> Outline:
    """Convex: what a few half-planes have in common."""
    sides = int(rng.integers(3, 7))
    angles = np.arange(sides) * 6.283 / sides + rng.uniform(0, 6.28) + rng.uniform(-0.3, 0.3, sides)
    bounds = rng.uniform(0.4, 0.9, sides)

    def outline(x: Floats, y: Floats) -> Mask:
        inside = np.ones(np.broadcast_shapes(x.shape, y.shape), np.bool_)
        for angle, bound in zip(angles, bounds, strict=True):
            inside &= np.cos(angle) * x + np.sin(angle) * y < bound
        return inside

    return outline


def _blob(rng: np.random.Generator) -> Outline:
    """A disc whose radius waves with the angle."""
    waves, phases, heights = rng.integers(1, 8, 3), rng.uniform(0, 6.28, 3), rng.uniform(0, 0.15, 3)

    def outline(x: Floats, y: Floats) -> Mask:
        angle = np.arctan2(y, x)
        radius = 0.7 + sum(h * np.sin(w * angle + p) for w, p, h in zip(waves, phases, heights, strict=True))
        inside: Mask = x * x + y * y < radius * radius
        return inside

    return outline


def _bar(rng: np.random.Generator) -> Outline:
    """Long and thin; half of them upright or level."""
    angle, thick = (
        float(rng.choice((0, 1.571, rng.uniform(0, 3.14), rng.uniform(0, 3.14)))),
        float(rng.uniform(0.05, 0.3)),
    )

    def outline(x: Floats, y: Floats) -> Mask:
        along, across = _turn(x, y, angle)
        inside: Mask = (np.abs(across) < thick) & (np.abs(along) < 1)
        return inside

    return outline


def _ring(rng: np.random.Generator) -> Outline:
    hole = float(rng.uniform(0.3, 0.85))

    def outline(x: Floats, y: Floats) -> Mask:
        radius = x * x + y * y
        return (radius < 1) & (radius > hole * hole)

    return outline


def _bars(rng: np.random.Generator) -> Outline:
    """Parallel bars joined by a beam: one object."""
    pitch, share, beam = (float(v) for v in rng.uniform((0.25, 0.3, -0.9), (0.7, 0.6, 0.9)))
    upright = bool(rng.random() < 0.5)

    def outline(x: Floats, y: Floats) -> Mask:
        across, along = (x, y) if upright else (y, x)
        inside: Mask = (_cycle(across, pitch) < share * pitch) | (np.abs(along - beam) < 0.12)
        return inside

    return outline


@cache
def _patterns() -> Floats:
    """(PATTERNS, TILE, TILE) in about [-1, 1]: none, noises, stripes, checks and dots."""
    rng = np.random.default_rng(11)
    row, col = np.mgrid[:TILE, :TILE] * (2 * np.pi / TILE)
    patterns = [np.zeros((TILE, TILE))] * 8
    patterns += [np.tanh(smooth_noise(rng, slope) / 1.5) for slope in np.linspace(0.1, 2.2, 16)]
    for number in range(PATTERNS - len(patterns)):
        a, b = rng.integers(1, 7, 2)
        wave = (np.sin(a * col), np.sin(a * col) * np.sin(b * row), np.maximum(np.sin(a * col), np.sin(b * row)))[
            number % 3
        ]
        patterns.append(np.tanh(float(rng.choice((1, 8))) * wave))
    return np.stack(patterns).astype(np.float32)


def _cover(stuff: npt.NDArray[np.int32], count: int, rng: np.random.Generator) -> Floats:
    """Colour, pattern and a slow shading for each of `count` materials; (H, W, 3)."""
    gray, tint = (
        rng.random((count, 1), np.float32),
        rng.normal(0, rng.uniform(0.05, 0.3), (count, 3)).astype(np.float32),
    )
    other = rng.normal(0, rng.uniform(0.02, 0.2), (count, 3)).astype(np.float32)
    angle, scale = rng.uniform(0, 6.28, count), np.exp(rng.uniform(np.log(0.3), np.log(4), count))
    turn = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32) * scale[:, None].astype(np.float32)
    pattern, slope = rng.integers(PATTERNS, size=count), rng.normal(0, 0.15, (count, 2)).astype(np.float32)
    y, x = (np.arange(side, dtype=np.float32) for side in stuff.shape)
    y = y[:, None]
    cos, sin = turn[stuff, 0], turn[stuff, 1]
    across, down = ((cos * x + sin * y).astype(np.int32) & 63, (cos * y - sin * x).astype(np.int32) & 63)
    texture = _patterns()[pattern[stuff], down, across][..., None]
    shading = slope[stuff, 0] * (x / x[-1] - 0.5) + slope[stuff, 1] * (y / y[-1] - 0.5)
    cover: Floats = (gray + tint)[stuff] + other[stuff] * texture + shading[..., None]
    return cover


def _shine(image: Floats, rng: np.random.Generator) -> lens.Bytes:
    """Any exposure, cast, fog, softness, noise and compression."""
    height, width = image.shape[:2]
    gains = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.12, 3)).astype(np.float32)
    angle, strength = rng.uniform(0, 6.28), rng.uniform(0, 0.5)
    slope = np.cos(angle) * np.linspace(-1, 1, width)[None] + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    image = np.clip(image, 0, 1) * gains * (1 - strength / 2 + strength / 2 * slope[..., None]).astype(np.float32)
    veil = np.float32(rng.choice((0, rng.uniform(0, 0.6))))
    image = image + (rng.random(3, np.float32) - image) * veil
    image = np.clip(image, 0, 1).transpose(2, 0, 1)
    softened = lens.soften(lens.develop(image), float(rng.uniform(0, 0.33)))
    noised = lens.noisy(softened, float(rng.uniform(0, 0.06)), 0, rng)
    return lens.compress(noised, int(rng.integers(30, 95))) if rng.random() < 0.5 else noised
