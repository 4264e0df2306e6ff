"""The learning rate from which on a language is lost: fewer than half of the answers to its users are good.

Found between two rates of the grid, as if the share fell evenly in the logarithm of the rate; the interval resamples
requests (percentiles), all rates of one request together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import polars as pl

from xlift.intervals import Numbers

HALF = 0.5


class Flip(NamedTuple):
    """A rate with its interval: infinite where no rate that was tried loses the language, 0 where each one does."""

    rate: float
    low: float
    high: float
    requests: int


# e.g. shares of 0.9, 0.7 and 0.3 at 1e-4, 1e-3 and 1e-2: half-way between the last two, 3.2e-3
def flip(frame: pl.DataFrame, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Flip | None:
    """Where the share of 1 in `value` falls below half for good; None without two rates or ratings at each.

    `frame` has learning_rate, parallel_id and value (0, 1 or null), of one language and otherwise equal runs.
    """
    told = frame.drop_nulls(["value", "learning_rate"])
    sums = told.group_by("parallel_id", "learning_rate").agg(pl.col("value").sum(), pl.len()).sort("learning_rate")
    rates = sums["learning_rate"].unique().sort().to_numpy()
    if len(rates) < 2:
        return None
    requests = {name: place for place, name in enumerate(sums["parallel_id"].unique().sort())}
    good, asked = np.zeros((2, len(requests), len(rates)))
    for request, rate, value, count in sums.iter_rows():
        place = requests[request], int(np.searchsorted(rates, rate))
        good[place], asked[place] = value, count
    drawn = np.random.default_rng(seed).multinomial(
        max(1, len(requests) - 1), np.full(len(requests), 1 / len(requests)), resamples
    )
    counts = drawn @ asked
    shares = (drawn @ good)[counts.min(axis=1) > 0] / counts[counts.min(axis=1) > 0]
    found = np.sort([_lost_from(rates, row) for row in shares])
    tail = int(len(found) * (1 - confidence) / 2)
    low, high = (float(found[tail]), float(found[-1 - tail])) if len(found) else (0.0, math.inf)
    return Flip(_lost_from(rates, good.sum(axis=0) / asked.sum(axis=0)), low, high, len(requests))


def _lost_from(rates: Numbers, shares: Numbers) -> float:
    held = np.flatnonzero(shares >= HALF)
    if not len(held):
        return 0.0
    last = held[-1]
    if last == len(rates) - 1:
        return math.inf
    way = (shares[last] - HALF) / (shares[last] - shares[last + 1])
    return float(rates[last] * (rates[last + 1] / rates[last]) ** way)
