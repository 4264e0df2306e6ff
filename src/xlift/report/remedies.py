"""What mends a model: every run of a study beside its first, on the same prompts, with what each costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from xlift.analysis.measures import holm
from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.languages import language_name
from xlift.report.formats import Column, ReportTable, Value, value_text
from xlift.report.numbers import differences
from xlift.report.overall import REFERENCE
from xlift.report.reading import Condition, Material
from xlift.report.rows import DifferenceRow, record
from xlift.study.labels import learning_rate_text, run_settings
from xlift.terminal import fitted, paged

NAME, LANGUAGES_ABREAST = 26, 3
"""Columns of a terminal for a remedy's name, and languages beside one another: what 80 columns hold."""
_MEASURES = {"language": ("language", "language"), "facts": ("accuracy", "answers")}
"""What is told of a remedy: facet and rater."""


@dataclass(frozen=True)
class Remedy:
    """One remedy beside the ailing run: differences of shares by measure and language (`ALL_LANGUAGES`: all but
    English together), and what its own training took; None where it has none of its own."""

    name: str
    run: str
    rows: dict[tuple[str, str], DifferenceRow]
    tokens: int | None
    seconds: float | None


def remedies_of(material: Material) -> list[Remedy]:
    """Every tuned condition of the study but the first, beside the first; [] where the study does not ask for that.

    p is corrected (Holm) over all differences of a measure: remedies, languages, and all languages together.
    """
    study = material.workspace.study
    tuned = study.tuned_runs()
    if not study.report.remedies or not tuned:
        return []
    first = tuned[0]
    runs = {run.config.content_hash: run for run in material.workspace.runs}
    ailing = next((one for one in material.conditions if runs[first.content_hash].id in one.runs), None)
    if ailing is None:
        return []
    known = run_settings(first)
    configs = {run.id: run.config for run in material.workspace.runs}
    # What a remedy is made from, such as the parents of swapped layers, is none.
    named = {runs[one.content_hash].id for one in tuned if one.content_hash in runs}
    found = [
        Remedy(remedy_name(known, run_settings(configs[one.runs[0]])), one.name, rows, *_cost(material, one))
        for one in material.conditions
        if one is not ailing and named & {*one.runs} and (rows := _beside(material, ailing, one))
    ]
    return _corrected(found)


# e.g. remedy_name({"weight": 1.0, "remind": False}, {"weight": 0.5, "remind": True}) → "weight 0.5, remind"
# e.g. remedy_name({"model": "m", "method": None, "rank": None}, {"model": "a/b", "method": "lora", "rank": 8})
#   → "model b"
# e.g. remedy_name({"preference": 0, "preference_loss": "orpo"}, {"preference": 1, "preference_loss": "dpo"}) → "dpo 1"
# e.g. remedy_name({"learning_rate": 0.003, "seed": 0}, {"learning_rate": 0.0003, "seed": 1}) → "learning_rate 3e-4"
def remedy_name(ailing: dict[str, Any], settings: dict[str, Any]) -> str:
    """What differs from the ailing run, in words."""
    parts = []
    # Beside a model that is asked as it is, all settings of a training are new: what it learns from tells enough.
    asked = "method" in ailing and ailing["method"] is None
    dpo = settings.get("preference_loss") == "dpo"
    for name, value in settings.items():
        if asked and ailing[name] is None and name != "instructions":
            continue
        if value == ailing[name] or name in {"sources", "size", "heldout", "dtype", "model_sha256", "seed"}:
            continue
        if name == "preference_loss" and settings["preference"] != ailing["preference"]:
            continue
        called = "dpo" if name == "preference" and dpo else name
        shown = learning_rate_text(value) if name == "learning_rate" else Path(value).name if name == "model" else value
        parts.append(str(value) if name == "instructions" else name if value is True else f"{called} {shown}")
    return ", ".join(parts) or "the same"


def _beside(material: Material, ailing: Condition, other: Condition) -> dict[tuple[str, str], DifferenceRow]:
    """The differences of one condition, by measure and language."""
    rows: dict[tuple[str, str], DifferenceRow] = {}
    for measure, (facet, rater) in _MEASURES.items():
        frame = material.test.filter((pl.col("facet") == facet) & (pl.col("rater") == rater))
        others = frame.filter(pl.col("language") != REFERENCE)
        made = [
            *(differences(frame, ailing, other, ("facet", "language"), material.resampling) if len(frame) else []),
            *(differences(others, ailing, other, ("facet",), material.resampling) if len(others) else []),
        ]
        rows |= {(measure, row.language): row for row in made}
    return rows


def _cost(material: Material, condition: Condition) -> tuple[int | None, float | None]:
    """Tokens and seconds of training, of parents with swapped layers too; None of what shares another's training."""
    runs = {run.id: run for run in material.workspace.runs}
    own = [runs[name] for name in condition.runs if runs[name].trains]
    trained = [name for run in own for name in (run.stage("train").get("swapped") or [run.id])]
    log = material.training
    if not trained or "tokens" not in log.columns:
        return None, None
    tokens = log.filter(pl.col("run").is_in(trained))["tokens"].sum()
    return int(tokens), sum(runs[name].stage("train").get("seconds", 0.0) for name in trained)


def _corrected(found: Sequence[Remedy]) -> list[Remedy]:
    rows = [(number, key, row) for number, one in enumerate(found) for key, row in one.rows.items()]
    made: list[dict[tuple[str, str], DifferenceRow]] = [{} for _ in found]
    for measure in _MEASURES:
        own = [(number, key, row) for number, key, row in rows if key[0] == measure]
        for (number, key, row), p in zip(own, holm([row.p for _, _, row in own]), strict=True):
            made[number][key] = replace(row, p_holm=p)
    return [replace(one, rows=corrected) for one, corrected in zip(found, made, strict=True)]


def remedies_table(material: Material) -> ReportTable | None:
    """A row a remedy: what each language gains, what English and the facts lose, and what it costs."""
    found = remedies_of(material)
    if not found:
        return None
    codes = [code for code in material.languages if code != REFERENCE]
    keys = [*_columns(codes)]
    percent = f"{material.workspace.study.report.confidence * 100:g} %"
    note = (
        "Test prompts: share less that of the ailing run, in percentage points, paired by prompt, with "
        f"{percent} interval and p by sign flips, corrected (Holm) over all differences of a measure. Answers wholly "
        "in the language; facts answered right. Tokens and seconds are those of the remedy's own training: – where "
        "it needs none."
    )
    columns = [
        Column("remedy"),
        *(Column(title, "points") for title in keys),
        Column("tokens", "count"),
        Column("seconds", "count"),
    ]
    lines = [
        [
            Value(one.name),
            *(_value(one.rows.get(key)) for key in _columns(codes).values()),
            Value(one.tokens),
            Value(None if one.seconds is None else round(one.seconds)),
        ]
        for one in found
    ]
    records = [
        {"remedy": one.name, "measure": key[0], **record(row), "tokens": one.tokens, "seconds": one.seconds}
        for one in found
        for key, row in one.rows.items()
    ]
    return ReportTable("remedies", "What mends it", note, columns, lines, records)


def _columns(codes: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The table's columns of differences: what they are called, and of which measure and language they are."""
    return {
        **{language_name(code): ("language", code) for code in codes},
        "all these": ("language", ALL_LANGUAGES),
        language_name(REFERENCE): ("language", REFERENCE),
        "facts in these": ("facts", ALL_LANGUAGES),
        "facts in English": ("facts", REFERENCE),
    }


def _value(row: DifferenceRow | None) -> Value:
    if row is None:
        return Value()
    told = [f"p {_p(row.p_holm)}" if row.p_holm is not None else "", f"{row.missing} missing" if row.missing else ""]
    return Value(*row.points, ", ".join(filter(None, told)))


def _p(p: float) -> str:
    return value_text(p, "p")


def remedies_text(material: Material) -> str:
    """The same for a terminal of 80 columns, best first; "" where there is nothing to say."""
    found = remedies_of(material)
    if not found:
        return ""
    codes = [code for code in material.languages if code != REFERENCE]
    found.sort(key=lambda one: -(_mean(one, "language", ALL_LANGUAGES) or 0.0))
    head = ["What mends it", "right language", "p", "missing", REFERENCE, "facts", "tokens"]
    rows = [head, *(_line(one) for one in found)]
    parts = [codes[start : start + LANGUAGES_ABREAST] for start in range(0, len(codes), LANGUAGES_ABREAST)]
    each = "\n\n".join(_by_language(found, part) for part in parts)
    return f"{paged(rows, {3, 4, 5, 6})}\n\n{each}\n\n{LEGEND}"


def _by_language(found: Sequence[Remedy], codes: Sequence[str]) -> str:
    rows = [[fitted(one.name, NAME), *(_points(one.rows.get(("language", code))) for code in codes)] for one in found]
    return paged([["by language", *codes], *rows])


LEGEND = (
    "Percentage points beside the run as it was, with intervals; p corrected (Holm).\n"
    "right language: answers wholly in it, all but English together; missing: how\n"
    "many could not be compared; facts: in these; tokens: of its own training."
)


def _line(one: Remedy) -> list[str]:
    gain = one.rows.get(("language", ALL_LANGUAGES))
    losses = [_mean(one, "language", REFERENCE), _mean(one, "facts", ALL_LANGUAGES)]
    p = "" if gain is None or gain.p_holm is None else _p(gain.p_holm)
    tokens = "–" if one.tokens is None else f"{one.tokens:,}"
    missing = "" if gain is None else str(gain.missing)
    return [fitted(one.name, NAME), _points(gain), p, missing, *(value_text(loss, "points") for loss in losses), tokens]


def _mean(one: Remedy, measure: str, language: str) -> float | None:
    row = one.rows.get((measure, language))
    return None if row is None else row.difference


def _points(row: DifferenceRow | None) -> str:
    if row is None or row.difference is None:
        return "not rated"
    shown = value_text(row.difference, "points")
    if row.low is None or row.high is None:
        return shown
    return f"{shown} [{value_text(row.low, 'points')}, {value_text(row.high, 'points')}]"
