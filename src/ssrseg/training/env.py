"""What a run was made with, and what a maintainer asks of whom reports a problem."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from ssrseg.config import Settings, read_yaml
from ssrseg.data import find_images, find_labelled, find_pairs
from ssrseg.data.storage import size_of
from ssrseg.errors import UserError
from ssrseg.runs.atomic import read_json
from ssrseg.runs.folder import GroupFolder, RecipeFolder, RunFolder
from ssrseg.training.distributed import device_type

LIBRARIES = ("ssrseg", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "imagecodecs")
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


def environment(settings: Settings) -> dict[str, Any]:
    """Collect versions, machine, state of the checkout, fingerprint of the data, command."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    on_gpu = device_type(settings.train) == "cuda" and torch.cuda.is_available()
    # On a run of the CPU's the name of a GPU would be wrong, and asking for it takes half a GiB of that GPU.
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        "git": git_state(),
        "data": data_fingerprint(settings),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def git_state() -> dict[str, str]:
    """Read the working directory's `commit` and the checksum of the `diff` to it (empty without); `{}` outside one."""
    words = (("rev-parse", "HEAD"), ("diff", "HEAD"))
    try:
        commit, diff = (
            subprocess.check_output(["git", *each], stderr=subprocess.DEVNULL, timeout=10) for each in words
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.decode().strip(), "diff": hashlib.sha256(diff).hexdigest()[:16] if diff else ""}


def data_fingerprint(settings: Settings) -> dict[str, dict[str, Any]]:
    """Count the `files` of every data set of a run, with a checksum of their names and sizes (not of their content)."""
    prints = {}
    for name, data in settings.domains.items():
        if name.startswith("target"):
            files = [(data.root, image) for image in find_images(data)]
        else:
            labels = data.labels_root or data.root
            pairs = find_labelled(data) if name.startswith("labelled") else find_pairs(data)
            files = [named for pair in pairs for named in ((data.root, pair.image), (labels, pair.label))]
        lines = [f"{path.relative_to(root).as_posix()}\0{size_of(path)}\n" for root, path in files]
        checksum = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
        prints[name] = {"files": len(lines), "names_and_sizes": checksum}
    return prints


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare two environments: one sentence for each difference that may change a resumed run."""
    said = [
        f"{name} was {before[name]} when the run began and is {now[name]}: the rest may differ in the last bits"
        for name in (*LIBRARIES, "python", "device", "threads")
        if name in before and before[name] != now[name]
    ]
    known = before.get("data", {})
    said += [
        f"the files of {name} have changed since the run began: {known[name]['files']} then, {found['files']} now"
        for name, found in now["data"].items()
        if name in known and known[name] != found
    ]
    return tuple(said)
