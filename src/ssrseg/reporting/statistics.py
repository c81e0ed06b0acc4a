"""How much of a difference seeds alone explain: mean, deviation, intervals, and what many comparisons do to them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Seeded = Sequence[tuple[int | None, float]]
"""Values with the seeds that they come from."""

ENOUGH_TO_RESAMPLE = 5
"""Pairs below which no bootstrap is computed: of four values there are but 35 different resamples."""

RESAMPLES = 10_000


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
    """Of the interval from Student's t."""
    test: str = ""
    p: float | None = None
    """Two-sided, of the same t."""
    bootstrap: tuple[float, float] | None = None
    """95% interval from resampled pairs, with `ENOUGH_TO_RESAMPLE` of them."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """From Student's t."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval from Student's t holds zero; `None` without an interval."""
        return None if self.half_width is None else abs(self.mean) <= self.half_width

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `within noise`; `too few seeds` without an interval."""
        if self.half_width is None:
            return "too few seeds"
        return "within noise" if self.within_noise else "better" if self.mean > 0 else "worse"


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation; `None` for no values."""
    if not values:
        return None
    return Spread(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(base: Seeded, other: Seeded) -> Difference:
    """`other` minus `base`, both as (seed, value), neither empty.

    Paired over the seeds that both ran, if these are at least two, which takes out what a seed does to both. Else
    Welch's interval, which does not assume equal variances (Welch 1947), over all seeds.
    """
    one, two = dict(base), dict(other)
    distinct = len(one) == len(base) and len(two) == len(other)
    common = [seed for seed in one if seed is not None and seed in two] if distinct else []
    if len(common) >= 2:
        return _paired([two[seed] - one[seed] for seed in common], max(len(one), len(two)))
    values, others = [value for _, value in base], [value for _, value in other]
    mean = statistics.fmean(others) - statistics.fmean(values)
    return _welch(mean, values, others) if min(len(values), len(others)) >= 2 else Difference(mean)


def _paired(gaps: Sequence[float], seeds: int) -> Difference:
    mean, error, n = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps)
    test = f"paired by seed, n = {n}" + (f" in common of {seeds}" if n < seeds else "")
    resampled = bootstrap(gaps) if n >= ENOUGH_TO_RESAMPLE else None
    return Difference(mean, t_quantile(n - 1) * error, test, _p(mean, error, n - 1), resampled)


def _welch(mean: float, values: Sequence[float], others: Sequence[float]) -> Difference:
    parts = [statistics.variance(group) / len(group) for group in (values, others)]
    error, sizes = math.sqrt(sum(parts)), f"n = {len(values)} and {len(others)}"
    if error == 0:
        return Difference(mean, 0.0, f"Welch, not paired, no spread at all, {sizes}", _p(mean, 0.0, 1))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(values) - 1) + parts[1] ** 2 / (len(others) - 1))
    return Difference(mean, t_quantile(freedom) * error, f"Welch, not paired, {sizes}", _p(mean, error, freedom))


def _p(mean: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return max(0.0, 1 - _probability(math.atan(abs(mean) / error / math.sqrt(freedom)), freedom))


def bootstrap(gaps: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The middle 95% of the means of resampled differences (percentile bootstrap, Efron 1979).

    With few pairs it is too narrow: it knows no value beyond those seen. It is there because it assumes no normal
    distribution.
    """
    values = np.asarray(gaps)
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of each of many tests, adjusted so that the chance of any false alarm among them holds (Holm 1979)."""
    adjusted, floor = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        floor = max(floor, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = floor
    return adjusted


@lru_cache(maxsize=256)  # one table of classes asks for the same few over and over
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
