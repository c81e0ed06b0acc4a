"""Attention with decomposed relative positions, as SAM has it, without work that its result does not need.

timm adds a bias to the scores that is as large as they are: 1.6 GB for two images at 1024x1024, in each of four
layers. Writing it and reading it back takes longer than the attention. Here a few rows of it exist at a time where the
encoder works in pieces that fit a processor's cache (`ssrseg.cpu.optimize`).

Maps that windows of 14 do not fit are filled up with zeros, in timm before the linear layers: 784 tokens instead of 256
at 256x256, 1764 instead of 1024 at 512x512. Here the layers see the map's own tokens, and the places beside it hold
what the layer computes from zero, its bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import Attention, Block, get_rel_pos
from torch import Tensor, nn

Encoder = TypeVar("Encoder", bound=nn.Module)


def without_padding(encoder: Encoder) -> Encoder:
    """Replace timm's attentions with relative positions in a frozen encoder, in place, by `SamAttention`.

    Weights keep their names and are shared, and the features stay what they were.
    """
    for block in encoder.modules():
        if isinstance(block, Block) and isinstance(block.attn, Attention) and block.attn.use_rel_pos:
            block.attn = SamAttention(block.attn, block.window_size or None)  # type: ignore[assignment]
            block.window_size = 0
    return encoder


class SamAttention(nn.Module):
    """timm's `Attention` in eval mode on tokens (B, H, W, C), in each window if there are windows.

    Args:
        attention: timm's, whose layers are taken.
        window: side of a window; all tokens see each other when absent.
        scores_at_once: work in pieces of so many scores, as suits a CPU; on all when absent, as a GPU would wait
            between small pieces.
    """

    def __init__(self, attention: Attention, window: int | None = None, scores_at_once: int | None = None) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w
        self.num_heads, self.window, self.scores_at_once = attention.num_heads, window, scores_at_once
        self._tables: dict[Any, Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        (batch, height, width, channels), heads = tokens.shape, self.num_heads
        h, w = (self.window, self.window) if self.window else (height, width)
        qkv = _filled_up(self.qkv(tokens), self.qkv.bias, -(-height // h) * h, -(-width // w) * w)
        windows = qkv.view(batch, -1, h, qkv.shape[2] // w, w, 3, heads, channels // heads)
        windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7)
        merged = qkv.new_empty(batch, height, width, channels)
        for (tall, own_rows), (wide, own_columns) in product(_windows(height, h), _windows(width, w)):
            mine = merged[:, own_rows, own_columns].unflatten(-1, (heads, -1))
            mine = mine.unflatten(2, (wide.stop - wide.start, -1)).unflatten(1, (tall.stop - tall.start, -1))
            mine = mine.permute(0, 1, 3, 5, 2, 4, 6)  # (B, down, across, heads, lines, places, d)
            q, k, v = windows[:, :, tall, wide]
            q = self.q_norm(q[..., : mine.shape[-3], : mine.shape[-2], :].flatten(0, 3))
            k, v = self.k_norm(k.reshape(len(q), h * w, -1)), v.reshape(len(q), h * w, -1)
            rows = torch.einsum("bhwc,hkc->bhwk", q, self._table(self.rel_pos_h, h)[: q.shape[1]])
            columns = torch.einsum("bhwc,wkc->bhwk", q, self._table(self.rel_pos_w, w)[: q.shape[2]])
            # A compiler would unroll the pieces.
            piece = None if torch.compiler.is_compiling() else self.scores_at_once
            attended = _in_pieces(q.flatten(1, 2), k, v, rows, columns, piece or len(q) * (h * w) ** 2)
            mine.copy_(attended.view(mine.shape))
        output: Tensor = self.proj(merged)
        return output

    def _table(self, positions: Tensor, side: int) -> Tensor:
        """Positions between all pairs of `side` places (side, side, d): resized and laid out once."""
        key = (id(positions), side, positions.device, positions.dtype)
        if key not in self._tables:
            self._tables[key] = get_rel_pos(side, side, positions)
        return self._tables[key]


def _windows(side: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Split one axis into full windows and a partial last one; yields (window slice, pixel slice)."""
    whole = side // window
    if whole:
        yield slice(0, whole), slice(0, whole * window)
    if side % window:
        yield slice(whole, whole + 1), slice(whole * window, side)


def _filled_up(qkv: Tensor, bias: Tensor | None, height: int, width: int) -> Tensor:
    """(B, H, W, 3C) in the upper left corner of (B, height, width, 3C), whose other tokens are those of zeros."""
    if qkv.shape[1:3] == (height, width):
        return qkv
    filled = qkv.new_empty(len(qkv), height, width, qkv.shape[-1])
    of_zeros = 0.0 if bias is None else bias
    filled[:, qkv.shape[1] :], filled[:, : qkv.shape[1], qkv.shape[2] :] = of_zeros, of_zeros
    filled[:, : qkv.shape[1], : qkv.shape[2]] = qkv
    return filled


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, piece: int) -> Tensor:
    """Attention of q (G, M, d) to k and v (G, N, d), the bias being rows (G, h, w, H) + columns (G, h, w, W).

    A piece is some rows of one head of one image, or several whole heads: `piece` scores at once, at least a row's.
    """
    groups, height, width, _ = rows.shape
    count = k.shape[1]
    lines = min(height, max(1, piece // (width * count)))
    members = max(1, piece // (height * width * count))
    output = torch.empty_like(q)
    room = rows.new_empty(min(members, groups), lines, width, rows.shape[-1], columns.shape[-1])
    for first in range(0, groups, members):
        group = slice(first, first + members)
        for top in range(0, height, lines):
            some = rows[group, top : top + lines, :, :, None], columns[group, top : top + lines, :, None, :]
            bias = room[: some[0].shape[0], : some[0].shape[1]]
            torch.add(*some, out=bias)
            asked = slice(top * width, (top + lines) * width)
            bias = bias.reshape(bias.shape[0], -1, count)
            output[group, asked] = F.scaled_dot_product_attention(
                q[None, group, asked], k[None, group], v[None, group], attn_mask=bias[None]
            )[0]
    return output
