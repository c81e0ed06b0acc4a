"""All settings of a run, and of a recipe of several."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ssrseg.config.base import NO_EFFECT, Strict, by_default
from ssrseg.config.data import Class, DataConfig, LoaderConfig
from ssrseg.config.method import MethodConfig
from ssrseg.config.training import AdamWConfig, InferenceConfig, ModelConfig, Optim, SelectionConfig, TrainConfig


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


class LabelStage(ModelStage):
    """Label the target with a model."""

    does: Literal["label"] = "label"


RecipeStage = Annotated[
    TrainStage | PriorsStage | AdjustStage | LabelStage, Field(discriminator="does"), by_default(does="train")
]


class Settings(Strict):
    """Hold all settings of a run; resume reads the resolved ones from the run folder."""

    classes: str | tuple[Class, ...] | None = None
    """A label space in `ssrseg.data.SPACES`, or the classes themselves; the source spec's when absent."""
    source: DataConfig
    target: DataConfig | None = None
    val: DataConfig | None = None
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: Optim = AdamWConfig()
    inference: InferenceConfig = InferenceConfig()
    selection: Annotated[SelectionConfig | None, NO_EFFECT] = SelectionConfig()
    """Scores without labels; not computed when absent, or without a target."""
    train: TrainConfig = TrainConfig()
    stages: Annotated[tuple[RecipeStage, ...], NO_EFFECT] = ()
    """Runs that start from runs, one after the other, each with its own settings; none for one run."""

    @model_validator(mode="after")
    def _views_have_images(self) -> Settings:
        if self.method.looks_at_target and self.target is None:
            raise ValueError("this method adapts to a target: set target.root to a folder of images (no labels needed)")
        if self.method.mixed and self.loader.of_target != self.loader.crop:
            raise ValueError(
                "loader.target_crop differs from loader.crop: the mixed view cannot paste one onto the other"
            )
        return self
