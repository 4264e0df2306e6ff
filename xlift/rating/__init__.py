"""Raters: small pure functions over a response. RATERS is the one place that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xlift.rating.language import rate_language
from xlift.rating.language import signature as language_signature
from xlift.records import Rating, fingerprint, reply_language

Rated = tuple[int | None, dict[str, Any], str | None]


class Rater(NamedTuple):
    """A facet, the function (text, reply language) → (value, detail, reason), and how it signs."""

    facet: str
    rate: Callable[[str, str], Rated]
    signature: Callable[[], str]


RATERS: dict[str, Rater] = {"language": Rater("language", rate_language, language_signature)}


def rate(record: dict[str, Any], name: str) -> Rating:
    """One rating of a response record with at least `text` and `language`; what cannot be rated says why."""
    rater = RATERS[name]
    text, language = record.get("text"), record.get("language")
    if not isinstance(text, str) or not isinstance(language, str):
        missing = "text" if not isinstance(text, str) else "language"
        rated: Rated = (None, {}, f"the response has no '{missing}'")
    else:
        rated = rater.rate(text, str(reply_language(record)))
    value, detail, reason = rated
    rating: Rating = {
        "id": str(record.get("id", "")),
        "language": str(language or ""),
        "run": str(record.get("run", "")),
        "step": int(record.get("step") or 0),
        "facet": rater.facet,
        "rater": name,
        "value": value,
        "response": text_fingerprint(record),
        "signature": rater.signature(),
    }
    if reason:
        rating["reason"] = reason
    if detail:
        rating["detail"] = detail
    return rating


def text_fingerprint(record: dict[str, Any]) -> str:
    """What a rating is bound to: the text and the language it must be in."""
    return fingerprint(record.get("text"), record.get("reply_language") or record.get("language"))
