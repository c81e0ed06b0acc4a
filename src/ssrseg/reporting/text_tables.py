"""A comparison as tables of text, which every format shows in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from ssrseg.reporting.comparison import Comparison, Contrast, Group
from ssrseg.reporting.statistics import ENOUGH_TO_RESAMPLE, RESAMPLES, Spread, over_seeds
from ssrseg.runs.records import Score, setting

ABSENT = "–"


@cache
def data_of(name: str) -> dict[str, Any]:
    """Read one of the tables beside this file; of `paper.yaml`, what the paper prints, scores in per cent."""
    found: dict[str, Any] = yaml.safe_load((resources.files("ssrseg.reporting") / name).read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class TextTable:
    """A table of text with a title and notes; the first `left` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1


def overview(comparison: Comparison) -> TextTable:
    """Show all in one table, a column per group and a row per measure and class; in words and caveats below it."""
    groups = comparison.groups

    def row(title: str, measure: Callable[[Score], float | None]) -> tuple[str, ...]:
        return (title, *(cell(over_seeds(group.values(measure)), group.n) for group in groups))

    def of(name: str) -> Callable[[Score], float | None]:
        return lambda score: score.subsets.get(name)

    rows = [("runs with scores", *(str(group.n) for group in groups)), row("mIoU", lambda score: score.miou)]
    rows += [row(f"mIoU of {name}", of(name)) for name in subsets(comparison)]
    rows += [
        (f"mIoU on {name}", *(cell(over_seeds(each.mious_on(name)), each.n) for each in groups))
        for name in domains(groups)
    ]
    rows.append(row("pixel accuracy", lambda score: score.pixel_accuracy))
    rows += [(name, *(cell(group.iou(name), group.n) for group in groups)) for name in comparison.classes]
    notes = [legend(comparison)]
    for group in groups:
        if len(group.runs) > 1:
            seeds = _by_seed([(run.seed, score.miou if score else None) for run, score in group.scores])
            notes.append(f"{group.name}, mIoU by seed: {seeds}.")
    notes += [*statements(comparison), *comparison.caveats]
    return TextTable("", ("", *(group.name for group in groups)), tuple(rows), tuple(notes))


def legend(comparison: Comparison) -> str:
    """Say whose numbers an overview has, and over what."""
    repeated = any(group.n > 1 for group in comparison.groups)
    spreads = "mean ± sample standard deviation over seeds" if repeated else "one seed each, so no deviation"
    names = ", ".join(domains(comparison.groups))
    pooled = f" What names no validation set is over the images of all ({names}) together." if names else ""
    return f"The {comparison.network} at the last step, in per cent; {spreads}.{pooled}"


def subsets(comparison: Comparison) -> tuple[str, ...]:
    """Name the parts of the classes that are scored besides: those of SYNTHIA only where a run adapts from it."""
    runs = [run for group in comparison.groups for run in group.runs]
    specs = [setting(run.config, "source.spec") for run in runs]
    if not any("synthia" in (spec if isinstance(spec, tuple) else (spec,)) for spec in specs):
        return ()
    return tuple(dict.fromkeys(name for run in runs if run.last for name in run.last.student.subsets))


def domains(groups: Sequence[Group]) -> tuple[str, ...]:
    """Name the validation sets, where a run has several."""
    scored = (score for group in groups for _, score in group.scores if score)
    return tuple(dict.fromkeys(name for score in scored for name in score.domains))


def scores(comparison: Comparison) -> TextTable:
    """Show every group: n, mean and deviation of last and best, every seed."""
    groups = comparison.groups
    rows = [(each.name, str(each.n), cell(each.miou), cell(each.best), _by_seed(each.mious)) for each in groups]
    notes = (
        f"mIoU of the {comparison.network} at the last step, in per cent; mean ± sample standard deviation over seeds.",
        "best*: each seed's best evaluation. It was chosen with the target's labels, which a user without them cannot "
        "do: an oracle's choice.",
    )
    return TextTable("Scores", ("group", "n", "mIoU", "best*", "by seed"), tuple(rows), notes)


def differences(comparison: Comparison) -> TextTable:
    """Show every contrast with its intervals, p and verdict."""
    rows: list[tuple[str, ...]] = []
    for each in comparison.contrasts:
        gap = each.miou
        ps = [ABSENT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in (gap.p, each.adjusted_p)]
        words = (each.group.name, each.base.name, gap.test or "one seed", each.verdict)
        rows.append((*words, signed(gap.mean), interval(gap.interval), interval(gap.bootstrap), *ps))
    if not rows:
        notes = ["One group: nothing to compare."]
    else:
        notes = [
            "Differences in mIoU, in points. The words follow the interval from Student's t: within noise when it "
            "holds zero.",
            f"p: two-sided, of that t. p (Holm): the same, corrected for all {len(rows)} comparisons of this table.",
        ]
    if any(each.miou.bootstrap for each in comparison.contrasts):
        notes.insert(
            1,
            f"bootstrap: percentiles of {RESAMPLES:,} resamples of the paired differences, from {ENOUGH_TO_RESAMPLE} "
            "pairs on; too narrow for few seeds, so the words do not follow it.",
        )
    header = ("group", "against", "test", "in words", "difference", "95% (t)", "95% (bootstrap)", "p", "p (Holm)")
    return TextTable("Differences", header, tuple(rows), tuple(notes), left=4)


def sentence(contrast: Contrast) -> str:
    """Say a contrast in one line."""
    text = f"{contrast.group.name} against {contrast.base.name}: {signed(contrast.miou.mean)} points of mIoU"
    if contrast.miou.interval is None:
        return f"{text}. One seed: no statement about noise."
    return f"{text}, 95% {interval(contrast.miou.interval)} ({contrast.miou.test}): {contrast.verdict}."


def statements(comparison: Comparison) -> list[str]:
    """Say every contrast, and which groups have none for want of scores."""
    first, others = comparison.reference, [group for group in comparison.groups if group is not comparison.reference]
    without = [group for group in others if not (group.n and first.n)]
    lines = [f"{group.name}: no comparison with {first.name}, for want of scores." for group in without]
    return [*map(sentence, comparison.contrasts), *lines]


def per_class(comparison: Comparison) -> TextTable:
    """Show the IoU of every class in every group."""
    parts: list[tuple[str, str | None]] = [("", None), *((f", {name}", name) for name in domains(comparison.groups))]
    rows = [
        (f"{name}{words}", *(cell(group.iou(name, domain), group.n) for group in comparison.groups))
        for words, domain in parts
        for name in comparison.classes
    ]
    note = f"In per cent. {ABSENT}: neither truth nor prediction has the class; n where it differs from the group's."
    return TextTable("IoU per class", ("class", *(group.name for group in comparison.groups)), tuple(rows), (note,))


def class_differences(contrast: Contrast) -> TextTable:
    """Show one contrast per class, the largest gain first."""
    base, group = contrast.base, contrast.group
    rows = []
    for name, gap in contrast.classes:
        found = (signed(gap.mean), interval(gap.interval)) if gap else (ABSENT, ABSENT)
        rows.append((name, gap.verdict if gap else "absent", cell(base.iou(name)), cell(group.iou(name)), *found))
    header = ("class", "in words", base.name, group.name, "difference", "95% (t)")
    note = (
        f"IoU in per cent, differences in points. Each interval stands alone: of {len(rows)} classes, one in twenty "
        "exceeds the noise by chance."
    )
    return TextTable(f"Per class: {group.name} against {base.name}", header, tuple(rows), (note,), left=2)


def percent(value: float | None) -> str:
    """Write a fraction in per cent with one decimal."""
    return ABSENT if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Write a difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def cell(value: Spread | None, expected: int | None = None) -> str:
    """Write mean ± deviation in per cent, and n where it is not the expected one."""
    if value is None:
        return ABSENT
    text = percent(value.mean) if value.sd is None else f"{percent(value.mean)} ± {percent(value.sd)}"
    return text if expected in (None, value.n) else f"{text} (n = {value.n})"


def interval(bounds: tuple[float, float] | None) -> str:
    """Write bounds in points."""
    return ABSENT if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def _by_seed(values: Sequence[tuple[int | None, float | None]]) -> str:
    return ", ".join(f"{seed}: {percent(value)}" for seed, value in values)
