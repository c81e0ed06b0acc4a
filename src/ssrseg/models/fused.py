"""A segmenter fused for inference: the same function in fewer operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ssrseg.models.heads import ConvNormAct, DAFormerHead
from ssrseg.models.segmenter import Segmenter


def fuse(segmenter: Segmenter) -> Segmenter:
    """Copy a segmenter for inference: eval mode, float32, same device, norms folded into convolutions, levelwise head.

    The copy computes what `segmenter` computes in eval mode, up to rounding, with operators that every runtime has. Its
    parameters have other names: it is not for training or saving. For a CPU, `ssrseg.cpu.optimize` changes it further.
    """
    fused = copy.deepcopy(segmenter).float().eval().requires_grad_(False)
    if type(fused.head) is DAFormerHead:
        fused.head = LevelwiseDAFormerHead(fused.head)
    for block in fused.modules():
        if isinstance(block, ConvNormAct):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block._modules["bn"] = nn.Identity()
    return fused


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
        fused = torch.cat([levels[0], *(_resize(level, size) for level in levels[1:])], dim=1)
        context = [branch(features if isinstance(branch, LevelwiseConv) else fused) for branch in self.branches]
        logits: Tensor = self.classify(self.bottleneck(torch.cat(context, dim=1).relu_()))
        return logits


class LevelwiseConv(nn.Module):
    """Projection of every level, scaling, stacking, 1x1 convolution and norm: one matrix per level, and a sum."""

    def __init__(self, embed: nn.ModuleList, block: ConvNormAct) -> None:
        super().__init__()
        conv = fuse_conv_bn_eval(block.conv, block.bn)
        bias = cast(Tensor, conv.bias).double()  # the norm's
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
            total = total + _resize(F.conv2d(level, weight), size)
        return total


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
