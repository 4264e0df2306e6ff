"""The tables of the report that say what each training choice contributes, and the words for choices and levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from xlift.languages import language_name
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.reading import Material, Scale
from xlift.report.rows import EffectRow, VarianceRow
from xlift.study.labels import learning_rate_text


def effects_table(material: Material, rows: Sequence[EffectRow], scale: Scale) -> ReportTable | None:
    """What each training choice contributes on one scale."""
    if not rows:
        return None
    note = (
        f"Test prompts: share of {scale.best} at a level, and its difference from the mean over the levels in "
        f"percentage points, all other choices balanced, with {material.confidence} interval. Beside English: "
        "the effect less the same effect in English."
    )
    columns = [
        Column("choice"),
        Column("level"),
        Column("language"),
        Column("share", "share"),
        Column("effect", "points"),
        Column("beside English", "points"),
    ]
    names = level_names(rows)
    lines = [
        [
            Value(factor_name(row.factor)),
            Value(names[row.factor, row.level]),
            Value(language_name(row.language)),
            Value(row.mean),
            Value(row.effect, row.low, row.high, row.reason or ""),
            Value(row.interaction, row.interaction_low, row.interaction_high),
        ]
        for row in rows
    ]
    title = f"{scale.title}: effects of the training choices"
    return ReportTable(f"effects-{scale.slug}", title, note, columns, lines, rows)


FACTOR_NAMES = {
    "model": "base model", "learning_rate": "learning rate", "size": "conversations", "instructions": "data",
    "weight": "weight of the tuning", "system": "system prompt", "rest": "choices together",
}  # fmt: skip


# e.g. factor_name("learning_rate, steps") → "learning rate (with steps)"
def factor_name(factor: str) -> str:
    """A factor in words, with those that follow from it."""
    first, *others = (FACTOR_NAMES.get(name, name) for name in factor.split(", "))
    return f"{first} (with {', '.join(others)})" if others else first


def level_names(rows: Sequence[EffectRow]) -> dict[tuple[str, str], str]:
    """By factor and level, the level in words; of factors that go together the first one's, where that tells it."""
    names = {(row.factor, row.level): _level_name(row.factor, row.level) for row in rows}
    times = Counter((factor, name) for (factor, _), name in names.items())
    return {key: key[1] if times[key[0], name] > 1 else name for key, name in names.items()}


# e.g. _level_name("learning_rate", "0.0003") → "3e-4"
# e.g. _level_name("model", "google/gemma-3-270m") → "gemma-3-270m"
def _level_name(factor: str, level: str) -> str:
    first = level.split(", ")[0]
    if factor.startswith("learning_rate"):
        return learning_rate_text(float(first))
    return Path(first.split(":")[-1]).name if factor.startswith("model") else first


def variance_table(material: Material, rows: Sequence[VarianceRow], scale: Scale) -> ReportTable | None:
    """How much of what differs between settings each training choice accounts for."""
    own = [row for row in rows if row.share is not None]
    if not own:
        return None
    note = (
        "Share of the variance between settings that a choice accounts for beyond chance (test prompts), with "
        f"{material.confidence} interval."
    )
    columns = [Column("choice"), Column("language"), Column("share of variance", "share")]
    lines = [
        [Value(factor_name(row.factor)), Value(language_name(row.language)), Value(row.share, row.low, row.high)]
        for row in own
    ]
    title = f"{scale.title}: what makes settings differ"
    return ReportTable(f"variance-{scale.slug}", title, note, columns, lines, own)
