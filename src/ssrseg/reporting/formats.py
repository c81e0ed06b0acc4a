"""A comparison in Markdown, LaTeX, CSV, HTML, or on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssrseg.errors import UserError
from ssrseg.reporting.comparison import Comparison, Contrast
from ssrseg.reporting.paper import paper_tables, published
from ssrseg.reporting.statistics import Difference
from ssrseg.reporting.text_tables import (
    TextTable,
    class_differences,
    differences,
    per_class,
    percent,
    scores,
    sentence,
    signed,
)

LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "|": "$|$",
    "[": "{[}",  # after a line break of a table a bare one begins an option, and so does a star
    "*": "{*}",
    "\n": " ",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "✓": r"\checkmark",
    "–": "--",
    "…": r"\ldots{}",
}
"""Characters that LaTeX reads otherwise -> what prints them."""

COLUMNS = (
    *("record", "group", "against", "class", "measure", "seed", "value", "sd", "n", "low", "high", "test", "p"),
    *("p_holm", "verdict", "source"),
)
"""Of the CSV."""


def all_tables(comparison: Comparison) -> list[TextTable]:
    """List all tables, the paper's first where they are wanted."""
    ours = (scores(comparison), differences(comparison), per_class(comparison))
    return [*paper_tables(comparison), *ours, *map(class_differences, comparison.contrasts)]


def to_markdown(comparison: Comparison) -> str:
    """Write GitHub-flavoured Markdown."""
    parts = ["# Comparison", *map(table_markdown, all_tables(comparison))]
    parts += ["## In words", _bullets([*map(sentence, comparison.contrasts)] or ["One group: nothing to compare."])]
    if comparison.caveats:
        parts += ["## Caveats", _bullets(comparison.caveats)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: TextTable) -> str:
    """Write a title, the table and its notes as GitHub-flavoured Markdown."""
    rule = ["---" if number < table.left else "---:" for number in range(len(table.header))]
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (table.header, *table.rows)]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))
    title = f"## {table.title}" if table.title else ""
    return "\n\n".join(part for part in (title, lines if table.rows else "", _bullets(table.notes)) if part)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def to_latex(comparison: Comparison) -> str:
    """Write one `table*` per table, with booktabs; caveats as comments."""
    return fill("compare.tex.jinja", tables=all_tables(comparison), caveats=comparison.caveats)


def latex(text: str) -> str:
    """Escape text so that LaTeX prints it as it is."""
    return "".join(LATEX.get(mark, mark) for mark in text)


def to_html(comparison: Comparison) -> str:
    """Write one self-contained page, light or dark as the reader's system is."""
    return fill(
        "compare.html.jinja",
        tables=all_tables(comparison),
        statements=[sentence(contrast) for contrast in comparison.contrasts],
        caveats=comparison.caveats,
        groups=[group.name for group in comparison.groups],
    )


def to_csv(comparison: Comparison) -> str:
    """Write tidy CSV: one number a row, in per cent and points, with all digits. `record` says what it is.

    `score` is one seed's, `mean` a group's, `difference` a contrast's, `paper` the paper's.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_score_rows(comparison))
    for contrast in comparison.contrasts:
        writer.writerows(_difference_rows(contrast))
    writer.writerows(_paper_rows(comparison.tables))
    return text.getvalue()


def _score_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for group in comparison.groups:
        measured = [("miou", "", group.mious, group.miou)]
        measured += [("iou", name, group.ious(name), group.iou(name)) for name in comparison.classes]
        measured.append(("best miou (oracle choice)", "", (), group.best))
        for measure, name, values, whole in measured:
            known = {"group": group.name, "measure": measure, "class": name, "source": group.network}
            for seed, value in values:
                yield {**known, "record": "score", "seed": seed, "value": 100 * value}
            if whole:
                mean = {"value": 100 * whole.mean, "sd": _points(whole.sd), "n": whole.n}
                yield {**known, **mean, "record": "mean"}


def _difference_rows(contrast: Contrast) -> Iterator[dict[str, Any]]:
    def row(measure: str, name: str, gap: Difference) -> dict[str, Any]:
        low, high = map(_points, gap.interval or (None, None))
        known = {"group": contrast.group.name, "against": contrast.base.name, "measure": measure, "class": name}
        numbers = {"value": 100 * gap.mean, "low": low, "high": high, "p": gap.p}
        return {**known, **numbers, "record": "difference", "test": gap.test, "verdict": gap.verdict}

    whole = row("miou", "", contrast.miou)
    yield {**whole, "p_holm": contrast.adjusted_p, "verdict": contrast.verdict}
    if bounds := contrast.miou.bootstrap:
        low, high = map(_points, bounds)
        yield {**whole, "low": low, "high": high, "test": "paired bootstrap", "p": "", "verdict": ""}
    yield from (row("iou", name, gap) for name, gap in contrast.classes if gap)


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _paper_rows(tables: Sequence[int]) -> Iterator[dict[str, Any]]:
    def row(group: str, measure: str, name: str, value: float, source: str) -> dict[str, Any]:
        known = {"group": group, "measure": measure, "class": name, "source": source}
        return {**known, "record": "paper", "value": value}

    one, two = (published()[f"table{number}"] for number in (1, 2))
    for each in one["rows"] if 1 in tables else ():
        name = f"{one['base']} + SSR (method.regularizer.stages={each['stages']})" if each["stages"] else one["base"]
        yield row(name, "miou", "", each["miou"], one["source"])
    for each in two["rows"] if 2 in tables else ():
        yield row(each["method"], "miou", "", each["miou"], each["source"])
        for name, value in zip(two["classes"], each["iou"], strict=True):
            yield row(each["method"], "iou", name, value, each["source"])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ssrseg.reporting", "assets"),
        autoescape=select_autoescape(["html.jinja", "svg.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "latex": latex}
    return environment


def fill(template: str, **values: Any) -> str:
    """Fill one of the templates in `assets`; what goes into HTML is escaped."""
    return _environment().get_template(template).render(values)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
}
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def comparison_text(comparison: Comparison, format: str = "markdown") -> str:
    """Write the comparison in one of `FORMATS`; raises `UserError` for another word."""
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}: choose one of {', '.join(FORMATS)}.")
    return FORMATS[format](comparison)


def format_of(path: Path) -> str:
    """Tell the format by a file's name; raises `UserError` where it asks for none."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} should end in {', '.join(SUFFIXES)}, or say --format {' or '.join(FORMATS)}.")
    return SUFFIXES[path.suffix]


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the paper's tables, scores, and the differences in words; the formats have every class and interval."""
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
