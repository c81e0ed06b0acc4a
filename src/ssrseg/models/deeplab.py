"""DeepLabV2's backbones as the adaptation literature runs them: timm's ResNet and torchvision's VGG, rearranged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torchvision
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

CAFFE_RESNET_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
CAFFE_VGG_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
"""Weights from Caffe want bytes without their mean, in the order blue, green, red (`Architecture.bgr`)."""


def caffe_resnet(pyramid: Any) -> None:
    """Make timm's ResNet of output stride 8 AdaptSegNet's, which DACS uses.

    The stride sits in a block's first 1x1 convolution, every 3x3 of the last two stages is dilated, the pooling rounds
    up (512 -> 129), and the norms' weights and biases are not trained, though their statistics are.
    """
    pyramid.maxpool.ceil_mode = True
    for stage, dilation in ((pyramid.layer3, 2), (pyramid.layer4, 4)):
        for block in stage:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    entry = pyramid.layer2[0]
    entry.conv1.stride, entry.conv2.stride = entry.conv2.stride, (1, 1)
    for norm in pyramid.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.requires_grad_(False)


@torch.no_grad()
def renormalise(
    pyramid: nn.Module, published: Mapping[str, Any], mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Change the first convolution so that images normalised by `mean` and `std` are as those of the published weights.

    W (x - m) / s is W' (x - m') / s' with W' = W s' / s, plus W (m' - m) / s: a bias, or what the norm behind expects
    less of. Exact but for the borders, which are padded with the mean colour. `published` holds the old `mean` and
    `std`; all are of RGB in [0, 1].
    """
    conv = next(layer for layer in pyramid.modules() if isinstance(layer, nn.Conv2d))
    old_mean, old_std, new_mean, new_std = (
        torch.tensor(value).view(1, -1, 1, 1) for value in (published["mean"], published["std"], mean, std)
    )
    shift = (conv.weight * (new_mean - old_mean) / old_std).sum(dim=(1, 2, 3))
    conv.weight.mul_(new_std / old_std)
    if conv.bias is not None:
        conv.bias.add_(shift)
    else:
        norm = next(layer for layer in pyramid.modules() if isinstance(layer, nn.BatchNorm2d))
        assert norm.running_mean is not None
        norm.running_mean.sub_(shift)


def frozen_norms(module: nn.Module) -> None:
    """Replace every BatchNorm inside by its fixed affine function, without epsilon, as FADA and Undoing do."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=0.0)
            kept = {key: value for key, value in child.state_dict().items() if key in frozen.state_dict()}
            frozen.load_state_dict(kept)
            setattr(module, name, frozen)
        else:
            frozen_norms(child)


class DilatedVGG(nn.Module):
    """VGG-16 of output stride 8 with fc6 and fc7 as dilated convolutions, without norms and dropout (Undoing, FADA).

    Gives conv2, conv3, conv4 (strides 2, 4, 8) and fc7 (stride 8). `features` is numbered as torchvision's.
    """

    LEVELS = (8, 15, 22)
    """Last layers of the first three levels."""
    POOLS = (23, 30)
    """The fourth and fifth pooling: left out."""

    def __init__(self) -> None:
        super().__init__()
        layers = cast(nn.Sequential, torchvision.models.vgg16(weights=None).features)
        for place in self.POOLS:
            layers[place] = nn.Identity()
        for layer in layers[self.POOLS[0] :]:
            if isinstance(layer, nn.Conv2d):
                layer.dilation = layer.padding = (2, 2)
        self.features = layers
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=4, dilation=4)
        self.fc7 = nn.Conv2d(1024, 1024, 3, padding=4, dilation=4)
        self.act = nn.ReLU(inplace=True)
        levels = zip((128, 256, 512, 1024), (2, 4, 8, 8), strict=True)
        info = [{"num_chs": channels, "reduction": stride, "module": ""} for channels, stride in levels]
        self.feature_info = FeatureInfo(info, (0, 1, 2, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Four feature maps of normalised images (B, 3, H, W)."""
        levels: list[Tensor] = []
        for place, layer in enumerate(self.features):
            images = layer(images)
            if place in self.LEVELS:
                levels.append(images)
        return [*levels, self.act(self.fc7(self.act(self.fc6(images))))]
