"""The model fused for inference computes what the model computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factories import small_segmenter
from ssrseg import cpu
from ssrseg.cpu import convolutions
from ssrseg.models import HEADS, Segmenter, build_segmenter
from ssrseg.models.fused import LevelwiseDAFormerHead, fuse
from ssrseg.models.heads import DAFormerHead


def lived(model: nn.Module) -> nn.Module:
    """With norms whose statistics and factors are those of no fresh model."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.normal_(norm.weight, 1, 0.3, generator=generator)
            nn.init.normal_(norm.bias, 0, 0.3, generator=generator)
    return model.eval()


@torch.no_grad()
def test_the_levelwise_head_is_the_head() -> None:
    torch.manual_seed(0)
    head = lived(DAFormerHead((4, 6, 8, 10), 5, channels=8).double())
    for project in head.embed:
        nn.init.normal_(project.bias)
    features = [torch.randn(2, c, 24 // s, 40 // s).double() for c, s in ((4, 1), (6, 2), (8, 4), (10, 8))]
    expected = head(features)
    torch.testing.assert_close(LevelwiseDAFormerHead(head)(features), expected, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(expected, head([features[0], *(level * 1.01 for level in features[1:])]), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dilation", [2, 6, 18])
def test_dilated_depthwise_is_the_convolution(dilation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "GROUP", 4)
    conv = nn.Conv2d(6, 6, 3, padding=dilation, dilation=dilation, groups=6).double()
    maps = torch.randn(2, 6, 5, 37).double()
    torch.testing.assert_close(for_inference(conv)(maps), conv(maps), rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_pointwise_is_the_convolution() -> None:
    conv, maps = nn.Conv2d(6, 4, 1).double(), torch.randn(2, 6, 5, 7).double()
    for layout in (torch.contiguous_format, torch.channels_last):
        given = maps.contiguous(memory_format=layout)
        torch.testing.assert_close(for_inference(conv)(given), conv(maps), rtol=1e-12, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 20), (17, 6), (1, 1), (43, 41)])
def test_winograd_is_the_convolution(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 4)
    conv = nn.Conv2d(6, 4, 3, padding=1).double()
    maps = torch.randn(2, 6, *size).double()
    torch.testing.assert_close(for_inference(conv)(maps), conv(maps), rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_winograd_is_accurate_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 16)
    torch.manual_seed(0)
    conv = nn.Conv2d(512, 16, 3, padding=1)
    maps = torch.rand(1, 512, 32, 32)
    exact = F.conv2d(maps.double(), conv.weight.double(), conv.bias.double(), padding=1)
    # Against the exact result: how good the direct sum is depends on the processor.
    assert (for_inference(conv)(maps) - exact).norm() < 4e-6 * exact.norm()


@torch.no_grad()
@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("on_cpu", [False, True])
def test_every_head_can_be_fused(head: str, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 32)  # or none of these would be Winograd's
    torch.manual_seed(0)
    model = lived(build_segmenter("mit_b0", head, 5, head_channels=32))
    images = torch.rand(1, 3, 96, 128)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = cpu.optimize(fuse(model)) if on_cpu else fuse(model)
    torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=2e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def for_inference(conv: nn.Conv2d) -> nn.Module:
    """Another module than the convolution itself."""
    module = convolutions.for_inference(conv)
    assert isinstance(module, convolutions.FixedConv2d)
    return module


def operations(model: Segmenter) -> int:
    from ssrseg.inference import graph_signature

    return graph_signature(model, (128, 128)).flops


def test_fused_needs_fewer_operations() -> None:
    model = small_segmenter()
    assert operations(fuse(model)) < operations(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fuse(model).modules())
    model.train()
    fuse(model)
    assert all(part.training for part in model.modules())
