"""Backbones: pyramids of features, all from timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.deeplab import (
    CAFFE_RESNET_MEAN,
    CAFFE_STD,
    CAFFE_VGG_MEAN,
    DilatedVGG,
    caffe_resnet,
    frozen_norms,
    renormalise,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """A recipe for a backbone, and the place of its published ImageNet weights."""

    timm_name: str
    """Of the architecture, or of the one whose weights it takes."""
    options: dict[str, Any] = field(default_factory=dict)
    hub: str | None = None
    """Hub id of the weights; timm's own when absent."""
    arrange: Callable[[Any], None] | None = None
    """Changes timm's pyramid."""
    build: Callable[[], Any] | None = None
    """Builds the pyramid in timm's stead."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Of RGB in [0, 1]; the pyramid's own when absent."""
    bgr: bool = False
    """Its published weights want blue, green, red: their first layer is turned when it is loaded."""
    fresh: str | None = None
    """Pattern of names that published weights do not have: these layers start random."""


def _mit(size: int) -> Architecture:
    # timm's PVT v2 is the Mix Transformer, but its B0..B4 widen the MLPs of the first two stages.
    options = {} if size == 5 else {"mlp_ratios": (4, 4, 4, 4)}
    return Architecture(f"pvt_v2_b{size}", options, hub=f"nvidia/mit-b{size}")


def _resnets(depth: int) -> dict[str, Architecture]:
    """MIC's port of DACS; DACS as published; Undoing's with frozen norms, and with live ones, into which it distils."""
    name, options = f"resnet{depth}", {"output_stride": 8}
    return {
        f"{name}v1c": Architecture(f"{name}c", options),
        f"{name}-caffe": Architecture(
            f"{name}.tv_in1k", options, arrange=caffe_resnet, mean=CAFFE_RESNET_MEAN, std=CAFFE_STD, bgr=True
        ),
        f"{name}-dilated": Architecture(f"{name}.tv_in1k", options),
        f"{name}-frozen": Architecture(f"{name}.tv_in1k", options, arrange=frozen_norms),
    }


BACKBONES: dict[str, Architecture] = {
    **{f"mit_b{size}": _mit(size) for size in range(6)},
    **_resnets(50),
    **_resnets(101),
    "vgg16-dilated": Architecture(
        "vgg16.tv_in1k", build=DilatedVGG, mean=CAFFE_VGG_MEAN, std=CAFFE_STD, bgr=True, fresh=r"\.fc[67]\."
    ),
}
"""Short names; `timm:<name>` reaches every other pyramid of timm. `vgg16-dilated` is Undoing's."""


class Backbone(nn.Module):
    """The last four levels of a timm pyramid.

    Takes images normalised by `mean` and `std` (B, 3, H, W) and gives four maps (B, C_i, h_i, w_i), finest first.
    """

    def __init__(self, pyramid: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.pyramid = pyramid
        info: Any = pyramid.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())
        self.mean, self.std = mean, std
        self._channels_last = getattr(pyramid, "output_fmt", None) == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of normalised images, finest level first."""
        features: list[Tensor] = self.pyramid(images)
        if self._channels_last:
            features = [level.permute(0, 3, 1, 2).contiguous() for level in features]
        return features

    def checkpoint_activations(self) -> bool:
        """Let timm recompute activations in the backward pass: block by block where it can, else stage by stage.

        Weights, their names, gradients and random draws stay what they are. A recomputed BatchNorm moves its statistics
        again, unless the backward pass is run under `ssrseg.adapt.regularizer.still_statistics`. Returns whether the
        pyramid can.
        """
        able: list[Any] = [part for part in self.modules() if hasattr(part, "grad_checkpointing")]
        for part in [part for part in able if part is not self.pyramid] or able:
            part.grad_checkpointing = True
        return bool(able)


def architecture(name: str) -> Architecture:
    """Look up a backbone by name; raises `UserError` for a name that is neither ours nor timm's."""
    if name in BACKBONES:
        return BACKBONES[name]
    prefix, _, timm_name = name.partition(":")
    if prefix != "timm" or not timm.is_model(timm_name.partition(".")[0]):
        hint = f"Names are {', '.join(BACKBONES)} and timm:<name>"
        near = timm.list_models(f"*{(timm_name or name).partition('.')[0]}*")[:5]
        raise UserError(f"There is no backbone {name!r}. {hint}" + (f", for example timm:{near[0]}." if near else "."))
    return Architecture(timm_name)


def build_backbone(name: str, *, drop_path: float = 0.1, timm_weights: bool = False) -> Backbone:
    """Build a backbone with random weights, or with timm's published ones.

    Args:
        name: a key of `BACKBONES` or `timm:<name>`; the pyramid must have at least four levels.
        drop_path: rate of the deepest block, linear from 0 (architectures that have it).
        timm_weights: download timm's pretrained weights.

    Raises:
        UserError: unknown name, or fewer than four levels.
    """
    record = architecture(name)
    if record.build is None:
        pyramid = _timm_pyramid(name, record, drop_path, timm_weights)
        config = pyramid.default_cfg
    else:
        pyramid, config = record.build(), {}
        if timm_weights:  # those that timm's classification model has under the same names
            published: Any = timm.create_model(record.timm_name, pretrained=True)
            own, config = pyramid.state_dict(), published.default_cfg
            known = {key: value for key, value in published.state_dict().items() if key in own}
            pyramid.load_state_dict({**own, **known})
    if timm_weights and record.mean is not None:
        renormalise(pyramid, config, record.mean, record.std)
    if record.arrange is not None:
        record.arrange(pyramid)
    return Backbone(pyramid, tuple(record.mean or config["mean"]), tuple(record.std or config["std"]))


def _timm_pyramid(name: str, record: Architecture, drop_path: float, weights: bool) -> Any:
    options = dict(record.options, pretrained=weights, features_only=True)
    try:
        pyramid = _create(record.timm_name, drop_path, options)
        levels = len(pyramid.feature_info.channels())
        if levels > 4:
            last = tuple(pyramid.feature_info.out_indices[-4:])
            pyramid = _create(record.timm_name, drop_path, {**options, "out_indices": last})
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UserError(f"timm cannot build {record.timm_name!r} as a pyramid: {error}") from error
    if levels < 4:
        raise UserError(f"{name!r} has {levels} feature levels; the heads need four.")
    return pyramid


def _create(name: str, drop_path: float, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, drop_path_rate=drop_path, **options)
    except TypeError:  # the architecture has no stochastic depth
        return timm.create_model(name, **options)
