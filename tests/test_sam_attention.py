"""SAM's attention in pieces: timm's numbers, without a bias as large as the scores."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer_sam import Attention, Block
from torch import nn

from ssrseg import cpu
from ssrseg.adapt import sam_attention
from ssrseg.adapt.sam_attention import SamAttention, without_padding
from ssrseg.planning.counters import LiveBytes


def random_attention(sides: tuple[int, int]) -> Attention:
    torch.manual_seed(0)
    attention = Attention(32, 4, use_rel_pos=True, input_size=sides).eval()
    nn.init.normal_(attention.rel_pos_h)
    nn.init.normal_(attention.rel_pos_w)
    return attention


@pytest.mark.parametrize("piece", [1, 700, 3 * 12 * 60, 3 * 60**2, 10**9, None])
@torch.no_grad()
def test_pieces_of_any_size_give_what_timm_gives(piece: int | None) -> None:
    attention = random_attention((14, 9))  # the positions are interpolated
    tokens = torch.randn(2, 5, 12, 32)
    theirs = attention(tokens)
    ours = SamAttention(attention, scores_at_once=piece)
    torch.testing.assert_close(ours(tokens), theirs, rtol=1e-5, atol=1e-6)
    other = torch.randn(1, 14, 9, 32)  # and the next size has positions of its own
    torch.testing.assert_close(ours(other), random_attention((14, 9))(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (5, 10), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_windows_are_filled_up_after_the_layer(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    block = Block(32, 4, qkv_bias=bias, use_rel_pos=True, window_size=4, input_size=(8, 12)).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    tokens = torch.randn(2, *size, 32)
    theirs = block(tokens)
    layers: list[int] = []
    block.attn.qkv.register_forward_hook(lambda _, given, __: layers.append(given[0].numel() // 32))
    names = list(block.state_dict())
    for _ in range(2):  # a second time changes nothing
        assert list(without_padding(block).state_dict()) == names
        torch.testing.assert_close(block(tokens), theirs, rtol=1e-5, atol=1e-5)
    assert layers == 2 * [2 * size[0] * size[1]]


@torch.no_grad()
def test_only_the_maps_own_tokens_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(32, 4, use_rel_pos=True, window_size=4, input_size=(8, 12)).eval()
    without_padding(block)
    attention, asked = torch.nn.functional.scaled_dot_product_attention, []

    def asking(q: torch.Tensor, *others: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        asked.append(q.numel() // 32)
        return attention(q, *others, **options)

    monkeypatch.setattr(sam_attention.F, "scaled_dot_product_attention", asking)
    block(torch.randn(2, 5, 10, 32))
    assert sum(asked) == 2 * 5 * 10


@torch.no_grad()
def test_no_bias_as_large_as_the_scores_is_made() -> None:
    attention, tokens = random_attention((24, 24)), torch.randn(1, 24, 24, 32)
    scores = 4 * 24**4 * tokens.element_size()
    with LiveBytes("cpu") as theirs:
        attention(tokens)
    pieces = SamAttention(attention, scores_at_once=24**3)
    with LiveBytes("cpu") as ours:
        pieces(tokens)
    assert ours.peak.total() < scores / 4 < scores < theirs.peak.total()


def test_only_a_cpu_works_in_pieces() -> None:
    attention = SamAttention(random_attention((8, 8)))
    assert attention.scores_at_once is None
    assert cpu.optimize(attention).scores_at_once == cpu.SCORES_AT_ONCE
