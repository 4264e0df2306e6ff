"""What a judge is asked about a response, and the ratings that its replies make. No network: servers/client.py sends.

The judged text is filled in once, in blocks whose boundaries bear a code computed from all that is shown, so that no
text can contain its own boundary. A reply counts only where it holds values of the scale; anything else is missing,
with the reply kept. How a reply is read: replies.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from xlift.errors import ConfigError
from xlift.judging.replies import read_values, read_why, refuses
from xlift.languages import find_language, known_code
from xlift.rating import identity, text_fingerprint
from xlift.records import Message, Rating, fingerprint, reply_language, scale_fields
from xlift.servers.calls import ServedAnswer, ServedReply
from xlift.study.served import JUDGED_FACETS, Ends, Judge

JUDGE_VERSION = "judge v2"
SHOWN_CHARACTERS = 12_000
"""Longest text that a judge is shown of a response, a turn or a reference; the rest is cut, visibly."""
KEPT_CHARACTERS = 4_000
"""Longest raw reply that is kept with a rating that could not be read."""
BUILTIN_RUBRICS = Path(__file__).parent / "rubrics"
INSTRUCTED_LANGUAGES = tuple("en fr pt ru de es it nl tr ar hi zh ja ko id".split())

# Sections of an instructions file and the placeholders that each must hold.
_SECTIONS: dict[str, set[str]] = {
    "system": {"rubrics", "format", "values"},
    "item": {"code", "language", "note", "material", "format", "values"},
    "no request": set(),
    "reference": set(),
    "again": {"format", "values"},
    "pair system": set(),
    "pair item": {"code", "language", "note", "material"},
    "pair again": set(),
    "values": set(),
}
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_HEADING = re.compile(r"^# (.+)$", re.MULTILINE)

# What chat templates take for the boundary of a turn, so that it is never passed on as it is.
_TEMPLATE_TOKENS = re.compile(
    r"<(?=[|｜][^<>\n]{1,40}[|｜]>|/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|think)>|</?SYS>|/?SYS>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)
# Controls, bidirectional overrides and isolates, invisible tag characters, lone surrogates.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Texts(NamedTuple):
    """A judge's instructions in one language: sections of the frame, and a rubric for each facet."""

    frame: dict[str, str]
    rubrics: dict[str, str]


class JudgeRequest(NamedTuple):
    """One question to a judge model. `key` names the model, the decoding and every character of the messages."""

    key: str
    messages: list[Message]
    again: str
    schema: dict[str, Any]
    facets: tuple[str, ...]
    notes: tuple[str, ...]
    readable: Callable[[str], bool]

    def content(self, messages: list[Message]) -> dict[str, Any]:
        return {"messages": messages}

    def follow_up(self, replies: Sequence[ServedReply]) -> list[Message] | None:
        """The messages of the one re-ask; None where none is needed: an unreadable reply that is no refusal has one."""
        if len(replies) != 1 or refuses(replies[0]) or self.readable(replies[0].text):
            return None
        if not replies[0].text.strip():
            # Many servers refuse an empty turn, and two user turns in a row.
            last = self.messages[-1]
            return [*self.messages[:-1], {"role": "user", "content": f"{last['content']}\n\n{self.again}"}]
        said: Message = {"role": "assistant", "content": shown(replies[0].text, "reply")[0]}
        return [*self.messages, said, {"role": "user", "content": self.again}]


def load_texts(settings: Judge) -> dict[str, Texts]:
    """The instructions and rubrics of a judge, by language; files in the user's folder replace the built-in ones.

    Raises ConfigError, all problems at once, where the folder is not there or an instructions file lacks something.
    """
    own = Path(settings.rubrics) if settings.rubrics else None
    if own and not own.is_dir():
        raise ConfigError(f"judge '{settings.label}': rubrics: {own} is not a folder", "it holds FACET.md files")
    languages = INSTRUCTED_LANGUAGES if settings.rubric_language == "response" else ("en",)
    wanted = [facet for facet in settings.facets if facet in settings.scales or facet not in JUDGED_FACETS]
    lacking = [facet for facet in wanted if own and not (own / f"{facet}.md").is_file()]
    if lacking:
        told = [f"judge '{settings.label}': rubrics: {own} has no {facet}.md" for facet in lacking]
        raise ConfigError(told, "it says what each value of the scale means: docs/judges.md")
    problems: list[str] = []
    texts = {}
    for language in languages:
        path = _find(own, "instructions", language)
        frame = _sections(path.read_text(encoding="utf-8"))
        problems += [f"{path}: {problem}" for problem in _frame_problems(frame, bool(settings.scales))]
        rubrics = {facet: _find(own, facet, language).read_text(encoding="utf-8").strip() for facet in settings.facets}
        texts[language] = Texts(frame, rubrics)
    if problems:
        raise ConfigError(problems, f"the built-in file is {BUILTIN_RUBRICS / 'instructions.en.md'}")
    return texts


def _find(own: Path | None, name: str, language: str) -> Path:
    """The user's file in this language, the user's in English, the built-in one in this language, or in English."""
    plain = f"{name}.md" if name != "instructions" else "instructions.en.md"
    folders = [own, BUILTIN_RUBRICS] if own else [BUILTIN_RUBRICS]
    places = [folder / file for folder in folders for file in (f"{name}.{language}.md", plain)]
    return next(place for place in places if place.is_file())


# e.g. _sections("# system\nYou rate.\n\n# again\nOnce more.") → {"system": "You rate.", "again": "Once more."}
def _sections(text: str) -> dict[str, str]:
    _, *parts = _HEADING.split(text)
    return {name.strip(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _frame_problems(frame: dict[str, str], scaled: bool) -> list[str]:
    # Instructions that say 0, 1 and 2 themselves are whole where no facet is `scaled` otherwise.
    scaled = scaled or any("{{values}}" in text for text in frame.values())
    problems = []
    for name, holds in _SECTIONS.items():
        expected = holds if scaled else holds - {"values"}
        found = set(_PLACEHOLDER.findall(frame.get(name, "")))
        if not frame.get(name) and (scaled or name != "values"):
            problems.append(f"section '# {name}' is missing or empty")
        problems += [f"section '# {name}' lacks {{{{{one}}}}}" for one in sorted(expected - found) if name in frame]
        problems += [f"section '# {name}' cannot hold {{{{{one}}}}}" for one in sorted(found - expected)]
    if frame.get("values") and re.findall(r"\d", frame["values"]) != ["0", "1", "2"]:
        problems.append("section '# values' says 0, 1 and 2 in its language, as in: 0, 1 or 2")
    return problems


# e.g. values_text("0, 1 or 2", ["fluency", "tact"], {}) → "0, 1 or 2"
# e.g. values_text("0, 1 or 2", ["tact"], {"tact": (1, 5)}) → "1, 2, 3, 4 or 5"
# e.g. values_text("0、1 或 2", ["fluency", "tact"], {"tact": (1, 3)}) → "0、1 或 2 (fluency); 1、2 或 3 (tact)"
def values_text(pattern: str, facets: Sequence[str], scales: Mapping[str, Ends]) -> str:
    """The values that a judge may give, in the words of `pattern`, which says 0, 1 and 2 in its language."""
    _, between, before_last, after = re.split("[012]", pattern)
    groups: dict[Ends, list[str]] = {}
    for facet in facets:
        groups.setdefault(scales.get(facet, (0, 2)), []).append(facet)
    told = [f"{between.join(map(str, range(lowest, best)))}{before_last}{best}{after}" for lowest, best in groups]
    if len(groups) == 1:
        return told[0]
    return "; ".join(f"{said} ({', '.join(own)})" for said, own in zip(told, groups.values(), strict=True))


def judge_signature(settings: Judge, texts: dict[str, Texts]) -> str:
    """How a judge's numbers come about: version, model, temperature, one call or many, and a hash of the rubrics."""
    rubrics = fingerprint([[language, *text] for language, text in sorted(texts.items())], length=8)
    parts = (JUDGE_VERSION, settings.model, f"t{settings.temperature:g}", settings.calls, f"rubrics {rubrics}")
    return "|".join(parts)


def rater(settings: Judge) -> str:
    """The judge's name in ratings."""
    return f"judge:{settings.known_as}"


# e.g. fill("Rate {{a}}.", {"a": "{{b}}"}) → "Rate {{b}}."
def fill(template: str, values: dict[str, str]) -> str:
    """The template with its placeholders replaced, in one pass: what is filled in is never looked at again."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


# e.g. shown("Say <end_of_turn> now.", "response")[0] → "Say ‹end_of_turn> now."
def shown(text: str, name: str) -> tuple[str, list[str]]:
    """A text as the judge may see it, and what has been changed: tokens of chat formats, unseen characters, length."""
    notes = []
    if cut := len(text) > SHOWN_CHARACTERS:
        notes.append(f"{name} cut: {SHOWN_CHARACTERS} of {len(text)} characters shown")
    seen, tokens = _TEMPLATE_TOKENS.subn(lambda match: "‹" if match[0] == "<" else "⁅", text[:SHOWN_CHARACTERS])
    seen, unseen = _UNSEEN.subn(lambda match: f"[U+{ord(match[0]):04X}]", seen)
    if tokens:
        notes.append(f"{name}: {tokens} boundary tokens of chat formats made harmless")
    if unseen:
        notes.append(f"{name}: {unseen} unseen characters written out")
    return (f"{seen} […]" if cut else seen), notes


def requests_for(record: dict[str, Any], settings: Judge, texts: dict[str, Texts]) -> list[JudgeRequest]:
    """The requests that rate one response record: one for all facets, or one for each."""
    facets = tuple(dict.fromkeys(settings.facets))
    groups: list[tuple[str, ...]] = [facets] if settings.calls == "all" else [(facet,) for facet in facets]
    own = texts[frame_language(record, texts)]
    blocks, notes = context_blocks(record, settings)
    seen, more = shown(record["text"], "response")
    blocks.append(("RESPONSE", seen))
    return [_rating_request(record, blocks, group, own, settings, (*notes, *more)) for group in groups]


# e.g. frame_language({"language": "sw"}, {"en": None, "fr": None}) → "en"
def frame_language(record: dict[str, Any], texts: dict[str, Texts]) -> str:
    """The language of the instructions: the response's where there are instructions in it, else English."""
    code = known_code(reply_language(record))
    return code if code in texts else "en"


def context_blocks(record: dict[str, Any], settings: Judge) -> tuple[list[tuple[str, str]], list[str]]:
    """What the judge sees besides the response: each turn of the conversation, and the reference answer."""
    turns = record.get("messages") or [{"role": "user", "content": record["prompt"]} if record.get("prompt") else {}]
    parts = [(str(turn["role"]).upper(), str(turn["content"])) for turn in turns if turn]
    reference = record.get("reference") or " / ".join(record.get("answers") or [])
    if reference and settings.reference:
        parts.append(("REFERENCE", reference))
    blocks, notes = [], []
    for name, text in parts:
        seen, changed = shown(text, name.lower())
        blocks.append((name, seen))
        notes += changed
    return blocks, notes


def _rating_request(
    record: dict[str, Any],
    blocks: list[tuple[str, str]],
    facets: tuple[str, ...],
    texts: Texts,
    settings: Judge,
    notes: tuple[str, ...],
) -> JudgeRequest:
    # A reason before the value helps a careful judge; where one call has to do, it would cost more than the ratings.
    names = ("why", *facets) if settings.calls == "each" else facets
    form = "{" + ", ".join('"why": "one short sentence"' if name == "why" else f'"{name}": N' for name in names) + "}"
    filled = {"format": form, "values": values_text(texts.frame.get("values", "0, 1 or 2"), facets, settings.scales)}
    rubrics = "\n\n".join(f"=== {facet} ===\n{texts.rubrics[facet]}" for facet in facets)
    system = fill(texts.frame["system"], {"rubrics": rubrics, **filled})
    user = item_message("item", record, blocks, texts, filled)
    kinds = {name: {"type": "string"} if name == "why" else _kind(settings.ends(name)) for name in names}

    def readable(text: str) -> bool:
        return all(value is not None for value, _ in read_values(text, facets, settings.scales).values())

    again = fill(texts.frame["again"], filled)
    return make_request(system, user, again, kinds, facets, notes, readable, settings)


# e.g. _kind((0, 2)) → {"type": "integer", "enum": [0, 1, 2]}
def _kind(ends: Ends) -> dict[str, Any]:
    return {"type": "integer", "enum": list(range(ends[0], ends[1] + 1))}


def make_request(
    system: str,
    user: str,
    again: str,
    kinds: dict[str, dict[str, Any]],
    facets: tuple[str, ...],
    notes: tuple[str, ...],
    readable: Callable[[str], bool],
    settings: Judge,
) -> JudgeRequest:
    """A request and its key; `kinds` are the JSON-schema types of the reply's fields."""
    messages: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    schema = {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}
    decoding: list[Any] = [settings.temperature, settings.max_new_tokens, settings.seed]
    decoding += ["form"] if settings.here is not None and settings.json_schema else []
    key = fingerprint(settings.model, decoding, messages, again, length=16)
    return JudgeRequest(key, messages, again, schema, facets, notes, readable)


def item_message(
    section: str, record: dict[str, Any], blocks: list[tuple[str, str]], texts: Texts, values: dict[str, str]
) -> str:
    """The message with the material, in blocks whose code occurs in none of them."""
    code = boundary_code([text for _, text in blocks])
    names = {name for name, _ in blocks}
    notes = [texts.frame["reference"]] if "REFERENCE" in names else []
    notes += [] if "USER" in names else [texts.frame["no request"]]
    material = "\n\n".join(f"<<<{name} {code}>>>\n{text}\n<<<END {name} {code}>>>" for name, text in blocks)
    shown_values = {"code": code, "language": named_language(record), "note": "".join(f" {note}" for note in notes)}
    return fill(texts.frame[section], {**shown_values, "material": material, **values})


# e.g. len(boundary_code(["a text", "another"])) → 16
def boundary_code(contents: Sequence[str]) -> str:
    """Sixteen hex digits that depend on all contents and occur in none of them."""
    codes = (fingerprint(turn, list(contents), length=16) for turn in itertools.count())
    return next(code for code in codes if not any(code in text.lower() for text in contents))


# e.g. named_language({"language": "fr"}) → "French (français)"
# e.g. named_language({"language": "pt", "variety": "pt-BR"}) → "Portuguese (português), as in BR"
def named_language(record: dict[str, Any]) -> str:
    """The language that the response must be in, as a judge reads it: "French (français)"."""
    known = find_language(record.get("variety") or reply_language(record))
    if known is None:
        return re.sub(r"[^\w-]", "", reply_language(record))[:20]
    name = known.name if known.name == known.native_name else f"{known.name} ({known.native_name})"
    return f"{name}, as in {known.region}" if known.region else name


def ratings_for(
    record: dict[str, Any],
    settings: Judge,
    signed: str,
    requests: Iterable[JudgeRequest],
    answers: Iterable[ServedAnswer],
) -> list[Rating]:
    """A rating for each facet of one response, the rules between facets applied.

    Where a call has had no answer at all, every rating of the response says so (`incomplete` in its detail) and is made
    again by the next run, since the rules need all facets.
    """
    pairs = list(zip(requests, answers, strict=True))
    found = {
        facet: one for request, answer in pairs for facet, one in _facets_of(request, answer, settings.scales).items()
    }
    values = apply_rules(record, {facet: value for facet, (value, _, _, _) in found.items()}, settings.scales)
    incomplete = any(answer.failure for _, answer in pairs)
    ratings = []
    for facet, (raw, reason, detail, key) in found.items():
        value, rule = values[facet]
        detail |= {"raw": raw, "rule": rule} if rule else {}
        detail |= {"incomplete": True} if incomplete else {}
        rating = {**_identity(record, settings, signed, facet), "value": value, "request": key}
        rating |= {"reason": reason} if reason else {}
        rating |= {"detail": detail} if detail else {}
        ratings.append(cast(Rating, rating))
    return ratings


def missing_ratings(record: dict[str, Any], settings: Judge, signed: str, reason: str) -> list[Rating]:
    """The ratings of a record that cannot be shown to a judge."""
    said = {"value": None, "reason": reason, "request": ""}
    facets = dict.fromkeys(settings.facets)
    return [cast(Rating, _identity(record, settings, signed, facet) | said) for facet in facets]


def _identity(record: dict[str, Any], settings: Judge, signed: str, facet: str) -> dict[str, Any]:
    name, run, step = identity(record)
    return {
        "id": name,
        "language": str(record.get("language") or ""),
        "run": run,
        "step": step,
        "facet": facet,
        "rater": rater(settings),
        "value": None,
        "response": text_fingerprint(record),
        "signature": signed,
        **scale_fields(settings.ends(facet)[::-1]),
    }


_Found = tuple[float | None, str | None, dict[str, Any], str]


def _facets_of(request: JudgeRequest, answer: ServedAnswer, scales: Mapping[str, Ends]) -> dict[str, _Found]:
    """Per facet: the value (of the first reply that has one), the reason where there is none, details, the key."""
    if answer.failure:
        return {facet: (None, answer.failure, {}, request.key) for facet in request.facets}
    read = [read_values("" if refuses(reply) else reply.text, request.facets, scales) for reply in answer.replies]
    last = answer.replies[-1]
    found: dict[str, _Found] = {}
    for facet in request.facets:
        value = next((one[facet][0] for one in read if one[facet][0] is not None), None)
        detail: dict[str, Any] = {"notes": list(request.notes)} if request.notes else {}
        reason = None
        if why := next((why for reply in answer.replies if (why := read_why(reply.text))), None):
            detail["why"] = why[:KEPT_CHARACTERS]
        if value is None:
            reason = _reason(last, read[-1][facet][1])
            detail["reply"] = (last.refusal or last.text)[:KEPT_CHARACTERS]
        found[facet] = (value, reason, detail, request.key)
    return found


def _reason(reply: ServedReply, why: str | None) -> str:
    if refuses(reply):
        return "the judge refused to rate"
    if reply.finish == "length":
        return "the judge's reply was cut off at max_new_tokens"
    return why or "the judge's reply cannot be read"


# e.g. apply_rules({}, {"fluency": 0, "helpfulness": 2})["helpfulness"] → (0.0, "fluency 0")
# e.g. apply_rules({"answers": ["Oui"]}, {"accuracy": 0, "helpfulness": 1})["helpfulness"][0] → 0.0
def apply_rules(
    record: dict[str, Any], values: dict[str, float | None], scales: Mapping[str, Ends] = MappingProxyType({})
) -> dict[str, tuple[float | None, str | None]]:
    """The rules between facets: per facet the value that counts, and the rule where it differs from the judge's.

    A text that makes no sense (fluency 0) helps nobody, states nothing true and is not coherent; a wrong answer to a
    question with one right answer does not help. What is missing stays missing, and what has a scale of its own, whose
    rubric may mean something else by its lowest value, is left as it is.
    """
    adjusted: dict[str, tuple[float | None, str | None]] = {facet: (value, None) for facet, value in values.items()}
    values = {facet: value for facet, value in values.items() if facet not in scales}
    lowered = []
    if values.get("fluency") == 0:
        lowered += [(facet, "fluency 0") for facet in ("helpfulness", "accuracy", "coherence")]
    if record.get("answers") and values.get("accuracy") == 0:
        lowered.append(("helpfulness", "one right answer: accuracy 0"))
    for facet, rule in lowered:
        if values.get(facet) and adjusted[facet][1] is None:
            adjusted[facet] = (0.0, rule)
    return adjusted
