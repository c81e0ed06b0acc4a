"""Convolutions in orders of arithmetic that suit a CPU: algebraically equal, and for inference only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4
"""Winograd's F(4x4, 3x3): outputs of a tile's side; a tile reads six pixels."""
BAND = 4
"""Rows of tiles at once: their transforms should stay in the cache, yet be enough rows for a matrix product."""
KERNEL_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G of Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.3."""


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
    """A 3x3 convolution with 36 multiplications for 16 outputs instead of 144: Winograd's F(4x4, 3x3).

    In float32 its relative error is about 2e-6; that of the direct sum is 3e-7.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # the norm's
        kernel, transform = conv.weight.detach().double(), torch.tensor(KERNEL_TRANSFORM, dtype=torch.float64)
        transform = transform.to(kernel.device)
        transformed = torch.einsum("ia,kcab,jb->ijck", transform, kernel, transform).flatten(0, 1)  # (36, C, K)
        self.register_buffer("weight", transformed.to(conv.weight.dtype).contiguous())
        self.register_buffer("bias", conv.bias.detach().clone())

    weight: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W), channels last."""
        batch, _, height, width = maps.shape
        down, across = -(-height // TILE), -(-width // TILE)  # tiles
        margins = (1, TILE * across - width + 1, 1, TILE * down - height + 1)
        padded = F.pad(maps, margins).permute(0, 2, 3, 1)  # (B, H', W', C)
        result = padded.new_empty(batch, TILE * down, TILE * across, self.weight.shape[-1])
        for first in range(0, down, BAND):
            rows = slice(TILE * first, TILE * min(first + BAND, down))
            self._band(padded[:, rows.start : rows.stop + 2], result[:, rows])
        return result[:, :height, :width].permute(0, 3, 1, 2)

    def _band(self, pixels: Tensor, result: Tensor) -> None:
        """Pixels (B, 4n + 2, W', C) -> result (B, 4n, 4t, K), written in place."""
        batch, height, width, outputs = result.shape
        down, across = height // TILE, width // TILE
        tiles = pixels.new_empty(6, 6, batch, down, across, pixels.shape[-1])
        for i, row in enumerate(_to_tile([pixels[:, i : i + height - 3 : TILE] for i in range(6)])):
            for j, cell in enumerate(_to_tile([row[:, :, j : j + width - 3 : TILE] for j in range(6)])):
                tiles[i, j] = cell
        products = torch.bmm(tiles.view(36, -1, pixels.shape[-1]), self.weight)
        products = products.view(6, 6, batch, down, across, outputs)
        places = result.view(batch, down, TILE, across, TILE, outputs)
        for i, row in enumerate(_from_tile(products.unbind(0))):
            for j, cell in enumerate(_from_tile(row.unbind(0))):
                torch.add(cell, self.bias, out=places[:, :, i, :, j])


def _to_tile(d: Sequence[Tensor]) -> list[Tensor]:
    """B^T d, with common terms computed once."""
    even, odd = d[4] - 4 * d[2], d[3] - 4 * d[1]
    difference, doubled = d[4] - d[2], 2 * (d[3] - d[1])
    return [
        4 * d[0] - 5 * d[2] + d[4],
        even + odd,
        even - odd,
        difference + doubled,
        difference - doubled,
        4 * d[1] - 5 * d[3] + d[5],
    ]


def _from_tile(m: Sequence[Tensor]) -> list[Tensor]:
    """A^T m."""
    sum12, difference12, sum34, difference34 = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + sum12 + sum34,
        difference12 + 2 * difference34,
        sum12 + 4 * sum34,
        difference12 + 8 * difference34 + m[5],
    ]
