"""Runs grouped by their settings, seeds apart: means, deviations, and what the seeds alone explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ssrseg.reporting.grouping import caveats, grouped, names
from ssrseg.reporting.statistics import Difference, Spread, difference, spread
from ssrseg.runs.records import RunRecord, Score, setting

ABSENT = "–"


@dataclass(frozen=True)
class Group:
    """Runs of one setting (`grouping`), seeds apart; scores are the student's at the last step, fractions in 0..1."""

    name: str
    runs: tuple[RunRecord, ...]
    miou: Spread | None
    pixel_accuracy: Spread | None
    iou: dict[str, Spread | None]
    subsets: dict[str, Spread | None]
    """Mean IoU of parts of the classes."""
    against_first: Difference | None
    """Difference in mIoU to the first group; `None` for the first itself and where either has no score."""


@dataclass(frozen=True)
class Table:
    """Groups in the order of their first run; the first is what the others are compared with."""

    groups: tuple[Group, ...]
    classes: tuple[str, ...]
    subsets: tuple[str, ...]
    """Parts of the classes that are scored besides: those of SYNTHIA only where a run adapts from it."""
    caveats: tuple[str, ...]
    """What makes the numbers less comparable than a table suggests."""


def table(runs: Sequence[RunRecord]) -> Table:
    """Group runs by settings minus seed and score the groups: n, mean and sample standard deviation."""
    parts = grouped(runs)
    classes = tuple(dict.fromkeys(name for run in runs for name in run.classes))
    subsets = _subsets(runs)
    base = _seeded(parts[0]) if parts else []
    groups: list[Group] = []
    for name, part in zip(names(parts), parts, strict=True):
        compared = difference(base, _seeded(part)) if groups and base and _seeded(part) else None
        miou, accuracy = _spread(part, lambda score: score.miou), _spread(part, lambda score: score.pixel_accuracy)
        iou = {label: spread([*_class_iou(part, label)]) for label in classes}
        means = {subset: _spread(part, _mean_over(subset)) for subset in subsets}
        groups.append(Group(name, tuple(part), miou, accuracy, iou, means, compared))
    return Table(tuple(groups), classes, subsets, tuple(_caveats(groups)))


def statements(scores: Table) -> list[str]:
    """One sentence per group after the first: its difference to the first, and whether seeds alone explain it."""
    return [_statement(group, scores.groups[0]) for group in scores.groups[1:]]


def by_seed(scores: Table) -> list[str]:
    """One line per group of several runs: the mIoU of every seed, in per cent."""
    lines = []
    for group in scores.groups:
        if len(group.runs) > 1:
            values = ((run.seed, run.last.student.miou if run.last else None) for run in group.runs)
            lines.append(
                f"{group.name}, mIoU by seed: {', '.join(f'{seed}: {percent(miou)}' for seed, miou in values)}."
            )
    return lines


def cells(scores: Table) -> list[list[str]]:
    """The table as text in per cent, header row first: a column per group, a row per measure and class."""
    rows = [["", *(group.name for group in scores.groups)]]
    rows.append(["runs with scores", *(str(group.miou.n if group.miou else 0) for group in scores.groups)])
    rows.append(["mIoU", *(_cell(group.miou, group.miou) for group in scores.groups)])
    for name in scores.subsets:
        rows.append([f"mIoU of {name}", *(_cell(group.subsets[name], group.miou) for group in scores.groups)])
    rows.append(["pixel accuracy", *(_cell(group.pixel_accuracy, group.miou) for group in scores.groups)])
    rows += [[name, *(_cell(group.iou[name], group.miou) for group in scores.groups)] for name in scores.classes]
    return rows


def to_markdown(scores: Table) -> str:
    """The table, the statements and the caveats as GitHub-flavoured Markdown."""
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in cells(scores)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *body)]
    return "\n".join(
        [
            *lines,
            "",
            *(f"- {line}" for line in (legend(scores), *by_seed(scores), *statements(scores), *scores.caveats)),
            "",
        ]
    )


def to_console(scores: Table, console: Console | None = None) -> None:
    """Print the table, the statements and the caveats; plain text when the output is no terminal."""
    console = console or Console()
    header, *body = cells(scores)
    printed = RichTable(box=None, pad_edge=False)
    for number, name in enumerate(header):
        printed.add_column(escape(name), justify="right" if number else "left")
    for row in body:
        printed.add_row(*map(escape, row))
    console.print(printed)
    for line in (legend(scores), *by_seed(scores), *statements(scores), *scores.caveats):
        console.print(line, markup=False, highlight=False)


def legend(scores: Table) -> str:
    """What the numbers are."""
    repeated = any(group.miou and group.miou.n > 1 for group in scores.groups)
    spreads = "mean ± sample standard deviation over seeds" if repeated else "one seed each, so no deviation"
    return f"The student at the last step, in per cent; {spreads}."


def percent(value: float | None) -> str:
    """A fraction in per cent with one decimal."""
    return ABSENT if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _statement(group: Group, first: Group) -> str:
    gap = group.against_first
    if gap is None:
        return f"{group.name}: no comparison with {first.name}, for want of scores."
    text = f"{group.name}: {signed(gap.mean)} points of mIoU against {first.name}"
    if gap.half_width is None:
        return f"{text}. One seed: no statement about noise."
    low, high = signed(gap.mean - gap.half_width), signed(gap.mean + gap.half_width)
    verdict = "within the seed noise" if gap.within_noise else "more than the seed noise"
    return f"{text}; 95% interval {low} to {high} ({gap.test}): {verdict}."


def _cell(value: Spread | None, whole: Spread | None) -> str:
    if value is None:
        return ABSENT
    text = percent(value.mean) if value.sd is None else f"{percent(value.mean)} ± {percent(value.sd)}"
    return text if whole and value.n == whole.n else f"{text} (n = {value.n})"


def _subsets(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    if not any(setting(run.config, "source.spec") == "synthia" for run in runs):
        return ()
    return tuple(dict.fromkeys(name for run in runs if run.last for name in run.last.student.subsets))


def _seeded(runs: Sequence[RunRecord]) -> list[tuple[int | None, float]]:
    return [(run.seed, run.last.student.miou) for run in runs if run.last and run.last.student.miou is not None]


def _spread(runs: Sequence[RunRecord], of: Callable[[Score], float | None]) -> Spread | None:
    values = [of(run.last.student) for run in runs if run.last]
    return spread([value for value in values if value is not None])


def _mean_over(subset: str) -> Callable[[Score], float | None]:
    return lambda score: score.subsets.get(subset)


def _class_iou(runs: Sequence[RunRecord], name: str) -> Iterator[float]:
    for run in runs:
        if run.last and run.last.student.iou and name in run.classes:
            value = run.last.student.iou[run.classes.index(name)]
            if value is not None:
                yield value


def _caveats(groups: Sequence[Group]) -> Iterator[str]:
    yield from caveats([(group.name, group.runs) for group in groups])
    if len(groups) > 2:
        yield "Each interval stands alone: with many comparisons, some exceed the noise by chance."
