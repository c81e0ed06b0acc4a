"""A comparison in Markdown, LaTeX, CSV, HTML, or on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssrseg.errors import UserError
from ssrseg.reporting.comparison import Comparison
from ssrseg.reporting.paper import paper_tables
from ssrseg.reporting.statistics import over_seeds
from ssrseg.reporting.text_tables import (
    TextTable,
    class_differences,
    data_of,
    differences,
    domains,
    per_class,
    percent,
    scores,
    sentence,
    signed,
)
from ssrseg.reporting.verdict import verdict

TEMPLATES = {"markdown": "compare.md.jinja", "latex": "compare.tex.jinja", "html": "compare.html.jinja"}
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}
COLUMNS = (
    *("record", "group", "against", "class", "measure", "seed", "value", "sd", "n", "low", "high", "test", "p"),
    *("p_holm", "verdict", "source"),
)
"""Of the CSV."""


def comparison_text(comparison: Comparison, format: str = "markdown") -> str:
    """Write the comparison as `markdown` (GitHub's), `latex` (booktabs), `csv` or `html` (one self-contained page).

    The CSV is tidy: one number a row, in per cent and points, with all digits. Its column `record` says what that is:
    `score` is one seed's, `mean` a group's, `difference` a contrast's, `paper` the paper's.

    Raises:
        UserError: there is no such format.
    """
    if format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_csv_rows(comparison))
        return text.getvalue()
    if format not in TEMPLATES:
        raise UserError(f"There is no format {format!r}: choose one of {', '.join(SUFFIXES.values())}.")
    ours = (scores(comparison), differences(comparison), per_class(comparison))
    return fill(
        TEMPLATES[format],
        tables=[*paper_tables(comparison), *ours, *map(class_differences, comparison.contrasts)],
        verdict=verdict(comparison),
        statements=[*map(sentence, comparison.contrasts)],
        caveats=comparison.caveats,
        groups=[group.name for group in comparison.groups],
    )


def format_of(path: Path) -> str:
    """Tell the format by a file's name; raises `UserError` where it asks for none."""
    if path.suffix not in SUFFIXES:
        known = " or ".join(SUFFIXES.values())
        raise UserError(f"{path} should end in {', '.join(SUFFIXES)}, or say --format {known}.")
    return SUFFIXES[path.suffix]


def table_markdown(table: TextTable) -> str:
    """Write a title, the table and its notes as GitHub-flavoured Markdown."""
    rule = ["---" if number < table.left else "---:" for number in range(len(table.header))]
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (table.header, *table.rows)]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join(filter(None, (table.title and f"## {table.title}", lines if table.rows else "", notes)))


def latex(text: str) -> str:
    """Escape text so that LaTeX prints it as it is."""
    return text.translate(str.maketrans(data_of("words.yaml")["latex"]))


def _csv_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for group in comparison.groups:
        measured = [("miou", "", group.mious, group.miou)]
        measured += [("iou", name, group.ious(name), group.iou(name)) for name in comparison.classes]
        for domain in domains(comparison.groups):
            mious = group.mious_on(domain)
            measured.append((f"miou on {domain}", "", mious, over_seeds(mious)))
            measured += [
                (f"iou on {domain}", name, group.ious(name, domain), group.iou(name, domain))
                for name in comparison.classes
            ]
        measured.append(("best miou (oracle choice)", "", (), group.best))
        for measure, name, values, whole in measured:
            known = {"group": group.name, "measure": measure, "class": name, "source": group.network}
            for seed, value in values:
                yield {**known, "record": "score", "seed": seed, "value": 100 * value}
            if whole:
                spread = {"value": 100 * whole.mean, "sd": _points(whole.sd), "n": whole.n}
                yield {**known, **spread, "record": "mean"}
    for contrast in comparison.contrasts:
        both = {"record": "difference", "group": contrast.group.name, "against": contrast.base.name}
        for name, gap in [("", contrast.miou), *contrast.classes]:
            if gap is None:
                continue
            low, high = map(_points, gap.interval or (None, None))
            row: dict[str, Any] = {**both, "measure": "iou" if name else "miou", "class": name, "value": 100 * gap.mean}
            row |= {"low": low, "high": high, "p": gap.p, "test": gap.test, "verdict": gap.verdict}
            if not name:
                row |= {"p_holm": contrast.adjusted_p, "verdict": contrast.verdict}
            yield row
            if not name and gap.bootstrap:
                low, high = map(_points, gap.bootstrap)
                row |= {"test": "paired bootstrap", "low": low, "high": high}
                yield row | dict.fromkeys(("p", "p_holm", "verdict"), "")
    for number in comparison.tables:
        paper = data_of("paper.yaml")[f"table{number}"]
        for each in paper["rows"]:
            name = each.get("method") or paper["base"]
            name += f" + SSR (method.regularizer.stages={each['stages']})" if each.get("stages") else ""
            known = {"record": "paper", "group": name, "source": each.get("source", paper["source"])}
            yield {**known, "measure": "miou", "value": each["miou"]}
            for label, value in zip(paper.get("classes", ()), each.get("iou", ()), strict=True):
                yield {**known, "measure": "iou", "class": label, "value": value}


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ssrseg.reporting", "assets"),
        autoescape=select_autoescape(["html.jinja", "svg.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "latex": latex, "markdown": table_markdown}
    return environment


def fill(template: str, **values: Any) -> str:
    """Fill one of the templates in `assets`; what goes into HTML is escaped."""
    return _environment().get_template(template).render(values)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the verdict, the paper's tables, scores, and the differences; the formats have every class and interval."""
    for line in verdict(comparison):
        console.print(line, markup=False, highlight=False)
    console.print()
    for table in [*paper_tables(comparison), scores(comparison)]:
        print_table(table, console)
        console.print()
    for contrast in comparison.contrasts:
        known = [(name, gap.mean) for name, gap in contrast.classes if gap]
        gains = [f"{name} {signed(mean)}" for name, mean in known if mean > 0][:3]
        losses = [f"{name} {signed(mean)}" for name, mean in reversed(known) if mean < 0][:3]
        most = f"Most gained: {', '.join(gains) or 'none'}; most lost: {', '.join(losses) or 'none'}."
        console.print(f"{sentence(contrast)} {most}", markup=False, highlight=False)
    for line in comparison.caveats:
        console.print(f"Caveat: {line}", markup=False, highlight=False)


def print_table(table: TextTable, console: Console) -> None:
    """Print a table and its notes; on its side where the screen is too narrow."""
    lines = [table.header, *table.rows]
    width = sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True))
    turned = width > console.width and len(table.header) > len(lines)
    header, *rows = zip(*lines, strict=True) if turned else lines
    printed = Table(title=escape(table.title) or None, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(header):
        printed.add_column(escape(name), justify="left" if number < (1 if turned else table.left) else "right")
    for row in rows:
        printed.add_row(*map(escape, row))
    console.print(printed)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)
