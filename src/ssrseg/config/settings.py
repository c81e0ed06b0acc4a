"""All of a run, typed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ssrseg.config.base import NO_EFFECT, Strict
from ssrseg.config.data import Class, DataConfig, LoaderConfig
from ssrseg.config.method import MethodConfig
from ssrseg.config.training import InferenceConfig, ModelConfig, OptimConfig, SelectionConfig, TrainConfig


class StageConfig(Strict):
    """One of several runs, or what lies between two of them.

    `{name}` in its texts is what the stage of that name left: a model file, a file of priors, a labelled data set.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    does: Literal["train", "priors", "adjust", "label"] = "train"
    """Train; count the priors of source and target; fold them into a model; label the target with a model."""
    model: str | None = None
    """The model file of `priors`, `adjust` and `label`; that of the last stage that left one when absent."""
    priors: str | None = None
    """The file of `adjust`; that of the last stage that left one when absent."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Laid over the run's own, for `train`."""


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
    selection: Annotated[SelectionConfig | None, NO_EFFECT] = SelectionConfig()
    """Scores without labels; not computed when absent, or without a target."""
    train: TrainConfig = TrainConfig()
    stages: Annotated[tuple[StageConfig, ...], NO_EFFECT] = ()
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
