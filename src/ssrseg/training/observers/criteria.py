"""How good a model probably is on images that nobody labelled: pure functions of its predictions.

Every criterion is higher for a model that it deems better. None of them sees whether a prediction is *right*: a model
that is sure, varied and wrong pleases them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.config import CRITERIA
from ssrseg.inference.evaluate import Scores

TEMPERATURE = 0.05
"""Of soft neighbourhood density (Saito et al. 2021 use one value for every task)."""


def mean_entropy(probabilities: Tensor) -> Tensor:
    """Mean over N predictions (N, K) of their entropy, in nats: 0 when sure, log K when clueless."""
    return _entropy(probabilities).mean()


def diversity(mean_prediction: Tensor) -> Tensor:
    """Entropy of the mean prediction (K,), in nats: log K when all classes are predicted alike, 0 when only one is."""
    return _entropy(mean_prediction)


def information_maximization(probabilities: Tensor) -> Tensor:
    """Diversity minus mean entropy of predictions (N, K): their mutual information with the input, in nats.

    The negative of the IM loss of SHOT (Liang, Hu, Feng: Do We Really Need to Access the Source Data?, ICML 2020,
    section 3.2), used to choose models by Musgrave, Belongie, Lim (Three New Validators and a Large-Scale Benchmark
    Ranking for Unsupervised Domain Adaptation, 2022).
    """
    return diversity(probabilities.mean(dim=0)) - mean_entropy(probabilities)


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
    return _entropy(similarities.softmax(dim=1)).mean()


def _entropy(probabilities: Tensor) -> Tensor:
    """Along the last dimension, in nats; a probability of 0 adds nothing."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return entropy


def agreement(student: Tensor, teacher: Tensor, num_classes: int) -> Tensor:
    """Pixels (K, K), int64, by the class that the teacher gives (row) and the student (column); both are ids (N,)."""
    return torch.bincount(teacher * num_classes + student, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass
class Tally:
    """Criteria over images of any size, added one by one.

    Agreement of two networks as a sign of accuracy: Jiang et al., Assessing Generalization of SGD via Disagreement,
    ICLR 2022; here student and averaged teacher. The mean confidence: Hendrycks and Gimpel, A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples, ICLR 2017. The share of confident pixels is the trust of DACS.
    """

    num_classes: int
    threshold: float
    """Confidence from which a pixel counts as confident."""
    pixels: int
    """Of each image, for soft neighbourhood density."""
    _means: list[Tensor] = field(default_factory=list)
    _parts: list[list[float]] = field(default_factory=list)
    _confusion: Tensor | None = None

    def add(self, logits: Tensor, teacher: Tensor | None) -> None:
        """One image: the student's logits (K, H, W) and the teacher's class ids (H, W), if there is a teacher."""
        probabilities = logits.float().flatten(1).softmax(dim=0).T  # (pixels, K)
        confidence, student = probabilities.max(dim=1)
        parts = (
            mean_entropy(probabilities),
            soft_neighborhood_density(probabilities[self._sample(len(probabilities)).to(logits.device)]),
            confidence.mean(),
            (confidence >= self.threshold).float().mean(),
        )
        self._parts.append(torch.stack(parts).tolist())
        self._means.append(probabilities.mean(dim=0).cpu().double())
        if teacher is not None:
            counts = agreement(student, teacher.flatten(), self.num_classes).cpu()
            self._confusion = counts if self._confusion is None else self._confusion + counts

    def _sample(self, count: int) -> Tensor:
        """Which pixels are compared: drawn once for each size of image, the same at every evaluation."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(0))[: self.pixels]

    def criteria(self) -> dict[str, float | None]:
        """The criteria by their names in `CRITERIA`; `None` for what cannot be told (no teacher, a NaN)."""
        agreed = self._agreement()
        varied, unsure = self._diversity(), self._mean(0)
        values = {
            "im": None if varied is None or unsure is None else varied - unsure,
            "snd": self._mean(1),
            "agreement": None if agreed is None else _finite(agreed.miou),
            "confidence": self._mean(2),
        }
        assert values.keys() == set(CRITERIA)
        return values

    def parts(self) -> dict[str, float | None]:
        """What the criteria are made of, or are seen beside."""
        agreed = self._agreement()
        return {
            "entropy": self._mean(0),
            "diversity": self._diversity(),
            "confident_share": self._mean(3),
            "pixel_agreement": None if agreed is None else _finite(agreed.pixel_accuracy),
        }

    def _mean(self, part: int) -> float | None:
        return _finite(math.fsum(values[part] for values in self._parts) / len(self._parts))

    def _diversity(self) -> float | None:
        return _finite(float(diversity(torch.stack(self._means).mean(dim=0))))

    def _agreement(self) -> Scores | None:
        names = tuple(map(str, range(self.num_classes)))
        return None if self._confusion is None else Scores(names, self._confusion)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
