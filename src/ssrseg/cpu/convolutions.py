"""Convolutions in orders of arithmetic that suit a CPU: algebraically equal, on maps in torch's plain layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.cpu import matmul, winograd

MARGIN = 6
"""Columns of zeros that oneDNN's fast depthwise kernel adds at most; beyond, another one is used, 3 times slower."""
GROUP = 128
"""Channels of a map that are widened at once."""
WIDE = 128
"""Channels in and out from which Winograd's transforms, which work channel by channel, pay."""
SPACIOUS = 32 * 32
"""Places of a map from which its products have enough columns to pay."""


def is_dilated_depthwise(conv: nn.Conv2d) -> bool:
    """Dilated, depthwise, square, with stride 1, and the size is kept."""
    (kernel, wide), (dilation, across) = conv.kernel_size, conv.dilation
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.stride == (1, 1)
    square = kernel == wide and kernel % 2 == 1 and dilation == across > 1
    kept = conv.padding == 2 * (dilation * (kernel // 2),) and conv.padding_mode == "zeros"
    return depthwise and square and kept


def is_pointwise(conv: nn.Conv2d) -> bool:
    """1x1, and no more than that."""
    single = conv.kernel_size == conv.stride == conv.dilation == (1, 1)
    return single and conv.groups == 1 and conv.padding == (0, 0)


def is_wide(conv: nn.Conv2d) -> bool:
    """3x3 with stride 1, of so many channels that Winograd pays; the size is kept."""
    plain = conv.stride == conv.dilation == conv.padding == (1, 1) and conv.kernel_size == (3, 3)
    return (
        plain and conv.groups == 1 and conv.padding_mode == "zeros" and min(conv.in_channels, conv.out_channels) >= WIDE
    )


def dilated_depthwise(maps: Tensor, weight: Tensor, dilation: int, bias: Tensor | None = None) -> Tensor:
    """Convolution of maps (B, C, H, W) with odd square kernels (C, 1, k, k), one to a channel; the size is kept.

    Columns of zeros that oneDNN's kernel does not accept are added to some channels at a time.
    """
    padding = dilation * (weight.shape[-1] // 2)
    if padding <= MARGIN:
        return F.conv2d(maps, weight, bias, 1, padding, dilation, len(weight))
    result, columns = torch.empty_like(maps), padding - MARGIN
    for first in range(0, len(weight), GROUP):
        some = slice(first, first + GROUP)
        wider, kernels = F.pad(maps[:, some], (columns, columns)), weight[some]
        added = None if bias is None else bias[some]
        result[:, some] = F.conv2d(wider, kernels, added, 1, (padding, MARGIN), dilation, len(kernels))
    return result


def pointwise(maps: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) and (K, C) -> (B, K, H, W): a product for each image, unless MKL lags far behind oneDNN.

    oneDNN's kernel for this layout gains nothing from a second thread.
    """
    if matmul.mkl_lags():
        return F.conv2d(maps, weight[:, :, None, None])
    product: Tensor = torch.bmm(weight.expand(len(maps), -1, -1), maps.flatten(2)).unflatten(2, maps.shape[-2:])
    return product


class DilatedDepthwise(nn.Module):
    """A dilated depthwise convolution for inference."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # the norm's
        self.dilation = conv.dilation[0]
        self.register_buffer("weight", conv.weight.detach().clone())
        self.register_buffer("bias", conv.bias.detach().clone())

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return dilated_depthwise(maps, self.weight, self.dilation, self.bias)


class Pointwise(nn.Module):
    """A 1x1 convolution for inference."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # the norm's
        self.register_buffer("weight", conv.weight.detach().flatten(1).clone())
        self.register_buffer("bias", conv.bias.detach()[:, None, None].clone())

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return pointwise(maps, self.weight).add_(self.bias)


class Winograd(nn.Module):
    """A 3x3 convolution for inference by `ssrseg.cpu.winograd`, its kernels transformed once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # the norm's
        self.register_buffer("weight", winograd.transform(conv.weight.detach().double()).to(conv.weight.dtype))
        self.register_buffer("bias", conv.bias.detach()[:, None, None].clone())

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return winograd.convolve(maps, self.weight).add_(self.bias)
