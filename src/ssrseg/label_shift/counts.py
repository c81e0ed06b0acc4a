"""In how many images a class occurs: by labels in the source, by the model's own predictions in the target."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ssrseg.inference.sliding_window import Infer, evaluating
from ssrseg.models.segmenter import Segmenter


def image_scores(probabilities: Tensor) -> Tensor:
    """s_c = ln of the mean over pixels of exp(P_c): between the mean and the maximum of P.

    Args:
        probabilities: (B, K, H, W).

    Returns:
        (B, K).
    """
    pixels = math.log(probabilities.shape[-2] * probabilities.shape[-1])
    return probabilities.flatten(2).logsumexp(dim=2) - pixels


def target_counts(
    model: Segmenter, images: Iterable[Tensor], frequency: Tensor, infer: Infer, *, device: torch.device | str
) -> Tensor:
    """Images whose score of a class exceeds the class's share of the source's pixels (Undoing's release).

    Args:
        model: on `device`; in eval mode meanwhile.
        images: RGB bytes (3, H, W), one by one.
        frequency: (K,), shares of the labelled source pixels.
        infer: of `ssrseg.inference.sliding_window`.
        device: where.

    Returns:
        Counts (K,), float32.
    """
    counts = torch.zeros(model.num_classes, device=device)
    threshold = frequency.to(device)
    with evaluating(model):
        for image in images:
            logits = infer(model, image[None].to(device).float() / 255, None)
            counts += image_scores(logits.softmax(dim=1))[0] > threshold
    return counts.cpu()


def presence_counts(pixels: Tensor, min_share: float = 0.0) -> Tensor:
    """Files in which a class covers more than `min_share` of the labelled pixels.

    Args:
        pixels: per file and class, (files, K).
        min_share: 0 asks for one pixel.

    Returns:
        Counts (K,), float32.
    """
    shares = pixels / pixels.sum(dim=1, keepdim=True).clamp(min=1)
    return (shares > min_share).float().sum(dim=0)
