"""What a judge sent back to a question and what it says: tolerant around the values, strict about them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from xlift.rating.reasoning import without_reasoning
from xlift.servers.calls import ServedReply
from xlift.study.served import Ends

READ_CHARACTERS = 50_000
"""A reply longer than this is read from its end only."""
PREFERENCES = ("first", "second", "tie")

# Within one line: whatever could reach over lines would be tried again from each of them. Behind the value may stand
# the end of the scale, and in words why.
_LINE = (
    r"""^[ \t*_#"'`>|-]*(?:\d{{1,2}}[.)] )?[*_"'`]{{0,3}}{facet}[ \t*_"'`]*[:：=|][ \t*_"'`]*"""
    r"""(-?\d+(?:\.\d+)?(?: ?(?:/|out of) ?\d+)?)[ \t\r*_"'`,.;|]*(?:(?:\(|[-–—] )[^\d\n]{{1,300}})?$"""
    r"""|<{facet}>\s{{0,9}}(-?\d+(?:\.\d+)?)\s{{0,9}}</{facet}>"""
)
_ANY_RATING = (
    "(?:(?:final|overall) )?(?:rating|score|value|grade|note|nota|puntuación|bewertung|punktzahl|voto|ocena|оценка|балл"
    "|puan|评分|評分|分数|得分|評価|점수|평점|الدرجة|التقييم|अंक)"
)
_MARKED = re.compile(r"\[\[(-?\d{1,2}(?:\.\d{1,2})?)\]\]|\\boxed\{(-?\d{1,2}(?:\.\d{1,2})?)\}")
_MOST_SCANNED = 1_000_000
"""Characters of attempts to read JSON that failed, after which a reply is left: each could begin at every brace."""
_DEEP = 5_000
"""What an attempt counts for that was nested too deeply."""
_REFUSALS = re.compile(
    r"\b(?:i(?:'m| am) (?:very )?(?:sorry|unable)|i (?:can(?:'|no)t|won't|will not|must decline)|as an ai\b)"
    r"|\b(?:je suis désolée?|je (?:ne peux|refuse)|désolée?, (?:mais )?je)\b"
    r"|\b(?:desculpe|lamento|sinto muito|não posso|recuso)\b"
    r"|(?:извините|простите|к сожалению|я не могу|не могу помочь)",
    re.IGNORECASE,
)


# e.g. refuses(ServedReply("I'm sorry, I can't rate this.", "stop", None)) → True
# e.g. refuses(ServedReply("I can't fault it: 2", "stop", None)) → False
def refuses(reply: ServedReply) -> bool:
    """Whether a reply is a refusal: by its own field, by the server's filter, or by its words (without any rating)."""
    if reply.refusal or reply.finish == "content_filter":
        return True
    text = _answer_of(reply.text)
    return not re.search(r"[{\d]", text) and bool(_REFUSALS.search(text[:400].replace("’", "'")))


# e.g. read_values("- **Fluency**: 2", ["fluency"]) → {"fluency": (2.0, None)}
# e.g. read_values('{"fluency": 2} or {"fluency": 1}', ["fluency"])["fluency"][0] → None
# e.g. read_values("politeness: 5", ["politeness"], {"politeness": (1, 5)}) → {"politeness": (5.0, None)}
def read_values(
    text: str, facets: Sequence[str], scales: Mapping[str, Ends] = MappingProxyType({})
) -> dict[str, tuple[float | None, str | None]]:
    """Per facet (value, None), or (None, why it cannot be read). Only whole numbers on a facet's scale are values: 0, 1
    and 2 where `scales` tells no other ends.

    A JSON object counts wherever it stands; several that disagree are ambiguous and count for nothing. Without an
    object, lines such as "fluency: 2" count, and, where one facet is asked, a reply that is a bare digit.
    """
    answer = _answer_of(text)
    if not answer:
        return dict.fromkeys(facets, (None, "the judge's reply is empty"))
    objects = [_folded(one) for one in _objects(answer)]
    alone = len(facets) == 1
    return {facet: _one_facet(answer, objects, facet, scales.get(facet, (0, 2)), alone) for facet in facets}


# e.g. read_why('{"why": "It is in English.", "language": 0}') → "It is in English."
def read_why(text: str) -> str | None:
    """The reason that a judge gives in its reply, where it was asked for one."""
    said = [why for one in map(_folded, _objects(_answer_of(text))) for why in one.get("why", ())]
    reasons = [why for why in said if isinstance(why, str)]
    return reasons[-1].strip() or None if reasons else None


# e.g. read_preference("Tie.") → "tie"
# e.g. read_preference('first</think>{"better": "second"}') → "second"
# e.g. read_preference("It is clearer.\n\n**Better:** second") → "second"
def read_preference(text: str) -> str | None:
    """The response that a judge prefers: first, second or tie; None where the reply cannot be read."""
    answer = _answer_of(text)
    objects = map(_folded, _objects(answer))
    said = [str(better).strip().lower() for one in objects for better in one.get("better", ())]
    if not said:
        said = [one.lower() for one in _BETTER.findall(answer)] or [answer.strip(" \n.\"'`*").lower()]
    return said[0] if len(set(said)) == 1 and said[0] in PREFERENCES else None


_BETTER = re.compile(
    r"""^[ \t*_"'`]*better[ \t*_"'`]*[:：=][ \t*_"'`]*(\w+)[ \t\r*_"'`.]*$""", re.MULTILINE | re.IGNORECASE
)


# e.g. _answer_of("<think>Hm.</think> {}") → "{}"
def _answer_of(text: str) -> str:
    """The reply without its reasoning."""
    return without_reasoning(text[-READ_CHARACTERS:]).strip()


def _one_facet(
    text: str, objects: list[dict[str, list[Any]]], facet: str, ends: Ends, alone: bool
) -> tuple[float | None, str | None]:
    said = [value for one in objects for value in one.get(facet, ())]
    if not said:
        pattern = re.compile(_LINE.format(facet=facet), re.MULTILINE | re.IGNORECASE)
        said = ["".join(found) for found in pattern.findall(text)]
    if not said and alone:
        bare = [text.strip(" .\"'`*")] if len(text) < 10 else []
        named = re.findall(_LINE.format(facet=_ANY_RATING), text, re.MULTILINE | re.IGNORECASE)
        said = ["".join(one) for one in named or _MARKED.findall(text)] or bare
    values = {_value(one, ends) for one in said}
    if len(values) > 1:
        return None, "the judge's reply holds several ratings that disagree"
    if not values:
        return None, "the judge's reply holds no rating"
    value = values.pop()
    known = ", ".join(map(str, range(ends[0], ends[1]))) + f" or {ends[1]}"
    return (value, None) if value is not None else (None, f"the judge's value is not {known}: {said[0]!r:.60}")


# e.g. _value("2.0", (0, 2)) → 2.0
# e.g. _value("٢", (0, 2)) → 2.0
# e.g. [_value(said, (0, 2)) for said in ("2/2", "2 out of 2", "2/10")] → [2.0, 2.0, None]
# e.g. _value("3", (0, 2)) → None
def _value(said: Any, ends: Ends) -> float | None:
    if isinstance(said, str):
        said = "".join(str(unicodedata.digit(sign, sign)) for sign in said)
    if isinstance(said, str) and (found := _DIGIT.fullmatch(said)) and (found["of"] or str(ends[1])) == str(ends[1]):
        said = float(found["digit"])
    number = isinstance(said, int | float) and not isinstance(said, bool)
    return float(said) if number and said in range(ends[0], ends[1] + 1) else None


_DIGIT = re.compile(r"\s*(?P<digit>[0-9](?:\.0+)?)(?: ?(?:/|out of) ?(?P<of>\d+))?\s*", re.IGNORECASE)
JsonObject = tuple[tuple[str, Any], ...]
"""A JSON object as it is written: a name may stand in it twice."""


# e.g. list(_objects('Sure: {"fluency": 2}')) → [(("fluency", 2),)]
def _objects(text: str) -> Iterator[JsonObject]:
    """Every outermost JSON object in a text."""
    decoder, place, scanned = json.JSONDecoder(object_pairs_hook=tuple), text.find("{"), 0
    while place >= 0 and scanned < _MOST_SCANNED:
        try:
            found, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            scanned += max(100, error.pos - place) if isinstance(error, json.JSONDecodeError) else _DEEP
            end = place + 1
            if (loose := _LOOSE.match(text, place)) and (written := _tightened(loose[0])):
                yield written
                end = loose.end()
        else:
            yield found
        place = text.find("{", end)


_LOOSE = re.compile(r"\{[^{}]{1,2000}\}")
_QUOTED = re.compile(r"(?<=[{,:\s])'([^'\"\\\n]{0,500})'(?=\s{0,9}[:,}])")
_COMMENT = re.compile(r"(?<=[\s,])//[^\n]*|(?<=\s)#[^\n]*")
_TYPOGRAPHIC: dict[int, Any] = str.maketrans("“”„", '"""')


# e.g. _tightened("{'fluency': 2,}") → (("fluency", 2),)
# e.g. _tightened('{"fluency": 2 // fluent\n}') → (("fluency", 2),)
# e.g. _tightened("{fluency}") → None
def _tightened(chunk: str) -> JsonObject | None:
    """An object as Python or a person writes it: in single or curly quotes, with comments or a comma at its end."""
    plain = _COMMENT.sub("", chunk.translate(_TYPOGRAPHIC))
    strict = re.sub(r",(\s{0,9}\})\Z", r"\1", _QUOTED.sub(r'"\1"', plain))
    try:
        return json.loads(strict, object_pairs_hook=tuple)  # type: ignore[no-any-return]
    except ValueError:
        return None


# e.g. _folded((("Fluency", (("value", 2),)),)) → {"fluency": [2]}
# e.g. _folded((("ratings", (("fluency", 2), ("fluency", 0))),)) → {"fluency": [2, 0]}
def _folded(found: JsonObject) -> dict[str, list[Any]]:
    """All that is said under each name, in lower case.

    Ratings one level down ({"ratings": {…}}, {"fluency": {"value": 2}}) are brought up.
    """
    flat: dict[str, list[Any]] = {}
    for name, value in found:
        inner = _by_name(value) if isinstance(value, tuple) else {}
        values = next((inner[key] for key in ("value", "score", "rating") if key in inner), [])
        if not isinstance(value, tuple):
            values = [value]
        for key, said in ({name.strip().lower(): values} if values else inner).items():
            flat.setdefault(key, []).extend(said)
    return flat


# e.g. _by_name((("Fluency", 2), ("fluency ", 1))) → {"fluency": [2, 1]}
def _by_name(found: JsonObject) -> dict[str, list[Any]]:
    said: dict[str, list[Any]] = {}
    for name, value in found:
        said.setdefault(name.strip().lower(), []).append(value)
    return said
