"""Run folders in; tables with statistics and one self-contained HTML page out. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssrseg.errors import UserError
from ssrseg.reporting.card import model_card
from ssrseg.reporting.comparison import Comparison, compare
from ssrseg.reporting.formats import comparison_text, format_of, print_comparison
from ssrseg.reporting.groups import members
from ssrseg.reporting.page import render
from ssrseg.reporting.tables import Table, statements, table, to_console, to_markdown
from ssrseg.runs.records import RunRecord, method_name, read_run

__all__ = [
    "Comparison",
    "RunRecord",
    "Table",
    "compare",
    "comparison_text",
    "format_of",
    "members",
    "method_name",
    "model_card",
    "print_comparison",
    "read_run",
    "report",
    "statements",
    "table",
    "to_console",
    "to_markdown",
]


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML page about one run or several, and return its path.

    The folder of a group stands for its runs. The first run's settings are what the others are compared with.
    Without `out` the page is `report.html`: in the folder given if there is one, in the folder that holds them all for
    several.

    Raises:
        UserError: no run given, a folder that is no run folder, or a page that cannot be written.
    """
    given = list(dict.fromkeys(Path(run).resolve() for run in runs))
    folders = list(dict.fromkeys(folder for each in given for folder in members(each)))
    if not folders:
        raise UserError("No run to report: give at least one run folder.")
    page = render([read_run(folder) for folder in folders])
    home = given[0] if len(given) == 1 else Path(os.path.commonpath([folder.parent for folder in folders]))
    path = home / "report.html" if out is None else Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write the report to {path}: {error.strerror}. Give a file name in `out`.") from error
    return path
