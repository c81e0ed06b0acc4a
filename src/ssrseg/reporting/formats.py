"""A comparison in Markdown, LaTeX, CSV, HTML, or on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ssrseg.errors import UserError
from ssrseg.reporting.comparison import Comparison, Contrast
from ssrseg.reporting.paper import paper_tables
from ssrseg.reporting.tables import signed
from ssrseg.reporting.text_tables import Sheet, general, scores, sentence
from ssrseg.reporting.tidy import to_csv

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


def sheets(comparison: Comparison) -> list[Sheet]:
    """All tables, the paper's first where they are wanted."""
    return [*paper_tables(comparison), *general(comparison)]


def to_markdown(comparison: Comparison) -> str:
    """GitHub-flavoured Markdown."""
    parts = ["# Comparison", *map(sheet_markdown, sheets(comparison))]
    parts += ["## In words", _points([*map(sentence, comparison.contrasts)] or ["One group: nothing to compare."])]
    if comparison.caveats:
        parts += ["## Caveats", _points(comparison.caveats)]
    return "\n\n".join(part for part in parts if part) + "\n"


def sheet_markdown(sheet: Sheet) -> str:
    """A title, the table and its notes."""
    rule = ["---" if number < sheet.left else "---:" for number in range(len(sheet.header))]
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (sheet.header, *sheet.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]
    text = "\n".join([f"## {sheet.title}\n", *(lines if sheet.rows else ())])
    return f"{text}\n\n{_points(sheet.notes)}" if sheet.notes else text


def _points(lines: list[str] | tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def to_latex(comparison: Comparison) -> str:
    """One `table*` per table, with booktabs; caveats as comments."""
    head = ["% \\usepackage{booktabs} and, for the check marks, \\usepackage{amssymb}"]
    head += [f"% {line}" for line in comparison.caveats]
    return "\n".join([*head, *("\n" + _latex_table(sheet) for sheet in sheets(comparison) if sheet.rows)]) + "\n"


def _latex_table(sheet: Sheet) -> str:
    columns = "".join("l" if number < sheet.left else "r" for number in range(len(sheet.header)))
    header, *rows = [" & ".join(map(latex, row)) + r" \\" for row in (sheet.header, *sheet.rows)]
    caption = f"{latex(sheet.title)}. {' '.join(map(latex, sheet.notes))}"
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(mark, mark) for mark in text)


def to_html(comparison: Comparison) -> str:
    """One self-contained page, light or dark as the reader's system is."""
    template = (resources.files("ssrseg.reporting") / "compare.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        sheets=sheets(comparison),
        statements=[sentence(contrast) for contrast in comparison.contrasts],
        caveats=comparison.caveats,
        groups=[arm.name for arm in comparison.arms],
    )


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
}
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def comparison_text(comparison: Comparison, format: str = "markdown") -> str:
    """The comparison in one of `FORMATS`; raises `UserError` for another word."""
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}: choose one of {', '.join(FORMATS)}.")
    return FORMATS[format](comparison)


def format_of(path: Path) -> str:
    """The format that a file's name asks for; raises `UserError` where it asks for none."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} should end in {', '.join(SUFFIXES)}, or say --format {' or '.join(FORMATS)}.")
    return SUFFIXES[path.suffix]


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The paper's tables, scores, and the differences in words; the formats have every class and every interval."""
    for sheet in [*paper_tables(comparison), scores(comparison)]:
        _print_sheet(sheet, console)
    for contrast in comparison.contrasts:
        _say(f"{sentence(contrast)} {_extremes(contrast)}", console)
    for line in comparison.caveats:
        _say(f"Caveat: {line}", console)


def _print_sheet(sheet: Sheet, console: Console) -> None:
    """On its side where the screen is too narrow."""
    lines = [sheet.header, *sheet.rows]
    width = sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True))
    turned = width > console.width and len(sheet.header) > len(lines)
    header, *rows = zip(*lines, strict=True) if turned else lines
    printed = RichTable(title=escape(sheet.title), title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(header):
        printed.add_column(escape(name), justify="left" if number < (1 if turned else sheet.left) else "right")
    for row in rows:
        printed.add_row(*map(escape, row))
    console.print(printed)
    for note in sheet.notes:
        _say(note, console)
    console.print()


def _extremes(contrast: Contrast, most: int = 3) -> str:
    known = [(name, gap.mean) for name, gap in contrast.classes if gap]
    gains = [f"{name} {signed(mean)}" for name, mean in known if mean > 0][:most]
    losses = [f"{name} {signed(mean)}" for name, mean in reversed(known) if mean < 0][:most]
    return f"Most gained: {', '.join(gains) or 'none'}; most lost: {', '.join(losses) or 'none'}."


def _say(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False)
