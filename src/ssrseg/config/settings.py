"""All settings of a run, and of a recipe of several: plain trees to checked settings, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator

from ssrseg.config.base import NO_EFFECT, Strict, by_default
from ssrseg.config.data import Classes, Data, DataConfig, LoaderConfig, datasets, domains, labelled_in, names_labels
from ssrseg.config.method import MethodConfig
from ssrseg.config.training import AdamWConfig, InferenceConfig, ModelConfig, Optim, SelectionConfig, TrainConfig
from ssrseg.errors import UserError

Group = TypeVar("Group", bound=Strict)


class StageConfig(Strict):
    """Name a stage of a recipe: a run, or what lies between two runs.

    `{name}` in a stage's texts is what the stage of that name left: a model, priors, a labelled data set.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]


class TrainStage(StageConfig):
    """Train a model."""

    does: Literal["train"] = "train"
    settings: dict[str, Any] = Field(default_factory=dict)
    """Merged over the recipe's own."""


class ModelStage(StageConfig):
    """Use a model."""

    model: str | None = None
    """The model file; that of the last stage that left one when absent."""


class PriorsStage(ModelStage):
    """Count the class priors of source and target with a model."""

    does: Literal["priors"] = "priors"


class AdjustStage(ModelStage):
    """Fold priors into a model."""

    does: Literal["adjust"] = "adjust"
    priors: str | None = None
    """The file of priors; that of the last stage that left one when absent."""


class RecalibrateStage(ModelStage):
    """Give a model the BatchNorm statistics of the target."""

    does: Literal["recalibrate"] = "recalibrate"
    keep: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the model's own statistics."""


class ChooseStage(StageConfig):
    """Choose among models and their BatchNorm statistics by unlabelled images of the target."""

    does: Literal["choose"] = "choose"
    models: dict[str, str] | None = None
    """File by name; when absent, the last training's teacher and student, or the teacher and what other trainings from
    the same start left, where it has one; a student without a teacher, or one that was corrected for label shift,
    stands alone with its statistics."""
    start: str | None = None
    """The file of a source-only model; that which the last training went on from when absent."""


class LabelStage(ModelStage):
    """Label the target with a model."""

    does: Literal["label"] = "label"


RecipeStage = Annotated[
    TrainStage | PriorsStage | AdjustStage | RecalibrateStage | ChooseStage | LabelStage,
    Field(discriminator="does"),
    by_default(does="train"),
]


class DeployConfig(Strict):
    """What the model that a run leaves carries of the target, beside what it learned."""

    statistics: Literal["as-trained", "blend", "target", "auto"] = "as-trained"
    """BatchNorm's: a mixture of all views as the references leave it, half of it with the target's, or those alone;
    `auto` chooses without labels, and student, teacher or start with it. All but the first are made after the last
    stage, in a stage of their own (`docs/target-statistics.md`)."""


class Settings(Strict):
    """Hold all settings of a run; resume reads the resolved ones from the run folder."""

    classes: Classes | None = None
    """A label space in `ssrseg.data.SPACES`, or the classes themselves; the source spec's when absent."""
    source: Data
    """The labelled data set, or several; likewise the others."""
    target: Data | None = None
    val: Data | None = None
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: Optim = AdamWConfig()
    inference: InferenceConfig = InferenceConfig()
    selection: Annotated[SelectionConfig | None, NO_EFFECT] = SelectionConfig()
    """Scores without labels; not computed when absent, or without a target."""
    train: TrainConfig = TrainConfig()
    deploy: DeployConfig = DeployConfig()
    stages: Annotated[tuple[RecipeStage, ...], NO_EFFECT] = ()
    """Runs that start from runs, one after the other, each with its own settings; none for one run."""

    @model_validator(mode="before")
    @classmethod
    def _labels_are_looked_at(cls, tree: Any) -> Any:
        """Give the labelled part of a target its view, unless the method has one."""
        if not isinstance(tree, dict):
            return tree
        method = tree.get("method", {})
        if names_labels(tree.get("target")) and isinstance(method, dict) and method.get("labelled") is None:
            return {**tree, "method": {**method, "labelled": {}}}
        return tree

    @model_validator(mode="after")
    def _labels_are_there(self) -> Settings:
        for role, data in (("source", self.source), ("val", self.val)):
            if any(one.labelled is not None for one in datasets(data)):
                raise ValueError(f"{role}.labelled: all of its images have labels; it names the few of a target's")
        if (self.method.labelled is None) != (not self.labelled):
            raise ValueError(
                "method.labelled learns from the labelled images of a target: name them in target.labelled, as "
                "target.labelled.count=10, or set method.labelled to null"
            )
        return self

    @property
    def labelled(self) -> dict[str, DataConfig]:
        """The targets of which some images have labels, by what their numbers are called."""
        return labelled_in(self.target)

    @model_validator(mode="after")
    def _data_sets_have_names_and_shares(self) -> Settings:
        for role, data in (("source", self.source), ("target", self.target), ("val", self.val)):
            shares = [one.share for one in domains(role, data).values()]
            if any(shares) and role == "val":
                raise ValueError("every image of val is scored, whatever its share: leave val.share out")
            if any(shares) and not all(shares):
                raise ValueError(f"some data sets of {role} have a share and others none: give it to each, or to none")
        return self

    @property
    def domains(self) -> dict[str, DataConfig]:
        """All data sets of the run, by what their numbers are called."""
        return (
            domains("source", self.source) | domains("target", self.target) | self.labelled | domains("val", self.val)
        )

    @model_validator(mode="after")
    def _views_have_images(self) -> Settings:
        if self.method.looks_at_target and self.target is None:
            raise ValueError("this method adapts to a target: set target.root to a folder of images (no labels needed)")
        if any((data.masks is None) is self.method.has_masks for data in datasets(self.target)):
            raise ValueError("target.masks and method.teacher.regions.of: masks need each other: set both, or neither")
        if self.deploy.statistics != "as-trained" and self.target is None:
            raise ValueError("deploy.statistics are those of a target: set target.root to a folder of images")
        if self.loader.jitter is not None and self.model.in_channels != 3:
            raise ValueError("loader.jitter is for RGB, and model.in_channels is not 3: set loader.jitter to null")
        segmentation, distance = self.method.segmentation, self.method.feature_distance
        asked = {
            "method.segmentation.detail_weight": segmentation.detail_weight is not None,
            "method.segmentation.context_weight": segmentation.context_weight is not None,
            "method.feature_distance.of_detail": distance is not None and distance.of_detail,
        }
        if self.model.detail is None and (of_detail := [key for key, asks in asked.items() if asks]):
            raise ValueError(f"{of_detail[0]} is for a model that looks twice: set model.detail, or leave it out")
        if self.loader.of_target != self.loader.crop:
            differs, same = "loader.target_crop differs from loader.crop", "set loader.target_crop to null"
            if self.method.mixed:
                raise ValueError(f"{differs}: the mixed view cannot paste one onto the other; {same}")
            if self.method.masked and self.method.masked.images_of == "both":
                raise ValueError(f"{differs}: the masked view (images_of: both) has both in a batch; {same}")
        return self

    @model_validator(mode="after")
    def _the_run_ends_as_its_schedule(self) -> Settings:
        length, stop = self.optim.length, self.train.early_stop
        if length is not None and length < self.train.steps:
            raise ValueError(
                f"optim.length={length} ends before train.steps={self.train.steps}, and the rate would fall below "
                f"optim.min_lr: set optim.length to {self.train.steps} or more, or to null"
            )
        if stop is not None and (self.selection is None or self.target is None):
            raise ValueError("train.early_stop needs a target and the criteria of selection: set both, or leave it out")
        if stop is not None and stop.by == "agreement" and self.method.teacher is None:
            raise ValueError("train.early_stop.by: agreement is that of student and teacher: set method.teacher, or im")
        return self


def resolve(tree: Mapping[str, Any]) -> Settings:
    """Check a tree of settings; raises `UserError` that names every wrong key."""
    return resolve_group(Settings, tree)


def resolve_group(group: type[Group], tree: Mapping[str, Any], name: str = "settings") -> Group:
    """Check a tree of one group of settings; raises `UserError` that names every wrong key."""
    try:
        return group.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(_explain(problem, group) for problem in error.errors())
        raise UserError(f"The {name} are not valid:\n{problems}") from error


def dump(settings: Settings) -> str:
    """Write the settings as YAML that `resolve` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree to dotted path -> leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def affects_result(path: str) -> bool:
    """Tell whether the setting at a dotted path can change a run's result by more than rounding.

    Settings are marked where they are declared, alone or by their group. An unknown path is taken to matter.
    """
    groups: list[type[Strict]] = [Settings]
    affects = True
    for key in path.split("."):
        found = next((group.model_fields[key] for group in groups if key in group.model_fields), None)
        if found is None:
            break
        extra = found.json_schema_extra
        affects = bool(extra.get("affects_result", affects)) if isinstance(extra, dict) else affects
        groups = _groups_in(found.annotation)
    return affects


def _explain(error: Any, root: type[Strict]) -> str:
    """Put a problem that pydantic found in words, under the path of the setting as the user writes it."""
    words, groups, siblings = list[str](), [root], list[type[Strict]]()
    for key in error["loc"]:
        if str(key)[:1] in "<[":  # pydantic's: a member of a union, or the key of a table
            continue
        if len(groups) > 1 and (tagged := [group for group in groups if _tag(group)[1] == key]):
            groups, siblings = tagged, groups  # pydantic's word for a member of a union, which no user wrote
            continue
        words.append(str(key))
        owner = next((group for group in groups if key in group.model_fields), None)
        if owner is not None:
            groups, siblings = _groups_in(owner.model_fields[key].annotation), []
    path = ".".join(words) or "settings"
    if error["type"] == "extra_forbidden":
        key = words[-1]
        if others := [_tag(group) for group in siblings if key in group.model_fields]:
            return f"  {path}: only with {' or '.join(f'{name}: {value}' for name, value in others)}."
        return f"  {path}: no such setting.{nearest(key, [name for group in groups for name in group.model_fields])}"
    if error["type"] == "union_tag_invalid":
        name, known = error["ctx"]["discriminator"].strip("'"), [_tag(group)[1] for group in groups]
        return f"  {path}.{name}: choose {' or '.join(known)} (found {error['ctx']['tag']!r})"
    found = "" if error["type"] in ("missing", "value_error") else f" (found {error['input']!r})"
    text = error["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "List")
    text = re.sub(r"dictionary or (instance of \w+|object to extract fields from)", "group of `key: value`", text)
    return f"  {path}: {text}{found}"


def _groups_in(annotation: Any) -> list[type[Strict]]:
    """Return the groups of settings that a field may hold: several for a union."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [group for part in get_args(annotation) for group in _groups_in(part)]


def _tag(group: type[Strict]) -> tuple[str, str]:
    """Return the key by which a member of a union is chosen and its value there; empty for other groups."""
    literals = {
        key: get_args(f.annotation) for key, f in group.model_fields.items() if get_origin(f.annotation) is Literal
    }
    return next(((key, values[0]) for key, values in literals.items() if len(values) == 1), ("", ""))


def nearest(word: str, valid: list[str]) -> str:
    """Suggest the nearest valid word, else list what is valid; starts with a space, empty when nothing is valid."""
    close = difflib.get_close_matches(word, valid, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid here: {', '.join(valid)}." if valid else ""
