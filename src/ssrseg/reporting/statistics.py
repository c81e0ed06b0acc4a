"""Statistics over seeds: mean, deviation, intervals and tests of differences, correction for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

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
        """Lower and upper bound, from Student's t."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    @property
    def verdict(self) -> str:
        """`within noise` where the interval holds zero, else `better` or `worse`; `too few seeds` without one."""
        if self.half_width is None:
            return "too few seeds"
        if abs(self.mean) <= self.half_width:
            return "within noise"
        return "better" if self.mean > 0 else "worse"


def spread(values: Sequence[float]) -> Spread | None:
    """Compute mean and deviation; `None` for no values."""
    if not values:
        return None
    return Spread(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def over_seeds(values: Seeded) -> Spread | None:
    """Compute mean and deviation of values with seeds; `None` for no values."""
    return spread([value for _, value in values])


def difference(base: Seeded, other: Seeded) -> Difference:
    """Estimate `other` minus `base`, both as (seed, value), neither empty.

    Paired over the seeds that both ran, if these are at least two, which takes out what a seed does to both. Else
    Welch's interval, which does not assume equal variances (Welch 1947), over all seeds.
    """
    one, two = dict(base), dict(other)
    distinct = len(one) == len(base) and len(two) == len(other)
    common = [seed for seed in one if seed is not None and seed in two] if distinct else []
    resampled = None
    if (n := len(common)) >= 2:
        gaps, seeds = [two[seed] - one[seed] for seed in common], max(len(one), len(two))
        mean, error, freedom = fmean(gaps), stdev(gaps) / math.sqrt(n), float(n - 1)
        test = f"paired by seed, n = {n}" + (f" in common of {seeds}" if n < seeds else "")
        resampled = bootstrap(gaps) if n >= ENOUGH_TO_RESAMPLE else None
    else:
        both = [[value for _, value in group] for group in (base, other)]
        mean = fmean(both[1]) - fmean(both[0])
        if min(map(len, both)) < 2:
            return Difference(mean)
        parts = [variance(group) / len(group) for group in both]
        apart = sum(part**2 / (len(group) - 1) for part, group in zip(parts, both, strict=True))
        error, freedom = math.sqrt(sum(parts)), sum(parts) ** 2 / apart if any(parts) else 1.0
        spreads = "" if any(parts) else "no spread at all, "
        test = f"Welch, not paired, {spreads}n = {len(base)} and {len(other)}"
    from scipy.stats import t  # not its tests, which warn where a group has no spread, as one seed apart has none

    p = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(mean, float(t.ppf(0.975, freedom)) * error, test, p, resampled)


def bootstrap(gaps: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Compute the middle 95% of the means of resampled differences (percentile bootstrap, Efron 1979).

    It assumes no normal distribution; with few pairs it is too narrow, as it knows no value beyond those seen.
    """
    import numpy as np
    from scipy import stats

    found = stats.bootstrap((gaps,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p of many tests so that the chance of any false alarm among them holds (Holm 1979)."""
    adjusted, floor = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        floor = max(floor, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = floor
    return adjusted


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Compute Spearman's rank correlation; `None` for fewer than three pairs or where one of the two is constant."""
    from scipy import stats

    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(stats.spearmanr(one, other).statistic)
