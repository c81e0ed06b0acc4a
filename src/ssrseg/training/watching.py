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
from ssrseg.training.observers.alarms import ClassCollapse, Divergence, Waiting
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.evaluation import Scoring
from ssrseg.training.observers.faults import Fault
from ssrseg.training.observers.guard import Guard
from ssrseg.training.observers.journal import Journal, Losses, Silent
from ssrseg.training.observers.loading import LoaderNotes
from ssrseg.training.observers.pictures import PredictedPictures, Snapshots
from ssrseg.training.observers.selection import Selection
from ssrseg.training.observers.trackers import track
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
        journal: Journal = Journal(folder.metrics, folder.tensorboard, start=start) if first else Silent()
        stack.enter_context(closing(journal))
        screen = stack.enter_context(closing(Screen(console if first else None, context.settings.train.steps, start)))
        tell = Teller(journal, screen)
        named = observers_of(context, journal, screen, tell)
        named |= {f"other {place}": other for place, other in enumerate(others)}
        named["journal"] = journal  # last: a guard that gives its state may have something to write
        for name, state in point.observers.items():
            if name in named:
                named[name].restore(state)
        if first:
            track(journal, context, screen, start)
        for text in context.notes:
            screen.say(text)
            if start == 0:  # else the journal has them already
                journal.write("note", start, text=text)
        for text in point.warnings:
            tell.warn(start, text)
        saving = CheckpointWriter(context, named, stop, tell.warn)
        timeout = stack.enter_context(StepTimeout(context.fabric, context.settings.train.timeout_minutes))
        try:
            yield [timeout, *(each for each in (*named.values(), saving) if first or each.everywhere)]
        except Fault as fault:
            journal.write("warning", fault.step, text=str(fault))
            saving.save(fault.completed)
            raise
        except Interrupted as stopped:
            screen.say(f"{stopped.signal.name}: stopped after step {stopped.step}. {how_to_resume(folder.path)}")
            raise


class Teller:
    """Says something on the screen and in the journal."""

    def __init__(self, journal: Journal, screen: Screen) -> None:
        self._journal, self._screen = journal, screen

    def warn(self, step: int, text: str) -> None:
        """Something may be wrong."""
        self._say("warning", step, text)

    def note(self, step: int, text: str) -> None:
        """Something is worth knowing."""
        self._say("note", step, text)

    def _say(self, kind: str, step: int, text: str) -> None:
        self._screen.say(f"{kind}: {text}")
        self._journal.write(kind, step, text=text)


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


def observers_of(context: RunContext, journal: Journal, screen: Screen, tell: Teller) -> dict[str, Observer]:
    """The package's own observers by name; their states lie in a checkpoint under these names."""
    config, space, pictures = context.settings.train, context.space, context.folder.pictures

    named: dict[str, Observer] = {
        "losses": Losses(journal, screen, config.log_every),
        "loader": LoaderNotes(journal, screen),
        "snapshots": Snapshots(pictures, space.colors, config.pictures_every),
        "waiting": Waiting(context, journal, tell.warn, tell.note),
        "divergence": Divergence(context, journal, tell.warn),
        "collapse": (collapse := ClassCollapse(context, journal, tell.warn)),
    }
    if context.settings.val is not None:
        samples = eval_samples(context.settings.val, context.settings.classes, context.settings.source)
        infer = build_inference(context.settings.inference)
        student, device = context.method.learner.student, context.fabric.device
        named["predicted"] = PredictedPictures(
            pictures / "val", space.names, space.colors, samples, student, infer, device
        )
        named["scoring"] = Scoring(context, samples, infer, journal, screen, collapse.scored)
    target, selection = context.settings.target, context.settings.selection
    if target is not None and selection is not None:  # after the scoring, whose result it notes beside its choices
        infer = build_inference(context.settings.inference)
        named["selection"] = Selection(context, target, selection, infer, journal, screen)
    named["guard"] = Guard(context, tell.warn)  # the others have seen the step that it may stop at
    return named
