"""Controls: a foundation encoder's features with something taken from them, to see what a gain is owed to.

Each is an encoder of one's own (`Extensions(foundation=...)`). Its name stands in the settings, by which reports tell
the runs apart: `method.regularizer.foundation.encoder: demo, channels shuffled`. Distillation, affinity and regions
take them as SSR does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssrseg.adapt import Frozen, build_encoder
from ssrseg.config import Settings
from ssrseg.config.method import FoundationConfig
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


CONTROLS: dict[str, Callable[[Tensor], Tensor]] = {
    "locations shuffled": shuffled_pixels,
    "channels shuffled": shuffled_channels,
    "of another image": next_images,
}
"""What follows the encoder's name -> features (B, D, h, w) to disturbed ones. Draws are the device's, as dropout's."""


def control_of(settings: Settings) -> Frozen | None:
    """Build the disturbed encoder that the settings name as `encoder, control`; `None` where they name no control."""
    named = (each for each in settings.method.foundations.values() if ", " in each.encoder)
    return next((disturbed(each, settings.loader.crop) for each in named), None)


def disturbed(config: FoundationConfig, crop: tuple[int, int]) -> Frozen:
    """Build the encoder whose name comes before the comma, and disturb its features by what comes after."""
    name, _, control = config.encoder.partition(", ")
    encoder, disturb = build_encoder(config.model_copy(update={"encoder": name}), crop), CONTROLS[control]
    features = encoder.features
    encoder.features = lambda images: disturb(features(images))
    encoder.note = f"{config.encoder}: a control and not a method"
    return encoder
