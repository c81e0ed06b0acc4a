"""One page about runs: plain values, put into a template that needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from ssrseg.errors import UserError
from ssrseg.reporting.charts import class_bars, loss_charts, matrices, miou_chart
from ssrseg.reporting.comparison import Group, compare_records
from ssrseg.reporting.examples import examples, galleries
from ssrseg.reporting.formats import fill, table_markdown
from ssrseg.reporting.grouping import members
from ssrseg.reporting.statistics import spearman
from ssrseg.reporting.text_tables import ABSENT, data_of, domains, legend, overview, statements, subsets
from ssrseg.reporting.verdict import verdict
from ssrseg.runs.records import RunRecord, read_run, setting

BUDGET = 8_000_000
"""Characters of embedded pictures per page: half at most for the comparison, the rest for what the students saw."""

SCRIPTS = ("controls.js", "curves.js", "matrix.js", "compare.js", "start.js")

Rows = list[tuple[str, list[str]]]
"""A label, and a value per column."""


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML page about one run or several, and return its path.

    The folder of a group stands for its runs; the others are compared with the first. Without `out` the page is
    `report.html`, in the folder given, or in the one that holds them all. Raises `UserError` where no run is given, a
    folder is no run folder, or the page cannot be written.
    """
    given = list(dict.fromkeys(Path(run).resolve() for run in runs))
    folders = list(dict.fromkeys(folder for each in given for folder in members(each)))
    if not folders:
        raise UserError("No run to report: give at least one run folder.")
    page = render([read_run(folder) for folder in folders])
    home = given[0] if len(given) == 1 else Path(os.path.commonpath([folder.parent for folder in folders]))
    path = Path(out or home / "report.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write the report to {path}: {error.strerror}. Give a file name in `out`.") from error
    return path


def render(runs: Sequence[RunRecord]) -> str:
    """Draw the page about the runs, without any outside resource."""
    comparison = compare_records(runs)
    groups, table = comparison.groups, overview(comparison)
    resolved = [run.folder.resolve() for run in runs]
    home = os.path.commonpath([folder.parent for folder in resolved])
    names = [folder.relative_to(home).as_posix() for folder in resolved]
    colours = [next(i for i, group in enumerate(groups) if run in group.runs) for run in runs]
    drawn = list(zip(names, runs, colours, strict=True))
    assets = resources.files("ssrseg.reporting") / "assets"
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    compared = examples(groups, BUDGET // 2)
    used = sum(image.size for image in compared.images) if compared else 0
    labellers = [(name, run) for name, run, _ in drawn if run.shares]
    labelled = dict.fromkeys(name for _, run in labellers for shares in run.shares for name in shares)
    return fill(
        "page.html.jinja",
        style=Markup((assets / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=drawn,
        groups=groups,
        cells=[table.header, *table.rows] if len(runs) > 1 else [],
        caveats=comparison.caveats,
        subsets=subsets(comparison),
        domains=domains(groups),
        legend=legend(comparison),
        verdict=verdict(comparison),
        statements=statements(comparison),
        markdown=table_markdown(table),
        settings=summary(groups),
        differing=differing([group.settings for group in groups]),
        elsewhere=differing([{**run.environment, "command": None} for run in runs]),
        facts=[_facts(run) for run in runs],
        configs=[yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) for run in runs],
        miou=miou_chart(drawn),
        losses=list(loss_charts(drawn)),
        labellers=[name for name, _ in labellers],
        labelled=[(name, [[s[name] for s in run.shares if name in s] for _, run in labellers]) for name in labelled],
        bars=class_bars(comparison),
        matrices=list(matrices(groups)),
        selections=[(name, choices(run)) for name, run, _ in drawn],
        examples=compared,
        galleries=list(galleries([(name, run) for name, run, _ in drawn], BUDGET - used)),
    )


def summary(groups: Sequence[Group]) -> Rows:
    """List the settings that matter, a value per group; rows that are empty in every group are left out."""
    rows = []
    for label, paths in data_of("words.yaml")["settings"].items():
        found = [[setting(group.runs[0].config, path) for path in paths] for group in groups]
        rows.append((label, [", ".join(_text(each) for each in values if each is not None) for values in found]))
    rows.append(("seeds", [", ".join(str(run.seed) for run in group.runs) for group in groups]))
    return [(label, [value or ABSENT for value in values]) for label, values in rows if any(values)]


def differing(columns: Sequence[Mapping[str, Any]]) -> Rows:
    """List the entries in which mappings differ, a value per mapping."""
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [(key, [_text(column.get(key)) for column in columns]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return " × ".join(map(str, value))
    if isinstance(value, tuple):  # of several data sets
        return ", ".join(map(_text, value))
    return ABSENT if value is None else str(value)


def _facts(run: RunRecord) -> str:
    """Say how far the run came, and how fast."""
    seen, wanted = run.steps
    text = f"step {seen}" if wanted is None else f"{seen} of {wanted} steps"
    rates = [entry.images_per_second for entry in run.train if entry.images_per_second is not None]
    speed = f", {statistics.median(rates):.3g} images/s (median)" if rates else ""
    if run.stopped:
        text = f"stopped early at step {run.stopped} of {setting(run.config, 'train.steps')}"
    how = [f", other {', '.join(each.changed)} until step {each.step}" for each in run.changes]
    return f"{text}{', unfinished' if wanted and seen < wanted else ''}{''.join(how)}{speed}"


@dataclass(frozen=True)
class Choice:
    """The step that a rule chooses, and how good that was; `None` where the target's labels are not known."""

    name: str
    step: int
    correlation: float | None
    miou: float | None
    regret: float | None


def choices(run: RunRecord) -> list[Choice]:
    """List the choice of each criterion that has values, then the last step and the oracle's where there are labels."""
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
            name = data_of("words.yaml")["criteria"].get(criterion, criterion)
            found.append(choice(name, max(values, key=lambda step: values[step]), correlation))
    if found and best is not None:
        found += [choice("the last step", max(truth)), choice("oracle* (target labels)", best)]
    return found
