"""The command line: every word is the Python function of the same name."""

from __future__ import annotations

import errno
import io
import sys

import typer
from rich.console import Console

from ssrseg.cli import train, use
from ssrseg.errors import UserError
from ssrseg.runs.atomic import FULL

LOCALE = "Set PYTHONUTF8=1 where names are in UTF-8 and the locale is not, or use another name."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a segmentation model on one labelled domain for another, unlabelled one.",
)
for command in (
    *(train.train, train.check_data, train.estimate_priors, train.adjust, train.plan, train.presets),
    *(use.evaluate, use.predict, use.recalibrate, use.pack, use.export, use.convert),
    *(use.report, use.compare, use.card, train.demo),
):
    app.command()(command)


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback.

    The code is 2, or 3 when a run stopped because its numbers went wrong (`docs/guards.md`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter of a class name shows "?"
            stream.reconfigure(errors="replace")
    try:
        app()
    except (UserError, OSError, UnicodeEncodeError) as error:
        if isinstance(error, UserError):
            text, code = str(error), error.exit_code
        elif isinstance(error, UnicodeEncodeError):  # a library's; the package writes UTF-8
            if error.reason != "surrogates not allowed":
                raise
            name = error.object.encode(errors="replace").decode()
            text, code = f"{name[:200]}: this name is no text in UTF-8. {LOCALE}", 2
        elif error.errno in {*FULL, errno.EROFS}:  # a disk that lets nothing be written is no fault of the program
            where = f" ({error.filename})" if error.filename else ""
            text, code = f"cannot write: {error.strerror}{where}. Make room, or write elsewhere with --out.", 2
        else:
            raise
        shown = text.encode(errors="replace").decode()  # a name that is no UTF-8 cannot be printed
        Console(stderr=True).print(f"error: {shown}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(code)
