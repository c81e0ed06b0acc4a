"""The tables of SSR's paper in its layout: its numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ssrseg.reporting.comparison import Comparison, Group
from ssrseg.reporting.statistics import difference
from ssrseg.reporting.text_tables import ABSENT, TextTable, cell, gain, percent, signed
from ssrseg.runs.records import setting

STAGES = (0, 1, 2, 3)
GAINS = "Gains in points of mIoU over the same method without SSR; ours with their 95% interval from Student's t."


@cache
def published() -> dict[str, Any]:
    """Read what the paper prints, with the source of each row; scores in per cent."""
    text = (resources.files("ssrseg.reporting") / "paper.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def paper_tables(comparison: Comparison) -> Iterator[TextTable]:
    """Yield the tables that the comparison asks for."""
    if 1 in comparison.tables:
        yield table1(comparison)
    if 2 in comparison.tables:
        yield from table2(comparison)


def table1(comparison: Comparison) -> TextTable:
    """Set our stages beside the ablation on DAFormer (Table I): a row per set of stages, the paper's first."""
    paper = published()["table1"]
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
        ticks = ["✓" if stage in stages else "" for stage in STAGES]
        known = printed.get(stages)
        theirs = [_plain(known), _points(known - printed[()]) if known is not None and stages else ABSENT]
        for own in _own_cells(comparison, ours.get(stages, [])):
            rows.append((*ticks, *theirs, *own))
    header = (*(f"S{stage}" for stage in STAGES), "paper mIoU", "paper gain", "our group", "n", "our mIoU", "our gain")
    notes = (*_caption(comparison, paper["source"]), str(paper["note"]), GAINS)
    return TextTable("Table I: SSR at one to four stages", header, tuple(rows), notes, left=len(STAGES))


def table2(comparison: Comparison) -> Iterator[TextTable]:
    """Set our methods beside the paper's (Table II), per class; ours have a table of their own for other classes."""
    paper = published()["table2"]
    notes = (
        *_caption(comparison, paper["source"]),
        "In per cent; ours: mean over seeds per class, mean ± sample standard deviation for the mIoU.",
        *(f"{row['method']}: {row['source']}." for row in paper["rows"] if row["source"] != paper["source"]),
    )
    same = sorted(comparison.classes) == sorted(paper["classes"])
    rows: list[tuple[str, ...]] = []
    for row in paper["rows"]:
        rows.append((row["method"], "paper", *map(_plain, row["iou"]), _plain(row["miou"]), ABSENT))
        for name, *numbers in _ours(comparison, row["method"], paper["classes"]) if same else ():
            rows.append((name, "ours", *numbers))
    header = ("method", "numbers", *paper["headings"], "mIoU", "n")
    yield TextTable("Table II: comparison with the state of the art", header, tuple(rows), notes, left=2)
    if not same:
        yield _own_classes(comparison, paper["rows"])
    yield _ssr_gains(comparison, paper["rows"])


def _own_classes(comparison: Comparison, printed: Sequence[dict[str, Any]]) -> TextTable:
    rows = [
        (*ours, _plain(row["miou"])) for row in printed for ours in _ours(comparison, row["method"], comparison.classes)
    ]
    header = ("method", *comparison.classes, "mIoU", "n", f"paper mIoU ({published()['task_name']})")
    note = f"Ours: {'; '.join(_tasks(comparison))}. The last column is of other data and other classes."
    return TextTable("Table II: ours, by our classes", header, tuple(rows), (note,))


def _ssr_gains(comparison: Comparison, printed: Sequence[dict[str, Any]]) -> TextTable:
    """Show how much SSR adds to a method: the paper's claim, and ours."""
    scores = {row["method"]: row["miou"] for row in printed}
    rows: list[tuple[str, ...]] = []
    for row in printed:
        if "over" in row:
            theirs = _points(row["miou"] - scores[row["over"]])
            for name, n, _, ours in _own_cells(comparison, _groups(comparison, row["method"])):
                rows.append((row["method"] if name == ABSENT else name, row["over"], theirs, n, ours))
    header = ("method", "over", "paper gain", "n", "our gain")
    notes = (GAINS, f"The paper's are {published()['seeds']}.")
    return TextTable("Table II: what SSR adds", header, tuple(rows), notes, left=2)


def _own_cells(comparison: Comparison, groups: Sequence[Group]) -> Iterator[tuple[str, str, str, str]]:
    """Yield group, n, mIoU and gain over the same without SSR; one row of dashes where nothing ran."""
    for group in groups:
        base = comparison.base_of(group)
        over = gain(difference(base.mious, group.mious)) if base else ABSENT
        yield group.name, str(group.n), cell(group.miou), over
    if not groups:
        yield ABSENT, ABSENT, ABSENT, ABSENT


def _groups(comparison: Comparison, method: str) -> list[Group]:
    return [group for group in comparison.groups if group.method == method]


def _ours(comparison: Comparison, method: str, classes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield name, IoU of each class, mIoU and n of the groups with this method; one row of dashes where nothing ran."""
    for group in _groups(comparison, method):
        means = (percent(found.mean if (found := group.iou(name)) else None) for name in classes)
        yield group.name, *means, cell(group.miou), str(group.n)
    if not _groups(comparison, method):
        yield method, *[ABSENT] * (len(classes) + 2)


def _caption(comparison: Comparison, source: str) -> tuple[str, str]:
    """Say whose numbers these are, and of which data: ours on another task are no reproduction."""
    paper, tasks = published(), _tasks(comparison)
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
    """List `source → val` of the groups."""
    groups = [group for group in comparison.groups if group.method != "oracle"] or list(comparison.groups)
    return list(dict.fromkeys(" → ".join(_place(group, role) for role in ("source", "val")) for group in groups))


def _place(group: Group, role: str) -> str:
    """Name the data by the layout, or by the folder where the layout is just folders."""
    spec = str(group.settings.get(f"{role}.spec", "folders"))
    root, stems = (group.settings.get(f"{role}.{key}") for key in ("root", "stems"))
    name = str(root) if spec == "folders" else spec
    return f"{name} ({Path(str(stems)).stem})" if stems else name


def _plain(value: float | None) -> str:
    """Write a number of the paper, which is in per cent already."""
    return ABSENT if value is None else f"{value:.1f}"


def _points(value: float) -> str:
    return signed(value / 100)
