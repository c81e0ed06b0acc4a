"""Convolutions that cost a CPU less in training: what they compute, and where they are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssrseg.models import build_segmenter
from ssrseg.models.deployed import deployed, deployed_on_cpu
from ssrseg.models.heads import DAFormerHead
from ssrseg.training import eased
from ssrseg.training.eased import EasedDepthwise, EasedPointwise, ease


def lived(model: nn.Module) -> nn.Module:
    """In eval mode, with statistics and biases of norms that folding must not lose."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return model.eval()


def computed(conv: nn.Conv2d, maps: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients at maps and weight."""
    given = maps.clone().requires_grad_()
    result = conv(given)
    return result, *torch.autograd.grad(result, [given, conv.weight], back)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("dilation", "size"), [(2, (9, 12)), (6, (17, 14)), (18, (16, 40)), (18, (5, 4))])
@pytest.mark.parametrize("cached", [1, 2**17])
def test_dilated_depthwise_is_the_convolution(
    kernel: int, dilation: int, size: tuple[int, int], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eased, "CACHED", cached)
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(5, 5, kernel, padding=padding, dilation=dilation, groups=5, bias=False).double()
    maps, back = torch.randn(2, 2, 5, *size).double()
    expected = computed(conv, maps, back)
    ease(conv)
    assert type(conv) is EasedDepthwise
    torch.testing.assert_close(computed(conv, maps, back), expected, rtol=1e-12, atol=1e-12)


def test_pointwise_is_the_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 1, bias=False).double()
    maps, back = torch.randn(2, 5, 4, 7).double(), torch.randn(2, 3, 4, 7).double()
    expected = computed(conv, maps, back)
    ease(conv)
    assert type(conv) is EasedPointwise
    torch.testing.assert_close(computed(conv, maps, back), expected, rtol=1e-12, atol=1e-12)


def test_an_eased_student_is_deployed_as_any_other() -> None:
    torch.manual_seed(0)
    model, images = lived(build_segmenter("mit_b0", "daformer", 5, head_channels=8)), torch.rand(1, 3, 64, 64)
    expected = model(images)
    ease(model.head)
    assert torch.equal(model(images), expected)
    for arrange in (deployed, deployed_on_cpu):
        torch.testing.assert_close(arrange(model)(images), expected, rtol=1e-4, atol=2e-5)


def test_a_head_keeps_its_names() -> None:
    head = DAFormerHead((4, 6, 8, 10), 3, channels=8)
    names = list(head.state_dict())
    ease(head)
    assert list(head.state_dict()) == names
    changed = {
        name: type(part) for name, part in head.named_modules() if isinstance(part, EasedDepthwise | EasedPointwise)
    }
    expected = {"branches.0.conv": EasedPointwise}
    for branch in (1, 2, 3):
        expected |= {
            f"branches.{branch}.depthwise.conv": EasedDepthwise,
            f"branches.{branch}.pointwise.conv": EasedPointwise,
        }
    assert changed == expected


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),  # not dilated
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),  # not depthwise
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),  # with bias
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4, bias=False),  # shrinks
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False, stride=2),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 1),  # with bias
        nn.Conv2d(4, 4, 1, stride=2, bias=False),
        nn.Conv2d(4, 4, 1, padding=1, bias=False),
        nn.Conv2d(4, 4, 1, groups=2, bias=False),
    ],
)
def test_other_convolutions_stay_as_they_are(other: nn.Conv2d) -> None:
    ease(other)
    assert type(other) is nn.Conv2d
