"""A run folder as data: settings, curves, scores and where the pictures lie."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from ssrseg.config import flatten, read_yaml
from ssrseg.errors import UserError
from ssrseg.runs.atomic import read_json
from ssrseg.runs.folder import VIEW_PICTURE, RunFolder

TARGET_LABELS = "target labels"
"""What a method's name has, where the labels of a few target images are learnt from."""
Shape = TypeVar("Shape")
Finite = Annotated[
    float | None, BeforeValidator(lambda value: None if value is None or not math.isfinite(value) else value)
]
Loss = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@checked(frozen=True)
class Score:
    """Accuracy of one network; fractions in 0..1, `None` where nothing was measured."""

    miou: Finite = None
    pixel_accuracy: Finite = None
    iou: tuple[Finite, ...] = ()  # one value per class; `None` for a class that neither prediction nor truth contains
    subsets: dict[str, Finite] = field(default_factory=dict)
    """Mean IoU of parts of the classes by name, as SYNTHIA's 16 and 13 of Cityscapes' 19."""
    domains: dict[str, Score] = field(default_factory=dict)
    """The same on each of several validation sets, by name; the other numbers are those of all their images."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Pixels: a row per true class, a column per predicted one; empty where it was not kept."""


@checked(frozen=True)
class Evaluation:
    """The scores at one step."""

    step: int = 0
    student: Score = Score()
    teacher: Score | None = None


@checked(frozen=True)
class LabelFree:
    """Criteria of the student at one step, from unlabelled target images; `None` where one cannot be computed."""

    step: int
    criteria: dict[str, Finite] = field(default_factory=dict)


@checked(frozen=True)
class SettingsChange:
    """Settings that were others up to a step: dotted path -> value before and after."""

    step: int
    changed: dict[str, tuple[Any, Any]]


@checked(frozen=True)
class TrainStep:
    """One logged training step; losses are named `view/term`, NaN where they were not finite."""

    step: int
    losses: dict[str, Loss] = field(default_factory=dict)
    images_per_second: Finite = None


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
    best: Evaluation | None  # the best evaluation: chosen with the target's labels, so an oracle choice
    shares: tuple[dict[str, float], ...]  # class -> share of the teacher's labels, at each log step
    views: tuple[PictureFile, ...]
    selections: tuple[LabelFree, ...] = ()
    changes: tuple[SettingsChange, ...] = ()
    stopped: int | None = None  # the step at which it ended early

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed: int | None = setting(self.config, "train.seed")
        return seed

    @property
    def steps(self) -> tuple[int, int | None]:
        """Steps seen in the metrics, steps asked for or, of a run that ended early, done."""
        kinds: tuple[Sequence[Any], ...] = (self.train, self.evaluations, self.selections)
        logged = [entry.step for kind in kinds for entry in kind]
        return max(logged, default=0), self.stopped or setting(self.config, "train.steps")

    @property
    def unfinished(self) -> bool:
        """Whether steps are missing; a student made without any (adjusted priors) has ended."""
        seen, wanted = self.steps
        reached = self.last.step if self.last else seen
        begun = seen > 0 or (self.last is None and not RunFolder(self.folder).finished)
        return wanted is not None and reached < wanted and begun


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
    train = _of_kind(entries, "train", TrainStep)
    said = [entry for entry in entries if entry.get("kind") in ("note", "warning")]
    notes += [Note(str(entry.get("text", "")), entry["step"], entry["kind"] == "warning") for entry in said]
    scores = read_json(folder.scores)
    return RunRecord(
        folder=folder.path,
        config=read_yaml(folder.config),
        environment=flatten(read_json(folder.environment)),
        train=train,
        evaluations=_of_kind(entries, "eval", Evaluation),
        notes=(*notes, *_never_finite(train)),
        classes=tuple(str(name) for name in scores.get("classes", ())),
        last=_scored(scores, "last", folder.scores),
        best=_scored(scores, "best", folder.scores),
        shares=tuple(entry["shares"] for entry in entries if entry.get("kind") == "labels"),
        views=_pictures(folder.pictures),
        selections=_of_kind(entries, "selection", LabelFree),
        changes=_of_kind(entries, "settings", SettingsChange),
        stopped=next((entry["step"] for entry in reversed(entries) if entry.get("kind") == "stopped"), None),
    )


def setting(config: dict[str, Any], path: str) -> Any:
    """Look up a dotted path of the settings; `None` when a group on the way is absent.

    Below a list of groups, as several sources, it is a tuple of their values.
    """
    value: Any = config
    for key in path.split("."):
        if isinstance(value, list | tuple):
            value = tuple(one.get(key) if isinstance(one, dict) else None for one in value)
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def method_name(config: dict[str, Any]) -> str:
    """Name the published method that the settings compose; `custom` for another composition."""
    published = {  # (mixed, masked, feature distance)
        (False, False, False): "source-only",
        (True, False, False): "DACS",
        (True, False, True): "DAFormer",
        **dict.fromkeys(((True, True, False), (True, True, True)), "MIC"),
    }
    mixed, masked, distance, *further = (
        setting(config, f"method.{part}") is not None
        for part in ("mixed", "masked", "feature_distance", "fourier", "alignment")
    )
    name = published.get((mixed, masked, distance), "custom")
    for added, has in zip(("FDA", "FADA"), further, strict=True):
        if has:
            name = added if name == "source-only" else f"{name} + {added}"
    extras = {TARGET_LABELS: "labelled", "SSR": "regularizer", "distillation": "distillation", "affinity": "affinity"}
    extras["regions"] = "teacher.regions"
    return " + ".join([name, *(word for word, part in extras.items() if setting(config, f"method.{part}") is not None)])


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
    evaluation, count = TypeAdapter(Evaluation).validate_python(scores[key]), len(scores.get("classes", ()))
    for score in (evaluation.student, evaluation.teacher):
        if score and len(score.iou) not in (0, count):
            raise UserError(f"{path}: `{key}` has {len(score.iou)} IoU values for {count} classes.")
        if score and score.confusion and {len(score.confusion), *map(len, score.confusion)} != {count}:
            raise UserError(f"{path}: the confusion matrix of `{key}` is not {count} × {count}.")
    return evaluation


def _of_kind(entries: Sequence[dict[str, Any]], kind: str, shape: type[Shape]) -> tuple[Shape, ...]:
    by_step = {entry["step"]: entry for entry in entries if entry.get("kind") == kind}
    return TypeAdapter(tuple[shape, ...]).validate_python([by_step[step] for step in sorted(by_step)])  # type: ignore[valid-type]


def _never_finite(train: Sequence[TrainStep]) -> list[Note]:
    first: dict[str, int] = {}
    for entry in train:
        for name in (name for name, value in entry.losses.items() if not math.isfinite(value)):
            first.setdefault(name, entry.step)
    text = "The loss {} was not finite; the curve leaves such steps out."
    return [Note(text.format(name), step) for name, step in first.items()]


def _pictures(folder: Path) -> tuple[PictureFile, ...]:
    order = {"source": 0, "mixed": 1, "masked": 2}
    matches = [(path, match) for path in folder.glob("*") if (match := VIEW_PICTURE.fullmatch(path.name))]
    found = [PictureFile(path, int(match["step"]), match["view"]) for path, match in matches]
    return tuple(sorted(found, key=lambda each: (each.step, order.get(each.view, 3), each.view)))
