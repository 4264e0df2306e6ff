"""Which people rate otherwise than the others, beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from xlift.analysis.measures import Sums, added, affordable, deviation, holm, kappa, pooled, resampled
from xlift.analysis.pairings import NONE, Matrix, Pairing, all_people, counts_by_cluster, numbered, people_of
from xlift.intervals import Integers, Numbers


def deviations(matrix: Matrix, resamples: int, confidence: float, seed: int) -> list[dict[str, Any]]:
    """One row a person: beside the mean of the other people.

    leniency           mean difference to the mean of the others
    kappa              with the others; kappa_others: of the others with each other; kappa_difference: first less second
    leniency_p, kappa_difference_p   corrected over the people (Holm 1979)
    deviates           "lenient", "strict", "apart" (agrees less than the others do), where p < 1 - confidence
    """
    human = people_of(matrix)
    together = all_people(matrix, human, seed) if len(human) > 1 else None
    if together is None or together.items < 2:
        return []
    differences, counts = _beside_others(matrix, human)
    with np.errstate(invalid="ignore", divide="ignore"):
        lenient = differences.sum(axis=0) / counts.sum(axis=0)
        lenient_drawn = resampled(differences, resamples, seed) / resampled(counts, resamples, seed)
        own, others, own_drawn, others_drawn = _kappas(together, len(human), resamples, seed)
    clusters = (counts > 0).sum(axis=0)
    rows: list[dict[str, Any]] = [
        {"rater": matrix.raters[column], "items": int(counts[:, i].sum()), "clusters": int(clusters[i])}
        | {"kappa": _number(own[i]), "kappa_others": _number(others[i])}
        for i, column in enumerate(human)
    ]
    measured_ones = {"leniency": (lenient, lenient_drawn), "kappa_difference": (own - others, own_drawn - others_drawn)}
    for name, (point, drawn) in measured_ones.items():
        found = [deviation(float(v), drawn[:, i], int(clusters[i]), confidence) for i, v in enumerate(point)]
        for row, (value, low, high, _), p in zip(rows, found, holm([one[3] for one in found]), strict=True):
            row |= {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_p": p}
    return [row | {"deviates": _marks(row, 1 - confidence)} for row in rows]


def _beside_others(matrix: Matrix, human: Sequence[int]) -> tuple[Numbers, Numbers]:
    """Sums of each person's differences to the mean of the others, and their number: [clusters, people]."""
    values = matrix.values[:, human]
    rated = values != NONE
    several = rated.sum(axis=1) >= 2
    values, rated, cluster = values[several], rated[several], numbered(matrix.clusters, several)[several]
    number, total = rated.sum(axis=1), np.where(rated, values, 0).sum(axis=1)
    item, person = np.nonzero(rated)
    value = values[item, person].astype(np.float64)
    rest = (total[item] - value) / (number[item] - 1)
    differences, counts = np.zeros((2, int(cluster.max()) + 1, len(human)))
    np.add.at(differences, (cluster[item], person), value - rest)
    np.add.at(counts, (cluster[item], person), 1)
    return differences, counts


def _kappas(pairing: Pairing, people: int, resamples: int, seed: int) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Kappa of each person with the others, and of the others with each other: [people], and [resamples, people]."""
    point: Sums = {}
    drawn: Sums = {}
    resamples = affordable(resamples, len(pairing.pairs))
    for pairs, tables in counts_by_cluster(pairing):
        shape = (-1, len(pairs), len(pairing.grades), len(pairing.grades))
        added(point, _by_person(np.asarray(tables.sum(axis=0)).reshape(shape), pairs, people))
        added(drawn, _by_person(resampled(tables, resamples, seed).reshape(shape), pairs, people))
    once, again = pooled(point), pooled(drawn)
    return once["own"][0], once["others"][0], again["own"], again["others"]


def _by_person(tables: Numbers, pairs: Integers, people: int) -> Sums:
    """Sums of kappa times weight, and of weights, over each person's pairs and over all the others: [..., people]."""
    values, weights = kappa(tables), tables.sum(axis=(-1, -2))
    weights = np.where(np.isnan(values), 0.0, weights)
    products = np.nan_to_num(values) * weights
    ends = np.ones(2 * len(pairs)), (np.tile(np.arange(len(pairs)), 2), pairs.T.ravel())
    belongs = csr_array(ends, shape=(len(pairs), people))
    own = np.stack([products @ belongs, weights @ belongs])
    total = np.stack([products, weights]).sum(axis=-1, keepdims=True)
    return {"own": own, "others": total - own}


# e.g. [_number(value) for value in (0.5, float("nan"))] → [0.5, None]
def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# e.g. _marks({"leniency": 0.4, "leniency_p": 0.01, "kappa_difference_p": None}, 0.05) → ["lenient"]
def _marks(row: Mapping[str, Any], level: float) -> list[str]:
    """How a person deviates, as far as it is beyond chance."""

    def beyond(name: str) -> bool:
        return row[f"{name}_p"] is not None and row[f"{name}_p"] < level

    marks = [("lenient" if row["leniency"] > 0 else "strict")] if beyond("leniency") else []
    return [*marks, *(["apart"] if beyond("kappa_difference") and row["kappa_difference"] < 0 else [])]
