"""IoU by class as bars: settings side by side, each seed a dot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssrseg.reporting.tables import Group, Table, cells, percent
from ssrseg.runs.records import RunRecord, Score


@dataclass(frozen=True)
class Bar:
    """A value as text and as a share of full width; a dot for each seed where there are several."""

    name: str
    colour: int
    text: str
    share: float
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class ClassBars:
    """The bars of one class."""

    name: str
    bars: tuple[Bar, ...]


def class_bars(scores: Table, runs: Sequence[RunRecord]) -> list[ClassBars]:
    """By class: the settings, or the networks of a single run; empty where nothing was scored."""
    columns = _settings(scores) if len(runs) > 1 else [*_networks(runs[0])]
    if not columns:
        return []
    return [ClassBars(name, tuple(column[i] for column in columns)) for i, name in enumerate(scores.classes)]


def _settings(scores: Table) -> list[list[Bar]]:
    texts = cells(scores)[-len(scores.classes) :] if scores.classes else []
    return [
        [_of_group(group, number, name, texts[i][1 + number]) for i, name in enumerate(scores.classes)]
        for number, group in enumerate(scores.groups)
    ]


def _of_group(group: Group, colour: int, name: str, text: str) -> Bar:
    found = group.iou[name]
    seeds = tuple(_seeds(group, name))
    return Bar(group.name, colour, text, found.mean if found else 0.0, seeds if len(seeds) > 1 else ())


def _seeds(group: Group, name: str) -> Iterator[float]:
    for run in group.runs:
        if run.last and run.last.student.iou and name in run.classes:
            value = run.last.student.iou[run.classes.index(name)]
            if value is not None:
                yield value


def _networks(run: RunRecord) -> Iterator[list[Bar]]:
    last, best = run.last, run.best
    shown: list[tuple[str, Score | None, int]] = [
        ("student, last", last.student if last else None, 0),
        ("teacher, last", last.teacher if last else None, 3),
        ("student, best*", best.student if best else None, 4),
    ]
    for name, score, colour in shown:
        if score and score.iou:
            yield [Bar(name, colour, percent(value), value or 0.0) for value in score.iou]
