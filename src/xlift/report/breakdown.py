"""The overall number by kind of prompt: its category, and its constraint where the constraint is what is rated."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from xlift.analysis.overall import overall
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.overall import others_text
from xlift.report.reading import Material, Scale
from xlift.report.rows import Number, read

MOST_KINDS = 24


@dataclass(frozen=True)
class KindRow:
    """One condition and kind of prompt on one scale: the mean over the other languages."""

    run: str
    prompt_kind: str
    mean: Number
    low: Number
    high: Number
    rated: int
    missing: int


def breakdown_rows(material: Material, scale: Scale) -> list[KindRow]:
    """One row a condition and kind; [] where there is one kind only."""
    own = material.tested.filter(facet=scale.facet, rater=scale.rater)
    constraints = {
        prompt["id"]: str((prompt.get("constraint") or {}).get("name") or "none") for prompt in material.prompts
    }
    named = pl.col("id").replace_strict(constraints, default="none", return_dtype=pl.String)
    kind = named if scale.facet == "constraint" else pl.col("category").fill_null("none")
    framed = own.with_columns(prompt_kind=kind)
    kinds = framed["prompt_kind"].n_unique()
    if not 1 < kinds <= MOST_KINDS:
        return []
    names = {run: condition.name for condition in material.conditions for run in condition.runs}
    rows = overall(framed, ["condition", "prompt_kind"], ranked=False, **material.resampling).iter_rows(named=True)
    return [read(KindRow, row, run=names[row["condition"]]) for row in rows]


def breakdown_table(material: Material, scale: Scale) -> ReportTable | None:
    """A line a run, a column a kind of prompt."""
    rows = breakdown_rows(material, scale)
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
