"""What is taken for what: confusion matrices of the students at the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssrseg.reporting.tables import Group


@dataclass(frozen=True)
class Cell:
    """Pixels of one true class that one predicted class has, and their share of the true class's."""

    share: float
    text: str
    """Per cent, whole; empty below a half."""
    pixels: int


@dataclass(frozen=True)
class Matrix:
    """Of the pixels of a true class (row), the share that each predicted class (column) has."""

    name: str
    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """A row is empty for a class that the labels do not contain."""
    runs: int
    """How many were added up."""


def matrices(groups: Sequence[Group]) -> list[Matrix]:
    """One matrix per group, of all its runs that have one; none for groups without."""
    return [matrix for matrix in map(_matrix, groups) if matrix]


def _matrix(group: Group) -> Matrix | None:
    counted = [(run.classes, run.last.student.confusion) for run in group.runs if run.last]
    known = [(classes, counts) for classes, counts in counted if counts]
    if not known:
        return None
    classes = known[0][0]
    alike = [counts for names, counts in known if names == classes]
    rows = tuple(_row([sum(values) for values in zip(*lines, strict=True)]) for lines in zip(*alike, strict=True))
    return Matrix(group.name, classes, rows, len(alike))


def _row(pixels: Sequence[int]) -> tuple[Cell, ...]:
    whole = sum(pixels)
    if not whole:
        return ()
    return tuple(Cell(n / whole, f"{100 * n / whole:.0f}" if n / whole >= 0.005 else "", n) for n in pixels)
