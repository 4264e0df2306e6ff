"""A diagnosis as people and programs read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any, NamedTuple

from xlift.diagnosis.findings import Finding, share_or_unknown
from xlift.diagnosis.measure import LanguageRow, Measured
from xlift.intervals import Estimate
from xlift.languages import language_name
from xlift.rating.tally import least_share
from xlift.terminal import WIDTH, fitted, paged

EXAMPLE_WIDTH = 72
"""Columns of a terminal that an example takes."""
EXAMPLE = 2


def parts(model: Measured, found: Sequence[Finding] | None) -> list[str]:
    """What is told of a model: name, table, findings where it was diagnosed, worst answers; "" for what is not."""
    return [model.name, table(model), "" if found is None else findings_text(found), examples(model)]


def table(model: Measured) -> str:
    """One row a language, at most 80 columns."""
    head = ["", "in the language", "instead", "cut", "fluent", "constraints", "facts", "margin"]
    return paged([head, *([row.name, share_or_unknown(row.right, "not rated"), *_cells(row)] for row in model.rows)])


def _cells(row: LanguageRow) -> list[str]:
    others = (row.cut, row.fluent, row.constraints, row.facts, row.margin)
    return [_told(row.instead), *(_mean(one) for one in others)]


# e.g. [_told("fr"), _told("und"), _told(None)] → ["French", "unclear", ""]
def _told(language: str | None) -> str:
    """The name of a language that foreign words are in; "und" where they are in none that can be told."""
    return "unclear" if language == "und" else language_name(language) if language else ""


def _mean(found: Estimate | None) -> str:
    return "" if found is None or found.mean is None else f"{found.mean:.0%}"


SOUND = "Nothing is wrong beyond chance. More prompts see more: --size thorough."


def findings_text(found: Sequence[Finding], sound: str = SOUND) -> str:
    """The findings, each with its figures and what to try; `sound` where there are none."""
    if not found:
        return sound
    lines = []
    for number, one in enumerate(found, 1):
        lines += [f"{number}. {one.title}", *(line for text in one.shown for line in _wrapped(text))]
        lines += [f"   try: {text}" if not text.startswith(" ") else f"        {text.strip()}" for text in one.tries]
    return "\n".join(lines)


class Beside(NamedTuple):
    """One language of two models: shares of answers wholly in it, their difference, and p corrected over all rows."""

    first: str
    second: str
    language: str
    first_mean: float | None
    second_mean: float | None
    difference: float | None
    low: float | None
    high: float | None
    pairs: int
    p: float | None


def beside(rows: Sequence[Beside]) -> str:
    """Models side by side, a table for each that is compared with the first."""
    tables = []
    for name in dict.fromkeys(row.second for row in rows):
        first = rows[0].first
        head = ["Wholly in the language", "first", "second", "difference", "p (Holm)", "prompts"]
        lines = [head, *([language_name(row.language), *_compared(row)] for row in rows if row.second == name)]
        sides = f"{fitted(first, EXAMPLE_WIDTH)}  (first) beside\n{fitted(name, EXAMPLE_WIDTH)}  (second)"
        tables.append(f"{sides}\n\n{paged(lines)}")
    return "\n\n".join(tables)


def _compared(row: Beside) -> list[str]:
    if row.difference is None or row.first_mean is None or row.second_mean is None:
        return ["–", "–", "–", "–", str(row.pairs)]
    bounds = "" if row.low is None or row.high is None else f" [{100 * row.low:+.0f}, {100 * row.high:+.0f}]"
    p = "–" if row.p is None else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"
    shares = [f"{row.first_mean:.0%}", f"{row.second_mean:.0%}"]
    return [*shares, f"{100 * row.difference:+.0f}{bounds}", p, str(row.pairs)]


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="   ", subsequent_indent="     ", break_long_words=False)


def examples(model: Measured) -> str:
    """The worst answers of each language, shortened; "" where there are none."""
    lines = []
    for row in model.rows:
        for one in row.worst[:EXAMPLE]:
            asked, said = (fitted(text, EXAMPLE_WIDTH) for text in (one["messages"][-1]["content"], one["text"]))
            lines += [f"{row.language}  {asked}", f"    → {said or '(nothing)'}"]
    return "\n".join(["Worst answers", *lines]) if lines else ""


def as_data(models: Sequence[Measured], found: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    """The same for programs: JSON, with every figure and its interval."""
    return {
        "models": [
            {
                "model": one.name,
                "languages": {row.language: _figures(row) for row in one.rows},
                "formats": [asdict(fit) for fit in one.formats],
                "tokens_against_english": one.tokens,
                "findings": [finding._asdict() for finding in found.get(one.name, ())],
            }
            for one in models
        ]
    }


def _figures(row: LanguageRow) -> dict[str, Any]:
    figures = asdict(row)
    figures["worst"] = [{key: one[key] for key in ("id", "messages", "text")} for one in row.worst]
    return figures


def failed(model: Measured, limits: Mapping[str, float]) -> list[str]:
    """What to say of languages whose share of right answers is below its limit, or not known."""
    rows = [(row, least) for row in model.rows if (least := least_share(limits, row.language)) is not None]
    return [
        f"{model.name}: {row.name} {share_or_unknown(row.right, 'not rated')} is below {least:.0%}"
        for row, least in rows
        if row.right.mean is None or row.right.mean < least
    ]
