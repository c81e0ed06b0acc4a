"""`train`: settings in, a run folder out."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote

import torch
from rich.console import Console

from ssrseg.adapt.learner import Learner, adapt
from ssrseg.adapt.methods import Method
from ssrseg.config import Settings
from ssrseg.data import eval_samples, refuse_bad_data, train_batches
from ssrseg.errors import OutOfMemory, UserError, first_line, out_of_memory
from ssrseg.inference.sliding_window import build_inference, within_memory
from ssrseg.models.segmenter import Segmenter, load_segmenter
from ssrseg.runs.atomic import FULL
from ssrseg.runs.folder import RecipeFolder, RunFolder, resume_command
from ssrseg.training.checkpoint import CheckpointWriter, ResumePoint, load_checkpoint
from ssrseg.training.distributed import Interrupted, StepTimeout, Stop, signals_noted
from ssrseg.training.env import changes, environment
from ssrseg.training.loop import Observer, fit
from ssrseg.training.observers.alarms import ClassCollapse, DataWait, Divergence
from ssrseg.training.observers.evaluation import Evaluation, Selection
from ssrseg.training.observers.guard import Fault, Guard
from ssrseg.training.observers.journal import Journal, Losses, Screen
from ssrseg.training.observers.pictures import PredictedPictures, ViewPictures
from ssrseg.training.observers.trackers import check_trackers, start_trackers
from ssrseg.training.rehearsal import rehearse
from ssrseg.training.resume import Continuation, agree, peek, readable, steps_left
from ssrseg.training.setup import Extensions, RunContext, build_context
from ssrseg.training.stages import another_student, deployed, train_stages


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    student: Segmenter  # in eval mode
    first: bool = True  # whether this process is the first of the run's: the one that speaks and writes


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
        settings: of the run; when resuming, those to go on with: what the run folder has, unless given.
        out: the run folder. It must not hold a run yet, unless resuming.
        resume: continue the run in `out` from its last checkpoint. A finished run is returned as it is, unless the
            settings have more steps than it has done.
        console: shows progress; silent when absent.
        extensions: parts of your own; of every stage that trains.

    Returns:
        The run; of a recipe, the last one that it trained.

    Raises:
        UserError: the settings, the data or the folder do not allow the run, and nothing was trained or overwritten;
            or the disk is full.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 has ended it; its state was saved, once a step was done.
    """
    out, extensions, console = Path(out), extensions or Extensions(), console or Console(quiet=True)
    settings = settings and deployed(settings)
    if RecipeFolder(out).exists if resume or settings is None else settings.stages:
        each = partial(finish, console=console, extensions=extensions)
        return train_stages(settings, out, each, resume=resume, console=console)
    folder = RunFolder(out)
    if resume:
        own = folder.settings()
        settings = settings or deployed(own)
        if settings.stages:
            raise UserError(
                f"{folder.path} is a single run: --resume makes no recipe with stages of it, as deploy.statistics="
                f"{settings.deploy.statistics} asks. {another_student(str(folder.student_last), settings)}"
            )
    elif settings is None:
        raise UserError("Training needs settings: a preset, a YAML file, or key.path=value words.")
    elif folder.exists:
        raise UserError(f"{folder.path} holds a run already. Continue it with --resume or give another --out.")
    check_trackers(settings.train)
    if resume and not steps_left(folder, settings):
        run = finished(folder)
        more = f"{resume_command(folder.path)} train.steps=N"
        text = f"The run in {folder.path} is finished: nothing to resume. Train it longer with: {more}"
        console.print(text, soft_wrap=True, markup=False)
        return run
    with deterministic_operations(settings.train.deterministic), signals_noted() as stop:
        stop.at_once = True  # until the first step is done
        notes = refuse_bad_data(settings)
        rehearse(settings, regularized=extensions.foundation is None)
        context = build_context(settings, folder, extensions=extensions, notes=notes)
        fabric, method = context.fabric, context.method
        with folder.held() if fabric.is_global_zero else nullcontext():
            point = open_folder(context, resume=resume)
            start, rank, world = point.step, fabric.global_rank, fabric.world_size
            with fabric.rank_zero_first():  # the others find the classes counted
                pin_memory = fabric.device.type == "cuda"
                batches = train_batches(settings, start=start, rank=rank, world=world, pin_memory=pin_memory)
            with observed(context, console, extensions.observers, point, stop) as observers:
                fit(fabric, method, context.optimizer, batches, settings, start=start, observers=observers)
    return Run(folder.path, method.learner.student.eval(), fabric.is_global_zero)


def finish(
    settings: Settings, out: Path, *, console: Console | None = None, extensions: Extensions | None = None
) -> Run:
    """Train to the end from wherever `out` stands: open a finished run, resume an interrupted run or recipe.

    The terms of `extensions` are copied: they stay as they are for the next run.
    """
    folder = RunFolder(out)
    if folder.exists:
        agree(folder, settings)
        if not steps_left(folder, settings, places=False):
            return finished(folder)
    resume = folder.exists or RecipeFolder(out).exists
    extensions = extensions and replace(extensions, terms=deepcopy(extensions.terms))
    return train(settings, out, resume=resume, console=console, extensions=extensions)


def finished(folder: RunFolder) -> Run:
    """Open a finished run; raises `UserError` that says how to have its student again where the file is damaged."""
    try:
        return Run(folder.path, load_segmenter(folder.student_last))
    except UserError as error:
        again = "It is written again"
        if folder.metrics.exists() and peek(folder.checkpoint) is None:
            again = "Its checkpoints are gone, so that it is trained anew, from its first step"
        raise UserError(
            f"The run in {folder.path} is finished, but its student {folder.student_last} is damaged "
            f"({first_line(error.__cause__ or error)}). {again}, by: "
            f"rm {quote(str(folder.student_last))} && {resume_command(folder.path)}"
        ) from error


def open_folder(context: RunContext, *, resume: bool) -> ResumePoint:
    """Make the folder of a new run, or restore a run: from its last checkpoint, or from nothing before its first."""
    folder, fabric, settings = context.folder, context.fabric, context.settings
    point, changed = ResumePoint(), tuple[str, ...]()
    if resume:
        changed = changes(folder.tidy(), environment(settings)) if fabric.is_global_zero else ()
        point = load_checkpoint(folder.checkpoint, fabric, context.method, context.optimizer)
        if point.step:
            run = Continuation(point.step, readable(point.settings), settings)
            point = replace(point, notes=run.notes(fabric.world_size), asides=run.asides(), changed=run.essential)
        if fabric.is_global_zero and (kept := folder.reopen(settings, point.step)):
            point = replace(point, asides=(*point.asides, f"the student of step {point.step} is kept as {kept}"))
    elif fabric.is_global_zero:
        folder.create(settings, environment(settings))
    fabric.barrier()
    return replace(point, warnings=(*changed, *point.warnings))


@contextmanager
def observed(
    context: RunContext, console: Console, others: Sequence[Observer], point: ResumePoint, stop: Stop
) -> Iterator[list[Observer]]:
    """Yield the observers of this process with their states restored; close journal and screen at the end.

    The first process prints and writes. The others have only the observers that compute with all processes. The
    states of `others`, the user's observers, are kept by their place. Raises `UserError` when the disk is full.
    """
    folder, start, first, train = context.folder, point.step, context.fabric.is_global_zero, context.settings.train
    resume = resume_command(folder.path)
    how_to_resume = f"Continue with: {resume}"
    try:
        with ExitStack() as stack:
            screen = stack.enter_context(closing(Screen(console if first else None, train.steps, start)))
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
            for text in point.asides:
                screen.print(text)
            for text in (*point.warnings, *failures):
                journal.warn(start, text)
            if point.changed:
                journal.write("settings", start, changed=point.changed)
            for text in point.notes:
                journal.note(start, text)
            saving = CheckpointWriter(context, named, stop, journal.warn)
            timeout = stack.enter_context(StepTimeout(context.fabric, train.timeout_minutes, stop))
            try:
                yield [timeout, *(each for each in (*named.values(), saving) if first or each.everywhere)]
            except Fault as fault:
                journal.write("warning", fault.step, text=str(fault))
                if not fault.diverged:
                    saving.save(fault.completed)
                raise
            except Interrupted as stopped:
                if stopped.step is not None:
                    screen.print(f"{stopped.signal.name}: stopped after step {stopped.step}. {how_to_resume}")
                raise
            except Exception as error:
                if isinstance(error, UserError) or not out_of_memory(error):
                    raise
                raise OutOfMemory(
                    f"Memory ran out {place(error, context.method)}: {first_line(error)}\nTo need less, in this order: "
                    "train.activation_checkpointing=true; train.precision=bf16; loader.batch=1 with train.accumulate; "
                    "a smaller loader.crop; inference.mode=slide for evaluations. `ssrseg plan` with the words of this "
                    f"run says what each saves. Continue with them: {resume} train.activation_checkpointing=true"
                ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"The run stopped, as {folder.path} cannot be written any more: {error}. Make room. {how_to_resume}"
        ) from error


def place(error: BaseException, method: Method) -> str:
    """Say where in a step an error was raised: while evaluating, or at which view and term; from its traceback."""
    step, view, term = 0, "none", "none"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is fit.__code__:
            step = frame.f_locals.get("step", 0) + 1
        if frame.f_code is Evaluation.stepped.__code__ or frame.f_code is Selection.stepped.__code__:
            return f"in the evaluation after step {step}"
        if frame.f_code is adapt.__code__:
            view = frame.f_locals["view"].name if "view" in frame.f_locals else "none yet (labels of the teacher)"
        if frame.f_code is Learner._early_backward.__code__:
            asked = frame.f_locals["term"]
            term = next(name for name, each in method.learner.terms.named_children() if each is asked)
    return f"in step {step} (view {view}, term {term})"


def build_observers(context: RunContext, journal: Journal) -> dict[str, Observer]:
    """Build the package's own observers in their order; checkpoints keep their states under these names."""
    settings = context.settings
    infer = within_memory(build_inference(settings.inference), settings.loader.crop, lambda text: journal.note(0, text))
    observers: dict[str, Observer] = {
        "losses": Losses(journal, settings.train.log_every),
        "pictures": ViewPictures(context),
        "data_wait": DataWait(context, journal),
        "divergence": Divergence(context, journal),
        "collapse": (collapse := ClassCollapse(context, journal)),
    }
    if settings.val is not None:
        samples = eval_samples(settings.val, settings.classes, settings.source, settings.model.reading)
        observers["predicted"] = PredictedPictures(context, samples, infer)
        observers["evaluation"] = Evaluation(context, samples, infer, journal, collapse.scored)
    if settings.target is not None and settings.selection is not None:
        # After the evaluation, whose result it notes beside its choices.
        observers["selection"] = Selection(context, settings.target, settings.selection, infer, journal)
    observers["guard"] = Guard(context, journal)  # the others have seen the step that it may stop at
    return observers


@contextmanager
def deterministic_operations(wanted: bool) -> Iterator[None]:
    """Use deterministic operations only, inside the `with` block; torch raises `RuntimeError` where it has none.

    cuBLAS reads its setting when it is first used in the process: enter before anything runs on a GPU.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
