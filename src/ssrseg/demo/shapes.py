"""Silhouettes of the demo's objects: which part of a thing covers a point of an upright plane.

A shape takes metres, `u` across (1, w) and `v` above the ground (h, 1) or (h, w), and gives parts (h, w): `NOTHING`
where the plane is empty. Both domains share these shapes; what tells their pictures apart is in `looks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Parts = npt.NDArray[np.int8]
Shape = Callable[[Floats, Floats], Parts]
Point = tuple[float, float]

NOTHING = -1
BODY, SECOND, GLASS, DARK, SKIN, LAMP, MARK = range(7)
"""Parts that materials tell apart: main surface, second colour, panes, tyres and gaps, skin, lights, markings."""


@dataclass(frozen=True)
class Sprite:
    """A shape that stands upright: `u` in [-width/2, width/2], `v` in [0, height], metres."""

    width: float
    height: float
    parts: Shape


@dataclass(frozen=True)
class Vehicle:
    """A box whose end and side are shapes; the side's `u` runs along its length, metres."""

    width: float
    length: float
    height: float
    end: Shape
    side: Shape


def stack(*layers: tuple[int, Mask]) -> Parts:
    """Parts laid over each other, the last on top."""
    parts = np.full(np.broadcast_shapes(*(covered.shape for _, covered in layers)), NOTHING, np.int8)
    for part, covered in layers:
        np.copyto(parts, np.int8(part), where=covered)
    return parts


def box(u: Floats, v: Floats, left: float, right: float, low: float, high: float) -> Mask:
    """Points of an upright rectangle."""
    inside: Mask = (u >= left) & (u < right) & (v >= low) & (v < high)
    return inside


def disc(u: Floats, v: Floats, centre: Point, radius: float, stretch: float = 1.0) -> Mask:
    """Points of an ellipse, `stretch` times as high as wide."""
    inside: Mask = (u - centre[0]) ** 2 + ((v - centre[1]) / stretch) ** 2 < radius * radius
    return inside


def cycle(x: Floats, period: float) -> Floats:
    """`x` modulo `period`; several times faster than `np.mod`."""
    rest: Floats = x - np.floor(x * np.float32(1 / period)) * np.float32(period)
    return rest


def limb(u: Floats, v: Floats, start: Point, end: Point, thick: float) -> Mask:
    """Points closer than `thick` to a segment."""
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0, 1)
    near: Mask = (u - start[0] - along * du) ** 2 + (v - start[1] - along * dv) ** 2 < thick * thick
    return near


def lumps(rng: np.random.Generator, size: float) -> Callable[[Floats, Floats], Floats]:
    """A smooth random bump map in about [-1, 1] with bumps of `size` metres."""
    (a, b, c, d), (p, q, r, s) = rng.uniform(0.6, 1.6, 4) * 3 / size, rng.uniform(0, 6.28, 4)

    def lumps(u: Floats, v: Floats) -> Floats:
        bumps: Floats = 0.6 * np.sin(a * u + p) * np.sin(b * v + q) + 0.4 * np.sin(2.3 * c * u + r) * np.sin(
            2.3 * d * v + s
        )
        return bumps

    return lumps


def person(rng: np.random.Generator) -> Sprite:
    """Someone who stands or walks."""
    height = float(rng.uniform(1.45, 1.95))
    gait, swing, build = (float(x) for x in rng.uniform((0, 0, 0.85), (0.3, 0.3, 1.2)))
    skirt = bool(rng.random() < 0.25)
    hip, shoulder, head = 0.48 * height, 0.84 * height, 0.92 * height

    def parts(u: Floats, v: Floats) -> Parts:
        legs = (np.abs(np.abs(u) - 0.045 - gait * (hip - v)) < 0.065 * build) & (v < hip)
        torso = (np.abs(u) < build * (0.13 + 0.09 * (v - hip))) & (v >= hip - 0.25 * skirt) & (v < shoulder)
        arms = (np.abs(np.abs(u) - 0.21 * build - swing * (shoulder - v)) < 0.05) & (v > 0.45 * height) & (v < shoulder)
        return stack((SECOND, legs), (BODY, torso | arms), (SKIN, disc(u, v, (0, head), 0.105, 1.25)))

    return Sprite(1.0, height + 0.02, parts)


def rider_along(rng: np.random.Generator) -> Sprite:
    """A cyclist who rides towards or away from the camera."""
    build = float(rng.uniform(0.9, 1.2))

    def parts(u: Floats, v: Floats) -> Parts:
        wheel, bar = box(u, v, -0.04, 0.04, 0, 0.7), box(u, v, -0.32, 0.32, 0.98, 1.05)
        legs = (np.abs(np.abs(u) - 0.12) < 0.07) & (v > 0.3) & (v < 0.95)
        torso = (np.abs(u) < build * (0.12 + 0.12 * (v - 0.85))) & (v >= 0.85) & (v < 1.5)
        arms = (np.abs(np.abs(u) - 0.27) < 0.05) & (v > 1.0) & (v < 1.4)
        return stack(
            (DARK, wheel | bar), (SECOND, legs), (BODY, torso | arms), (SKIN, disc(u, v, (0, 1.62), 0.11, 1.2))
        )

    return Sprite(0.8, 1.8, parts)


def rider_across(rng: np.random.Generator) -> Sprite:
    """A cyclist seen from the side."""
    ahead, pedal = float(rng.choice((-1, 1))), float(rng.uniform(0.2, 0.45))

    def parts(u: Floats, v: Floats) -> Parts:
        u = u * np.float32(ahead)
        rims = [np.abs(np.sqrt((u - x) ** 2 + (v - 0.34) ** 2) - 0.3) < 0.05 for x in (-0.52, 0.52)]
        frame = limb(u, v, (-0.52, 0.34), (-0.1, 0.85), 0.03) | limb(u, v, (-0.1, 0.8), (0.4, 0.85), 0.03)
        frame |= limb(u, v, (0.0, 0.34), (0.4, 0.85), 0.03) | limb(u, v, (0.4, 1.05), (0.52, 0.34), 0.03)
        leg = limb(u, v, (-0.15, 0.95), (0.18, 0.65), 0.09) | limb(u, v, (0.18, 0.65), (0.05, pedal), 0.07)
        torso = limb(u, v, (-0.15, 1.0), (0.12, 1.4), 0.15) | limb(u, v, (0.14, 1.36), (0.42, 1.05), 0.055)
        return stack(
            (DARK, rims[0] | rims[1]),
            (DARK, frame),
            (SECOND, leg),
            (BODY, torso),
            (SKIN, disc(u, v, (0.22, 1.66), 0.12)),
        )

    return Sprite(1.8, 1.82, parts)


def car(rng: np.random.Generator) -> Vehicle:
    """A saloon, estate or hatchback."""
    width, length, height = (float(x) for x in rng.uniform((1.65, 3.7, 1.4), (1.9, 4.8, 1.75)))
    belt, tail, nose = 0.58 * height, float(rng.uniform(0.0, 0.18)), float(rng.uniform(0.66, 0.78))

    def end(u: Floats, v: Floats) -> Parts:
        half = width / 2 * (1 - 0.28 * np.maximum(0, (v - belt) / (height - belt)))
        body = (np.abs(u) < half) & (v > 0.2)
        glass = (np.abs(u) < half - 0.12) & (v > belt + 0.03) & (v < height - 0.12)
        tyres = (np.abs(np.abs(u) - 0.4 * width) < 0.1) & (v < 0.35)
        lamps = (np.abs(np.abs(u) - 0.4 * width) < 0.14) & (np.abs(v - 0.5 * height) < 0.09)
        plate = box(u, v, -0.24, 0.24, 0.34, 0.45)
        return stack((DARK, tyres), (BODY, body), (GLASS, glass), (LAMP, lamps), (MARK, plate))

    def side(u: Floats, v: Floats) -> Parts:
        along, rise = u / length, np.maximum(0, (v - belt) / (height - belt))
        body = (v > 0.22) & ((v < belt) | ((along > tail + 0.1 * rise) & (along < nose - 0.18 * rise)))
        glass = (v > belt + 0.05) & (v < height - 0.12) & (along > tail + 0.05 + 0.1 * rise)
        glass &= (along < nose - 0.04 - 0.18 * rise) & (np.abs(along - 0.42) > 0.02)
        wheels = disc(u, v, (0.19 * length, 0.32), 0.33) | disc(u, v, (0.8 * length, 0.32), 0.33)
        return stack((BODY, body), (GLASS, glass), (DARK, wheels))

    return Vehicle(width, length, height, end, side)


def truck(rng: np.random.Generator) -> Vehicle:
    """A lorry with a closed box."""
    width, length, height = (float(x) for x in rng.uniform((2.2, 6, 2.7), (2.5, 10, 3.7)))

    def end(u: Floats, v: Floats) -> Parts:
        cargo = (np.abs(u) < width / 2) & (v > 0.75)
        seams = (np.abs(u) < 0.04) | (np.abs(np.abs(u) - 0.46 * width) < 0.05) | (np.abs(v - height + 0.1) < 0.06)
        tyres = (np.abs(np.abs(u) - 0.36 * width) < 0.24) & (v < 0.8)
        lamps = (np.abs(np.abs(u) - 0.4 * width) < 0.15) & (np.abs(v - 0.8) < 0.1)
        return stack((DARK, tyres), (SECOND, cargo), (BODY, cargo & seams), (LAMP, lamps))

    def side(u: Floats, v: Floats) -> Parts:
        cargo, cab = box(u, v, 0, 0.76 * length, 0.75, height), box(u, v, 0.78 * length, length, 0.45, 0.8 * height)
        pane = box(u, v, 0.84 * length, 0.97 * length, 0.5 * height, 0.74 * height)
        wheels = disc(u, v, (0.15 * length, 0.45), 0.46) | disc(u, v, (0.3 * length, 0.45), 0.46)
        wheels |= disc(u, v, (0.88 * length, 0.45), 0.46)
        chassis = box(u, v, 0, length, 0.55, 0.76)
        return stack((DARK, chassis), (SECOND, cargo), (BODY, cab), (GLASS, pane), (DARK, wheels))

    return Vehicle(width, length, height, end, side)


def bus(rng: np.random.Generator) -> Vehicle:
    """A city bus."""
    width, length, height = 2.5, float(rng.uniform(9, 13)), float(rng.uniform(2.9, 3.3))

    def end(u: Floats, v: Floats) -> Parts:
        body = (np.abs(u) < width / 2) & (v > 0.3)
        glass = (np.abs(u) < 0.42 * width) & (v > 0.45 * height) & (v < 0.8 * height)
        sign = (np.abs(u) < 0.3 * width) & (v > 0.84 * height) & (v < 0.94 * height)
        lamps = (np.abs(np.abs(u) - 0.4 * width) < 0.14) & (np.abs(v - 0.9) < 0.12)
        tyres = (np.abs(np.abs(u) - 0.4 * width) < 0.16) & (v < 0.4)
        return stack((DARK, tyres), (BODY, body), (GLASS, glass), (MARK, sign), (LAMP, lamps))

    def side(u: Floats, v: Floats) -> Parts:
        body, band = (u >= 0) & (u < length) & (v > 0.3), (u >= 0) & (v > 0.35) & (v < 0.6)
        glass = (v > 0.45 * height) & (v < 0.82 * height) & (cycle(u, 1.5) > 0.2)
        wheels = disc(u, v, (0.2 * length, 0.45), 0.46) | disc(u, v, (0.8 * length, 0.45), 0.46)
        return stack((BODY, body), (SECOND, band), (GLASS, glass), (DARK, wheels))

    return Vehicle(width, length, height, end, side)
