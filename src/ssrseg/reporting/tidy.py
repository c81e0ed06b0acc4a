"""A comparison as tidy CSV: one number a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from ssrseg.reporting.comparison import Arm, Comparison, Contrast
from ssrseg.reporting.paper import published
from ssrseg.reporting.statistics import Difference, spread

FIELDS = ("record", "group", "against", "class", "measure", "seed", "value", "sd", "n", "low", "high", "test", "p")
COLUMNS = (*FIELDS, "p_holm", "verdict", "source")

Row = dict[str, object]


def to_csv(comparison: Comparison) -> str:
    """Tidy: one number a row, in per cent and points, with all digits. `record` says what it is.

    `score` is one seed's, `mean` a group's, `difference` a contrast's, `paper` the paper's.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for arm in comparison.arms:
        writer.writerows(_score_rows(arm))
    for contrast in comparison.contrasts:
        writer.writerows(_difference_rows(contrast))
    writer.writerows(_paper_rows(comparison.tables))
    return text.getvalue()


def _score_rows(arm: Arm) -> Iterator[Row]:
    best = arm.best
    measured = [("miou", "", arm.mious), *(("iou", name, arm.ious(name)) for name in arm.classes)]
    for measure, name, values in measured:
        known: Row = {"group": arm.name, "measure": measure, "class": name, "source": arm.network}
        for seed, value in values:
            yield {**known, "record": "score", "seed": seed, "value": 100 * value}
        if whole := spread([value for _, value in values]):
            yield {**known, "record": "mean", "value": 100 * whole.mean, "sd": _points_of(whole.sd), "n": whole.n}
    if best:
        known = {"group": arm.name, "measure": "best miou (oracle choice)", "source": arm.network}
        yield {**known, "record": "mean", "value": 100 * best.mean, "sd": _points_of(best.sd), "n": best.n}


def _difference_rows(contrast: Contrast) -> Iterator[Row]:
    whole = _difference(contrast, "miou", "", contrast.miou)
    yield {**whole, "p_holm": contrast.adjusted_p, "verdict": contrast.verdict}
    if bounds := contrast.miou.bootstrap:
        low, high = map(_points_of, bounds)
        yield {**whole, "low": low, "high": high, "test": "paired bootstrap", "p": "", "verdict": ""}
    for name, gap in contrast.classes:
        if gap:
            yield _difference(contrast, "iou", name, gap)


def _difference(contrast: Contrast, measure: str, name: str, gap: Difference) -> Row:
    low, high = map(_points_of, gap.interval or (None, None))
    known: Row = {"group": contrast.arm.name, "against": contrast.base.name, "measure": measure, "class": name}
    numbers: Row = {"value": 100 * gap.mean, "low": low, "high": high, "p": gap.p}
    return {**known, **numbers, "record": "difference", "test": gap.test, "verdict": gap.verdict}


def _points_of(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _paper_rows(tables: Sequence[int]) -> Iterator[Row]:
    one, two = (published()[f"table{number}"] for number in (1, 2))
    for row in one["rows"] if 1 in tables else ():
        name = f"{one['base']} + SSR (method.regularizer.stages={row['stages']})" if row["stages"] else one["base"]
        yield _paper_row(name, "miou", "", row["miou"], one["source"])
    for row in two["rows"] if 2 in tables else ():
        yield _paper_row(row["method"], "miou", "", row["miou"], row["source"])
        for name, value in zip(two["classes"], row["iou"], strict=True):
            yield _paper_row(row["method"], "iou", name, value, row["source"])


def _paper_row(group: str, measure: str, name: str, value: float, source: str) -> Row:
    known: Row = {"group": group, "measure": measure, "class": name, "source": source}
    return {**known, "record": "paper", "value": value}
