"""Cross-lingual consistency: is the same fact answered alike in two languages, and what is lost on the way?

The unit is a fact: one request (`parallel_id`) in two languages. Right is the highest value, 2; any other is wrong. A
fact that is not rated in both languages, or not asked in one of them, is missing for that pair and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from xlift.errors import DataError
from xlift.intervals import Estimate, estimate

FULL_VALUE = 2


def with_requests(ratings: Iterable[Mapping[str, Any]], prompts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ratings of `answers` as rows for `consistency`; prompts (or responses) say which request it was.

    Of several samples of a prompt, the first counts.
    """
    first = [prompt for prompt in prompts if "sample" not in prompt]
    requests = {prompt["id"]: prompt.get("parallel_id") or prompt["id"] for prompt in first}
    return [
        {"parallel_id": requests[rating["id"]], "language": rating["language"], "value": rating["value"]}
        for rating in ratings
        if rating["facet"] == "accuracy" and rating["rater"] == "answers" and rating["id"] in requests
    ]


# e.g. consistency([{"parallel_id": "a", "language": "en", "value": 2}]) → []
def consistency(rows: Sequence[Mapping[str, Any]], reference: str = "en") -> list[dict[str, Any]]:
    """One row a pair of languages, pairs with the reference language first.

    `rows` have parallel_id, language and value, of one run and step. Shares come with `_low`, `_high` (95 %) and, where
    they are not of all rated facts, `_rated`:

    alike              answered alike, both right or both wrong
    alike_by_chance    what `alike` would be if the two languages had nothing to do with each other
    first_only         right in the first language, wrong in the second; `second_only` the reverse
    lost               of the facts right in the first language, wrong in the second
    gained             of the facts wrong in the first language, right in the second
    """
    answered = _answered(rows)
    languages = sorted(answered, key=lambda language: (language != reference, language))
    return [_pair(first, second, answered) for first, second in combinations(languages, 2)]


def _answered(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, bool | None]]:
    """By language and request: right, wrong or None. Raises DataError if a request occurs twice in a language."""
    answered: dict[str, dict[str, bool | None]] = {}
    for row in rows:
        facts = answered.setdefault(row["language"], {})
        if row["parallel_id"] in facts:
            raise DataError(f"'{row['parallel_id']}' is twice in '{row['language']}'; give one run and step at a time")
        facts[row["parallel_id"]] = None if row["value"] is None else row["value"] >= FULL_VALUE
    return answered


def _pair(first: str, second: str, answered: Mapping[str, Mapping[str, bool | None]]) -> dict[str, Any]:
    one, other = answered[first], answered[second]
    facts = sorted({*one, *other})
    both = [(a, b) for a, b in ((one.get(fact), other.get(fact)) for fact in facts) if a is not None and b is not None]
    found: dict[str, Any] = {"first": first, "second": second, "rated": len(both), "missing": len(facts) - len(both)}
    found |= _share("first_right", [a for a, _ in both]) | _share("second_right", [b for _, b in both])
    found |= _share("alike", [a == b for a, b in both]) | {"alike_by_chance": _by_chance(found)}
    found |= _share("first_only", [a and not b for a, b in both]) | _share(
        "second_only", [b and not a for a, b in both]
    )
    lost, gained = [not b for a, b in both if a], [b for a, b in both if not a]
    found |= {"lost_rated": len(lost), "gained_rated": len(gained)}
    return found | _share("lost", lost) | _share("gained", gained)


def _share(name: str, values: Sequence[bool]) -> dict[str, float | None]:
    # Every fact is a cluster of its own.
    found: Estimate = estimate([float(value) for value in values], [str(i) for i in range(len(values))], top=1.0)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


# e.g. round(_by_chance({"first_right": 0.9, "second_right": 0.6}), 2) → 0.58
def _by_chance(found: Mapping[str, Any]) -> float | None:
    one, other = found["first_right"], found["second_right"]
    return None if one is None else one * other + (1 - one) * (1 - other)
