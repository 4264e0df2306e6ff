"""Means and shares with intervals; prompts that are translations of one another are resampled together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; `rated` values went in, `missing` could not be rated."""

    mean: float | None
    low: float | None
    high: float | None
    rated: int
    missing: int


def estimate(
    values: Sequence[float | None],
    clusters: Sequence[str],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean of `values` with an interval; None is missing and never counts as zero.

    Shares (values 0 and 1) with one value a cluster get Wilson's score interval, which stays honest at 0 and 1;
    everything else the percentile bootstrap over clusters (Efron & Tibshirani 1993, chapter 13).
    """
    rated = [(float(v), c) for v, c in zip(values, clusters, strict=True) if v is not None]
    missing = len(values) - len(rated)
    if not rated:
        return Estimate(None, None, None, 0, missing)
    numbers = [value for value, _ in rated]
    mean = sum(numbers) / len(numbers)
    single = len({cluster for _, cluster in rated}) == len(rated)
    if set(numbers) <= {0.0, 1.0} and (single or mean in (0.0, 1.0)):
        low, high = wilson(mean, len({cluster for _, cluster in rated}), confidence)
    else:
        low, high = cluster_bootstrap(rated, resamples, confidence, np.random.default_rng(seed))
    return Estimate(mean, low, high, len(rated), missing)


def wilson(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share out of `count` (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def cluster_bootstrap(
    rated: Sequence[tuple[float, str]], resamples: int, confidence: float, generator: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean when whole clusters are drawn with replacement."""
    names = sorted({cluster for _, cluster in rated})
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, cluster in rated:
        sums[place[cluster]] += value
        counts[place[cluster]] += 1
    drawn = generator.integers(0, len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
