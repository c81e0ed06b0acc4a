"""What the page shows, as plain values for the template."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ssrseg.reporting.charts import Curve, chart
from ssrseg.reporting.pictures import Album, Picture, spaced
from ssrseg.reporting.runs import Evaluation, RunRecord, Score, Sheet, setting
from ssrseg.reporting.selection import LEGEND, choice_rows
from ssrseg.reporting.tables import ABSENT, Group, Table, cells, legend, percent, statements, table, to_markdown

BUDGET = 8_000_000
"""Characters of embedded pictures per page."""

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


@dataclass(frozen=True)
class Bar:
    """A value as text, and as a share of full width."""

    text: str
    share: float


@dataclass(frozen=True)
class Column:
    """Per-class bars of a group or of one network of a run."""

    name: str
    colour: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures of one run: by step, and of the validation images."""

    run: str
    steps: tuple[tuple[int, tuple[Picture, ...]], ...]
    predictions: tuple[Picture, ...]
    hidden: int
    """Pictures that stay in the run folder only."""


def render(runs: Sequence[RunRecord]) -> str:
    """The page about the runs, without any outside resource."""
    scores, names = table(runs), _names(runs)
    colours = [next(i for i, group in enumerate(scores.groups) if run in group.runs) for run in runs]
    budget = BUDGET // max(1, sum(bool(run.views or run.predictions) for run in runs))
    template = (resources.files("ssrseg.reporting") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent}
    return environment.from_string(template).render(
        title=_title(scores, names),
        runs=list(zip(names, runs, colours, strict=True)),
        groups=scores.groups,
        cells=cells(scores) if len(runs) > 1 else [],
        subsets=scores.subsets,
        legend=legend(scores),
        statements=statements(scores),
        caveats=scores.caveats,
        markdown=to_markdown(scores),
        settings=_settings(scores),
        facts=[_facts(run) for run in runs],
        configs=[yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) for run in runs],
        miou=_miou_chart(runs, names, colours),
        losses=list(_loss_charts(runs, names, colours)),
        labelled=_labelled(runs),
        classes=scores.classes,
        columns=_columns(scores, runs),
        selections=[(name, choice_rows(run)) for name, run in zip(names, runs, strict=True)],
        selection_legend=LEGEND,
        galleries=[_gallery(name, run, budget, len(runs)) for name, run in zip(names, runs, strict=True)],
    )


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


def _settings(scores: Table) -> list[tuple[str, list[str]]]:
    """Rows of the settings table: a value per group; rows that are empty in every group are left out."""
    rows = [(label, [_values(group, paths) for group in scores.groups]) for label, paths in SUMMARY.items()]
    rows.append(("seeds", [", ".join(str(run.seed) for run in group.runs) for group in scores.groups]))
    return [(label, values) for label, values in rows if any(value != ABSENT for value in values)]


def _values(group: Group, paths: Sequence[str]) -> str:
    values = [setting(group.runs[0].config, path) for path in paths]
    texts = [" × ".join(map(str, v)) if isinstance(v, list) else str(v) for v in values if v is not None]
    return ", ".join(texts) or ABSENT


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
                curves.append(Curve(f"{name}, {who}", points, colour, dashed))
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
            curves.append(Curve(name, points, colour))
        yield loss, chart(f"Loss {loss} over steps", curves)


def _labelled(runs: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of class and, for each run, its last share of the pseudo-labels and its largest."""
    classes = dict.fromkeys(name for run in runs for shares in run.shares for name in shares)
    return [(name, [_last_and_most(run, name) for run in runs]) for name in classes]


def _last_and_most(run: RunRecord, name: str) -> tuple[str, str]:
    seen = [shares[name] for shares in run.shares if name in shares]
    return (f"{100 * seen[-1]:.3g}", f"{100 * max(seen):.3g}") if seen else (ABSENT, ABSENT)


def _columns(scores: Table, runs: Sequence[RunRecord]) -> list[Column]:
    """Per-class IoU: the networks of a single run, else the groups."""
    if len(runs) > 1:
        return [_group_column(group, number, scores.classes) for number, group in enumerate(scores.groups)]
    last, best = runs[0].last, runs[0].best
    shown = [
        ("student, last", last and last.student, 0),
        ("teacher, last", last and last.teacher, 4),
        ("student, best*", best and best.student, 4),
    ]
    return [_score_column(name, score, colour) for name, score, colour in shown if score and score.iou]


def _group_column(group: Group, colour: int, classes: Sequence[str]) -> Column:
    spreads = [group.iou[name] for name in classes]
    bars = [Bar(text, s.mean if s else 0.0) for s, text in zip(spreads, _texts(group, classes), strict=True)]
    return Column(group.name, colour, tuple(bars))


def _texts(group: Group, classes: Sequence[str]) -> list[str]:
    rows = cells(Table((group,), tuple(classes), (), ()))
    return [row[1] for row in rows[-len(classes) :]] if classes else []


def _score_column(name: str, score: Score, colour: int) -> Column:
    return Column(name, colour, tuple(Bar(percent(value), value or 0.0) for value in score.iou))


def _gallery(name: str, run: RunRecord, budget: int, of_runs: int) -> Gallery:
    """The latest pictures are embedded first, so that a spent budget costs the oldest."""
    album = Album(budget)
    few = of_runs > 1
    shown = spaced(range(len(run.predictions)), 4 if few else 8)
    predictions = _embedded(album, [run.predictions[i] for i in shown])
    steps = []
    for step in reversed(spaced(sorted({sheet.number for sheet in run.views}), 2 if few else 6)):
        pictures = _embedded(album, [sheet for sheet in run.views if sheet.number == step])
        steps += [(step, pictures)] if pictures else []
    embedded = len(predictions) + sum(len(pictures) for _, pictures in steps)
    return Gallery(name, tuple(steps), predictions, len(run.views) + len(run.predictions) - embedded)


def _embedded(album: Album, sheets: Sequence[Sheet]) -> tuple[Picture, ...]:
    return tuple(picture for picture in map(album.embed, sheets) if picture)
