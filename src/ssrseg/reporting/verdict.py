"""What runs show and what they do not, in plain sentences: the first lines of every page and text about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from ssrseg.reporting.comparison import Comparison, Contrast, Group, corrected
from ssrseg.reporting.grouping import CORRECTIONS, dataset_of
from ssrseg.reporting.statistics import Difference, difference, over_seeds, share_of_gap, spearman
from ssrseg.reporting.text_tables import cell, data_of, domains, interval, percent, signed
from ssrseg.runs.folder import RECALIBRATED
from ssrseg.runs.records import TARGET_LABELS, RunRecord, setting

LISTED = 4
"""Classes or settings that a sentence names; of more it gives the number."""
NOTABLE = 0.02
"""Change of a class's IoU that is named where seeds are too few for an interval."""
ZERO = 0.0005
"""IoU below which tables print 0.0."""
METHOD = ("method.", "target.", "stage", "deploy.")
"""Settings in which an adapted group differs from its baseline in any case."""
STATISTICS = CORRECTIONS[RECALIBRATED]
LABELS = f" + {TARGET_LABELS}"
ALARMS = {"collapsed": r"The class (.+?) has collapsed", "apart": r"Student and teacher are far apart"}
"""Warnings of a run (`docs/guards.md`) by the sentence that counts them."""
FALLING = ("im", "agreement")
"""Criteria whose fall over a run is a sign of failure; the others rise and fall with convergence alone."""


def verdict(comparison: Comparison) -> list[str]:
    """Say what the runs show: scores, what adaptation added, classes, and what went wrong without labels.

    A difference counts where its 95% interval leaves out zero; a single seed is called no evidence. Runs that were
    scored on other data are never set against each other.
    """
    runs = [run for group in comparison.groups for run in group.runs]
    tasks: dict[Any, list[Group]] = {}
    for group in comparison.groups:
        if group.n:
            tasks.setdefault((dataset_of(group.runs[0], "val"), group.runs[0].classes), []).append(group)
    unscored = [group for group in comparison.groups if not group.n]
    late = [run for run in runs if run.unfinished]
    lines = [_say("unfinished", count=len(late), of=len(runs))] if late else []
    for groups in tasks.values():
        lines += _of_task(groups)
    for group in unscored:
        lines += [_without_labels(group), *_signs(group)]
    if any(run.selections for group in unscored for run in group.runs):
        lines.append(_say("criteria_mean"))
    return list(dict.fromkeys(lines))


def _say(key: str, **values: Any) -> str:
    return str(data_of("words.yaml")["verdict"][key]).format(**values)


def _of_task(groups: Sequence[Group]) -> Iterator[str]:
    """Speak of groups that were scored on the same data: the best adapted one against what it must beat."""
    every = [group for group in groups if _adapts(group)]
    adapted = [group for group in every if TARGET_LABELS not in group.method] or every
    tried = adapted or [group for group in groups if group.method == f"source-only{STATISTICS}"]
    contrasts = corrected(
        Contrast(group, base, difference(base.mious, group.mious))
        for group in tried
        if (base := _baseline(group, groups, "source-only"))
    )
    if not contrasts:
        yield from _alone(groups, bool(adapted))
    else:
        best = max(contrasts, key=lambda each: fmean(value for _, value in each.group.mious))
        statistics = _baseline(best.group, groups, f"source-only{STATISTICS}") if adapted else None
        yield _score("source_only", best.base)
        yield from _added(best, contrasts, statistics)
        if oracle := best.group.nearest([group for group in groups if group.method == "oracle"]):
            yield _gap(best, oracle)
        yield _classes(best)
    for group in groups:
        if base := _baseline(group, groups, group.method.replace(LABELS, "")) if LABELS in group.method else None:
            gap = difference(base.mious, group.mious)
            yield _say(f"labels_{_kind(gap)}", group=group.name, base=base.name, miou=_mean(group), **_figures(gap))
    if names := domains(groups):
        yield _say("domains", found="; ".join(f"{each.name} has {_on(each, names)}" for each in groups))
    zeros = {group.name: [name for name in group.runs[0].classes if _is_zero(group, name)] for group in groups}
    if found := [f"{name}: {_listed(classes)}" for name, classes in zeros.items() if classes]:
        yield _say("zero", found="; ".join(found))
    for group in groups:
        yield from _signs(group)


def _adapts(group: Group) -> bool:
    """Whether the group is the end of a training on target images; their statistics alone are no training."""
    plain = group.method.removesuffix(STATISTICS).removesuffix(" + SSR")
    if plain in ("source-only", "oracle") or ": " in plain:  # a stage on the way
        return False
    return setting(group.runs[0].config, "target") is not None or plain.startswith("Undoing")  # its target is labelled


def _baseline(group: Group, groups: Sequence[Group], method: str) -> Group | None:
    """Find the nearest group of a method, other than itself, with the same source and network."""

    def key(of: Group) -> tuple[Any, ...]:
        network = (setting(of.runs[0].config, f"model.{part}") for part in ("backbone", "head"))
        return dataset_of(of.runs[0], "source"), *network

    return group.nearest([each for each in groups if each.method == method and key(each) == key(group)])


def _alone(groups: Sequence[Group], adapted: bool) -> Iterator[str]:
    """Give scores, and of a single group how they changed in training, where no baseline is at hand."""
    if len(groups) > 1:
        yield _say("scores", scores=", ".join(f"{each.name} {cell(each.miou)} (n = {each.n})" for each in groups))
    else:
        (group,) = groups
        yield _score("score", group)
        pairs = [(run, getattr(run.evaluations[0], group.network)) for run in group.runs if len(run.evaluations) > 1]
        first = [(run.seed, score.miou) for run, score in pairs if score and score.miou is not None]
        if first:
            change = difference(first, group.mious)
            before, step = percent(fmean(value for _, value in first)), pairs[0][0].evaluations[0].step
            yield _say(f"course_{_kind(change)}", before=before, step=step, after=_mean(group), **_figures(change))
    if adapted:
        yield _say("no_base")


def _added(best: Contrast, contrasts: Sequence[Contrast], statistics: Group | None) -> Iterator[str]:
    """Say what adaptation added to source-only, what it did not, and which student to deploy."""
    choice = _choice(best, statistics)
    name = (choice or best.base).name
    chance = best.miou.verdict == "better" and best.verdict != "better"  # among so many
    kind = "within" if chance else _kind(best.miou)
    kind += "_less" if kind == "few" and best.miou.mean < 0 else ""
    values = _figures(best.miou) | {"words": best.verdict, "choice": name, "base_miou": _mean(best.base)}
    yield _say(f"added_{kind}", group=best.group.name, miou=_mean(best.group), base=best.base.name, **values)
    both = best.group.settings.keys() & best.base.settings.keys()
    others = [key for key in best.group.differing(best.base) if key in both and not key.startswith(METHOD)]
    if others:
        yield _say("confounded", settings=_listed(others))
    for each in contrasts:
        if each is not best and each.miou.verdict == "worse":
            yield _say("harmed", group=each.group.name, base=each.base.name, choice=name, **_figures(each.miou))
    if statistics is not None:
        gap = difference(statistics.mious, best.group.mious)
        values = {"group": best.group.name, "statistics": statistics.name, "miou": _mean(statistics), **_figures(gap)}
        yield _say(f"statistics_{_kind(gap)}", **values)
    if choice is not None and kind != "worse":
        yield _say("deploy", choice=name)


def _choice(best: Contrast, statistics: Group | None) -> Group | None:
    """Choose the simplest student that no other one beats beyond noise; `None` where one has a single seed."""
    options = [best.base, *([statistics] if statistics else []), best.group]

    def beats(one: Group, other: Group) -> bool:
        known = best.verdict if (one, other) == (best.group, best.base) else None
        return (known or difference(other.mious, one.mious).verdict) == "better"

    if min(option.n for option in options) < 2:
        return None
    left = [each for each in options if not any(beats(other, each) for other in options if other is not each)]
    return left[0] if left else best.group


def _gap(best: Contrast, oracle: Group) -> str:
    """Say which share of the way from source-only to the oracle was gone."""
    gap = difference(best.base.mious, oracle.mious)
    share = share_of_gap(best.base.mious, best.group.mious, oracle.mious)
    values = {"group": best.group.name, "base": best.base.name, "oracle": oracle.name, "miou": _mean(oracle)}
    if gap.mean <= 0 or share is None or gap.verdict == "within noise":
        return _say("gap_none", **values, **_figures(gap))
    if share.interval is None:
        return _say("gap_few", **values, share=f"{100 * share.mean:.0f}%".replace("-", "−"))
    low, high = (f"{100 * bound:.0f}%".replace("-", "−") for bound in share.interval)
    kind = "closed" if best.verdict == share.verdict == "better" else "open"
    values |= {"share": f"{100 * share.mean:.0f}%".replace("-", "−"), "low": low, "high": high, "test": share.test}
    return _say(f"gap_{kind}", points=f"{100 * gap.mean:.1f}", **values)


def _classes(best: Contrast) -> str:
    """Name the classes that changed by more than noise; with single seeds, by `NOTABLE`."""
    known = [(name, gap) for name, gap in best.classes if gap]
    few = all(gap.interval is None for _, gap in known)

    def named(sign: int) -> str:
        def counts(gap: Difference) -> bool:
            return sign * gap.mean >= NOTABLE if few else gap.verdict == ("better" if sign > 0 else "worse")

        found = sorted(((name, gap.mean) for name, gap in known if counts(gap)), key=lambda each: -sign * each[1])
        return _listed([f"{name} {signed(mean)}" for name, mean in found])

    gained, lost = named(1), named(-1)
    key = ("classes_few" if few else "classes") if gained or lost else "classes_few_none" if few else "classes_none"
    words = {"gained": gained or "none", "lost": lost or "none", "group": best.group.name, "base": best.base.name}
    return _say(key, count=len(known), notable=f"{100 * NOTABLE:g}", **words)


def _is_zero(group: Group, name: str) -> bool:
    """Whether a class that has labels, as far as is known, is never found by any seed."""
    ious = [value for _, value in group.ious(name)]
    matrices = [(run.classes.index(name), score.confusion) for run, score in group.scores if score and score.confusion]
    labelled = not matrices or any(sum(confusion[number]) for number, confusion in matrices)
    return bool(ious) and max(ious) < ZERO and labelled


def _signs(group: Group) -> Iterator[str]:
    """Count the runs with an alarm, and those whose last student is worse than their first one without labels."""
    for key, pattern in ALARMS.items():
        found = [[re.match(pattern, note.text) for note in run.notes if note.warning] for run in group.runs]
        matches = [list(filter(None, each)) for each in found]
        if count := sum(map(bool, matches)):
            names = _listed(list(dict.fromkeys(name for each in matches for match in each for name in match.groups())))
            yield _say(key, group=group.name, count=count, of=len(group.runs), names=names)
    for criterion in FALLING:
        courses = [course for run in group.runs if len(course := _course(run, criterion)) > 1]
        fallen = [course for course in courses if course[-1][1] < course[0][1] and not _rises(course)]
        if fallen:
            values = {"criterion": _criterion(criterion), "group": group.name, "count": len(fallen)}
            yield _say("falling", **values, of=len(courses), **_ends(fallen))


def _without_labels(group: Group) -> str:
    """Say what is known of a group without a score: an earlier one, or the criteria's first and last values."""
    seen = [run.evaluations[-1] for run in group.runs if run.evaluations]
    if seen:
        score = percent(seen[0].student.miou)
        return _say("not_scored_yet", group=group.name, step=seen[0].step, miou=score)
    if setting(group.runs[0].config, "val") is not None:
        return _say("not_scored", group=group.name)
    names = dict.fromkeys(name for run in group.runs for each in run.selections for name in each.criteria)
    courses = {name: [course for run in group.runs if (course := _course(run, name))] for name in names}
    told = [_told(name, _ends(found)) for name, found in courses.items() if found]
    return _say("criteria", group=group.name, told="; ".join(told)) if told else _say("blind", group=group.name)


def _told(criterion: str, ends: dict[str, Any]) -> str:
    once = "_once" if ends["start"] == ends["end"] else ""
    return _say(f"criterion{once}", criterion=_criterion(criterion), **ends)


def _course(run: RunRecord, criterion: str) -> list[tuple[int, float]]:
    """List (step, value) of a criterion."""
    return [(each.step, value) for each in run.selections if (value := each.criteria.get(criterion)) is not None]


def _rises(course: Sequence[tuple[int, float]]) -> bool:
    """Whether the trend over all evaluations is upwards, so that a low last value says little."""
    trend = spearman([step for step, _ in course], [value for _, value in course])
    return trend is not None and trend >= 0


def _ends(courses: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """Give the mean of first and of last values over runs, with the steps of the first run."""
    first, last = (f"{fmean(course[end][1] for course in courses):.3g}".replace("-", "−") for end in (0, -1))
    return {"first": first, "last": last, "start": courses[0][0][0], "end": courses[0][-1][0]}


def _criterion(name: str) -> str:
    return str(data_of("words.yaml")["criteria"].get(name, name))


def _kind(gap: Difference) -> str:
    """`better`, `worse`, `within` or `few`, the last word of the sentence's key."""
    return {"within noise": "within", "too few seeds": "few"}.get(gap.verdict, gap.verdict)


def _figures(gap: Difference) -> dict[str, str]:
    """Write a difference with and without its sign, and what its interval is."""
    evidence = f"95% {interval(gap.interval)}, {gap.test}" if gap.interval else "one seed"
    return {"signed": signed(gap.mean), "points": f"{100 * abs(gap.mean):.1f}", "evidence": evidence}


def _score(key: str, group: Group) -> str:
    deviation = percent(group.miou.sd if group.miou else None)
    seeds = _say("seeds", n=group.n, deviation=deviation) if group.n > 1 else _say("one_seed")
    return _say(key, group=group.name, network=group.network, miou=_mean(group), seeds=seeds)


def _on(group: Group, names: Sequence[str]) -> str:
    spreads = {name: over_seeds(group.mious_on(name)) for name in names}
    return ", ".join(f"{cell(found)} on {name}" for name, found in spreads.items())


def _mean(group: Group) -> str:
    return percent(group.miou.mean if group.miou else None)


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*names[:LISTED], *more])
