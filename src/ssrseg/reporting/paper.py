"""The tables of SSR's paper in its layout: its numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ssrseg.reporting.comparison import Comparison, Group
from ssrseg.reporting.statistics import difference
from ssrseg.reporting.text_tables import ABSENT, TextTable, cell, data_of, interval, percent, signed
from ssrseg.runs.records import setting

STAGES = (0, 1, 2, 3)
GAINS = "Gains in points of mIoU over the same method without SSR; ours with their 95% interval from Student's t."


def paper_tables(comparison: Comparison) -> Iterator[TextTable]:
    """Yield the tables that the comparison asks for."""
    if 1 in comparison.tables:
        yield table1(comparison)
    if 2 in comparison.tables:
        yield from table2(comparison)


def table1(comparison: Comparison) -> TextTable:
    """Set our stages beside the ablation on DAFormer (Table I): a row per set of stages, the paper's first."""
    paper = data_of("paper.yaml")["table1"]
    printed = {tuple(row["stages"]): row["miou"] for row in paper["rows"]}
    ours: dict[tuple[int, ...], list[Group]] = {}
    for group in comparison.groups:
        if group.method == paper["base"]:
            ours.setdefault((), []).append(group)
        elif group.method == f"{paper['base']} + SSR":
            stages = group.settings.get("method.regularizer.stages") or STAGES
            ours.setdefault(tuple(sorted(stages)), []).append(group)
    rows: list[tuple[str, ...]] = []
    for stages in [*printed, *sorted(ours.keys() - printed.keys(), key=lambda each: (len(each), each))]:
        ticks, theirs = ["✓" if stage in stages else "" for stage in STAGES], [ABSENT, ABSENT]
        if stages in printed:
            theirs = [f"{printed[stages]:.1f}", _points(printed[stages] - printed[()]) if stages else ABSENT]
        rows += [(*ticks, *theirs, *own) for own in _own_cells(comparison, ours.get(stages, []))]
    header = (*(f"S{stage}" for stage in STAGES), "paper mIoU", "paper gain", "our group", "n", "our mIoU", "our gain")
    notes = (*_caption(comparison, paper["source"]), str(paper["note"]), GAINS)
    return TextTable("Table I: SSR at one to four stages", header, tuple(rows), notes, left=len(STAGES))


def table2(comparison: Comparison) -> Iterator[TextTable]:
    """Set our methods beside the paper's (Table II), per class; ours have a table of their own for other classes.

    The last of the tables is how much SSR adds to a method: the paper's claim, and ours.
    """
    whole = data_of("paper.yaml")
    paper, scores = whole["table2"], {row["method"]: row["miou"] for row in whole["table2"]["rows"]}
    same = sorted(comparison.classes) == sorted(paper["classes"])
    both: list[tuple[str, ...]] = []
    apart: list[tuple[str, ...]] = []
    gains: list[tuple[str, ...]] = []
    for row in paper["rows"]:
        method, theirs = row["method"], [f"{value:.1f}" for value in (*row["iou"], row["miou"])]
        both.append((method, "paper", *theirs, ABSENT))
        groups = [group for group in comparison.groups if group.method == method]
        ours = list(_ious(method, groups, paper["classes"] if same else comparison.classes))
        both += [(name, "ours", *numbers) for name, *numbers in ours if same]
        apart += [(*own, theirs[-1]) for own in ours]
        if "over" in row:
            claim = _points(row["miou"] - scores[row["over"]])
            for name, n, _, added in _own_cells(comparison, groups):
                gains.append((method if name == ABSENT else name, row["over"], claim, n, added))
    notes = (
        *_caption(comparison, paper["source"]),
        "In per cent; ours: mean over seeds per class, mean ± sample standard deviation for the mIoU.",
        *(f"{row['method']}: {row['source']}." for row in paper["rows"] if row["source"] != paper["source"]),
    )
    header = ("method", "numbers", *paper["headings"], "mIoU", "n")
    yield TextTable("Table II: comparison with the state of the art", header, tuple(both), notes, left=2)
    if not same:
        header = ("method", *comparison.classes, "mIoU", "n", f"paper mIoU ({whole['task_name']})")
        note = f"Ours: {'; '.join(_tasks(comparison))}. The last column is of other data and other classes."
        yield TextTable("Table II: ours, by our classes", header, tuple(apart), (note,))
    notes = (GAINS, f"The paper's are {whole['seeds']}.")
    header = ("method", "over", "paper gain", "n", "our gain")
    yield TextTable("Table II: what SSR adds", header, tuple(gains), notes, left=2)


def _own_cells(comparison: Comparison, groups: Sequence[Group]) -> Iterator[tuple[str, str, str, str]]:
    """Yield group, n, mIoU and gain over the same without SSR; one row of dashes where nothing ran."""
    for group in groups:
        over = ABSENT
        if base := comparison.base_of(group):
            gap = difference(base.mious, group.mious)
            sure = f"[{interval(gap.interval)}], {gap.verdict}" if gap.interval else f"({gap.verdict})"
            over = f"{signed(gap.mean)} {sure}"
        yield group.name, str(group.n), cell(group.miou), over
    if not groups:
        yield ABSENT, ABSENT, ABSENT, ABSENT


def _ious(method: str, groups: Sequence[Group], classes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield name, IoU of each class, mIoU and n of the groups with this method; one row of dashes where nothing ran."""
    for group in groups:
        means = (percent(found.mean if (found := group.iou(name)) else None) for name in classes)
        yield group.name, *means, cell(group.miou), str(group.n)
    if not groups:
        yield method, *[ABSENT] * (len(classes) + 2)


def _caption(comparison: Comparison, source: str) -> tuple[str, str]:
    """Say whose numbers these are, and of which data: ours on another task are no reproduction."""
    paper, tasks = data_of("paper.yaml"), _tasks(comparison)
    theirs = f"paper: {source} ({paper['url']}), {paper['task_name']}, {paper['seeds']}."
    configs = [group.runs[0].config for group in comparison.groups if group.method != "oracle"]
    specs = {tuple(setting(config, f"{role}.spec") for role in ("source", "val")) for config in configs}
    same_classes = sorted(comparison.classes) == sorted(paper["table2"]["classes"])
    if same_classes and specs == {(paper["task"]["source"], paper["task"]["target"])}:
        return theirs, f"ours: {tasks[0]}, the {comparison.network} at the last step."
    return theirs, (
        f"ours: {'; '.join(tasks)}, {len(comparison.classes)} classes, the {comparison.network} at the last step. "
        "These are not the paper's data: nothing here reproduces its numbers, and only the signs of differences can be "
        "set side by side."
    )


def _tasks(comparison: Comparison) -> list[str]:
    """List `source → val` of the groups, by the layout, or by the folder where the layout is just folders."""

    def place(group: Group, role: str) -> str:
        spec, root, stems = (group.settings.get(f"{role}.{key}") for key in ("spec", "root", "stems"))
        name = str(root) if spec in (None, "folders") else str(spec)
        return f"{name} ({Path(str(stems)).stem})" if stems else name

    groups = [group for group in comparison.groups if group.method != "oracle"] or comparison.groups
    return list(dict.fromkeys(f"{place(group, 'source')} → {place(group, 'val')}" for group in groups))


def _points(value: float) -> str:
    return signed(value / 100)
