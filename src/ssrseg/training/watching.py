"""Which observers watch a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from rich.console import Console

from ssrseg.data import eval_samples
from ssrseg.errors import UserError
from ssrseg.files import FULL
from ssrseg.inference import build_inference
from ssrseg.training.checkpoints import Beginning
from ssrseg.training.console import Screen
from ssrseg.training.journal import Journal, Losses
from ssrseg.training.loop import Observer
from ssrseg.training.saving import Saving
from ssrseg.training.scoring import Scoring
from ssrseg.training.setup import Setup
from ssrseg.training.snapshots import PredictedPictures, Snapshots
from ssrseg.training.stopping import Interrupted, Stop


@contextmanager
def watched(
    setup: Setup, console: Console | None, others: Sequence[Observer], beginning: Beginning, stop: Stop
) -> Iterator[list[Observer]]:
    """The observers of this process, with their states put back; journal and screen are closed whatever happens.

    Args:
        setup: the run.
        console: shows progress; silent when absent.
        others: observers of the caller's; their states are kept by their place.
        beginning: where the run begins, and the states of its observers.
        stop: whether a signal has asked the run to end.

    Raises:
        UserError: the disk is full.
    """
    if not setup.fabric.is_global_zero:
        yield [Saving(setup, {}, stop, lambda step, text: None)]
        return
    folder, start = setup.folder, beginning.step
    with full_disk_explained(folder.path), ExitStack() as stack:
        journal = stack.enter_context(closing(Journal(folder.metrics, folder.tensorboard, start=start)))
        screen = stack.enter_context(closing(Screen(console, setup.settings.train.steps, start)))

        def warn(step: int, text: str) -> None:
            screen.say(f"warning: {text}")
            journal.write("warning", step, text=text)

        named = {"journal": journal, **observers_of(setup, journal, screen)}
        named |= {f"other {place}": other for place, other in enumerate(others)}
        for name, state in beginning.observers.items():
            if name in named:
                named[name].restore(state)
        for text in setup.notes:
            screen.say(text)
            if start == 0:  # else the journal has them already
                journal.write("note", start, text=text)
        for text in beginning.warnings:
            warn(start, text)
        try:
            yield [*named.values(), Saving(setup, named, stop, warn)]
        except Interrupted as stopped:
            screen.say(f"{stopped.signal.name}: stopped after step {stopped.step}. {how_to_resume(folder.path)}")
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


def observers_of(setup: Setup, journal: Journal, screen: Screen) -> dict[str, Observer]:
    """The package's own observers by name; their states lie in a checkpoint under these names."""
    config, space, pictures = setup.settings.train, setup.space, setup.folder.pictures
    named: dict[str, Observer] = {
        "losses": Losses(journal, screen, config.log_every),
        "snapshots": Snapshots(pictures, space.colors, config.pictures_every),
    }
    if setup.settings.val is not None:
        samples = eval_samples(setup.settings.val, setup.settings)
        infer = build_inference(setup.settings.inference)
        student, device = setup.method.learner.student, setup.fabric.device
        named["predicted"] = PredictedPictures(pictures, space.colors, samples, student, infer, device)
        named["scoring"] = Scoring(setup, samples, infer, journal, screen)
    return named
