"""What ratings of a file say, by language: counted while they are made, so that memory does not grow with the file.

Of a language's responses, `wholly` right, `mostly` right, `wrong` and `empty` are shares of those that were rated or
are empty: who says nothing does not say it in the right language. What could not be rated is `missing`, with the
reasons. A reply that the token limit `cut` is one of those as well.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xlift.errors import ConfigError
from xlift.intervals import estimate, wilson
from xlift.languages import known_code
from xlift.rating.reasoning import without_reasoning
from xlift.records import Rating, reply_language

LCB = "language_lcb"
WORST, MAX_GROUPS, RESAMPLED = 3, 200, 5_000
"""Examples of each language, most values of a --by column, and most prompts whose interval is resampled."""


class Example(NamedTuple):
    """A response that is not wholly in its language; the smaller, the worse."""

    value: float
    share: float
    order: int
    id: str
    text: str
    languages: tuple[str, ...]


@dataclass
class LanguageCounts:
    """What was counted of one language's responses, of one group."""

    responses: int = 0
    cut: int = 0
    empty: int = 0
    values: dict[str, Counter[float]] = field(default_factory=dict)
    missing: dict[str, Counter[str]] = field(default_factory=dict)
    foreign: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    judged: array[int] = field(default_factory=lambda: array("Q"))
    """A number for the prompt of each response that is rated or empty; odd where it is wholly right."""
    worst: list[Example] = field(default_factory=list)

    def add(self, other: LanguageCounts) -> None:
        self.responses += other.responses
        self.cut += other.cut
        self.empty += other.empty
        for rater, values in other.values.items():
            self.values.setdefault(rater, Counter()).update(values)
        for rater, reasons in other.missing.items():
            self.missing.setdefault(rater, Counter()).update(reasons)
        self.foreign.update(other.foreign)
        self.passes.update(other.passes)
        self.judged += other.judged
        self.worst = heapq.nsmallest(WORST, [*self.worst, *other.worst])


Tally = dict[tuple[str, str], LanguageCounts]
"""Cells by group, "" where none was asked for, and language."""


def count(tally: Tally, record: dict[str, Any], ratings: Sequence[Rating], group: str, order: int) -> None:
    """Add one response and its ratings. Raises ConfigError where there are more groups than anyone would read."""
    language = known_code(reply_language(record)) if isinstance(record.get("language"), str) else ""
    cell = tally.setdefault((group, language or "?"), LanguageCounts())
    if len(tally) > MAX_GROUPS and len({one for one, _ in tally}) > MAX_GROUPS:
        raise ConfigError(f"--by: more than {MAX_GROUPS} different values", "choose a column with few, such as model")
    cell.responses += 1
    text = record.get("text")
    empty = bool(language) and isinstance(text, str) and not without_reasoning(text).strip()
    cell.empty += empty
    cell.cut += record.get("finish_reason") == "length"
    for rating in ratings:
        if rating["value"] is not None:
            cell.values.setdefault(rating["rater"], Counter())[rating["value"]] += 1
        elif not empty:
            cell.missing.setdefault(rating["rater"], Counter())[rating.get("reason", "")] += 1
        if rating["rater"] == "language":
            _count_language(cell, record, rating, empty, order)
        elif rating["rater"] == LCB:
            detail = rating.get("detail") or {}
            cell.passes.update({name: 1 for name in ("line_pass", "word_pass") if name in detail})
            cell.passes.update({f"{name} true": 1 for name in ("line_pass", "word_pass") if detail.get(name)})


def _count_language(cell: LanguageCounts, record: dict[str, Any], rating: Rating, empty: bool, order: int) -> None:
    value, detail = rating["value"], rating.get("detail") or {}
    if value is None and not empty:
        return
    cell.judged.append(prompt_number(record.get("parallel_id") or rating["id"]) * 2 + (value == 2))
    languages = Counter[str]()
    for span in detail.get("spans") or []:
        languages[span["language"]] += span["end"] - span["start"]
    ranked = tuple(language for language, _ in languages.most_common())
    cell.foreign.update(ranked[:1])
    if value is not None and value < 2:
        start = max(0, detail["switch"] - 20) if value else 0
        example = Example(value, detail["share"], order, rating["id"], str(record["text"])[start : start + 300], ranked)
        cell.worst = heapq.nsmallest(WORST, [*cell.worst, example])


def prompt_number(prompt: Any) -> int:
    """A number of 56 bits for a prompt, by what it is called."""
    text = repr(prompt).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


def merge(tally: Tally, other: Tally) -> None:
    for key, cell in other.items():
        tally.setdefault(key, LanguageCounts()).add(cell)


def reasons(tally: Tally) -> Counter[str]:
    """Why responses could not be rated, and how many by one rater at most; empty replies are not among them."""
    found: Counter[str] = Counter()
    for rater in {rater for cell in tally.values() for rater in cell.missing}:
        found |= sum((cell.missing.get(rater, Counter()) for cell in tally.values()), Counter[str]())
    return found


def nothing_rated(tally: Tally) -> bool:
    """Whether there are responses and no rating of them has a value."""
    return bool(tally) and not any(sum(counts.values()) for cell in tally.values() for counts in cell.values.values())


# --- figures


class Share(NamedTuple):
    """A share with its 95 % interval; None where there is nothing to take it of."""

    share: float | None
    low: float | None
    high: float | None


# e.g. wholly_right(LanguageCounts(judged=array("Q", [3, 4]))).share → 0.5
def wholly_right(cell: LanguageCounts) -> Share:
    """The share wholly in the right language; responses to one prompt, or to translations of it, go together."""
    number = len(cell.judged)
    if not number:
        return Share(None, None, None)
    share = sum(mark % 2 for mark in cell.judged) / number
    prompts = len({mark // 2 for mark in cell.judged})
    if prompts == number or prompts > RESAMPLED:
        return Share(share, *wilson(share, prompts))
    found = estimate([float(mark % 2) for mark in cell.judged], [str(mark // 2) for mark in cell.judged], 1.0)
    return Share(share, found.low, found.high)


# e.g. [_share(3, 4), _share(0, 0)] → [0.75, None]
def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def figures(cell: LanguageCounts, raters: Iterable[str]) -> dict[str, Any]:
    """What is shown of a cell, as JSON: shares from 0 to 1, counts, examples."""
    languages, judged = cell.values.get("language", Counter()), len(cell.judged)
    shown: dict[str, Any] = {"responses": cell.responses, "cut": cell.cut, "empty": cell.empty}
    if "language" in raters:
        shown["language"] = {
            "rated": judged,
            "wholly_right": wholly_right(cell)._asdict(),
            "mostly_right": _share(languages[1], judged),
            "wrong": _share(languages[0], judged),
            "empty": _share(cell.empty, judged),
            "missing": dict(cell.missing.get("language", {})),
            "foreign": {language: _share(times, judged) for language, times in cell.foreign.most_common()},
            "line_pass_rate": _share(cell.passes["line_pass true"], cell.passes["line_pass"]),
            "word_pass_rate": _share(cell.passes["word_pass true"], cell.passes["word_pass"]),
            "worst": [_example(one) for one in sorted(cell.worst)],
        }
    for rater in raters:
        if rater != "language" and (rater in cell.values or rater in cell.missing):
            shown[rater] = _other(cell, rater)
    return shown


def _other(cell: LanguageCounts, rater: str) -> dict[str, Any]:
    values = cell.values.get(rater, Counter())
    rated = sum(values.values())
    share = _share(values[2], rated)
    low, high = wilson(share, rated) if share is not None else (None, None)
    missing = dict(cell.missing.get(rater, {}))
    return {"rated": rated, "best": Share(share, low, high)._asdict(), "missing": missing}


def _example(one: Example) -> dict[str, Any]:
    return {"id": one.id, "value": one.value, "share": one.share, "foreign": list(one.languages), "text": one.text}


def as_json(tally: Tally, raters: Sequence[str], by: str | None) -> list[dict[str, Any]]:
    """One object a group and language, in the order of the table."""
    return [
        {**({by: group} if by else {}), "answers_in": language, **figures(tally[group, language], raters)}
        for group, language in sorted(tally)
    ]


# e.g. least_shares(["0.9", "fr=0.5"]) → {"": 0.9, "fr": 0.5}
def least_shares(given: Sequence[str], languages: Sequence[str] = ()) -> dict[str, float]:
    """`fr=0.95` and `0.9` as the least share of right answers by language, of all others under "".

    Raises ConfigError, also for a language that is not among `languages`, where these are known.
    """
    limits: dict[str, float] = {}
    problems = []
    for text in given:
        code, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        named = known_code(code)
        if not 0 <= share <= 1 or bool(code) != bool(named) or (named and languages and named not in languages):
            problems.append(f"--fail-under {text}: a share from 0 to 1, also of one language that is asked, as fr=0.95")
        limits[named] = share
    if problems:
        raise ConfigError(problems, f"the languages: {', '.join(languages)}" if languages else None)
    return limits


# e.g. least_share({"": 0.9, "fr": 0.5}, "fr") → 0.5
def least_share(limits: Mapping[str, float], language: str) -> float | None:
    """The limit of one language, its own or that of all; None where it has none."""
    return limits.get(language, limits.get(""))


# e.g. len(below({("", "fr"): LanguageCounts(judged=array("Q", [3, 4]))}, {"": 0.9, "ru": 0.5})) → 2
def below(tally: Tally, limits: Mapping[str, float]) -> list[str]:
    """What to say of each language whose share of wholly right answers is below its limit, or that has none rated."""
    languages = {language for _, language in tally}
    found = [
        f"{one}: no responses, asked: {least:.1%}" for one, least in limits.items() if one and one not in languages
    ]
    for (group, language), cell in sorted(tally.items()):
        least, share = least_share(limits, language), wholly_right(cell).share
        if least is not None and (share is None or share < least):
            reached = "nothing could be rated" if share is None else f"{share:.1%} wholly right"
            found.append(f"{group + ': ' if group else ''}{language}: {reached}, asked: {least:.1%}")
    return found
