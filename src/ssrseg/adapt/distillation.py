"""Terms that make the student's features like a frozen foundation encoder's: projected ones, or their similarities.

Training only: nothing here is deployed. Both act on the features that the view has already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import View
from ssrseg.adapt.terms import Term, masked_mean, places_inside
from ssrseg.models.segmenter import Segmenter


class Standardize(nn.Module):
    """Give every channel mean 0 and deviation 1, by the statistics of the first `calls` batches of all processes."""

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, channels: int, calls: int = 100) -> None:
        super().__init__()
        self.calls = calls
        for name, shape in (("count", ()), ("mean", (channels,)), ("square", (channels,))):
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) to the same, in the type of the weights."""
        features = features.to(self.mean.dtype)
        share = torch.where(self.count < self.calls, 1 / (self.count + 1), 0)
        self.mean.lerp_(distributed.all_mean(features.mean(dim=(0, 2, 3))), share)
        self.square.lerp_(distributed.all_mean(features.square().mean(dim=(0, 2, 3))), share)
        self.count.add_(1)
        deviation = (self.square - self.mean.square()).clamp(min=1e-6).sqrt()
        return (features - self.mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)


class Distillation(Term):
    """Keep projected features of the student near a frozen encoder's: 0.9 cosine, 0.1 smooth L1 (VFM-UDA++).

    Args:
        encoder: images in [0, 1] -> foundation features (B, D, h, w), frozen.
        encoder_channels: D.
        channels: C of the student's stage.
        stage: index of that stage.
        clean: the encoder sees the images before augmentation and masking.
        standardize: by channel, what the encoder gives.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        encoder_channels: int,
        channels: int,
        *,
        stage: int = 3,
        clean: bool = True,
        standardize: bool = True,
        views: Iterable[str] = ("source", "mixed"),
        weight: float = 0.1,
    ) -> None:
        super().__init__(views, weight)
        self.encoder, self.stage, self.clean = encoder, stage, clean
        self.standardize = Standardize(encoder_channels) if standardize else nn.Identity()
        wide = 4 * channels
        layers = nn.Conv2d(channels, wide, 1), LayerNorm2d(wide), nn.GELU(), nn.Conv2d(wide, encoder_channels, 1)
        self.project = nn.Sequential(*layers)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        seen = view.clean if self.clean and view.clean is not None else view.images
        theirs = self.standardize(self.encoder(seen))
        ours = F.interpolate(
            self.project(features[-len(student.backbone.channels) :][self.stage]), theirs.shape[-2:], mode="bilinear"
        )
        cosine = F.cosine_similarity(ours, theirs, dim=1)
        distance = F.smooth_l1_loss(ours, theirs, reduction="none").mean(dim=1)
        return masked_mean(0.9 * (1 - cosine) + 0.1 * distance, places_inside(view, theirs.shape[-2:]))


class Affinity(Term):
    """Make places as similar to the student as to a frozen encoder (pair-wise distillation, Liu et al., CVPR 2019).

    The loss is the mean distance of the two cosines over pairs that the encoder finds clearly alike or clearly unlike.

    Args:
        encoder: images in [0, 1] -> foundation features (B, D, h, w), frozen.
        stage: index of the student's stage.
        unclear: cosines between these are left out.
        side: the largest side of the grid on which places are compared.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        *,
        stage: int = 3,
        unclear: tuple[float, float] = (0.2, 0.6),
        side: int = 16,
        views: Iterable[str] = ("source", "mixed"),
        weight: float = 1.0,
    ) -> None:
        super().__init__(views, weight)
        self.encoder, self.stage, self.unclear, self.side = encoder, stage, unclear, side

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        ours, theirs = features[-len(student.backbone.channels) :][self.stage], self.encoder(view.images)
        height, width = (min(self.side, *sides) for sides in zip(ours.shape[-2:], theirs.shape[-2:], strict=True))
        grid = height, width
        ours = similarities(F.interpolate(ours, grid, mode="bilinear"))
        theirs = similarities(F.adaptive_avg_pool2d(theirs, grid))
        counts = (theirs < self.unclear[0]) | (theirs > self.unclear[1])
        if (inside := places_inside(view, grid)) is not None:
            counts &= inside.flatten(1)[:, None] & inside.flatten(1)[:, :, None]
        return masked_mean((ours - theirs).abs(), counts)


def similarities(maps: Tensor) -> Tensor:
    """Cosines of all pairs of places: (B, C, h, w) -> (B, h * w, h * w), of 32 bits at least."""
    tokens = F.normalize(maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2), dim=1)
    with torch.autocast(maps.device.type, enabled=False):
        return tokens.mT @ tokens
