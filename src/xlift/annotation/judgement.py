"""What the page may send of a response: whether it is a judgement at all, and one that the campaign asks for."""

from __future__ import annotations

import math
import re
from typing import Any

from xlift.annotation import database as db
from xlift.annotation.scheme import Scheme

MAX_COMMENT = 5_000
MAX_REASON = 500
MAX_SPANS = 200


def wrong_judgement(sent: Any) -> str | None:
    """What is wrong with {"field", "value", "seconds", "click"}, whatever the campaign asks; None where nothing is."""
    if not isinstance(sent, dict) or sent.keys() - {"field", "value", "seconds", "click"} or "value" not in sent:
        return "expected field, value, seconds and click"
    seconds, click = sent.get("seconds", 0), sent.get("click", "-")
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        return "seconds must be a number"
    if not isinstance(click, str) or not re.fullmatch(r"[\w-]{1,64}", click, re.ASCII):
        return "click must be a name of up to 64 letters, digits and hyphens"
    value = sent["value"]
    return "the reason is too long" if _is_cannot(value) and len(value["cannot"]) > MAX_REASON else None


# e.g. [_is_cannot(value) for value in (1, {"cannot": "language"})] → [False, True]
def _is_cannot(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"cannot"} and isinstance(value["cannot"], str)


def misfit(field: Any, value: Any, scheme: Scheme, length: int) -> str | None:
    """What is wrong with a value of a field of this campaign, for a response of so many characters; None where nothing
    is."""
    empty = value is None or _is_cannot(value)
    fits = {
        **{name: empty or (type(value) is int and value in levels) for name, levels in scheme.levels.items()},
        db.WHOLE: empty,
        "comment": isinstance(value, str) and len(value) <= MAX_COMMENT,
    }
    if "fluency" in scheme.levels:
        fits["senseless"] = isinstance(value, bool)
    if scheme.spans:
        fits["spans"] = isinstance(value, list) and len(value) <= MAX_SPANS and _are_spans(value, scheme, length)
    if scheme.answers:
        fits["answers"] = isinstance(value, dict) and _are_answers(value, scheme)
    if not isinstance(field, str) or field not in fits:
        return f"unknown field; choices: {', '.join(fits)}"
    return None if fits[field] else f"not a value of {field}"


def _are_spans(value: list[Any], scheme: Scheme, length: int) -> bool:
    labels = {span.name for span in scheme.spans}
    return all(
        isinstance(one, dict)
        and one.keys() == {"start", "end", "label"}
        and type(one["start"]) is type(one["end"]) is int
        and 0 <= one["start"] < one["end"] <= length
        and isinstance(one["label"], str)
        and one["label"] in labels
        for one in value
    )


def _are_answers(value: dict[str, Any], scheme: Scheme) -> bool:
    names = {answer.name for answer in scheme.answers}
    return value.keys() <= names and all(isinstance(one, str) and len(one) <= MAX_COMMENT for one in value.values())
