"""Commands on finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ssrseg.cli.options import File
from ssrseg.runs.atomic import write_text


def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="the HTML page")] = None,
) -> None:
    """Make one HTML page of one run or several."""
    from ssrseg.reporting import report as write

    typer.echo(str(write(runs, out)))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, or folders of groups or stages")],
    against: Annotated[str | None, typer.Option(help="the group to compare with; the first when absent")] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="the teacher's scores, not the student's")] = False,
    table1: Annotated[bool, typer.Option("--table1", help="add the paper's table of stages, ours beside it")] = False,
    table2: Annotated[bool, typer.Option("--table2", help="add the paper's table of methods, ours beside it")] = False,
    format: Annotated[str | None, typer.Option(help="markdown, latex, csv or html; by --out's name if absent")] = None,
    out: File = None,
    allow_unfinished: Annotated[bool, typer.Option("--allow-unfinished", help="take the latest scores")] = False,
) -> None:
    """Compare groups of runs: mean and deviation over seeds, paired differences, what is within noise."""
    from ssrseg import reporting

    format = format or (reporting.format_of(out) if out is not None else None)
    tables = {"table1": table1, "table2": table2, "allow_unfinished": allow_unfinished}
    found = reporting.compare(runs, against=against, network="teacher" if teacher else "student", **tables)
    if format is None:
        reporting.print_comparison(found, Console())
    else:
        _write_or_print(reporting.comparison_text(found, format), out)


def card(
    run: Annotated[Path, typer.Argument(help="a run folder, or the folder of a group")],
    out: File = None,
    license: Annotated[str | None, typer.Option(help="under which you publish the weights, e.g. cc-by-nc-4.0")] = None,
) -> None:
    """Write the model card of a run: method, data, scores with seeds, whose terms apply, what it is not for."""
    from ssrseg.reporting import model_card

    _write_or_print(model_card(run, license=license), out)


def env(run: Annotated[Path | None, typer.Argument(help="a run folder, whose settings are added")] = None) -> None:
    """Describe this machine, and the settings of a run, as a report of a problem needs it."""
    from ssrseg.training.env import env as described

    typer.echo(described(run), nl=False)


def _write_or_print(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        write_text(out, text)
        typer.echo(f"{out}")
