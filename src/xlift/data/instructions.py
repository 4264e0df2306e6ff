"""Instruction data: read the formats people have, drop duplicates, take nested subsets, keep some out of training.

messages   {"messages": [{"role", "content"}, …]}
alpaca     {"instruction", "input"?, "output"}
dolly      {"instruction", "context"?, "response"}
lima       {"conversations": [text, text, …]}              user and assistant in turn
sharegpt   {"conversations": [{"from", "value"}, …]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from xlift.errors import MAX_PROBLEMS, DataError
from xlift.hub import file_sha256, hub_snapshot
from xlift.languages import language_code
from xlift.records import Conversation, Message, check_messages, fingerprint, read_jsonl, unique
from xlift.study.settings import BUILTIN, Instructions, Source, builtin_path

Reader = Callable[[dict[str, Any], str], list[Message]]

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected non-empty text in '{field}', found {_shown(value)}")
    return value.strip()


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _turn(role: str, content: str) -> Message:
    return cast(Message, {"role": role, "content": content})


def _single(user: str, reply: str) -> list[Message]:
    return [_turn("user", user), _turn("assistant", reply)]


def read_messages(record: dict[str, Any], where: str) -> list[Message]:
    problems = check_messages(record.get("messages"), f"{where}: messages", ends_with="assistant")
    if problems:
        raise DataError(problems)
    return [_turn(message["role"], message["content"]) for message in record["messages"]]


def read_alpaca(record: dict[str, Any], where: str) -> list[Message]:
    return _with_context(record, "input", "output", where)


def read_dolly(record: dict[str, Any], where: str) -> list[Message]:
    return _with_context(record, "context", "response", where)


def _with_context(record: dict[str, Any], context: str, reply: str, where: str) -> list[Message]:
    instruction = _text(record, "instruction", where)
    extra = record.get(context) or ""
    if not isinstance(extra, str):
        raise DataError(f"{where}: expected text in '{context}', found {_shown(extra)}")
    user = f"{instruction}\n\n{extra.strip()}" if extra.strip() else instruction
    return _single(user, _text(record, reply, where))


def read_lima(record: dict[str, Any], where: str) -> list[Message]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(t, str) and t.strip() for t in turns):
        raise DataError(f"{where}: expected 'conversations' with two or more texts, found {_shown(turns)}")
    # A last question without its reply cannot be learned from.
    turns = turns[: len(turns) // 2 * 2]
    return [_turn("assistant" if i % 2 else "user", text.strip()) for i, text in enumerate(turns)]


def read_sharegpt(record: dict[str, Any], where: str) -> list[Message]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{where}: expected 'conversations' with {{from, value}} objects, found {_shown(turns)}")
    unknown = sorted({str(turn.get("from")) for turn in turns} - set(_SPEAKERS))
    if unknown:
        raise DataError(f"{where}: unknown speaker {', '.join(unknown)}; choices: {', '.join(_SPEAKERS)}")
    messages = [{"role": _SPEAKERS[turn["from"]], "content": turn.get("value")} for turn in turns]
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    return read_messages({"messages": messages}, where)


READERS: dict[str, Reader] = {
    "messages": read_messages,
    "alpaca": read_alpaca,
    "dolly": read_dolly,
    "lima": read_lima,
    "sharegpt": read_sharegpt,
}


def recognise(record: dict[str, Any], where: str) -> str:
    """The format that a record's fields show. Raises DataError that names the fields found and expected."""
    if "messages" in record:
        return "messages"
    if "instruction" in record and "output" in record:
        return "alpaca"
    if "instruction" in record and "response" in record:
        return "dolly"
    turns = record.get("conversations")
    if isinstance(turns, list) and turns:
        return "lima" if isinstance(turns[0], str) else "sharegpt"
    raise DataError(
        f"{where}: no known format: found the fields {', '.join(sorted(record)) or '(none)'}; expected messages, "
        "or instruction and output (Alpaca), or instruction and response (Dolly), or conversations (LIMA, ShareGPT)"
    )


def load_source(source: Source, offline: bool = False) -> list[Conversation]:
    """All conversations of one source, duplicates dropped.

    Raises DataError that lists the malformed records by line number (at most MAX_PROBLEMS of them).
    """
    problems: list[str] = []
    found: list[Conversation] = []
    for where, record in _raw_records(source, offline):
        try:
            found.append(_conversation(record, source, where))
        except DataError as error:
            problems += error.problems
            if len(problems) >= MAX_PROBLEMS:
                break
    if problems:
        raise DataError(problems[:MAX_PROBLEMS], f"mend or remove these records of {source.path}")
    if source.categories is not None:
        found = [one for one in found if one.get("category") in source.categories]
    if not found:
        raise DataError(f"{source.path}: no conversations" + (" of these categories" if source.categories else ""))
    return unique(found, key=lambda one: one["id"])


def _conversation(record: dict[str, Any], source: Source, where: str) -> Conversation:
    name = source.format if source.format != "auto" else recognise(record, where)
    messages = READERS[name](record, where)
    language = _language(record.get("language"), source, where)
    # The id is the content, so that a repeated conversation is one and subsets do not hang on line numbers.
    kept: dict[str, Any] = {"id": fingerprint(messages), "messages": messages, "language": language}
    if isinstance(record.get("category"), str):
        kept["category"] = record["category"]
    return cast(Conversation, kept)


def _language(given: Any, source: Source, where: str) -> str:
    """The record's own language where it names one, else the source's."""
    try:
        return source.language if given in (None, "") else language_code(given)
    except DataError as error:
        raise DataError(f"{where}: 'language': {error}") from None


def _raw_records(source: Source, offline: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if source.path.startswith("hub:"):
        return _hub_records(source, offline)
    path = builtin_path("instructions.en.jsonl") if source.path == BUILTIN else Path(source.path)
    if source.sha256 and path.is_file() and file_sha256(path) != source.sha256:
        hint = "put the old file back, or give the study's own file again: with other data it has other runs"
        raise DataError(f"{path}: no longer the data that this study was made with", hint)
    return _json_array(path) if path.suffix == ".json" else _lines(path)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in read_jsonl(path):
        yield f"{path}:{number}", record


def _json_array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path}: expected a JSON array of objects (or one object a line in a .jsonl file)")
    for number, record in enumerate(records, start=1):
        yield f"{path}: record {number}", record


def _hub_records(source: Source, offline: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    name = source.path.removeprefix("hub:")
    # Read from the files of one commit: by name, datasets takes any cached revision when the hub is out of reach.
    folder = hub_snapshot(name, source.revision, offline, "dataset")
    try:
        rows: Iterable[Any] = load_dataset(str(folder), split=source.split)
    except Exception as error:  # datasets raises many kinds for files or splits that it cannot read
        raise DataError(f"hub dataset '{name}' (split {source.split}) cannot be read: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{source.path} row {number}", dict(row)


def nested_subset(conversations: Sequence[Conversation], size: int | None, seed: int) -> list[Conversation]:
    """`size` conversations in an order fixed by `seed` and content, so that a smaller subset lies in a larger one.

    Raises DataError if there are fewer.
    """
    ranked = sorted(conversations, key=lambda one: fingerprint(seed, one["id"], length=32))
    if size is not None and size > len(ranked):
        raise DataError(f"{size} conversations are asked for and {len(ranked)} are there", "lower instructions.size")
    return ranked[:size]


def load_instructions(settings: Instructions, offline: bool = False) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out conversations.

    The held-out ones are English where there is English, so that their loss is what English alone can tell; they are
    the same for every subset size and whatever other languages are mixed in. Raises DataError for too few.
    """
    pool: list[Conversation] = []
    for source in settings.sources:
        pool += nested_subset(load_source(source, offline), source.size, settings.subset_seed)
    ranked = nested_subset(unique(pool, key=lambda one: one["id"]), None, settings.subset_seed)
    english = [one for one in ranked if one["language"] == "en"]
    heldout = (english or ranked)[: settings.heldout]
    out = {one["id"] for one in heldout}
    rest = [one for one in ranked if one["id"] not in out]
    if len(heldout) < settings.heldout or not rest:
        what = f"{len(english)} English conversations" if english else f"{len(ranked)} conversations"
        problem = f"{what} cannot spare {settings.heldout} held-out ones"
        raise DataError(problem, "lower instructions.heldout, or add conversations")
    return nested_subset(rest, settings.size, settings.subset_seed), heldout
