"""The layout of run folders, groups of seeds and recipes of stages: every file name once."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout

from ssrseg.config import Settings, dump, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.runs.atomic import PARTIAL, read_json, write_json, write_text, writing

TRAINED, PRIORS, ADJUSTED, REFINED = "trained", "priors", "adjusted", "refined"
"""Names of the stages of a prior correction: the training, the priors, and the corrected students."""
SOURCE = "source"
"""Name of the stage that makes the source-only student from which the others go on."""
RECALIBRATED, CHOSEN = "recalibrated", "chosen"
"""Names of the stages that give the student the target's BatchNorm statistics, and that choose among models."""

VIEW_PICTURE = re.compile(r"step-(?P<step>\d+)-(?P<view>.+)\.png")
"""File name of a picture of a view."""


class Folder:
    """A folder that exists for us once it holds its settings, the file `NAME`."""

    NAME = "config.yaml"

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = self.path / self.NAME

    @property
    def exists(self) -> bool:
        """Whether a run, a recipe or a group has begun here."""
        return self.config.is_file()

    def write(self, text: str) -> None:
        """Write the settings; remove what a process left half-written that was killed over it, not what one writes."""
        with writing(self.config):
            for partial in self.path.glob(f".{self.NAME}.*{PARTIAL}"):
                with suppress(FileNotFoundError):  # other processes of a recipe or a group do the same
                    if time.time() - partial.stat().st_mtime > 60:
                        partial.unlink()
            write_text(self.config, text)


class RunFolder(Folder):
    """The files of one run, or of a stage between two runs; `config.yaml` has the resolved settings for `--resume`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        path = self.path
        self.environment = path / "environment.json"  # versions, device, state of the checkout, fingerprint of the data
        self.metrics = path / "metrics.jsonl"  # one JSON object a line
        self.tensorboard = path / "tensorboard"  # the same as curves
        self.scores = path / "scores.json"  # scores of the last and the best evaluation
        self.pictures = path / "pictures"  # the views that the student saw
        self.predicted_pictures = self.pictures / "val"  # images, labels and the last student's predictions
        self.predicted_index = self.predicted_pictures / "images.json"
        """Names and colours of the classes, and how good each of these predictions is."""
        self.tracking = path / "tracking.json"  # the run's identities in experiment trackers
        self.checkpoint = path / "checkpoints" / "last.ckpt"  # the complete state, for `--resume`
        self.student_last = path / "student-last.safetensors"
        """The deployable model after the last step: written last of all, so where it lies the run is finished."""
        self.teacher_last = path / "teacher-last.safetensors"
        """The averaged teacher beside it, where the method has one."""
        self.student_best = path / "student-best.safetensors"
        """The model with the best score on labelled target images, where there are any: an oracle's choice."""
        self.priors = path / "priors.json"  # class priors of source and target: of a stage that estimates them
        self.choice = path / "choice.json"  # candidates, best first: of a stage that chooses among models
        self.labels = path / "labels"  # label files for the target images: of a stage that predicts them

    def student_best_by(self, criterion: str) -> Path:
        """Path of the model with the best score by a criterion without labels."""
        return self.path / f"student-best-by-{criterion}.safetensors"

    def student_at(self, step: int) -> Path:
        """Path of the last student of a run that was trained longer afterwards."""
        return self.path / f"student-step-{step:06}.safetensors"

    def fault(self, step: int, rank: int | None = None) -> Path:
        """Path of the batch of a step with NaN or infinite losses; one per process where there are several."""
        return self.path / "faults" / (f"step-{step:06}" + ("" if rank is None else f"-process-{rank}"))

    def view_picture(self, step: int, view: str) -> Path:
        """Path of the picture of a view at a step; `VIEW_PICTURE` reads the name."""
        return self.pictures / f"step-{step:06}-{view}.png"

    def predicted_picture(self, number: int, kind: str) -> Path:
        """Path of the `image.jpg`, `truth.png` or `student.png` of a held-out image."""
        return self.predicted_pictures / f"{number:03}-{kind}"

    @property
    def finished(self) -> bool:
        """Whether training has ended here."""
        return self.student_last.is_file()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no other process train here inside the `with` block; raises `UserError` when one does.

        The system releases the lock when its process ends, however it ends. A file system without locks is used
        without one.
        """
        with ExitStack() as held:
            with writing(self.config), suppress(NotImplementedError):
                try:
                    held.enter_context(FileLock(self.path / ".lock", timeout=0))
                except Timeout as error:
                    raise UserError(
                        f"Another process is training in {self.path}: wait for its end, or give another --out."
                    ) from error
            yield

    def create(self, settings: Settings, environment: Mapping[str, Any]) -> None:
        """Make the folder with the run's settings and environment; raises `UserError` when that is not possible."""
        str(self.path).encode()  # TensorBoard needs a name in UTF-8: an error before anything is written
        with writing(self.config):
            for folder in (self.pictures, self.checkpoint.parent):
                folder.mkdir(parents=True, exist_ok=True)
            for file in (self.environment, self.config):  # a run killed while it wrote these is begun anew
                for partial in self.path.glob(f".{file.name}.*{PARTIAL}"):
                    partial.unlink(missing_ok=True)
            write_json(self.environment, environment)
            write_text(self.config, dump(settings))

    def settings(self) -> Settings:
        """Read the settings of the run; raises `UserError` when there is none."""
        if not self.exists:
            raise UserError(f"There is no run in {self.path} (no {self.config.name}): nothing to resume.")
        return resolve(read_yaml(self.config))

    def tidy(self) -> dict[str, Any]:
        """Remove what a killed process left half-written; returns the environment in which the run began."""
        for partial in self.path.rglob(f".*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        return read_json(self.environment)

    def reopen(self, settings: Settings, step: int) -> Path | None:
        """Let a run go on after `step` steps with these settings; returns where the student of a finished one is kept.

        A run that was killed before its first checkpoint starts anew, without results.
        """
        if settings != self.settings():
            write_text(self.config, dump(settings))
        if step == 0:
            self.restart()
        return self.student_last.replace(self.student_at(step)) if self.finished else None

    def restart(self) -> None:
        """Remove the results of a run that was killed before its first checkpoint, or has lost its checkpoints."""
        self.checkpoint.parent.mkdir(exist_ok=True)
        for file in (self.metrics, self.scores, self.student_best, *self.pictures.glob("*.png")):
            file.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.predicted_pictures):
            shutil.rmtree(folder, ignore_errors=True)


class RecipeFolder(Folder):
    """The folder of a recipe of stages: the settings of all in `stages.yaml`, and a run folder per stage."""

    NAME = "stages.yaml"

    def stage(self, name: str) -> RunFolder:
        """Folder of a stage."""
        return RunFolder(self.path / name)


class GroupFolder(Folder):
    """The folder of a group: runs that share the settings in `group.yaml`, everything but the seed.

    A seed belongs to the group from the moment that its folder exists.
    """

    NAME = "group.yaml"

    def run(self, seed: int) -> RunFolder:
        """Folder of a seed."""
        return RunFolder(self.path / f"seed-{seed}")

    def seeds(self) -> list[int]:
        """List the seeds of the group, sorted, started or not."""
        names = (found.name.removeprefix("seed-") for found in self.path.glob("seed-*") if found.is_dir())
        return sorted(int(name) for name in names if name.removeprefix("-").isdigit())

    def runs(self) -> list[Path]:
        """List the run folders in which training has begun, by seed."""
        return [run.path for run in map(self.run, self.seeds()) if run.exists]


def whole(folder: Path) -> Path:
    """Climb from a run to the recipe, and from there to the group, of which it is a part: what is resumed."""
    part = folder.parent != folder and (RecipeFolder(folder.parent).exists or GroupFolder(folder.parent).exists)
    return whole(folder.parent) if part else folder


def resume_command(folder: Path) -> str:
    """Write the command that goes on with a run, as a shell takes it."""
    return f"ssrseg train --resume --out {quote(str(whole(folder)))}"
