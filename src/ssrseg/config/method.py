"""Settings of the method: views, terms, teacher. What is absent is `None`, never a zero weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from ssrseg.config.base import Fraction, Positive, Rate, Strict, View, chosen_by


class TeacherConfig(Strict):
    """The exponential moving average that labels the target."""

    decay: Fraction = 0.999
    threshold: Fraction | None = 0.968
    """The trust is the share of pixels at least this confident; 1 everywhere when absent."""
    after_step: bool = False
    """Average after the step (DACS's code) instead of before it: the warm-up of the average is a step behind."""


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
    part: str | None = None
    """Which network of a file that holds several: its key or prefix."""
    input_size: Annotated[
        Annotated[Positive, Tag("<side>")] | Annotated[Literal["native"], Tag("<word>")],
        chosen_by(str, "<word>", "<side>"),
    ] = 1024
    """Images are resized to this square, or go in at crop size."""
    precision: Literal["fp32", "half", "auto"] = "fp32"
    """`half` keeps and runs the encoder in bfloat16; `auto` does so on CUDA. The published runs have `fp32`."""


class SegmentationConfig(Strict):
    """The cross entropy of the decoded features."""

    temperature: Rate = 1.0
    """Divides the logits in training (Undoing: 1.8)."""
    over_labelled: tuple[View, ...] = ()
    """Views whose loss is averaged over labelled pixels only; over all pixels elsewhere."""
    priors: str | None = None
    """Classifier refinement (Undoing): a file of `ssrseg priors`, or `gta5-cityscapes`, `synthia-cityscapes`. The loss
    is that of logits pushed back to the source's priors, so that they carry the target's themselves."""


class AlignmentConfig(Strict):
    """Class-level adversarial alignment of the deepest features (FADA, Undoing)."""

    weight: Rate = 0.001
    """Of the student's loss, to pass as the other domain."""
    temperature: Rate = 1.8
    clip: Fraction = 0.9
    """Largest probability of a soft class."""
    lr: Rate = 1e-4
    """Of the discriminator: Adam, betas 0.9 and 0.99, the student's schedule."""


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
    trains: Literal["all", "head"] = "all"
    """`head`: the backbone stands still, its BatchNorm too."""
    segmentation: SegmentationConfig = SegmentationConfig()
    alignment: AlignmentConfig | None = None
    teacher: TeacherConfig | None = None
    mixed: MixedConfig | None = None
    masked: MaskedConfig | None = None
    feature_distance: FeatureDistanceConfig | None = None
    regularizer: RegularizerConfig | None = None

    @property
    def looks_at_target(self) -> bool:
        """Whether any part needs target images."""
        parts = (self.teacher, self.mixed, self.masked, self.alignment)
        return any(part is not None for part in parts)

    @model_validator(mode="after")
    def _pseudo_labels_have_an_author(self) -> MethodConfig:
        needy = [name for name in ("mixed", "masked") if getattr(self, name) is not None]
        if needy and self.teacher is None:
            raise ValueError(f"{needy[0]} needs pseudo-labels: set method.teacher")
        return self
