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
    """Difference of two means, or a sum of weighted ones; its 95% interval, where each has two seeds, is two-sided."""

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
    return _weighted((base, other), (-1, 1))


def share_of_gap(base: Seeded, other: Seeded, top: Seeded) -> Difference | None:
    """Estimate (other - base) / (top - base), none empty: 0 is `base`, 1 is `top`; paired or not as a `difference`.

    The interval is the delta method's: that of the mean of other - share * top - (1 - share) * base, which is zero,
    over the gap. It takes the gap for known, so it is no good where the gap is not clear of zero; `None` without a gap.
    """
    groups = _paired((base, other, top)) or (base, other, top)
    low, mean, high = (fmean(value for _, value in group) for group in groups)
    if low == high:
        return None
    share = (mean - low) / (high - low)
    error = _weighted(groups, (share - 1, 1, -share))
    half_width = None if error.half_width is None else error.half_width / abs(high - low)
    return Difference(share, half_width, error.test)


def _paired(groups: Sequence[Seeded]) -> list[Seeded] | None:
    """Restrict groups to the seeds that all ran, each once, in one order; `None` where these are fewer than two."""
    known = [dict(group) for group in groups]
    common = [seed for seed in known[0] if seed is not None and all(seed in values for values in known)]
    distinct = all(len(values) == len(group) for values, group in zip(known, groups, strict=True))
    return [[(seed, values[seed]) for seed in common] for values in known] if distinct and len(common) > 1 else None


def _weighted(groups: Sequence[Seeded], weights: Sequence[float]) -> Difference:
    """Estimate the sum of weighted means."""
    counts, resampled = [len(group) for group in groups], None
    if (paired := _paired(groups)) is not None:
        sums = [
            math.fsum(weight * value for weight, (_, value) in zip(weights, row, strict=True))
            for row in zip(*paired, strict=True)
        ]
        n, most = len(sums), max(counts)
        mean, error, freedom = fmean(sums), stdev(sums) / math.sqrt(n), float(n - 1)
        test = f"paired by seed, n = {n}" + (f" in common of {most}" if n < most else "")
        resampled = bootstrap(sums) if n >= ENOUGH_TO_RESAMPLE else None
    else:
        values = [[value for _, value in group] for group in groups]
        mean = math.fsum(weight * fmean(each) for weight, each in zip(weights, values, strict=True))
        if min(counts) < 2:
            return Difference(mean)
        parts = [weight**2 * variance(each) / len(each) for weight, each in zip(weights, values, strict=True)]
        apart = sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
        error, freedom = math.sqrt(sum(parts)), sum(parts) ** 2 / apart if any(parts) else 1.0
        spreads = "" if any(parts) else "no spread at all, "
        test = f"Welch, not paired, {spreads}n = {' and '.join(map(str, counts))}"
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
