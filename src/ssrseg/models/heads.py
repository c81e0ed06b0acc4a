"""Decoder heads: four feature maps in, logits at the finest map's resolution out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssrseg.errors import UserError


class Resize(nn.Module):
    """Bilinear interpolation of maps to a size, without weights."""

    def __init__(self, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=self.align_corners)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU unless `act` is off; Kaiming initialisation over `fan_out`.

    For a depthwise convolution the fan is not divided by the groups, as in the references.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (outputs * kernel**2)))
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 and pointwise convolution, each with norm and activation; the last one unless `act` is off."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int, act: bool = True) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(inputs, inputs, 3, dilation=dilation, groups=inputs)
        self.pointwise = ConvNormAct(inputs, outputs, 1, act=act)


class PixelLinear(nn.Linear):
    """A linear layer on the channels of a map: (B, C, h, w) -> (B, D, h, w)."""

    def forward(self, level: Tensor) -> Tensor:
        """Project every pixel."""
        return F.conv2d(level, self.weight[:, :, None, None], self.bias)


class Head(nn.Module):
    """A decoder whose last layer is `classify`."""

    classify: nn.Conv2d

    @property
    def classifiers(self) -> tuple[nn.Conv2d, ...]:
        """The layers whose sum is the logits."""
        return (self.classify,)


class DAFormerHead(Head):
    """Context-aware fusion: per-level projection, then a depthwise-separable ASPP (DAFormer, section 3.1)."""

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.ModuleList(PixelLinear(inputs, channels) for inputs in in_channels)
        self.resize = Resize()
        fused = channels * len(in_channels)
        self.branches = nn.ModuleList(
            ConvNormAct(fused, channels, 1, act=False)
            if dilation == 1
            else SeparableConv(fused, channels, dilation=dilation, act=False)
            for dilation in dilations
        )
        self.bottleneck = ConvNormAct(channels * len(dilations), channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = _classifier(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i), finest first -> logits (B, K, h_0, w_0)."""
        fused = _project_and_stack(features, self.embed, self.resize)
        # Activated together: activated one by one, all of them would be kept for the backward pass, and copies too.
        context = torch.cat([branch(fused) for branch in self.branches], dim=1).relu_()
        logits: Tensor = self.classify(self.dropout(self.bottleneck(context)))
        return logits


class SegFormerHead(Head):
    """All-MLP decoder: per-level projection, one 1x1 fusion (SegFormer, section 3.2)."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 768, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.embed = nn.ModuleList(PixelLinear(inputs, channels) for inputs in in_channels)
        self.resize = Resize()
        self.fuse = ConvNormAct(channels * len(in_channels), channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i), finest first -> logits (B, K, h_0, w_0)."""
        logits: Tensor = self.classify(self.dropout(self.fuse(_project_and_stack(features, self.embed, self.resize))))
        return logits


class ScaleAttentionHead(SegFormerHead):
    """Per-level projection and one 1x1 fusion, as wide as the DAFormer head; it starts even (HRDA, section 3.3)."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__(in_channels, num_classes, channels=channels, dropout=dropout)
        self.classify = _classifier(channels, num_classes)


class DeepLabV2Head(nn.Module):
    """Parallel dilated convolutions of the last level, summed.

    Two branches, as nearly all published "DeepLabV2" adaptation results really ran; four (6, 12, 18, 24) as in the
    paper, and in Undoing. Biases start at zero in MIC's code, and as torch draws them in Undoing's.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        dilations: Sequence[int] = (6, 12),
        zero_bias: bool = True,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _classifier(in_channels[-1], num_classes, kernel=3, dilation=dilation, zero_bias=zero_bias)
            for dilation in dilations
        )

    @property
    def classifiers(self) -> tuple[nn.Conv2d, ...]:
        """The layers whose sum is the logits."""
        return tuple(cast(nn.Conv2d, branch) for branch in self.branches)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i) -> logits (B, K, h_3, w_3)."""
        return torch.stack([branch(features[-1]) for branch in self.branches]).sum(dim=0)


class AttentiveASPPHead(Head):
    """Five branches over the last level, weighted by squeeze and excitation: Undoing's "modified ASPP"."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        stacked = 5 * channels
        groups = math.gcd(32, channels)  # fewer than 32 where the head is narrow
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels[-1], channels, kernel, padding=dilation * (kernel // 2), dilation=dilation),
                nn.GroupNorm(groups, channels),
                nn.ReLU(inplace=True),
            )
            for kernel, dilation in ((1, 1), (3, 6), (3, 12), (3, 18), (3, 24))
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(stacked, stacked // 16, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(stacked // 16, stacked, 1),
            nn.Sigmoid(),
        )
        fuse = nn.Conv2d(stacked, channels, 3, padding=1)
        nn.init.kaiming_normal_(fuse.weight)
        nn.init.zeros_(cast(Tensor, fuse.bias))
        self.fuse = nn.Sequential(fuse, nn.GroupNorm(groups, channels), nn.Dropout2d(dropout))
        self.classify = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.001)
        # The published layer has no bias: this one stays zero unless the class priors are corrected.
        nn.init.zeros_(cast(Tensor, self.classify.bias)).requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i) -> logits (B, K, h_3, w_3)."""
        context = torch.cat([branch(features[-1]) for branch in self.branches], dim=1)
        logits: Tensor = self.classify(self.fuse(context * self.squeeze(context)))
        return logits


class UpscaleHead(Head):
    """Two transposed convolutions of the last level, to four times its size (VFM-UDA's decoder for a plain ViT)."""

    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width, half, quarter = (in_channels[-1] // share for share in (1, 2, 4))
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2, bias=False),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2, bias=False),
            LayerNorm2d(quarter),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            LayerNorm2d(quarter),
        )
        self.classify = nn.Conv2d(quarter, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.1)
        # The published layer has no bias: this one stays zero unless the class priors are corrected.
        nn.init.zeros_(cast(Tensor, self.classify.bias)).requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i) -> logits (B, K, 4 h_3, 4 w_3)."""
        logits: Tensor = self.classify(self.upscale(features[-1]))
        return logits


def _project_and_stack(features: Sequence[Tensor], embed: nn.ModuleList, resize: nn.Module) -> Tensor:
    size = features[0].shape[-2:]
    finest, *coarser = (project(level) for project, level in zip(embed, features, strict=True))
    return torch.cat([finest, *(resize(level, size) for level in coarser)], dim=1)


def _classifier(
    channels: int, num_classes: int, *, kernel: int = 1, dilation: int = 1, zero_bias: bool = True
) -> nn.Conv2d:
    classify = nn.Conv2d(channels, num_classes, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.normal_(classify.weight, std=0.01)
    if zero_bias:
        nn.init.zeros_(cast(Tensor, classify.bias))
    return classify


HEADS: dict[str, Callable[..., nn.Module]] = {
    "daformer": DAFormerHead,
    "segformer": SegFormerHead,
    "deeplabv2": DeepLabV2Head,
    "deeplabv2-whole": partial(DeepLabV2Head, dilations=(6, 12, 18, 24), zero_bias=False),
    "aspp-attentive": AttentiveASPPHead,
    "upscale": UpscaleHead,
}
"""Name -> head, which takes the channels of each level, the number of classes, and what `build_head` takes."""
OF_DEEPEST = ("deeplabv2", "deeplabv2-whole", "aspp-attentive")
"""Heads whose logits have the resolution of the deepest level."""


def logit_stride(head: str, strides: Sequence[float]) -> float:
    """Compute the stride of a head's logits from those of the levels: the finest one's for most heads."""
    return strides[-1] / 4 if head == "upscale" else strides[-1 if head in OF_DEEPEST else 0]


def build_head(
    name: str, in_channels: Sequence[int], num_classes: int, *, channels: int | None = None, dropout: float = 0.1
) -> nn.Module:
    """Build the head `name` of `HEADS` for levels of these channels, finest first; raises `UserError` for another name.

    `channels` is its width, the published one when absent; `dropout` acts before the classifier. DeepLabV2's heads and
    `upscale` have neither.
    """
    if name not in HEADS:
        raise UserError(f"There is no head {name!r}: choose one of {', '.join(HEADS)}.")
    options: dict[str, int | float] = {} if name.startswith(("deeplabv2", "upscale")) else {"dropout": dropout}
    if channels is not None and options:
        options["channels"] = channels
    return HEADS[name](in_channels, num_classes, **options)


def build_attention(
    head: str, in_channels: Sequence[int], outputs: int, *, channels: int | None = None, dropout: float = 0.1
) -> nn.Module:
    """Build the scale attention beside the head `head`: `outputs` maps of its resolution, before the sigmoid (HRDA)."""
    if head in OF_DEEPEST:
        return HEADS[head if head.startswith("deeplabv2") else "deeplabv2"](in_channels, outputs)
    return ScaleAttentionHead(in_channels, outputs, channels=channels or 256, dropout=dropout)
