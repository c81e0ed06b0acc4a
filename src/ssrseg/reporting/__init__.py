"""Run folders in; tables with statistics and one self-contained HTML page out. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssrseg.errors import UserError
from ssrseg.reporting.page import render
from ssrseg.reporting.runs import RunRecord, method_name, read_run
from ssrseg.reporting.tables import Table, statements, table, to_console, to_markdown

__all__ = [
    "RunRecord",
    "Table",
    "method_name",
    "read_run",
    "report",
    "statements",
    "table",
    "to_console",
    "to_markdown",
]


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML page about one run or several, and return its path.

    The first run's settings are what the others are compared with. Without `out` the page is `report.html`: in the
    run folder for one run, in the folder that holds them all for several.

    Raises:
        UserError: no run given, a folder that is no run folder, or a page that cannot be written.
    """
    folders = list(dict.fromkeys(Path(run).resolve() for run in runs))
    if not folders:
        raise UserError("No run to report: give at least one run folder.")
    page = render([read_run(folder) for folder in folders])
    home = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.parent for folder in folders]))
    path = home / "report.html" if out is None else Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write the report to {path}: {error.strerror}. Give a file name in `out`.") from error
    return path
