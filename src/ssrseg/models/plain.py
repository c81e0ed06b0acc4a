"""Plain vision transformers, which have one stride, as pyramids of four levels."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from functools import lru_cache
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
from timm.models import FeatureInfo, is_model_in_modules
from torch import Tensor, nn

Taps = Literal["last", "four", "raw"]


MODULES = {"beit", "deit", "eva", "vision_transformer", "vision_transformer_relpos", "vision_transformer_sam"}
"""Of timm: where plain transformers are."""


@lru_cache
def plain_stride(name: str) -> int | None:
    """Give the patch size of timm's `name` if it is a plain vision transformer."""
    if not is_model_in_modules(name, MODULES):
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    return int(model.feature_info[-1]["reduction"])


class PlainPyramid(nn.Module):
    """A simple feature pyramid (ViTDet, section 3): strides p/4, p/2, p and 2p of a transformer with patches of p.

    The finer levels are made by transposed convolutions, the coarsest one by a maximum; channels are C/4, C/2, C, C.
    With `raw` taps nothing is made, and all four are of stride p.

    Args:
        model: timm's; its head is removed.
        patch: its p.
        taps: what the levels are made of: all of the `last` block's tokens, or of those after each quarter of the
            blocks, the finest level of the first (`four`; `raw`: these as they are). The model's last norm is applied
            to all.
    """

    def __init__(self, model: Any, patch: int, taps: Taps = "last") -> None:
        super().__init__()
        depth, width = len(model.blocks), int(model.num_features)
        self.after = [depth - 1] if taps == "last" else [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        model.prune_intermediate_layers([depth - 1], prune_norm=False, prune_head=True)
        self.model, self.default_cfg = model, model.default_cfg
        self.up = nn.ModuleList([] if taps == "raw" else _up(width))
        channels: tuple[int, ...] = (width,) * 4
        strides: tuple[float, ...] = (patch,) * 4
        if taps != "raw":
            channels, strides = (width // 4, width // 2, width, width), (patch / 4, patch / 2, patch, 2 * patch)
        levels = [
            {"num_chs": each, "reduction": stride, "module": ""} for each, stride in zip(channels, strides, strict=True)
        ]
        self.feature_info = FeatureInfo(levels, (0, 1, 2, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), whose sides are multiples of 2p (raw: of p) -> four maps, finest first."""
        taps: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.after, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        if not self.up:
            return taps
        first, second, third, fourth = taps if len(taps) == 4 else 4 * taps
        return [self.up[0](first), self.up[1](second), third, F.max_pool2d(fourth, 2)]

    def at(self, size: tuple[int, int]) -> PlainPyramid:
        """Copy it for images of one (height, width), with the positions interpolated once and for all."""
        fixed = deepcopy(self)
        if hasattr(fixed.model, "set_input_size"):
            fixed.model.set_input_size(img_size=size)
        elif (known := getattr(fixed.model, "pos_embed", None)) is not None:  # SAM's
            step = int(self.feature_info.reduction()[2])
            grid = [size[0] // step, size[1] // step]
            fixed.model.pos_embed = nn.Parameter(resample_abs_pos_embed_nhwc(known.detach(), grid))
        return fixed


def _up(width: int) -> list[nn.Module]:
    """Make the layers that double a map twice, and once."""
    twice: list[tuple[str, nn.Module]] = [
        ("first", nn.ConvTranspose2d(width, width // 2, 2, 2)),
        ("norm", LayerNorm2d(width // 2)),
        ("act", nn.GELU()),
        ("second", nn.ConvTranspose2d(width // 2, width // 4, 2, 2)),
    ]
    return [nn.Sequential(OrderedDict(twice)), nn.ConvTranspose2d(width, width // 2, 2, 2)]
