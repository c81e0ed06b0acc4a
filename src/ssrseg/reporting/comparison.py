"""Groups of runs set against each other: scores, paired differences, and what seeds alone explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ssrseg.errors import UserError
from ssrseg.reporting.grouping import grouped, members
from ssrseg.reporting.statistics import Difference, Seeded, Spread, difference, holm, over_seeds, spread
from ssrseg.runs.records import TARGET_LABELS, RunRecord, Score, read_run, setting

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
    settings: dict[str, Any]
    """Dotted path -> value of what can change the result."""

    @property
    def scores(self) -> list[tuple[RunRecord, Score | None]]:
        """Each run with its scores at the last step."""
        return [(run, getattr(run.last, self.network, None)) for run in self.runs]

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
        return over_seeds(self.mious)

    @property
    def best(self) -> Spread | None:
        """The mIoU of each seed's best evaluation: chosen with the target's labels, so an oracle's choice."""
        scores = [getattr(run.best, self.network, None) for run in self.runs]
        return spread([score.miou for score in scores if score and score.miou is not None])

    def ious(self, name: str, domain: str | None = None) -> Seeded:
        """Collect (seed, IoU) of a class, of all that is scored or of a `domain`, in the seeds that have the class."""
        scored = [(run, score.domains.get(domain) if domain else score) for run, score in self.scores if score]
        found = [(run.seed, dict(zip(run.classes, one.iou, strict=False)).get(name)) for run, one in scored if one]
        return [(seed, value) for seed, value in found if value is not None]

    def iou(self, name: str, domain: str | None = None) -> Spread | None:
        """Compute mean and deviation of a class's IoU over seeds."""
        return over_seeds(self.ious(name, domain))

    def mious_on(self, domain: str) -> Seeded:
        """Collect (seed, mIoU) on one of several validation sets."""
        return self.values(lambda score: score.domains[domain].miou if domain in score.domains else None)

    def differing(self, other: Group) -> list[str]:
        """List the settings in which another group differs."""
        keys = dict.fromkeys([*self.settings, *other.settings])
        return [key for key in keys if self.settings.get(key) != other.settings.get(key)]

    def nearest(self, others: Sequence[Group]) -> Group | None:
        """Find the group with the fewest other settings; `None` for no groups."""
        return min(others, key=lambda other: len(self.differing(other)), default=None)

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
    """Every other group with scores against the reference, then SSR or target labels against the method without."""
    classes: tuple[str, ...]
    network: Network
    caveats: tuple[str, ...]
    """Reasons for which the scores are less comparable than a table of them suggests."""
    tables: tuple[int, ...] = ()
    """The paper's tables to add: 1, 2."""

    def base_of(self, group: Group) -> Group | None:
        """Find, for a group with SSR or else target labels, the nearest of the same method without."""
        part = next((part for part in (" + SSR", f" + {TARGET_LABELS}") if part in group.method), None)
        plain = None if part is None else group.method.replace(part, "")
        return group.nearest([other for other in self.groups if other.method == plain])


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

    Raises `UserError` where there is no such group as `against`.
    """
    groups = tuple(
        Group(name, method, tuple(part), network, settings) for name, method, part, settings in grouped(runs)
    )
    reference = groups[0]
    if against is not None:
        exact = [group for group in groups if group.name.lower() == against.lower()]
        near = exact or [group for group in groups if against.lower() in group.name.lower()]
        if len(near) != 1:
            known = ", ".join(repr(group.name) for group in near or groups)
            raise UserError(f"{against!r} names {'several groups' if near else 'no group'}; choose one of {known}.")
        reference = near[0]
    classes = tuple(dict.fromkeys(name for run in runs for name in run.classes))
    found = Comparison(groups, reference, (), classes, network, tuple(_caveats(groups, classes)))
    pairs = [(group, reference) for group in groups]
    pairs += [(group, base) for group in groups if (base := found.base_of(group)) is not None]
    seen: dict[frozenset[str], Contrast] = {}  # in either direction
    for group, base in pairs:
        if group is not base and group.mious and base.mious:
            contrast = Contrast(group, base, difference(base.mious, group.mious))
            seen.setdefault(frozenset((group.name, base.name)), contrast)
    return replace(found, contrasts=corrected(seen.values()))


def corrected(contrasts: Iterable[Contrast]) -> tuple[Contrast, ...]:
    """Give contrasts their p, corrected for all of them."""
    found = list(contrasts)
    adjusted = iter(holm([each.miou.p for each in found if each.miou.p is not None]))
    return tuple(each if each.miou.p is None else replace(each, adjusted_p=next(adjusted)) for each in found)


def _with_scores(runs: Sequence[RunRecord], network: Network, allow: bool) -> tuple[list[RunRecord], list[str]]:
    """Split off the runs that have no scores, or are refused; with notes on them."""

    def listed(runs: Sequence[RunRecord]) -> str:
        shown = [f"{run.folder} ({run.steps[0]} of {run.steps[1]} steps)" for run in runs[:5]]
        return ", ".join([*shown, f"and {len(runs) - 5} more"] if len(runs) > 5 else shown)

    unfinished = [run for run in runs if run.unfinished]
    if unfinished and not allow:
        raise UserError(
            f"Not finished: {listed(unfinished)}. Go on with `ssrseg train --resume --out RUN`, or compare what "
            "there is with --allow-unfinished."
        )
    empty = [run for run in runs if not (run.last and run.last.student.miou is not None)]
    if lost := [run for run in empty if run not in unfinished]:
        raise UserError(
            f"Without scores: {listed(lost)}. They had no labelled target images: give `val` in training, or score "
            "student-last.safetensors with `ssrseg evaluate`. Leave them out to compare the others."
        )
    other = [run for run in runs if run not in empty and not getattr(run.last, network)]
    scored = [run for run in runs if run not in empty and run not in other]
    if not scored:
        raise UserError(f"None of the {len(runs)} runs has scores of the {network} yet.")
    notes = [
        (empty, "Left out, without any score yet"),
        (other, f"Left out, without a {network}"),
        ([run for run in unfinished if run in scored], "Not finished, with its latest score"),
    ]
    return scored, [f"{what}: {listed(which)}." for which, what in notes if which]


def _caveats(groups: Sequence[Group], classes: Sequence[str]) -> Iterator[str]:
    """Say what makes the scores less comparable than a table of them suggests."""
    runs = [run for group in groups for run in group.runs]
    scored = [run for run in runs if run.last]
    spaces = {run.classes for run in scored}
    settings = [group.settings for group in groups if any(run.last for run in group.runs)]

    def differ(prefix: str) -> bool:
        found = [{key: value for key, value in own.items() if key.startswith(prefix)} for own in settings]
        return any(values != found[0] for values in found)

    if len(scored) < len(runs):
        yield f"{len(runs) - len(scored)} of {len(runs)} runs have no scores and count in no mean."
    steps = sorted({run.last.step for run in scored if run.last and run.last.step})
    if len(steps) > 1:
        yield f"The runs were scored at different steps: {', '.join(map(str, steps))}."
    if differ("val.") or len(spaces) > 1:
        yield "The runs were scored on different data or classes: their mIoU is not one measure."
    if differ("inference."):
        yield "The runs were scored with different inference settings."
    for group in groups:
        if twice := [str(seed) for seed, count in Counter(run.seed for run in group.runs).items() if count > 1]:
            yield f"{group.name}: seed {', '.join(twice)} ran more than once; such runs are hardly independent."
    if len(spaces) == 1:
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
        means = [(group.name, over_seeds(group.mean_over(rest))) for group in groups]
        means_over_rest = ", ".join(f"{name} {100 * found.mean:.1f}" for name, found in means if found)
        yield (
            f"The runs' means are over different classes: there is a score of {counted}. No label has such a class, "
            "and the first pixel that is predicted to be it makes a score of 0. Over the other "
            f"{len(rest)}: {means_over_rest}."
        )
