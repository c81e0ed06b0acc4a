"""The run folder: everything a run leaves behind."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from ssrseg.config import Settings, dump, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.files import write_atomically, write_json

LIBRARIES = ("ssrseg", "torch", "torchvision", "timm", "lightning-fabric", "torchmetrics", "numpy", "pydantic")


@dataclass(frozen=True)
class RunFolder:
    """Where each thing of a run lies."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings: what `--resume` reads."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, revision."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def scores(self) -> Path:
        """Scores of the last and the best evaluation."""
        return self.path / "scores.json"

    @property
    def pictures(self) -> Path:
        """What the student saw, and what it predicts."""
        return self.path / "pictures"

    @property
    def checkpoint(self) -> Path:
        """The complete state, for `--resume`."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def student_last(self) -> Path:
        """The deployable model after the last step."""
        return self.path / "student-last.safetensors"

    @property
    def student_best(self) -> Path:
        """The model with the best score on labelled target images, where there are any: an oracle's choice."""
        return self.path / "student-best.safetensors"

    @property
    def class_statistics(self) -> Path:
        """Pixels per class and source file."""
        return self.path / "class-statistics.json"

    def fault(self, step: int, rank: int | None = None) -> Path:
        """The batch of a step that was not finite; one per process where there are several."""
        return self.path / "faults" / (f"step-{step:06}" + ("" if rank is None else f"-process-{rank}"))

    def refuse_overwriting(self) -> None:
        """Raises `UserError` when a run is there already."""
        if self.config.exists():
            raise UserError(f"{self.path} holds a run already. Continue it with --resume or give another --out.")

    def create(self, settings: Settings) -> None:
        """Make the folder with its settings and environment; raises `UserError` when that is not possible."""
        try:
            for folder in (self.path, self.pictures, self.checkpoint.parent):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(self.environment, environment())
            write_atomically(self.config, lambda partial: partial.write_text(dump(settings)))
        except OSError as error:
            raise UserError(f"Cannot make the run folder {self.path}: {error.strerror}.") from error

    def settings(self) -> Settings:
        """The settings of the run that lies here; raises `UserError` when there is none."""
        if not self.config.is_file():
            raise UserError(f"There is no run in {self.path} (no config.yaml): nothing to resume.")
        return resolve(read_yaml(self.config))


def environment() -> dict[str, str]:
    """What a reader needs to judge or repeat the numbers."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        "git": _revision(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _revision() -> str:
    """Commit of the working directory, marked when it has changes; empty outside a checkout."""
    try:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
