"""Convolutions in other orders of arithmetic: algebraically equal, on maps in torch's plain layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    """Tell whether a convolution is dilated, depthwise, square, with stride 1, and keeps the size."""
    (kernel, wide), (dilation, across) = conv.kernel_size, conv.dilation
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.stride == (1, 1)
    square = kernel == wide and kernel % 2 == 1 and dilation == across > 1
    kept = conv.padding == 2 * (dilation * (kernel // 2),) and conv.padding_mode == "zeros"
    return depthwise and square and kept


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution is 1x1 without stride, padding and groups."""
    single = conv.kernel_size == conv.stride == conv.dilation == (1, 1)
    return single and conv.groups == 1 and conv.padding == (0, 0)


def is_wide(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution is 3x3 with stride 1, keeps the size, and is wide enough for Winograd to pay."""
    plain = conv.stride == conv.dilation == conv.padding == (1, 1) and conv.padding_mode == "zeros"
    wide = min(conv.in_channels, conv.out_channels) >= WIDE
    return plain and wide and conv.groups == 1 and conv.kernel_size == (3, 3)


def is_patches(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution's patches neither overlap nor leave gaps."""
    apart = conv.stride == conv.kernel_size != (1, 1) and conv.padding == (0, 0) and conv.dilation == (1, 1)
    return apart and conv.groups == 1


def dilated_depthwise(maps: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve maps (B, C, H, W) with odd square kernels (C, 1, k, k), one to a channel; the size is kept.

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


def pointwise(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute a 1x1 convolution of (B, C, H, W) by (K, C) as a product for each image, where MKL is fast.

    oneDNN's kernel for this layout gains nothing from a second thread.
    """
    if matmul.mkl_lags():
        return F.conv2d(maps, weight[:, :, None, None], bias)
    product: Tensor = torch.bmm(weight.expand(len(maps), -1, -1), maps.flatten(2)).unflatten(2, maps.shape[-2:])
    return product if bias is None else product.add_(bias[:, None, None])


class FixedConv2d(nn.Module):
    """A convolution for inference: `compute` of maps (B, C, H, W), a weight, and the bias of each channel."""

    def __init__(self, compute: Callable[..., Tensor], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return self.compute(maps, self.weight, self.bias)


def for_inference(conv: nn.Conv2d) -> nn.Module:
    """Build the module that computes a convolution faster, or give the convolution itself."""
    if is_pointwise(conv):
        return FixedConv2d(pointwise, conv.weight.flatten(1), conv.bias)
    if is_wide(conv):
        transformed = winograd.transform(conv.weight.detach().double()).to(conv.weight.dtype)
        return FixedConv2d(winograd.convolve, transformed, conv.bias)
    if is_dilated_depthwise(conv):
        return FixedConv2d(partial(dilated_depthwise, dilation=conv.dilation[0]), conv.weight, conv.bias)
    return conv
