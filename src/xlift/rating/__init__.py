"""Raters: small pure functions over a response. RATERS is the one place that names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from xlift.errors import ConfigError, nearest
from xlift.languages import known_code
from xlift.rating import answers, constraints, fluency
from xlift.rating.language import lcb, rater
from xlift.records import Rated, Rating, fingerprint


class Rater(NamedTuple):
    """A facet, what a value of 2 says of answers, the function from a response record to (value, detail, reason), and
    how it signs.

    Records without the field `needs` are outside its scope: they get no rating, not a missing one. A study has the
    `default` ones where it names none.
    """

    facet: str
    title: str
    rate: Callable[[dict[str, Any]], Rated]
    signature: Callable[[], str]
    needs: str = "text"
    default: bool = True


RATERS: dict[str, Rater] = {
    "language": Rater("language", "Answers wholly in the user's language", rater.rate_language, rater.signature),
    "language_lcb": Rater(
        "language",
        "Answers without error by the Language Confusion Benchmark's rule",
        lcb.rate_lcb,
        lcb.signature,
        default=False,
    ),
    "fluency": Rater("fluency", "Answers without a sign of reduced fluency", fluency.rate_fluency, fluency.signature),
    "constraint": Rater(
        "constraint", "Constraints followed", constraints.rate_constraint, constraints.signature, "constraint"
    ),
    "answers": Rater("accuracy", "Facts answered right", answers.rate_answers, answers.signature, "answers"),
}


def default_raters() -> list[str]:
    """The raters of a study, or of a file, that names none."""
    return [name for name, rater in RATERS.items() if rater.default]


# e.g. checked_raters(["language"]) → ["language"]
def checked_raters(names: Iterable[str]) -> list[str]:
    """These names, each once. Raises ConfigError that lists every unknown one."""
    found = list(dict.fromkeys(names))
    if unknown := [name for name in found if name not in RATERS]:
        raise ConfigError([f"unknown rater '{name}'; {nearest(name, RATERS)}" for name in unknown])
    return found


# What a rating is bound to: change one of these and the response is rated again.
_BOUND_TO = (
    *("text", "language", "reply_language", "finish_reason", "messages", "prompt"),
    *("constraint", "unmodified", "answers", "answers_any", "wrong"),
)


@lru_cache(maxsize=16)
def signature_of(name: str) -> str:
    """How a rater's numbers come about: its version, resources and settings."""
    return RATERS[name].signature()


# e.g. [in_scope({"constraint": {"name": "long"}}, "constraint"), in_scope({}, "constraint")] → [True, False]
def in_scope(record: dict[str, Any], name: str) -> bool:
    """Whether a rater has anything to say about a record: constraints need a constraint, answers accepted answers."""
    needs = RATERS[name].needs
    return needs == "text" or bool(record.get(needs))


def rate(record: dict[str, Any], name: str) -> Rating:
    """One rating of a response record with at least `text` and `language`; what cannot be rated says why.

    Raises ConfigError for a rater that is not there.
    """
    if name not in RATERS:
        checked_raters([name])
    rater = RATERS[name]
    missing = unreadable_record(record)
    value, detail, reason = (None, {}, missing) if missing else rater.rate(record)
    ident, run, step = identity(record)
    rating: Rating = {
        "id": ident,
        "language": known_code(record.get("language")) or str(record.get("language") or ""),
        "run": run,
        "step": step,
        "facet": rater.facet,
        "rater": name,
        "value": value,
        "response": text_fingerprint(record),
        "signature": signature_of(name),
    }
    if reason:
        rating["reason"] = reason
    if detail:
        rating["detail"] = detail
    return rating


def unreadable_record(record: dict[str, Any]) -> str | None:
    """Why no rater, and no judge, can be shown a record; None where it can."""
    if isinstance(why := record.get("missing"), str) and why:
        return f"no response: {why}"
    missing = next((field for field in ("text", "language") if not isinstance(record.get(field), str)), None)
    if missing:
        return f"the response has no '{missing}'"
    odd = record.get("reply_language")
    return None if odd is None or isinstance(odd, str) else f"'reply_language' must be text, found {str(odd)[:40]}"


def identity(record: dict[str, Any]) -> tuple[str, str, int]:
    """Whose a response is: id, run and step, as ratings of it carry them."""
    return str(record.get("id", "")), str(record.get("run", "")), int(record.get("step") or 0)


# e.g. text_fingerprint({"text": "a"}) == text_fingerprint({"text": "a", "id": "b"}) → True
def text_fingerprint(record: dict[str, Any]) -> str:
    """What a rating is bound to: the text and whatever else decides its ratings."""
    return fingerprint(*[record.get(field) for field in _BOUND_TO])
