"""Silhouettes of what stands beside the demo's road: trees, hedges, fences, poles, signs and facades."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streets.dice import Dice
from streets.patterns import BARS, DOORS, PILLARS, SHOPS, STOREYS, VARIANTS, Pattern
from streets.shapes import BASE, BODY, DARK, LAMP, MARK, SECOND, Points, Shape, box, disc, mirrored

_LEAVES = [(math.cos(math.tau * i / 24), math.sin(math.tau * i / 24)) for i in range(24)]


def tree(dice: Dice) -> Shape:
    """A ragged crown, with holes, on a trunk."""
    half, height, trunk = dice.uniform(1.25, 3), dice.uniform(4.5, 10), dice.uniform(0.12, 0.25)
    low = dice.uniform(0.25, 0.42) * height
    middle, rise = (low + height) / 2, (height - low) / 2
    crown: Points = []
    for cos, sin in _LEAVES:
        radius = 0.72 + 0.28 * dice.random()
        crown += (radius * half * cos, middle + radius * rise * sin)
    holes = [
        disc(side * dice.uniform(0.15, 0.45) * half, middle + dice.uniform(-0.4, 0.4) * rise, dice.uniform(0.1, 0.3))
        for side in dice.choice(((), (-1,), (1,), (-1, 1)))
    ]
    return [(SECOND, [box(-trunk, trunk, 0, middle)]), (BODY, [crown, *holes])]


def bush(dice: Dice) -> Shape:
    """A low ragged dome."""
    half, height = dice.uniform(0.5, 1.5), dice.uniform(0.6, 1.6)
    dome: Points = []
    for cos, sin in _LEAVES[:13]:
        radius = 0.8 + 0.2 * dice.random()
        dome += (radius * half * cos, radius * height * sin)
    return [(BODY, [dome])]


def hedge(dice: Dice, height: float, length: float) -> Shape:
    """A long row of leaves whose top is uneven."""
    steps = max(3, int(length / 0.8))
    top = [x for i in range(steps, -1, -1) for x in (length * i / steps, height * (0.72 + 0.28 * dice.random()))]
    return [(BODY, [[0, 0, length, 0, *top]])]


@dataclass(frozen=True)
class Wall:
    """A surface of any length, and what repeats across it."""

    height: float
    pattern: Pattern
    bands: tuple[tuple[float, float], ...]
    """Heights between which it has the second colour."""
    base: float = 0.0
    """Height of the ground floor."""

    def shape(self, length: float) -> Shape:
        """`length` metres of it, from u = 0."""
        shape = [(BODY, [box(0, length, 0, self.height)]), (SECOND, [box(0, length, *band) for band in self.bands])]
        return [*shape, (BASE, [box(0, length, 0, self.base)])] if self.base else shape


def railing(dice: Dice, height: float) -> Wall:
    """A fence of upright bars between rails; its gaps are part of it."""
    pattern = Pattern(BARS + dice.randrange(VARIANTS), pitch=8 * dice.uniform(0.25, 0.5))
    return Wall(height, pattern, ((0.09, 0.21), (height - 0.19, height - 0.05)))


def garden_wall(dice: Dice, height: float) -> Wall:
    """Panels between pillars, with a coping."""
    pattern = Pattern(PILLARS + dice.randrange(VARIANTS), pitch=dice.uniform(1.5, 3))
    return Wall(height, pattern, ((height - 0.18, height),))


def facade(dice: Dice, height: float) -> Wall:
    """Rows of windows above a ground floor of doors or shops, below a cornice."""
    cornice, ground = 0.6, SHOPS if dice.chance(0.5) else DOORS
    floor = (height - cornice) / round(height / dice.uniform(2.7, 3.6))
    pattern = Pattern(
        STOREYS + dice.randrange(VARIANTS), ground + dice.randrange(VARIANTS), dice.uniform(1.6, 4), rise=floor
    )
    return Wall(height, pattern, ((floor, floor + 0.2), (height - cornice, height)), floor)


def lamp_post(dice: Dice) -> Shape:
    """A pole, with an arm and lamp or bare."""
    height = dice.uniform(4, 8)
    post = (BODY, [box(-0.06, 0.06, 0, height)])
    foot = (BODY, [box(-0.11, 0.11, 0, 1)])
    if dice.chance(1 / 3):
        return [post, foot]
    arm, lamp = box(0, 1.4, height - 0.18, height), box(1.1, 1.7, height - 0.26, height - 0.1)
    shape = [post, foot, (BODY, [arm]), (SECOND, [lamp])]
    return mirrored(shape) if dice.chance(0.5) else shape


def sign_post(height: float) -> Shape:
    """The thin pole below a sign."""
    return [(BODY, [box(-0.055, 0.055, 0, height)])]


def sign(dice: Dice, base: float) -> Shape:
    """A disc, triangle or plate with a rim, from `base` upwards."""
    size, kind = dice.uniform(0.65, 1.0), dice.randrange(3)
    half, top = size / 2, base + size
    if kind == 0:
        outer, inner = disc(0, base + half, half), disc(0, base + half, 0.66 * half)
    elif kind == 1:
        outer = [-half, base, half, base, 0, top]
        inner = [0.26 - half, base + 0.1, half - 0.26, base + 0.1, 0, top - 0.28]
    else:
        outer, inner = box(-half, half, base, top), box(0.1 - half, half - 0.1, base + 0.1, top - 0.1)
    return [(BODY, [outer]), (MARK, [inner])]


def traffic_light(dice: Dice, base: float) -> Shape:
    """A dark upright case with one of its three lamps lit."""
    lit = base + dice.choice((0.2, 0.55, 0.9))
    return [(DARK, [box(-0.2, 0.2, base, base + 1.1)]), (LAMP, [disc(0, lit, 0.13)])]
