"""What a maintainer asks of whom reports a problem."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from ssrseg.config import read_yaml
from ssrseg.errors import UserError
from ssrseg.runs.atomic import read_json
from ssrseg.runs.folder import GroupFolder, RecipeFolder, RunFolder
from ssrseg.training.checkpoint import LIBRARIES

OPTIONAL = ("opencv-python-headless", "onnx", "onnxruntime", "openvino", "triton", "wandb", "mlflow")


def env(run: str | os.PathLike[str] | None = None) -> str:
    """Describe this machine as YAML to paste into a report: versions, devices, and the settings of a run.

    The home folder is written as `~`. Nothing of the images or labels is in it but the paths of their folders.

    Args:
        run: the folder of a run, a group or a recipe; its settings, and the versions that it was made with, are added.

    Raises:
        UserError: `run` is none of these.
    """
    found: dict[str, Any] = {
        "versions": {name: version for name in (*LIBRARIES, *OPTIONAL) if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": _devices(),
    }
    if run is not None:
        found |= _of_run(Path(run))
    home, text = str(Path.home()), yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)
    return text.replace(home, "~") if len(home) > 1 else text


def _of_run(folder: Path) -> dict[str, Any]:
    config = next((kind(folder).config for kind in (GroupFolder, RecipeFolder, RunFolder) if kind(folder).exists), None)
    if config is None:
        raise UserError(f"{folder} is no run: expected the folder that `ssrseg train --out` left.")
    made = RunFolder(folder).environment
    return {"settings": read_yaml(config)} | ({"made_with": read_json(made)} if made.exists() else {})


def _devices() -> dict[str, Any]:
    """Name what torch sees; memory in GiB."""
    cuda = {}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            cuda[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.1f} GiB, sm_{card.major}{card.minor}"
    return {
        **cuda,
        "built_for_cuda": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
