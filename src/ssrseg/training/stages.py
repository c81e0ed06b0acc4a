"""Runs that start from runs: the stages of a recipe, one after the other, each of them resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import yaml
from rich.console import Console

from ssrseg.config import DataConfig, Settings, datasets, dump, merge, read_yaml, resolve
from ssrseg.config.settings import AdjustStage, ChooseStage, PriorsStage, RecalibrateStage, RecipeStage, TrainStage
from ssrseg.data import eval_samples, resolve_space
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, build_inference, choice_table, choose, evaluate, recalibrate
from ssrseg.inference.choose import STATISTICS
from ssrseg.inference.engines import pick_device
from ssrseg.label_shift import adjust, estimate_priors, label_target, labelled_by
from ssrseg.models.classes import check_classes
from ssrseg.models.weights import load
from ssrseg.runs.atomic import read_json, write_json
from ssrseg.runs.folder import ADJUSTED, CHOSEN, PRIORS, RECALIBRATED, REFINED, TRAINED, RecipeFolder, RunFolder
from ssrseg.training.env import environment
from ssrseg.training.observers.pictures import save_predictions
from ssrseg.training.resume import listed, unlike

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
                    **dict.fromkeys(("distillation", "affinity")),
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


KEEP = {name: keep for name, keep in STATISTICS.items() if keep < 1}
"""The share of its own statistics that a student keeps, by `deploy.statistics`, where it gets others."""


def deployed(settings: Settings) -> Settings:
    """Add the last stage that `deploy.statistics` asks for, where it is not there yet."""
    how, stages = settings.deploy.statistics, settings.stages or (TrainStage(name=TRAINED),)
    if how == "as-trained" or stages[-1].name in (RECALIBRATED, CHOSEN):
        return settings
    last = ChooseStage(name=CHOSEN) if how == "auto" else RecalibrateStage(name=RECALIBRATED, keep=KEEP[how])
    return settings.model_copy(update={"stages": (*stages, last)})


def another_student(model: str, settings: Settings, keep: float | None = None) -> str:
    """Say how a trained model gets statistics that a run, once begun, does not give it."""
    keep, data = KEEP.get(settings.deploy.statistics, 1.0) if keep is None else keep, settings.target
    target = quote(str(data.root)) + f" spec={data.spec}" if isinstance(data, DataConfig) else "FOLDER"
    command = f"recalibrate {quote(model)} NEW.safetensors --keep {keep:g}"
    if settings.deploy.statistics == "auto":
        command = f"choose NEW.safetensors {quote(model)}"
    return (
        "Put back what was. The other student is made of the trained one, in a file of its own: "
        f"ssrseg {command} --target {target}"
    )


def refuse_other_statistics(was: Settings, now: Settings, model: str) -> None:
    """Raise `UserError` where settings to go on with ask for other statistics than those of the start."""
    if was.deploy != now.deploy:
        found = listed({"deploy.statistics": (was.deploy.statistics, now.deploy.statistics)})
        raise UserError(f"--resume cannot change {found}. {another_student(model, now)}")


def _refuse_edited(stage: RecalibrateStage, settings: Settings, left: Path) -> None:
    """Raise `UserError` where the statistics of a stage are not those that it was made with, or that are asked for."""
    made = read_json(RunFolder(left.parent).environment).get("keep", stage.keep) if left.exists() else stage.keep
    asked = KEEP.get(settings.deploy.statistics, stage.keep) if stage.name == RECALIBRATED else stage.keep
    if not made == asked == stage.keep:
        wanted = asked if stage.keep == made else stage.keep
        raise UserError(
            f"Stage {stage.name!r} has keep={stage.keep:g}, and cannot: its model has {made:g}, and deploy.statistics="
            f"{settings.deploy.statistics} asks for {asked:g}. {another_student(stage.model or '', settings, wanted)}"
        )


def train_stages(
    settings: Settings | None, out: Path, finish: Callable[[Settings, Path], Run], *, resume: bool, console: Console
) -> Run:
    """Run the stages of a recipe in folders below `out`, and return the last that leaves a model.

    Finished stages are kept, an interrupted one goes on: `finish` trains a stage from wherever its folder stands.

    Raises:
        UserError: a stage's settings are not valid (before anything is trained), or a stage fails.
    """
    recipe = RecipeFolder(out)
    if resume:
        own = resolve(read_yaml(recipe.config))
        refuse_other_statistics(own, settings or own, str(recipe.stage(TRAINED).student_last))
        settings = settings or own
    elif recipe.exists:
        raise UserError(f"{out} holds a recipe already. Continue it with --resume or give another --out.")
    assert settings is not None
    stages = planned(settings, out)
    for stage, resolved, left in stages:
        folder = RunFolder(left.parent)
        if stage.does == "train" and left.exists() and (found := unlike(folder, resolved, places=False)):
            raise UserError(
                f"Stage {stage.name!r} is finished, and others start from it: {listed(found)} could not be in force. "
                f"Put back what was; to change a stage that is not finished, set its own `settings` in {recipe.config}."
            )
        if isinstance(stage, RecalibrateStage):
            _refuse_edited(stage, settings, left)
    recipe.write(dump(settings))
    last: Run | None = None
    for stage, resolved, left in stages:  # `planned` has filled in their model and priors
        device = resolved.train.accelerator
        console.print(f"stage {stage.name}", highlight=False)
        if stage.does == "train":
            last = finish(resolved, left.parent)
        elif stage.does == "label":
            teacher = load(stage.model or "")
            check_classes(teacher, resolve_space(resolved.classes, resolved.source).names)
            predictor = Predictor(teacher, device, mode=resolved.inference)
            for data in _labelled(resolved, left):
                assert data.labels_root is not None  # `labelled_by` says where
                label_target(predictor, data, data.labels_root)
        elif stage.does == "priors":
            if not left.exists():
                estimate_priors(stage.model or "", resolved, out=left, device=device)
        else:
            _correct(stage, resolved, left, console)
            last = finish(resolved, left.parent)
    if last is None:
        raise UserError("No stage of the recipe trains.")
    return last


def _correct(
    stage: AdjustStage | RecalibrateStage | ChooseStage, settings: Settings, left: Path, console: Console
) -> None:
    """Write the corrected or chosen model, its predictions and its scores, in a run folder, unless they are there."""
    folder, device = RunFolder(left.parent), settings.train.accelerator
    if not left.exists():
        made_with = {"keep": stage.keep} if isinstance(stage, RecalibrateStage) else {}
        folder.create(settings, environment(settings) | made_with)
        if isinstance(stage, AdjustStage):
            adjust(stage.model or "", stage.priors or "", left)
        elif isinstance(stage, ChooseStage):
            _choose(stage, settings, left, console)
        else:
            assert settings.target is not None  # `planned` has looked
            recalibrate(stage.model or "", settings.target, left, keep=stage.keep, device=device)
    if settings.val is not None and not folder.scores.exists():
        student, space = load(left).to(pick_device(device)), resolve_space(settings.classes, settings.source)
        samples = eval_samples(settings.val, settings.classes, settings.source, student.reading)
        save_predictions(student, samples, build_inference(settings.inference), space, folder, pick_device(device))
        scores = evaluate(left, settings.val, classes=settings.classes, inference=settings.inference, device=device)
        record = {"step": 0, "student": scores.to_dict(), "teacher": None}
        write_json(folder.scores, {"classes": scores.classes, "last": record})


def _choose(stage: ChooseStage, settings: Settings, left: Path, console: Console) -> None:
    """Write the chosen model, and beside it all candidates."""
    assert settings.target is not None  # `planned` has looked
    models, device = stage.models or {}, settings.train.accelerator
    found = choose(models, settings.target, left, start=stage.start, device=device, inference=settings.inference)
    rows = [vars(each) | {"score": score} for each, score in zip(found.candidates, found.scores, strict=True)]
    write_json(RunFolder(left.parent).choice, {"images": found.images, "candidates": rows})
    console.print(choice_table(found))


def _labelled(settings: Settings, folder: Path) -> list[DataConfig]:
    """Describe the target of the settings as a data set with our labels in `folder`, or several, each below it."""
    sets, classes = datasets(settings.target), resolve_space(settings.classes, settings.source).num_classes
    if len(sets) < 2:
        return [labelled_by(next(iter(sets), None), classes, folder)]
    return [labelled_by(data, classes, folder / str(number)) for number, data in enumerate(sets)]


def planned(settings: Settings, out: Path) -> list[tuple[RecipeStage, Settings, Path]]:
    """Resolve every stage: its names replaced, its settings, and the path of what it will leave.

    Raises:
        UserError: a name that no earlier stage has, two stages of one name, or settings that are not valid.
    """
    base = {key: value for key, value in settings.model_dump(mode="json").items() if key not in ("stages", "deploy")}
    left: dict[str, Any] = {}
    latest: dict[str, str] = {}
    plan: list[tuple[RecipeStage, Settings, Path]] = []
    for stage in settings.stages:
        if stage.name in left:
            raise UserError(f"Two stages are called {stage.name!r}.")
        folder = RecipeFolder(out).stage(stage.name)
        place = {"priors": folder.priors, "label": folder.labels}.get(stage.does, folder.student_last)
        over = stage.settings if stage.does == "train" else {}
        resolved = resolve(merge(base, _filled(over, left, stage.name)))
        if stage.does in ("priors", "recalibrate", "choose") and resolved.target is None:
            raise UserError(f"Stage {stage.name!r} looks at the target: set target.root to a folder of images.")
        files: dict[str, str] = {}
        for kind in ("model", "priors"):
            if kind in type(stage).model_fields:
                file = _filled(getattr(stage, kind), left, stage.name) or latest.get(kind)
                if file is None:
                    raise UserError(f"Stage {stage.name!r} needs a {kind} file, and no stage before it leaves one.")
                files[kind] = file
        if isinstance(stage, ChooseStage):
            stage = _with_models(stage, left, plan, latest.get("model", ""))
        plan.append((stage.model_copy(update=files), resolved, place))
        if stage.does == "label":
            made = [yaml.safe_load(data.model_dump_json()) for data in _labelled(resolved, place)]
            left[stage.name] = made[0] if len(made) == 1 else made
        else:
            left[stage.name] = str(place)
            latest["priors" if stage.does == "priors" else "model"] = str(place)
    return plan


def _with_models(
    stage: ChooseStage, left: Mapping[str, Any], plan: Sequence[tuple[RecipeStage, Settings, Path]], latest: str
) -> ChooseStage:
    """Fill in the models that a stage chooses among: its own, those of the last training, or the latest corrected.

    Other trainings that went on from the same start are averaged with the last one's.
    """
    if stage.models:
        return stage.model_copy(
            update={key: _filled(getattr(stage, key), left, stage.name) for key in ("models", "start")}
        )
    trainings = [(each.name, settings, file) for each, settings, file in plan if each.does == "train"]
    if not trainings:
        raise UserError(f"Stage {stage.name!r} has nothing to choose from: no stage before it trains.")
    _, settings, student = trainings[-1]
    models, start = {"student": latest}, None
    if latest == str(student) and settings.method.teacher is not None:  # else it is corrected: that must not be lost
        known = settings.model.start if settings.method.labelled is None else None  # which knows no label of the target
        start = _filled(stage.start, left, stage.name) or known
        teacher = {"teacher": _adapted(settings, student)}
        beside = {each: _adapted(own, file) for each, own, file in trainings[:-1] if start and own.model.start == start}
        models = beside | teacher if start else teacher | models
    return stage.model_copy(update={"models": models, "start": start and str(start)})


def _adapted(settings: Settings, student: Path) -> str:
    """Return the teacher of a training, or its student where it has none."""
    return str(student if settings.method.teacher is None else RunFolder(student.parent).teacher_last)


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
