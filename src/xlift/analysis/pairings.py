"""Ratings as matrices of responses and raters, and the two sides of each comparison, as counts of values that met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

from xlift.errors import DataError
from xlift.intervals import Integers, Numbers
from xlift.languages import known_code, language_problem
from xlift.records import KINDS, PANEL, ends_of, kind_of

ALL_LANGUAGES = "all"
ALL_PEOPLE, EACH, MAJORITY, MEAN = "all people", "each person", "people's majority", "people's mean"
SINGLY = 20
"""Up to so many people, every two of them are a row of their own: 20 make 190 rows, 1,000 would make 499,500."""
MOST_PAIRS = 5000
"""Of so many pairs of people, drawn by the seed, kappa, agreement and tau are the mean where more have met."""
PAIRS_AT_ONCE = 256
NONE = -1
Places = NDArray[np.int16]


class Item(NamedTuple):
    """One response that raters look at."""

    run: str
    step: int
    id: str
    response: str
    language: str


Ratings = Iterable[Mapping[str, Any]] | pl.DataFrame
"""Records as on disk, or the tidy frame or some of its columns."""
KEY = (*Item._fields, "facet", "rater")
"""What a value is of."""
_TYPES = pl.Schema(dict.fromkeys(KEY, pl.Categorical()) | {
    "step": pl.Int64, "response": pl.String, "value": pl.Float64, "lowest": pl.Int16, "best": pl.Int16,
    "cluster": pl.Categorical(),
})  # fmt: skip
_AT_ONCE = 50_000
"""So many records become columns together: a million as rows of Python take gigabytes."""


class Matrix(NamedTuple):
    """Ratings of one facet, [items, raters]: `values` are places on `grades`, NONE where there is none.

    `recorded` is true where a record is; `clusters` [items] tells which prompt an item belongs to.
    """

    raters: list[str]
    values: Places
    recorded: NDArray[np.bool_]
    clusters: Integers
    grades: Numbers


class Pairing(NamedTuple):
    """Two sides that are compared.

    `one` and `other` [items, raters] are places of values on `grades` and on `scale`, NONE where there is no value;
    `pairs` [pairs, 2] names the columns that meet. `cluster` [items] numbers the clusters of items that both sides have
    rated, -1 elsewhere. `coincidences` [clusters, 1, values, values] are Krippendorff's where more than two meet.
    """

    first: str
    second: str
    one: Places
    other: Places
    pairs: Integers
    cluster: Integers
    grades: Numbers
    scale: Numbers
    items: int
    missing: int
    coincidences: Numbers | None = None

    @property
    def clusters(self) -> int:
        return int(self.cluster.max(initial=-1)) + 1


# e.g. cluster_of({"id": "open-1.fr", "parallel_id": "open-1"}, None) → "open-1"
def cluster_of(record: Mapping[str, Any], clusters: Mapping[str, str] | None) -> str:
    """What is resampled together with a rating: its request in all languages where that is known, else its prompt."""
    return str((clusters or {}).get(record["id"]) or record.get("parallel_id") or record["id"])


# e.g. graded_facet({"facet": "fluency"}) → ("fluency", (0, 2))
# e.g. graded_facet({"facet": "politeness", "scale": [1, 5]}) → ("politeness 1–5", (1, 5))
def graded_facet(record: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """A facet as it is compared, with the ends of its scale: values on two scales do not meet."""
    lowest, best = ends_of(record) if record.get("best") is None else (record["lowest"], record["best"])
    own = "" if (lowest, best) == (0, 2) else f" {lowest}–{best}"
    return f"{record['facet']}{own}", (lowest, best)


def latest(ratings: Ratings, clusters: Mapping[str, str] | None = None) -> pl.DataFrame:
    """One row an item, facet and rater (KEY), in their order, with `value`, `lowest`, `best` and `cluster`.

    Where a rater has rated an item twice the last record counts. `facet` is that of `graded_facet`, `clusters` gives
    the parallel_id of a prompt id. A panel of judges is left out: its judges are compared themselves.
    Raises DataError that lists records that are not ratings and values that are not 0, 1, 2 (or of the facet's own
    scale) or missing.
    """
    if isinstance(ratings, pl.DataFrame):
        found = _of_frame(ratings, clusters)
    else:
        records, wrong = enumerate(ratings, start=1), dict[str, int]()
        parts = [pl.DataFrame(schema=_TYPES)]
        while some := list(islice(records, _AT_ONCE)):
            rows = [row for number, one in some if (row := _cell(number, one, clusters, wrong))]
            parts.append(pl.DataFrame(rows, schema=_TYPES, orient="row"))
        _refuse(wrong)
        found = pl.concat(parts)
    found = found.with_columns(cluster=pl.col("cluster").last().over("id"))
    return found.unique(KEY, keep="last", maintain_order=True).sort(KEY)


def _cell(
    number: int, record: Mapping[str, Any], clusters: Mapping[str, str] | None, wrong: dict[str, int]
) -> tuple[Any, ...] | None:
    """A record as a row of _TYPES; None of a panel's, and where something is `wrong`."""
    if str(record.get("rater", "")).startswith(PANEL):
        return None
    lacking = [field for field in ("id", "language", "facet", "rater", "value") if field not in record]
    value = None if lacking else record["value"]
    facet, (lowest, best) = ("", (0, 0)) if lacking else graded_facet(record)
    if not isinstance(record.get("step") or 0, int):
        problem = f"record {number}: 'step' must be a whole number, found {record['step']!r}"
    elif lacking:
        problem = f"record {number} is not a rating: it has no {', '.join(lacking)}"
    elif not known_code(record["language"]):
        problem = language_problem(record["language"])
    elif value is not None and value not in range(lowest, best + 1):
        values = ", ".join(map(str, range(lowest, best + 1)))
        problem = f"{record['rater']} gives {value!r} for {record['facet']}; values are {values} or null"
    else:
        place = (str(record.get("run", "")), int(record.get("step") or 0), str(record["id"]))
        item = (*place, str(record.get("response") or ""), known_code(record["language"]))
        value = None if value is None else float(value)
        return (*item, facet, str(record["rater"]), value, lowest, best, cluster_of(record, clusters))
    wrong[problem] = wrong.get(problem, 0) + 1
    return None


def _refuse(wrong: Mapping[str, int]) -> None:
    shown = [f"{text} ({count} times)" if count > 1 else text for text, count in list(wrong.items())[:10]]
    more = [f"… and {len(wrong) - 10} more problems"] if len(wrong) > 10 else []
    if wrong:
        raise DataError([*shown, *more], "ratings files are written by xlift rate, judge and annotate")


def _of_frame(frame: pl.DataFrame, clusters: Mapping[str, str] | None) -> pl.DataFrame:
    """The columns of _TYPES of the tidy frame; what is wrong in some rows is told as it is of records."""
    if lacking := [field for field in ("id", "language", "facet", "rater", "value") if field not in frame.columns]:
        raise DataError(f"the table is not one of ratings: it has no column {', '.join(lacking)}")
    absent = {name: pl.lit(None) for name in (*Item._fields, "parallel_id", "lowest", "best") if name not in frame}
    own = frame.with_columns(**absent).filter(~_text("rater").str.starts_with(PANEL))
    codes = {text: known_code(text) for text in own.select(_text("language")).to_series().unique()}
    value, lowest, best = pl.col("value"), pl.col("lowest").fill_null(0), pl.col("best").fill_null(2)
    good = value.is_null() | ((value == value.floor()) & value.is_between(lowest, best))
    known = _text("language").is_in([text for text, code in codes.items() if code])
    latest(own.filter(~(good & known)).select(frame.columns).iter_rows(named=True))
    facet = pl.when((lowest == 0) & (best == 2)).then(_text("facet"))
    given = _text("id").replace_strict(clusters or {}, default=None, return_dtype=pl.String)
    cluster = pl.coalesce(given, _text("parallel_id").replace("", None), _text("id"))
    return (
        own.select(
            *(_text(name) for name in ("run", "id", "response", "rater")),
            pl.col("step").fill_null(0),
            _text("language").replace_strict(codes, return_dtype=pl.String).alias("language"),
            facet.otherwise(pl.format("{} {}–{}", _text("facet"), lowest, best)).alias("facet"),
            *(value, lowest.alias("lowest"), best.alias("best"), cluster.alias("cluster")),
        )
        .select(*_TYPES)
        .cast(_TYPES)
    )


def _text(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.String).fill_null("")


def matrices(found: pl.DataFrame) -> Iterator[tuple[str, str, Matrix]]:
    """(facet, language, matrix) of what `latest` gives; "all" behind the languages where there are several."""
    numbered_clusters = found.with_columns(pl.col("cluster").cast(pl.String).rank("dense"))
    for (facet,), own in numbered_clusters.group_by("facet", maintain_order=True):
        parts = {str(language): part for (language,), part in own.partition_by("language", as_dict=True).items()}
        languages = sorted(parts)
        for language in languages:
            yield str(facet), language, _matrix(parts[language])
        if len(languages) > 1:
            yield str(facet), ALL_LANGUAGES, _matrix(pl.concat([parts[language] for language in languages]))


def _matrix(cells: pl.DataFrame) -> Matrix:
    """The matrix of rows that stand in the order of their items."""
    item = cells.select(pl.struct(Item._fields).rle_id()).to_series().to_numpy()
    raters = sorted(map(str, cells["rater"].unique()))
    rater = cells["rater"].cast(pl.Enum(raters)).to_physical().to_numpy()
    lowest, best = cells["lowest"][0], cells["best"][0]
    values = np.full((int(item[-1]) + 1, len(raters)), NONE, dtype=np.int16)
    recorded = np.zeros(values.shape, dtype=bool)
    recorded[item, rater] = True
    values[item, rater] = (cells["value"] - lowest).fill_null(NONE).to_numpy()
    clusters = np.zeros(len(values), dtype=np.int64)
    clusters[item] = cells["cluster"].to_numpy()
    numbers = np.unique(clusters, return_inverse=True)[1]
    return Matrix(raters, values, recorded, numbers, np.arange(lowest, best + 1, dtype=np.float64))


def pairings(matrix: Matrix, seed: int) -> Iterator[tuple[str, Pairing]]:
    human = people_of(matrix)
    machines = [i for kind in KINDS[1:] for i, rater in enumerate(matrix.raters) if kind_of(rater) == kind]
    found = [("people", all_people(matrix, human, seed))] if len(human) > 2 else []
    found += [("people", _pair(matrix, *two)) for two in combinations(human, 2) if len(human) <= SINGLY]
    for machine in machines if human else []:
        between = f"{kind_of(matrix.raters[machine])} and people"
        found += [(between, pairing) for pairing in _with_people(matrix, machine, human)]
    found += [("judges and checks", _pair(matrix, one, other)) for one, other in combinations(machines, 2)]
    return ((between, pairing) for between, pairing in found if pairing.items or pairing.missing)


def people_of(matrix: Matrix) -> list[int]:
    return [i for i, rater in enumerate(matrix.raters) if kind_of(rater) == "human"]


def _pair(matrix: Matrix, one: int, other: int) -> Pairing:
    first, second = matrix.values[:, [one]], matrix.values[:, [other]]
    asked = matrix.recorded[:, one] & matrix.recorded[:, other]
    return _pairing(matrix, (matrix.raters[one], matrix.raters[other]), first, second, asked)


def all_people(matrix: Matrix, human: Sequence[int], seed: int) -> Pairing:
    values = matrix.values[:, human]
    asked = matrix.recorded[:, human].sum(axis=1) >= 2
    rated = (values != NONE).sum(axis=1) >= 2
    pairs = _met(values, seed)
    return _pairing(matrix, (ALL_PEOPLE, "each other"), values, values, asked, rated, pairs)._replace(
        coincidences=_coincidences(values[rated], numbered(matrix.clusters, rated)[rated], len(matrix.grades))
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
    votes = _votes(people, len(matrix.grades))
    clear = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    majority = np.where(clear, votes.argmax(axis=1), NONE).astype(np.int16)[:, None]
    mean = _people_mean(votes, matrix.grades)
    scale = np.unique(mean[~np.isnan(mean)])
    places = np.where(np.isnan(mean), NONE, np.searchsorted(scale, mean)).astype(np.int16)[:, None]
    return [
        _pairing(matrix, (name, EACH), own, people, asked, rated, each),
        _pairing(matrix, (name, MAJORITY), own, majority, asked),
        _pairing(matrix, (name, MEAN), own, places, asked, scale=scale),
    ]


def _votes(values: Places, grades: int) -> Integers:
    """How many raters gave each item each grade: [items, grades]."""
    return np.stack([(values == place).sum(axis=1) for place in range(grades)], axis=1)


# e.g. _people_mean(np.array([[0, 1, 1]]), np.array([0.0, 1.0, 2.0])).tolist() → [1.5]
def _people_mean(votes: Integers, grades: Numbers) -> Numbers:
    """[items], of votes for each grade [items, grades]; nan where nobody has voted."""
    counts = votes.sum(axis=1)
    # Rounded, so that the same mean is one value whatever the order of the sum.
    return np.where(counts > 0, np.round(votes @ grades / np.maximum(counts, 1), 9), np.nan)


def _pairing(
    matrix: Matrix,
    names: tuple[str, str],
    one: Places,
    other: Places,
    asked: NDArray[np.bool_],
    rated: NDArray[np.bool_] | None = None,
    pairs: Integers | None = None,
    scale: Numbers | None = None,
) -> Pairing:
    """`rated` are the items with a value on both sides; by default of the first columns, which then are compared."""
    if rated is None:
        rated = (one[:, 0] != NONE) & (other[:, 0] != NONE)
    pairs = np.zeros((1, 2), dtype=np.int64) if pairs is None else pairs
    cluster, counts = numbered(matrix.clusters, rated), (int(rated.sum()), int((asked & ~rated).sum()))
    scale = matrix.grades if scale is None else scale
    return Pairing(*names, one, other, pairs, cluster, matrix.grades, scale, *counts)


# e.g. numbered(np.array([7, 5, 7]), np.array([True, False, True])).tolist() → [0, -1, 0]
def numbered(clusters: Integers, used: NDArray[np.bool_]) -> Integers:
    """The clusters of items in use, numbered without gaps; -1 for other items."""
    numbers = np.full(len(clusters), -1, dtype=np.int64)
    numbers[used] = np.unique(clusters[used], return_inverse=True)[1]
    return numbers


def counts_by_cluster(pairing: Pairing) -> Iterator[tuple[Integers, csr_array]]:
    """Some pairs at a time, and how often the first gave one value and the second another.

    Tables are [clusters, pairs x first's values x second's values]; on most prompts most pairs have not met.
    """
    rated = pairing.cluster >= 0
    one, other, cluster = pairing.one[rated], pairing.other[rated], pairing.cluster[rated]
    places = [[np.flatnonzero(column != NONE) for column in side.T] for side in (one, other)]
    shape = (len(pairing.grades), len(pairing.scale))
    for start in range(0, len(pairing.pairs), PAIRS_AT_ONCE):
        pairs = pairing.pairs[start : start + PAIRS_AT_ONCE]
        both = [np.intersect1d(places[0][i], places[1][j], assume_unique=True) for i, j in pairs]
        item, pair = np.concatenate(both), np.repeat(np.arange(len(pairs)), [len(met) for met in both])
        cells = (pair, one[item, pairs[pair, 0]], other[item, pairs[pair, 1]])
        columns = np.ravel_multi_index(cells, (len(pairs), *shape))
        entries = (np.ones(len(item)), (cluster[item], columns))
        yield pairs, csr_array(entries, shape=(pairing.clusters, len(pairs) * shape[0] * shape[1]))


def _coincidences(values: Places, clusters: Integers, grades: int) -> Numbers:
    """Krippendorff's coincidences of items that two or more have rated, by cluster: [clusters, 1, values, values]."""
    counts = _votes(values, grades).astype(np.float64)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(grades)
    pairs /= (counts.sum(axis=1) - 1)[:, None, None]
    found = np.zeros((int(clusters.max(initial=-1)) + 1, 1, grades, grades))
    np.add.at(found[:, 0], clusters, pairs)
    return found
