"""Measures of agreement from tables of counts, and their intervals by resampling clusters.

A table counts how often the first of two raters gave one value and the second another. Functions take tables
[..., pairs of raters, first's values, second's values] and give [..., pairs of raters], nan where undefined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from xlift.intervals import Numbers, wilson

GRADES = np.array([0.0, 1.0, 2.0])


def kappa(tables: Numbers) -> Numbers:
    """Cohen's kappa with linear weights (Cohen 1968)."""
    rows, columns = tables.sum(axis=-1), tables.sum(axis=-2)
    distance = np.abs(GRADES[:, None] - GRADES)
    observed = (tables * distance).sum(axis=(-1, -2))
    expected = np.einsum("...i,ij,...j", rows, distance, columns) / rows.sum(axis=-1)
    # Against a constant rater kappa is 0 whatever the other does: it says nothing.
    constant = ((rows > 0).sum(axis=-1) < 2) | ((columns > 0).sum(axis=-1) < 2)
    return np.where(constant, np.nan, 1 - observed / expected)


def tau(tables: Numbers) -> Numbers:
    """Kendall's tau-b."""

    def ordered(counts: Numbers) -> Numbers:
        beyond = counts[..., ::-1, ::-1].cumsum(axis=-1).cumsum(axis=-2)[..., ::-1, ::-1]
        return (counts[..., :-1, :-1] * beyond[..., 1:, 1:]).sum(axis=(-1, -2))

    def untied(margin: Numbers) -> Numbers:
        return (margin.sum(axis=-1) ** 2 - (margin**2).sum(axis=-1)) / 2

    both = untied(tables.sum(axis=-1)) * untied(tables.sum(axis=-2))
    return np.where(both > 0, (ordered(tables) - ordered(tables[..., ::-1])) / np.sqrt(both), np.nan)


def same(tables: Numbers) -> Numbers:
    """Share of pairs of ratings that are the same."""
    return np.trace(tables, axis1=-2, axis2=-1) / tables.sum(axis=(-1, -2))


def leniency(tables: Numbers, scale: Numbers = GRADES) -> Numbers:
    """Mean of the first's values minus the second's, which are `scale`."""
    return (tables * (GRADES[:, None] - scale)).sum(axis=(-1, -2)) / tables.sum(axis=(-1, -2))


def alpha(coincidences: Numbers) -> Numbers:
    """Krippendorff's alpha with the ordinal distance (Krippendorff 2011), from coincidences [..., values, values]."""
    counts = coincidences.sum(axis=-1)
    total = counts.sum(axis=-1)
    ranks = counts.cumsum(axis=-1) - counts / 2
    distance = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (coincidences * distance).sum(axis=(-1, -2))
    expected = (counts[..., :, None] * counts[..., None, :] * distance).sum(axis=(-1, -2)) / (total - 1)
    return np.where(expected > 0, 1 - observed / expected, np.nan)


def pooled(values: Numbers, weights: Numbers) -> Numbers:
    """The mean over pairs of raters, weighted, of those where the value is defined."""
    weights = np.where(np.isnan(values), 0.0, weights)
    return np.nansum(values * weights, axis=-1) / weights.sum(axis=-1)


def measured(tables: Numbers, coincidences: Numbers | None, scale: Numbers) -> dict[str, Numbers]:
    """Every measure that these sides allow, over [..., pairs of raters, values, values]."""
    weights = tables.sum(axis=(-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"tau": pooled(tau(tables), weights), "leniency": pooled(leniency(tables, scale), weights)}
        if coincidences is not None:
            found["kappa"] = pooled(kappa(tables), weights)
            found["agreement"] = pooled(same(tables), weights)
            found["alpha"] = pooled(alpha(coincidences), coincidences.sum(axis=(-1, -2)))
    return found


def resampled(counts: Numbers, resamples: int, seed: int) -> Numbers:
    """Sums [resamples, …] of `counts` [clusters, …] over clusters drawn with replacement, some resamples at a time."""
    generator, number = np.random.default_rng(seed), len(counts)
    flat = counts.reshape(number, -1)
    parts = []
    for start in range(0, resamples, 100):
        size = min(100, resamples - start)
        drawn = generator.integers(0, number, size=(size, number)) + np.arange(size)[:, None] * number
        times = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        parts.append(times.astype(np.float64) @ flat)
    return np.concatenate(parts).reshape(resamples, *counts.shape[1:])


def interval(
    name: str, value: float, drawn: Numbers, clusters: int, confidence: float
) -> tuple[float | None, float | None, str | None]:
    """Percentile interval, widened for few clusters (Hesterberg 2015, Am. Statistician 69:371), or why it lacks."""
    if clusters < 2:
        return None, None, "no interval: all items belong to one prompt"
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < 0.95 * len(drawn):
        return None, None, "no interval: undefined in many resamples, as ratings hardly vary"
    if name == "agreement" and value in (0.0, 1.0):
        return *wilson(value, clusters, confidence), None
    if np.ptp(defined) < 1e-12:
        return None, None, "no interval: the same in every resample"
    quantile = stdtrit(clusters - 1, (1 + confidence) / 2)
    tail = float(ndtr(-quantile * np.sqrt(clusters / (clusters - 1))))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high), None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979); None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[i] = highest
    return corrected


Deviation = tuple[float | None, float | None, float | None, float | None]


def deviation(value: float, drawn: Numbers, clusters: int, confidence: float) -> Deviation:
    """(value, low, high, p) of a difference by the t distribution, with the resamples' standard error.

    None where undefined. Without any spread there is no interval, and p is that of the sign test over clusters.
    """
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value):
        return None, None, None, None
    if clusters < 2 or len(defined) < 0.95 * len(drawn):
        return value, None, None, None
    error = float(defined.std()) * (clusters / (clusters - 1)) ** 0.5
    if error < 1e-12:
        return value, None, None, 1.0 if abs(value) < 1e-12 else 2.0 ** (1 - clusters)
    half = float(stdtrit(clusters - 1, (1 + confidence) / 2)) * error
    return value, value - half, value + half, float(2 * stdtr(clusters - 1, -abs(value) / error))
