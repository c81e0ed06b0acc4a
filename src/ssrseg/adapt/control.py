"""Controls: a foundation encoder's features with something taken from them, to see what a gain is owed to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssrseg.errors import UserError


def shuffled_pixels(features: Tensor) -> Tensor:
    """The locations of each image in a random order; attention knows no order of tokens and sees no difference."""
    batch, channels, height, width = features.shape
    order = torch.rand(batch, 1, height * width, device=features.device).argsort(dim=2)
    return features.flatten(2).gather(2, order.expand(-1, channels, -1)).view_as(features)


def shuffled_channels(features: Tensor) -> Tensor:
    """Each channel's values in an order of their own: every channel keeps its histogram, no location its content."""
    flat = features.flatten(2)
    return flat.gather(2, torch.rand_like(flat).argsort(dim=2)).view_as(features)


def next_images(features: Tensor) -> Tensor:
    """Every image has the features of the next in the batch: true features, of something else.

    Raises:
        UserError: the batch holds one image.
    """
    if len(features) == 1:
        raise UserError("There is no other image in a batch of one: set loader.batch to 2 or more.")
    return features.roll(1, dims=0)


DISTURBANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels": shuffled_pixels,
    "channels": shuffled_channels,
    "images": next_images,
}
"""Name -> features (B, D, h, w) -> disturbed ones. Draws come from the device's generator, as dropout's do."""
