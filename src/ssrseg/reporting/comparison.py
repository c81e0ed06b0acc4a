"""Groups of runs set against each other: scores, paired differences, and what seeds alone explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ssrseg.errors import UserError
from ssrseg.reporting.grouping import caveats, distance, essentials, grouped, members, methods, names
from ssrseg.reporting.statistics import Difference, Seeded, Spread, difference, holm, spread
from ssrseg.runs.records import Evaluation, RunRecord, Score, read_run, setting

Network = Literal["student", "teacher"]

FEW = 3
"""Seeds below which every interval is called a guess."""


@dataclass(frozen=True)
class Group:
    """Runs of one setting that differ in their seed alone. Scores are fractions in 0..1, of the last step."""

    name: str
    method: str
    """The published method, without what tells two settings of it apart."""
    runs: tuple[RunRecord, ...]
    network: Network

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted path -> value of what can change the result."""
        return essentials(self.runs[0])

    @property
    def scores(self) -> list[tuple[RunRecord, Score | None]]:
        """Each run with its scores at the last step."""
        return [(run, chosen(run.last, self.network)) for run in self.runs]

    def values(self, measure: Callable[[Score], float | None]) -> Seeded:
        """Collect (seed, value) of a measure; without the runs that lack it."""
        found = [(run.seed, measure(score)) for run, score in self.scores if score]
        return [(seed, value) for seed, value in found if value is not None]

    @cached_property
    def mious(self) -> Seeded:
        """(seed, mIoU)."""
        return self.values(lambda score: score.miou)

    @property
    def n(self) -> int:
        """Number of runs with scores."""
        return len(self.mious)

    @property
    def miou(self) -> Spread | None:
        """Mean IoU over seeds."""
        return _over(self.mious)

    @property
    def pixel_accuracy(self) -> Spread | None:
        """Pixel accuracy over seeds."""
        return _over(self.values(lambda score: score.pixel_accuracy))

    def subset(self, name: str) -> Spread | None:
        """Compute the mean IoU of a part of the classes, over seeds."""
        return _over(self.values(lambda score: score.subsets.get(name)))

    @property
    def best(self) -> Spread | None:
        """The mIoU of each seed's best evaluation: chosen with the target's labels, so an oracle's choice."""
        scores = [chosen(run.best, self.network) for run in self.runs]
        return spread([score.miou for score in scores if score and score.miou is not None])

    def ious(self, name: str) -> Seeded:
        """Collect (seed, IoU) of a class; without the seeds in which neither truth nor prediction has it."""
        scored = [(run, score) for run, score in self.scores if score and score.iou and name in run.classes]
        found = [(run.seed, score.iou[run.classes.index(name)]) for run, score in scored]
        return [(seed, value) for seed, value in found if value is not None]

    def iou(self, name: str) -> Spread | None:
        """Compute mean and deviation of a class's IoU over seeds."""
        return _over(self.ious(name))

    def mean_over(self, names: Sequence[str]) -> Seeded:
        """Collect (seed, mean IoU of some classes); without the seeds that lack a score of one of them."""
        each = [dict(self.ious(name)) for name in names]
        seeds = [seed for seed, _ in self.mious if each and all(seed in ious for ious in each)]
        return [(seed, fmean(ious[seed] for ious in each)) for seed in seeds]


@dataclass(frozen=True)
class Contrast:
    """One group minus another, both with scores, in mIoU and per class."""

    group: Group
    base: Group
    miou: Difference
    adjusted_p: float | None = None
    """Holm's, over all contrasts of the comparison."""

    @cached_property
    def classes(self) -> list[tuple[str, Difference | None]]:
        """Differences in IoU, largest gain first; last come the classes without a score in either group, as `None`."""
        both = [(name, self.base.ious(name), self.group.ious(name)) for name in self.group.runs[0].classes]
        found = [(name, difference(one, two)) for name, one, two in both if one and two]
        absent = [(name, None) for name, one, two in both if not (one and two)]
        return [*sorted(found, key=lambda each: -each[1].mean), *absent]

    @property
    def verdict(self) -> str:
        """The difference in words: better, worse, within noise, and whether that outlives Holm's correction."""
        words = self.miou.verdict
        if words in ("better", "worse") and self.adjusted_p is not None and self.adjusted_p > 0.05:
            return f"{words}, but within noise once all comparisons are counted"
        return words


@dataclass(frozen=True)
class Comparison:
    """Groups in the order of their first run, and their contrasts."""

    groups: tuple[Group, ...]
    reference: Group
    contrasts: tuple[Contrast, ...]
    """Every other group against the reference, then SSR against the method that it is added to; groups with scores."""
    classes: tuple[str, ...]
    network: Network
    caveats: tuple[str, ...]
    """Reasons for which the scores are less comparable than a table of them suggests."""
    tables: tuple[int, ...] = ()
    """The paper's tables to add: 1, 2."""

    def base_of(self, group: Group) -> Group | None:
        """Find, for a group with SSR, that of the same method without it whose other settings are closest."""
        if not group.method.endswith(" + SSR"):
            return None
        without = [other for other in self.groups if other.method == group.method.removesuffix(" + SSR")]
        return min(without, key=lambda other: distance(other.settings, group.settings), default=None)


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
    scored, notes = _with_scores(records, network, allow_unfinished)
    for run in scored:
        if run.classes != scored[0].classes:
            raise UserError(
                f"{run.folder} has the classes {', '.join(run.classes)}, but {scored[0].folder} has "
                f"{', '.join(scored[0].classes)}: their mIoU is not one measure. Compare runs of one label space."
            )
    found = compare_records(scored, against=against, network=network)
    tables = tuple(number for number, wanted in ((1, table1), (2, table2)) if wanted)
    return replace(found, caveats=(*notes, *found.caveats), tables=tables)


def compare_records(
    runs: Sequence[RunRecord], *, against: str | None = None, network: Network = "student"
) -> Comparison:
    """Compare at least one run that was read before; unfinished ones, those without scores and other classes are fine.

    Raises:
        UserError: no such group as `against`.
    """
    parts = grouped(runs)
    groups = tuple(
        Group(name, method, tuple(part), network)
        for name, method, part in zip(names(parts), methods([part[0] for part in parts]), parts, strict=True)
    )
    reference = _named(groups, against) if against is not None else groups[0]
    classes = tuple(dict.fromkeys(name for run in runs for name in run.classes))
    found = Comparison(groups, reference, (), classes, network, tuple(_caveats(groups, classes)))
    pairs = [(group, reference) for group in groups]
    pairs += [(group, base) for group in groups if (base := found.base_of(group)) is not None]
    seen: dict[frozenset[str], Contrast] = {}  # in either direction
    for group, base in pairs:
        if group is not base and group.mious and base.mious:
            contrast = Contrast(group, base, difference(base.mious, group.mious))
            seen.setdefault(frozenset((group.name, base.name)), contrast)
    adjusted = iter(holm([each.miou.p for each in seen.values() if each.miou.p is not None]))
    contrasts = (
        replace(each, adjusted_p=next(adjusted)) if each.miou.p is not None else each for each in seen.values()
    )
    return replace(found, contrasts=tuple(contrasts))


def chosen(evaluation: Evaluation | None, network: Network) -> Score | None:
    """Choose the scores of one of the two networks; `None` where it has none."""
    return None if evaluation is None else evaluation.student if network == "student" else evaluation.teacher


def _over(values: Seeded) -> Spread | None:
    return spread([value for _, value in values])


def _with_scores(runs: Sequence[RunRecord], network: Network, allow: bool) -> tuple[list[RunRecord], list[str]]:
    """Split off the runs that have no scores, or are refused; with notes on them."""
    unfinished = [run for run in runs if _is_unfinished(run)]
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
    other = [run for run in rest if not chosen(run.last, network)]
    scored = [run for run in rest if run not in other]
    if not scored:
        raise UserError(f"None of the {len(runs)} runs has scores of the {network} yet.")
    notes = [(empty, "Left out, without any score yet"), (other, f"Left out, without a {network}")]
    notes.append(([run for run in unfinished if run in scored], "Not finished, with its latest score"))
    return scored, [f"{what}: {_list(which)}." for which, what in notes if which]


def _is_unfinished(run: RunRecord) -> bool:
    """Tell whether the last score is not of the last step; a student made without steps (adjusted priors) has ended."""
    seen, wanted = run.steps
    if run.last is None:
        return wanted is not None and seen < wanted
    return bool(seen) and wanted is not None and run.last.step < wanted


def _list(runs: Sequence[RunRecord]) -> str:
    shown = [f"{run.folder} ({run.steps[0]} of {run.steps[1]} steps)" for run in runs[:5]]
    return ", ".join([*shown, f"and {len(runs) - 5} more"] if len(runs) > 5 else shown)


def _named(groups: Sequence[Group], wanted: str) -> Group:
    exact = [group for group in groups if group.name.lower() == wanted.lower()]
    found = exact or [group for group in groups if wanted.lower() in group.name.lower()]
    if len(found) != 1:
        known = ", ".join(repr(group.name) for group in found or groups)
        raise UserError(f"{wanted!r} names {'several groups' if found else 'no group'}; choose one of {known}.")
    return found[0]


def _caveats(groups: Sequence[Group], classes: Sequence[str]) -> Iterator[str]:
    runs = [run for group in groups for run in group.runs]
    yield from caveats([(group.name, group.runs) for group in groups])
    if len({run.classes for run in runs if run.last}) == 1:
        yield from _other_classes(groups, classes)
    few = [f"{group.name} (n = {group.n})" for group in groups if 0 < group.n < FEW]
    if few and len(groups) > 1:
        yield f"Fewer than {FEW} seeds: {', '.join(few)}. No interval from them is worth much; train more with --seeds."
    if len({setting(run.config, "train.evaluate_every") for run in runs}) > 1:
        yield "The runs were evaluated at different intervals: more evaluations find a better best*."


def _other_classes(groups: Sequence[Group], classes: Sequence[str]) -> Iterator[str]:
    """Warn of means over different classes: one wrong pixel of a class without labels costs 1/K of a mean."""
    runs = sum(len(group.values(lambda score: 1.0 if score.iou else None)) for group in groups)
    scored = {name: sum(len(group.ious(name)) for group in groups) for name in classes}
    if shaky := {name: count for name, count in scored.items() if 0 < count < runs}:
        counted = ", ".join(f"{name} in {count} of {runs} runs" for name, count in shaky.items())
        rest = [name for name, count in scored.items() if count and name not in shaky]
        means = [(group.name, _over(group.mean_over(rest))) for group in groups]
        means_over_rest = ", ".join(f"{name} {100 * found.mean:.1f}" for name, found in means if found)
        yield (
            f"The runs' means are over different classes: there is a score of {counted}. No label has such a class, "
            "and the first pixel that is predicted to be it makes a score of 0. Over the other "
            f"{len(rest)}: {means_over_rest}."
        )
