"""A foundation encoder in miniature: SAM's architecture, trained on SAM's task, small enough to ship."""

from __future__ import annotations

from importlib import resources
from typing import Any

from safetensors.torch import load
from timm.models.vision_transformer_sam import VisionTransformerSAM

CHANNELS = 128
PATCH = 8
"""Sides of its input must be multiples of this; the features have a cell for each such square."""

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""Images in [0, 1] are normalised with these before they enter."""

SIZE = (128, 256)
"""The input that its position embeddings are laid out for; other sizes interpolate them."""

WEIGHTS = "encoder.safetensors"


def untrained_encoder() -> VisionTransformerSAM:
    """Build the architecture with random weights, in training mode.

    Four blocks: window attention within 8x8 cells, and global attention in the second and the last. `forward_features`
    maps normalised images (B, 3, H, W) to (B, CHANNELS, H / PATCH, W / PATCH).
    """
    size: Any = SIZE  # timm declares a square, and takes a pair
    return VisionTransformerSAM(
        img_size=size,
        patch_size=PATCH,
        num_classes=0,
        embed_dim=CHANNELS,
        depth=4,
        num_heads=4,
        use_rel_pos=True,
        window_size=8,
        global_attn_indexes=(1, 3),
        neck_chans=CHANNELS,
    )


def demo_encoder() -> VisionTransformerSAM:
    """Load the trained encoder, in evaluation mode; docs/demo-encoder.md describes its training and its limits."""
    encoder = untrained_encoder()
    stored = load((resources.files("ssrseg.demo") / WEIGHTS).read_bytes())
    encoder.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return encoder.eval()
