"""Bilinear scaling is torch's, and so is its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.cpu import training_layers
from ssrseg.cpu.training_layers import ProductResize


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(24, 40), (13, 9), (6, 10), (3, 4), (1, 1)])
def test_gradients_are_those_of_torch(size: tuple[int, int], align_corners: bool) -> None:
    torch.manual_seed(0)
    maps, back = torch.randn(2, 3, 6, 10).double(), torch.randn(2, 3, *size).double()

    def computed(scale: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        given = maps.clone().requires_grad_()
        result = scale(given)
        return result, *torch.autograd.grad(result, given, back)

    theirs = computed(lambda given: F.interpolate(given, size, mode="bilinear", align_corners=align_corners))
    ours = computed(lambda given: ProductResize(align_corners=align_corners)(given, size))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert "_Resize" in type(ProductResize()(maps.requires_grad_(), size).grad_fn).__name__


def test_without_gradient_it_is_torchs_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_layers._Resize, "apply", None)  # calling it fails
    maps = torch.randn(1, 2, 4, 4)
    expected = F.interpolate(maps, (8, 6), mode="bilinear")
    assert torch.equal(ProductResize()(maps, (8, 6)), expected)
    with torch.no_grad():
        assert torch.equal(ProductResize()(maps.clone().requires_grad_(), (8, 6)), expected)
