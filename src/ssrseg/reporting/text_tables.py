"""A comparison as tables of text: what every format shows in its own way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ssrseg.reporting.comparison import Comparison, Contrast
from ssrseg.reporting.statistics import ENOUGH_TO_RESAMPLE, RESAMPLES, Difference, Spread, spread
from ssrseg.reporting.tables import ABSENT, percent, signed


@dataclass(frozen=True)
class Sheet:
    """A table of text with a title and notes; the first `left` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1


def scores(comparison: Comparison) -> Sheet:
    """Every arm: n, mean and deviation of last and best, every seed."""
    rows = [
        (
            arm.name,
            str(arm.miou.n),
            cell(arm.miou),
            cell(arm.best),
            ", ".join(f"{seed}: {percent(value)}" for seed, value in arm.mious),
        )
        for arm in comparison.arms
    ]
    notes = (
        f"mIoU of the {comparison.network} at the last step, in per cent; mean ± sample standard deviation over seeds.",
        "best*: each seed's best evaluation. It was chosen with the target's labels, which a user without them cannot "
        "do: an oracle's choice.",
    )
    return Sheet("Scores", ("group", "n", "mIoU", "best*", "by seed"), tuple(rows), notes)


def differences(comparison: Comparison) -> Sheet:
    """Every contrast with its intervals and what they say."""
    rows = [
        (
            each.arm.name,
            each.base.name,
            each.miou.test or "one seed",
            each.verdict,
            signed(each.miou.mean),
            interval(each.miou.interval),
            interval(each.miou.bootstrap),
            _p(each.miou.p),
            _p(each.adjusted_p),
        )
        for each in comparison.contrasts
    ]
    header = ("group", "against", "test", "in words", "difference", "95% (t)", "95% (bootstrap)", "p", "p (Holm)")
    resampled = (
        f"bootstrap: percentiles of {RESAMPLES:,} resamples of the paired differences, from {ENOUGH_TO_RESAMPLE} pairs "
        "on; too narrow for few seeds, so the words do not follow it.",
    )
    notes = (
        "Differences in mIoU, in points. The words follow the interval from Student's t: within noise when it holds "
        "zero.",
        *(resampled if any(each.miou.bootstrap for each in comparison.contrasts) else ()),
        f"p: two-sided, of that t. p (Holm): the same, corrected for all {len(rows)} comparisons of this table.",
    )
    return Sheet("Differences", header, tuple(rows), notes if rows else ("One group: nothing to compare.",), left=4)


def sentence(contrast: Contrast) -> str:
    """A contrast as one line."""
    text = f"{contrast.arm.name} against {contrast.base.name}: {signed(contrast.miou.mean)} points of mIoU"
    if contrast.miou.interval is None:
        return f"{text}. One seed: no statement about noise."
    return f"{text}, 95% {interval(contrast.miou.interval)} ({contrast.miou.test}): {contrast.verdict}."


def per_class(comparison: Comparison) -> Sheet:
    """IoU of every class in every arm."""
    rows = []
    for name in comparison.classes:
        found = [spread([value for _, value in arm.ious(name)]) for arm in comparison.arms]
        rows.append((name, *(cell(each, arm.miou.n) for each, arm in zip(found, comparison.arms, strict=True))))
    note = f"In per cent. {ABSENT}: neither truth nor prediction has the class; n where it differs from the group's."
    return Sheet("IoU per class", ("class", *(arm.name for arm in comparison.arms)), tuple(rows), (note,))


def class_differences(contrast: Contrast) -> Sheet:
    """One contrast per class, the largest gain first."""
    rows = []
    for name, gap in contrast.classes:
        base, arm = (spread([value for _, value in each.ious(name)]) for each in (contrast.base, contrast.arm))
        words = gap.verdict if gap else "absent"
        numbers = (signed(gap.mean), interval(gap.interval)) if gap else (ABSENT, ABSENT)
        rows.append((name, words, cell(base), cell(arm), *numbers))
    header = ("class", "in words", contrast.base.name, contrast.arm.name, "difference", "95% (t)")
    note = (
        f"IoU in per cent, differences in points. Each interval stands alone: of {len(rows)} classes, one in twenty "
        "exceeds the noise by chance."
    )
    return Sheet(f"Per class: {contrast.arm.name} against {contrast.base.name}", header, tuple(rows), (note,), left=2)


def general(comparison: Comparison) -> Iterator[Sheet]:
    """Everything but the paper's tables."""
    yield scores(comparison)
    yield differences(comparison)
    yield per_class(comparison)
    for contrast in comparison.contrasts:
        yield class_differences(contrast)


def cell(value: Spread | None, expected: int | None = None) -> str:
    """Mean ± deviation in per cent, and n where it is not the expected one."""
    if value is None:
        return ABSENT
    text = percent(value.mean) if value.sd is None else f"{percent(value.mean)} ± {percent(value.sd)}"
    return text if expected in (None, value.n) else f"{text} (n = {value.n})"


def interval(bounds: tuple[float, float] | None) -> str:
    """Bounds in points."""
    return ABSENT if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def gain(gap: Difference) -> str:
    """A difference with its interval and what it says, in one cell."""
    if gap.interval is None:
        return f"{signed(gap.mean)} (too few seeds)"
    return f"{signed(gap.mean)} [{interval(gap.interval)}], {gap.verdict}"


def _p(value: float | None) -> str:
    return ABSENT if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
