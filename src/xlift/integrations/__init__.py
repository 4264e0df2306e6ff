"""The surface raters inside other programs: a reward for TRL, a scorer for inspect_ai, a metric for lm_eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlift.errors import ConfigError
from xlift.rating import checked_raters, in_scope, rate
from xlift.rating.reasoning import without_reasoning
from xlift.records import EMPTY

FIELDS = (
    *("language", "reply_language", "finish_reason", "constraint", "unmodified"),
    *("answers", "answers_any", "wrong", "messages", "prompt"),
)
"""What a rater may want to know of a response besides its text."""


def value_of(rater: str, text: str, known: Mapping[str, Any]) -> tuple[float | None, str]:
    """A rater's value, 2, 1 or 0, of a reply with what is `known` of it, and why there is none.

    An empty reply, or one of nothing but reasoning, has 0: who says nothing does not say it right. Raises ConfigError
    where the rater is unknown or the language is not given.
    """
    checked_raters([rater])
    record = {field: known[field] for field in FIELDS if known.get(field) is not None} | {"text": text}
    if "language" not in record:
        there = ", ".join(map(str, known)) or "none"
        raise ConfigError(
            f"nothing says in which language a reply must be; columns: {there}", "add a column 'language'"
        )
    if not in_scope(record, rater):
        return None, f"out of the scope of '{rater}'"
    if not without_reasoning(text).strip():
        return 0.0, EMPTY
    rating = rate(record, rater)
    return rating["value"], rating.get("reason", "")
