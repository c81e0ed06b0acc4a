"""The pictures that a run left of its views over time, and of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssrseg.reporting.pictures import Album, Picture, spaced
from ssrseg.runs.records import RunRecord, Sheet


@dataclass(frozen=True)
class Gallery:
    """Pictures of one run: by step, and sheets of the validation images, as runs used to leave them."""

    run: str
    steps: tuple[tuple[int, tuple[Picture, ...]], ...]
    """In the order of the steps."""
    predictions: tuple[Picture, ...]
    hidden: int
    """Pictures that stay in the run folder only."""


def galleries(runs: Sequence[RunRecord], names: Sequence[str], budget: int) -> list[Gallery]:
    """One per run that left pictures; they share the budget, in characters."""
    shown = [(name, run) for name, run in zip(names, runs, strict=True) if run.views or run.predictions]
    return [_gallery(name, run, budget // len(shown), few=len(runs) > 1) for name, run in shown]


def _gallery(name: str, run: RunRecord, budget: int, few: bool) -> Gallery:
    """The latest pictures are embedded first, so that a spent budget costs the oldest."""
    album = Album(budget)
    chosen = spaced(range(len(run.predictions)), 4 if few else 8)
    predictions = _embedded(album, [run.predictions[i] for i in chosen])
    steps = []
    for step in reversed(spaced(sorted({sheet.number for sheet in run.views}), 5 if few else 10)):
        pictures = _embedded(album, [sheet for sheet in run.views if sheet.number == step])
        steps += [(step, pictures)] if pictures else []
    embedded = len(predictions) + sum(len(pictures) for _, pictures in steps)
    return Gallery(name, tuple(reversed(steps)), predictions, len(run.views) + len(run.predictions) - embedded)


def _embedded(album: Album, sheets: Sequence[Sheet]) -> tuple[Picture, ...]:
    return tuple(picture for picture in map(album.embed, sheets) if picture)
