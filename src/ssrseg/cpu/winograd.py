"""3x3 convolutions with 36 multiplications for 16 outputs instead of 144: Winograd's F(4x4, 3x3).

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.3: an output tile Y of 4x4
pixels is A^T [(G g G^T) * (B^T d B)] A, with the kernel g and the 6x6 input pixels d that the tile sees. The product is
one number for each of 36 places, summed over channels: 36 matrix products. B^T d B of all tiles is a convolution of
every channel alone, with 36 kernels of 6x6 and stride 4, for which a CPU has fast kernels in torch's plain layout.

In float32 the relative error is about 4e-6; that of the direct sum is 3e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.cpu import matmul

TILE = 4
"""Outputs of a tile's side."""
AT_ONCE = 256
"""Tiles transformed at once: enough for the products, and their transforms take little memory beside the maps."""
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_B_T = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_A_T = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def transform(weight: Tensor) -> Tensor:
    """Transform kernels (K, C, 3, 3) -> (36, K, C)."""
    outputs, inputs = weight.shape[:2]
    return (_both_sides(_G, weight) @ weight.reshape(-1, 9).t()).view(36, outputs, inputs)


def convolve(maps: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve maps (B, C, H, W), zero-padded, with transformed kernels (36, K, C) -> (B, K, H, W)."""
    (height, width), outputs = maps.shape[-2:], transformed.shape[1]
    down, across = -(-height // TILE), -(-width // TILE)
    result = maps.new_empty(len(maps), outputs, TILE * down, TILE * across)
    tiles = result.view(-1, outputs, down, TILE, across, TILE).permute(0, 3, 5, 1, 2, 4)
    gather, look = _both_sides(_A_T, maps), _both_sides(_B_T, maps)
    for index, image in enumerate(maps):
        for rows in _bands(height, width):
            found = matmul.batched(transformed, _tiles(image, rows, look, 1).transpose(0, 1))
            tiles[index, ..., rows, :] = (gather @ found.flatten(1)).view(TILE, TILE, outputs, -1, across)
    if result.shape[-2:] != maps.shape[-2:]:
        result = result[..., :height, :width].contiguous()  # no view: what follows may work in place
    return result if bias is None else result.add_(bias[:, None, None])


def weight_gradient(gradient: Tensor, maps: Tensor) -> Tensor:
    """Compute the gradient at kernels (K, C, 3, 3) from that at the result (B, K, H, W) and the maps (B, C, H, W)."""
    look, spread = _both_sides(_B_T, maps), _both_sides(_A_T, maps).t()
    bands = (
        matmul.batched(_tiles(back, rows, spread, 0).transpose(0, 1), _tiles(image, rows, look, 1).permute(1, 2, 0))
        for image, back in zip(maps, gradient, strict=True)
        for rows in _bands(*maps.shape[-2:])
    )
    total = reduce(Tensor.add_, bands)
    return (_both_sides(_G, maps).t() @ total.flatten(1)).view(3, 3, *total.shape[1:]).permute(2, 3, 0, 1)


def _both_sides(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Write M x M^T, with M (m, n), as one matrix (m m, n n) on x as a column."""
    square = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(square, square).to(like)


def _bands(height: int, width: int) -> Iterator[slice]:
    """Yield rows of tiles, some at once."""
    down, at_once = -(-height // TILE), max(1, AT_ONCE * TILE // width)
    for first in range(0, down, at_once):
        yield slice(first, min(first + at_once, down))


def _tiles(image: Tensor, rows: slice, matrix: Tensor, margin: int) -> Tensor:
    """Apply `matrix` (36, n) to the n pixels of each tile of these rows, margin included: (C, H, W) -> (C, 36, tiles).

    It is B^T d B of the pixels that a tile sees, with a margin of 1, or A y A^T of its own.
    """
    height, width = image.shape[-2:]
    first, last, side = TILE * rows.start - margin, TILE * rows.stop + margin, TILE + 2 * margin
    zeros = (margin, -width % TILE + margin, max(0, -first), max(0, last - height))
    pixels = F.pad(image[:, max(0, first) : last], zeros)
    return F.conv2d(pixels.unsqueeze(1), matrix.reshape(36, 1, side, side), stride=TILE).flatten(2)
