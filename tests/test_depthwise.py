"""Dilated depthwise convolutions with gradients of their own: what they compute, and where they are used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssrseg.models import depthwise
from ssrseg.models.depthwise import DilatedDepthwiseForTraining, ease_gradients
from ssrseg.models.heads import DAFormerHead


def convolution(kernel: int = 3, dilation: int = 2) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(5, 5, kernel, padding=padding, dilation=dilation, groups=5, bias=False).double()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("dilation", "size"), [(2, (9, 12)), (6, (17, 14)), (18, (16, 40)), (18, (5, 4))])
@pytest.mark.parametrize("cached", [1, 2**17])
def test_gradients_are_the_convolutions(
    kernel: int, dilation: int, size: tuple[int, int], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "CACHED", cached)
    torch.manual_seed(0)
    conv, maps = convolution(kernel, dilation), torch.randn(2, 5, *size).double()
    back = torch.randn(2, 5, *size).double()

    def computed() -> tuple[torch.Tensor, ...]:
        given = maps.clone().requires_grad_()
        result = conv(given)
        return result, *torch.autograd.grad(result, [given, conv.weight], back)

    expected = computed()
    ease_gradients(conv)
    assert type(conv) is DilatedDepthwiseForTraining
    torch.testing.assert_close(computed(), expected, rtol=1e-12, atol=1e-12)


def test_a_head_keeps_its_names_and_changes_its_dilated_branches_only() -> None:
    head = DAFormerHead((4, 6, 8, 10), 3, channels=8)
    names = list(head.state_dict())
    ease_gradients(head)
    assert list(head.state_dict()) == names
    changed = [name for name, part in head.named_modules() if isinstance(part, DilatedDepthwiseForTraining)]
    assert changed == [f"branches.{branch}.depthwise.conv" for branch in (1, 2, 3)]


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),  # not dilated
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),  # not depthwise
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),  # with bias
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4, bias=False),  # shrinks
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False, stride=2),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=2, groups=4, bias=False),
    ],
)
def test_other_convolutions_stay_as_they_are(other: nn.Conv2d) -> None:
    ease_gradients(other)
    assert type(other) is nn.Conv2d
