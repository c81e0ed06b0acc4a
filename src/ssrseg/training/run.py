"""`train`: settings in, a run folder out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ssrseg.adapt.learner import ViewMaker
from ssrseg.adapt.terms import Term
from ssrseg.config import Settings
from ssrseg.data import check_data, train_batches
from ssrseg.errors import UserError
from ssrseg.foundation import Frozen
from ssrseg.models.segmenter import Segmenter
from ssrseg.training.checkpoints import load_checkpoint
from ssrseg.training.folder import RunFolder
from ssrseg.training.loop import Observer, fit
from ssrseg.training.setup import build_setup
from ssrseg.training.tracking import check_trackers
from ssrseg.training.watching import watched


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    student: Segmenter
    """In eval mode."""
    first: bool = True
    """Whether this process is the first of the run's: the one that speaks and writes."""


def train(
    settings: Settings | None,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    foundation: Frozen | None = None,
    extra_terms: Mapping[str, Term] | None = None,
    extra_makers: Sequence[ViewMaker] = (),
    observers: Sequence[Observer] = (),
) -> Run:
    """Train a segmenter and leave a run folder.

    Args:
        settings: of the run; absent when resuming, which reads them from the run folder.
        out: the run folder. It must not hold a run yet, unless resuming.
        resume: continue the run in `out` from its last checkpoint.
        console: shows progress; silent when absent.
        foundation: SSR's frozen encoder itself, instead of the one that the settings name.
        extra_terms: terms of your own, by name.
        extra_makers: view makers of your own.
        observers: watch the run beside the package's own, in the first process.

    Raises:
        UserError: the settings, the data or the folder do not allow the run; nothing was trained or overwritten.
    """
    folder = RunFolder(Path(out))
    settings = _settings(settings, folder, resume)
    check_trackers(settings.train)
    notes = check_data(settings)
    setup = build_setup(
        settings, folder, foundation=foundation, extra_terms=extra_terms, extra_makers=extra_makers, notes=notes
    )
    fabric = setup.fabric
    start, states = load_checkpoint(folder.checkpoint, setup.method, setup.optimizer) if resume else (0, {})
    if fabric.is_global_zero and not resume:
        folder.create(settings)
    fabric.barrier()
    with fabric.rank_zero_first():  # the others find the classes counted
        batches = train_batches(
            settings, start=start, rank=fabric.global_rank, world=fabric.world_size, cache=folder.class_statistics
        )
    with watched(setup, console, observers, start=start, states=states) as watching:
        fit(fabric, setup.method, setup.optimizer, batches, settings, start=start, observers=watching)
    return Run(folder.path, setup.method.learner.student.eval(), fabric.is_global_zero)


def _settings(settings: Settings | None, folder: RunFolder, resume: bool) -> Settings:
    if resume:
        return folder.settings()
    if settings is None:
        raise UserError("Training needs settings: a preset, a YAML file, or key.path=value words.")
    folder.refuse_overwriting()
    return settings
