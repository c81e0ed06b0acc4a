"""Layers for training, with gradients of their own: algebraically equal, but without second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssrseg.cpu import convolutions, matmul, winograd
from ssrseg.models.heads import Resize

CACHED = 2**17
"""Numbers of a map that a core multiplies and sums at once: few enough for its cache, enough for the call to pay."""


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A dilated depthwise convolution with gradients of its own, for which oneDNN has no fast kernels.

    The inputs' is a dilated depthwise convolution again; the weight's is one product of shifted maps for each place of
    the kernel, a few channels at a time.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(maps)
        result: Tensor = _DilatedDepthwise.apply(maps, self.weight, self.dilation[0])
        return result


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as one matrix product for each image."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if not (self.training and maps.is_contiguous()):
            return super().forward(maps)
        return convolutions.pointwise(maps, self.weight.flatten(1))


class PatchConv2d(nn.Conv2d):
    """A convolution whose patches do not overlap, on channels-last maps: one matrix product.

    SegFormer's attention shortens keys and values by it. oneDNN's backward takes twice as long where maps are small.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H / k, W / k), channels last."""
        (batch, channels, height, width), (tall, wide) = maps.shape, self.kernel_size
        pixels = maps.permute(0, 2, 3, 1)
        if not (self.training and pixels.is_contiguous()) or height % tall or width % wide:
            return super().forward(maps)
        patches = pixels.view(batch, height // tall, tall, width // wide, wide, channels).permute(0, 1, 3, 2, 4, 5)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return matmul.linear(patches.flatten(3), weight, self.bias).permute(0, 3, 1, 2)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of many channels on maps that are not small, and its gradients, by `ssrseg.cpu.winograd`."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if not self.training or maps.shape[-2:].numel() < convolutions.SPACIOUS:
            return super().forward(maps)
        result: Tensor = _Winograd.apply(maps, self.weight)
        return result


class TrainedLinear(matmul.ConvolvedLinear):
    """A linear layer in the library that multiplies faster here; torch's in eval mode."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., D)."""
        return super().forward(tokens) if self.training else nn.Linear.forward(self, tokens)


class ProductResize(Resize):
    """`Resize` with another gradient.

    Interpolation is A x B^T with matrices of the two axes' weights, so its gradient is A^T g B. torch's own adds every
    gradient to four pixels, one after the other, which takes 3 to 15 times as long on a CPU. (A plan for another
    device, made on CPU tensors without data, counts these products too: 0.3% of a step.)
    """

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        if torch.is_grad_enabled() and maps.requires_grad and not torch.compiler.is_compiling():
            result: Tensor = _Resize.apply(maps, tuple(size), self.align_corners)
            return result
        return super().forward(maps, size)


CONVOLUTIONS: dict[type[nn.Conv2d], Callable[[nn.Conv2d], bool]] = {
    PatchConv2d: convolutions.is_patches,
    DilatedDepthwiseConv2d: lambda conv: conv.bias is None and convolutions.is_dilated_depthwise(conv),
    PointwiseConv2d: lambda conv: conv.bias is None and convolutions.is_pointwise(conv),
    WinogradConv2d: lambda conv: conv.bias is None and convolutions.is_wide(conv),
}
"""Class -> whether it computes a convolution."""


def class_for(part: nn.Module, layers: bool) -> type[nn.Module]:
    """Find the class here that computes what `part` does, or its own; with `layers` off, only that of `Resize`."""
    kind = type(part)
    if layers and kind is nn.Conv2d:
        return next((layer for layer, suits in CONVOLUTIONS.items() if suits(cast(nn.Conv2d, part))), kind)
    if layers and kind is nn.Linear:
        return TrainedLinear
    return ProductResize if kind is Resize else kind


def depthwise_weight_gradient(gradient: Tensor, maps: Tensor, kernel: int, dilation: int) -> Tensor:
    """Compute the gradient at the weight (C, 1, k, k) from that at the result and the maps, both (B, C, H, W)."""
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


class _DilatedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.dilation = dilation
        return convolutions.dilated_depthwise(maps, weight, None, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        wants_maps, wants_weight, _ = ctx.needs_input_grad
        return (
            convolutions.dilated_depthwise(gradient, weight.flip(2, 3), None, ctx.dilation) if wants_maps else None,
            depthwise_weight_gradient(gradient, maps, weight.shape[-1], ctx.dilation) if wants_weight else None,
            None,
        )


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return winograd.convolve(maps, winograd.transform(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        wants_maps, wants_weight = ctx.needs_input_grad
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            winograd.convolve(gradient, winograd.transform(turned)) if wants_maps else None,
            winograd.weight_gradient(gradient, maps) if wants_weight else None,
        )


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.given, ctx.align_corners = maps.shape[-2:], align_corners
        return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (height, width), (tall, wide) = ctx.given, gradient.shape[-2:]
        down = _weights(height, tall, gradient, ctx.align_corners)
        across = _weights(width, wide, gradient, ctx.align_corners)
        return down @ (gradient @ across.t()), None, None


def _weights(given: int, wanted: int, like: Tensor, align_corners: bool) -> Tensor:
    """Weight of each of the given places in each of the wanted ones: (given, wanted)."""
    places = torch.eye(given, dtype=like.dtype, device=like.device)
    return F.interpolate(places[None], wanted, mode="linear", align_corners=align_corners)[0]
