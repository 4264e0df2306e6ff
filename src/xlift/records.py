"""The records that stages hand to each other, and how they are read and checked: JSONL, unknown fields are kept.

How they are written: disk.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from xlift.errors import DataError, shortened
from xlift.languages import find_language, known_code, language_problem

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Role = Literal["system", "user", "assistant"]
Split = Literal["validation", "test"]
Rated = tuple[float | None, dict[str, Any], str | None]
"""What a rater says of a response: the value, details, and the reason where there is no value."""
Facet = Literal["language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness", "constraint"]

ROLES = ("system", "user", "assistant")
SPLITS = ("validation", "test")
FACETS = ("language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness", "constraint")
SCALES: dict[str, float] = dict.fromkeys(FACETS, 2.0)
"""Upper end of each facet's scale, which begins at 0."""
OWN_FACET = r"[a-z][a-z0-9_]{0,15}"
"""What a facet of one's own may be called, as a regular expression."""
HIGHEST = 9
"""The best value that a scale of one's own may have: one key each."""
LIMITED = frozenset({"length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length", "incomplete"})
"""How servers and programs say that the token limit ended a reply."""
EMPTY = "empty response"
"""Why a rating of an answer that says nothing has no value."""


# e.g. counted({"facet": "language", "value": None, "reason": EMPTY}) → 0.0
# e.g. counted({"facet": "fluency", "value": None, "reason": EMPTY}) → None
def counted(rating: Mapping[str, Any]) -> float | None:
    """A rating's value, 0 for the language of an empty answer: who says nothing does not say it in the language."""
    silent = rating["facet"] == "language" and rating.get("reason") == EMPTY
    return 0.0 if silent and rating["value"] is None else rating["value"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str
    learn: NotRequired[bool]
    """Of a reply in training data: false where it is only context."""


class Conversation(TypedDict):
    """One training example: turns that end with the assistant's reply."""

    id: str
    messages: list[Message]
    language: NotRequired[str]
    category: NotRequired[str]
    where: NotRequired[str]
    """File and line."""
    parallel_id: NotRequired[str]
    """What its translations share."""
    wrong: NotRequired[str]
    """The last reply of a translation: right but for its language."""


class Prompt(TypedDict):
    """A user request in one language; translations of a request share `parallel_id`.

    `answers` are accepted short answers to a factual question, `answers_any` those in other languages, `wrong` known
    wrong ones, and `reference` is a full answer; `modifies` is the id of the request that this one constrains;
    `variety` is the reply language as it was given, where that says more than its code: pt-BR. A later turn of a
    conversation `follows` another prompt: the model has asked and answered that one before. `sample` counts the replies
    asked of one prompt from the second on.
    """

    id: str
    language: str
    messages: list[Message]
    split: Split
    reply_language: NotRequired[str]
    variety: NotRequired[str]
    parallel_id: NotRequired[str]
    category: NotRequired[str]
    constraint: NotRequired[dict[str, Any]]
    answers: NotRequired[list[str]]
    answers_any: NotRequired[dict[str, list[str]]]
    wrong: NotRequired[list[str]]
    reference: NotRequired[str]
    modifies: NotRequired[str]
    follows: NotRequired[str]
    sample: NotRequired[int]


class Response(Prompt):
    """A model's reply to a prompt. `signature` names the prompt text and decoding that it came from.

    `missing` says why there is no reply, `lost` that the next try may bring one; `text` is empty then.
    Of a later turn, `messages` are the whole conversation: the turns before it with the model's own replies. `seconds`
    are its share of the time that the model has computed, `engine` what computed it where that is not xlift itself;
    `dropped_turns` of the oldest were left out as too long.
    """

    run: str
    step: int
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int
    seconds: NotRequired[float]
    engine: NotRequired[str]
    signature: str
    missing: NotRequired[str]
    lost: NotRequired[bool]
    dropped_turns: NotRequired[int]


class Rating(TypedDict):
    """One rater's value for one facet of one response; `value` is None where it could not be rated.

    `response` is the fingerprint of the rated text, so that a changed text is rated again.
    """

    id: str
    language: str
    run: str
    step: int
    facet: str
    rater: str
    value: float | None
    response: str
    signature: str
    request: NotRequired[str]
    """Of a judge: hash of the model, the decoding and all that it was shown."""
    reason: NotRequired[str]
    detail: NotRequired[dict[str, Any]]
    scale: NotRequired[list[int]]
    """Of a facet that is not rated from 0 to 2: the lowest and the best value."""


class Logged(TypedDict):
    """One line of train.jsonl: what was measured after an optimiser step."""

    step: int


def fingerprint(*parts: Any, length: int = 12) -> str:
    """A short stable hash of JSON-like values, independent of key order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def reply_language(record: Prompt | Response | dict[str, Any]) -> str:
    """The language that the response must be in: the prompt's own unless it asks for another."""
    return cast(str, record.get("reply_language") or record["language"])


RENDERING = 1
"""Raised when xlift writes or tokenises the same messages otherwise: older responses are then made anew."""


def shorter(messages: Sequence[Message]) -> list[list[Message]]:
    """A conversation without its oldest turn, its two oldest, and so on.

    A turn is a question with its reply; the system prompt and the last question stay.
    """
    head = int(messages[0]["role"] == "system")
    turns = [place for place, one in enumerate(messages) if place > head and one["role"] == "user"]
    return [[*messages[:head], *messages[place:]] for place in turns]


def response_signature(decoding: str, messages: Sequence[Message], chat: str = "") -> str:
    """What a response must carry to be up to date: the decoding and a hash of all that the model was shown.

    `chat` is the hash of the chat template and the tokenizer that made text and tokens of it; the untuned base's are
    part of what names its run.
    """
    return f"{decoding}|{fingerprint(messages, RENDERING, length=8)}" + (f".{chat}" if chat else "")


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, record) of a JSONL file; blank lines are skipped.

    Raises DataError with the line number for a line that is not UTF-8 or not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if raw.strip():
                yield number, parse_line(raw, f"{path}:{number}")


MAX_DEPTH = 100
"""Levels of lists and objects within each other in a record."""
SHORT = 64
"""Characters below which a text is one object for all records of a file: a run's name, not a reply."""


def parse_line(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in one line. Raises DataError that begins with `where`."""
    record = parse_json(raw, where)
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def parse_json(raw: bytes, where: str) -> Any:
    """What a JSON text says. Raises DataError that begins with `where` for what is none, or is nested too deeply."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start} of the line is 0x{raw[error.start]:02x})") from None
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}{line}") from None
    except RecursionError:
        raise DataError(f"{where}: not usable JSON: nested too deeply") from None
    except ValueError:
        raise DataError(f"{where}: not usable JSON: a number of too many digits") from None
    # Counting brackets is cheap, and tells nearly always.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(f"{where}: not usable JSON: nested too deeply")
    return value


# e.g. _depth({"a": [1, {"b": 2}]}) → 3
def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def any_response(record: dict[str, Any], where: str, number: int | str) -> dict[str, Any]:
    """A response of any system, from line `number` of a file: its languages by their codes, a whole `step`.

    The number, or a name, is the `id` where there is none, as often in responses of other systems. Raises DataError
    that begins with `where`.
    """
    step = record.get("step") or 0
    if isinstance(step, str) and step.isascii() and step.isdigit() and len(step) < 19:
        step = int(step)
    given = number if record.get("id") is None else record["id"]
    record = record | {"id": str(given) if type(given) is int else given}
    problems = read_languages(record, where)
    if not isinstance(step, int | float) or step != step or not 0 <= step < 2**63 or step != int(step):
        problems.append(f"{where}: 'step' must be a whole number, found {str(step)[:40]!r}")
    if problems:
        raise DataError(problems)
    return record | {"step": int(step)}


def read_records(path: str | Path, kind: Any = dict) -> list[dict[str, Any]]:
    """All whole records of a file that xlift itself appends to; a torn last line is left out. Missing file: [].

    `kind` is what each is: Prompt, Response or Rating. Raises DataError that lists the lines that are none.
    """
    path = Path(path)
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    records, problems, known = [], list[str](), dict[str, str]()
    for number, raw in enumerate(whole.split(b"\n"), start=1):
        if raw.strip():
            try:
                record = as_written(parse_line(raw, f"{path}:{number}"), kind, f"{path}:{number}")
                records.append(_shared(record, known))
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(shortened(problems), "xlift verify STUDY says what is damaged, and how to mend it")
    return records


def _shared(record: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """The record with one object for each name and short text that the records of a file have in common."""
    return {
        sys.intern(key): known.setdefault(value, value) if type(value) is str and len(value) < SHORT else value
        for key, value in record.items()
    }


def read_json(path: Path, kind: Any) -> Any:
    """What a JSON file of xlift's own holds. Raises DataError where it is not of this kind."""
    return as_written(parse_line(path.read_bytes(), str(path)), kind, str(path))


def as_written(record: Any, kind: Any, where: str) -> Any:
    """A value of a file of xlift's own, which must be of this kind; fields beyond it are kept.

    A rating whose value is not on the scale becomes one without a value. Raises DataError that begins with `where`.
    """
    from pydantic import ValidationError

    if kind is Rating and isinstance(record, dict):
        record = on_scale(record)
    try:
        _adapter(kind).validate_python(record, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        field = ".".join(map(str, wrong["loc"])) or "the whole"
        raise DataError(f"{where}: damaged: {field}: {wrong['msg']}, found {wrong['input']!r:.60}") from None
    except RecursionError:
        raise DataError(f"{where}: damaged: nested too deeply") from None
    return record


@lru_cache(maxsize=32)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# e.g. ends_of({"facet": "fluency"}) → (0, 2)
# e.g. ends_of({"facet": "politeness", "scale": [1, 5]}) → (1, 5)
def ends_of(rating: Mapping[str, Any]) -> tuple[int, int]:
    """The lowest and the best value of the scale that a rating is on."""
    own = rating.get("scale")
    if not isinstance(own, list) or len(own) != 2 or not all(type(end) is int for end in own):
        return 0, 2
    return (own[0], own[1]) if 0 <= own[0] < own[1] <= HIGHEST else (0, 2)


# e.g. scale_fields((5, 4, 3, 2, 1)) → {"scale": [1, 5]}
# e.g. scale_fields((2, 1, 0)) → {}
def scale_fields(levels: Sequence[int]) -> dict[str, list[int]]:
    """What a rating of a facet with these values, the highest first, says of its scale."""
    return {} if (levels[-1], levels[0]) == (0, 2) else {"scale": [levels[-1], levels[0]]}


# e.g. from_0_to_2({"value": 4, "scale": [1, 5]}) → 1.5
# e.g. from_0_to_2({"value": 1}) → 1.0
def from_0_to_2(rating: Mapping[str, Any]) -> float | None:
    """A rating's value where its scale, whichever it is, is drawn from 0 to 2."""
    lowest, best = ends_of(rating)
    return None if rating["value"] is None else 2 * (rating["value"] - lowest) / (best - lowest)


# e.g. on_scale({"value": 7}) → {"value": None, "reason": "7 is not on the scale"}
def on_scale(rating: dict[str, Any]) -> dict[str, Any]:
    """A rating as it is; one whose value is no number on its scale as a missing one, which is counted as such."""
    value, (lowest, best) = rating.get("value"), ends_of(rating)
    if value is None or (type(value) in (int, float) and lowest <= value <= best):
        return rating
    return rating | {"value": None, "reason": f"{value!r:.20} is not on the scale"}


def check_messages(messages: Any, where: str, ends_with: Role) -> list[str]:
    """What is wrong with a list of messages: roles known and alternating, contents non-empty, the last role right."""
    if not isinstance(messages, list) or not messages:
        return [f"{where}: 'messages' must be a non-empty list of {{role, content}}, found {_kind(messages)}"]
    problems = [problem for i, message in enumerate(messages) for problem in _check_message(message, f"{where}[{i}]")]
    if problems:
        return problems
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if [m["role"] for m in messages[1:]].count("system"):
        problems.append(f"{where}: a system message can only be the first")
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if turns != expected or not turns:
        problems.append(f"{where}: roles must alternate user, assistant, …; found {', '.join(turns) or 'none'}")
    elif turns[-1] != ends_with:
        problems.append(f"{where}: the last message must be the {ends_with}'s, found {turns[-1]}")
    return problems


def _check_message(message: Any, where: str) -> list[str]:
    if not isinstance(message, dict):
        return [f"{where}: expected an object with role and content, found {_kind(message)}"]
    problems = []
    if message.get("role") not in ROLES:
        problems.append(f"{where}: role must be one of {', '.join(ROLES)}, found {message.get('role')!r}")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        problems.append(f"{where}: content must be non-empty text, found {_kind(content)}")
    elif is_halved(content):
        problems.append(f"{where}: content holds half of a character (a lone surrogate), which no tokenizer takes")
    return problems


# e.g. is_halved("\ud83d") → True
def is_halved(text: str) -> bool:
    """Whether a text holds a lone surrogate, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_prompt(record: dict[str, Any], where: str) -> list[str]:
    """What is wrong with a prompt record, whose languages are replaced by their codes; an empty list if nothing is."""
    problems = [
        f"{where}: '{field}' must be non-empty text, found {_kind(record.get(field))}"
        for field in ("id", "language")
        if not (isinstance(record.get(field), str) and record[field])
    ]
    problems += read_languages(record, where) + _check_extras(record, where)
    if record.get("split") not in SPLITS:
        problems.append(f"{where}: 'split' must be validation or test, found {record.get('split')!r}")
    problems += check_messages(record.get("messages"), f"{where}: messages", ends_with="user")
    others = {name: json.dumps(value, ensure_ascii=False) for name, value in record.items() if name != "messages"}
    halved = [name for name, text in others.items() if is_halved(name + text)]
    problems += [f"{where}: {name!a} holds half of a character (a lone surrogate)" for name in halved]
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        problems.append(f"{where}: holds a number that is none (NaN or Infinity), which is no JSON; expected null")
    return problems


def read_languages(record: dict[str, Any], where: str) -> list[str]:
    """Replaces texts that name the languages of a record by their codes, and returns what is wrong with them.

    What a name said beyond the code is kept in `variety`: "pt-BR" becomes "pt" with the variety "pt-BR".
    """
    problems = []
    for field in ("language", "reply_language"):
        if not isinstance(record.get(field), str) or not record[field]:
            continue
        if found := find_language(record[field]):
            record[field] = found.code
            if field == "reply_language" or not record.get("reply_language"):
                record |= {"variety": found.tag} if found.tag != found.code else {}
        else:
            problems.append(f"{where}: '{field}': {language_problem(record[field])}")
    if isinstance(others := record.get("answers_any"), dict):
        unknown = [language for language in others if not find_language(language)]
        problems += [f"{where}: 'answers_any': {language_problem(language)}" for language in unknown]
        record["answers_any"] = {known_code(language) or language: said for language, said in others.items()}
    return problems


def _check_extras(record: dict[str, Any], where: str) -> list[str]:
    constraint, answers = record.get("constraint"), record.get("answers")
    problems = [
        f"{where}: '{field}' must be text, found {record[field]!r:.60}"
        for field in ("reply_language", "parallel_id", "category", "modifies", "reference", "follows")
        if not isinstance(record.get(field) or "", str)
    ]
    if isinstance(constraint, dict) and constraint.get("name") == "reply_language":
        asked = constraint.get("language")
        problems += [] if find_language(asked) else [f"{where}: 'constraint': {language_problem(asked)}"]
    if constraint is not None and not (isinstance(constraint, dict) and isinstance(constraint.get("name"), str)):
        problems.append(f"{where}: 'constraint' must be an object with a name, found {constraint!r:.60}")
    if answers is not None and not (isinstance(answers, list) and all(isinstance(a, str) and a for a in answers)):
        problems.append(f"{where}: 'answers' must be a list of texts, found {answers!r:.60}")
    return problems


# e.g. [_kind(value) for value in ("a", 1, None, {})] → ["text", "int", "nothing", "dict"]
def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "empty text" if not value.strip() else "text"
    return type(value).__name__


def unique(items: Iterable[Any], key: Callable[[Any], Any]) -> list[Any]:
    """The items with distinct keys, first occurrence kept, order kept."""
    seen: set[Any] = set()
    kept = []
    for item in items:
        mark = key(item)
        if mark not in seen:
            seen.add(mark)
            kept.append(item)
    return kept


KINDS = ("human", "judge", "check")
PANEL = "panel:"
"""Before the name of several judges as one rater."""


# e.g. [kind_of(name) for name in ("judge:gpt", "human:ana", "language")] → ["judge", "human", "check"]
def kind_of(rater: str) -> str:
    """ "human", "judge" (also of a panel of judges) or "check"."""
    if rater.startswith(PANEL):
        return "judge"
    kind, colon, _ = rater.partition(":")
    return kind if colon and kind in KINDS else "check"
