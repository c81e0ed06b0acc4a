"""Weights files to names and tensors, without ever executing a pickle."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssrseg.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """A file's weights, and what its authors wrote beside them."""

    state: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(source: Mapping[str, Any] | Path | str) -> Checkpoint:
    """The weights in a file, or in what such a file holds. Nothing in it is executed.

    Raises:
        UserError: no such file, not a weights file, or one that holds more than tensors and plain values.
    """
    found = source if isinstance(source, Mapping) else _read(Path(source))
    state = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        where = "The checkpoint" if isinstance(source, Mapping) else str(source)
        raise UserError(
            f"{where} should hold names and tensors, bare or under `state_dict` or `model`; "
            f"found {', '.join(map(repr, strange[:5])) or 'nothing'}."
        )
    meta = found.get("meta")
    return Checkpoint(state, meta if isinstance(meta, Mapping) else {})


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a weights file: {error}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} should hold names and tensors, found {type(found).__name__}.")
    return found


def _refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    what = f"the Python object {named[1]}" if named else "something other than tensors and plain values"
    return (
        f"{path} is a pickle that holds {what}; loading it could run any code, so it is not loaded.\n"
        "If you trust it, keep only its weights, in the environment that made it:\n"
        f"  python -c \"import torch; c = torch.load('{path}', map_location='cpu', weights_only=False); "
        "torch.save(c.get('state_dict', c), 'weights.pth')\""
    )
