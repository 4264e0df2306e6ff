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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from xlift.analysis.measures import (
    GRADES,
    Sums,
    added,
    deviation,
    holm,
    interval,
    kappa,
    pooled,
    resampled,
    sums,
    weighted,
)
from xlift.errors import DataError
from xlift.intervals import Integers, Numbers
from xlift.languages import known_code, language_problem
from xlift.records import KINDS, kind_of

ALL_LANGUAGES = "all"
MEASURES = ("kappa", "agreement", "alpha", "tau", "leniency")
ALL_PEOPLE, EACH, MAJORITY, MEAN = "all people", "each person", "people's majority", "people's mean"
SINGLY = 20
"""Up to so many people, every two of them are a row of their own: 20 make 190 rows, 1,000 would make 499,500."""
MOST_PAIRS = 5000
"""Of so many pairs of people, drawn by the seed, kappa, agreement and tau are the mean where more have met."""
PAIRS_AT_ONCE = 256
DRAWS = 4_000_000
"""Pairs of people times resamples; of 5,000 pairs 800 resamples are drawn instead of 2,000."""
HEADINGS = {
    "people": "Between people",
    "judge and people": "Judges and people",
    "check and people": "Surface checks and people",
    "judges and checks": "Judges and checks with each other",
}
"""What is compared, in the order in which it is told."""
NONE = -1
Places = NDArray[np.int16]


class Item(NamedTuple):
    """One response that raters look at."""

    run: str
    step: int
    id: str
    response: str
    language: str


class Matrix(NamedTuple):
    """Ratings of one facet, [items, raters]: `values` places on GRADES, NONE where there is none.

    `recorded` is true where a record is; `clusters` [items] tells which prompt an item belongs to.
    """

    raters: list[str]
    values: Places
    recorded: NDArray[np.bool_]
    clusters: Integers


class Pairing(NamedTuple):
    """Two sides that are compared.

    `one` and `other` [items, raters] are places of values on GRADES and on `scale`, NONE where there is no value;
    `pairs` [pairs, 2] names the columns that meet. `cluster` [items] numbers the clusters of items that both sides have
    rated, -1 elsewhere. `coincidences` [clusters, 1, values, values] are Krippendorff's where more than two meet.
    """

    first: str
    second: str
    one: Places
    other: Places
    pairs: Integers
    cluster: Integers
    scale: Numbers
    items: int
    missing: int
    coincidences: Numbers | None = None

    @property
    def clusters(self) -> int:
        return int(self.cluster.max(initial=-1)) + 1


def cluster_of(record: Mapping[str, Any], clusters: Mapping[str, str] | None) -> str:
    """What is resampled together with a rating: its request in all languages where that is known, else its prompt."""
    return str((clusters or {}).get(record["id"]) or record.get("parallel_id") or record["id"])


def latest(ratings: Iterable[Mapping[str, Any]]) -> dict[tuple[Item, str, str], float | None]:
    """The value by (item, facet, rater); where a rater has rated an item twice the last record counts.

    Raises DataError that lists records that are not ratings and values that are not 0, 1, 2 or missing.
    """
    found: dict[tuple[Item, str, str], float | None] = {}
    wrong: dict[str, int] = {}
    for number, record in enumerate(ratings, start=1):
        lacking = [field for field in ("id", "language", "facet", "rater", "value") if field not in record]
        value = None if lacking else record["value"]
        if not isinstance(record.get("step") or 0, int):
            wrong[f"record {number}: 'step' must be a whole number, found {record['step']!r}"] = 1
        elif lacking:
            wrong[f"record {number} is not a rating: it has no {', '.join(lacking)}"] = 1
        elif not known_code(record["language"]):
            problem = language_problem(record["language"])
            wrong[problem] = wrong.get(problem, 0) + 1
        elif value is not None and value not in (0, 1, 2):
            problem = f"{record['rater']} gives {value!r} for {record['facet']}; values are 0, 1, 2 or null"
            wrong[problem] = wrong.get(problem, 0) + 1
        else:
            place = (str(record.get("run", "")), int(record.get("step") or 0), str(record["id"]))
            language = known_code(record["language"])
            item = Item(*place, str(record.get("response") or ""), language)
            found[item, str(record["facet"]), str(record["rater"])] = None if value is None else float(value)
    if wrong:
        shown = [f"{text} ({count} times)" if count > 1 else text for text, count in list(wrong.items())[:10]]
        more = [f"… and {len(wrong) - 10} more problems"] if len(wrong) > 10 else []
        raise DataError([*shown, *more], "ratings files are written by xlift rate, judge and annotate")
    return found


def agreement_tables(
    ratings: Sequence[Mapping[str, Any]],
    clusters: Mapping[str, str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """All comparisons between the raters of each facet, by language and over all: plain rows.

    `ratings` are records as on disk or rows of the tidy frame; `clusters` gives the parallel_id of a prompt id.

    there        what there is: ratings, missing (of them), responses, languages
    raters       names by kind: human, judge, check
    agreement    rows: between ("people", "judge and people", "check and people", "judges and checks"), facet, language,
                 first, second, items, pairs (of ratings), missing (items with records of both sides, but without a
                 value on one), clusters; each of MEASURES with `_low` and `_high` (bootstrap over clusters); confusion
                 (rows: first's 0, 1, 2; all people: each pair in both orders); reasons for what is None
    people       rows of `_deviations`

    Every two people are a row up to SINGLY people. Judges and checks are compared with each person's ratings, with the
    value that most people gave (items without one count as missing), and with the people's mean. Raises DataError as
    `latest` does.
    """
    found = latest(ratings)
    by_id = {str(record["id"]): cluster_of(record, clusters) for record in ratings}
    settings = (resamples, confidence, seed)
    rows: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for facet, language, matrix in _matrices(found, by_id):
        where = {"facet": facet, "language": language}
        rows += [{"between": name, **where, **_row(pairing, *settings)} for name, pairing in _pairings(matrix, seed)]
        people += [{**where, **row} for row in _deviations(matrix, *settings)]
    order = {between: place for place, between in enumerate(HEADINGS)}
    names = sorted({rater for _, _, rater in found})
    return {
        "there": {
            "ratings": len(found),
            "missing": sum(value is None for value in found.values()),
            "responses": len({item for item, _, _ in found}),
            "languages": len({item.language for item, _, _ in found}),
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


def _matrices(
    found: Mapping[tuple[Item, str, str], float | None], by_id: Mapping[str, str]
) -> list[tuple[str, str, Matrix]]:
    """(facet, language, matrix) in a fixed order, whatever the order of the ratings; "all" where there are several."""
    groups: dict[str, dict[str, list[tuple[Item, str, float | None]]]] = {}
    for (item, facet, rater), value in sorted(found.items(), key=lambda entry: entry[0]):
        groups.setdefault(facet, {}).setdefault(item.language, []).append((item, rater, value))
    matrices = []
    for facet, languages in groups.items():
        parts = dict(sorted(languages.items()))
        if len(parts) > 1:
            parts[ALL_LANGUAGES] = [cell for part in parts.values() for cell in part]
        matrices += [(facet, language, _matrix(cells, by_id)) for language, cells in parts.items()]
    return matrices


def _matrix(cells: Sequence[tuple[Item, str, float | None]], by_id: Mapping[str, str]) -> Matrix:
    rows = {item: i for i, item in enumerate(dict.fromkeys(item for item, _, _ in cells))}
    columns = {rater: i for i, rater in enumerate(sorted({rater for _, rater, _ in cells}))}
    values = np.full((len(rows), len(columns)), NONE, dtype=np.int16)
    recorded = np.zeros(values.shape, dtype=bool)
    for item, rater, value in cells:
        recorded[rows[item], columns[rater]] = True
        values[rows[item], columns[rater]] = NONE if value is None else int(value)
    clusters = np.unique([by_id[item.id] for item in rows], return_inverse=True)[1]
    return Matrix(list(columns), values, recorded, clusters)


# --- what is compared


def _pairings(matrix: Matrix, seed: int) -> Iterator[tuple[str, Pairing]]:
    human = _human(matrix)
    machines = [i for kind in KINDS[1:] for i, rater in enumerate(matrix.raters) if kind_of(rater) == kind]
    found = [("people", _all_people(matrix, human, seed))] if len(human) > 2 else []
    found += [("people", _pair(matrix, *two)) for two in combinations(human, 2) if len(human) <= SINGLY]
    for machine in machines if human else []:
        between = f"{kind_of(matrix.raters[machine])} and people"
        found += [(between, pairing) for pairing in _with_people(matrix, machine, human)]
    found += [("judges and checks", _pair(matrix, one, other)) for one, other in combinations(machines, 2)]
    return ((between, pairing) for between, pairing in found if pairing.items or pairing.missing)


def _human(matrix: Matrix) -> list[int]:
    return [i for i, rater in enumerate(matrix.raters) if kind_of(rater) == "human"]


def _pair(matrix: Matrix, one: int, other: int) -> Pairing:
    first, second = matrix.values[:, [one]], matrix.values[:, [other]]
    asked = matrix.recorded[:, one] & matrix.recorded[:, other]
    return _pairing(matrix.raters[one], matrix.raters[other], first, second, matrix.clusters, asked)


def _all_people(matrix: Matrix, human: Sequence[int], seed: int) -> Pairing:
    values = matrix.values[:, human]
    asked = matrix.recorded[:, human].sum(axis=1) >= 2
    rated = (values != NONE).sum(axis=1) >= 2
    pairs = _met(values, seed)
    return _pairing(ALL_PEOPLE, "each other", values, values, matrix.clusters, asked, rated, pairs)._replace(
        coincidences=_coincidences(values[rated], _numbered(matrix.clusters, rated)[rated])
    )


def _met(values: Places, seed: int) -> Integers:
    """Pairs of columns that have a value on one item at least; of too many, some drawn by the seed."""
    rated = csr_array((values != NONE).astype(np.int32))
    meetings = (rated.T @ rated).tocoo()
    pairs = np.stack([meetings.row, meetings.col], axis=1)[meetings.row < meetings.col].astype(np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    if len(pairs) <= MOST_PAIRS:
        return pairs
    return pairs[np.sort(np.random.default_rng(seed).choice(len(pairs), MOST_PAIRS, replace=False))]


def _with_people(matrix: Matrix, machine: int, human: Sequence[int]) -> list[Pairing]:
    """A judge or check beside each person, beside the value that most people gave, and beside the people's mean."""
    if len(human) == 1:
        return [_pair(matrix, machine, human[0])]
    name, own, people = matrix.raters[machine], matrix.values[:, [machine]], matrix.values[:, human]
    asked = matrix.recorded[:, machine] & matrix.recorded[:, human].any(axis=1)
    rated = (own[:, 0] != NONE) & (people != NONE).any(axis=1)
    each = np.stack([np.zeros(len(human), dtype=np.int64), np.arange(len(human))], axis=1)
    votes = np.stack([(people == place).sum(axis=1) for place in range(len(GRADES))], axis=1)
    clear = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    majority = np.where(clear, votes.argmax(axis=1), NONE).astype(np.int16)[:, None]
    mean = _people_mean(votes)
    scale = np.unique(mean[~np.isnan(mean)])
    places = np.where(np.isnan(mean), NONE, np.searchsorted(scale, mean)).astype(np.int16)[:, None]
    return [
        _pairing(name, EACH, own, people, matrix.clusters, asked, rated, each),
        _pairing(name, MAJORITY, own, majority, matrix.clusters, asked),
        _pairing(name, MEAN, own, places, matrix.clusters, asked, scale=scale),
    ]


def _people_mean(votes: Integers) -> Numbers:
    """[items], of votes for each grade [items, grades]; nan where nobody has voted."""
    counts = votes.sum(axis=1)
    # Rounded, so that the same mean is one value whatever the order of the sum.
    return np.where(counts > 0, np.round(votes @ GRADES / np.maximum(counts, 1), 9), np.nan)


def _pairing(
    first: str,
    second: str,
    one: Places,
    other: Places,
    clusters: Integers,
    asked: NDArray[np.bool_],
    rated: NDArray[np.bool_] | None = None,
    pairs: Integers | None = None,
    scale: Numbers = GRADES,
) -> Pairing:
    """`rated` are the items with a value on both sides; by default of the first columns, which then are compared."""
    if rated is None:
        rated = (one[:, 0] != NONE) & (other[:, 0] != NONE)
    pairs = np.zeros((1, 2), dtype=np.int64) if pairs is None else pairs
    cluster, counts = _numbered(clusters, rated), (int(rated.sum()), int((asked & ~rated).sum()))
    return Pairing(first, second, one, other, pairs, cluster, scale, *counts)


def _numbered(clusters: Integers, used: NDArray[np.bool_]) -> Integers:
    """The clusters of items in use, numbered without gaps; -1 for other items."""
    numbers = np.full(len(clusters), -1, dtype=np.int64)
    numbers[used] = np.unique(clusters[used], return_inverse=True)[1]
    return numbers


def _tables(pairing: Pairing) -> Iterator[tuple[Integers, csr_array]]:
    """Some pairs at a time, and how often the first gave one value and the second another.

    Tables are [clusters, pairs x first's values x second's values]; on most prompts most pairs have not met.
    """
    rated = pairing.cluster >= 0
    one, other, cluster = pairing.one[rated], pairing.other[rated], pairing.cluster[rated]
    places = [[np.flatnonzero(column != NONE) for column in side.T] for side in (one, other)]
    shape = (len(GRADES), len(pairing.scale))
    for start in range(0, len(pairing.pairs), PAIRS_AT_ONCE):
        pairs = pairing.pairs[start : start + PAIRS_AT_ONCE]
        both = [np.intersect1d(places[0][i], places[1][j], assume_unique=True) for i, j in pairs]
        item, pair = np.concatenate(both), np.repeat(np.arange(len(pairs)), [len(met) for met in both])
        cells = (pair, one[item, pairs[pair, 0]], other[item, pairs[pair, 1]])
        columns = np.ravel_multi_index(cells, (len(pairs), *shape))
        entries = (np.ones(len(item)), (cluster[item], columns))
        yield pairs, csr_array(entries, shape=(pairing.clusters, len(pairs) * shape[0] * shape[1]))


def _coincidences(values: Places, clusters: Integers) -> Numbers:
    """Krippendorff's coincidences of items that two or more have rated, by cluster: [clusters, 1, values, values]."""
    counts = np.stack([(values == place).sum(axis=1) for place in range(len(GRADES))], axis=1).astype(np.float64)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(GRADES))
    pairs /= (counts.sum(axis=1) - 1)[:, None, None]
    found = np.zeros((int(clusters.max(initial=-1)) + 1, 1, len(GRADES), len(GRADES)))
    np.add.at(found[:, 0], clusters, pairs)
    return found


class Figures(NamedTuple):
    """Every measure of a pairing, at its point and [resamples]; and the counts of all its pairs together."""

    point: dict[str, Numbers]
    drawn: dict[str, Numbers]
    counts: Numbers


def _figures(pairing: Pairing, resamples: int, seed: int) -> Figures:
    point: Sums = {}
    drawn: Sums = {}
    shape = (-1, len(GRADES), len(pairing.scale))
    counts = np.zeros(shape[1:])
    resamples = _affordable(resamples, len(pairing.pairs))
    for _, tables in _tables(pairing):
        total = np.asarray(tables.sum(axis=0)).reshape(shape)
        counts += total.sum(axis=0)
        if pairing.items < 2:
            continue
        again = resampled(tables, resamples, seed).reshape(resamples, *shape)
        for found, of in ((point, total), (drawn, again)):
            added(found, sums(of, pairing.scale))
            if pairing.coincidences is None and shape[1] == shape[2]:
                added(found, {"alpha": weighted("alpha", of + of.swapaxes(-1, -2))})
    if pairing.coincidences is not None and pairing.items >= 2:
        point["alpha"] = weighted("alpha", pairing.coincidences.sum(axis=0))
        drawn["alpha"] = weighted("alpha", resampled(pairing.coincidences, resamples, seed))
    return Figures(pooled(point), pooled(drawn), counts)


def _affordable(resamples: int, pairs: int) -> int:
    return min(resamples, max(200, DRAWS // max(pairs, 1)))


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
        return "a mean is not on the scale 0, 1, 2"
    if np.isnan(point[name]):
        return "only one value occurs" if name == "alpha" else "a rater always gives the same value"
    return None


# --- who deviates


def _deviations(matrix: Matrix, resamples: int, confidence: float, seed: int) -> list[dict[str, Any]]:
    """One row a person: beside the mean of the other people.

    leniency           mean difference to the mean of the others
    kappa              with the others; kappa_others: of the others with each other; kappa_difference: first less second
    leniency_p, kappa_difference_p   corrected over the people (Holm 1979)
    deviates           "lenient", "strict", "apart" (agrees less than the others do), where p < 1 - confidence
    """
    human = _human(matrix)
    together = _all_people(matrix, human, seed) if len(human) > 1 else None
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
    values, rated, cluster = values[several], rated[several], _numbered(matrix.clusters, several)[several]
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
    resamples = _affordable(resamples, len(pairing.pairs))
    for pairs, tables in _tables(pairing):
        shape = (-1, len(pairs), len(GRADES), len(GRADES))
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


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _marks(row: Mapping[str, Any], level: float) -> list[str]:
    """How a person deviates, as far as it is beyond chance."""

    def beyond(name: str) -> bool:
        return row[f"{name}_p"] is not None and row[f"{name}_p"] < level

    marks = [("lenient" if row["leniency"] > 0 else "strict")] if beyond("leniency") else []
    return [*marks, *(["apart"] if beyond("kappa_difference") and row["kappa_difference"] < 0 else [])]
