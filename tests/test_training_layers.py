"""Convolutions that cost a CPU less in training: what they compute, and where they are used."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from ssrseg import cpu
from ssrseg.cpu import convolutions, training_layers, winograd
from ssrseg.cpu.training_layers import DilatedDepthwiseConv2d, PatchConv2d, PointwiseConv2d, WinogradConv2d
from ssrseg.models import build_segmenter
from ssrseg.models.fused import fuse
from ssrseg.models.heads import DAFormerHead


def lived(model: nn.Module) -> nn.Module:
    """In eval mode, with statistics and biases of norms that folding must not lose."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return model.eval()


def computed(conv: nn.Module, maps: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients at maps and parameters."""
    given = maps.clone().requires_grad_()
    result = conv(given)
    return result, *torch.autograd.grad(result, [given, *conv.parameters()], back)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("dilation", "size"), [(2, (9, 12)), (6, (17, 14)), (18, (16, 40)), (18, (5, 4))])
@pytest.mark.parametrize("cached", [1, 2**17])
def test_dilated_depthwise_is_the_convolution(
    kernel: int, dilation: int, size: tuple[int, int], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_layers, "CACHED", cached)
    monkeypatch.setattr(convolutions, "GROUP", 2)
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(5, 5, kernel, padding=padding, dilation=dilation, groups=5, bias=False).double()
    maps, back = torch.randn(2, 2, 5, *size).double()
    expected = computed(conv, maps, back)
    cpu.optimize(conv, training=True)
    assert type(conv) is DilatedDepthwiseConv2d
    torch.testing.assert_close(computed(conv, maps, back), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 12), (7, 10), (3, 2)])
@pytest.mark.parametrize("at_once", [1, 6, 256])
def test_a_wide_convolution_is_the_convolution(
    size: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    monkeypatch.setattr(convolutions, "WIDE", 4)
    monkeypatch.setattr(convolutions, "SPACIOUS", 1)
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, padding=1, bias=False).double()
    maps, back = torch.randn(2, 6, *size).double(), torch.randn(2, 4, *size).double()
    expected = computed(conv, maps, back)
    cpu.optimize(conv, training=True)
    assert type(conv) is WinogradConv2d
    torch.testing.assert_close(computed(conv, maps, back), expected, rtol=1e-11, atol=1e-11)
    assert "Winograd" in type(conv(maps).grad_fn).__name__
    monkeypatch.setattr(convolutions, "SPACIOUS", size[0] * size[1] + 1)
    assert "Winograd" not in type(conv(maps).grad_fn).__name__


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (9, 12)])  # the second is no multiple: torch's
def test_patches_are_the_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, (4, 2), stride=(4, 2), bias=bias).double()
    maps, back = torch.randn(2, *size, 6).double().permute(0, 3, 1, 2), torch.randn(2, 4, 2, 6).double()
    expected = computed(conv, maps, back)
    cpu.optimize(conv, training=True)
    assert type(conv) is PatchConv2d
    torch.testing.assert_close(computed(conv, maps, back), expected, rtol=1e-12, atol=1e-12)
    assert ("Convolution" in type(conv(maps).grad_fn).__name__) == (size == (9, 12))


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_what_follows_a_wide_convolution_may_work_in_place(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "SPACIOUS", 1)
    block = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.ReLU(inplace=True))
    expected = computed(block, maps := torch.randn(1, 128, *size), back := torch.randn(1, 128, *size))
    cpu.optimize(block, training=True)
    torch.testing.assert_close(computed(block, maps, back), expected, rtol=1e-3, atol=1e-3)


def test_a_wide_convolution_is_accurate_in_single_precision() -> None:
    """Against the exact result: how good the direct sums are depends on the processor."""
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 128, 3, padding=1, bias=False)
    maps, back = torch.rand(2, 256, 32, 32), torch.randn(2, 128, 32, 32)
    exact = computed(deepcopy(conv).double(), maps.double(), back.double())
    cpu.optimize(conv, training=True)
    for ours, theirs in zip(computed(conv, maps, back), exact, strict=True):
        assert (ours - theirs).norm() < 8e-6 * theirs.norm()


def test_pointwise_is_the_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 1, bias=False).double()
    maps, back = torch.randn(2, 5, 4, 7).double(), torch.randn(2, 3, 4, 7).double()
    expected = computed(conv, maps, back)
    cpu.optimize(conv, training=True)
    assert type(conv) is PointwiseConv2d
    torch.testing.assert_close(computed(conv, maps, back), expected, rtol=1e-12, atol=1e-12)


def test_an_optimised_student_is_fused_as_any_other() -> None:
    torch.manual_seed(0)
    model, images = lived(build_segmenter("mit_b0", "daformer", 5, head_channels=8)), torch.rand(1, 3, 64, 64)
    expected = model(images)
    cpu.optimize(model.head, training=True)
    assert torch.equal(model(images), expected)
    for fused in (fuse(model), cpu.optimize(fuse(model))):
        torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=2e-5)


def test_a_head_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 8)
    head = DAFormerHead((4, 6, 8, 10), 3, channels=8)
    names = list(head.state_dict())
    cpu.optimize(head, training=True)
    assert list(head.state_dict()) == names
    changed = {
        name: type(part)
        for name, part in head.named_modules()
        if isinstance(part, DilatedDepthwiseConv2d | PointwiseConv2d | WinogradConv2d)
    }
    expected = {"branches.0.conv": PointwiseConv2d, "bottleneck.conv": WinogradConv2d}
    for branch in (1, 2, 3):
        expected |= {
            f"branches.{branch}.depthwise.conv": DilatedDepthwiseConv2d,
            f"branches.{branch}.pointwise.conv": PointwiseConv2d,
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
        nn.Conv2d(4, 4, 2, stride=2, groups=2),
        nn.Conv2d(4, 4, 3, stride=2),  # patches overlap
        nn.Conv2d(4, 4, 2, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False, padding_mode="reflect"),
        nn.Conv2d(128, 128, 3, padding=1, bias=False, padding_mode="reflect"),
        nn.Conv2d(128, 127, 3, padding=1, bias=False),  # too few channels
        nn.Conv2d(128, 128, 3, padding=1),  # with bias
        nn.Conv2d(128, 128, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(128, 128, 3, bias=False),  # shrinks
        nn.Conv2d(256, 256, 3, padding=1, groups=2, bias=False),
    ],
)
def test_other_convolutions_stay_as_they_are(other: nn.Conv2d) -> None:
    cpu.optimize(other, training=True)
    assert type(other) is nn.Conv2d
