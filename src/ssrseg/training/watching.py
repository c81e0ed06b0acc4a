"""Which observers watch a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console

from ssrseg.data import eval_samples
from ssrseg.inference import build_inference
from ssrseg.training.alarms import ClassCollapse, Divergence, Waiting
from ssrseg.training.console import Screen
from ssrseg.training.faults import Fault
from ssrseg.training.guards import Guard
from ssrseg.training.journal import Journal, Losses, Silent
from ssrseg.training.loop import Observer
from ssrseg.training.scoring import Saving, Scoring
from ssrseg.training.selection import Selection
from ssrseg.training.setup import Setup
from ssrseg.training.snapshots import PredictedPictures, Snapshots
from ssrseg.training.tracking import track
from ssrseg.training.watchdog import Watchdog


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

    The first process speaks and writes. The others have the observers that compute with all of them, and a watchdog.

    Args:
        setup: the run.
        console: shows progress; silent when absent.
        others: observers of the caller's.
        start: completed steps.
        states: what `Saving` kept of the observers, by name.
    """
    first = setup.fabric.is_global_zero
    journal = Journal(setup.folder.metrics, resumed_at=start) if first else Silent()
    screen = Screen(console if first else None, setup.settings.train.steps, start)
    if first:
        track(journal, setup, screen, start)
    for text in setup.notes:
        screen.say(text)
        journal.write("note", start, text=text)
    named = observers_of(setup, journal, screen)
    for name, state in (states or {}).items():
        if name in named:
            named[name].restore(state)
    # A checkpoint holds what the others did in its step, so `Saving` is the last of ours.
    saving = Saving(setup, named)
    watchdog = Watchdog(setup.fabric, 60 * setup.settings.train.timeout_minutes)
    try:
        with watchdog:
            yield [watchdog, *(each for each in (*named.values(), saving, *others) if first or each.everywhere)]
    except Fault as fault:
        journal.write("warning", fault.step, text=str(fault))
        saving.save(fault.completed)
        raise
    finally:
        screen.close()
        journal.close()


def observers_of(setup: Setup, journal: Journal, screen: Screen) -> dict[str, Observer]:
    """The package's own observers by name; their states lie in a checkpoint under these names."""
    config, space, pictures = setup.settings.train, setup.space, setup.folder.pictures

    def tell(kind: str, step: int, text: str) -> None:
        journal.write(kind, step, text=text)
        screen.say(f"{kind}: {text}")

    warn, note = partial(tell, "warning"), partial(tell, "note")

    named: dict[str, Observer] = {
        "losses": Losses(journal, screen, config.log_every),
        "snapshots": Snapshots(pictures, space.colors, config.pictures_every),
        "waiting": Waiting(setup, journal, warn, note),
        "divergence": Divergence(setup, journal, warn),
        "collapse": (collapse := ClassCollapse(setup, journal, warn)),
    }
    if setup.settings.val is not None:
        samples = eval_samples(setup.settings.val, setup.settings)
        infer = build_inference(setup.settings.inference)
        student, device = setup.method.learner.student, setup.fabric.device
        named["predicted"] = PredictedPictures(pictures, space.colors, samples, student, infer, device)
        named["scoring"] = Scoring(setup, samples, infer, journal, screen, collapse.scored)
    target, selection = setup.settings.target, setup.settings.selection
    if target is not None and selection is not None:  # after the scoring, whose result it notes beside its choices
        infer = build_inference(setup.settings.inference)
        named["selection"] = Selection(setup, target, selection, infer, journal, screen)
    named["guard"] = Guard(setup, warn)  # the others have seen the step that it may stop at
    return named
