"""How small a difference a comparison can find, and how many prompts it would take to find a given one.

A comparison pairs prompts, so what counts is how much the *differences* vary from request to request (`spread`, a
standard deviation) and, where conditions are trained with several seeds, how much a condition's mean varies from seed
to seed (`seed_spread`). The power is that of the two-sided paired t test (noncentral t distribution, Cohen 1988). The
exact test of `comparison` comes close to it with a hundred prompts; with 20 it finds less, as its p-values are coarse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

from xlift.analysis.comparison import paired, sides_of, variances_of
from xlift.intervals import NOTHING, satterthwaite

MOST = 10_000_000
"""More prompts than anybody has."""
POWER_COLUMNS: dict[str, Any] = {
    **{"pairs": pl.Int64, "n_prompts": pl.Int64, "spread": pl.Float64, "seed_error": pl.Float64, "alpha": pl.Float64},
    **{"detectable": pl.Float64, "difference": pl.Float64, "prompts_needed": pl.Int64, "reason": pl.String},
}


# e.g. round(power_of_t(0.14, 0.05, 99), 2) → 0.79
def power_of_t(difference: float, error: float, freedom: float, alpha: float = 0.05) -> float:
    """Power of the two-sided t test to find, with its sign, a difference whose estimate has standard error `error`."""
    critical, shift = float(stdtrit(freedom, 1 - alpha / 2)), abs(difference) / error
    return float(1 - nctdtr(freedom, shift, critical))


# e.g. round(detectable(spread=0.5, prompts=100), 2) → 0.14
# e.g. round(detectable(spread=0.5, prompts=100, languages=4, correlation=0.0), 2) → 0.07
def detectable(
    spread: float,
    prompts: int,
    languages: int = 1,
    correlation: float = 1.0,
    seeds: int = 1,
    seed_spread: float = 0.0,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float | None:
    """The smallest true difference of means that is found with probability `power`; None with fewer than two prompts.

    `spread` is that of one prompt's difference, `prompts` are asked in `languages` languages, and `correlation` is how
    alike the differences of two translations are: with 1, the cautious assumption, another language adds nothing, with
    0 as much as new prompts would. Each side is trained with `seeds` seeds, whose means have `seed_spread`. With one
    seed a side the difference is that of two runs, and what another seed would do is not in it.
    """
    of_request = spread * math.sqrt((1 + (languages - 1) * correlation) / languages)
    seed_variances, freedoms = _seeds(seeds, seed_spread)
    return _detectable(of_request, prompts, seed_variances, freedoms, power, alpha) if prompts > 1 else None


# e.g. prompts_needed(difference=0.1, spread=0.5) → 199
def prompts_needed(
    difference: float,
    spread: float,
    languages: int = 1,
    correlation: float = 1.0,
    seeds: int = 1,
    seed_spread: float = 0.0,
    power: float = 0.8,
    alpha: float = 0.05,
) -> int | None:
    """The fewest prompts with which `difference` is `detectable`; None where the seeds vary too much for any number."""
    of_request = spread * math.sqrt((1 + (languages - 1) * correlation) / languages)
    seed_variances, freedoms = _seeds(seeds, seed_spread)
    return _needed(difference, of_request, seed_variances, freedoms, power, alpha)


# e.g. _seeds(1, 0.05) → ((), ())
def _seeds(seeds: int, seed_spread: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Variance that seeds add to the difference, by side, and its degrees of freedom."""
    counted = seeds > 1 and seed_spread > 0
    return ((seed_spread**2 / seeds,) * 2, (seeds - 1,) * 2) if counted else ((), ())


# e.g. [round(one, 3) for one in _error(0.5, 100, (), ())] → [0.05, 99.0]
def _error(
    spread: float, prompts: int, seed_variances: Sequence[float], freedoms: Sequence[int]
) -> tuple[float, float]:
    """Standard error of the difference and its degrees of freedom."""
    variances = [spread**2 / prompts, *seed_variances]
    return math.sqrt(sum(variances)), float(satterthwaite(variances, [prompts - 1, *freedoms]))


def _detectable(
    spread: float,
    prompts: int,
    seed_variances: Sequence[float],
    freedoms: Sequence[int],
    power: float,
    alpha: float,
) -> float:
    error, freedom = _error(spread, prompts, seed_variances, freedoms)
    # At the critical value the power is about a half, so the answer lies above.
    most = float(stdtrit(freedom, 1 - alpha / 2)) * error
    while power_of_t(most, error, freedom, alpha) < power:
        most *= 2
    return float(brentq(lambda difference: power_of_t(difference, error, freedom, alpha) - power, 0.0, most))


def _needed(
    difference: float,
    spread: float,
    seed_variances: Sequence[float],
    freedoms: Sequence[int],
    power: float,
    alpha: float,
) -> int | None:
    def enough(prompts: int) -> bool:
        error, freedom = _error(spread, prompts, seed_variances, freedoms)
        return power_of_t(difference, error, freedom, alpha) >= power

    low, high = 1, 2
    # Doubled until it is enough, then halved between: more prompts never find less.
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_table(
    frame: pl.DataFrame,
    first: str | Mapping[str, Any],
    second: str | Mapping[str, Any],
    by: Sequence[str] = ("facet", "language"),
    rater: str | None = None,
    difference: float = 0.2,
    power: float = 0.8,
    alpha: float = 0.05,
) -> pl.DataFrame:
    """One row a row of `compare` (same sides, `by` and rater): what this comparison could have found.

    `spread` of the requests' differences and `seed_error`, the standard error that seeds add, are as observed;
    `alpha` is shared by all rows, as Holm's correction asks of the smallest p. `detectable` is the smallest difference
    found with probability `power` with the prompts there are, `prompts_needed` how many requests `difference` takes.
    Where there is no number, `reason` says why. Raises as `compare` does.
    """
    keys = list(dict.fromkeys([*by, "rater"]))
    groups = list(paired(sides_of(frame, first, second, keys, rater), keys))
    schema: dict[str, Any] = {**{name: frame.schema[name] for name in keys}, **POWER_COLUMNS}
    rows = []
    for key, pairs, seeds in groups:
        requests = int(pairs.cluster.max(initial=-1)) + 1
        row = key | {"pairs": len(pairs.cluster), "n_prompts": requests, "difference": difference}
        row |= {"alpha": alpha / len(groups)}
        parts = variances_of(pairs, seeds) if requests > 1 else None
        if parts is None or parts.prompts < NOTHING:
            rows.append(row | {"reason": "no difference varies" if requests > 1 else "fewer than two prompts"})
            continue
        found = math.sqrt(parts.prompts * requests)
        told = (parts.seeds, parts.freedoms[1:], power, alpha / len(groups))
        row |= {"spread": found, "seed_error": math.sqrt(sum(parts.seeds)) if parts.seeds else None}
        row |= {"detectable": _detectable(found, requests, *told), "prompts_needed": _needed(difference, found, *told)}
        more = "with so few seeds no number of prompts is enough for this difference"
        rows.append(row | {"reason": None if row["prompts_needed"] else more})
    return pl.DataFrame([dict.fromkeys(schema) | row for row in rows], schema=schema)
