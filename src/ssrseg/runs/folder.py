"""The run folder: everything a run leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssrseg.config import Settings, dump, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.runs.atomic import remove_partials, write_atomically, write_json


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
        """Versions, device, state of the checkout, fingerprint of the data."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same as curves."""
        return self.path / "tensorboard"

    @property
    def scores(self) -> Path:
        """Scores of the last and the best evaluation."""
        return self.path / "scores.json"

    @property
    def pictures(self) -> Path:
        """What the student saw, and what it predicts."""
        return self.path / "pictures"

    @property
    def predicted_pictures(self) -> Path:
        """Images, labels and the last student's predictions, and `images.json`."""
        return self.pictures / "val"

    @property
    def tracking(self) -> Path:
        """The run's identities in experiment trackers."""
        return self.path / "tracking.json"

    @property
    def checkpoint(self) -> Path:
        """The complete state, for `--resume`."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def student_last(self) -> Path:
        """The deployable model after the last step: written last of all, so where it lies the run is finished."""
        return self.path / "student-last.safetensors"

    @property
    def student_best(self) -> Path:
        """The model with the best score on labelled target images, where there are any: an oracle's choice."""
        return self.path / "student-best.safetensors"

    def student_best_by(self, criterion: str) -> Path:
        """The model with the best score by a criterion without labels."""
        return self.path / f"student-best-by-{criterion}.safetensors"

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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no other process train here meanwhile; raises `UserError` when one does.

        The system lets go of the lock when its process ends, however it ends. A file system that knows no locks is used
        without one.
        """
        with ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.path / ".lock", timeout=0))
            except Timeout as error:
                raise UserError(
                    f"Another process is training in {self.path}: wait for its end, or give another --out."
                ) from error
            except NotImplementedError:
                pass
            except OSError as error:
                raise UserError(f"Cannot make the run folder {self.path}: {error.strerror}.") from error
            yield

    def create(self, settings: Settings, environment: Mapping[str, Any]) -> None:
        """Make the folder with the run's settings and environment; raises `UserError` when that is not possible."""
        try:
            for folder in (self.path, self.pictures, self.checkpoint.parent):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(self.environment, environment)
            write_atomically(self.config, lambda partial: partial.write_text(dump(settings)))
        except OSError as error:
            raise UserError(f"Cannot make the run folder {self.path}: {error.strerror}.") from error

    def settings(self) -> Settings:
        """The settings of the run that lies here; raises `UserError` when there is none."""
        if not self.config.is_file():
            raise UserError(f"There is no run in {self.path} (no config.yaml): nothing to resume.")
        return resolve(read_yaml(self.config))

    def tidy(self) -> dict[str, Any]:
        """Clear away what a killed process left half-written; returns the environment in which the run began."""
        remove_partials(self.path)
        try:
            before: dict[str, Any] = json.loads(self.environment.read_text())
        except (OSError, ValueError):
            before = {}
        return before

    def restart(self) -> None:
        """Remove what a run left that was killed before its first checkpoint."""
        for file in (self.metrics, self.scores, self.student_best, *self.pictures.glob("*.png")):
            file.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.predicted_pictures):
            shutil.rmtree(folder, ignore_errors=True)
