"""The complete state of a run, so that a resumed run is the run that was never interrupted."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from ssrseg.adapt.methods import Method
from ssrseg.errors import UserError
from ssrseg.files import write_atomically


def save_checkpoint(
    path: Path, method: Method, optimizer: Optimizer, *, step: int, observers: Mapping[str, Any]
) -> None:
    """Write the state after `step` completed steps, atomically; the one before is kept beside it.

    Args:
        path: the file.
        method: learner, teacher and the generator of the views.
        optimizer: of the learner.
        step: completed steps.
        observers: their states by name: tensors and plain values.
    """
    state = {
        "step": step,
        "observers": dict(observers),
        "learner": method.learner.state_dict(),
        "teacher": method.teacher.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views_rng": method.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    if path.exists():
        path.replace(path.with_suffix(".previous.ckpt"))
    write_atomically(path, lambda partial: torch.save(state, partial))


def load_checkpoint(path: Path, method: Method, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
    """Put the state back; returns the completed steps and the states of the observers.

    Raises:
        UserError: no readable checkpoint, or one of another method.
    """
    state = _read(path)
    try:
        method.learner.load_state_dict(state["learner"])
        method.teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} belongs to another method than config.yaml describes: {error}") from error
    method.generator.set_state(state["views_rng"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return state["step"], state["observers"]


def _read(path: Path) -> dict[str, Any]:
    for candidate in (path, path.with_suffix(".previous.ckpt")):
        if not zipfile.is_zipfile(candidate):  # missing, or half written: a zip ends with its table of contents
            continue
        try:
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError):
            continue
        return state
    raise UserError(f"There is no readable checkpoint at {path}: the run cannot be resumed. Start it anew with --out.")
