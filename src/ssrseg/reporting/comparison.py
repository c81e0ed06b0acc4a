"""Groups of runs set against each other: scores, paired differences, and what seeds alone explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ssrseg.errors import UserError
from ssrseg.reporting.grouping import caveats, distance, essentials, grouped, methods, names
from ssrseg.reporting.groups import members
from ssrseg.reporting.statistics import Difference, Spread, difference, holm, spread
from ssrseg.runs.records import Evaluation, RunRecord, Score, read_run, setting

Network = Literal["student", "teacher"]

FEW = 3
"""Seeds below which every interval is called a guess."""


@dataclass(frozen=True)
class Arm:
    """Runs of one setting that differ in their seed alone. Scores are fractions in 0..1."""

    name: str
    method: str
    """The published method, without what tells two settings of it apart."""
    runs: tuple[RunRecord, ...]
    network: Network
    classes: tuple[str, ...]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted path -> value of what can change the result."""
        return essentials(self.runs[0])

    @property
    def mious(self) -> list[tuple[int | None, float]]:
        """(seed, mIoU) at the last step."""
        return [(seed, score.miou) for seed, score in self._last if score.miou is not None]

    @property
    def miou(self) -> Spread:
        """Of the last step, over seeds."""
        found = spread([value for _, value in self.mious])
        assert found is not None  # runs without scores are never part of an arm
        return found

    @property
    def best(self) -> Spread | None:
        """Of each seed's best evaluation: chosen with the target's labels, so an oracle's choice."""
        scores = [score for run in self.runs if run.best and (score := chosen(run.best, self.network))]
        return spread([score.miou for score in scores if score.miou is not None])

    def ious(self, name: str) -> list[tuple[int | None, float]]:
        """(seed, IoU) of a class at the last step; without the seeds in which neither truth nor prediction has it."""
        index = self.classes.index(name)
        found = [(seed, score.iou[index]) for seed, score in self._last if score.iou]
        return [(seed, value) for seed, value in found if value is not None]

    def mean_over(self, names: Sequence[str]) -> list[tuple[int | None, float]]:
        """(seed, mean IoU of some classes) at the last step; without the seeds that lack a score of one of them."""
        each = [dict(self.ious(name)) for name in names]
        seeds = [seed for seed, _ in self.mious if each and all(seed in ious for ious in each)]
        return [(seed, fmean(ious[seed] for ious in each)) for seed in seeds]

    @property
    def rows(self) -> list[tuple[float | None, ...]]:
        """IoU per class at the last step, a row for each seed that has them."""
        return [score.iou for _, score in self._last if score.iou]

    @property
    def _last(self) -> list[tuple[int | None, Score]]:
        return [(run.seed, score) for run in self.runs if run.last and (score := chosen(run.last, self.network))]


@dataclass(frozen=True)
class Contrast:
    """One arm minus another, in mIoU and per class."""

    arm: Arm
    base: Arm
    miou: Difference
    adjusted_p: float | None = None
    """Holm's, over all contrasts of the comparison."""

    @property
    def classes(self) -> list[tuple[str, Difference | None]]:
        """Differences in IoU, largest gain first; last come the classes without a score in either arm, as `None`."""
        both = [(name, self.base.ious(name), self.arm.ious(name)) for name in self.arm.classes]
        found = [(name, difference(one, two)) for name, one, two in both if one and two]
        absent = [(name, None) for name, one, two in both if not (one and two)]
        return [*sorted(found, key=lambda each: -each[1].mean), *absent]

    @property
    def verdict(self) -> str:
        """The difference in words: better, worse, within noise, and whether that outlives Holm's correction."""
        told = self.miou.verdict
        if told in ("better", "worse") and self.adjusted_p is not None and self.adjusted_p > 0.05:
            return f"{told}, but within noise once all comparisons are counted"
        return told


@dataclass(frozen=True)
class Comparison:
    """Arms in the order of their first run, and their contrasts."""

    arms: tuple[Arm, ...]
    reference: Arm
    contrasts: tuple[Contrast, ...]
    """Every other arm against the reference, then SSR against the method that it is added to."""
    classes: tuple[str, ...]
    network: Network
    caveats: tuple[str, ...]
    tables: tuple[int, ...] = ()
    """Which of the paper's tables are wanted: 1, 2."""

    def contrast(self, arm: Arm, base: Arm) -> Difference:
        """The difference in mIoU of any two arms."""
        return difference(base.mious, arm.mious)

    def base_of(self, arm: Arm) -> Arm | None:
        """For an arm with SSR: the arm of the same method without it whose other settings are closest."""
        if not arm.method.endswith(" + SSR"):
            return None
        without = [other for other in self.arms if other.method == arm.method.removesuffix(" + SSR")]
        return min(without, key=lambda other: distance(other.settings, arm.settings), default=None)


def compare(
    runs: Sequence[Path | str],
    *,
    against: str | None = None,
    network: Network = "student",
    table1: bool = False,
    table2: bool = False,
    allow_unfinished: bool = False,
) -> Comparison:
    """Group runs by their settings and say what differs beyond the noise of seeds.

    Args:
        runs: run folders, folders of groups, folders of recipes with stages.
        against: name of the group that the others are compared with, or a part that only one has; the first if absent.
        network: whose scores; runs without a teacher are left out where its are wanted.
        table1: add the paper's ablation of stages, ours beside it.
        table2: add the paper's comparison of methods, ours beside it.
        allow_unfinished: take the latest scores of runs that have not ended; those without any are left out.

    Raises:
        UserError: no run given, runs that are unfinished, have no scores or other classes, or no such group.
    """
    folders = list(dict.fromkeys(folder for run in runs for folder in members(Path(run).resolve())))
    if not folders:
        raise UserError("No run to compare: give run folders, or folders of groups.")
    records = [read_run(folder) for folder in folders]
    scored, notes = _scored(records, network, allow_unfinished)
    classes = _classes(scored)
    parts = grouped(scored)
    arms = tuple(
        Arm(name, method, tuple(part), network, classes)
        for name, method, part in zip(names(parts), methods([part[0] for part in parts]), parts, strict=True)
    )
    reference = _named(arms, against) if against is not None else arms[0]
    wanted = tuple(number for number, asked in ((1, table1), (2, table2)) if asked)
    result = Comparison(arms, reference, (), classes, network, (*notes, *_caveats(arms)), wanted)
    return replace(result, contrasts=_contrasts(result))


def chosen(evaluation: Evaluation, network: Network) -> Score | None:
    """The scores of one of the two networks."""
    return evaluation.student if network == "student" else evaluation.teacher


def _scored(runs: Sequence[RunRecord], network: Network, allow: bool) -> tuple[list[RunRecord], list[str]]:
    """The runs that have what is compared, and notes on those that do not."""
    unfinished = [run for run in runs if _unfinished(run)]
    if unfinished and not allow:
        raise UserError(
            f"Not finished: {_list(unfinished)}. Go on with `ssrseg train --resume --out RUN`, or compare what "
            "there is with --allow-unfinished."
        )
    empty = [run for run in runs if not (run.last and run.last.student.miou is not None)]
    if lost := [run for run in empty if run not in unfinished]:
        raise UserError(
            f"Without scores: {_list(lost)}. They had no labelled target images: give `val` in training, or score "
            "student-last.safetensors with `ssrseg evaluate`. Leave them out to compare the others."
        )
    rest = [run for run in runs if run not in empty]
    silent = [run for run in rest if run.last and not chosen(run.last, network)]
    scored = [run for run in rest if run not in silent]
    if not scored:
        raise UserError(f"None of the {len(runs)} runs has scores of the {network} yet.")
    said = [(empty, "Left out, without any score yet"), (silent, f"Left out, without a {network}")]
    said.append(([run for run in unfinished if run in scored], "Not finished, with its latest score"))
    return scored, [f"{what}: {_list(which)}." for which, what in said if which]


def _unfinished(run: RunRecord) -> bool:
    """Whether its last score is not that of its last step; what no step made, such as an adjusted prior, has ended."""
    seen, wanted = run.steps
    if run.last is None:
        return wanted is not None and seen < wanted
    return bool(seen) and wanted is not None and run.last.step < wanted


def _list(runs: Sequence[RunRecord]) -> str:
    shown = [f"{run.folder} ({run.steps[0]} of {run.steps[1]} steps)" for run in runs[:5]]
    return ", ".join([*shown, f"and {len(runs) - 5} more"] if len(runs) > 5 else shown)


def _classes(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    first = runs[0]
    for run in runs:
        if run.classes != first.classes:
            raise UserError(
                f"{run.folder} has the classes {', '.join(run.classes)}, but {first.folder} has "
                f"{', '.join(first.classes)}: their mIoU is not one measure. Compare runs of one label space."
            )
    return first.classes


def _named(arms: Sequence[Arm], wanted: str) -> Arm:
    exact = [arm for arm in arms if arm.name.lower() == wanted.lower()]
    found = exact or [arm for arm in arms if wanted.lower() in arm.name.lower()]
    if len(found) != 1:
        known = ", ".join(repr(arm.name) for arm in found or arms)
        raise UserError(f"{wanted!r} names {'several groups' if found else 'no group'}; choose one of {known}.")
    return found[0]


def _contrasts(comparison: Comparison) -> tuple[Contrast, ...]:
    arms, reference = comparison.arms, comparison.reference
    pairs = [(arm, reference) for arm in arms if arm is not reference]
    pairs += [(arm, base) for arm in arms if (base := comparison.base_of(arm)) and base is not reference]
    found = [Contrast(arm, base, comparison.contrast(arm, base)) for arm, base in _unique(pairs)]
    tested = [contrast.miou.p for contrast in found if contrast.miou.p is not None]
    adjusted = iter(holm(tested))
    return tuple(replace(each, adjusted_p=next(adjusted) if each.miou.p is not None else None) for each in found)


def _unique(pairs: Sequence[tuple[Arm, Arm]]) -> Iterator[tuple[Arm, Arm]]:
    """Without pairs seen before, in either direction."""
    seen: set[frozenset[str]] = set()
    for arm, base in pairs:
        if (key := frozenset((arm.name, base.name))) not in seen:
            seen.add(key)
            yield arm, base


def _caveats(arms: Sequence[Arm]) -> Iterator[str]:
    yield from caveats([(arm.name, arm.runs) for arm in arms])
    yield from _other_classes(arms)
    if few := [f"{arm.name} (n = {arm.miou.n})" for arm in arms if arm.miou.n < FEW]:
        yield f"Fewer than {FEW} seeds: {', '.join(few)}. No interval from them is worth much; train more with --seeds."
    if len({setting(run.config, "train.evaluate_every") for arm in arms for run in arm.runs}) > 1:
        yield "The runs were evaluated at different intervals: more evaluations find a better best*."


def _other_classes(arms: Sequence[Arm]) -> Iterator[str]:
    """A mean over one class more is another measure: one wrong pixel of a class without labels costs 1/K of it."""
    columns = dict(zip(arms[0].classes, zip(*(row for arm in arms for row in arm.rows), strict=True), strict=False))
    scored = {name: sum(iou is not None for iou in column) for name, column in columns.items()}
    shaky = {name: count for name, count in scored.items() if 0 < count < len(columns[name])}
    if not shaky:
        return
    told = ", ".join(f"{name} in {count} of {len(columns[name])} runs" for name, count in shaky.items())
    rest = [name for name, count in scored.items() if count and name not in shaky]
    found = [(arm.name, [mean for _, mean in arm.mean_over(rest)]) for arm in arms]
    means = [f"{name} {100 * fmean(values):.1f}" for name, values in found if values]
    yield (
        f"The runs' means are over different classes: there is a score of {told}. No label has such a class, and the "
        f"first pixel that is predicted to be it makes a score of 0. Over the other {len(rest)}: {', '.join(means)}."
    )
