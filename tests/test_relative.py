"""SAM's attention in pieces: timm's numbers, without a bias as large as the scores."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer_sam import Attention
from torch import nn

from ssrseg import relative
from ssrseg.planning.accounting import LiveBytes


def random_attention(sides: tuple[int, int]) -> Attention:
    torch.manual_seed(0)
    attention = Attention(32, 4, use_rel_pos=True, input_size=sides).eval()
    nn.init.normal_(attention.rel_pos_h)
    nn.init.normal_(attention.rel_pos_w)
    return attention


@pytest.mark.parametrize("piece", [1, 700, 3 * 12 * 60, 3 * 60**2, 10**9])
@torch.no_grad()
def test_pieces_of_any_size_give_what_timm_gives(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    attention = random_attention((14, 9))  # the positions are interpolated
    tokens = torch.randn(2, 5, 12, 32)
    theirs = attention(tokens)
    monkeypatch.setattr(relative, "PIECE", piece)
    relative.arrange(attention, "cpu")
    torch.testing.assert_close(attention(tokens), theirs, rtol=1e-5, atol=1e-6)
    other = torch.randn(1, 14, 9, 32)  # and the next size has positions of its own
    torch.testing.assert_close(attention(other), random_attention((14, 9))(other), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_no_bias_as_large_as_the_scores_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, tokens = random_attention((24, 24)), torch.randn(1, 24, 24, 32)
    scores = 4 * 24**4 * tokens.element_size()
    with LiveBytes("cpu") as theirs:
        attention(tokens)
    monkeypatch.setattr(relative, "PIECE", 24**3)
    relative.arrange(attention, "cpu")
    with LiveBytes("cpu") as ours:
        attention(tokens)
    assert ours.peak.total() < scores / 4 < scores < theirs.peak.total()


def test_only_a_cpu_works_in_pieces() -> None:
    attention = random_attention((8, 8))
    relative.arrange(attention, "cuda")
    assert None in attention.forward.args
    relative.arrange(attention, "cpu")
    assert relative.PIECE in attention.forward.args
