"""Which observers watch a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from ssrseg.data import eval_samples
from ssrseg.inference import build_inference
from ssrseg.training.console import Screen
from ssrseg.training.journal import Journal, Losses
from ssrseg.training.loading import LoaderNotes
from ssrseg.training.loop import Observer
from ssrseg.training.scoring import Saving, Scoring
from ssrseg.training.setup import Setup
from ssrseg.training.snapshots import PredictedPictures, Snapshots


@contextmanager
def watched(
    setup: Setup,
    console: Console | None,
    others: Sequence[Observer] = (),
    *,
    start: int = 0,
    states: Mapping[str, Any] | None = None,
) -> Iterator[list[Observer]]:
    """The observers of this process, with their states put back; journal and screen are closed whatever happens.

    Args:
        setup: the run.
        console: shows progress; silent when absent.
        others: observers of the caller's.
        start: completed steps.
        states: what `Saving` kept of the observers, by name.
    """
    if not setup.fabric.is_global_zero:
        yield []
        return
    journal = Journal(setup.folder.metrics, resumed_at=start)
    screen = Screen(console, setup.settings.train.steps, start)
    for text in setup.notes:
        screen.say(text)
        journal.write("note", start, text=text)
    named = observers_of(setup, journal, screen)
    for name, state in (states or {}).items():
        if name in named:
            named[name].restore(state)
    # A checkpoint holds what the others did in its step, so `Saving` is the last of ours.
    saving = Saving(setup, named)
    try:
        yield [*named.values(), saving, *others]
    finally:
        screen.close()
        journal.close()


def observers_of(setup: Setup, journal: Journal, screen: Screen) -> dict[str, Observer]:
    """The package's own observers by name; their states lie in a checkpoint under these names."""
    config, space, pictures = setup.settings.train, setup.space, setup.folder.pictures
    named: dict[str, Observer] = {
        "losses": Losses(journal, screen, config.log_every),
        "loader": LoaderNotes(journal, screen),
        "snapshots": Snapshots(pictures, space.colors, config.pictures_every),
    }
    if setup.settings.val is not None:
        samples = eval_samples(setup.settings.val, setup.settings)
        infer = build_inference(setup.settings.inference)
        student, device = setup.method.learner.student, setup.fabric.device
        named["predicted"] = PredictedPictures(pictures, space.colors, samples, student, infer, device)
        named["scoring"] = Scoring(setup, samples, infer, journal, screen)
    return named
