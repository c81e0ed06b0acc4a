"""Versions, machine, checkout and data of a run, to judge or repeat its numbers, and their changes at resume."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ssrseg.config import DataConfig, Settings
from ssrseg.data import find_images, find_pairs
from ssrseg.data.storage import size_of

LIBRARIES = (
    "ssrseg",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "torchmetrics",
    "numpy",
    "pydantic",
    "pillow",
)


def environment(settings: Settings) -> dict[str, Any]:
    """Collect versions, machine, state of the checkout, fingerprint of the data, command."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
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
    try:
        commit = _git("rev-parse", "HEAD").decode().strip()
        diff = _git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "diff": hashlib.sha256(diff).hexdigest()[:16] if diff else ""}


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], capture_output=True, timeout=10, check=True).stdout


def data_fingerprint(settings: Settings) -> dict[str, dict[str, Any]]:
    """Count the `files` of source, target and val, with a checksum of their names and sizes (not of their content)."""
    prints = {"source": _fingerprint(_labelled(settings.source))}
    if settings.target is not None:
        root = settings.target.root
        prints["target"] = _fingerprint((root, image) for image in find_images(settings.target))
    if settings.val is not None:
        prints["val"] = _fingerprint(_labelled(settings.val))
    return prints


def _labelled(data: DataConfig) -> list[tuple[Path, Path]]:
    """Every file with the folder that it is named below."""
    pairs, labels = find_pairs(data), data.labels_root or data.root
    return [named for pair in pairs for named in ((data.root, pair.image), (labels, pair.label))]


def _fingerprint(files: Iterable[tuple[Path, Path]]) -> dict[str, Any]:
    lines = [f"{path.relative_to(root).as_posix()}\0{size_of(path)}\n" for root, path in files]
    return {"files": len(lines), "names_and_sizes": hashlib.sha256("".join(lines).encode()).hexdigest()[:16]}


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
