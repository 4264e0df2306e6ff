"""What became of the answers in each language: right, cut, mixed, wrong, silent, or not to be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from xlift.languages import language_name
from xlift.records import EMPTY, Rating, Response
from xlift.report.answered import Answered
from xlift.report.figures import OUTCOMES
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.reading import Material

RIGHT, CUT, MIXED, OTHER, SILENT, UNKNOWN = OUTCOMES


@dataclass(frozen=True)
class OutcomeRow:
    """One checkpoint and language: how many answers to test prompts had an outcome, of how many asked."""

    run: str
    id: str
    step: int
    language: str
    outcome: str
    count: int
    asked: int

    @property
    def share(self) -> float:
        return self.count / self.asked


def outcome_rows(material: Material) -> list[OutcomeRow]:
    """By the rater `language`; [] where it has not rated. Answers are told once each, so that shares sum to 1."""
    rows = []
    for one in material.answered:
        counts = _counted(one)
        for code in material.languages:
            asked = sum(counts[code, outcome] for outcome in OUTCOMES)
            rows += [
                OutcomeRow(material.name(one.run.id, one.step), one.run.id, one.step, code, outcome, count, asked)
                for outcome in OUTCOMES
                if (count := counts[code, outcome])
            ]
    return rows


def _counted(one: Answered) -> Counter[tuple[str, str]]:
    ratings = {rating["id"]: rating for rating in one.rated_by("language")}
    return Counter(
        (answer["language"], outcome_of(answer, ratings[answer["id"]]))
        for answer in one.responses
        if answer["split"] == "test" and answer["id"] in ratings
    )


# e.g. outcome_of({"finish_reason": "length"}, {"value": 2}) → "in the language, cut at the token limit"
# e.g. outcome_of({"finish_reason": "length"}, {"value": 1}) → "two languages mixed"
# e.g. outcome_of({"finish_reason": "stop"}, {"value": None, "reason": EMPTY}) → "no answer"
def outcome_of(answer: Response, rating: Rating) -> str:
    """The one outcome of an answer; `rating` is the rater language's."""
    value = rating["value"]
    if value is None:
        return SILENT if rating.get("reason") == EMPTY else UNKNOWN
    if value == 2:
        return CUT if answer["finish_reason"] == "length" else RIGHT
    return MIXED if value else OTHER


def outcome_table(rows: Sequence[OutcomeRow]) -> ReportTable | None:
    """The same as numbers, a line a run and language."""
    if not rows:
        return None
    lines: dict[tuple[str, int, str], dict[str, OutcomeRow]] = {}
    for row in rows:
        lines.setdefault((row.id, row.step, row.language), {})[row.outcome] = row
    shown = [outcome for outcome in OUTCOMES if any(row.outcome == outcome for row in rows)]
    columns = [Column("run"), Column("language"), *(Column(outcome, "share") for outcome in shown)]
    columns.append(Column("answers", "count"))
    cells = []
    for (_, _, code), own in lines.items():
        first = next(iter(own.values()))
        shares = [Value(own[outcome].share if outcome in own else 0.0) for outcome in shown]
        cells.append([Value(first.run), Value(language_name(code)), *shares, Value(first.asked)])
    note = (
        "Test prompts, by the rater language. An answer that the token limit cut is judged by what is there: how long "
        "it may be says nothing of how good it is. No answer is not right; what could not be told is in no other table."
    )
    return ReportTable("outcomes", "What became of the answers", note, columns, cells, rows)
