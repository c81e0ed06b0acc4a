"""Silhouettes of the demo's objects: outlines of their parts on an upright plane, metres.

Both domains share these shapes; what tells their pictures apart is in `looks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streets.dice import Dice

Floats = npt.NDArray[np.float32]
Points = list[float]
"""Corners of a polygon: u, v, u, v, ..."""
Shape = list[tuple[int, list[Points]]]
"""Parts, and the outlines of each: `u` across, `v` above the ground. Inside an even number of one part's outlines is
outside (a hole); a later part covers the earlier."""

BODY, SECOND, GLASS, DARK, SKIN, LAMP, MARK, BASE = range(8)
"""Parts that materials tell apart: main surface, second colour, panes, tyres and gaps, skin, lights, markings; and the
ground floor, which is of the main surface's stuff."""

_CIRCLE = [(math.cos(math.tau * i / 10), math.sin(math.tau * i / 10)) for i in range(10)]


@dataclass(frozen=True)
class Vehicle:
    """A box whose end and side are shapes; the end's `u` is centred, the side's runs along its length, metres."""

    width: float
    length: float
    height: float
    end: Shape
    side: Shape


def box(left: float, right: float, low: float, high: float) -> Points:
    """An upright rectangle."""
    return [left, low, right, low, right, high, left, high]


def disc(u: float, v: float, radius: float, stretch: float = 1.0) -> Points:
    """An ellipse, `stretch` times as high as wide."""
    rise = radius * stretch
    return [x for cos, sin in _CIRCLE for x in (u + radius * cos, v + rise * sin)]


def slant(low: float, v_low: float, high: float, v_high: float, half: float) -> Points:
    """A leaning band, `half` metres to either side of the line from (low, v_low) to (high, v_high)."""
    return [low - half, v_low, low + half, v_low, high + half, v_high, high - half, v_high]


def taper(v_low: float, half_low: float, v_high: float, half_high: float) -> Points:
    """A symmetric trapezoid between two heights."""
    return [-half_low, v_low, half_low, v_low, half_high, v_high, -half_high, v_high]


def limb(u: float, v: float, end_u: float, end_v: float, thick: float) -> Points:
    """A bar with pointed ends, `thick` metres to either side of a line."""
    du, dv = end_u - u, end_v - v
    scale = thick / math.hypot(du, dv)
    across, along = -dv * scale, du * scale  # the normal; turned by a quarter it prolongs the ends
    return [
        u + across, v + along, u - along, v + across, u - across, v - along,
        end_u - across, end_v - along, end_u + along, end_v - across, end_u + across, end_v + along,
    ]  # fmt: skip


def turned(points: Points) -> Points:
    """An outline's mirror image."""
    image = points.copy()
    image[::2] = [-u for u in points[::2]]
    return image


def both(points: Points) -> list[Points]:
    """An outline and its mirror image."""
    return [points, turned(points)]


def mirrored(shape: Shape) -> Shape:
    """A shape turned to the other side."""
    return [(part, [turned(points) for points in outlines]) for part, outlines in shape]


def person(dice: Dice) -> Shape:
    """Someone who stands or walks."""
    height, gait, swing = dice.uniform(1.45, 1.95), dice.uniform(0, 0.3), dice.uniform(0, 0.3)
    build, skirt = dice.uniform(0.85, 1.2), dice.chance(0.25)
    hip, hand, shoulder = 0.48 * height, 0.45 * height, 0.84 * height
    chest, foot, thick = build * (0.13 + 0.09 * (shoulder - hip)), 0.045 + gait * hip, 0.065 * build
    legs = [-foot - thick, 0, thick - foot, 0, 0, 0.8 * hip, foot - thick, 0, foot + thick, 0, 0.11, hip, -0.11, hip]
    return [
        (SECOND, [legs]),
        *([(BODY, [taper(hip - 0.25, 0.2 * build, hip, 0.13 * build)])] if skirt else []),
        (BODY, [taper(hip, 0.13 * build, shoulder, chest)]),
        (BODY, both(slant(0.21 * build + swing * (shoulder - hand), hand, 0.21 * build, shoulder, 0.05))),
        (SKIN, [disc(0, 0.92 * height, 0.105, 1.25)]),
    ]


def rider_along(dice: Dice) -> Shape:
    """A cyclist who rides towards or away from the camera."""
    build = dice.uniform(0.9, 1.2)
    return [
        (DARK, [box(-0.04, 0.04, 0, 0.7), box(-0.32, 0.32, 0.98, 1.05)]),
        (SECOND, both(box(0.05, 0.19, 0.3, 0.95))),
        (BODY, [taper(0.85, 0.12 * build, 1.5, 0.2 * build)]),
        (BODY, both(box(0.22, 0.32, 1.0, 1.4))),
        (SKIN, [disc(0, 1.62, 0.11, 1.2)]),
    ]


def rider_across(dice: Dice) -> Shape:
    """A cyclist seen from the side."""
    pedal = dice.uniform(0.2, 0.45)
    shape = [
        (DARK, [disc(x, 0.34, radius) for x in (-0.52, 0.52) for radius in (0.35, 0.27)]),
        (DARK, [limb(-0.52, 0.34, -0.1, 0.85, 0.03), limb(0.4, 1.05, 0.52, 0.34, 0.03)]),
        (DARK, [limb(-0.1, 0.8, 0.4, 0.85, 0.03)]),
        (DARK, [limb(0.0, 0.34, 0.4, 0.85, 0.03)]),
        (SECOND, [limb(-0.15, 0.95, 0.18, 0.65, 0.09)]),
        (SECOND, [limb(0.18, 0.65, 0.05, pedal, 0.07)]),
        (BODY, [limb(-0.15, 1.0, 0.12, 1.4, 0.15)]),
        (BODY, [limb(0.14, 1.36, 0.42, 1.05, 0.055)]),
        (SKIN, [disc(0.22, 1.66, 0.12)]),
    ]
    return mirrored(shape) if dice.chance(0.5) else shape


def car(dice: Dice) -> Vehicle:
    """A saloon, estate or hatchback."""
    width, length, height = dice.uniform(1.65, 1.9), dice.uniform(3.7, 4.8), dice.uniform(1.4, 1.75)
    return Vehicle(width, length, height, _car_end(width, height), _car_side(dice, length, height))


def _car_end(width: float, height: float) -> Shape:
    half, belt, roof = width / 2, 0.58 * height, 0.36 * width
    tyre, middle = 0.4 * width, 0.5 * height
    return [
        (DARK, both(box(tyre - 0.1, tyre + 0.1, 0, 0.35))),
        (BODY, [[-half, 0.2, half, 0.2, half, belt, roof, height, -roof, height, -half, belt]]),
        (GLASS, [taper(belt + 0.05, half - 0.14, height - 0.12, roof - 0.08)]),
        (LAMP, both(box(tyre - 0.14, half, middle - 0.09, middle + 0.09))),
        (MARK, [box(-0.24, 0.24, 0.34, 0.45)]),
    ]


def _car_side(dice: Dice, length: float, height: float) -> Shape:
    belt, tail, nose = 0.58 * height, dice.uniform(0, 0.18) * length, dice.uniform(0.66, 0.78) * length
    lean, low, high = 0.1 * length, 0.58 * height + 0.05, height - 0.12
    body = [0, 0.22, length, 0.22, length, belt, nose, belt, nose - 1.8 * lean, height, tail + lean, height]
    rear, front, post = tail + 0.5 * lean, nose - 0.6 * lean, 0.42 * length
    panes = [
        [rear, low, post - 0.08, low, post - 0.08, high, rear + 0.8 * lean, high],
        [post + 0.08, low, front, low, front - 1.1 * lean, high, post + 0.08, high],
    ]
    return [
        (BODY, [[*body, tail, belt, 0, belt]]),
        (GLASS, panes),
        (DARK, [disc(place * length, 0.32, 0.33) for place in (0.19, 0.8)]),
    ]


def truck(dice: Dice) -> Vehicle:
    """A lorry with a closed box."""
    width, length, height = dice.uniform(2.2, 2.5), dice.uniform(6, 10), dice.uniform(2.7, 3.7)
    half = width / 2
    end = [
        (DARK, both(box(0.36 * width - 0.24, 0.36 * width + 0.24, 0, 0.8))),
        (BODY, [box(-half, half, 0.75, height)]),
        (SECOND, both(box(0.04, 0.41 * width, 0.75, height - 0.16))),
        (LAMP, both(box(0.4 * width - 0.15, half, 0.7, 0.9))),
    ]
    side = [
        (DARK, [box(0, length, 0.55, 0.76)]),
        (SECOND, [box(0, 0.76 * length, 0.75, height)]),
        (BODY, [box(0.78 * length, length, 0.45, 0.8 * height)]),
        (GLASS, [box(0.84 * length, 0.97 * length, 0.5 * height, 0.74 * height)]),
        (DARK, [disc(place * length, 0.45, 0.46) for place in (0.15, 0.3, 0.88)]),
    ]
    return Vehicle(width, length, height, end, side)


def bus(dice: Dice) -> Vehicle:
    """A city bus."""
    width, length, height = 2.5, dice.uniform(9, 13), dice.uniform(2.9, 3.3)
    end = [
        (DARK, both(box(0.24 * width, 0.5 * width, 0, 0.4))),
        (BODY, [box(-width / 2, width / 2, 0.3, height)]),
        (GLASS, [box(-0.42 * width, 0.42 * width, 0.45 * height, 0.8 * height)]),
        (MARK, [box(-0.3 * width, 0.3 * width, 0.84 * height, 0.94 * height)]),
        (LAMP, both(box(0.4 * width - 0.14, 0.4 * width + 0.14, 0.78, 1.02))),
    ]
    pane, low, high = length / 8, 0.45 * height, 0.82 * height
    panes = [box((i + 0.12) * pane, (i + 0.93) * pane, low, high) for i in range(8)]
    side = [
        (BODY, [box(0, length, 0.3, height)]),
        (SECOND, [box(0, length, 0.35, 0.6)]),
        (GLASS, panes),
        (DARK, [disc(place * length, 0.45, 0.46) for place in (0.2, 0.8)]),
    ]
    return Vehicle(width, length, height, end, side)
