"""Convolutions in orders of arithmetic that suit a CPU: algebraically equal, and for inference only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.models import winograd


class DilatedDepthwise(nn.Module):
    """A dilated depthwise 3x3 convolution, computed as an undilated one on a view.

    In a channels-last map whose width is a multiple of the dilation d, pixels d apart in a row are neighbours once d
    pixels count as one of d * C channels; rows d apart are neighbours once d rows count as one. d columns of zeros keep
    the rows apart. oneDNN's kernels for dilated depthwise convolutions of such maps are many times slower.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = conv.dilation[0]
        assert conv.bias is not None  # the norm's
        self.register_buffer("weight", conv.weight.detach().repeat(self.dilation, 1, 1, 1))
        self.register_buffer("bias", conv.bias.detach().repeat(self.dilation))

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        (batch, channels, height, width), d = maps.shape, self.dilation
        padded = F.pad(maps, (0, -width % d + d, 0, -height % d)).permute(0, 2, 3, 1)
        rows, columns = padded.shape[1:3]
        folded = padded.reshape(batch, rows // d, columns, d * channels).permute(0, 3, 1, 2)
        result = F.conv2d(folded, self.weight, self.bias, padding=1, groups=d * channels)
        unfolded = result.permute(0, 2, 3, 1).reshape(batch, rows, columns, channels)
        return unfolded[:, :height, :width].permute(0, 3, 1, 2)


class Pointwise(nn.Module):
    """A 1x1 convolution as one matrix product; torch's own kernel for one image and one thread changes the layout."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # the norm's
        self.register_buffer("weight", conv.weight.detach().flatten(1))
        self.register_buffer("bias", conv.bias.detach().clone())

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W), channels last."""
        return F.linear(maps.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class Winograd(nn.Module):
    """A 3x3 convolution by `ssrseg.models.winograd`, its kernels transformed once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # the norm's
        self.register_buffer("weight", winograd.transform(conv.weight.detach().double()).to(conv.weight.dtype))
        self.register_buffer("bias", conv.bias.detach().clone())

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return winograd.convolve(maps.contiguous(), self.weight) + self.bias[:, None, None]
