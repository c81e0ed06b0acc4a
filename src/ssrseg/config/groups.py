"""The settings, typed: what a run is. What is absent is `None`, never a zero weight."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

View = Literal["source", "mixed", "masked", "target"]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
UserPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
"""A path in which `~` is the user's home."""


def _spelled(value: Any) -> Any:
    """YAML's sugar for one class: a bare name."""
    return {"name": value} if isinstance(value, str) else value


class Strict(BaseModel):
    """A group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassConfig(Strict):
    """One class of a user's own label space."""

    name: str
    color: tuple[int, int, int] | None = None
    """RGB, 0..255; one is chosen when absent. Label files that are coloured need that of every class."""
    ids: tuple[int, ...] | None = None
    """Raw label values that mean this class; its position in the list when absent."""
    of: tuple[str, ...] | None = None
    """Names of the classes of a published data set that this class is made of; its own name when absent.

    Where source and val have different classes, name those of both; `*` means all that no other class takes.
    """


Class = Annotated[ClassConfig, BeforeValidator(_spelled)]


class DataConfig(Strict):
    """Images, with labels or without."""

    root: UserPath
    """A folder, unpacked or with the zip archives as they were downloaded; one zip archive; or what `pack` wrote."""
    url: str | None = None
    """Where what `pack` wrote was copied to, as `s3://bucket/folder`; `root` then keeps what was fetched of it."""
    spec: str = "folders"
    """A layout in `ssrseg.data.SPECS`; `folders` is any pair of globs."""
    split: str | None = None
    """Fills `{split}` in the globs; the spec's own default when absent."""
    images: str | None = None
    """Glob below `root`; replaces the spec's."""
    labels: str | None = None
    """Glob below `root`. An image's label is the file for which the wildcards match the same text."""
    stems: UserPath | None = None
    """Text file with one image stem per line: only these are used."""
    id_map: dict[int, int] | None = None
    """Raw label value -> class id; values that are not listed become ignore."""
    labels_root: UserPath | None = None
    """Where `labels` lie when it is not below `root`."""
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


class ClassBalancedConfig(Strict):
    """Class-balanced source list (Undoing's code): a class seen less often so far is drawn more often."""

    block: Positive = 3000
    """Draws after which the histogram starts anew."""
    offset: Annotated[float, Field(gt=1)] = 1.01
    """A class's weight is 1 / ln(offset + its share so far)."""


class LoaderConfig(Strict):
    """How samples are cut and batched."""

    crop: Size = (512, 512)
    """(height, width)."""
    target_crop: Size | None = None
    """(height, width) of target crops, for methods that do not mix; `crop` when absent."""
    batch: Positive = 2
    """Source images and target images per step and process."""
    workers: Annotated[int, Field(ge=0)] = 2
    timeout: Annotated[int, Field(ge=0)] = 1800
    """Seconds without a batch from the workers after which the run stops; 0 waits for ever."""
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A source crop is drawn again while one class covers this share of its labelled pixels or more."""
    flip: Fraction = 0.5
    rare_class: RareClassConfig | None = None
    cache: Path | None = None
    """Folder that keeps images as they are after `resize`, uncompressed, so that they are decoded once: four bytes per
    pixel of the source, three of the target (3.6 and 2.7 MB per image of 1280x704; 90 GB for all of GTA5)."""
    scale_jpeg: bool = False
    """Scale a JPEG that becomes half as large or smaller while decoding it. Faster, but antialiased where `resize` is
    not: on photographs grey values differ by 3 on average, single ones by 90."""
    class_balanced: ClassBalancedConfig | None = None
    """Another way to choose source images; at most one of the two."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> LoaderConfig:
        if self.rare_class is not None and self.class_balanced is not None:
            raise ValueError("rare_class and class_balanced both choose the source images: set one of them to null")
        return self

    @property
    def of_target(self) -> Size:
        """(height, width) of target crops."""
        return self.target_crop or self.crop


class ModelConfig(Strict):
    """What is deployed."""

    backbone: str = "mit_b5"
    """A key of `ssrseg.models.BACKBONES` (`mit_b0`..`mit_b5`, `resnet101v1c`, `vgg16-dilated` ...) or `timm:<name>` of
    any pyramid."""
    head: str = "daformer"
    head_channels: Positive | None = None
    """Width of the head; the published one (256 for DAFormer's, 768 for SegFormer's) when absent."""
    pretrained: str = "hub"
    """`hub` (the backbone's published ImageNet weights), `owner/name[@revision]`, a local file, or `none`."""
    drop_path: Fraction = 0.1
    dropout: Fraction = 0.1
    align_corners: bool = False
    """How logits are resized; DACS and Undoing align the corners."""
    start: Path | None = None
    """A model file of ours to start from, head and all: the student of an earlier stage."""


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
    input_size: Positive | Literal["native"] = 1024
    """Images are resized to this square, or go in at crop size."""
    shard: bool = False
    """Each process holds a part of the weights and gathers the rest when it needs them (FSDP)."""
    precision: Literal["fp32", "half", "auto"] = "fp32"
    """`half` keeps and runs the encoder in bfloat16; `auto` does so on CUDA. The published runs have `fp32`."""


class JitterConfig(Strict):
    """Colour jitter of every image of the loader, as torchvision has it (Undoing's code)."""

    strength: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of brightness, contrast and saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2


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
    """A discriminator that cannot tell the domains apart; it has an optimiser of its own."""

    of: Literal["class", "output", "entropy"] = "class"
    """Features with their soft classes (FADA, Undoing), probabilities (AdaptSegNet), self-information (AdvEnt)."""
    weight: Rate = 0.001
    """Of fooling the discriminator."""
    temperature: Rate = 1.8
    clip: Fraction = 0.9
    """Largest probability of a soft class."""
    lr: Rate = 1e-4
    """Of the discriminator: Adam, betas 0.9 and 0.99, the student's schedule."""


class EntropyConfig(Strict):
    """Entropy of the predictions on target images, minimised (MinEnt)."""

    weight: Rate = 0.001


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
    jitter: JitterConfig | None = None
    """Colour jitter of source and target."""
    trains: Literal["all", "head"] = "all"
    """`head`: the backbone stands still, its BatchNorm too."""
    segmentation: SegmentationConfig = SegmentationConfig()
    alignment: AlignmentConfig | None = None
    entropy: EntropyConfig | None = None
    teacher: TeacherConfig | None = None
    mixed: MixedConfig | None = None
    masked: MaskedConfig | None = None
    feature_distance: FeatureDistanceConfig | None = None
    regularizer: RegularizerConfig | None = None

    @property
    def looks_at_target(self) -> bool:
        """Whether any part needs target images."""
        parts = (self.teacher, self.mixed, self.masked, self.alignment, self.entropy)
        return any(part is not None for part in parts)

    @model_validator(mode="after")
    def _pseudo_labels_have_an_author(self) -> MethodConfig:
        needy = [name for name in ("mixed", "masked") if getattr(self, name) is not None]
        if needy and self.teacher is None:
            raise ValueError(f"{needy[0]} needs pseudo-labels: set method.teacher")
        return self


class OptimConfig(Strict):
    """Optimiser and schedule; by default AdamW with DAFormer's groups."""

    kind: Literal["adamw", "sgd"] = "adamw"
    momentum: Fraction = 0.9
    """Of SGD."""
    lr: Rate = 6e-5
    head_lr_factor: Rate = 10.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[int, Field(ge=0)] = 1500
    """Steps; the warm-up multiplies the already decaying rate."""
    power: Rate = 1.0
    length: Positive | None = None
    """Steps until the rate has decayed; `train.steps` when absent. Undoing stops at two thirds of its schedule."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where the decay ends."""


class InferenceConfig(Strict):
    """How an image becomes logits."""

    mode: Literal["whole", "slide"] = "whole"
    window: Size = (512, 512)
    stride: Size = (341, 341)
    flip: bool = False
    """Average with the mirrored image."""


class GuardConfig(Strict):
    """What a run does when its numbers go wrong, and when it warns; the reasons stand in `docs/guards.md`."""

    skip: Annotated[int, Field(ge=0)] = 0
    """Steps with a loss or gradient that is not finite are left out, up to so many; the next one stops the run."""
    window: Positive = 500
    """Steps over which each class's share of the pseudo-labels is taken."""
    learned_share: Fraction = 5e-4
    """A class was learned once it held this share of the pseudo-labels in two windows in a row after the warm-up."""
    lost_share: Fraction = 1e-5
    """A learned class has collapsed when it holds less in two windows in a row."""
    learned_iou: Fraction = 0.1
    """A class was learned once an evaluation gave the student this IoU."""
    lost_iou: Fraction = 0.01
    """A learned class has collapsed when an evaluation gives less."""
    apart: Rate = 0.5
    """Distance of student and teacher, as a share of the student's own length, that is too far."""
    stall_seconds: Rate = 60.0
    """A step that waits longer for its data is warned of."""


Criterion = Literal["im", "snd", "agreement", "confidence"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


class SelectionConfig(Strict):
    """Which student is best, told from unlabelled target images alone (`docs/selection.md`)."""

    images: Positive = 32
    """Target images that are looked at, evenly spread over all."""
    pixels: Annotated[int, Field(ge=2)] = 100
    """Of each image, for soft neighbourhood density."""
    keep: tuple[Criterion, ...] = CRITERIA
    """Criteria whose best student is kept as a file; students of the same step share one on disk."""


class TrainConfig(Strict):
    """The loop."""

    steps: Positive = 40_000
    seed: int = 0
    devices: Positive = 1
    """Processes per machine, each with its own device. torchrun and SLURM say themselves how many they started."""
    nodes: Positive = 1
    """Machines."""
    accumulate: Positive = 1
    """Batches per step and process, one after the other; their gradients are averaged."""
    sync_batchnorm: bool = False
    """BatchNorm uses the statistics of the whole batch, over all processes (CUDA only), not of each process's."""
    timeout_minutes: Rate = 30.0
    """A process that stands still for so long while the others wait ends the run."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast; the weights stay in 32 bits."""
    activation_checkpointing: bool = False
    """The student's blocks keep only their inputs and run again in the backward pass: less memory, more time."""
    compile: Literal["off", "on", "auto"] = "off"
    """`torch.compile` of student, teacher and frozen encoders at the size of the crops; `auto` does so on CUDA."""
    deterministic: bool = False
    """Only operations that give the same bits every time; an error names one that cannot (docs/reproducibility.md)."""
    evaluate_every: Positive = 4_000
    checkpoint_every: Positive = 2_000
    log_every: Positive = 50
    pictures_every: Positive = 1_000
    guard: GuardConfig = GuardConfig()
    track: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Services that get the journal's numbers, beside TensorBoard (`docs/tracking.md`)."""
    track_project: str = "ssrseg"
    """Project of wandb, experiment of mlflow."""


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
    settings: dict[str, Any] = {}
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
    selection: SelectionConfig | None = SelectionConfig()
    """Scores without labels; not computed when absent, or without a target."""
    train: TrainConfig = TrainConfig()
    stages: tuple[StageConfig, ...] = ()
    """Runs that start from runs, one after the other; this is one run when there are none."""

    @model_validator(mode="after")
    def _views_have_images(self) -> Settings:
        if self.method.looks_at_target and self.target is None:
            raise ValueError("this method adapts to a target: set target.root to a folder of images (no labels needed)")
        if self.method.mixed and self.loader.of_target != self.loader.crop:
            raise ValueError(
                "loader.target_crop differs from loader.crop: the mixed view cannot paste one onto the other"
            )
        return self
