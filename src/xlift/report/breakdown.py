"""The overall number by kind of prompt: its category, and its constraint where the constraint is what is rated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot
from statistics import NormalDist
from typing import NamedTuple

import polars as pl

from xlift.analysis.overall import overall
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.overall import others_text
from xlift.report.reading import Material, Scale
from xlift.report.rows import Number, Range, read

MOST_KINDS = 24


@dataclass(frozen=True)
class KindRow:
    """One condition and kind of prompt on one scale: the mean over the other languages."""

    run: str
    facet: str
    rater: str
    prompt_kind: str
    mean: Number
    low: Number
    high: Number
    rated: int
    missing: int


class KindGap(NamedTuple):
    """How much more often a run does best on one kind of prompt than on another; p for all pairs of kinds and runs."""

    run: str
    more: str
    less: str
    points: Range
    p: float


def kind_rows(material: Material) -> list[KindRow]:
    """One row a scale, condition and kind; none of scales with one kind only."""
    return [row for scale in material.scales for row in _kind_rows(material, scale)]


def _kind_rows(material: Material, scale: Scale) -> Iterator[KindRow]:
    own = material.tested.filter(facet=scale.facet, rater=scale.rater)
    constraints = {
        prompt["id"]: str((prompt.get("constraint") or {}).get("name") or "none") for prompt in material.prompts
    }
    named = pl.col("id").replace_strict(constraints, default="none", return_dtype=pl.String)
    kind = named if scale.facet == "constraint" else pl.col("category").fill_null("none")
    framed = own.with_columns(prompt_kind=kind)
    kinds = framed["prompt_kind"].n_unique()
    if not 1 < kinds <= MOST_KINDS:
        return
    names = {run: condition.name for condition in material.conditions for run in condition.runs}
    rows = overall(framed, ["condition", "prompt_kind"], ranked=False, **material.resampling).iter_rows(named=True)
    yield from (read(KindRow, row, run=names[row["condition"]]) for row in rows)


def widest_gap(rows: Sequence[KindRow], confidence: float) -> KindGap | None:
    """The widest difference between two kinds of prompt of one run that chance does not explain; None: there is none.

    Kinds have prompts of their own, so that the interval is put together from those of the two shares: the method of
    squares added (Newcombe 1998, "Interval estimation for the difference between independent proportions").
    """
    known = [row for row in rows if row.low is not None and row.high is not None]
    pairs = [pair for pair in combinations(known, 2) if pair[0].run == pair[1].run]
    gaps = [_gap(*pair, confidence, len(pairs)) for pair in pairs]
    return max((gap for gap in gaps if gap.p < 1 - confidence), key=lambda gap: gap.points.value or 0, default=None)


def _gap(one: KindRow, other: KindRow, confidence: float, pairs: int) -> KindGap:
    less, more = sorted((one, other), key=lambda row: row.mean or 0.0)
    (mean, low, high), (mean_2, low_2, high_2) = (
        [value or 0.0 for value in (row.mean, row.low, row.high)] for row in (less, more)
    )
    difference, down, up = mean_2 - mean, hypot(mean_2 - low_2, high - mean), hypot(high_2 - mean_2, mean - low)
    z = NormalDist().inv_cdf((1 + confidence) / 2) * difference / down if down else 0.0
    points = Range(difference, difference - down, difference + up)
    return KindGap(more.run, more.prompt_kind, less.prompt_kind, points, 2 * NormalDist().cdf(-z) * pairs)


def breakdown_table(material: Material, rows: Sequence[KindRow], scale: Scale) -> ReportTable | None:
    """A line a run, a column a kind of prompt."""
    if not rows:
        return None
    kinds = sorted({row.prompt_kind for row in rows})
    cells = {(row.run, row.prompt_kind): Value(row.mean, row.low, row.high, f"of {row.rated}") for row in rows}
    runs = [condition.name for condition in material.conditions]
    columns = [Column("run"), *(Column(kind, "share") for kind in kinds)]
    lines = [[Value(run), *(cells.get((run, kind), Value()) for kind in kinds)] for run in runs]
    what = "kind of constraint" if scale.facet == "constraint" else "category of the prompt"
    note = f"Test prompts: share of {scale.best}, {others_text(material)}, by {what}. Few of a kind: wide intervals."
    title = f"{scale.title}: by {what}"
    return ReportTable(f"kinds-{scale.slug}", title, note, columns, lines, rows)
