"""How much of a difference seeds alone explain: mean, deviation, and an interval from Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of n values; no deviation for a single one."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """Difference of two means, with a two-sided 95% interval where both have at least two seeds."""

    mean: float
    half_width: float | None = None
    test: str = ""

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval holds zero; `None` without an interval."""
        return None if self.half_width is None else abs(self.mean) <= self.half_width


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation; `None` for no values."""
    if not values:
        return None
    return Spread(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(base: Sequence[tuple[int | None, float]], other: Sequence[tuple[int | None, float]]) -> Difference:
    """`other` minus `base`, both as (seed, value), neither empty.

    Paired by seed when both ran the same distinct seeds, which takes out what a seed does to both; else Welch's
    interval, which does not assume equal variances (Welch 1947).
    """
    one, two = dict(base), dict(other)
    values, others = [value for _, value in base], [value for _, value in other]
    mean = statistics.fmean(others) - statistics.fmean(values)
    if min(len(values), len(others)) < 2:
        return Difference(mean)
    if one.keys() == two.keys() and len(one) == len(values) == len(others):
        error = statistics.stdev(two[seed] - one[seed] for seed in one) / math.sqrt(len(one))
        return Difference(mean, t_quantile(len(one) - 1) * error, f"paired by seed, n = {len(one)}")
    parts = [statistics.variance(group) / len(group) for group in (values, others)]
    if sum(parts) == 0:
        return Difference(mean, 0.0, "Welch, no spread at all")
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(values) - 1) + parts[1] ** 2 / (len(others) - 1))
    return Difference(mean, t_quantile(freedom) * math.sqrt(sum(parts)), f"Welch, n = {len(values)} and {len(others)}")


def t_quantile(freedom: float, coverage: float = 0.95) -> float:
    """The t with P(|T| < t) = coverage, for real degrees of freedom >= 1.

    With t = sqrt(freedom) tan(angle) that probability is the integral of cos(angle)^(freedom - 1) from 0,
    times 2 / Beta(1/2, freedom/2): smooth, so Simpson's rule is exact to more digits than anybody prints.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, freedom) < coverage else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(angle: float, freedom: float, intervals: int = 200) -> float:
    width = angle / intervals
    weights = (1 if i in (0, intervals) else 4 if i % 2 else 2 for i in range(intervals + 1))
    heights = (math.cos(i * width) ** (freedom - 1) for i in range(intervals + 1))
    area = math.fsum(w * height for w, height in zip(weights, heights, strict=True)) * width / 3
    log_beta = math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    return 2 * area / math.exp(log_beta)
