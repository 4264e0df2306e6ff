"""One number a run in the report: rows, the table that ranks by it, and the marks of what tuning changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xlift.analysis.overall import overall
from xlift.languages import language_name
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.reading import Material, Scale
from xlift.report.rows import DifferenceRow, MeanRow, Number, Range, read

REFERENCE = "en"
"""The language that the others are compared with."""


@dataclass(frozen=True)
class OverallRow:
    """One condition or checkpoint and scale: the mean over the other languages, the worst of them, and its rank."""

    run: str
    id: str
    step: int
    untuned: bool
    facet: str
    rater: str
    mean: Number
    low: Number
    high: Number
    worst_language: str
    worst: Number
    worst_low: Number
    worst_high: Number
    languages: int
    rated: int
    missing: int
    n_prompts: int
    lowest_seed: Number
    highest_seed: Number
    n_seeds: int
    covers: str
    rank_from: int
    rank_to: int

    @property
    def share(self) -> Range:
        return Range(self.mean, self.low, self.high)

    @property
    def lowest(self) -> Range:
        return Range(self.worst, self.worst_low, self.worst_high)

    @property
    def rank(self) -> str:
        return str(self.rank_from) if self.rank_from == self.rank_to else f"{self.rank_from}–{self.rank_to}"


def overall_rows(material: Material) -> list[OverallRow]:
    """One row a condition and scale, on test prompts at the last checkpoints, the best mean first."""
    by_first = {run: condition for condition in material.conditions for run in condition.runs}
    if not by_first:
        return []
    rows = overall(material.tested, ["condition"], **material.resampling).iter_rows(named=True)
    named = ((row, by_first[row["condition"]]) for row in rows)
    return [read(OverallRow, row, run=one.name, id=one.runs[0], step=0, untuned=one.untuned) for row, one in named]


def checkpoint_rows(material: Material) -> list[OverallRow]:
    """The same of each checkpoint that has answered test prompts."""
    untuned = {one.run.id: one.run.config.untuned for one in material.answered}
    parts = material.parts(material.ratings, split="test")
    found = (overall(part, ["run", "step"], **material.resampling) for part in parts if len(part))
    rows = (row for one in found for row in one.iter_rows(named=True))
    return [
        read(
            *(OverallRow, row),
            **{"run": material.name(row["run"], row["step"]), "id": row["run"], "untuned": untuned[row["run"]]},
        )
        for row in rows
    ]


def marks_of(material: Material, rows: Sequence[DifferenceRow]) -> dict[tuple[str, str], str]:
    """▲ or ▼ by run and language, where tuning has changed something beyond chance, by `versus_rows` of one scale."""
    level = 1 - material.workspace.study.report.confidence
    runs = {condition.name: condition.runs for condition in material.conditions}
    return {
        (run, row.language): "▲" if (row.difference or 0) > 0 else "▼"
        for row in rows
        if row.p_holm is not None and row.p_holm < level and row.low is not None and row.high is not None
        if row.low > 0 or row.high < 0
        for run in runs[row.run]
    }


def others_text(material: Material) -> str:
    """What the overall number is the mean over."""
    others = [code for code in material.languages if code != REFERENCE]
    if not others:
        return "English"
    if len(others) == 1:
        return language_name(others[0])
    return f"mean of {len(others)} other languages" if REFERENCE in material.languages else "mean of all languages"


def overall_table(
    material: Material, rows: Sequence[OverallRow], means: Sequence[MeanRow], scale: Scale
) -> ReportTable | None:
    """Runs by their mean over the other languages, with the worst language, English, and how far the order is sure."""
    if not rows:
        return None
    english = {row.run: Value(*row.share) for row in means if row.language == REFERENCE}
    note = (
        f"Test prompts: share of {scale.best}, each language counting alike; {material.confidence} intervals. A rank "
        "of 1–4 says that no more than this can be told: runs whose ranks overlap may be equally good (paired t tests "
        f"over requests, {material.confidence} over all pairs by Holm). The interval of the worst language holds "
        "whichever it is."
    )
    columns = [Column("run"), Column("rank"), Column(others_text(material), "share"), Column("worst language", "share")]
    columns += [Column("English", "share")] if english else []
    seeded = any(row.n_seeds > 1 for row in rows)
    columns += [Column("seeds: lowest to highest")] if seeded else []
    lines = [
        [Value(row.run), Value(row.rank), Value(*row.share, f"{row.missing} missing" if row.missing else "")]
        + [Value(*row.lowest, language_name(row.worst_language))]
        + ([english.get(row.run, Value())] if english else [])
        + ([Value(_seeds(row))] if seeded else [])
        for row in rows
    ]
    title = f"{scale.title}: overall"
    return ReportTable(f"overall-{scale.slug}", title, note, columns, lines, rows)


# e.g. three seeds of 61 %, 66 % and 70 %: "3: 61–70 %"
def _seeds(row: OverallRow) -> str:
    if row.lowest_seed is None or row.highest_seed is None:
        return "1"
    return f"{row.n_seeds}: {row.lowest_seed * 100:.0f}–{row.highest_seed * 100:.0f} %"
