"""The complete state of a run, so that a resumed run equals one that was never interrupted."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from ssrseg.adapt.methods import Method
from ssrseg.errors import UserError
from ssrseg.models.segmenter import save_segmenter
from ssrseg.runs.atomic import write_atomically
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.randomness import generator_states, set_generators
from ssrseg.training.setup import RunContext
from ssrseg.training.signals import Interrupted, Stop


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts: at step 0, or at the step of a checkpoint."""

    step: int = 0
    """Completed steps."""
    observers: Mapping[str, Any] = field(default_factory=dict)
    """States of the observers by name."""
    warnings: tuple[str, ...] = ()
    """For the user: a damaged checkpoint, changed data or libraries."""


class CheckpointWriter(Observer):
    """Save the complete state every `checkpoint_every` steps, and the deployable student at the end.

    It comes last, so that a checkpoint holds what the other observers did in its step, and it runs in every process,
    as each has its own generators.

    Args:
        context: the run.
        observers: observers whose states are saved, by name.
        stop: whether a signal has asked the run to end; asked every step, among several processes every `log_every`.
        warn: called with step and text when a checkpoint could not be written; training goes on.
    """

    everywhere = True

    def __init__(
        self, context: RunContext, observers: Mapping[str, Observer], stop: Stop, warn: Callable[[int, str], None]
    ) -> None:
        self._context, self._config, self._observers = context, context.settings.train, observers
        self._stop, self._warn = stop, warn

    def stepped(self, result: StepResult) -> None:
        """Save when it is time; raises `Interrupted` after a signal."""
        config, last = self._config, result.step == self._config.steps
        signum = self._stop.agreed(self._context.fabric, due=result.step % config.log_every == 0)
        if result.step % config.checkpoint_every == 0 or last or signum:
            self.save(result.step)
        if signum and not last:
            # No process leaves while the first one writes: a launcher would take it for dead.
            self._context.fabric.barrier()
            raise Interrupted(signum, result.step)

    def finished(self) -> None:
        """Save the last student; its file exists only when all steps are done."""
        if self._context.fabric.is_global_zero:
            save_segmenter(self._context.method.learner.student, self._context.folder.student_last)

    def save(self, step: int) -> None:
        """Save after `step` completed steps; every process calls this."""
        run = self._context
        states = {name: observer.state() for name, observer in self._observers.items()}
        path = run.folder.checkpoint
        try:
            save_checkpoint(path, run.fabric, run.method, run.optimizer, step=step, observers=states)
        except OSError as error:
            self._warn(step, f"the state could not be saved at step {step}: {error}. The last checkpoint is kept.")


def save_checkpoint(
    path: Path, fabric: Fabric, method: Method, optimizer: Optimizer, *, step: int, observers: Mapping[str, Any]
) -> None:
    """Write the state after `step` completed steps; every process calls this, the first one writes.

    The file replaces the last one atomically, and that one is kept beside it.

    Args:
        path: file to write.
        fabric: the processes; the generators of each are saved.
        method: learner, teacher and the generator of the views.
        optimizer: of the learner. Its learning rates are a function of the step.
        step: completed steps.
        observers: their states by name: tensors and plain values.

    Raises:
        OSError: the file could not be written; the last one is unchanged.
    """
    generators = _gather(generator_states(method.generator, fabric.device), fabric)
    if not fabric.is_global_zero:
        return
    state = {
        "step": step,
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
        if path.exists():
            _keep(path)

    write_atomically(path, write)


def load_checkpoint(path: Path, fabric: Fabric, method: Method, optimizer: Optimizer) -> ResumePoint:
    """Restore a run from its last checkpoint, or from the one before when the last is missing or damaged.

    The method is moved to the device first, as its optimiser's state must follow it.

    Returns:
        Step 0 when nothing was ever saved.

    Raises:
        UserError: all checkpoints are damaged, or belong to another method or number of processes.
    """
    candidates = [file for file in (path, previous(path)) if file.exists()]
    if not candidates:
        return ResumePoint()
    whole = ((file, state) for file in candidates if (state := read_checkpoint(file)) is not None)
    file, state = next(whole, (None, {}))
    if file is None:
        found = " and ".join(map(str, candidates))
        raise UserError(f"{found}: damaged, its content does not have its checksums. Start anew with another --out.")
    generators = state["generators"]
    processes = len(generators["torch"])
    if processes != fabric.world_size:
        raise UserError(
            f"{file} was written by {processes} processes, this run has {fabric.world_size}: each has its own draws "
            f"and samples, so it would be another run. Resume with {processes}, or start anew with another --out."
        )
    method.to(fabric.device)
    try:
        method.learner.load_state_dict(state["learner"])
        method.teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{file} belongs to another method than config.yaml describes: {error}") from error
    # A copy: torch reads the state of a generator from the start of the storage, and crashes on a part of one.
    mine = {name: states[fabric.global_rank].clone() for name, states in generators.items()}
    set_generators(mine, method.generator, fabric.device)
    fallen_back = f"{path} is missing or damaged: resumed from {file.name}, step {state['step']}"
    return ResumePoint(state["step"], state["observers"], () if file == path else (fallen_back,))


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


def _keep(path: Path) -> None:
    """Give the file its second name; the first one stays until the new checkpoint takes it."""
    previous(path).unlink(missing_ok=True)
    try:
        previous(path).hardlink_to(path)
    except OSError:  # a file system without links
        path.replace(previous(path))


def _gather(states: Mapping[str, Tensor], fabric: Fabric) -> dict[str, Tensor]:
    """Stack the states of all processes: (processes, ...) each."""
    if fabric.world_size == 1:
        return {name: state[None] for name, state in states.items()}
    gathered: dict[str, Tensor] = {}
    for name, state in states.items():
        parts = [torch.empty_like(state, device=fabric.device) for _ in range(fabric.world_size)]
        torch.distributed.all_gather(parts, state.to(fabric.device))
        gathered[name] = torch.stack(parts).cpu()
    return gathered
