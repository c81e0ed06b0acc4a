"""A foundation encoder of your own for SSR: any frozen network that maps images to features.

    python examples/encoder.py SETTINGS.yaml runs/encoder

What timm has needs no code: `method.regularizer.foundation.encoder=timm:vit_base_patch14_dinov2.lvd142m`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from ssrseg import Extensions, Settings, resolve, train
from ssrseg.adapt import Frozen
from ssrseg.config import read_yaml

CHANNELS = 96


def load_encoder() -> nn.Module:
    """Your network, with your weights: `torch.jit.load("encoder.pt")` or the like. Here, random patches."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 16, stride=16), nn.GELU())


def extensions(settings: Settings) -> Extensions:
    """The encoder as a function of images in [0, 1]; it normalises, and pads to multiples of its patch, by itself.

    Name it in the settings too (`method.regularizer.foundation.encoder: random-patches`): reports tell runs apart by
    their settings.
    """
    module = load_encoder()
    encoder = Frozen(
        module, module, channels=CHANNELS, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), divisor=16
    )
    return Extensions(foundation=encoder)


if __name__ == "__main__":
    settings = resolve(read_yaml(Path(sys.argv[1])))
    train(settings, Path(sys.argv[2]), extensions=extensions(settings))
