"""The tables of SSR's paper in its layout: its numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ssrseg.reporting.comparison import Arm, Comparison
from ssrseg.reporting.statistics import spread
from ssrseg.reporting.tables import ABSENT, percent, signed
from ssrseg.reporting.text_tables import Sheet, cell, gain
from ssrseg.runs.records import setting

STAGES = (0, 1, 2, 3)
PAPERS, OURS = "paper", "ours"


@cache
def published() -> dict[str, Any]:
    """What the paper prints, with the source of each row; scores in per cent."""
    text = (resources.files("ssrseg.reporting") / "paper.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def paper_tables(comparison: Comparison) -> Iterator[Sheet]:
    """The tables that the comparison asks for."""
    if 1 in comparison.tables:
        yield table1(comparison)
    if 2 in comparison.tables:
        yield from table2(comparison)


def table1(comparison: Comparison) -> Sheet:
    """The ablation of stages on DAFormer (Table I): a row per set of stages, the paper's first."""
    paper = published()["table1"]
    printed = {tuple(row["stages"]): row["miou"] for row in paper["rows"]}
    ours = _by_stages(comparison, paper["base"])
    rows: list[tuple[str, ...]] = []
    for stages in [*printed, *sorted(ours.keys() - printed.keys(), key=lambda each: (len(each), each))]:
        ticks = ["✓" if stage in stages else "" for stage in STAGES]
        known = printed.get(stages)
        theirs = [_plain(known), _gain_of(known - printed[()]) if known is not None and stages else ABSENT]
        for arm in _or_none(ours.get(stages, [])):
            rows.append((*ticks, *theirs, *_own_cells(comparison, arm)))
    header = (*(f"S{stage}" for stage in STAGES), "paper mIoU", "paper gain", "our group", "n", "our mIoU", "our gain")
    notes = (*_caption(comparison, paper["source"]), str(paper["note"]), _GAINS)
    return Sheet("Table I: SSR at one to four stages", header, tuple(rows), notes, left=len(STAGES))


_GAINS = "Gains in points of mIoU over the same method without SSR; ours with their 95% interval from Student's t."


def _by_stages(comparison: Comparison, base: str) -> dict[tuple[int, ...], list[Arm]]:
    found: dict[tuple[int, ...], list[Arm]] = {}
    for arm in comparison.arms:
        if arm.method == base:
            found.setdefault((), []).append(arm)
        elif arm.method == f"{base} + SSR":
            stages = arm.settings.get("method.regularizer.stages") or STAGES
            found.setdefault(tuple(sorted(stages)), []).append(arm)
    return found


def _own_cells(comparison: Comparison, arm: Arm | None) -> tuple[str, ...]:
    """Group, n, mIoU and gain over the same without SSR; dashes where nothing ran."""
    if arm is None:
        return (ABSENT,) * 4
    base = comparison.base_of(arm)
    return arm.name, str(arm.miou.n), cell(arm.miou), gain(comparison.contrast(arm, base)) if base else ABSENT


def table2(comparison: Comparison) -> Iterator[Sheet]:
    """The comparison of methods (Table II), per class; where our classes are others, ours have a table of their own."""
    paper = published()["table2"]
    notes = (
        *_caption(comparison, paper["source"]),
        "In per cent; ours: mean over seeds per class, mean ± sample standard deviation for the mIoU.",
        *(f"{row['method']}: {row['source']}." for row in paper["rows"] if row["source"] != paper["source"]),
    )
    same = sorted(comparison.classes) == sorted(paper["classes"])
    header = ("method", "numbers", *paper["headings"], "mIoU", "n")
    rows = [row for each in paper["rows"] for row in _pair(comparison, each, paper["classes"] if same else None)]
    yield Sheet("Table II: comparison with the state of the art", header, tuple(rows), notes, left=2)
    if not same:
        yield _own_classes(comparison, paper["rows"])
    yield _ssr_gains(comparison, paper["rows"])


def _pair(comparison: Comparison, row: dict[str, Any], classes: Sequence[str] | None) -> Iterator[tuple[str, ...]]:
    """The paper's row and, if the classes are the same, ours below it."""
    method = str(row["method"])
    yield method, PAPERS, *map(_plain, row["iou"]), _plain(row["miou"]), ABSENT
    if classes is None:
        return
    arms = _arms(comparison, method)
    for arm in arms:
        yield arm.name, OURS, *_means(arm, classes), cell(arm.miou), str(arm.miou.n)
    if not arms:
        yield method, OURS, *[ABSENT] * (len(classes) + 2)


def _own_classes(comparison: Comparison, printed: Sequence[dict[str, Any]]) -> Sheet:
    rows: list[tuple[str, ...]] = []
    for row in printed:
        theirs, arms = _plain(row["miou"]), _arms(comparison, row["method"])
        for arm in arms:
            rows.append((arm.name, *_means(arm, comparison.classes), cell(arm.miou), str(arm.miou.n), theirs))
        if not arms:
            rows.append((str(row["method"]), *[ABSENT] * (len(comparison.classes) + 2), theirs))
    task = published()["task_name"]
    header = ("method", *comparison.classes, "mIoU", "n", f"paper mIoU ({task})")
    note = f"Ours: {'; '.join(_tasks(comparison))}. The last column is of other data and other classes."
    return Sheet("Table II: ours, by our classes", header, tuple(rows), (note,))


def _ssr_gains(comparison: Comparison, printed: Sequence[dict[str, Any]]) -> Sheet:
    """What SSR adds to a method: the paper's claim, and ours."""
    scores = {row["method"]: row["miou"] for row in printed}
    rows: list[tuple[str, ...]] = []
    for row in printed:
        if "over" in row:
            theirs = _gain_of(row["miou"] - scores[row["over"]])
            for arm in _or_none(_arms(comparison, row["method"])):
                group, n, _, ours = _own_cells(comparison, arm)
                rows.append((row["method"] if arm is None else group, row["over"], theirs, n, ours))
    header = ("method", "over", "paper gain", "n", "our gain")
    notes = (_GAINS, f"The paper's are {published()['seeds']}.")
    return Sheet("Table II: what SSR adds", header, tuple(rows), notes, left=2)


def _arms(comparison: Comparison, method: str) -> list[Arm]:
    return [arm for arm in comparison.arms if arm.method == method]


def _or_none(arms: Sequence[Arm]) -> Sequence[Arm | None]:
    """One row of dashes where nothing ran."""
    return arms or [None]


def _means(arm: Arm, classes: Sequence[str]) -> list[str]:
    means = [spread([value for _, value in arm.ious(name)]) for name in classes]
    return [percent(each.mean if each else None) for each in means]


def _caption(comparison: Comparison, source: str) -> tuple[str, str]:
    """Whose numbers these are, and of which data: ours on another task are no reproduction."""
    task, tasks = published()["task_name"], _tasks(comparison)
    theirs = f"paper: {source} ({published()['url']}), {task}, {published()['seeds']}."
    if _is_the_papers(comparison):
        return theirs, f"ours: {tasks[0]}, the {comparison.network} at the last step."
    return theirs, (
        f"ours: {'; '.join(tasks)}, {len(comparison.classes)} classes, the {comparison.network} at the last step. "
        "These are not the paper's data: nothing here reproduces its numbers, and only the signs of differences can be "
        "set side by side."
    )


def _is_the_papers(comparison: Comparison) -> bool:
    """The same layouts, the same classes, and scored on the target's validation images."""
    task = published()["task"]
    configs = [arm.runs[0].config for arm in comparison.arms if arm.method != "oracle"]
    specs = {tuple(setting(config, f"{role}.spec") for role in ("source", "val")) for config in configs}
    classes = sorted(comparison.classes) == sorted(published()["table2"]["classes"])
    return classes and specs == {(task["source"], task["target"])}


def _tasks(comparison: Comparison) -> list[str]:
    """`source → target` of the arms; the layout's name, or the folder's where the layout says nothing."""
    arms = [arm for arm in comparison.arms if arm.method != "oracle"] or list(comparison.arms)
    return list(dict.fromkeys(" → ".join(_place(arm, role) for role in ("source", "val")) for arm in arms))


def _place(arm: Arm, role: str) -> str:
    spec = str(arm.settings.get(f"{role}.spec", "folders"))
    root, stems = (arm.settings.get(f"{role}.{key}") for key in ("root", "stems"))
    name = str(root) if spec == "folders" else spec
    return f"{name} ({Path(str(stems)).stem})" if stems else name


def _plain(value: float | None) -> str:
    """A number of the paper, which is in per cent already."""
    return ABSENT if value is None else f"{value:.1f}"


def _gain_of(value: float) -> str:
    return signed(value / 100)
