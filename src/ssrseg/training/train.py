"""`train`: settings in, a run folder out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from ssrseg.config import Settings
from ssrseg.data import refuse_bad_data, train_batches
from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter, load_segmenter
from ssrseg.runs.folder import RecipeFolder, RunFolder
from ssrseg.training.checkpoint import ResumePoint, load_checkpoint
from ssrseg.training.environment import changes, environment
from ssrseg.training.loop import fit
from ssrseg.training.observers.trackers import check_trackers
from ssrseg.training.randomness import deterministic_operations
from ssrseg.training.setup import Extensions, RunContext, build_context
from ssrseg.training.signals import signals_noted
from ssrseg.training.stages import train_stages
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
    extensions: Extensions | None = None,
) -> Run:
    """Train a segmenter and leave a run folder, or one folder per stage when the settings are a recipe with stages.

    Args:
        settings: of the run; absent when resuming, which reads them from the run folder.
        out: the run folder. It must not hold a run yet, unless resuming.
        resume: continue the run in `out` from its last checkpoint. A finished run is returned as it is.
        console: shows progress; silent when absent.
        extensions: parts of your own; of every stage that trains.

    Returns:
        The run; of a recipe, the last one that it trained.

    Raises:
        UserError: the settings, the data or the folder do not allow the run, and nothing was trained or overwritten;
            or the disk is full.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 has ended it; its state was saved.
    """
    out, extensions = Path(out), extensions or Extensions()
    if settings.stages if settings is not None else RecipeFolder(out).exists:
        return train_stages(
            settings, out, partial(finish, console=console, extensions=extensions), resume=resume, console=console
        )
    folder = RunFolder(out)
    settings = _settings(settings, folder, resume)
    check_trackers(settings.train)
    if resume and folder.finished:
        if console is not None:
            console.print(f"The run in {folder.path} is finished: nothing to resume.", soft_wrap=True, markup=False)
        return Run(folder.path, load_segmenter(folder.student_last))
    with deterministic_operations(settings.train.deterministic), signals_noted() as stop:
        context = build_context(settings, folder, extensions=extensions, notes=refuse_bad_data(settings))
        fabric, method, optimizer = context.fabric, context.method, context.optimizer
        with folder.held() if fabric.is_global_zero else nullcontext():
            point = resumed(context) if resume else begun(context)
            start, rank, world = point.step, fabric.global_rank, fabric.world_size
            with fabric.rank_zero_first():  # the others find the classes counted
                batches = train_batches(settings, start=start, rank=rank, world=world, cache=folder.class_statistics)
            with watched(context, console, extensions.observers, point, stop) as watching:
                fit(fabric, method, optimizer, batches, settings, start=start, observers=watching)
    return Run(folder.path, method.learner.student.eval(), fabric.is_global_zero)


def finish(
    settings: Settings, out: Path, *, console: Console | None = None, extensions: Extensions | None = None
) -> Run:
    """Train to the end from wherever `out` stands: open a finished run, resume an interrupted run or recipe.

    The terms of `extensions` are copied: they stay as they are for the next run.
    """
    folder = RunFolder(out)
    if folder.finished:
        return Run(out, load_segmenter(folder.student_last))
    begun = folder.exists or RecipeFolder(out).exists
    return train(
        None if begun else settings, out, resume=begun, console=console, extensions=extensions and extensions.fresh()
    )


def begun(context: RunContext) -> ResumePoint:
    """A new run: its folder is made."""
    if context.fabric.is_global_zero:
        context.folder.create(context.settings, environment(context.settings))
    context.fabric.barrier()
    return ResumePoint()


def resumed(context: RunContext) -> ResumePoint:
    """The run of the folder, at its last checkpoint; from the start when it was killed before there was one."""
    folder, fabric = context.folder, context.fabric
    changed = changes(folder.tidy(), environment(context.settings)) if fabric.is_global_zero else ()
    point = load_checkpoint(folder.checkpoint, fabric, context.method, context.optimizer)
    if point.step == 0 and fabric.is_global_zero:
        folder.restart()
    fabric.barrier()
    return replace(point, warnings=(*changed, *point.warnings))


def _settings(settings: Settings | None, folder: RunFolder, resume: bool) -> Settings:
    if resume:
        return folder.settings()
    if settings is None:
        raise UserError("Training needs settings: a preset, a YAML file, or key.path=value words.")
    if folder.exists:
        raise UserError(f"{folder.path} holds a run already. Continue it with --resume or give another --out.")
    return settings
