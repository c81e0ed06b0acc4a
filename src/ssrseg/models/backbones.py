"""Backbones: pyramids of features, all from timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import timm
import torch.nn.functional as F
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
from ssrseg.models.plain import Taps, plain_stride
from ssrseg.models.pyramids import ImageSizes, Size, create_pyramid, options_for

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
    plain: bool = False
    """A plain ViT, of which a pyramid is made."""
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


def _dino() -> dict[str, Architecture]:
    """DINOv2 and DINOv3 of three sizes."""
    versions = {"dinov2": "vit_{}_patch14_dinov2.lvd142m", "dinov3": "vit_{}_patch16_dinov3.lvd1689m"}
    return {
        f"{version}-{size[0]}": Architecture(name.format(size), plain=True, fresh=r"^backbone\.up\.")
        for version, name in versions.items()
        for size in ("small", "base", "large")
    }


BACKBONES: dict[str, Architecture] = {
    **{f"mit_b{size}": _mit(size) for size in range(6)},
    **_dino(),
    **_resnets(50),
    **_resnets(101),
    "vgg16-dilated": Architecture(
        "vgg16.tv_in1k", build=DilatedVGG, mean=CAFFE_VGG_MEAN, std=CAFFE_STD, bgr=True, fresh=r"\.fc[67]\."
    ),
}
"""Short names; `timm:<name>` reaches every other pyramid and plain ViT of timm. `vgg16-dilated` is Undoing's."""


class Backbone(nn.Module):
    """The last four levels of a timm pyramid.

    Takes images normalised by `mean` and `std` (B, C, H, W) and gives four maps (B, C_i, h_i, w_i), finest first.
    Images that do not have one of its `sizes` are padded with the mean colour, and the maps cut back; for plain ViTs
    they are resized.
    """

    def __init__(
        self,
        pyramid: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        sizes: ImageSizes = ImageSizes(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.pyramid = pyramid
        info: Any = pyramid.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[float, ...] = tuple(info.reduction())
        self.mean, self.std = mean, std
        self._channels_last = getattr(pyramid, "output_fmt", None) == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of normalised images, finest level first; raises `UserError` for images that are too large."""
        height, width = images.shape[-2:]
        multiple, largest = self.sizes.multiple, self.sizes.largest
        if largest is not None and not fits((height, width), largest):
            fixed = f"train it with loader.crop=[{largest[0]}, {largest[1]}] or smaller, as it has this size alone."
            raise UserError(
                f"This backbone takes images of up to {largest[0]}x{largest[1]} pixels, found {height}x{width}: "
                "give it windows of the image (inference.mode=slide), or "
                + ("train it with a larger loader.crop." if self.sizes.built else fixed)
            )
        if self.sizes.scale is not None and (seen := self.sizes.seen((height, width))) != (height, width):
            images = F.interpolate(images, seen, mode="bilinear", align_corners=False)
        if self.sizes.scale is not None or multiple == (1, 1):
            return self._levels(images)
        levels = self._levels(F.pad(images, (0, -width % multiple[1], 0, -height % multiple[0])))
        pairs = zip(levels, self.strides, strict=True)
        return [level[..., : int(-(-height // stride)), : int(-(-width // stride))] for level, stride in pairs]

    def _levels(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.pyramid(images)
        if self._channels_last:
            features = [level.permute(0, 3, 1, 2).contiguous() for level in features]
        return features

    def checkpoint_activations(self) -> bool:
        """Let timm recompute activations in the backward pass: block by block where it can, else stage by stage.

        Weights, their names, gradients and random draws stay what they are. A recomputed BatchNorm moves its statistics
        again, unless the backward pass is run under `ssrseg.adapt.norms.still_statistics`. Returns whether the
        pyramid can.
        """
        able: list[Any] = [part for part in self.modules() if hasattr(part, "grad_checkpointing")]
        for part in [part for part in able if part is not self.pyramid] or able:
            part.grad_checkpointing = True
        return bool(able)


def fits(size: Sequence[int], largest: Size) -> bool:
    """Tell whether a (height, width) exceeds another nowhere."""
    return size[0] <= largest[0] and size[1] <= largest[1]


def architecture(name: str) -> Architecture:
    """Look up a backbone by name; raises `UserError` for a name that is neither ours nor timm's."""
    if name in BACKBONES:
        return BACKBONES[name]
    prefix, _, timm_name = name.partition(":")
    if prefix != "timm" or not timm.is_model(timm_name.partition(".")[0]):
        hint = f"Names are {', '.join(BACKBONES)} and timm:<name>"
        stem = (timm_name or name).partition(".")[0]
        near = [timm.list_models(pattern)[:3] for pattern in (f"{stem}*tiny*", f"{stem}*", f"*{stem}*")]
        for each in dict.fromkeys(chain.from_iterable(near)):
            with suppress(UserError):  # not every model has the levels of a backbone
                options_for(each, None)
                hint += f", for example timm:{each}"
                break
        raise UserError(f"There is no backbone {name!r}. {hint}.")
    return Architecture(timm_name)


def is_plain(name: str) -> bool:
    """Tell whether a backbone is a plain ViT, of which a pyramid is made; raises `UserError` for an unknown name."""
    record = architecture(name)
    return record.plain if name in BACKBONES else plain_stride(record.timm_name) is not None


def taps_for(name: str, head: str, taps: Taps | None) -> Taps | None:
    """Choose a plain ViT's taps for a head; raises `UserError` where they do not suit it."""
    if head != "upscale" or not is_plain(name):
        return taps
    if taps not in (None, "raw"):
        raise UserError(f"The head upscale takes a ViT's tokens, found model.taps={taps}: set model.taps=null.")
    return "raw"


def build_backbone(
    name: str,
    *,
    drop_path: float | None = None,
    timm_weights: bool = False,
    size: Size | None = None,
    taps: Taps | None = None,
    scale: float | None = None,
) -> Backbone:
    """Build a backbone with random weights, or with timm's published ones.

    Args:
        name: a key of `BACKBONES` or `timm:<name>`; a pyramid of at least four levels, or a plain ViT.
        drop_path: rate of the deepest block, linear from 0 (architectures that have it); when absent what its kind is
            fine-tuned with, 0 for plain ViTs and 0.1 for pyramids.
        timm_weights: download timm's pretrained weights; timm resamples those that depend on the image's size.
        size: (height, width) of the images that it is for; only used where the architecture depends on it.
        taps: what a plain ViT's levels are made of (`PlainPyramid`).
        scale: a plain ViT sees images so many times as large (`ImageSizes`); as they are when absent.

    Raises:
        UserError: unknown name, neither pyramid nor plain ViT, no size at which it runs, or an option that it has not.
    """
    record = architecture(name)
    measured = name not in BACKBONES or record.plain
    options, sizes = options_for(record.timm_name, size) if measured else (record.options, ImageSizes())
    patch = plain_stride(record.timm_name) if measured else None
    if taps is not None and patch is None:
        raise UserError(f"{name} is no plain ViT, and has levels of its own: set model.taps=null.")
    if scale is not None and sizes.scale is None:
        raise UserError(f"{name} is no plain ViT that takes every size: set model.image_scale=null.")
    if scale is not None:
        sizes = replace(sizes, scale=scale)
    if patch is not None and taps == "raw" and sizes.scale is not None:
        sizes = replace(sizes, multiple=(patch, patch))
    if record.build is None:
        rate = (0.1 if patch is None else 0.0) if drop_path is None else drop_path
        pyramid = create_pyramid(record.timm_name, options, rate, weights=timm_weights, taps=taps or "last")
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
    return Backbone(pyramid, tuple(record.mean or config["mean"]), tuple(record.std or config["std"]), sizes)
