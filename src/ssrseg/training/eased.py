"""Convolutions that cost a CPU less in training: algebraically equal, but without second derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHED = 2**17
"""Numbers of a map that a core multiplies and sums at once: they should stay in its cache, yet be worth the call."""


class EasedDepthwise(nn.Conv2d):
    """A dilated depthwise convolution (square kernel, stride 1, size kept) with gradients of its own.

    oneDNN has no fast kernels for these gradients. The inputs' is a dilated depthwise convolution again, whose forward
    kernel is fast; the weight's is one product of shifted maps for each place of the kernel, a few channels at a time.
    """

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Is `conv` such a convolution?"""
        (kernel, wide), (dilation, across) = conv.kernel_size, conv.dilation
        depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.stride == (1, 1)
        square = kernel == wide and kernel % 2 == 1 and dilation == across > 1
        return depthwise and square and conv.padding == 2 * (dilation * (kernel // 2),)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(maps)
        result: Tensor = _Convolve.apply(maps, self.weight, self.dilation[0])
        return result


class EasedPointwise(nn.Conv2d):
    """A 1x1 convolution as one matrix product for each image; oneDNN's kernel gains nothing from a second thread."""

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Is `conv` such a convolution?"""
        return (
            conv.kernel_size == conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if not (self.training and maps.is_contiguous()):
            return super().forward(maps)
        weight = self.weight.flatten(1).expand(len(maps), -1, -1)
        product: Tensor = torch.bmm(weight, maps.flatten(2)).unflatten(2, maps.shape[-2:])
        return product


def ease(module: nn.Module) -> None:
    """Let the convolutions without bias in `module` that suit a class above be of it.

    Weights and their names stay, and in eval mode, from which models are exported, every one is what it was.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d and part.bias is None:
            for eased in (EasedDepthwise, EasedPointwise):
                if eased.suits(part):
                    part.__class__ = eased


def convolve(maps: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Dilated depthwise convolution of maps (B, C, H, W) with odd square kernels (C, 1, k, k); the size is kept."""
    return F.conv2d(maps, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation, groups=len(weight))


def weight_gradient(gradient: Tensor, maps: Tensor, kernel: int, dilation: int) -> Tensor:
    """Gradient at the weight (C, 1, k, k), of the gradient at the result and the maps, both (B, C, H, W)."""
    batch, channels, height, width = maps.shape
    at_once = max(1, CACHED * torch.get_num_threads() // (batch * height * width))
    offsets = [dilation * (place - kernel // 2) for place in range(kernel)]
    found = []
    for back, ahead in zip(gradient.split(at_once, dim=1), maps.split(at_once, dim=1), strict=True):
        found.append(torch.stack([_overlap(back, ahead, down, right) for down in offsets for right in offsets]))
    return torch.cat(found, dim=1).t().reshape(channels, 1, kernel, kernel)


def _overlap(back: Tensor, ahead: Tensor, down: int, right: int) -> Tensor:
    """(C,) sums of the products of `back` with what lies `down` and `right` of it in `ahead`."""
    height, width = back.shape[-2:]
    here = back[..., max(0, -down) : max(0, height - max(0, down)), max(0, -right) : max(0, width - max(0, right))]
    there = ahead[..., max(0, down) : max(0, height + min(0, down)), max(0, right) : max(0, width + min(0, right))]
    return (here * there).sum(dim=(0, 2, 3))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.dilation = dilation
        return convolve(maps, weight, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        wants_maps, wants_weight, _ = ctx.needs_input_grad
        return (
            convolve(gradient, weight.flip(2, 3), ctx.dilation) if wants_maps else None,
            weight_gradient(gradient, maps, weight.shape[-1], ctx.dilation) if wants_weight else None,
            None,
        )
