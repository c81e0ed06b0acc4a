"""How well a student can be chosen without labels: each criterion against the true mIoU, where there is one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ssrseg.reporting.tables import ABSENT, percent
from ssrseg.runs.records import RunRecord

NAMES = {
    "im": "information maximisation",
    "snd": "soft neighbourhood density",
    "agreement": "student-teacher agreement",
    "confidence": "confidence",
}

LEGEND = (
    "Chosen by the highest value over all evaluations, from unlabelled target images alone. Rank correlation: "
    "Spearman's, between the criterion and the true mIoU over the evaluations (1 orders them rightly). mIoU in per "
    "cent; regret is what the choice loses against the best evaluation, in points. * The oracle looked at the target's "
    "labels, which a user without them cannot do."
)


@dataclass(frozen=True)
class Choice:
    """The step that a rule chooses, and how good that was; `None` where the target's labels are not known."""

    name: str
    step: int
    correlation: float | None
    miou: float | None
    regret: float | None


def choices(run: RunRecord) -> list[Choice]:
    """The choice of each criterion that spoke, then the last step and the oracle's where there are labels."""
    truth = {entry.step: entry.student.miou for entry in run.evaluations if entry.student.miou is not None}
    best = max(truth, key=lambda step: truth[step], default=None)

    def choice(name: str, step: int, correlation: float | None = None) -> Choice:
        miou = truth.get(step)
        return Choice(name, step, correlation, miou, None if miou is None or best is None else truth[best] - miou)

    found = []
    for criterion in dict.fromkeys(name for entry in run.selections for name in entry.criteria):
        values = {e.step: value for e in run.selections if (value := e.criteria.get(criterion)) is not None}
        if values:
            both = sorted(values.keys() & truth.keys())
            correlation = spearman([values[step] for step in both], [truth[step] for step in both])
            found.append(choice(NAMES.get(criterion, criterion), max(values, key=lambda s: values[s]), correlation))
    if found and best is not None:
        found += [choice("the last step", max(truth)), choice("oracle* (target labels)", best)]
    return found


def choice_rows(run: RunRecord) -> list[list[str]]:
    """The choices as text, header row first; empty for a run without them."""
    found = choices(run)
    header = ["chosen by", "step", "rank correlation", "mIoU", "regret"]
    rows = [
        [
            choice.name,
            str(choice.step),
            ABSENT if choice.correlation is None else f"{choice.correlation:+.2f}".replace("-", "−"),
            percent(choice.miou),
            percent(choice.regret),
        ]
        for choice in found
    ]
    return [header, *rows] if found else []


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties with their mean rank; `None` for fewer than three pairs or a constant."""
    if len(one) < 3:
        return None
    try:
        return statistics.correlation(ranks(one), ranks(other))
    except statistics.StatisticsError:  # one of them is constant
        return None


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order, from 1; equal values share the mean of their places."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
