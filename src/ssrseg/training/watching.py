"""Which observers watch a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from rich.console import Console

from ssrseg.data import eval_samples
from ssrseg.errors import UserError
from ssrseg.inference.sliding_window import build_inference
from ssrseg.runs.atomic import FULL
from ssrseg.training.checkpoint import CheckpointWriter, ResumePoint
from ssrseg.training.distributed import StepTimeout
from ssrseg.training.loop import Observer
from ssrseg.training.observers.alarms import ClassCollapse, DataWait, Divergence
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.evaluation import Evaluation
from ssrseg.training.observers.guard import Fault, Guard
from ssrseg.training.observers.journal import Journal, LoaderNotes, Losses
from ssrseg.training.observers.pictures import PredictedPictures, ViewPictures
from ssrseg.training.observers.selection import Selection
from ssrseg.training.observers.trackers import start_trackers
from ssrseg.training.setup import RunContext
from ssrseg.training.signals import Interrupted, Stop


@contextmanager
def watched(
    context: RunContext, console: Console | None, others: Sequence[Observer], point: ResumePoint, stop: Stop
) -> Iterator[list[Observer]]:
    """The observers of this process, with their states put back; journal and screen are closed whatever happens.

    The first process speaks and writes. The others have the observers that compute with all of them.

    Args:
        context: the run.
        console: shows progress; silent when absent.
        others: observers of the caller's; their states are kept by their place.
        point: where the run begins, and the states of its observers.
        stop: whether a signal has asked the run to end.

    Raises:
        UserError: the disk is full.
    """
    folder, start, first = context.folder, point.step, context.fabric.is_global_zero
    with full_disk_explained(folder.path), ExitStack() as stack:
        screen = stack.enter_context(closing(Screen(console if first else None, context.settings.train.steps, start)))
        trackers, failures = start_trackers(context)
        journal = Journal(folder if first else None, screen, start=start, trackers=trackers)
        stack.enter_context(closing(journal))
        named = build_observers(context, journal)
        named |= {f"other {place}": other for place, other in enumerate(others)}
        named["journal"] = journal  # last: a guard that gives its state may have something to write
        for name, state in point.observers.items():
            if name in named:
                named[name].restore(state)
        for text in context.notes:
            screen.print(text)
            if start == 0:  # else the journal has them already
                journal.write("note", start, text=text)
        for text in (*point.warnings, *failures):
            journal.warn(start, text)
        saving = CheckpointWriter(context, named, stop, journal.warn)
        timeout = stack.enter_context(StepTimeout(context.fabric, context.settings.train.timeout_minutes))
        try:
            yield [timeout, *(each for each in (*named.values(), saving) if first or each.everywhere)]
        except Fault as fault:
            journal.write("warning", fault.step, text=str(fault))
            saving.save(fault.completed)
            raise
        except Interrupted as stopped:
            screen.print(f"{stopped.signal.name}: stopped after step {stopped.step}. {how_to_resume(folder.path)}")
            raise


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """A full disk is the user's to mend: what is in the last checkpoint can be resumed."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"The run stopped, as {folder} cannot be written any more: {error}. Make room. {how_to_resume(folder)}"
        ) from error


def how_to_resume(folder: Path) -> str:
    """The command."""
    return f"Continue with: ssrseg train --resume --out {shlex.quote(str(folder))}"


def build_observers(context: RunContext, journal: Journal) -> dict[str, Observer]:
    """The package's own observers by name, in their order; their states lie in a checkpoint under these names."""
    settings = context.settings
    infer = build_inference(settings.inference)
    observers: dict[str, Observer] = {
        "losses": Losses(journal, settings.train.log_every),
        "loader": LoaderNotes(journal),
        "pictures": ViewPictures(context),
        "data_wait": DataWait(context, journal),
        "divergence": Divergence(context, journal),
        "collapse": (collapse := ClassCollapse(context, journal)),
    }
    if settings.val is not None:
        samples = eval_samples(settings.val, settings.classes, settings.source)
        observers["predicted"] = PredictedPictures(context, samples, infer)
        observers["evaluation"] = Evaluation(context, samples, infer, journal, collapse.scored)
    if settings.target is not None and settings.selection is not None:
        # After the evaluation, whose result it notes beside its choices.
        observers["selection"] = Selection(context, settings.target, settings.selection, infer, journal)
    observers["guard"] = Guard(context, journal)  # the others have seen the step that it may stop at
    return observers
