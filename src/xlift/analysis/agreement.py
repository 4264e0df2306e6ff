"""How far raters agree: people with each other, judge models and surface checks with people.

An item is one response: run, step, prompt id and fingerprint of the text. Every measure is computed from counts of how
often the first rater gave one value and the second another, so that resampling whole prompts only adds up counts.

kappa        Cohen's, linear weights (Cohen 1968); of several pairs of raters the mean weighted by pairs of ratings
agreement    share of pairs of ratings that are the same
alpha        Krippendorff's, ordinal distance (Krippendorff 2011); all people at once, elsewhere of pairs as kappa
tau          Kendall's rank correlation tau-b; of several pairs of raters as kappa
leniency     mean of first minus second
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from xlift.analysis.deviations import deviations
from xlift.analysis.measures import Sums, added, affordable, interval, pooled, resampled, sums, weighted
from xlift.analysis.pairings import (
    ALL_LANGUAGES,
    ALL_PEOPLE,
    MEAN,
    Item,
    Pairing,
    Ratings,
    counts_by_cluster,
    latest,
    matrices,
    pairings,
)
from xlift.intervals import Numbers
from xlift.records import KINDS, kind_of

MEASURES = ("kappa", "agreement", "alpha", "tau", "leniency")
HEADINGS = {
    "people": "Between people",
    "judge and people": "Judges and people",
    "check and people": "Surface checks and people",
    "judges and checks": "Judges and checks with each other",
}
"""What is compared, in the order in which it is told."""


def agreement_tables(
    ratings: Ratings,
    clusters: Mapping[str, str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """All comparisons between the raters of each facet, by language and over all: plain rows.

    `ratings` are records as on disk or the tidy frame, which takes a tenth of the memory; `clusters` gives the
    parallel_id of a prompt id.

    there        what there is: ratings, missing (of them), responses, languages
    raters       names by kind: human, judge, check
    agreement    rows: between ("people", "judge and people", "check and people", "judges and checks"), facet, language,
                 first, second, items, pairs (of ratings), missing (items with records of both sides, but without a
                 value on one), clusters; each of MEASURES with `_low` and `_high` (bootstrap over clusters); confusion
                 (rows: first's values from the lowest; all people: each pair in both orders); reasons for what is None
    people       rows of `deviations`

    Every two people are a row up to SINGLY people. Judges and checks are compared with each person's ratings, with the
    value that most people gave (items without one count as missing), and with the people's mean. Raises DataError as
    `latest` does.
    """
    found = latest(ratings, clusters)
    settings = (resamples, confidence, seed)
    rows: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for facet, language, matrix in matrices(found):
        where = {"facet": facet, "language": language}
        rows += [{"between": name, **where, **_row(pairing, *settings)} for name, pairing in pairings(matrix, seed)]
        people += [{**where, **row} for row in deviations(matrix, *settings)]
    order = {between: place for place, between in enumerate(HEADINGS)}
    names = sorted(map(str, found["rater"].unique()))
    return {
        "there": {
            "ratings": len(found),
            "missing": found["value"].null_count(),
            "responses": found.select(pl.struct(Item._fields)).n_unique(),
            "languages": found["language"].n_unique(),
        },
        "raters": {kind: [name for name in names if kind_of(name) == kind] for kind in KINDS},
        "agreement": sorted(
            _told_once(rows, ("facet", "first", "second", "items", "missing")), key=lambda row: order[row["between"]]
        ),
        "people": _told_once(people, ("facet", "rater", "items")),
    }


def _told_once(rows: Sequence[dict[str, Any]], key: Sequence[str]) -> list[dict[str, Any]]:
    """The rows without those over all languages whose raters met in one language only."""
    told = {tuple(row[field] for field in key) for row in rows if row["language"] != ALL_LANGUAGES}
    return [row for row in rows if row["language"] != ALL_LANGUAGES or tuple(row[field] for field in key) not in told]


class Figures(NamedTuple):
    """Every measure of a pairing, at its point and [resamples]; and the counts of all its pairs together."""

    point: dict[str, Numbers]
    drawn: dict[str, Numbers]
    counts: Numbers


def _figures(pairing: Pairing, resamples: int, seed: int) -> Figures:
    point: Sums = {}
    drawn: Sums = {}
    shape = (-1, len(pairing.grades), len(pairing.scale))
    counts = np.zeros(shape[1:])
    resamples = affordable(resamples, len(pairing.pairs))
    for _, tables in counts_by_cluster(pairing):
        total = np.asarray(tables.sum(axis=0)).reshape(shape)
        counts += total.sum(axis=0)
        if pairing.items < 2:
            continue
        again = resampled(tables, resamples, seed).reshape(resamples, *shape)
        for found, of in ((point, total), (drawn, again)):
            added(found, sums(of, pairing.grades, pairing.scale))
            if pairing.coincidences is None and np.array_equal(pairing.grades, pairing.scale):
                added(found, {"alpha": weighted("alpha", of + of.swapaxes(-1, -2))})
    if pairing.coincidences is not None and pairing.items >= 2:
        point["alpha"] = weighted("alpha", pairing.coincidences.sum(axis=0))
        drawn["alpha"] = weighted("alpha", resampled(pairing.coincidences, resamples, seed))
    return Figures(pooled(point), pooled(drawn), counts)


def _row(pairing: Pairing, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    found = _figures(pairing, resamples, seed)
    row: dict[str, Any] = {"first": pairing.first, "second": pairing.second, "items": pairing.items}
    row |= {"pairs": int(found.counts.sum()), "missing": pairing.missing, "clusters": pairing.clusters}
    reasons: dict[str, str] = {}
    for name in MEASURES:
        value, low, high = None, None, None
        reason = _why_undefined(name, pairing, found.point)
        if reason is None:
            value = float(found.point[name])
            low, high, reason = interval(name, value, found.drawn[name], pairing.clusters, confidence)
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        reasons |= {name: reason} if reason else {}
    return {**row, "confusion": _confusion(pairing, found.counts), "reasons": reasons}


def _confusion(pairing: Pairing, counts: Numbers) -> list[list[int]] | None:
    if pairing.second == MEAN:
        return None
    table = counts.astype(int)
    return (table + table.T if pairing.first == ALL_PEOPLE else table).tolist()


def _why_undefined(name: str, pairing: Pairing, point: Mapping[str, Numbers]) -> str | None:
    if pairing.items < 2:
        return "fewer than 2 items rated by both"
    if pairing.first == ALL_PEOPLE and name == "leniency":
        return "people are in no order: see who deviates"
    if name not in point:
        return "a mean is not on the scale"
    if np.isnan(point[name]):
        return "only one value occurs" if name == "alpha" else "a rater always gives the same value"
    return None
