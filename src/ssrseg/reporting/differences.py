"""What was run: the settings that matter, those in which runs differ, and where they ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssrseg.reporting.grouping import essentials
from ssrseg.reporting.tables import ABSENT, Group, Table
from ssrseg.runs.records import RunRecord, setting

SUMMARY = {
    "source": ("source.spec", "source.root"),
    "target": ("target.spec", "target.root"),
    "validation": ("val.spec", "val.root"),
    "network": ("model.backbone", "model.head"),
    "starts from": ("model.pretrained",),
    "crop (h × w)": ("loader.crop",),
    "batch": ("loader.batch",),
    "foundation encoder": ("method.regularizer.foundation.encoder",),
    "its weights": ("method.regularizer.foundation.weights",),
    "learning rate": ("optim.lr",),
    "steps": ("train.steps",),
    "inference": ("inference.mode",),
}
"""Row of the settings table -> settings it shows; the full YAML stands below it."""

SAID_ELSEWHERE = ("command",)
"""Facts of an environment in which runs always differ."""

Rows = list[tuple[str, list[str]]]
"""A label, and a value per column."""


def summary(scores: Table) -> Rows:
    """The settings that matter, a value per group; rows that are empty in every group are left out."""
    rows = [(label, [_values(group, paths) for group in scores.groups]) for label, paths in SUMMARY.items()]
    rows.append(("seeds", [", ".join(str(run.seed) for run in group.runs) for group in scores.groups]))
    return [(label, values) for label, values in rows if any(value != ABSENT for value in values)]


def differing_settings(scores: Table) -> Rows:
    """The settings in which the groups differ, a value per group; those without effect are left out."""
    return _differing([essentials(group.runs[0]) for group in scores.groups], ())


def differing_environments(runs: Sequence[RunRecord]) -> Rows:
    """The facts in which the runs' environments differ, a value per run."""
    return _differing([run.environment for run in runs], SAID_ELSEWHERE)


def _differing(columns: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> Rows:
    keys = dict.fromkeys(key for column in columns for key in column if key not in left_out)
    rows = [(key, [_text(column.get(key)) for column in columns]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _values(group: Group, paths: Sequence[str]) -> str:
    values = [setting(group.runs[0].config, path) for path in paths]
    return ", ".join(_text(value) for value in values if value is not None) or ABSENT


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return " × ".join(map(str, value))
    return ABSENT if value is None else str(value)
