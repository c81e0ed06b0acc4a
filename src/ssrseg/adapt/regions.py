"""Regions of an image, and pseudo-labels refined by them: each takes the label of its majority, after SAM4UDASS.

Regions are masks such as SAM writes, or what looks alike to a frozen foundation encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.adapt.batch import Pseudo
from ssrseg.config.data import MOST_MASKS


@dataclass(frozen=True)
class Regions:
    """Find regions of target images, and refine pseudo-labels by them.

    Args:
        encoder: images in [0, 1] -> foundation features (B, D, h, w), frozen; masks are handed over when absent.
        clusters: k, regions of an image.
        majority: the mean probability of a class from which a region has its label everywhere.
    """

    encoder: Callable[[Tensor], Tensor] | None
    clusters: int = 24
    majority: float = 0.6

    def __call__(
        self,
        images: Tensor,
        logits: Tensor,
        pseudo: Pseudo,
        valid: Tensor,
        inside: Tensor | None,
        masks: Tensor | None = None,
    ) -> Pseudo:
        """Refine what `pseudo_label` made of logits (B, K, H, W) of images, where they are `inside`, no padding."""
        size, count, regions = logits.shape[-2:], MOST_MASKS, masks
        if self.encoder is not None:
            fine = F.interpolate(self.encoder(images), [-(-side // 4) for side in size], mode="bilinear")
            regions = F.interpolate(1.0 + cluster(fine, self.clusters)[:, None], size)[:, 0].long()
            count = 1 + self.clusters
        if regions is None:
            return pseudo
        regions = regions if inside is None else regions * inside
        return refine(pseudo, logits.float().softmax(dim=1), regions, valid, self.majority, count)


def cluster(features: Tensor, count: int, rounds: int = 5) -> Tensor:
    """Assign places of each image to clusters by k-means with cosines: (B, D, h, w) -> (B, h, w) int64, below `count`.

    Nothing is drawn: the first centres are places on a lattice.
    """
    height, width = features.shape[-2:]
    tokens, ids = F.normalize(features.flatten(2), dim=1), torch.arange(count, device=features.device)
    centres = tokens[:, :, ids * height // count * width + (ids * 0.618 % 1 * width).long()]  # (B, D, count)
    for _ in range(rounds):
        members = (centres.mT @ tokens).argmax(dim=1)  # (B, places)
        chosen = (members[:, :, None] == ids).to(tokens.dtype)
        centres = torch.where(chosen.any(dim=1)[:, None], F.normalize(tokens @ chosen, dim=1), centres)
    members = (centres.mT @ tokens).argmax(dim=1)
    return members.view(-1, height, width)


def refine(
    pseudo: Pseudo, probabilities: Tensor, regions: Tensor, valid: Tensor, majority: float, count: int
) -> Pseudo:
    """Label regions whose mean probability of a class is at least `majority` by it; other pixels keep their labels.

    The trust of a pixel is the mean probability of its label in its region, 0 where not `valid`. Region ids (B, H, W)
    int64 are below `count`; pixels of region 0, which is none, stay as they are. Probabilities (B, K, H, W).
    """
    firsts = count * torch.arange(len(regions), device=regions.device).view(-1, 1, 1)
    places = (regions + firsts).flatten()  # of each pixel, its region among those of all images
    pixels = F.pad(probabilities.movedim(1, -1).flatten(0, 2), (0, 1), value=1.0)  # the last column counts
    sums = pixels.new_zeros(len(regions) * count, pixels.shape[1]).index_add(0, places, pixels)
    means = sums[:, :-1] / sums[:, -1:].clamp(min=1)
    share, winner = means.max(dim=1)
    labels = torch.where((share >= majority)[places], winner[places], pseudo.labels.flatten())
    trust = means[places, labels].view_as(pseudo.trust) * valid
    none = regions == 0
    labels = torch.where(none, pseudo.labels, labels.view_as(regions))
    return Pseudo(labels, torch.where(none, pseudo.trust, trust))
