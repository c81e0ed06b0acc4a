"""Random numbers one by one, as a scene is laid out."""

from __future__ import annotations

import math
from random import Random

import numpy as np

Range = tuple[float, float]


class Dice(Random):
    """The standard library's generator and what street scenes draw with it.

    A layout takes hundreds of single numbers, which NumPy's generators give ten times more slowly.
    """

    @classmethod
    def of(cls, rng: np.random.Generator) -> Dice:
        """Dice that continue a NumPy generator."""
        return cls(int(rng.integers(2**63)))

    def within(self, bounds: Range) -> float:
        """Uniform between two bounds."""
        return bounds[0] + (bounds[1] - bounds[0]) * self.random()

    def chance(self, probability: float) -> bool:
        """True as often as `probability` says."""
        return self.random() < probability

    def ahead(self, near: float, far: float) -> float:
        """A distance, denser near the camera: uniform in its logarithm."""
        return near * math.exp(self.random() * math.log(far / near))

    def count(self, mean: float) -> int:
        """A Poisson number (Knuth: uniform factors until their product falls below exp(-mean))."""
        number, product, least = 0, self.random(), math.exp(-mean)
        while product > least:
            number, product = number + 1, product * self.random()
        return number
