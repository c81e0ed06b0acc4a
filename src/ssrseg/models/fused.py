"""A segmenter arranged for inference: the same function in fewer operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ssrseg.cpu import matmul
from ssrseg.cpu.convolutions import (
    DilatedDepthwise,
    Pointwise,
    Winograd,
    is_dilated_depthwise,
    is_pointwise,
    is_wide,
)
from ssrseg.cpu.interpolate import scaled
from ssrseg.models.heads import ConvNormAct, DAFormerHead
from ssrseg.models.segmenter import Segmenter


def deployed(segmenter: Segmenter) -> Segmenter:
    """A copy in eval mode, in float32, on the same device: norms lie in their convolutions, the head is levelwise.

    It computes what `segmenter` computes in eval mode, up to rounding, with operators that every runtime has. Its
    parameters have other names: it is not for training or saving.
    """
    arranged = copy.deepcopy(segmenter).float().eval().requires_grad_(False)
    arrange = ARRANGED.get(type(arranged.head))
    if arrange is not None:
        arranged.head = arrange(arranged.head)
    for block in arranged.modules():
        if isinstance(block, ConvNormAct):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block._modules["bn"] = nn.Identity()
    return arranged


def deployed_on_cpu(segmenter: Segmenter) -> Segmenter:
    """`deployed` for torch on a CPU: a channels-last backbone, and a head of `ssrseg.cpu.convolutions`."""
    arranged = deployed(segmenter)
    arranged.backbone.to(memory_format=torch.channels_last)
    matmul.arrange(arranged.backbone)
    for block in arranged.modules():
        if isinstance(block, ConvNormAct):
            block._modules["conv"] = _for_cpu(block.conv)
    return arranged


def _for_cpu(conv: nn.Conv2d) -> nn.Module:
    """What computes a convolution with bias faster, or itself."""
    if is_pointwise(conv):
        return Pointwise(conv)
    if is_wide(conv):
        return Winograd(conv)
    if is_dilated_depthwise(conv):
        return DilatedDepthwise(conv)
    return conv


class LevelwiseDAFormerHead(nn.Module):
    """`DAFormerHead` for inference: what is linear happens at each level's own size.

    A 1x1 convolution commutes with bilinear scaling, whose weights sum to one, so the 1x1 branch is a sum over levels,
    and its product with the level's projection is one matrix.
    """

    def __init__(self, head: DAFormerHead) -> None:
        super().__init__()
        self.embed, self.bottleneck, self.classify = head.embed, head.bottleneck, head.classify
        self.branches = nn.ModuleList(
            LevelwiseConv(head.embed, branch) if isinstance(branch, ConvNormAct) else branch for branch in head.branches
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i), finest first -> logits (B, K, h_0, w_0)."""
        # Pyramids give various layouts, and not the one for which most of the operations below are fastest.
        layout = torch.contiguous_format if features[0].device.type == "cpu" else torch.channels_last
        features = [level.contiguous(memory_format=layout) for level in features]
        size = features[0].shape[-2:]
        levels = [project(level) for project, level in zip(self.embed, features, strict=True)]
        fused = torch.cat([levels[0], *(scaled(level, size) for level in levels[1:])], dim=1)
        context = [branch(features if isinstance(branch, LevelwiseConv) else fused) for branch in self.branches]
        logits: Tensor = self.classify(self.bottleneck(torch.cat(context, dim=1).relu_()))
        return logits


class LevelwiseConv(nn.Module):
    """Projection of every level, scaling, stacking, 1x1 convolution and norm: one matrix per level, and a sum."""

    def __init__(self, embed: nn.ModuleList, block: ConvNormAct) -> None:
        super().__init__()
        conv = fuse_conv_bn_eval(block.conv, block.bn)
        assert conv.bias is not None  # the norm's
        bias = conv.bias.double()
        matrices = []
        for project, share in zip(embed, conv.weight[:, :, 0, 0].double().chunk(len(embed), dim=1), strict=True):
            linear = cast(nn.Linear, project)
            matrices.append((share @ linear.weight.double()).to(conv.weight.dtype)[:, :, None, None])
            bias = bias + share @ linear.bias.double()
        self.weights = nn.ParameterList(nn.Parameter(matrix, requires_grad=False) for matrix in matrices)
        self.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_i, h_i, w_i), finest first -> (B, D, h_0, w_0)."""
        size = features[0].shape[-2:]
        total = F.conv2d(features[0], self.weights[0], self.bias)
        for level, weight in zip(features[1:], list(self.weights)[1:], strict=True):
            total = total + scaled(F.conv2d(level, weight), size)
        return total


ARRANGED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {DAFormerHead: LevelwiseDAFormerHead}
"""Heads that have an arrangement of their own."""
