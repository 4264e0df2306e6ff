"""The mean of a facet from many judge ratings and few human ones: prediction-powered inference.

PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv 2311.01453) for a mean: the people's mean on the items that they rated,
plus `weight` (lambda) times what the judge gives to the other items more than to these. The weight is tuned to the
narrowest interval: 0 leaves the people's mean alone, 1 trusts the judge up to a shift. The human-rated items must be a
random sample of the items (of each stratum); whatever the judge is like, the estimate then aims at the people's mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import stdtrit

from xlift.analysis.pairings import ALL_LANGUAGES, KEY, Item, Ratings, latest
from xlift.errors import DataError
from xlift.intervals import Estimate, Integers, Numbers, estimate
from xlift.records import kind_of

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Calibrated:
    """Three estimates of one mean; `weight` is the judge's (lambda, 0 to 1), `labelled` the items rated by people.

    Where people alone, and so the calibrated estimate, cannot be given, `reason` says why.
    """

    judge_only: Estimate
    people_only: Estimate
    calibrated: Estimate
    weight: float | None
    labelled: int
    reason: str | None = None


class _Sample(NamedTuple):
    """One value an item: people's (nan where not rated), the judge's, cluster and stratum as numbers from 0."""

    people: Numbers
    judge: Numbers
    cluster: Integers
    stratum: Integers


def calibrated_mean(
    judge: Sequence[float | None],
    human: Sequence[float | None],
    clusters: Sequence[str],
    strata: Sequence[str] | None = None,
    confidence: float = 0.95,
    top: float = 2.0,
    resamples: int = 2000,
    seed: int = 0,
) -> Calibrated:
    """The mean over items by the judge, by people and by both; all sequences have one entry an item, None is missing.

    Clusters (parallel prompts) may hold rated and unrated items. With `strata` (such as languages) people need to have
    sampled at random only within each; strata count by their number of items. An item without a judge value enters
    with the judge's mean, which keeps every human rating and costs precision only. `resamples` and `seed` are of the
    judge's own interval. Raises DataError for values that are not between 0 and `top`.
    """
    _check_scale([*judge, *human], top)
    judge_only = estimate(judge, clusters, top, resamples, confidence, seed)
    sample = _sample(judge, human, clusters, strata or [""] * len(judge))
    labelled = int((~np.isnan(sample.people)).sum())
    reason = _why_not(sample.people, strata or [""] * len(judge))
    if reason:
        none = Estimate(None, None, None, labelled, len(judge) - labelled)
        return Calibrated(judge_only, none, none, None, labelled, reason)
    weight, people, both = _prediction_powered(sample, confidence, top)
    known = sum(j is not None or h is not None for j, h in zip(judge, human, strict=True))
    return Calibrated(
        judge_only,
        Estimate(*people, labelled, len(judge) - labelled),
        Estimate(*both, known, len(judge) - known),
        weight,
        labelled,
        "rated items share one cluster: no interval" if people[1] is None else None,
    )


def _check_scale(values: Sequence[float | None], top: float) -> None:
    wrong = sorted({value for value in values if value is not None and not 0 <= value <= top})
    if wrong:
        raise DataError(f"values must be between 0 and {top:g}, found {', '.join(f'{v:g}' for v in wrong[:5])}")


def _sample(
    judge: Sequence[float | None], human: Sequence[float | None], clusters: Sequence[str], strata: Sequence[str]
) -> _Sample:
    predicted = np.array([np.nan if value is None else value for value in judge], dtype=np.float64)
    known = predicted[~np.isnan(predicted)]
    predicted = np.where(np.isnan(predicted), known.mean() if len(known) else 0.0, predicted)
    people = np.array([np.nan if value is None else value for value in human], dtype=np.float64)
    return _Sample(people, predicted, _numbered(clusters), _numbered(strata))


# e.g. _numbered(["b", "a", "b"]).tolist() → [1, 0, 1]
def _numbered(names: Sequence[str]) -> Integers:
    return np.asarray(np.unique(np.array(names, dtype=str), return_inverse=True)[1], dtype=np.int64)


# e.g. _why_not(np.array([2.0, np.nan]), ["fr", "ru"]) → "no person has rated items of ru"
def _why_not(people: Numbers, strata: Sequence[str]) -> str | None:
    rated = {stratum for stratum, value in zip(strata, people, strict=True) if not np.isnan(value)}
    unrated = sorted(set(strata) - rated)
    if not rated:
        return "no person has rated any of the items"
    return f"no person has rated items of {', '.join(unrated)}" if unrated else None


MeanInterval = tuple[float, float | None, float | None]


def _prediction_powered(sample: _Sample, confidence: float, top: float) -> tuple[float, MeanInterval, MeanInterval]:
    """The tuned weight, and (mean, low, high) by people alone and with the judge's help.

    The estimate is linear in the items, so each cluster has one deviation a - weight * b (a from people's ratings, b
    from the judge's), and the sum of their squares, which the weight makes smallest, estimates the variance. With one
    item a cluster that is the formula of PPI++, section 6. The t quantile and the divisor count what was fitted.
    """
    labelled = ~np.isnan(sample.people)
    people = np.where(labelled, sample.people, 0.0)
    in_labelled, in_others, calibrates = _item_weights(labelled, sample.stratum)
    in_judge = calibrates * in_labelled
    human_mean = float(in_labelled @ people)
    judge_gap = float(in_judge @ sample.judge - in_others @ sample.judge)

    def centred(weights: Numbers, values: Numbers) -> Numbers:
        means = np.bincount(sample.stratum, weights * values) / np.maximum(np.bincount(sample.stratum, weights), 1e-300)
        return np.asarray(values - means[sample.stratum])

    def by_cluster(values: Numbers) -> Numbers:
        return np.asarray(np.bincount(sample.cluster, values), dtype=np.float64)

    a = by_cluster(in_labelled * centred(in_labelled, people))
    # The judge has seen all items: a few other items would hardly deviate from a mean of their own.
    b = by_cluster((in_judge - in_others) * centred(np.ones(len(people)), sample.judge))
    count = len(np.unique(sample.cluster[labelled]))
    freedom = count - _components(sample.cluster[labelled], sample.stratum[labelled])
    spread = float(b @ b)
    tunable = freedom >= 2 and spread > 1e-18
    weight = min(max(float(a @ b) / spread, 0.0), 1.0) if tunable else 0.0
    alone = _interval(human_mean, a, count, freedom, confidence, top)
    if weight == 0.0:
        return 0.0, alone, alone
    mean = human_mean - weight * judge_gap
    # A cluster that pulled the weight its way has too small a rest (HC2, MacKinnon & White 1985).
    rest = (a - weight * b) / np.sqrt(np.maximum(1 - b**2 / spread, 0.05))
    return weight, alone, _interval(mean, rest, count, freedom - 1, confidence, top)


# e.g. _item_weights(np.array([True, False, False]), np.zeros(3, int))[1].tolist() → [0.0, 0.5, 0.5]
def _item_weights(labelled: Bools, stratum: Integers) -> tuple[Numbers, Numbers, Bools]:
    """Each item's share in the labelled and in the other items' mean, and whether its stratum has others at all."""
    share = np.bincount(stratum) / len(stratum)
    rated = np.bincount(stratum, labelled)
    others = np.bincount(stratum, ~labelled)
    in_labelled = np.where(labelled, (share / rated)[stratum], 0.0)
    in_others = np.where(labelled, 0.0, (share / np.maximum(others, 1))[stratum])
    return in_labelled, in_others, others[stratum] > 0


# e.g. [_components(np.array([0, 1]), np.array([0, 1])), _components(np.array([0, 0]), np.array([0, 1]))] → [2, 1]
def _components(cluster: Integers, stratum: Integers) -> int:
    """How many means are free: strata that share clusters hang together (one mean), others do not."""
    nodes = int(cluster.max()) + 1
    size = nodes + int(stratum.max()) + 1
    edges = coo_array((np.ones(len(cluster)), (cluster, nodes + stratum)), shape=(size, size))
    labels = connected_components(edges, directed=False)[1]
    return len(np.unique(labels[cluster]))


def _interval(
    mean: float, deviations: Numbers, count: int, freedom: int, confidence: float, top: float
) -> MeanInterval:
    """Wilson's interval of the mean as a share of the scale, with the sample size that the variance amounts to.

    The t quantile stands in for the normal one (Franco et al. 2019, J. Survey Statistics and Methodology 7:334).
    """
    share = min(max(mean / top, 0.0), 1.0)
    if freedom < 1:
        return share * top, None, None
    variance = count / freedom * float(deviations @ deviations) / top**2
    # A sample without any spread is no proof of none: at least what one rating off by half the scale would make.
    variance = max(variance, (0.5 / count) ** 2)
    size = max(float(count), share * (1 - share) / variance)
    quantile = float(stdtrit(freedom, (1 + confidence) / 2))
    shrink = 1 + quantile**2 / size
    centre = (share + quantile**2 / (2 * size)) / shrink
    half = quantile / shrink * math.sqrt(share * (1 - share) / size + quantile**2 / (4 * size**2))
    ends = [min(max(end, 0.0), 1.0) * top for end in (centre - half, centre + half)]
    return share * top, ends[0], ends[1]


def calibration_table(
    ratings: Ratings,
    clusters: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a run, step, language, facet and judge: raw judge, people only and calibrated.

    `ratings` as in `agreement_tables`, on the scale 0 to 2; of several people on an item the mean counts. Each estimate
    has `_mean`, `_low`, `_high`, `_rated`, `_missing`; `weight`, `labelled` and `reason` are those of `Calibrated`.
    Where a judge rated several languages, the row of language "all" has them as strata. Raises DataError for values
    that are not 0, 1, 2 or missing.
    """
    groups: dict[tuple[Any, ...], dict[Item, dict[str, float | None]]] = {}
    found = latest(ratings, clusters)
    for *place, facet, rater, value in found.select(*KEY, "value").iter_rows():
        item = Item(*place)
        groups.setdefault((item.run, item.step, facet), {}).setdefault(item, {})[rater] = value
    clusters_by_id = dict(found.select("id", "cluster").iter_rows())
    settings = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return [
        {"run": run, "step": step, "language": language, "facet": facet, "judge": judge, **row}
        for (run, step, facet), items in sorted(groups.items(), key=lambda group: tuple(map(str, group[0])))
        for judge in sorted({rater for rated in items.values() for rater in rated if kind_of(rater) == "judge"})
        for language, row in _rows(items, judge, clusters_by_id, settings)
    ]


def _rows(
    items: Mapping[Item, Mapping[str, float | None]],
    judge: str,
    clusters_by_id: Mapping[str, str],
    settings: Mapping[str, Any],
) -> list[tuple[str, dict[str, Any]]]:
    languages = sorted({item.language for item, rated in items.items() if judge in rated})
    seen = {
        item: rated
        for item, rated in items.items()
        if item.language in languages and (judge in rated or _people_mean(rated) is not None)
    }
    rows = []
    for language in [*languages, *([ALL_LANGUAGES] if len(languages) > 1 else [])]:
        chosen = {item: rated for item, rated in seen.items() if language in (ALL_LANGUAGES, item.language)}
        found = calibrated_mean(
            [rated.get(judge) for rated in chosen.values()],
            [_people_mean(rated) for rated in chosen.values()],
            [clusters_by_id[item.id] for item in chosen],
            [item.language for item in chosen],
            **settings,
        )
        rows.append((language, _flat(found)))
    return rows


# e.g. _people_mean({"human:a": 2.0, "human:b": 1.0, "judge:m": 0.0, "human:c": None}) → 1.5
def _people_mean(rated: Mapping[str, float | None]) -> float | None:
    values = [value for rater, value in rated.items() if value is not None and kind_of(rater) == "human"]
    return sum(values) / len(values) if values else None


def _flat(found: Calibrated) -> dict[str, Any]:
    named = {"judge": found.judge_only, "people": found.people_only, "calibrated": found.calibrated}
    numbers = {
        f"{name}_{field}": getattr(one, field)
        for name, one in named.items()
        for field in ("mean", "low", "high", "rated", "missing")
    }
    return {**numbers, "weight": found.weight, "labelled": found.labelled, "reason": found.reason}
