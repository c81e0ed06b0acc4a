"""One page about runs: plain values, put into a template that needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Iterator, Sequence
from importlib import resources

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ssrseg.reporting.bars import class_bars
from ssrseg.reporting.charts import Curve, chart
from ssrseg.reporting.confusion import matrices
from ssrseg.reporting.differences import differing_environments, differing_settings, summary
from ssrseg.reporting.examples import examples
from ssrseg.reporting.galleries import galleries
from ssrseg.reporting.selection import LEGEND, choice_rows
from ssrseg.reporting.tables import ABSENT, Table, cells, legend, percent, signed, statements, table, to_markdown
from ssrseg.runs.records import Evaluation, RunRecord

BUDGET = 8_000_000
"""Characters of embedded pictures per page: half at most for the comparison, the rest for what the students saw."""

SCRIPTS = ("controls.js", "curves.js", "matrix.js", "compare.js", "start.js")


def render(runs: Sequence[RunRecord]) -> str:
    """The page about the runs, without any outside resource."""
    scores, names = table(runs), _names(runs)
    colours = [next(i for i, group in enumerate(scores.groups) if run in group.runs) for run in runs]
    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "signed": signed}
    script = "\n".join(map(_file, SCRIPTS))
    compared = examples(scores.groups, BUDGET // 2)
    return environment.get_template("page.html.jinja").render(
        style=Markup(_file("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=_title(scores, names),
        runs=list(zip(names, runs, colours, strict=True)),
        groups=scores.groups,
        cells=cells(scores) if len(runs) > 1 else [],
        subsets=scores.subsets,
        legend=legend(scores),
        statements=statements(scores),
        caveats=scores.caveats,
        markdown=to_markdown(scores),
        settings=summary(scores),
        differing=differing_settings(scores),
        elsewhere=differing_environments(runs),
        facts=[_facts(run) for run in runs],
        configs=[yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) for run in runs],
        miou=_miou_chart(runs, names, colours),
        losses=list(_loss_charts(runs, names, colours)),
        labellers=[name for name, run in zip(names, runs, strict=True) if run.shares],
        labelled=_labelled([run for run in runs if run.shares]),
        bars=class_bars(scores, runs),
        matrices=matrices(scores.groups),
        selections=[(name, choice_rows(run)) for name, run in zip(names, runs, strict=True)],
        selection_legend=LEGEND,
        examples=compared,
        galleries=galleries(runs, names, BUDGET - (compared.size if compared else 0)),
    )


def _file(name: str) -> str:
    """A template, style sheet or script of the page."""
    return (resources.files("ssrseg.reporting") / "assets" / name).read_text(encoding="utf-8")


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """One short distinct name per run: the end of its path, as long as needed."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]


def _title(scores: Table, names: Sequence[str]) -> str:
    groups = [group.name for group in scores.groups]
    if len(names) == 1:
        return f"{groups[0]}: {names[0]}"
    return " · ".join(groups) if len(groups) <= 3 else f"{groups[0]} and {len(groups) - 1} other settings"


def _facts(run: RunRecord) -> str:
    """How far the run came, and how fast."""
    seen, wanted = run.steps
    text = f"step {seen}" if wanted is None else f"{seen} of {wanted} steps"
    rates = [entry.images_per_second for entry in run.train if entry.images_per_second is not None]
    speed = f", {statistics.median(rates):.3g} images/s (median)" if rates else ""
    return f"{text}{', unfinished' if wanted and seen < wanted else ''}{speed}"


def _miou_chart(runs: Sequence[RunRecord], names: Sequence[str], colours: Sequence[int]) -> Markup | None:
    curves = []
    for run, name, colour in zip(runs, names, colours, strict=True):
        for who, dashed in (("student", False), ("teacher", True)):
            points = tuple(_miou_points(run.evaluations, who))
            if points:
                curves.append(Curve(f"{name}, {who}", points, colour, dashed, (f"group-{colour}", who)))
    return chart("mIoU in per cent over steps", curves) if curves else None


def _miou_points(evaluations: Sequence[Evaluation], who: str) -> Iterator[tuple[float, float]]:
    for entry in evaluations:
        score = entry.student if who == "student" else entry.teacher
        if score and score.miou is not None:
            yield entry.step, 100 * score.miou


def _loss_charts(
    runs: Sequence[RunRecord], names: Sequence[str], colours: Sequence[int]
) -> Iterator[tuple[str, Markup]]:
    """One small chart per `view/term`, because their scales differ."""
    for loss in dict.fromkeys(loss for run in runs for entry in run.train for loss in entry.losses):
        curves = []
        for run, name, colour in zip(runs, names, colours, strict=True):
            points = tuple((float(e.step), e.losses[loss]) for e in run.train if loss in e.losses)
            curves.append(Curve(name, points, colour, keys=(f"group-{colour}",)))
        yield loss, chart(f"Loss {loss} over steps", [curve for curve in curves if curve.points])


def _labelled(runs: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of class and, for each run, its last share of the pseudo-labels and its largest."""
    classes = dict.fromkeys(name for run in runs for shares in run.shares for name in shares)
    return [(name, [_last_and_most(run, name) for run in runs]) for name in classes]


def _last_and_most(run: RunRecord, name: str) -> tuple[str, str]:
    seen = [shares[name] for shares in run.shares if name in shares]
    return (f"{100 * seen[-1]:.3g}", f"{100 * max(seen):.3g}") if seen else (ABSENT, ABSENT)
