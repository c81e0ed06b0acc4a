"""The complete state of a run, so that a resumed run equals one without interruption."""

from __future__ import annotations

import math
import random
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Generator, Tensor
from torch.optim import Optimizer

from ssrseg.adapt.methods import Method
from ssrseg.config import Settings
from ssrseg.errors import UserError
from ssrseg.models.segmenter import save_segmenter
from ssrseg.runs.atomic import write_atomically
from ssrseg.training.distributed import Interrupted, Stop
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.optim import load_optimizer
from ssrseg.training.setup import RunContext


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts: at step 0, or at the step of a checkpoint."""

    step: int = 0  # completed steps
    observers: Mapping[str, Any] = field(default_factory=dict)  # states of the observers by name
    warnings: tuple[str, ...] = ()  # for the user: a damaged checkpoint, changed data or libraries
    settings: Mapping[str, Any] | None = None  # the tree that the checkpoint was saved with, if it has one
    notes: tuple[str, ...] = ()  # for the user: changed settings
    asides: tuple[str, ...] = ()  # for the screen alone: those that cannot change the result
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # their values before and now


class CheckpointWriter(Observer):
    """Save the complete state every `checkpoint_every` steps, and the deployable student at the end.

    It comes last, so that a checkpoint holds what the other observers did in its step, and it runs in every process,
    as each has its own generators. After a signal, of which processes ask each other every `log_every` steps, it saves
    and raises `Interrupted`. When a checkpoint cannot be written, `warn` is called, and training goes on.
    """

    everywhere = True

    def __init__(
        self, context: RunContext, observers: Mapping[str, Observer], stop: Stop, warn: Callable[[int, str], None]
    ) -> None:
        self._context, self._observers, self._stop, self._warn = context, observers, stop, warn

    def stepped(self, result: StepResult) -> None:
        config = self._context.settings.train
        last = result.step == config.steps or any(observer.ended for observer in self._observers.values())
        signum = self._stop.agreed(self._context.fabric, due=result.step % config.log_every == 0)
        if result.step % config.checkpoint_every == 0 or last or signum:
            self.save(result.step)
        if signum and not last:
            # No process leaves while the first one writes: a launcher would take it for dead.
            self._context.fabric.barrier()
            raise Interrupted(signum, result.step)

    def finished(self) -> None:
        """Save the last teacher and student; the student's file exists only when all steps are done."""
        if self._context.fabric.is_global_zero:
            if (teacher := self._context.method.teacher.segmenter) is not None:
                save_segmenter(teacher, self._context.folder.teacher_last)
            save_segmenter(self._context.method.learner.student, self._context.folder.student_last)

    def save(self, step: int) -> None:
        """Save after `step` completed steps; every process calls this."""
        run, states = self._context, {name: observer.state() for name, observer in self._observers.items()}
        parts, settings = (run.fabric, run.method, run.optimizer), run.settings
        try:
            save_checkpoint(run.folder.checkpoint, *parts, step=step, observers=states, settings=settings)
        except OSError as error:
            self._warn(step, f"the state could not be saved at step {step}: {error}. The last checkpoint is kept.")


def save_checkpoint(
    path: Path,
    fabric: Fabric,
    method: Method,
    optimizer: Optimizer,
    *,
    step: int,
    observers: Mapping[str, Any],
    settings: Settings | None = None,
) -> None:
    """Write the state after `step` completed steps; every process calls this, the first one writes.

    The file replaces the last one atomically, and that one is kept beside it. `OSError`: it could not be written, and
    the last one is unchanged.
    """
    generators = generator_states(method.generator, fabric.device)
    if fabric.world_size == 1:
        generators = {name: state[None] for name, state in generators.items()}
    else:
        generators = {name: state.cpu() for name, state in fabric.all_gather(generators).items()}  # type: ignore[union-attr]
    if not fabric.is_global_zero:
        return
    state = {
        "step": step,
        "settings": settings and settings.model_dump(mode="json"),
        "observers": dict(observers),
        "learner": method.learner.state_dict(),
        "teacher": method.teacher.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": generators,  # (processes, ...) each
    }

    def write(partial: Path) -> None:
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # torch's own, raised while it closes the archive after the file's error
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        if not path.exists():
            return
        kept = previous(path)
        kept.unlink(missing_ok=True)
        try:  # a second name: the first one stays until the new checkpoint takes it
            kept.hardlink_to(path)
        except OSError:  # a file system without links
            path.replace(kept)

    write_atomically(path, write)


def load_checkpoint(path: Path, fabric: Fabric, method: Method, optimizer: Optimizer) -> ResumePoint:
    """Restore a run from its last checkpoint, or from the one before; step 0 when nothing was ever saved.

    The method is moved to the device first, as its optimiser's state must follow it.

    Raises:
        UserError: all checkpoints are damaged, or belong to another method or number of processes.
    """
    candidates = [file for file in (path, previous(path)) if file.exists()]
    if not candidates:
        return ResumePoint()
    file, state = next(((file, state) for file in candidates if (state := read_checkpoint(file))), (path, {}))
    if not state:
        found = " and ".join(map(str, candidates))
        raise UserError(f"{found}: damaged, its content does not have its checksums. Start anew with another --out.")
    processes = len(state["generators"]["torch"])
    if processes != fabric.world_size:
        raise UserError(
            f"{file} was written by {processes} processes, this run has {fabric.world_size}: each has its own draws "
            f"and samples, so it would be another run. Resume with {processes}, or start anew with another --out."
        )
    method.to(fabric.device)
    try:
        method.learner.load_state_dict(state["learner"])
        method.teacher.load_state_dict(state["teacher"])
        load_optimizer(optimizer, state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{file} belongs to another method than config.yaml describes: {error}") from error
    # A copy: torch reads the state of a generator from the start of the storage, and crashes on a part of one.
    mine = {name: states[fabric.global_rank].clone() for name, states in state["generators"].items()}
    set_generators(mine, method.generator, fabric.device)
    fallen_back = f"{path} is missing or damaged: resumed from {file.name}, step {state['step']}"
    warnings = () if file == path else (fallen_back,)
    return ResumePoint(state["step"], state["observers"], warnings, state.get("settings"))


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint onto the CPU; `None` when the file is cut off or any bit of its content has changed."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save writes a zip file with a CRC-32 of each part
            if archive.testzip() is not None:
                return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a changed bit in a header can be anything: another size, compression, a password, a name
        return None
    return state


def previous(path: Path) -> Path:
    """Path of the checkpoint before the last."""
    return path.with_suffix(".previous.ckpt")


def generator_states(views: Generator, device: torch.device) -> dict[str, Tensor]:
    """Read the states of Python's, NumPy's and torch's global generators, the device's, and the view makers'.

    The workers of the loader have none: a sample is a function of the run's seed and its draw number.
    """
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": torch.tensor(words),  # (625,) int64: 624 words and the position
        "python_gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss]),  # (626,) int64
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "views": views.get_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generators(states: Mapping[str, Tensor], views: Generator, device: torch.device) -> None:
    """Restore the states of `generator_states`."""
    gauss = float(states["python_gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(states["numpy_gauss"])))
    torch.set_rng_state(states["torch"])
    views.set_state(states["views"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
