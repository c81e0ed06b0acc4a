"""Settings of the method: views, terms, teacher. What is absent is `None`, never a zero weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, Tag, model_validator

from ssrseg.config.base import Fraction, Positive, Rate, Strict, View, chosen_by


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
    """Images are resized to this square, or go in at crop size: a multiple of a ViT's patch, 14 or 16."""
    level: Annotated[int, Field(lt=0)] = -1
    """Which of its features: stages of a pyramid (SAM 2, ConvNeXt), blocks of a ViT, counted from the end."""
    precision: Literal["fp32", "half", "auto"] = "fp32"
    """`half` keeps and runs the encoder in bfloat16; `auto` does so on CUDA. The published runs have `fp32`."""


class RegionsConfig(Strict):
    """Refine pseudo-labels by regions of an image."""

    of: Literal["clusters", "masks"] = "clusters"
    """What looks alike to a frozen foundation encoder, or the files of `target.masks`, such as SAM's."""
    foundation: FoundationConfig = FoundationConfig()
    """Of clusters."""
    clusters: Annotated[int, Field(ge=2)] = 24
    """Regions of an image: k-means of the encoder's features."""
    majority: Fraction = 0.6
    """A region whose mean probability of a class is at least this has its label everywhere."""


class TeacherConfig(Strict):
    """The exponential moving average that labels the target."""

    decay: Fraction = 0.999
    threshold: Fraction | None = 0.968
    """The trust is the share of pixels at least this confident; 1 everywhere when absent."""
    after_step: bool = False
    """Average after the step (DACS's code) instead of before it: the warm-up of the average is a step behind."""
    flip: bool = False
    """Label by the mean of the probabilities for an image and for its mirror image (VFM-UDA)."""
    regions: RegionsConfig | None = None
    """The trust is each region's agreement with a pixel's label then, instead of the share of confident pixels."""


class AugmentConfig(Strict):
    """Strong augmentation of an image after mixing (DACS): colour jitter, then blur."""

    strength: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    jitter_skipped: Fraction = 0.2
    """Chance that *no* jitter is applied: the references call this number its probability."""
    blur_skipped: Fraction = 0.5


class GlobalIntensityConfig(Strict):
    """Other colours for the source (GIN): small random networks of one pixel each, so that only shapes stay."""

    probability: Fraction = 0.25
    """Of an image to be changed."""
    layers: Positive = 4
    channels: Positive = 2
    """Between the layers."""


class FourierConfig(Strict):
    """The look of the target for the source (FDA): amplitudes of the lowest frequencies of a target image each."""

    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """Of the shorter side: up to which frequency; 0 gives the mean colour alone."""


class LabelledConfig(Strict):
    """The labelled view: the few target images that have labels (`target.labelled`)."""

    weight: Rate = 1.0
    """Factor of its loss."""


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
    of_detail: bool = False
    """Add the distance of the features of `model.detail`, for windows as large as the crop (HRDA's code)."""


class SegmentationConfig(Strict):
    """The cross entropy of the decoded features."""

    temperature: Rate = 1.0
    """Divides the logits in training (Undoing: 1.8)."""
    over_labelled: tuple[View, ...] = ()
    """Views whose loss is averaged over labelled pixels only; over all pixels elsewhere."""
    detail_weight: Fraction | None = None
    """Share of the loss that is the detail's own (HRDA: 0.1); needs `model.detail`. The fused prediction has the rest.
    `masked.weight` leaves it alone."""
    context_weight: Fraction | None = None
    """Share that is the context's, for windows as large as the crop (HRDA's code: 0.1); else none is needed."""
    priors: str | None = None
    """Classifier refinement (Undoing): a file of `ssrseg estimate-priors`, or `gta5-cityscapes`, `synthia-cityscapes`.
    The loss is that of logits pushed back to the source's priors, so that they carry the target's themselves."""


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


class DistillationConfig(Strict):
    """Feature distillation (VFM-UDA++): projected features of the student near a frozen foundation encoder's."""

    foundation: FoundationConfig = FoundationConfig()
    stage: Literal[0, 1, 2, 3] = 3
    """Of the student's backbone, whose features are projected."""
    views: tuple[View, ...] = ("source", "mixed")
    """The published ones are source and target, the latter seen for this alone."""
    weight: Rate = 0.1
    clean: bool = True
    """The encoder sees the images before augmentation and masking (as published), else what the student sees."""
    standardize: bool = True
    """Divide the encoder's channels by their deviation: SAM's and others' differ a hundredfold."""


class AffinityConfig(Strict):
    """Pair-wise distillation: places of an image are as similar to the student as to a frozen foundation encoder."""

    foundation: FoundationConfig = FoundationConfig()
    stage: Literal[0, 1, 2, 3] = 3
    """Of the student's backbone, whose features are compared."""
    views: tuple[View, ...] = ("source", "mixed")
    weight: Rate = 1.0
    unclear: tuple[float, float] = (0.2, 0.6)
    """Pairs whose similarity to the encoder (a cosine) is between these are left out."""


Part = TypeVar("Part", RegularizerConfig, DistillationConfig, AffinityConfig, RegionsConfig)


class MethodConfig(Strict):
    """Which views, which terms: a part that is absent is `None`."""

    distort: bool = False
    """Photometric distortion of the source (source-only and supervised training)."""
    trains: Literal["all", "head"] = "all"
    """`head`: the backbone stands still, its BatchNorm too."""
    global_intensity: GlobalIntensityConfig | None = None
    fourier: FourierConfig | None = None
    statistics_of: tuple[View, ...] | None = None
    """Views whose passes move the student's running BatchNorm statistics, which it is deployed with; all when absent
    (the references). In training each view is normalised by its own batch, the teacher's target too, in any case."""
    segmentation: SegmentationConfig = SegmentationConfig()
    alignment: AlignmentConfig | None = None
    teacher: TeacherConfig | None = None
    labelled: LabelledConfig | None = None
    mixed: MixedConfig | None = None
    masked: MaskedConfig | None = None
    feature_distance: FeatureDistanceConfig | None = None
    regularizer: RegularizerConfig | None = None
    distillation: DistillationConfig | None = None
    affinity: AffinityConfig | None = None

    @property
    def looks_at_target(self) -> bool:
        """Whether any part needs target images."""
        parts = (self.teacher, self.mixed, self.masked, self.fourier)
        return self.has_target_view or any(part is not None for part in parts)

    @property
    def has_target_view(self) -> bool:
        """Whether the student sees target images as they are."""
        named = [part.views for part in (self.distillation, self.affinity) if part is not None]
        return self.alignment is not None or any("target" in views for views in named)

    @property
    def has_masks(self) -> bool:
        """Whether regions are those of files."""
        regions = None if self.teacher is None else self.teacher.regions
        return regions is not None and regions.of == "masks"

    @property
    def foundations(self) -> dict[str, FoundationConfig]:
        """The frozen encoders, by the dotted path of their settings."""
        regularizer = self.regularizer if self.regularizer is not None and self.regularizer.stages else None
        regions = None if self.teacher is None or self.has_masks else self.teacher.regions
        parts = {
            "regularizer": regularizer,
            "distillation": self.distillation,
            "affinity": self.affinity,
            "teacher.regions": regions,
        }
        return {f"method.{name}.foundation": part.foundation for name, part in parts.items() if part is not None}

    def replace_foundations(self, change: Callable[[FoundationConfig], FoundationConfig | None]) -> MethodConfig:
        """Change every frozen encoder; where that gives `None`, the part that uses it is left out."""

        def changed(part: Part | None) -> Part | None:
            new = None if part is None else change(part.foundation)
            return None if part is None or new is None else part.model_copy(update={"foundation": new})

        teacher = self.teacher and self.teacher.model_copy(update={"regions": changed(self.teacher.regions)})
        parts = {name: changed(getattr(self, name)) for name in ("regularizer", "distillation", "affinity")}
        return self.model_copy(update={"teacher": teacher, **parts})

    @model_validator(mode="after")
    def _pseudo_labels_have_an_author(self) -> MethodConfig:
        needy = [name for name in ("mixed", "masked") if getattr(self, name) is not None]
        if needy and self.teacher is None:
            raise ValueError(f"{needy[0]} needs pseudo-labels: set method.teacher")
        return self

    @model_validator(mode="after")
    def _statistics_come_from_views_that_are_made(self) -> MethodConfig:
        made = ["source", *(name for name in ("labelled", "mixed", "masked") if getattr(self, name) is not None)]
        made += ["target"] * self.has_target_view
        if absent := [name for name in self.statistics_of or made if name not in made]:
            raise ValueError(f"statistics_of names {absent[0]}, but this method's views are {', '.join(made)}")
        return self
