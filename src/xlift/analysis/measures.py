"""Measures of agreement from tables of counts, and their intervals by resampling clusters.

A table counts how often the first of two raters gave one value and the second another. Functions take tables
[..., pairs of raters, first's values, second's values] and give [..., pairs of raters], nan where undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtr, stdtr, stdtrit

from xlift.intervals import Numbers, wilson

GRADES = np.array([0.0, 1.0, 2.0])
"""The values of a facet that has no scale of its own."""


# Sums over axes of three values are many times slower than one product of the flat table with a matrix of such sums.


def _flat(tables: Numbers) -> Numbers:
    return tables.reshape(*tables.shape[:-2], -1)


def _margins(tables: Numbers) -> tuple[Numbers, Numbers]:
    """How often the first gave each value, and the second: [..., first's values] and [..., second's values]."""
    first, second = (np.eye(size) for size in tables.shape[-2:])
    rows = np.repeat(first, len(second), axis=0)
    return _flat(tables) @ rows, _flat(tables) @ np.tile(second, (len(first), 1))


def _dot(one: Numbers, other: Numbers) -> Numbers:
    return np.einsum("...i,...i", one, other)


def kappa(tables: Numbers) -> Numbers:
    """Cohen's kappa with linear weights (Cohen 1968)."""
    rows, columns = _margins(tables)
    places = np.arange(tables.shape[-1], dtype=np.float64)
    distance = np.abs(places[:, None] - places)
    observed = _flat(tables) @ distance.ravel()
    expected = _dot(rows @ distance, columns) / (rows @ np.ones(len(places)))
    # Against a constant rater kappa is 0 whatever the other does: it says nothing.
    constant = (np.count_nonzero(rows, axis=-1) < 2) | (np.count_nonzero(columns, axis=-1) < 2)
    return np.where(constant, np.nan, 1 - observed / expected)


def tau(tables: Numbers) -> Numbers:
    """Kendall's tau-b."""
    first, second = (np.arange(size) for size in tables.shape[-2:])
    # [cell, cell]: 1 where both values are higher, -1 where one is and the other lower; each two cells meet twice.
    order = np.sign(first - first[:, None])[:, None, :, None] * np.sign(second - second[:, None])[None, :, None]
    flat, margins = _flat(tables), _margins(tables)
    total = flat @ np.ones(flat.shape[-1])
    both = (total**2 - _dot(margins[0], margins[0])) / 2 * (total**2 - _dot(margins[1], margins[1])) / 2
    return np.where(both > 0, _dot(flat @ order.reshape(2 * flat.shape[-1:]) / 2, flat) / np.sqrt(both), np.nan)


def same(tables: Numbers) -> Numbers:
    """Share of pairs of ratings that are the same."""
    flat = _flat(tables)
    return (flat @ np.eye(tables.shape[-1]).ravel()) / (flat @ np.ones(flat.shape[-1]))


def leniency(tables: Numbers, grades: Numbers = GRADES, scale: Numbers = GRADES) -> Numbers:
    """Mean of the first's values, which are `grades`, minus the second's, which are `scale`."""
    flat = _flat(tables)
    return (flat @ (grades[:, None] - scale).ravel()) / (flat @ np.ones(flat.shape[-1]))


def alpha(coincidences: Numbers) -> Numbers:
    """Krippendorff's alpha with the ordinal distance (Krippendorff 2011), from coincidences [..., values, values]."""
    counts = coincidences.sum(axis=-1)
    total = counts.sum(axis=-1)
    ranks = counts.cumsum(axis=-1) - counts / 2
    distance = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (coincidences * distance).sum(axis=(-1, -2))
    expected = (counts[..., :, None] * counts[..., None, :] * distance).sum(axis=(-1, -2)) / (total - 1)
    return np.where(expected > 0, 1 - observed / expected, np.nan)


Sums = dict[str, Numbers]
"""By measure the sum of values times weights, and the sum of weights: [2, ...]."""


def weighted(name: str, tables: Numbers, grades: Numbers = GRADES, scale: Numbers = GRADES) -> Numbers:
    """Sums over the pairs of raters where a measure is defined: its values times their weights, and the weights.

    Of tables [..., pairs of raters, values, values]: [2, ...]. A pair weighs as much as it has ratings.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        values = leniency(tables, grades, scale) if name == "leniency" else OF_TABLES[name](tables)
    weights = np.where(np.isnan(values), 0.0, tables.sum(axis=(-1, -2)))
    return np.stack([np.nansum(values * weights, axis=-1), weights.sum(axis=-1)])


def sums(tables: Numbers, grades: Numbers, scale: Numbers) -> Sums:
    """`weighted` of every measure that tables of these values allow, without alpha."""
    names = ("tau", "leniency", "kappa", "agreement") if np.array_equal(scale, grades) else ("tau", "leniency")
    return {name: weighted(name, tables, grades, scale) for name in names}


def added(total: Sums, more: Sums) -> None:
    """Add sums over some pairs to those over others."""
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value


def pooled(total: Sums) -> dict[str, Numbers]:
    """The mean of every measure over all pairs of raters, nan where it is defined for none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: np.where(value[1] > 0, value[0] / value[1], np.nan) for name, value in total.items()}


OF_TABLES: dict[str, Callable[[Numbers], Numbers]] = {"kappa": kappa, "agreement": same, "alpha": alpha, "tau": tau}


DRAWN_AT_ONCE = 10_000_000
"""Clusters that are drawn together, of 8 bytes each."""
DRAWS = 4_000_000
"""Pairs of people times resamples; of 5,000 pairs 800 resamples are drawn instead of 2,000."""


# e.g. affordable(2000, 5000) → 800
def affordable(resamples: int, pairs: int) -> int:
    return min(resamples, max(200, DRAWS // max(pairs, 1)))


def resampled(counts: Numbers | csr_array, resamples: int, seed: int) -> Numbers:
    """Sums [resamples, …] of `counts` [clusters, …] over clusters drawn with replacement, some resamples at a time."""
    generator, number = np.random.default_rng(seed), int(counts.shape[0])
    flat = counts.reshape(number, -1) if isinstance(counts, np.ndarray) else counts
    parts = []
    most = max(1, min(100, DRAWN_AT_ONCE // max(number, 1)))
    for start in range(0, resamples, most):
        size = min(most, resamples - start)
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


# e.g. holm([0.01, 0.04, None, 0.03]) → [0.03, 0.06, None, 0.06]
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


# e.g. deviation(0.5, np.array([0.5, 0.5]), 4, 0.95) → (0.5, None, None, 0.125)
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
