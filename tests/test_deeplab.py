"""DeepLabV2's networks: sizes and counts of the published ones, and that their weights load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ssrseg.models import Description, build_backbone, build_head, build_segmenter, load_segmenter, save_segmenter
from ssrseg.models.heads import AttentiveASPPHead
from ssrseg.models.weights import load_pretrained


def count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trained)


def shapes(backbone: str, size: tuple[int, int]) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [tuple(level.shape[1:]) for level in build_backbone(backbone)(torch.rand(1, 3, *size))]


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        dacs = build_segmenter("resnet101-caffe", "deeplabv2-whole", 19)
        vgg = build_segmenter("vgg16-dilated", "deeplabv2-whole", 19)
    assert (count(dacs), count(dacs, trained=True), count(dacs.head)) == (43_901_068, 43_795_724, 1_400_908)
    assert (count(vgg.backbone), count(vgg.head)) == (28_872_512, 700_492)


def test_feature_sizes() -> None:
    assert shapes("resnet101-caffe", (64, 128))[-1] == (2048, 9, 17)  # pooling rounds up
    assert shapes("resnet101-frozen", (64, 128))[-1] == (2048, 8, 16)
    assert shapes("vgg16-dilated", (64, 128)) == [(128, 32, 64), (256, 16, 32), (512, 8, 16), (1024, 8, 16)]


def test_strides_and_dilations_of_the_caffe_network() -> None:
    pyramid = build_backbone("resnet101-caffe").pyramid
    entry = pyramid.layer2[0]
    assert (entry.conv1.stride, entry.conv2.stride) == ((2, 2), (1, 1))
    assert {block.conv2.dilation for block in pyramid.layer3} == {(2, 2)}
    assert {block.conv2.dilation for block in pyramid.layer4} == {(4, 4)}
    norms = [module for module in pyramid.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(weight.requires_grad for norm in norms for weight in norm.parameters())


def test_torchvisions_dilations_grow_one_block_later() -> None:
    pyramid = build_backbone("resnet101-dilated").pyramid
    assert [block.conv2.dilation[0] for block in pyramid.layer3][:3] == [1, 2, 2]
    assert [block.conv2.dilation[0] for block in pyramid.layer4] == [2, 4, 4]


def test_frozen_norms_are_affine_functions_without_epsilon() -> None:
    backbone = build_backbone("resnet101-frozen")
    norm = backbone.pyramid.bn1
    assert isinstance(norm, FrozenBatchNorm2d)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    norm.weight.fill_(3), norm.bias.fill_(1), norm.running_mean.fill_(2), norm.running_var.fill_(4)
    backbone.train()
    assert torch.allclose(norm(torch.full((1, 64, 2, 2), 6.0)), torch.tensor(3 * (6 - 2) / 2 + 1.0))


def test_the_attentive_head() -> None:
    head = build_head("aspp-attentive", (8, 8, 8, 16), 5, channels=32).eval()
    assert isinstance(head, AttentiveASPPHead)
    with torch.no_grad():
        assert head([torch.rand(1, 8, 8, 8)] * 3 + [torch.rand(1, 16, 4, 4)]).shape == (1, 5, 4, 4)
    assert not head.classifiers[0].bias.requires_grad


@pytest.mark.parametrize("backbone", ["resnet101-caffe", "vgg16-dilated"])
def test_published_weights_load_and_their_first_layer_is_turned(tmp_path: Path, backbone: str) -> None:
    theirs, ours = (build_segmenter(backbone, "deeplabv2", 2) for _ in range(2))
    state = {name.removeprefix("pyramid."): value for name, value in theirs.backbone.state_dict().items()}
    state = {name: value for name, value in state.items() if not name.startswith(("fc6", "fc7"))}
    torch.save(state, tmp_path / "published.pth")
    fresh = {name: value.clone() for name, value in ours.backbone.state_dict().items() if ".fc" in name}
    load_pretrained(ours, str(tmp_path / "published.pth"), backbone)
    first = next(iter(state))
    loaded = {name.removeprefix("pyramid."): value for name, value in ours.backbone.state_dict().items()}
    assert torch.equal(loaded[first], state[first].flip(1))
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if name != first)
    assert all(torch.equal(ours.backbone.state_dict()[name], value) for name, value in fresh.items())


def test_bytes_without_their_mean_reach_a_caffe_network() -> None:
    segmenter = build_segmenter("vgg16-dilated", "deeplabv2", 2)
    seen: list[torch.Tensor] = []
    segmenter.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    segmenter.encode(torch.tensor([255.0, 0, 128]).div(255).view(1, 3, 1, 1).expand(1, 3, 16, 16))
    assert torch.allclose(seen[0][0, :, 0, 0], torch.tensor([255 - 123.68, -116.779, 128 - 103.939]), atol=1e-4)


def test_how_logits_are_resized_is_kept_in_the_file(tmp_path: Path) -> None:
    segmenter = build_segmenter("mit_b0", "deeplabv2", 2, align_corners=True)
    segmenter.description = Description("mit_b0", "deeplabv2", ("a", "b"), align_corners=True)
    save_segmenter(segmenter, tmp_path / "model.safetensors")
    again = load_segmenter(tmp_path / "model.safetensors")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), segmenter.eval()(images))
        segmenter.resize.align_corners = False
        assert not torch.allclose(again(images), segmenter(images))
