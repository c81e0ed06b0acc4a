"""Backbones: pyramids of features, all from timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
from torch import Tensor, nn

from ssrseg.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """How timm builds a backbone, and where its published ImageNet weights lie."""

    timm_name: str
    options: dict[str, Any] = field(default_factory=dict)
    hub: str | None = None
    """Hub id of the weights; timm's own when absent."""


def _mit(size: int) -> Architecture:
    # timm's PVT v2 is the Mix Transformer, but its B0..B4 widen the MLPs of the first two stages.
    options = {} if size == 5 else {"mlp_ratios": (4, 4, 4, 4)}
    return Architecture(f"pvt_v2_b{size}", options, hub=f"nvidia/mit-b{size}")


BACKBONES: dict[str, Architecture] = {f"mit_b{size}": _mit(size) for size in range(6)} | {
    "resnet101v1c": Architecture("resnet101c", {"output_stride": 8}),
}
"""Short names; `timm:<name>` reaches every other pyramid of timm."""


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


def architecture(name: str) -> Architecture:
    """The record behind a backbone's name; raises `UserError` for a name that is neither ours nor timm's."""
    if name in BACKBONES:
        return BACKBONES[name]
    prefix, _, timm_name = name.partition(":")
    if prefix != "timm" or not timm.is_model(timm_name.partition(".")[0]):
        hint = f"Names are {', '.join(BACKBONES)} and timm:<name>"
        near = timm.list_models(f"*{(timm_name or name).partition('.')[0]}*")[:5]
        raise UserError(f"There is no backbone {name!r}. {hint}" + (f", for example timm:{near[0]}." if near else "."))
    return Architecture(timm_name)


def build_backbone(name: str, *, drop_path: float = 0.1, in_channels: int = 3, timm_weights: bool = False) -> Backbone:
    """A backbone with random weights, or with timm's published ones.

    Args:
        name: a key of `BACKBONES` or `timm:<name>`; the pyramid must have at least four levels.
        drop_path: rate of the deepest block, linear from 0 (architectures that have it).
        in_channels: channels of the images.
        timm_weights: download timm's pretrained weights.

    Raises:
        UserError: unknown name, or fewer than four levels.
    """
    record = architecture(name)
    options = dict(record.options, in_chans=in_channels, pretrained=timm_weights, features_only=True)
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
    config: Any = pyramid.default_cfg
    return Backbone(pyramid, tuple(config["mean"]), tuple(config["std"]))


def _create(name: str, drop_path: float, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, drop_path_rate=drop_path, **options)
    except TypeError:  # the architecture has no stochastic depth
        return timm.create_model(name, **options)
