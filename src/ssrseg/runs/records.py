"""A run folder as data: settings, curves, scores and where the pictures lie."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssrseg.config import flatten, read_yaml
from ssrseg.errors import UserError
from ssrseg.runs.folder import VIEW_PICTURE, RunFolder

VIEWS = ("source", "mixed", "masked", "target")


@dataclass(frozen=True)
class Score:
    """Accuracy of one network; fractions in 0..1, `None` where nothing was measured."""

    miou: float | None
    pixel_accuracy: float | None
    iou: tuple[float | None, ...] = ()
    """One value per class; `None` for a class that neither prediction nor truth contains."""
    subsets: dict[str, float | None] = field(default_factory=dict)
    """Mean IoU of parts of the classes by name, as SYNTHIA's 16 and 13 of Cityscapes' 19."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Pixels: a row per true class, a column per predicted one; empty where it was not kept."""


@dataclass(frozen=True)
class Evaluation:
    """The scores at one step."""

    step: int
    student: Score
    teacher: Score | None = None


@dataclass(frozen=True)
class LabelFree:
    """Criteria of the student at one step, from unlabelled target images; `None` where one cannot be computed."""

    step: int
    criteria: dict[str, float | None]


@dataclass(frozen=True)
class TrainStep:
    """One logged training step; losses are named `view/term`."""

    step: int
    losses: dict[str, float]
    images_per_second: float | None


@dataclass(frozen=True)
class Note:
    """A message of the trainer, or of the reader of its files."""

    text: str
    step: int | None = None
    warning: bool = True


@dataclass(frozen=True)
class PictureFile:
    """A picture of a view at a step, in the run folder."""

    path: Path
    step: int
    view: str


@dataclass(frozen=True)
class RunRecord:
    """All that a report needs of one run."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    train: tuple[TrainStep, ...]
    evaluations: tuple[Evaluation, ...]
    notes: tuple[Note, ...]
    classes: tuple[str, ...]
    last: Evaluation | None
    best: Evaluation | None
    """The best evaluation: chosen with the target's labels, so an oracle choice."""
    shares: tuple[dict[str, float], ...]
    """Class -> share of the teacher's labels, at each log step."""
    views: tuple[PictureFile, ...]
    selections: tuple[LabelFree, ...] = ()

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed: int | None = setting(self.config, "train.seed")
        return seed

    @property
    def steps(self) -> tuple[int, int | None]:
        """Steps seen in the metrics, steps asked for."""
        logged = [entry.step for entry in self.train] + [entry.step for entry in self.evaluations]
        return max(logged, default=0), setting(self.config, "train.steps")


def read_run(path: Path) -> RunRecord:
    """Read a run folder; an unfinished run, a half-written line and missing scores are fine.

    Raises:
        UserError: the folder is no run folder, or one of its files is damaged.
    """
    folder = RunFolder(path)
    if not folder.exists:
        found = "no such folder" if not folder.path.is_dir() else f"it has no {folder.config.name}"
        raise UserError(f"{folder.path} is not a run folder: {found}. Give the folder that `ssrseg train` wrote.")
    entries, notes = _read_metrics(folder.metrics)
    train = {entry["step"]: _train_step(entry) for entry in entries if entry.get("kind") == "train"}
    evaluations = {entry["step"]: _evaluation(entry) for entry in entries if entry.get("kind") == "eval"}
    selections = {entry["step"]: _label_free(entry) for entry in entries if entry.get("kind") == "selection"}
    said = [entry for entry in entries if entry.get("kind") in ("note", "warning")]
    notes += [Note(str(entry.get("text", "")), entry["step"], entry["kind"] == "warning") for entry in said]
    scores = read_json(folder.scores)
    return RunRecord(
        folder=folder.path,
        config=read_yaml(folder.config),
        environment=flatten(read_json(folder.environment)),
        train=tuple(train[step] for step in sorted(train)),
        evaluations=tuple(evaluations[step] for step in sorted(evaluations)),
        notes=(*notes, *_never_finite(train)),
        classes=tuple(str(name) for name in scores.get("classes", ())),
        last=_scored(scores, "last", folder.scores),
        best=_scored(scores, "best", folder.scores),
        shares=tuple(entry["shares"] for entry in entries if entry.get("kind") == "labels"),
        views=_pictures(folder.pictures),
        selections=tuple(selections[step] for step in sorted(selections)),
    )


def setting(config: dict[str, Any], path: str) -> Any:
    """Look up a dotted path of the settings; `None` when a group on the way is absent."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def method_name(config: dict[str, Any]) -> str:
    """Name the published method that the settings compose; `custom` for another composition."""
    names = {  # (mixed, masked, feature distance)
        (False, False, False): "source-only",
        (True, False, False): "DACS",
        (True, False, True): "DAFormer",
        (True, True, False): "MIC",
        (True, True, True): "MIC",
    }
    mixed, masked, distance, regularizer = (
        setting(config, f"method.{part}") is not None for part in ("mixed", "masked", "feature_distance", "regularizer")
    )
    parts = [names.get((mixed, masked, distance), "custom")]
    if setting(config, "method.alignment") is not None:
        parts.append("FADA")
    if len(parts) > 1 and parts[0] == "source-only":
        parts = parts[1:]
    return " + ".join([*parts, "SSR"] if regularizer else parts)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty when the file is absent. Raises `UserError` for a damaged one."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Write it again, or delete it to report without."
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold a JSON object, found {type(tree).__name__}.")
    return tree


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[Note]]:
    """Entries in file order, so that what a resumed run logged again comes later and wins; notes on damaged lines."""
    entries: list[dict[str, Any]] = []
    notes: list[Note] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            if number < len(lines):  # the last line of a running or killed run is often half-written
                notes.append(Note(f"{path.name}, line {number} is not valid JSON and was left out."))
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries, notes


def _scored(scores: dict[str, Any], key: str, path: Path) -> Evaluation | None:
    if not scores.get(key):
        return None
    evaluation, count = _evaluation(scores[key]), len(scores.get("classes", ()))
    for score in (evaluation.student, evaluation.teacher):
        if score and len(score.iou) not in (0, count):
            raise UserError(f"{path}: `{key}` has {len(score.iou)} IoU values for {count} classes.")
        if score and score.confusion and {len(score.confusion), *map(len, score.confusion)} != {count}:
            raise UserError(f"{path}: the confusion matrix of `{key}` is not {count} × {count}.")
    return evaluation


def _evaluation(entry: dict[str, Any]) -> Evaluation:
    teacher = entry.get("teacher")
    return Evaluation(entry.get("step", 0), _score(entry.get("student") or {}), _score(teacher) if teacher else None)


def _score(entry: dict[str, Any]) -> Score:
    iou = tuple(_finite(value) for value in entry.get("iou") or ())
    subsets = {str(name): _finite(value) for name, value in (entry.get("subsets") or {}).items()}
    confusion = tuple(tuple(int(pixels) for pixels in row) for row in entry.get("confusion") or ())
    return Score(_finite(entry.get("miou")), _finite(entry.get("pixel_accuracy")), iou, subsets, confusion)


def _label_free(entry: dict[str, Any]) -> LabelFree:
    values = entry.get("criteria") or {}
    return LabelFree(entry["step"], {str(name): _finite(value) for name, value in values.items()})


def _train_step(entry: dict[str, Any]) -> TrainStep:
    losses = {str(name): math.nan if value is None else float(value) for name, value in entry.get("losses", {}).items()}
    return TrainStep(entry["step"], losses, _finite(entry.get("images_per_second")))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _never_finite(train: dict[int, TrainStep]) -> list[Note]:
    """One warning per loss that was ever NaN or infinite, at its first such step."""
    first: dict[str, int] = {}
    for step in sorted(train):
        for name, value in train[step].losses.items():
            if not math.isfinite(value):
                first.setdefault(name, step)
    return [
        Note(f"The loss {name} was not finite; the curve leaves such steps out.", step) for name, step in first.items()
    ]


def _pictures(folder: Path) -> tuple[PictureFile, ...]:
    """Pictures of views by step, then in the order of the views."""
    order = {view: place for place, view in enumerate(VIEWS)}
    matches = [(path, match) for path in folder.glob("*") if (match := VIEW_PICTURE.fullmatch(path.name))]
    found = [PictureFile(path, int(match["step"]), match["view"]) for path, match in matches]
    return tuple(sorted(found, key=lambda each: (each.step, order.get(each.view, len(VIEWS)), each.view)))
