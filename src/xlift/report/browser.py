"""The data of the response browser: compressed pieces that the page opens when it shows or searches them.

The head says of every prompt and checkpoint what filters need; a piece holds the texts of some prompts, with the
responses and ratings of all checkpoints. All is JSON, gzipped and in base64, in elements that a browser does not run.

head     prompts: one list a field (id, language, reply, split, category, constraint); checkpoints: run, label, step;
         scales: [facet, rater, lowest, best]; signatures; values: per checkpoint and scale one letter a prompt: the
         digit, "m" missing, "-" not rated, "x" another number; piece: prompts in a piece; order: places of prompts as
         they are in the study, none where they lie so; first: checkpoints that are shown at first
piece    prompts: texts; answers: per checkpoint and prompt null or [text, cut (0 or 1), ratings], a rating being
         [scale, value, signature, reason or 0, spans or 0], a span [start, end, language] or [start, end, label, 1]
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from xlift.disk import encode_record
from xlift.languages import get_language
from xlift.records import Prompt, Rating, Response, ends_of, reply_language
from xlift.workspace import now

TEMPLATES = Path(__file__).parent / "templates"
PIECE_RESPONSES = 2500
"""About so many responses are in one piece."""
MOST_RESPONSES = 100_000
"""A page of more would take a browser seconds to open and search (docs/reports.md)."""


class Answers(NamedTuple):
    """What stands in one column of the page: a run's responses at a step, or those of anything else with a label."""

    run: str
    label: str
    step: int
    responses: Iterable[Response]
    ratings: Iterable[Rating]


class Packed(NamedTuple):
    """The browser's data as base64 texts, and how many of the prompts are in it, of how many."""

    head: str
    pieces: list[str]
    shown: int
    prompts: int


class _Names(NamedTuple):
    """Numbers of what occurs many times."""

    scales: dict[tuple[str, str], int]
    ends: dict[tuple[str, str], tuple[int, int]]
    signatures: dict[str, int]


class _Column(NamedTuple):
    """One checkpoint: its answers as JSON by prompt, and one letter a prompt by scale."""

    answers: list[str]
    letters: dict[tuple[str, str], str]


def packed_answers(
    prompts: Sequence[Prompt],
    answered: Sequence[Answers],
    order: Sequence[int] | None = None,
    first: Sequence[int] = (0, 1, 2),
    most: int = MOST_RESPONSES,
) -> Packed:
    """The prompts with the responses and ratings of all checkpoints, a fair part of the prompts where these are many.

    `order` is the order of all prompts that the page opens with, as they are where it is not given, and `first` are the
    places of the checkpoints that stand side by side then.
    """
    kept = set(fair_part(prompts, max(1, most // max(1, len(answered)))))
    # In the order of the opening, so that the first pieces are all that it needs.
    places = [place for place in order or range(len(prompts)) if place in kept]
    own = [prompts[place] for place in places]
    names = _Names({}, {}, {})
    columns = [_column(own, one, names) for one in answered]
    size = max(1, PIECE_RESPONSES // max(1, len(answered)))
    head = {
        **_prompt_fields(own),
        "checkpoints": [[one.run, one.label, one.step] for one in answered],
        "scales": [[*scale, *names.ends[scale]] for scale in names.scales],
        "signatures": list(names.signatures),
        "values": [[one.letters.get(scale, "-" * len(own)) for scale in names.scales] for one in columns],
        "piece": size,
        "order": sorted(range(len(places)), key=places.__getitem__) if order else [],
        "first": list(first),
        "rtl": sorted(code for code in _languages(own) if get_language(code).right_to_left),
    }
    by_id = {prompt["id"]: prompt for prompt in prompts}
    asked = [_json(_asked(prompt, by_id)) for prompt in own]
    pieces = [_piece(asked, columns, slice(start, start + size)) for start in range(0, len(own), size)]
    return Packed(_packed(head), pieces, len(own), len(prompts))


# e.g. of prompts in two languages to four requests, two of validation: fair_part(prompts, 2) → one test request in both
def fair_part(prompts: Sequence[Prompt], most: int) -> list[int]:
    """Places of so many prompts at most: whole requests, from all over the study; test prompts go before the others."""
    if len(prompts) <= most:
        return list(range(len(prompts)))
    requests: dict[tuple[bool, str], list[int]] = {}
    for place, prompt in enumerate(prompts):
        mark = (prompt["split"] != "test", prompt.get("parallel_id") or prompt["id"])
        requests.setdefault(mark, []).append(place)
    chosen: list[int] = []
    for others in (False, True):
        found = [own for (split, _), own in requests.items() if split == others]
        room = len(found) * (most - len(chosen)) // max(1, sum(map(len, found)))
        taken = min(len(found), room)
        chosen += [place for number in range(taken) for place in found[number * len(found) // taken]]
    return sorted(chosen)[:most]


def _languages(prompts: Sequence[Prompt]) -> set[str]:
    return {code for prompt in prompts for code in (prompt["language"], reply_language(prompt))}


def _column(prompts: Sequence[Prompt], one: Answers, names: _Names) -> _Column:
    wanted = {prompt["id"] for prompt in prompts}
    rated: dict[str, list[Rating]] = {}
    for rating in one.ratings:
        if rating["id"] in wanted:
            rated.setdefault(rating["id"], []).append(rating)
            names.scales.setdefault((rating["facet"], rating["rater"]), len(names.scales))
            names.ends[rating["facet"], rating["rater"]] = ends_of(rating)
            names.signatures.setdefault(rating["signature"], len(names.signatures))
    made = {response["id"]: response for response in one.responses if response["id"] in wanted}
    answers = [_answer(made.get(prompt["id"]), rated.get(prompt["id"], []), names) for prompt in prompts]
    return _Column([_json(answer) for answer in answers], _letters(prompts, rated))


def _prompt_fields(prompts: Sequence[Prompt]) -> dict[str, Any]:
    return {
        "id": [prompt["id"] for prompt in prompts],
        "language": [prompt["language"] for prompt in prompts],
        "reply": [reply_language(prompt) for prompt in prompts],
        "split": [prompt["split"] for prompt in prompts],
        "category": [prompt.get("category", "") for prompt in prompts],
        "constraint": [(prompt.get("constraint") or {}).get("name", "") for prompt in prompts],
    }


def _letters(prompts: Sequence[Prompt], rated: Mapping[str, list[Rating]]) -> dict[tuple[str, str], str]:
    found = dict.fromkeys((rating["facet"], rating["rater"]) for own in rated.values() for rating in own)
    return {scale: "".join(_letter(rated.get(prompt["id"], []), scale) for prompt in prompts) for scale in found}


# e.g. _letter([{"facet": "language", "rater": "language", "value": None}], ("language", "language")) → "m"
# e.g. _letter([], ("language", "language")) → "-"
def _letter(ratings: Sequence[Rating], scale: tuple[str, str]) -> str:
    for rating in ratings:
        if (rating["facet"], rating["rater"]) == scale:
            value = rating["value"]
            return "m" if value is None else str(int(value)) if value in range(10) else "x"
    return "-"


def _piece(asked: Sequence[str], columns: Sequence[_Column], part: slice) -> str:
    answers = ",".join(f"[{','.join(one.answers[part])}]" for one in columns)
    text = f'{{"prompts":[{",".join(asked[part])}],"answers":[{answers}]}}'
    # Half a character, which UTF-8 cannot hold, becomes what JSON writes for it.
    return packed_bytes(text.encode("utf-8", "backslashreplace"))


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _asked(prompt: Prompt, by_id: Mapping[str, Prompt]) -> str:
    """What was asked before the response, the roles named where there is more than one turn.

    Of a conversation that goes on, the user's turns: the replies between them are each checkpoint's own.
    """
    messages, before = prompt["messages"], prompt.get("follows")
    while before is not None:
        messages, before = [*by_id[before]["messages"], *messages], by_id[before].get("follows")
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _answer(response: Any, ratings: Sequence[Rating], names: _Names) -> list[Any] | None:
    if response is None:
        return None
    return [response["text"], int(response["finish_reason"] == "length"), [_rating(one, names) for one in ratings]]


def _rating(rating: Rating, names: _Names) -> list[Any]:
    told = rating.get("detail", {}).get("spans") or []
    spans = [[one["start"], one["end"], *_what(one)] for one in told]
    scale, signature = names.scales[rating["facet"], rating["rater"]], names.signatures[rating["signature"]]
    return [scale, rating["value"], signature, rating.get("reason") or 0, spans or 0]


# e.g. _what({"start": 0, "end": 4, "language": "en"}) → ["en"]
# e.g. _what({"start": 0, "end": 4, "label": "wrong"}) → ["wrong", 1]
def _what(span: Mapping[str, Any]) -> list[Any]:
    """What a span is: another language as a check found it, or what a person has marked it as."""
    return [span["language"]] if "language" in span else [span.get("label", ""), 1]


def _packed(data: Any) -> str:
    return packed_bytes(encode_record(data))


def packed_bytes(content: bytes) -> str:
    """Gzipped and in base64; the same bytes give the same text."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def rendered(template: str, **context: Any) -> str:
    """A page of the report, with what all of them say and how all of them look."""
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return templates.get_template(template).render(
        made=now(), version=metadata.version("xlift"), style=style, **context
    )


def policy(*scripts: str) -> str:
    """What a page may load and run: nothing but these scripts of its own, and its style."""
    hashes = " ".join(_hash(script) for script in scripts)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"
