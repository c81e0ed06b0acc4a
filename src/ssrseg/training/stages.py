"""Runs that start from runs: the stages of a recipe, one after the other, each of them resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from rich.console import Console

from ssrseg.config import DataConfig, Settings, dump, merge, read_yaml, resolve
from ssrseg.config.settings import AdjustStage, PriorsStage, RecipeStage, TrainStage
from ssrseg.data import resolve_space
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, evaluate
from ssrseg.label_shift import adjust, estimate_priors, label_target, labelled_by
from ssrseg.runs.atomic import write_json, write_text
from ssrseg.runs.folder import ADJUSTED, PRIORS, REFINED, TRAINED, RecipeFolder, RunFolder
from ssrseg.training.environment import environment

Run = TypeVar("Run")

CORRECTIONS: dict[str, tuple[RecipeStage, ...]] = {
    "ia": (PriorsStage(name=PRIORS), AdjustStage(name=ADJUSTED)),
    "cr": (
        PriorsStage(name=PRIORS),
        TrainStage(
            name=REFINED,
            settings={
                "model": {"start": f"{{{TRAINED}}}"},
                "method": {
                    "trains": "head",
                    **dict.fromkeys(("teacher", "mixed", "masked", "feature_distance", "regularizer", "alignment")),
                    # The release's refinement is a plain cross entropy over all pixels, whatever was before.
                    "segmentation": {"priors": f"{{{PRIORS}}}", "temperature": 1.0, "over_labelled": []},
                },
            },
        ),
    ),
}
"""Stages after a training that correct for label shift: inference adjustment, classifier refinement."""


def corrected(settings: Settings, how: str) -> Settings:
    """Add a correction of `CORRECTIONS` after the training; raises `UserError` for another word or a staged recipe."""
    if how not in CORRECTIONS:
        raise UserError(f"There is no prior correction {how!r}: choose {' or '.join(CORRECTIONS)}.")
    if settings.stages:
        raise UserError("This recipe has stages of its own: its prior correction is one of them.")
    return settings.model_copy(update={"stages": (TrainStage(name=TRAINED), *CORRECTIONS[how])})


def train_stages(
    settings: Settings | None,
    out: Path,
    finish: Callable[[Settings, Path], Run],
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Run:
    """Run the stages of a recipe; finished ones are kept, an interrupted one goes on.

    Args:
        settings: with `stages`; absent when resuming.
        out: a folder for the stages' folders.
        finish: trains a stage to the end from wherever its folder stands.
        resume: go on with the recipe in `out`.
        console: shows progress.

    Returns:
        The last training run.

    Raises:
        UserError: a stage's settings are not valid (before anything is trained), or a stage fails.
    """
    recipe = RecipeFolder(out)
    if resume:
        settings = resolve(read_yaml(recipe.config))
    elif recipe.exists:
        raise UserError(f"{out} holds a recipe already. Continue it with --resume or give another --out.")
    assert settings is not None
    stages = planned(settings, out)
    recipe.path.mkdir(parents=True, exist_ok=True)
    write_text(recipe.config, dump(settings))
    last: Run | None = None
    for stage, resolved, left in stages:
        if console is not None:
            console.print(f"stage {stage.name}", highlight=False)
        if stage.does == "train":
            last = finish(resolved, recipe.stage(stage.name).path)
        elif stage.does == "label":
            predictor = Predictor(_of(stage.model), resolved.train.accelerator, mode=resolved.inference)
            label_target(predictor, _labelled(resolved, left), left)
        elif not left.exists():
            _between(stage, resolved, left)
    if last is None:
        raise UserError("No stage of the recipe trains.")
    return last


def _between(stage: PriorsStage | AdjustStage, settings: Settings, left: Path) -> None:
    if stage.does == "priors":
        estimate_priors(_of(stage.model), settings, out=left, device=settings.train.accelerator)
        return
    folder = RunFolder(left.parent)
    folder.create(settings, environment(settings))
    adjust(_of(stage.model), _of(stage.priors), left)
    if settings.val is not None:
        scores = evaluate(
            left,
            settings.val,
            classes=settings.classes,
            inference=settings.inference,
            device=settings.train.accelerator,
        )
        record = {"step": 0, "student": scores.to_dict(), "teacher": None}
        write_json(folder.scores, {"classes": scores.classes, "last": record})


def _labelled(settings: Settings, folder: Path) -> DataConfig:
    """Describe the target of the settings as a data set with our labels in `folder`."""
    return labelled_by(settings.target, resolve_space(settings.classes, settings.source).num_classes, folder)


def _of(path: str | None) -> Path:
    assert path is not None
    return Path(path)


def planned(settings: Settings, out: Path) -> list[tuple[RecipeStage, Settings, Path]]:
    """Resolve every stage: its names replaced, its settings, and the path of what it will leave.

    Raises:
        UserError: a name that no earlier stage has, two stages of one name, or settings that are not valid.
    """
    base = {key: value for key, value in settings.model_dump(mode="json").items() if key != "stages"}
    left: dict[str, Any] = {}
    latest: dict[str, str] = {}
    plan: list[tuple[RecipeStage, Settings, Path]] = []
    for stage in settings.stages:
        if stage.name in left:
            raise UserError(f"Two stages are called {stage.name!r}.")
        place = _product(stage.does, RecipeFolder(out).stage(stage.name))
        over = stage.settings if stage.does == "train" else {}
        resolved = resolve(merge(base, _filled(over, left, stage.name)))
        files: dict[str, str] = {}
        for kind in ("model", "priors"):
            if kind in type(stage).model_fields:
                file = _filled(getattr(stage, kind), left, stage.name) or latest.get(kind)
                if file is None:
                    raise UserError(f"Stage {stage.name!r} needs a {kind} file, and no stage before it leaves one.")
                files[kind] = file
        plan.append((stage.model_copy(update=files), resolved, place))
        if stage.does == "label":
            left[stage.name] = yaml.safe_load(_labelled(resolved, place).model_dump_json())
        else:
            left[stage.name] = str(place)
            latest["priors" if stage.does == "priors" else "model"] = str(place)
    return plan


def _product(does: str, folder: RunFolder) -> Path:
    """Path of what a stage leaves for the next ones."""
    return {"priors": folder.priors, "label": folder.labels}.get(does, folder.student_last)


def _filled(value: Any, left: Mapping[str, Any], stage: str) -> Any:
    """Replace `{name}` anywhere in a tree by what the stage of that name leaves."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, left, stage) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith("{") and value.endswith("}"):
        name = value[1:-1]
        if name not in left:
            raise UserError(f"Stage {stage!r} names {value}, but no stage before it is called {name!r}.")
        return left[name]
    return value
