"""The command line: every word is the Python function of the same name."""

from __future__ import annotations

import errno
import io
import sys
import warnings

import typer
from rich.console import Console

from ssrseg.cli import runs, train, use
from ssrseg.errors import UserError, first_line, out_of_memory, remedy
from ssrseg.runs.atomic import FULL

LOCALE = "Set PYTHONUTF8=1 where names are in UTF-8 and the locale is not, or use another name."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # what draws frames around the help takes longer than all else of it
    context_settings={"max_content_width": 120},
    help="Train a segmentation model on one labelled domain for another, unlabelled one.",
)
for command in (
    *(train.train, train.check_data, train.estimate_priors, train.adjust, train.plan, train.presets),
    *(use.evaluate, use.predict, use.recalibrate, use.choose, use.suggest, use.pack, use.export, use.convert),
    *(runs.report, runs.compare, runs.card, runs.env, train.demo),
):
    app.command()(command)
app.command("try")(use.try_out)  # a keyword of Python's


SLIDE = "--mode slide, one window after another: 'inference.window=[256, 256]' 'inference.stride=[170, 170]'"
LESS_MEMORY = {
    "predict": SLIDE,
    "evaluate": SLIDE,
    "estimate-priors": "inference.mode=slide looks at one window after another; target.resize makes images smaller",
    "choose": "'resize=[1024, 512]' makes the images smaller",
    "recalibrate": "'resize=[1024, 512]' makes the images smaller",
    "plan": "--no-probe estimates without running the step",
    "train": "fewer loader.workers need less; `ssrseg plan` with the same words says what a step needs",
}
"""What to do when memory runs out, by command."""


def main() -> None:
    """Entry point: what a user can mend is one message and an exit code, never a traceback.

    The code is 2, or 3 when a run stopped because its numbers went wrong (`docs/guards.md`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter of a class name shows "?"
            stream.reconfigure(errors="replace")
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's, of half the size that it refuses
    try:
        app()
    except Exception as error:
        if (text := explained(error)) is None:
            raise
        shown = text.encode(errors="replace").decode()  # a name that is no UTF-8 cannot be printed
        Console(stderr=True).print(f"error: {shown}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code if isinstance(error, UserError) else 2)


def explained(error: Exception) -> str | None:
    """Turn an error that is no fault of the program into a message; nothing for the others."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":  # a library's
        name = error.object.encode(errors="replace").decode()  # the package writes UTF-8
        return f"{name[:200]}: this name is no text in UTF-8. {LOCALE}"
    if isinstance(error, OSError) and error.errno in {*FULL, errno.EROFS}:
        where = f" ({error.filename})" if error.filename else ""
        return f"cannot write: {error.strerror}{where}. Make room, or write elsewhere with --out."
    if out_of_memory(error):
        less = LESS_MEMORY.get(next(iter(sys.argv[1:]), ""), "smaller images need less")
        return f"memory ran out: {first_line(error)}\nTo need less: {less}. Other programs may hold memory, too."
    advice = remedy(error)
    return advice and f"{first_line(error)}\n{advice}"
