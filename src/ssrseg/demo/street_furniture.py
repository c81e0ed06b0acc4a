"""Silhouettes of what stands beside the demo's road: trees, hedges, fences, poles, signs and facades."""

from __future__ import annotations

import numpy as np

from ssrseg.demo.shapes import (
    BODY,
    DARK,
    GLASS,
    LAMP,
    MARK,
    SECOND,
    Floats,
    Parts,
    Shape,
    Sprite,
    box,
    cycle,
    disc,
    lumps,
    stack,
)


def tree(rng: np.random.Generator) -> Sprite:
    """A lumpy crown, with holes, on a trunk."""
    width, height, trunk = (float(x) for x in rng.uniform((2.5, 4.5, 0.12), (6, 10, 0.25)))
    low = float(rng.uniform(0.25, 0.42)) * height
    bumps, slim = lumps(rng, 1.2), float(rng.uniform(1.6, 3.0))

    def parts(u: Floats, v: Floats) -> Parts:
        middle, half = (low + height) / 2, (height - low) / 2
        radius = np.abs(u / (width / 2)) ** slim + np.abs((v - middle) / half) ** 2
        bump = bumps(u, v)
        return stack(
            (SECOND, (np.abs(u) < trunk) & (v < middle)), (BODY, (radius < 0.72 + 0.28 * bump) & (bump > -0.85))
        )

    return Sprite(width, height, parts)


def bush(rng: np.random.Generator) -> Sprite:
    """A low lumpy dome."""
    width, height = (float(x) for x in rng.uniform((1, 0.6), (3, 1.6)))
    bumps = lumps(rng, 0.5)

    def parts(u: Floats, v: Floats) -> Parts:
        return stack((BODY, (u / (width / 2)) ** 2 + (v / height) ** 2 < 0.8 + 0.2 * bumps(u, v)))

    return Sprite(width, height, parts)


def hedge(rng: np.random.Generator, height: float) -> Shape:
    """A long row of leaves whose top is uneven."""
    bumps = lumps(rng, 1.5)
    return lambda u, v: stack((BODY, v + 0 * u < height * (0.85 + 0.15 * bumps(u, v))))


def railing(rng: np.random.Generator, height: float) -> Shape:
    """A fence of upright bars between posts; its gaps are part of it."""
    bar = float(rng.uniform(0.25, 0.5))

    def parts(u: Floats, v: Floats) -> Parts:
        inside = (v + 0 * u) < height
        rails = (np.abs(v - 0.15) < 0.06) | (np.abs(v - height + 0.12) < 0.07)
        bars = (cycle(u, bar) < 0.4 * bar) | (cycle(u, 2.5) < 0.16)
        return stack((DARK, inside), (BODY, inside & (bars | rails)))

    return parts


def wall(rng: np.random.Generator, height: float) -> Shape:
    """A garden wall of panels with a coping."""
    panel = float(rng.uniform(1.5, 3))

    def parts(u: Floats, v: Floats) -> Parts:
        inside = (v + 0 * u) < height
        return stack((BODY, inside), (SECOND, inside & ((v > height - 0.18) | (cycle(u, panel) < 0.2))))

    return parts


def facade(rng: np.random.Generator, height: float) -> Shape:
    """Rows of windows above a ground floor of doors or shops, below a cornice."""
    floor, pitch = (float(x) for x in rng.uniform((2.7, 1.6), (3.6, 4.0)))
    share, shop = float(rng.uniform(0.35, 0.7)), bool(rng.random() < 0.5)
    low, high = (float(x) for x in rng.uniform((0.2, 0.7), (0.35, 0.88)))

    def parts(u: Floats, v: Floats) -> Parts:
        storey, across = cycle(v, floor) / floor, cycle(u, pitch) / pitch
        inside, above = (v + 0 * u) < height, v > floor
        wide = across < share
        panes = wide & (storey > low) & (storey < high) & above & (v < height - 0.8)
        sills = (across < share + 0.08) & (storey > low - 0.08) & (storey <= low) & above
        ground = ~above & (v < 0.8 * floor) & ((v > 0.5) if shop else wide) & (cycle(u, 2 * pitch) > 0.3)
        trim = (v > height - 0.45) | (np.abs(v - floor) < 0.15)
        return stack((BODY, inside), (SECOND, inside & (trim | sills)), (GLASS, inside & (panes | ground)))

    return parts


def lamp_post(rng: np.random.Generator) -> Sprite:
    """A pole, with an arm and lamp or bare."""
    height, arm = float(rng.uniform(4, 8)), float(rng.choice((-1.4, 0, 1.4)))

    def parts(u: Floats, v: Floats) -> Parts:
        shaft = np.abs(u) < 0.06 + 0.05 * (v < 1)
        bracket = box(u, v, min(arm, 0), max(arm, 0), height - 0.18, height)
        head = box(u, v, arm - 0.3, arm + 0.3, height - 0.26, height - 0.1)
        return stack((BODY, shaft & (v < height)), (BODY, bracket), (SECOND, head))

    return Sprite(3.6, height, parts)


def sign_post(height: float) -> Sprite:
    """The thin pole below a sign."""
    return Sprite(0.3, height, lambda u, v: stack((BODY, (np.abs(u) < 0.055) & (v < height))))


def sign(rng: np.random.Generator) -> Sprite:
    """A disc, triangle or plate with a rim."""
    size, kind = float(rng.uniform(0.65, 1.0)), int(rng.integers(3))
    half = size / 2

    def parts(u: Floats, v: Floats) -> Parts:
        if kind == 0:
            outer, inner = disc(u, v, (0, half), half), disc(u, v, (0, half), 0.66 * half)
        elif kind == 1:
            outer, inner = np.abs(u) < half - v / 2, np.abs(u) < half - v / 2 - 0.14
            inner &= v > 0.1
        else:
            outer, inner = box(u, v, -half, half, 0, size), box(u, v, -half + 0.1, half - 0.1, 0.1, size - 0.1)
        return stack((BODY, outer), (MARK, inner))

    return Sprite(size, size, parts)


def traffic_light(rng: np.random.Generator) -> Sprite:
    """A dark upright case with one of its three lamps lit."""
    lit = float(rng.choice((0.2, 0.55, 0.9)))

    def parts(u: Floats, v: Floats) -> Parts:
        return stack((DARK, box(u, v, -0.2, 0.2, 0, 1.1)), (LAMP, disc(u, v, (0, lit), 0.13)))

    return Sprite(0.4, 1.1, parts)
