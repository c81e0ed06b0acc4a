"""Typed settings: what a run is, in YAML or on the command line as `key.path=value`.

An unknown key is an error that names the nearest valid one. What is absent is `None`, never a zero weight.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ssrseg.errors import UserError

View = Literal["source", "mixed", "masked", "target"]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


def _spelled(value: Any) -> Any:
    """YAML's sugar for one class: a bare name."""
    return {"name": value} if isinstance(value, str) else value


class Strict(BaseModel):
    """A group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Group = TypeVar("Group", bound=Strict)


class ClassConfig(Strict):
    """One class of a user's own label space."""

    name: str
    color: tuple[int, int, int] | None = None
    """RGB, 0..255; one is chosen when absent."""
    ids: tuple[int, ...] | None = None
    """Raw label values that mean this class; its position in the list when absent."""


Class = Annotated[ClassConfig, BeforeValidator(_spelled)]


class DataConfig(Strict):
    """A folder of images, with labels or without."""

    root: Path
    spec: str = "folders"
    """A layout in `ssrseg.data.SPECS`; `folders` is any pair of globs."""
    split: str | None = None
    """Fills `{split}` in the globs; the spec's own default when absent."""
    images: str | None = None
    """Glob below `root`; replaces the spec's."""
    labels: str | None = None
    """Glob below `root`. An image's label is the file for which the wildcards match the same text."""
    stems: Path | None = None
    """Text file with one image stem per line: only these are used."""
    id_map: dict[int, int] | None = None
    """Raw label value -> class id; values that are not listed become ignore."""
    resize: Size | None = None
    """(width, height) that bounds the image, aspect ratio kept; no resize when absent."""
    margins: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """Rows at the top and bottom of a target crop whose pseudo-labels are not trusted (own car, rectification)."""


class RareClassConfig(Strict):
    """Rare-class sampling (DAFormer, section 3.2)."""

    temperature: Rate = 0.01
    min_pixels: Positive | None = None
    """A file counts for a class when it has more pixels of it; scaled from 3000 per 512x512 crop when absent."""
    min_crop_ratio: Annotated[float, Field(ge=0)] = 0.5
    """Share of `min_pixels` that the crop must show, else it is drawn again (at most ten times)."""


class LoaderConfig(Strict):
    """How samples are cut and batched."""

    crop: Size = (512, 512)
    """(height, width)."""
    batch: Positive = 2
    """Source images and target images per step and process."""
    workers: Annotated[int, Field(ge=0)] = 2
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A source crop is drawn again while one class covers this share of its labelled pixels or more."""
    flip: Fraction = 0.5
    rare_class: RareClassConfig | None = None


class ModelConfig(Strict):
    """What is deployed."""

    backbone: str = "mit_b5"
    """`mit_b0`..`mit_b5`, `resnet101v1c` or `timm:<name>` of any pyramid."""
    head: str = "daformer"
    head_channels: Positive | None = None
    """Width of the head; the published one (256 for DAFormer's, 768 for SegFormer's) when absent."""
    pretrained: str = "hub"
    """`hub` (the backbone's published ImageNet weights), `owner/name[@revision]`, a local file, or `none`."""
    drop_path: Fraction = 0.1
    dropout: Fraction = 0.1


class TeacherConfig(Strict):
    """The exponential moving average that labels the target."""

    decay: Fraction = 0.999
    threshold: Fraction | None = 0.968
    """The trust is the share of pixels at least this confident; 1 everywhere when absent."""


class AugmentConfig(Strict):
    """Strong augmentation of an image after mixing (DACS): colour jitter, then blur."""

    strength: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    jitter_skipped: Fraction = 0.2
    """Chance that *no* jitter is applied: the references call this number its probability."""
    blur_skipped: Fraction = 0.5


class MixedConfig(Strict):
    """The mixed view: classes of the source pasted onto the target (ClassMix)."""

    classes_of: Literal["batch", "image"] = "batch"
    """Where the classes to paste are drawn from: the whole batch (MIC's port of DACS) or each image (DACS)."""
    augment: AugmentConfig | None = AugmentConfig()


class MaskedConfig(Strict):
    """The masked view (MIC): the model must label what it cannot see."""

    images_of: Literal["target", "source", "both"] = "target"
    """`both` is the reference's mode `separate`: the first source and the first target image."""
    ratio: Fraction = 0.7
    block: Positive = 32
    weight: Rate = 1.0
    augment: AugmentConfig | None = AugmentConfig()


class FeatureDistanceConfig(Strict):
    """Distance to the frozen ImageNet features on thing classes (DAFormer, section 3.3)."""

    weight: Rate = 0.005
    classes: tuple[str, ...] | None = None
    """Names of the thing classes, those that the label space has; all locations when absent or when it has none."""
    min_share: Fraction = 0.75


class FoundationConfig(Strict):
    """The frozen encoder that exists in training only."""

    encoder: str = "sam-vit-b"
    """`sam-vit-b`, `sam-vit-l`, `sam-vit-h`, `timm:<name>`, or `demo` (a small one that the package ships)."""
    weights: str = "hub"
    """`hub`, a local file, or `none` (random: a control, not a method)."""
    input_size: Positive | Literal["native"] = 1024
    """Images are resized to this square, or go in at crop size."""


class RegularizerConfig(Strict):
    """SSR: a second decoding whose features have attended to a foundation encoder's."""

    foundation: FoundationConfig = FoundationConfig()
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    views: tuple[View, ...] = ("source", "mixed")
    weight: Rate = 1.0
    heads: tuple[Positive, ...] | None = None
    """Attention heads per stage; channels / 64, at least 1, when absent."""
    bn_stats: Literal["shared", "shadow"] = "shared"
    """Whether the regularised pass updates the head's BatchNorm statistics (the authors) or not."""


class MethodConfig(Strict):
    """Which views, which terms: a part that is absent is `None`."""

    distort: bool = False
    """Photometric distortion of the source (source-only and supervised training)."""
    teacher: TeacherConfig | None = None
    mixed: MixedConfig | None = None
    masked: MaskedConfig | None = None
    feature_distance: FeatureDistanceConfig | None = None
    regularizer: RegularizerConfig | None = None

    @model_validator(mode="after")
    def _pseudo_labels_have_an_author(self) -> MethodConfig:
        needy = [name for name in ("mixed", "masked") if getattr(self, name) is not None]
        if needy and self.teacher is None:
            raise ValueError(f"{needy[0]} needs pseudo-labels: set method.teacher")
        return self


class OptimConfig(Strict):
    """AdamW with the references' groups and schedule."""

    lr: Rate = 6e-5
    head_lr_factor: Rate = 10.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[int, Field(ge=0)] = 1500
    """Steps; the warm-up multiplies the already decaying rate."""
    power: Rate = 1.0
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where the decay ends."""


class InferenceConfig(Strict):
    """How an image becomes logits."""

    mode: Literal["whole", "slide"] = "whole"
    window: Size = (512, 512)
    stride: Size = (341, 341)
    flip: bool = False
    """Average with the mirrored image."""


class TrainConfig(Strict):
    """The loop."""

    steps: Positive = 40_000
    seed: int = 0
    devices: Positive = 1
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: Positive = 4_000
    checkpoint_every: Positive = 2_000
    log_every: Positive = 50
    pictures_every: Positive = 1_000


class Settings(Strict):
    """All of a run. The resolved settings lie in the run folder and are what resume reads."""

    classes: str | tuple[Class, ...] | None = None
    """A label space in `ssrseg.data.SPACES`, or the classes themselves; the source spec's when absent."""
    source: DataConfig
    target: DataConfig | None = None
    val: DataConfig | None = None
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    inference: InferenceConfig = InferenceConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _views_have_images(self) -> Settings:
        if (self.method.mixed or self.method.masked) and self.target is None:
            raise ValueError("this method adapts to a target: set target.root to a folder of images (no labels needed)")
        return self


DATA = ("classes", "source", "target", "val")
"""The groups that say which data; own data replace all of a preset's."""


def preset_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    entries = (resources.files("ssrseg") / "presets").iterdir()
    names = (entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))
    return sorted(name for name in names if not name.startswith("_"))


def preset_summaries() -> dict[str, str]:
    """The first comment line of every recipe, by name."""
    return {name: _preset_text(name).splitlines()[0].lstrip("# ") for name in preset_names()}


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a shipped recipe; a recipe may name others as its `base`, laid over each other in order."""
    tree: dict[str, Any] = yaml.safe_load(_preset_text(name))
    base: dict[str, Any] = {}
    for other in tree.pop("base", []):
        base = merge(base, read_preset(other))
    return merge(base, tree)


def _preset_text(name: str) -> str:
    entry = resources.files("ssrseg") / "presets" / f"{name}.yaml"
    if not entry.is_file():
        raise UserError(f"There is no preset {name!r}.{_nearest(name, preset_names())} `ssrseg presets` lists them.")
    return entry.read_text()


def compose(
    preset: str | None, config: Path | None, own: Mapping[str, Mapping[str, Any]], words: Sequence[str]
) -> dict[str, Any]:
    """Settings as a tree: a preset, a file laid over it, own data, and `key.path=value` words.

    Data in the file or in `own` (groups by name) replace *all* data of the preset: a task is a whole. Words only
    change what they name.
    """
    tree = read_preset(preset) if preset else {}
    for layer in (read_yaml(config) if config else {}, dict(own)):
        if any(group in layer for group in ("source", "target")):
            tree = {key: value for key, value in tree.items() if key not in DATA}
        tree = merge(tree, layer)
    return merge(tree, assignments(words))


def read_yaml(path: Path) -> dict[str, Any]:
    """A settings file as a tree."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold settings as `key: value` lines, found {type(tree).__name__}.")
    return tree


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, group by group; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def assignments(words: Sequence[str]) -> dict[str, Any]:
    """`key.path=value` words as a tree; values are YAML."""
    tree: dict[str, Any] = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals or not path:
            raise UserError(f"Expected `key.path=value`, found {word!r}.")
        branch: Any = yaml.safe_load(value)
        for key in reversed(path.split(".")):
            branch = {key: branch}
        tree = merge(tree, branch)
    return tree


def resolve(tree: Mapping[str, Any]) -> Settings:
    """A tree as checked settings; raises `UserError` that names every wrong key."""
    return resolve_group(Settings, tree)


def resolve_group(group: type[Group], tree: Mapping[str, Any], name: str = "settings") -> Group:
    """A tree as one checked group of settings; raises `UserError` that names every wrong key."""
    try:
        return group.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(_explain(problem, group) for problem in error.errors())
        raise UserError(f"The {name} are not valid:\n{problems}") from error


def dump(settings: Settings) -> str:
    """The settings as YAML that `resolve` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: Any, root: type[Strict]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        group = _group_at(root, error["loc"][:-1])
        valid = list(group.model_fields) if group else []
        return f"  {path}: no such setting.{_nearest(str(error['loc'][-1]), valid)}"
    found = "" if error["type"] in ("missing", "value_error") else f" (found {error['input']!r})"
    return f"  {path or 'settings'}: {error['msg'].removeprefix('Value error, ')}{found}"


def _group_at(group: type[Strict], path: tuple[Any, ...]) -> type[Strict] | None:
    for key in path:
        if key not in group.model_fields:
            continue  # an index, or pydantic's name for a member of a union
        found = _group_of(group.model_fields[key].annotation)
        if found is None:
            return None
        group = found
    return group


def _group_of(annotation: Any) -> type[Strict] | None:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next((group for part in get_args(annotation) if (group := _group_of(part))), None)


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid here: {', '.join(valid)}." if valid else ""
