"""Settings of the model, the optimiser and the loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, Tag, model_validator

from ssrseg.config.base import (
    EFFECT,
    NO_EFFECT,
    Fraction,
    Positive,
    Rate,
    Size,
    Strict,
    UserPath,
    by_default,
    chosen_by,
)


def _refuse_gaps(window: Size, stride: Size, setting: str) -> None:
    if any(step > side for step, side in zip(stride, window, strict=True)):
        less = [max(1, 2 * side // 3) for side in window]
        raise ValueError(
            f"a stride of {[*stride]} leaves pixels between windows of {[*window]} unseen: "
            f"set '{setting}.stride={less}'"
        )


class DetailConfig(Strict):
    """How the model looks twice: at all of a smaller image, and at windows of the image as it is (HRDA)."""

    window: Size = (512, 512)
    """(height, width) of what is seen in detail; a crop that is smaller is seen whole."""
    stride: Size | None = None
    """Of the windows at inference and of the teacher; half of them when absent."""
    scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor of height and width of the image that gives the context."""
    attention: Annotated[
        Annotated[Fraction, Tag("<share>")] | Annotated[Literal["classes", "shared"], Tag("<word>")],
        chosen_by(str, "<word>", "<share>"),
    ] = "classes"
    """How much the detail counts at each place: learned, for each class or one for all; or a constant."""
    divisor: Positive = 8
    """In training, windows begin at multiples of this."""
    blurred: bool = False
    """See the windows halved and doubled again, which shows what their detail is worth."""

    @model_validator(mode="after")
    def _windows_meet(self) -> DetailConfig:
        _refuse_gaps(self.window, self.stride or (1, 1), "model.detail")
        return self


class ModelConfig(Strict):
    """What is deployed."""

    backbone: str = "mit_b5"
    """A key of `ssrseg.models.BACKBONES` (`mit_b0`..`mit_b5`, `resnet101v1c`, `dinov2-s`, `vgg16-dilated` ...) or
    `timm:<name>` of any pyramid or plain ViT."""
    head: str = "daformer"
    head_channels: Positive | None = None
    """Width of the head; the published one (256 for DAFormer's, 768 for SegFormer's) when absent."""
    pretrained: str = "hub"
    """`hub` (the backbone's published ImageNet weights), `owner/name[@revision]`, a local file, or `none`."""
    pretrained_part: str | None = None
    """Which network of a file that holds several: its key or prefix, such as `ema_model` (`docs/weights.md`)."""
    in_channels: Positive = 3
    """Bands of every image of the run: 3 for RGB, to which grey and other pictures are converted; 1 for grey alone, 4
    for RGB with infrared, n of a TIFF or `.npy` file (bytes, or 16 bits of which the upper 8 are used)."""
    value_range: tuple[float, float] | None = None
    """Values that become black and white in images of more than 8 bits, or of floats; 0 and the largest that 16 bits
    hold when absent. The model keeps it, so that `predict` and `evaluate` do the same."""
    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] | None = None
    """Instead, percentiles of each such image whose values become black and white, such as [1, 99]."""
    mean: tuple[Fraction, ...] | None = None
    std: tuple[Rate, ...] | None = None
    """Of each band in [0, 1] (`check-data` prints them for 0..255); the backbone's, repeated, when absent."""
    drop_path: Fraction | None = None
    """Stochastic depth of the deepest block; what its kind is fine-tuned with when absent: 0 for plain ViTs, or 0.1."""
    taps: Literal["last", "four", "raw"] | None = None
    """What the four levels of a plain ViT are made of: the `last` block's tokens (when absent), or those after each
    quarter of the blocks; `raw`: these as they are, all of one stride (when absent with the head `upscale`)."""
    image_scale: Annotated[float, Field(ge=1, le=4)] | None = None
    """A plain ViT sees images so many times as large, rounded down to whole patches (VFM-UDA: 1.1)."""
    dropout: Fraction = 0.1
    align_corners: bool = False
    """How logits are resized; DACS and Undoing align the corners."""
    detail: DetailConfig | None = None
    """Look at details, too (HRDA); the crop should be larger than its window."""
    start: UserPath | None = None
    """A model of ours to start from, head and all: a file, or a name on the Hub."""
    start_classes: Literal["same", "shared", "renamed"] = "same"
    """How its classes become those of the run. By their names, in whatever order: they are the `same`, or `shared` ones
    keep their rows of the classifier and the others start fresh. `renamed`: by their places alone."""

    @model_validator(mode="after")
    def _detail_is_placed_by_cells(self) -> ModelConfig:
        if self.detail is not None and self.align_corners:
            raise ValueError("model.detail is placed by cells, not corners: set model.align_corners=false")
        return self

    @property
    def reading(self) -> tuple[int, tuple[float, float] | None, tuple[float, float] | None]:
        """How images are read: `ssrseg.data.images.Reading`."""
        return self.in_channels, self.value_range, self.percentiles

    @model_validator(mode="after")
    def _black_is_below_white(self) -> ModelConfig:
        if self.value_range is not None and self.percentiles is not None:
            raise ValueError("value_range and percentiles say the same thing: set one of them to null")
        for name in ("value_range", "percentiles"):
            if (given := getattr(self, name)) is not None and given[0] >= given[1]:
                raise ValueError(f"{name} is {list(given)}: the first number must be less than the second")
        return self

    @model_validator(mode="after")
    def _a_number_for_each_band(self) -> ModelConfig:
        for name in ("mean", "std"):
            if (given := getattr(self, name)) is not None and len(given) != self.in_channels:
                raise ValueError(f"{name} has {len(given)} numbers: give one for each of {self.in_channels} bands")
        return self


class OptimConfig(Strict):
    """Set the schedule, and what both optimisers have; the parameter groups are DAFormer's."""

    lr: Rate = 6e-5
    head_lr_factor: Rate = 10.0
    """Of the head, and of the layers that make a pyramid of a plain ViT, which are new as well."""
    backbone_lr_factor: Rate = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the rate from each block of the backbone (in MiT: each stage) to the one before it; the last one has
    the backbone's rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[int, Field(ge=0)] = 1500
    """Steps; the warm-up multiplies the already decaying rate."""
    warmup_ratio: Fraction = 1e-6
    """Share of the rate at the first step."""
    warmup_whole: bool = False
    """The warm-up ends, at its last step, at the whole rate, and the decay shows from then on (VFM-UDA)."""
    power: Rate = 1.0
    length: Positive | None = None
    """Steps until the rate has decayed; `train.steps` when absent. Undoing stops at two thirds of its schedule."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where the decay ends."""


class AdamWConfig(OptimConfig):
    """Use AdamW: betas 0.9 and 0.999, eps 1e-8."""

    kind: Literal["adamw"] = "adamw"


class SGDConfig(OptimConfig):
    """Use stochastic gradient descent with momentum, not Nesterov's."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    steps_by_depth: bool = False
    """Step a parameter of the backbone once for each module that contains it: three or four times per iteration in a
    residual block. DACS's code does so, since its optimiser lists parameters so often."""


Optim = Annotated[AdamWConfig | SGDConfig, Field(discriminator="kind"), by_default(kind="adamw")]


class InferenceConfig(Strict):
    """How an image becomes logits."""

    mode: Literal["whole", "slide"] = "whole"
    window: Size = (512, 512)
    stride: Size = (341, 341)
    flip: bool = False
    """Average with the mirrored image."""
    scales: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1.0,)
    """Average over copies of the image whose height and width are scaled by these."""
    max_pixels: Annotated[Positive | None, NO_EFFECT] = None
    """Of an image that `predict` reads; larger ones are refused. 179 million when absent, as Pillow has it."""

    @model_validator(mode="after")
    def _windows_meet(self) -> InferenceConfig:
        if self.mode == "slide":
            _refuse_gaps(self.window, self.stride, "inference")
        return self


class GuardConfig(Strict):
    """What a run does when its numbers go wrong, and when it warns; the reasons stand in `docs/guards.md`."""

    skip: Annotated[int, Field(ge=0), EFFECT] = 0
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


class EarlyStopConfig(Strict):
    """End a run when a criterion without labels has not improved for a while (`docs/selection.md`)."""

    patience: Positive = 5
    """Evaluations in a row without a better value."""
    by: Criterion = "im"


def _patience(value: Any) -> Any:
    """Let a number stand for its patience, and `true` for the usual one."""
    if isinstance(value, bool):
        return {} if value else None
    return {"patience": value} if isinstance(value, int) else value


def _off_or_on(value: Any) -> Any:
    """Take YAML's reading of `off` and `on` back."""
    return ("on" if value else "off") if isinstance(value, bool) else value


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
    timeout_minutes: Annotated[Rate, NO_EFFECT] = 30.0
    """Of several processes, one that completes no step, with the evaluation after it, for so long ends the run."""
    accelerator: Annotated[Literal["auto", "cpu", "cuda", "mps"], NO_EFFECT] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast; the weights stay in 32 bits."""
    activation_checkpointing: Annotated[bool, NO_EFFECT] = False
    """The student's blocks keep only their inputs and run again in the backward pass: less memory, more time."""
    compile: Annotated[Literal["off", "on", "auto"], BeforeValidator(_off_or_on), NO_EFFECT] = "off"
    """`torch.compile` of student, teacher and frozen encoders at the size of the crops; `auto` does so on CUDA."""
    deterministic: Annotated[bool, NO_EFFECT] = False
    """Only operations that give the same bits every time; an error names one that cannot (docs/reproducibility.md)."""
    evaluate_every: Annotated[Positive, NO_EFFECT] = 4_000
    checkpoint_every: Annotated[Positive, NO_EFFECT] = 2_000
    log_every: Annotated[Positive, NO_EFFECT] = 50
    pictures_every: Annotated[Positive, NO_EFFECT] = 1_000
    guard: Annotated[GuardConfig, NO_EFFECT] = GuardConfig()
    early_stop: Annotated[EarlyStopConfig | None, BeforeValidator(_patience)] = None
    """A number is its patience; no early stop when absent."""
    track: Annotated[tuple[Literal["wandb", "mlflow"], ...], NO_EFFECT] = ()
    """Services that get the journal's numbers, beside TensorBoard (`docs/tracking.md`)."""
    track_project: Annotated[str, NO_EFFECT] = "ssrseg"
    """Project of wandb, experiment of mlflow."""

    @property
    def batches(self) -> int:
        """Batches of a run, of all processes together."""
        return self.steps * self.accumulate * self.devices * self.nodes
