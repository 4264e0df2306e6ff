"""The verifiable instructions of IFEval (Zhou et al. 2023) and of M-IFEval, in any script: followed or not?

Strictly: the reply as it is. Loosely: also where it is followed without its first line, its last line, both, or its
asterisks, in any of the eight combinations. What cannot be decided has no verdict but a reason.

detail: `instructions`, one object each: its `id`, `strict` and `loose` (true, false or null), and `why` it is null.
Value: 2 where all instructions are followed strictly, 1 where some are, 0 where none is; missing where it hangs on one
that cannot be decided.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from xlift.languages import known_code
from xlift.rating.ifeval_checks import INSTRUCTION_CHECKS, Verdict
from xlift.rating.ifeval_counts import COUNTS, CountRange
from xlift.rating.text import visible
from xlift.records import Rated

# How many there must be: as IFEval, M-IFEval and translations of IFEval say it.
_RELATIONS = {
    ">=": "at least|au moins|al menos|以上|至少|이상|не менее|по крайней мере|mindestens|almeno|pelo menos|minstens",
    "<": "less than|moins de|menos de|menos que|未満|少于|미만|менее|меньше|weniger als|meno di|minder dan",
    "<=": "at most|como máximo|au plus|no máximo|以下|最多|이하|не более|höchstens|al massimo|hoogstens",
    "==": "exactly|exactement|exactamente|ちょうど|ровно|genau|esattamente|exatamente",
}


class _Reply(NamedTuple):
    text: str
    language: str
    cut: bool


def rate_instructions(text: str, language: str, cut: bool, instructions: list[dict[str, Any]]) -> Rated:
    """Value, detail and reason for a reply of a language, `cut` or not by the token limit, to its instructions."""
    asked = [one.get("language") for one in instructions if _kind(one) == "language:response_language"]
    reply = _Reply(visible(text), known_code(asked[0]) if asked else language, cut)
    rated = [_rated(reply, one) for one in instructions]
    strict = [one["strict"] for one in rated]
    if False in strict:
        return int(True in strict), {"instructions": rated}, None
    undecided = [f"{one['id']}: {one['why']}" for one in rated if one["strict"] is None]
    return None if undecided else 2, {"instructions": rated}, "; ".join(undecided) or None


def without_answer(instructions: list[dict[str, Any]], why: str | None) -> dict[str, Any]:
    """The detail of a reply that is no answer: none is followed; or, with a reason, each is open."""
    verdict = {"strict": None, "loose": None, "why": why} if why else {"strict": False, "loose": False}
    return {"instructions": [{"id": one["id"]} | verdict for one in instructions]}


def is_instruction(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("id"), str)


# e.g. _kind({"id": "fr:change_case:french_capital"}) → "change_case:capital"
def _kind(instruction: dict[str, Any]) -> str:
    """An instruction's name without its language: each language's capitals are one kind."""
    kind = ":".join(instruction["id"].split(":")[-2:])
    return re.sub(r"^change_case:[a-z]+_(?=capital$|lowercase$)", "change_case:", kind)


def _rated(reply: _Reply, instruction: dict[str, Any]) -> dict[str, Any]:
    strict = _verdict(reply, instruction)
    loose = strict
    for text in _variants(reply.text):
        if loose is True:
            break
        verdict = _verdict(reply._replace(text=text), instruction)
        loose = verdict if verdict is True or isinstance(verdict, str) else loose
    why = {"why": strict} if isinstance(strict, str) else {}
    return {"id": instruction["id"]} | {name: _plain(one) for name, one in (("strict", strict), ("loose", loose))} | why


def _plain(verdict: Verdict) -> bool | None:
    return None if isinstance(verdict, str) else verdict


# e.g. _variants("Sure:\n*a*") → ["Sure:\na", "*a*", "a", "Sure:"]
def _variants(text: str) -> list[str]:
    """The other texts that the loose criterion looks at, those with words."""
    lines = text.split("\n")
    parts = ["\n".join(some).strip() for some in (lines, lines[1:], lines[:-1], lines[1:-1])]
    found = dict.fromkeys(one for part in parts for one in (part, part.replace("*", "")) if one.strip())
    return [one for one in found if one != text]


def _verdict(reply: _Reply, instruction: dict[str, Any]) -> Verdict:
    kind = _kind(instruction)
    if kind in COUNTS:
        return _counted(reply, instruction, kind)
    if kind not in INSTRUCTION_CHECKS:
        return f"unknown instruction; known: {', '.join(sorted([*INSTRUCTION_CHECKS, *COUNTS]))}"
    check, when_cut, needed = INSTRUCTION_CHECKS[kind]
    if wrong := next((name for name in needed if not _is_given(name, instruction.get(name))), None):
        return f"'{wrong}' is not given as it must be: {instruction.get(wrong)!r:.40}"
    verdict = check(reply.text, reply.language, instruction)
    # What is there stays there, and what is missing may have come.
    settled = {"starts": True, "forbids": True, "holds": verdict is True, "ends": False}[when_cut]
    return verdict if settled or not reply.cut or isinstance(verdict, str) else "cut by the token limit"


def _is_given(name: str, value: Any) -> bool:
    if name in ("keywords", "forbidden_words"):
        return isinstance(value, list) and bool(value) and all(isinstance(word, str) and word.strip() for word in value)
    return bool(value) and isinstance(value, dict if name == "word_to_accentuate" else str)


def _counted(reply: _Reply, instruction: dict[str, Any], kind: str) -> Verdict:
    count, number, relation = COUNTS[kind]
    wanted, said = instruction.get(number), str(instruction.get(relation) or "at least").strip().casefold()
    compared = (
        relation if relation in _RELATIONS else next((r for r, w in _RELATIONS.items() if said in w.split("|")), "")
    )
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
        return f"'{number}' must be a whole number, found {wanted!r:.40}"
    if not compared:
        return f"unknown relation {said!r:.40}"
    found = count(reply.text, reply.language, instruction)
    if isinstance(found, str):
        return found
    return _compared(found, wanted, compared, reply.cut)


# From 3 to 5 of at least 4 is open, "3 or 5: why"; 3 of at least 4 in a cut reply is open, too.
def _compared(found: CountRange, wanted: int, relation: str, cut: bool) -> Verdict:
    low, high = found.least, found.most
    verdicts = {
        ">=": (low >= wanted, high >= wanted),
        "<": (low < wanted, high < wanted),
        "<=": (low <= wanted, high <= wanted),
        "==": (low == high == wanted, low <= wanted <= high),
    }[relation]
    # More text only makes it more.
    settled = {">=": low >= wanted, "<": low >= wanted, "<=": low > wanted, "==": low > wanted}[relation]
    if cut and not settled:
        return f"cut by the token limit after {low}"
    return verdicts[0] if verdicts[0] == verdicts[1] else f"{low} or {high}: {found.why}"
