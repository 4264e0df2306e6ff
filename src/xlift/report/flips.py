"""From which learning rate on each language is lost, all else equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from xlift.analysis.flips import flip
from xlift.languages import language_name
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.numbers import curve_points
from xlift.report.reading import Material, Scale
from xlift.report.rows import MeanRow
from xlift.study.labels import learning_rate_text


@dataclass(frozen=True)
class FlipRow:
    """One setting of the rest (`others`) and language: the rate that leaves fewer than half of the answers good."""

    others: str
    rater: str
    language: str
    rate: float
    low: float
    high: float
    lowest: float
    highest: float
    requests: int


def flip_rows(material: Material, means: list[MeanRow], scale: Scale) -> list[FlipRow]:
    """One row a panel of the curves by learning rate and language."""
    runs = {one.name: one.runs for one in material.conditions}
    panels: dict[str, dict[float, list[str]]] = {}
    for panel, row in curve_points(means, "learning_rate"):
        if not row.untuned:
            panels.setdefault(panel, {})[row.settings["learning_rate"]] = runs[row.run]
    rated = material.test.filter(facet=scale.facet, rater=scale.rater)
    rates = material.axes.select("run", "learning_rate")
    rows = []
    for panel, own in panels.items():
        known = {run: rate for rate, names in own.items() for run in names}
        chosen = rated.filter(pl.col("run").is_in(list(known))).join(rates, on="run", how="left")
        for code in material.languages:
            one = flip(chosen.filter(language=code), **material.resampling)
            if one is not None:
                tried = min(own), max(own)
                rows.append(FlipRow(panel, scale.rater, code, *one[:3], *tried, one.requests))
    return rows


def flips_table(material: Material, means: list[MeanRow], scale: Scale) -> ReportTable | None:
    """A line a setting of the rest, a column a language."""
    rows = flip_rows(material, means, scale)
    if not rows:
        return None
    told = {(row.others, row.language): _text(row) for row in rows}
    columns = [Column("all else alike"), *(Column(language_name(code), "rates") for code in material.languages)]
    lines = [
        [Value(panel or "tuned"), *(Value(told.get((panel, code))) for code in material.languages)]
        for panel in dict.fromkeys(row.others for row in rows)
    ]
    note = (
        "Test prompts: above this rate, and at all higher ones that were tried, fewer than half of the answers are "
        "wholly in the language; between two rates as if the share fell evenly in the logarithm. In brackets the "
        "interval, over requests. > and <: beyond the rates that were tried."
    )
    title = "The learning rate from which on a language is lost"
    return ReportTable(f"flips-{scale.slug}", title, note, columns, lines, rows)


# e.g. "2.1e-3 [1.4e-3, > 1e-2]"
def _text(row: FlipRow) -> str:
    rate, low, high = (_rate(one, row) for one in (row.rate, row.low, row.high))
    return rate if low == high == rate else f"{rate} [{low}, {high}]"


def _rate(rate: float, row: FlipRow) -> str:
    if math.isinf(rate):
        return f"> {learning_rate_text(row.highest)}"
    return learning_rate_text(float(f"{rate:.2g}")) if rate else f"< {learning_rate_text(row.lowest)}"
