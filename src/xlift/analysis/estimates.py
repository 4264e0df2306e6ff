"""Summaries of the tidy table: runs that are alike but for their seed, and a mean with its interval for each group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from xlift.errors import DataError
from xlift.intervals import Table, interval_of_mean
from xlift.records import EMPTY, PANEL, SCALES
from xlift.study.labels import setting_kinds
from xlift.study.runs import INDIFFERENT

SETTINGS = tuple(name for name in setting_kinds() if name not in {"seed", *INDIFFERENT})
"""Columns that make a condition: runs alike in all of them differ only in `seed`."""
SUMMARY: dict[str, Any] = {
    **{"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64},
    **{"share_best": pl.Float64, "share_best_low": pl.Float64, "share_best_high": pl.Float64},
    **{"rated": pl.Int64, "missing": pl.Int64, "n_prompts": pl.Int64, "n_seeds": pl.Int64},
    **{"covers": pl.String, "reason": pl.String},
}
_SUMMARISED = ("condition", "run", "step", "seed", "parallel_id", "facet", "rater", "value", "reason", "lowest", "best")


def check_columns(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    """Raises DataError that names all columns which a frame of ratings lacks."""
    lacking = [f"'{name}'" for name in dict.fromkeys(columns) if name not in frame.columns]
    if lacking:
        raise DataError(
            f"the ratings have no column {', '.join(lacking)}; columns: {', '.join(frame.columns)}",
            "xlift.load(STUDY).ratings has all columns",
        )


# e.g. of 19 empty answers and one in French to French prompts, 5 % are wholly in the language, and not 100 %
def with_silence(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with 0 for the language of an empty answer: who says nothing does not say it in the language."""
    if not {"facet", "value", "reason"} <= set(frame.columns):
        return frame
    silent = (pl.col("facet") == "language") & (pl.col("reason") == EMPTY) & pl.col("value").is_null()
    return frame.with_columns(value=pl.when(silent).then(0.0).otherwise("value"))


# e.g. of a frame without these columns: 0 and 2 for fluency; of a facet that is rated from 1 to 5, 1 and 5
def with_scales(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `lowest` and `best`, the ends of each rating's scale; null for a facet of which none is known."""
    ends = {"lowest": dict.fromkeys(SCALES, 0.0), "best": SCALES}
    known = {
        name: pl.col("facet").replace_strict(own, default=None, return_dtype=pl.Float64) for name, own in ends.items()
    }
    told = {name: pl.coalesce(name, end) if name in frame.columns else end for name, end in known.items()}
    return frame.with_columns(**told)


def best_given(frame: pl.DataFrame) -> pl.Expr:
    """1 where a value is the best of its scale (2, or the end of a scale of its own), else 0; null where missing."""
    best = pl.col("best").fill_null(2) if "best" in frame.columns else pl.lit(2)
    return (pl.col("value") == best).cast(pl.Float64)


def span_of(frame: pl.DataFrame) -> float | None:
    """How far the values of a group may lie apart; None for several scales, and where none is known."""
    return span_between(with_scales(frame).select("lowest", "best").unique().rows())


# e.g. [span_between(scales) for scales in ([(1, 5)], [(0, 2), (1, 5)], [(None, None)])] → [4, None, None]
def span_between(scales: Sequence[tuple[Any, ...]]) -> float | None:
    """The same of the scales that a group has, each by its lowest and best value."""
    lowest, best = scales[0] if len(scales) == 1 else (None, None)
    return None if lowest is None or best is None else best - lowest


def last_steps(frame: pl.DataFrame) -> pl.DataFrame:
    """Only the last checkpoint of each run (and of each value of the axis `steps`)."""
    run = [name for name in ("run", "steps") if name in frame.columns]
    return frame.filter(pl.col("step") == pl.col("step").max().over(run)) if "step" in frame.columns else frame


def with_conditions(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a column `condition`: the name of the first of the runs that differ only in `seed`.

    Runs that are alike in seed too differ in a setting which the frame does not show; each is a condition of its own.
    A frame without settings that has the column keeps it. Raises DataError where columns are lacking.
    """
    if "condition" in frame.columns and not {*SETTINGS} & {*frame.columns}:
        return frame
    check_columns(frame, ["run", "seed", *SETTINGS])
    # Of a million ratings, settings are looked at once a run and not once a row.
    varying = [
        name for name in dict.fromkeys(["run", "seed", *SETTINGS]) if frame[name].n_unique() > 1 or name == "run"
    ]
    settings = [pl.lit(0), *(name for name in varying if name in SETTINGS)]
    runs = frame.select(varying).unique(maintain_order=True)
    runs = runs.with_columns(twins=pl.col("run").n_unique().over([*settings, *({"seed"} & {*varying})]))
    first, twins = pl.col("run").min().over(settings), pl.col("twins").max().over(settings)
    runs = runs.with_columns(condition=pl.when(twins > 1).then("run").otherwise(first))
    # Joined to these columns alone: a join of all would write out those that are alike in all rows.
    told = frame.select(varying).join(runs, on=varying, how="left", maintain_order="left", nulls_equal=True)
    return frame.with_columns(told["condition"])


def summary(
    frame: pl.DataFrame,
    by: Sequence[str] = ("run", "step", "split", "facet", "rater", "language"),
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """One row a group of ratings: mean, share of the best value, how many were rated, how many are missing.

    `by` names columns of the frame, or `condition` (runs that differ only in `seed`, together). `low` and `high` belong
    to the mean; n_prompts counts rated requests, translations once; `covers` says whether the intervals cover the
    choice of prompts only, or of prompts and seeds too (each condition of the group has two seeds or more). Where there
    is no number, `reason` says why. `share_best`, of the value 2 or the end of a scale of its own, is left out where
    values are no whole numbers on the scale. Raises DataError where columns are lacking.
    """
    by = list(dict.fromkeys(by))
    frame = with_silence(with_conditions(frame))
    check_columns(frame, [*by, "facet", "parallel_id", "value"])
    used = dict.fromkeys([*by, *_SUMMARISED])
    frame = with_scales(frame.select(name for name in used if name in frame.columns))
    schema: dict[str, Any] = {**{name: frame.schema[name] for name in by}, **SUMMARY}
    if frame.is_empty():
        return pl.DataFrame(schema=schema)
    found = pl.concat([_summary(own, by, schema, resamples, confidence, seed) for own in parted(frame, by)])
    return found.sort(by, nulls_last=True)


def parted(frame: pl.DataFrame, by: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows of one scale after another where `by` tells scales apart: of a large study, all at once are too many."""
    scale = [name for name in ("facet", "rater") if name in by]
    for names in frame.select(scale).unique().sort(scale).iter_rows() if scale else [()]:
        yield frame.filter(**dict(zip(scale, names, strict=True)))


def _summary(
    frame: pl.DataFrame, by: Sequence[str], schema: dict[str, Any], resamples: int, confidence: float, seed: int
) -> pl.DataFrame:
    value = pl.col("value")
    facts = frame.group_by(by).agg(
        rated=value.count().cast(pl.Int64),
        missing=value.null_count().cast(pl.Int64),
        n_prompts=pl.col("parallel_id").filter(value.is_not_null()).n_unique().cast(pl.Int64),
        n_seeds=pl.col("seed").filter(value.is_not_null()).n_unique().cast(pl.Int64),
        graded=_graded().all() | _of_panels(frame),
        lowest=pl.col("lowest").first(),
        top=_top(),
        why=_commonest_reason(frame),
    )
    cells = _cells(frame, by)
    rows = [
        fact | _summary_row(fact, cells.get(tuple(fact[name] for name in by)), resamples, confidence, seed)
        for fact in facts.iter_rows(named=True)
    ]
    return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)


def _of_panels(frame: pl.DataFrame) -> pl.Expr:
    """Whether a group is a panel's: a mean of several judges is the best value where all of them give it."""
    return pl.col("rater").cast(pl.String).str.starts_with(PANEL).all() if "rater" in frame.columns else pl.lit(False)


def _graded() -> pl.Expr:
    value = pl.col("value").drop_nulls()
    inside = value.is_between(pl.col("lowest").min().fill_null(0), pl.col("best").max().fill_null(2))
    return inside & (value == value.floor())


def _top() -> pl.Expr:
    """The best value of a group of ratings; null for several scales, and for values that are on none."""
    lowest, best = pl.col("lowest"), pl.col("best")
    one = (lowest.n_unique() == 1) & (best.n_unique() == 1)
    fits = one & pl.col("value").drop_nulls().is_between(lowest.max(), best.max()).all()
    return pl.when(fits).then(best.max())


def _commonest_reason(frame: pl.DataFrame) -> pl.Expr:
    if "reason" not in frame.columns:
        return pl.lit(None, dtype=pl.String)
    # Sorted first, so that of equally common ones it is always the same.
    return pl.col("reason").filter(pl.col("value").is_null()).drop_nulls().sort().mode(maintain_order=True).first()


def _cells(frame: pl.DataFrame, by: Sequence[str]) -> dict[tuple[Any, ...], dict[str, NDArray[Any]]]:
    """Per group, parallel arrays with one entry a request and run: cluster, run, condition, count, sum, best."""
    keys = list(dict.fromkeys([*by, "condition", "step", "run", "parallel_id"]))
    rated = frame.filter(pl.col("value").is_not_null()).sort([*keys, "value"])
    cells = rated.group_by(keys, maintain_order=True).agg(
        count=pl.len(), sum=pl.col("value").sum(), best=best_given(frame).sum()
    )
    # Whole numbers are many times faster to tell apart than names.
    cells = cells.with_columns(
        cluster_place=pl.col("parallel_id").rank("dense"),
        run_place=pl.struct("condition", "step", "run").rank("dense"),
        condition_place=pl.struct("condition", "step").rank("dense"),
    )
    wanted = ["cluster_place", "run_place", "condition_place", "count", "sum", "best"]
    return {
        key: {name: group[name].to_numpy() for name in wanted}
        for key, group in cells.partition_by(list(by), as_dict=True).items()
    }


def _table(cells: dict[str, NDArray[Any]], what: str) -> Table:
    clusters, cluster = np.unique(cells["cluster_place"], return_inverse=True)
    runs, first, run = np.unique(cells["run_place"], return_index=True, return_inverse=True)
    sums, counts = np.zeros((2, len(clusters), len(runs)))
    sums[cluster, run], counts[cluster, run] = cells[what], cells["count"]
    _, condition = np.unique(cells["condition_place"][first], return_inverse=True)
    return Table(sums, counts, condition)


def _summary_row(
    fact: dict[str, Any],
    cells: dict[str, NDArray[Any]] | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SUMMARY) | {name: fact[name] for name in SUMMARY if name in fact}
    if cells is None:
        commonest = f": {fact['why']}" if fact["why"] else ""
        return row | {"reason": f"none of {fact['missing']} could be rated{commonest}"}
    table, lowest = _table(cells, "sum"), fact["lowest"] if fact["top"] else 0.0
    row |= {"mean": float(table.sums.sum() / table.counts.sum())}
    # The interval of a mean is of a scale that begins at 0.
    above, top = table._replace(sums=table.sums - lowest * table.counts), fact["top"] and fact["top"] - lowest
    found = interval_of_mean(above, top, resamples, confidence, seed)
    row |= {"low": _raised(found.low, lowest), "high": _raised(found.high, lowest)}
    if fact["graded"]:
        best = _table(cells, "best")
        share = interval_of_mean(best, 1.0, resamples, confidence, seed)
        row |= {"share_best": float(best.sums.sum() / best.counts.sum())}
        row |= {"share_best_low": share.low, "share_best_high": share.high}
    return row | {"covers": found.covers, "reason": None if found.covers else why_no_interval(len(table.sums))}


def _raised(bound: float | None, by: float) -> float | None:
    return None if bound is None else bound + by


# e.g. why_no_interval(1) → "a single prompt: no interval"
def why_no_interval(clusters: int, what: str = "values") -> str:
    """Why a mean over prompts has no interval."""
    return "a single prompt: no interval" if clusters == 1 else f"all {what} are equal: no interval"
