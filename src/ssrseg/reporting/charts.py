"""Line charts as inline SVG: the page gives their colours, so that they follow light and dark, and reads them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 10, 28
POINTS = 200
"""Points per chart, shared by its curves, but never fewer than `FEWEST` per curve: more is only noise to the eye."""
FEWEST = 40
MARKED = 60
"""Points per chart up to which each gets a dot; a curve of one point always does."""


@dataclass(frozen=True)
class Curve:
    """A named line of (step, value) points; `colour` counts groups, a dashed line is a teacher.

    The page switches a curve on and off by its `keys`, words without a space.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int = 0
    dashed: bool = False
    keys: tuple[str, ...] = ()


def chart(title: str, curves: Sequence[Curve]) -> Markup:
    """Curves over steps, from zero up, as one `<svg>`; few points are marked, many are averaged in bins."""
    whole = [_finite(curve.points) for curve in curves]
    x_end = max((x for points in whole for x, _ in points), default=1.0) or 1.0
    most = max(FEWEST, POINTS // max(len(curves), 1))
    drawn = [replace(c, points=_thinned(points, most)) for c, points in zip(curves, whole, strict=True)]
    marked = sum(len(curve.points) for curve in drawn) <= MARKED
    y_ticks = ticks(max((y for curve in drawn for _, y in curve.points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / x_end, max(y, 0) / y_ticks[-1]
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    body = Markup("").join(
        [
            *(_rule(f"{y:g}", place(0, y)[1]) for y in y_ticks),
            *(_mark(f"{x:g}", place(x, 0)[0]) for x in ticks(x_end) if x <= x_end),
            *(_line(curve, [place(x, y) for x, y in curve.points], marked) for curve in drawn),
        ]
    )
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    return head + body + Markup("</svg>")


def ticks(highest: float, wanted: int = 4) -> list[float]:
    """Round numbers from zero to at least `highest`, about `wanted` steps of 1, 2 or 5 times a power of ten."""
    rough = max(highest, 1e-9) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [round(step * i, 12) for i in range(math.ceil(highest / step - 1e-9) + 1)] if highest > 0 else [0.0, step]


def _rule(text: str, y: float) -> Markup:
    line = Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
    return line + Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, text)


def _mark(text: str, x: float) -> Markup:
    anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
    x = min(x, WIDTH - 2) if anchor == "middle" else WIDTH - RIGHT
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(x, HEIGHT - 8, anchor, text)


def _line(curve: Curve, places: Sequence[tuple[float, float]], marked: bool) -> Markup:
    kind = f"curve c{curve.colour % 6}" + (" dashed" if curve.dashed else "")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    values = " ".join(f"{x:.6g},{y:.5g}" for x, y in curve.points)
    dots = list(_dots(curve, places)) if marked or len(places) == 1 else []
    line = Markup('<polyline points="{}"/>').format(path)
    group = Markup('<g class="{}" data-name="{}" data-keys="{}" data-values="{}">')
    return group.format(kind, curve.name, " ".join(curve.keys), values) + line + Markup("").join(dots) + Markup("</g>")


def _dots(curve: Curve, places: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    for (x, y), (step, value) in zip(places, curve.points, strict=True):
        text = f"{curve.name}, step {step:g}: {value:.4g}"
        yield Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.2"><title>{}</title></circle>').format(x, y, text)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _thinned(points: Sequence[tuple[float, float]], most: int) -> tuple[tuple[float, float], ...]:
    """At most `most` points: the means of equal bins."""
    size = math.ceil(len(points) / most) or 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins)
