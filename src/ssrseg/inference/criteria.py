"""Criteria without labels: how good a model is on images of which nobody knows the truth.

Every criterion is higher for a model that it deems better. None of them sees whether a prediction is *right*: a model
that is sure, varied and wrong pleases them all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.inference.metrics import Scores, confusion_matrix

TEMPERATURE = 0.05
"""Of soft neighbourhood density (Saito et al. 2021 use one value for every task)."""


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of predictions (..., K), in nats: 0 when sure, log K when clueless; a probability of 0 adds nothing."""
    found: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return found


def soft_neighborhood_density(probabilities: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean entropy, in nats, of each prediction's soft choice of a neighbour among the others (N, K), N >= 2.

    Neighbours are chosen by a softmax over cosine similarities / temperature, oneself left out. It is high when every
    prediction has many others close by: 0 for N = 2, log(N - 1) when all are alike, so also when the model predicts
    one class everywhere. Saito et al.: Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft
    Neighborhood Density, ICCV 2021, section 3.
    """
    directions = F.normalize(probabilities, dim=1)
    similarities = (directions @ directions.T) / temperature
    similarities.fill_diagonal_(-math.inf)
    return entropy(similarities.softmax(dim=1)).mean()


class CriteriaAccumulator:
    """Criteria over images of any size, added one by one.

    Information maximization is the entropy of the mean prediction (diversity) minus the mean entropy of predictions:
    their mutual information with the input, in nats. It is the negative of the IM loss of SHOT (Liang, Hu, Feng: Do We
    Really Need to Access the Source Data?, ICML 2020, section 3.2), used to choose models by Musgrave, Belongie, Lim
    (Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain Adaptation, 2022).

    Agreement of two networks as a sign of accuracy: Jiang et al., Assessing Generalization of SGD via Disagreement,
    ICLR 2022; here student and averaged teacher. The mean confidence: Hendrycks and Gimpel, A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples, ICLR 2017. The share of confident pixels is the trust of DACS.

    `threshold` is the confidence from which a pixel counts; `pixels` of each image are compared for the density.
    """

    def __init__(self, num_classes: int, threshold: float, pixels: int) -> None:
        self._num_classes, self._threshold, self._pixels = num_classes, threshold, pixels
        self._means: list[Tensor] = []
        self._parts: list[list[float]] = []
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, logits: Tensor, teacher: Tensor | None) -> None:
        """Add an image: the student's logits (K, H, W) and the teacher's class ids (H, W), if there is a teacher."""
        probabilities = logits.float().flatten(1).softmax(dim=0).T  # (pixels, K)
        confidence, student = probabilities.max(dim=1)
        # The pixels that are compared are drawn once for each size of image, the same at every evaluation.
        sample = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(0))[: self._pixels]
        density = soft_neighborhood_density(probabilities[sample.to(logits.device)])
        share = (confidence >= self._threshold).float().mean()
        self._parts.append(torch.stack([entropy(probabilities).mean(), density, confidence.mean(), share]).tolist())
        self._means.append(probabilities.mean(dim=0).cpu().double())
        if teacher is not None:
            self._confusion += confusion_matrix(teacher.flatten(), student, self._num_classes).cpu()

    def criteria(self) -> tuple[dict[str, float | None], ...]:
        """Return the criteria by their names in `CRITERIA`, and their parts and figures that are journaled beside them.

        `None` is what cannot be measured: no teacher, a NaN.
        """
        unsure, density, confidence, share = (math.fsum(part) / len(part) for part in zip(*self._parts, strict=True))
        varied = float(entropy(torch.stack(self._means).mean(dim=0)))
        agreed = Scores(tuple(map(str, range(self._num_classes))), self._confusion)
        values = {"im": varied - unsure, "snd": density, "agreement": agreed.miou, "confidence": confidence}
        parts = {"entropy": unsure, "diversity": varied, "confident_share": share}
        found = values, parts | {"pixel_agreement": agreed.pixel_accuracy}
        return tuple({name: x if math.isfinite(x) else None for name, x in each.items()} for each in found)
