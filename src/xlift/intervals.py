"""Means and shares with intervals; prompts that are translations of one another are resampled together.

Two things vary by chance: which prompts were asked, and with which seeds the model was trained. Prompts and seeds are
crossed (every seed answers every prompt), so both are resampled at once and independently (pigeonhole bootstrap, Owen
2007). Of n units n - 1 are drawn, which makes the variance unbiased (Rao & Wu 1988), and intervals are widened by the
t distribution with Satterthwaite's degrees of freedom, without which few seeds would look sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]


NOTHING = 1e-24
"""Variance that is rounding."""


PROMPTS, SEEDS = "prompts", "prompts and seeds"

KEPT_DRAWS = 8_000_000
"""Draws of prompts (clusters × resamples) that are kept for the next table: two bytes each, of eight tables at most."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; `rated` values went in, `missing` could not be rated."""

    mean: float | None
    low: float | None
    high: float | None
    rated: int
    missing: int


class Table(NamedTuple):
    """Sums and counts of values, clusters × runs; `condition` numbers each run's condition from 0."""

    sums: Numbers
    counts: Numbers
    condition: NDArray[np.int64]


class Interval(NamedTuple):
    """Bounds of an interval, and whether it covers prompts only or prompts and seeds."""

    low: float | None
    high: float | None
    covers: str | None


# e.g. estimate([2, None, 0], ["a", "b", "c"], top=2).missing → 1
# e.g. estimate([], []).mean → None
def estimate(
    values: Sequence[float | None],
    clusters: Sequence[str],
    top: float | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean of `values` with an interval; None is missing and never counts as zero.

    Values on a scale from 0 to `top` get Wilson's score interval, which stays honest at both ends, with as many
    independent prompts as the clusters are worth; those of no scale the percentile bootstrap over clusters (Efron &
    Tibshirani 1993, chapter 13), and none if they are all equal or of one cluster. Raises ValueError for values that
    are not on the scale.
    """
    rated = [(float(v), c) for v, c in zip(values, clusters, strict=True) if v is not None]
    missing = len(values) - len(rated)
    if not rated:
        return Estimate(None, None, None, 0, missing)
    table = _single_run(rated)
    if top is not None and not all(0 <= value <= top for value, _ in rated):
        raise ValueError(f"values must be between 0 and {top:g}")
    low, high, _ = interval_of_mean(table, top, resamples, confidence, seed)
    return Estimate(math.fsum(value for value, _ in rated) / len(rated), low, high, len(rated), missing)


# e.g. [round(end, 2) for end in wilson(1.0, 20)] → [0.84, 1.0]
# e.g. [round(end, 2) for end in wilson(0.5, 20)] → [0.3, 0.7]
def wilson(share: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share out of `count` (Wilson 1927)."""
    return score_interval(share, count, NormalDist().inv_cdf((1 + confidence) / 2))


def score_interval(share: float, count: float, z: float) -> tuple[float, float]:
    """`wilson` with a quantile `z` of any distribution."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _single_run(rated: Sequence[tuple[float, str]]) -> Table:
    _, place = np.unique([cluster for _, cluster in rated], return_inverse=True)
    values = np.array([value for value, _ in rated])
    # Sorted, so that rounding does not depend on the order of the values.
    order = np.lexsort((values, place))
    sums = totals(place[order], values[order])
    counts = totals(place, np.ones(len(place)))
    return Table(sums[:, None], counts[:, None], np.zeros(1, dtype=np.int64))


def totals(place: NDArray[np.int64], values: Numbers) -> Numbers:
    """Sums of the values at each place, numbered from 0."""
    return np.asarray(np.bincount(place, weights=values), dtype=np.float64)


def draw(count: int, resamples: int, generator: np.random.Generator) -> Numbers:
    """How often each of `count` units is drawn when `count` - 1 are drawn with replacement: resamples × count."""
    if count <= 1:
        return np.ones((resamples, count))
    # Each resample counts in numbers of its own, so that one bincount does for all of them.
    drawn = generator.integers(0, count, size=(resamples, count - 1)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)


def prompt_draws(count: int, resamples: int, seed: int) -> Numbers:
    """`draw` for prompts, the same for every table with as many clusters."""
    kept = _kept_draws if count * resamples <= KEPT_DRAWS else _kept_draws.__wrapped__
    return kept(count, resamples, seed).astype(float)


@lru_cache(maxsize=8)
def _kept_draws(count: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    # No prompt is drawn 65,536 times: that would take as many prompts, of which each draw takes all at random.
    return draw(count, resamples, np.random.default_rng([seed, 0, count])).astype(np.uint16)


def seed_draws(condition: NDArray[np.int64], resamples: int, seed: int) -> Numbers:
    """How often each run is drawn, within its condition: resamples × runs; all ones if `covered` says prompts only."""
    drawn = np.ones((resamples, len(condition)))
    if covered(condition) == SEEDS:
        for number in range(condition.max() + 1):
            own = condition == number
            drawn[:, own] = draw(int(own.sum()), resamples, np.random.default_rng([seed, 1, number]))
    return drawn


# e.g. covered(np.array([0, 0, 1, 1])) → "prompts and seeds"
# e.g. covered(np.array([0, 0, 1])) → "prompts"
def covered(condition: NDArray[np.int64]) -> str:
    """Whether an interval can cover seeds as well: each condition needs two runs or more."""
    return SEEDS if len(condition) and np.bincount(condition).min() > 1 else PROMPTS


def interval_of_mean(table: Table, top: float | None, resamples: int, confidence: float, seed: int) -> Interval:
    """Interval of the mean over all ratings of a table (each run weighs as many ratings as it has).

    `top` is the upper end of a scale from 0, None where there is none. On a scale, the variance that resampling finds
    is put as a number of independent prompts, whose score interval (Wilson 1927) keeps within the scale and is right
    near its ends; without a scale it is the percentile interval.
    """
    mean = float(table.sums.sum() / table.counts.sum())
    if np.allclose(table.sums, mean * table.counts, rtol=1e-12, atol=1e-12):
        return _interval_of_equals(mean, top, len(table.sums), confidence)
    if len(table.sums) == 1:
        return _interval_of_one(mean, top, confidence)
    freedom = freedom_of_mean(table)
    draws = _drawn_means(table, resamples, seed)
    if top is None:
        low, high = widened(draws, mean, freedom, confidence)
        return Interval(float(low), float(high), covered(table.condition))
    share = mean / top
    if table.counts.max() == 1 and table.counts.shape[1] == 1 and np.isin(table.sums, [0.0, top]).all():
        low, high = wilson(share, len(table.sums), confidence)
    else:
        variance = float(draws.var()) / top**2
        # A single resample says nothing of how the mean varies.
        worth = share * (1 - share) / variance if variance else len(table.sums)
        low, high = score_interval(share, worth, float(_t_quantile(freedom, (1 + confidence) / 2)))
    return Interval(low * top, high * top, covered(table.condition))


def _interval_of_one(mean: float, top: float | None, confidence: float) -> Interval:
    if top is None:
        return Interval(None, None, None)
    low, high = wilson(mean / top, 1, confidence)
    return Interval(low * top, high * top, PROMPTS)


# e.g. _interval_of_equals(2.0, None, 20, 0.95)[:2] → (None, None)
# e.g. [round(end, 2) for end in _interval_of_equals(2.0, 2.0, 20, 0.95)[:2]] → [1.68, 2.0]
def _interval_of_equals(value: float, top: float | None, clusters: int, confidence: float) -> Interval:
    # Nothing varies, so the bound is on the share of prompts that would have had another value, at worst at an end.
    if top is None:
        return Interval(None, None, None)
    kept, _ = wilson(1.0, clusters, confidence)
    return Interval(kept * value, value + (1 - kept) * (top - value), PROMPTS)


def _drawn_means(table: Table, resamples: int, seed: int) -> Numbers:
    prompts = prompt_draws(len(table.sums), resamples, seed)
    runs = seed_draws(table.condition, resamples, seed)
    sums, counts = ((prompts @ part * runs).sum(axis=1) for part in (table.sums, table.counts))
    # With gaps in the table, a draw can be empty.
    return sums[counts > 0] / counts[counts > 0]


def _t_quantile(freedom: Any, share: float) -> Any:
    from scipy.special import stdtrit  # late: benchmarks/gpu.sh answers prompts where it is not installed

    return stdtrit(freedom, share)


def widened(draws: Numbers, centre: Any, freedom: Any, confidence: float) -> tuple[Any, Any]:
    """Percentile interval of `draws` (first axis), its arms longer as t quantiles are longer than normal ones."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    # From few units the spread of the draws is itself a guess; t quantiles say how much that widens an interval.
    longer = _t_quantile(freedom, 1 - tail) / NormalDist().inv_cdf(1 - tail)
    return centre - np.maximum(0, centre - low) * longer, centre + np.maximum(0, high - centre) * longer


def freedom_of_mean(table: Table) -> float:
    """Satterthwaite's degrees of freedom of the mean over all ratings; at least 1."""
    influence = (table.sums - table.counts * (table.sums.sum() / table.counts.sum())) / table.counts.sum()
    parts = [variance_part(influence.sum(axis=1))]
    if covered(table.condition) == SEEDS:
        totals = influence.sum(axis=0)
        parts += [variance_part(totals[table.condition == number]) for number in range(table.condition.max() + 1)]
    return float(satterthwaite([variance for variance, _ in parts], [freedom for _, freedom in parts]))


def variance_part(influence: Numbers) -> tuple[Any, int]:
    """Variance of a sum of independent parts (first axis) and its degrees of freedom."""
    count = len(influence)
    return ((influence - influence.mean(axis=0)) ** 2).sum(axis=0) * count / max(1, count - 1), max(1, count - 1)


def satterthwaite(variances: Sequence[Any], freedoms: Sequence[int]) -> Any:
    """Degrees of freedom of a sum of variances (Satterthwaite 1946), elementwise; the first's where all are 0."""
    total = np.sum(variances, axis=0)
    below = np.sum([v * v / f for v, f in zip(variances, freedoms, strict=True)], axis=0)
    found = np.where(below > 0, total * total / np.where(below > 0, below, 1.0), freedoms[0])
    return np.maximum(1.0, found)
