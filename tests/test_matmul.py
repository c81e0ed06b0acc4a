"""Matrix products in oneDNN: the same numbers, and only where MKL lags behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg import cpu
from ssrseg.cpu import convolutions, matmul, winograd
from ssrseg.cpu.training_layers import TrainedLinear
from ssrseg.models import build_segmenter
from ssrseg.models.fused import fuse

AMD, INTEL = "vendor_id\t: AuthenticAMD\nmodel name\t: one", "vendor_id\t: GenuineIntel\nmodel name\t: another"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def lags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """MKL lags here, or it does not; nothing is small."""
    monkeypatch.setattr(matmul, "mkl_lags", lambda: request.param)
    monkeypatch.setattr(matmul, "SMALL", 1)
    returned: bool = request.param
    return returned


def computed(layer: nn.Module, tokens: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    given = tokens.clone().requires_grad_()
    result = layer(given)
    return result, *torch.autograd.grad(result, [given, *layer.parameters()], back)


@pytest.mark.parametrize("shape", [(7, 24), (2, 9, 24), (2, 3, 5, 24), (1, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_linear_layer(shape: tuple[int, ...], bias: bool, lags: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 10, bias=bias)
    tokens, back = torch.randn(shape), torch.randn(*shape[:-1], 10)
    expected = computed(layer, tokens, back)
    cpu.optimize(layer, training=True)
    assert type(layer) is TrainedLinear
    torch.testing.assert_close(computed(layer, tokens, back), expected, **CLOSE)
    assert _is_convolved(layer(tokens)) is lags
    assert not _is_convolved(layer.eval()(tokens))  # what is exported is torch's


def test_tokens_may_lie_apart(lags: bool) -> None:
    torch.manual_seed(0)
    tokens, weight = torch.randn(24, 9, 2).permute(2, 1, 0), torch.randn(24, 10).t()
    torch.testing.assert_close(matmul.linear(tokens, weight), F.linear(tokens, weight), **CLOSE)


@pytest.mark.parametrize("by_columns", [True, False])
@torch.no_grad()
def test_batched_products_in_either_layout(by_columns: bool, lags: bool) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(6, 3, 5).transpose(0, 1), torch.randn(3, 5, 7)
    right = right.transpose(1, 2).contiguous().transpose(1, 2) if by_columns else right
    torch.testing.assert_close(matmul.batched(left, right), torch.bmm(left, right), **CLOSE)


def test_wide_and_pointwise_convolutions_are_torchs(lags: bool) -> None:
    torch.manual_seed(0)
    maps, wide, single = torch.randn(2, 6, 12, 8), torch.randn(4, 6, 3, 3), torch.randn(4, 6)
    back = torch.randn(2, 4, 12, 8)
    given = wide.requires_grad_()
    expected = F.conv2d(maps, given, padding=1)
    (gradient,) = torch.autograd.grad(expected, given, back)
    with torch.no_grad():
        torch.testing.assert_close(winograd.convolve(maps, winograd.transform(wide)), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(winograd.weight_gradient(back, maps), gradient, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            convolutions.pointwise(maps, single), F.conv2d(maps, single[:, :, None, None]), **CLOSE
        )


def test_small_products_and_other_types_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "mkl_lags", lambda: True)
    layer = matmul.ConvolvedLinear(64, 64)
    assert not _is_convolved(layer(torch.zeros(matmul.SMALL // 64**2 - 1, 64)))
    assert _is_convolved(layer(torch.zeros(matmul.SMALL // 64**2, 64)))
    assert not _is_convolved(layer.double()(torch.zeros(matmul.SMALL // 64**2, 64).double()))


def test_a_model_keeps_its_function_and_its_names(lags: bool) -> None:
    torch.manual_seed(0)
    model, images = build_segmenter("mit_b0", "daformer", 3).eval(), torch.rand(1, 3, 64, 96)
    names = list(model.state_dict())
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(cpu.optimize(fuse(model))(images), expected, rtol=1e-4, atol=1e-5)
        cpu.optimize(model, training=True)
        assert torch.equal(model(images), expected)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("processor", "capability", "mkl", "lagging"),
    [
        (AMD, "AVX512", True, True),
        (AMD, "AVX2", True, False),
        (INTEL, "AVX512", True, False),
        (AMD, "AVX512", False, False),
        ("", "DEFAULT", False, False),
    ],
)
def test_mkl_lags_on_amds_avx512_alone(
    processor: str, capability: str, mkl: bool, lagging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert matmul.mkl_lags.__wrapped__() is lagging


def _is_convolved(result: Tensor) -> bool:
    node, seen = [result.grad_fn], set()
    while node:
        some = node.pop()
        if some is not None and some not in seen:
            seen.add(some)
            node += [parent for parent, _ in some.next_functions]
    return any("Convolution" in type(some).__name__ for some in seen)
