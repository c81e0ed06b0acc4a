"""Curves as inline SVG, bars and confusion matrices as values; the page gives their colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from markupsafe import Markup

from ssrseg.reporting.comparison import Comparison, Group
from ssrseg.reporting.formats import fill
from ssrseg.reporting.text_tables import cell, percent
from ssrseg.runs.records import RunRecord

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
    """Draw curves over steps, from zero up, as one `<svg>`; few points are marked, many are averaged in equal bins."""
    most = max(FEWEST, POINTS // max(len(curves), 1))
    drawn, x_end = [], 0.0
    for curve in curves:
        points = [(x, y) for x, y in curve.points if math.isfinite(y)]
        x_end = max([x_end, *(x for x, _ in points)])
        size = math.ceil(len(points) / most) or 1
        bins = [list(zip(*points[i : i + size], strict=True)) for i in range(0, len(points), size)]
        drawn.append(replace(curve, points=tuple((fmean(xs), fmean(ys)) for xs, ys in bins)))
    x_end = x_end or 1.0
    marked = sum(len(curve.points) for curve in drawn) <= MARKED
    y_ticks = ticks(max((y for curve in drawn for _, y in curve.points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / x_end, max(y, 0) / y_ticks[-1]
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    text = fill(
        "chart.svg.jinja",
        title=title,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        rules=[(y, place(0, y)[1]) for y in y_ticks],
        marks=[(x, place(x, 0)[0]) for x in ticks(x_end) if x <= x_end],
        curves=[(curve, [place(x, y) for x, y in curve.points]) for curve in drawn],
        marked=marked,
    )
    return Markup(text)


def ticks(highest: float, wanted: int = 4) -> list[float]:
    """Choose round numbers from zero to at least `highest`, about `wanted` steps of 1, 2 or 5 times a power of ten."""
    rough = max(highest, 1e-9) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [round(step * i, 12) for i in range(math.ceil(highest / step - 1e-9) + 1)] if highest > 0 else [0.0, step]


Drawn = Sequence[tuple[str, RunRecord, int]]
"""Runs with their names and the numbers of their groups, which choose colours."""


def miou_chart(runs: Drawn) -> Markup | None:
    """Draw the mIoU of students and teachers over steps; `None` where nothing was evaluated."""
    curves = []
    for name, run, colour in runs:
        for who in ("student", "teacher"):
            scores = [(entry.step, entry.student if who == "student" else entry.teacher) for entry in run.evaluations]
            points = tuple((step, 100 * score.miou) for step, score in scores if score and score.miou is not None)
            if points:
                curves.append(Curve(f"{name}, {who}", points, colour, who == "teacher", (f"group-{colour}", who)))
    return chart("mIoU in per cent over steps", curves) if curves else None


def loss_charts(runs: Drawn) -> Iterator[tuple[str, Markup]]:
    """Draw one small chart per `view/term`, because their scales differ."""
    for loss in dict.fromkeys(loss for _, run, _ in runs for entry in run.train for loss in entry.losses):
        curves = []
        for name, run, colour in runs:
            points = tuple((float(e.step), e.losses[loss]) for e in run.train if loss in e.losses)
            curves.append(Curve(name, points, colour, keys=(f"group-{colour}",)))
        yield loss, chart(f"Loss {loss} over steps", [curve for curve in curves if curve.points])


@dataclass(frozen=True)
class Bar:
    """A value as text and as a share of full width; a dot for each seed where there are several."""

    name: str
    colour: int
    text: str
    share: float
    dots: tuple[float, ...] = ()


def class_bars(comparison: Comparison) -> list[tuple[str, list[Bar]]]:
    """Draw IoU by class: a bar per group, or per network of a single run; empty where nothing was scored."""
    runs = [run for group in comparison.groups for run in group.runs]
    last, best = runs[0].last, runs[0].best
    networks = [
        ("student, last", last.student if last else None, 0),
        ("teacher, last", last.teacher if last else None, 3),
        ("student, best*", best.student if best else None, 4),
    ]
    shown = [(who, score.iou, colour) for who, score, colour in networks if score and score.iou]
    rows: dict[str, list[Bar]] = {name: [] for name in comparison.classes if len(runs) > 1 or shown}
    for number, (name, row) in enumerate(rows.items()):
        if len(runs) == 1:
            row += [Bar(who, colour, percent(iou[number]), iou[number] or 0.0) for who, iou, colour in shown]
            continue
        for colour, group in enumerate(comparison.groups):
            found, seeds = group.iou(name), tuple(value for _, value in group.ious(name))
            dots = seeds if len(seeds) > 1 else ()
            row.append(Bar(group.name, colour, cell(found, group.n), found.mean if found else 0.0, dots))
    return list(rows.items())


Matrix = tuple[str, tuple[str, ...], list[tuple[int, ...]]]
"""Name of a group, classes, and the pixels of each class (row) that the students call each class (column)."""


def matrices(groups: Sequence[Group]) -> Iterator[Matrix]:
    """Add up the confusion matrices of each group's runs; none for groups without."""
    for group in groups:
        known = [(run.classes, score.confusion) for run, score in group.scores if score and score.confusion]
        if known:
            classes = known[0][0]
            alike = [counts for names, counts in known if names == classes]
            yield group.name, classes, [tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*alike, strict=True)]
