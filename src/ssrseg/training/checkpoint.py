"""The complete state of a run, so that a resumed run is the run that was never interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from ssrseg.adapt.methods import Method
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically
from ssrseg.training.randomness import generator_states, set_generators
from ssrseg.training.sealed import read_sealed, write_sealed


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins: at step 0, or where a checkpoint left it."""

    step: int = 0
    """Completed steps."""
    observers: Mapping[str, Any] = field(default_factory=dict)
    """Their states by name."""
    warnings: tuple[str, ...] = ()
    """What the user should know of it."""


def save_checkpoint(
    path: Path, fabric: Fabric, method: Method, optimizer: Optimizer, *, step: int, observers: Mapping[str, Any]
) -> None:
    """Write the state after `step` completed steps; every process calls this, the first one writes.

    The file carries its checksum and is read back before it takes the place of the last one, which is kept beside it:
    whatever happens meanwhile, one of the two is whole.

    Args:
        path: the file.
        fabric: the processes; the generators of each are kept.
        method: learner, teacher and the generator of the views.
        optimizer: of the learner. Its learning rates are a function of the step.
        step: completed steps.
        observers: their states by name: tensors and plain values.

    Raises:
        OSError: the file could not be written; the last one is where it was.
    """
    generators = _of_all_processes(generator_states(method.generator, fabric.device), fabric)
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
        write_sealed(partial, state)
        if path.exists():
            _keep(path)

    write_atomically(path, write)


def load_checkpoint(path: Path, fabric: Fabric, method: Method, optimizer: Optimizer) -> ResumePoint:
    """Put the state back; the method is moved to the device first, as its optimiser's state must follow it.

    Returns:
        Step 0 when nothing was ever saved.

    Raises:
        UserError: no whole checkpoint, or one of another method or number of processes.
    """
    candidates = [file for file in (path, previous(path)) if file.exists()]
    if not candidates:
        return ResumePoint()
    file, state = _first_whole(candidates)
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
    # A copy: torch reads the state of a generator from the beginning of the storage, and crashes on a part of one.
    mine = {name: states[fabric.global_rank].clone() for name, states in generators.items()}
    set_generators(mine, method.generator, fabric.device)
    fallen_back = f"{path} is missing or damaged: resumed from {file.name}, step {state['step']}"
    return ResumePoint(state["step"], state["observers"], () if file == path else (fallen_back,))


def previous(path: Path) -> Path:
    """Where the checkpoint before the last is kept."""
    return path.with_suffix(".previous.ckpt")


def _of_all_processes(states: Mapping[str, Tensor], fabric: Fabric) -> dict[str, Tensor]:
    if fabric.world_size == 1:
        return {name: state[None] for name, state in states.items()}
    gathered: dict[str, Tensor] = {}
    for name, state in states.items():
        parts = [torch.empty_like(state, device=fabric.device) for _ in range(fabric.world_size)]
        torch.distributed.all_gather(parts, state.to(fabric.device))
        gathered[name] = torch.stack(parts).cpu()
    return gathered


def _keep(path: Path) -> None:
    """Give the file its second name; the first one stays until the new checkpoint takes it."""
    previous(path).unlink(missing_ok=True)
    try:
        previous(path).hardlink_to(path)
    except OSError:  # a file system without links
        path.replace(previous(path))


def _first_whole(files: list[Path]) -> tuple[Path, dict[str, Any]]:
    for file in files:
        if (state := read_sealed(file)) is not None:
            return file, state
    found = " and ".join(str(file) for file in files)
    raise UserError(f"{found}: damaged, the checksum is not that of the content. Start anew with another --out.")
