"""Small things to test with."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ssrseg.adapt.foundation import Frozen
from ssrseg.models import Description, Segmenter, build_segmenter
from ssrseg.models.backbones import Backbone
from ssrseg.models.heads import DAFormerHead

CLASSES = ("road", "wall", "tree", "car")
COLORS = ((128, 64, 128), (102, 102, 156), (107, 142, 35), (0, 0, 142))


class TinyPyramid(nn.Module):
    """Four strided convolutions that look like a timm pyramid."""

    def __init__(self, channels: tuple[int, ...] = (4, 6, 8, 10)) -> None:
        super().__init__()
        self.feature_info = _Info(channels)
        strides, inputs = (4, 2, 2, 2), (3, *channels)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs[i], channels[i], 3, strides[i], 1), nn.BatchNorm2d(channels[i]), nn.GELU())
            for i in range(4)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for level in self.levels:
            images = level(images)
            features.append(images)
        return features


class _Info:
    def __init__(self, channels: tuple[int, ...]) -> None:
        self._channels = channels

    def channels(self) -> list[int]:
        return list(self._channels)

    def reduction(self) -> list[int]:
        return [4, 8, 16, 32]


def tiny_segmenter(num_classes: int = len(CLASSES), *, seed: int = 0, dropout: float = 0.1) -> Segmenter:
    """A segmenter of about 5000 parameters, in train mode; it cannot be saved, see `small_segmenter`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Backbone(TinyPyramid(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        head = DAFormerHead(backbone.channels, num_classes, channels=8, dilations=(1, 2), dropout=dropout)
        nn.init.normal_(head.classify.weight)  # so that random weights predict more than one class
        return Segmenter(backbone, head, num_classes)


def small_segmenter(*, seed: int = 0, resize: tuple[int, int] | None = None) -> Segmenter:
    """MiT-B0 with a narrow DAFormer head and a description, in train mode: the smallest that can be saved."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        segmenter = build_segmenter("mit_b0", "daformer", len(CLASSES), head_channels=16)
        nn.init.normal_(cast(DAFormerHead, segmenter.head).classify.weight)
    segmenter.description = Description("mit_b0", "daformer", CLASSES, COLORS, resize, head_channels=16)
    return segmenter


def random_image(height: int = 64, width: int = 64, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """RGB (height, width, 3): coloured 8x8 blocks."""
    draws = np.random.default_rng(seed)
    blocks = draws.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def random_labels(height: int = 64, width: int = 64, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Class ids (height, width) in 8x8 blocks, a tenth of them ignored."""
    draws = np.random.default_rng(seed)
    size = (-(-height // 8), -(-width // 8))
    blocks = np.where(draws.random(size) < 0.1, 255, draws.integers(0, len(CLASSES), size)).astype(np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def write_pairs(root: Path, count: int = 4, *, height: int = 64, width: int = 64) -> Path:
    """`count` images in root/images and their labels in root/labels, named 00.png and so on; gives `root`."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(random_image(height, width, seed=i)).save(root / "images" / f"{i:02}.png")
        Image.fromarray(random_labels(height, width, seed=i)).save(root / "labels" / f"{i:02}.png")
    return root


def tiny_frozen(channels: int = 8) -> Frozen:
    """A foundation encoder of one convolution with stride 16; always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoder = nn.Conv2d(3, channels, 16, 16)
    return Frozen(encoder, encoder, channels=channels, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
