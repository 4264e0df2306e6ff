"""Formats of instruction data: what a record of each says, as messages.

messages    {"messages": [{"role", "content"}, …]}          OpenAI's, with content parts and weight, too
alpaca      {"instruction", "input"?, "output", "system"?, "history"?: [[user, assistant], …]}
dolly       {"instruction", "context"?, "response"}
lima        {"conversations": [text, text, …]}              user and assistant in turn
ultrachat   {"data": [text, text, …]}                       the same
sharegpt    {"conversations": [{"from", "value"}, …]}       with any of SPEAKERS
completion  {"prompt", "completion"}                        texts, or lists of messages as TRL has them; any of _ASKED
                                                            and _ANSWERED
aya         {"inputs", "targets", "language_code"?}
oasst       rows with message_id, parent_id, role, text, rank; or whole trees: the best-ranked replies are taken

A field that matters for training is used or refused by name; none is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from xlift.data.tabular import Row
from xlift.errors import DataError
from xlift.records import Message, check_messages

SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "ai", "bot", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
NO_FORMAT = "no known format"
_SYSTEM = ("system", "system_prompt", "system_message")
_TEXTS = {"text", "input_text", "output_text"}
"""Types of content parts that are words, as OpenAI's two interfaces call them."""
_ASKED, _ANSWERED = ("prompt", "question", "query", "input"), ("completion", "response", "answer", "output")
_THOUGHTS = ("reasoning_content", "thinking")
_LEARNED = ("weight", "train", "training")
"""What says of a turn whether it is learned: 0 or 1."""


NO_INPUT = frozenset({"", "nan", "none", "null", "n/a", "noinput", "<noinput>", "no input"})
"""What stands for no input where a table or a generator had to write something."""
_PAIRS = (
    "preference pairs ('chosen', 'rejected') cannot be learned from as such; `columns: {completion: chosen}` takes the "
    "chosen replies to `prompt`, `columns: {messages: chosen}` chosen conversations"
)


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _text(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"expected non-empty text in '{field}', found {_shown(value)}")
    return value.strip()


def _single(user: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]


def read_messages(record: dict[str, Any]) -> list[Message]:
    return _turns(record.get("messages"), "messages")


def read_sharegpt(record: dict[str, Any]) -> list[Message]:
    field = "conversations" if "conversations" in record else "conversation"
    pairs = record.get(field)
    if (
        isinstance(pairs, list)
        and pairs
        and all(isinstance(one, dict) and {"input", "output"} <= set(one) for one in pairs)
    ):
        return [message for one in pairs for message in _single(_text(one, "input"), _text(one, "output"))]
    return _until_reply(_turns(record.get(field), field))


def _turns(turns: Any, field: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"expected a non-empty list of turns in '{field}', found {_shown(turns)}")
    found: list[Message] = []
    problems: list[str] = []
    for number, turn in enumerate(turns):
        try:
            found.append(_turn(turn))
        except DataError as error:
            problems += [f"{field}[{number}]: {problem}" for problem in error.problems]
    if problems:
        raise DataError(problems)
    return found


# e.g. _until_reply([{"role": "user", "content": "Why?"}]) → []
def _until_reply(messages: list[Message]) -> list[Message]:
    """A last question without its reply cannot be learned from."""
    return messages[:-1] if messages[-1]["role"] == "user" else messages


# e.g. _turn({"from": "gpt", "value": "So.", "weight": 0}) → {"role": "assistant", "content": "So.", "learn": False}
# e.g. _turn({"role": "bot", "content": "Yes", "thinking": "Hm."})["content"] → "<think>\nHm.\n</think>\n\nYes"
def _turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"expected an object with role and content, found {_shown(turn)}")
    given = turn.get("role", turn.get("from"))
    role = SPEAKERS.get(given.casefold()) if isinstance(given, str) else None
    used = [name for name in ("tool_calls", "function_call", "tools", "audio") if turn.get(name)]
    if used or str(given) in {"tool", "function", "function_call", "observation"}:
        raise DataError(f"calls of tools and sound cannot be learned from ({', '.join(used) or given})")
    if role is None:
        raise DataError(f"unknown speaker {_shown(given)}; choices: {', '.join(SPEAKERS)}")
    content = content_text(
        next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    )
    thoughts = next((turn[name] for name in _THOUGHTS if turn.get(name)), None)
    if thoughts is not None and role == "assistant" and isinstance(thoughts, str) and "<think>" not in content:
        content = f"<think>\n{thoughts.strip()}\n</think>\n\n{content}"
    message = cast(Message, {"role": role, "content": content})
    if role == "assistant" and not _is_learned(turn):
        message["learn"] = False
    return message


# e.g. content_text([{"type": "text", "text": "See "}, {"type": "text", "text": "this."}]) → "See this."
def content_text(content: Any) -> str:
    """The words of a turn, which OpenAI also writes as a list of parts. Raises DataError for parts of other kinds."""
    if not isinstance(content, list):
        return cast(str, content)  # what is no text is told by check_messages
    kinds = {str(part.get("type")) if isinstance(part, dict) else _shown(part) for part in content}
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not content or kinds - _TEXTS or len(texts) < len(content):
        others = ", ".join(sorted(kinds - _TEXTS))
        raise DataError(f"content has parts that are no text ({others or 'empty'})")
    return "".join(texts)


def _is_learned(turn: dict[str, Any]) -> bool:
    for name in _LEARNED:
        weight = turn.get(name)
        if weight is not None and weight not in (0, 1):
            raise DataError(f"'{name}' must be 0 or 1, found {_shown(weight)}")
        if weight is not None:
            return bool(weight)
    return True


# e.g. read_alpaca({"instruction": "Why?", "input": "<noinput>", "output": "So."})[0]["content"] → "Why?"
# e.g. read_alpaca({"instruction": "Sum up.", "input": "A text.", "output": "So."})[0]["content"] → "Sum up.\n\nA text."
def read_alpaca(record: dict[str, Any]) -> list[Message]:
    return [*_history(record.get("history")), *_with_context(record, "input", "output")]


def read_dolly(record: dict[str, Any]) -> list[Message]:
    return _with_context(record, "context", "response")


def _with_context(record: dict[str, Any], context: str, reply: str) -> list[Message]:
    instruction = _text(record, "instruction")
    extra = record.get(context) or ""
    if not isinstance(extra, str):
        raise DataError(f"expected text in '{context}', found {_shown(extra)}")
    extra = "" if extra.strip().lower() in NO_INPUT else extra.strip()
    user = f"{instruction}\n\n{extra}" if extra else instruction
    return _single(user, _text(record, reply))


# e.g. _history([["Hi", "Hello."]]) → [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
def _history(history: Any) -> list[Message]:
    """Earlier turns as pairs of the user's and the assistant's."""
    pairs = history or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) and t.strip() for t in pair)
        for pair in pairs
    ):
        raise DataError(f"expected pairs of texts in 'history', found {_shown(history)}")
    return [message for user, reply in pairs for message in _single(user.strip(), reply.strip())]


def read_lima(record: dict[str, Any]) -> list[Message]:
    return _texts_in_turn(record, "conversations")


def read_ultrachat(record: dict[str, Any]) -> list[Message]:
    return _texts_in_turn(record, "data")


def _texts_in_turn(record: dict[str, Any], field: str) -> list[Message]:
    turns = record.get(field)
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(t, str) and t.strip() for t in turns):
        raise DataError(f"expected '{field}' with two or more texts, found {_shown(turns)}")
    found = [message for user, reply in zip(turns[::2], turns[1::2], strict=False) for message in _single(user, reply)]
    return [cast(Message, {**message, "content": message["content"].strip()}) for message in found]


def read_prompt_completion(record: dict[str, Any]) -> list[Message]:
    asked, reply = _first(record, _ASKED), _first(record, _ANSWERED)
    if record.get("context"):
        raise DataError(
            f"'context' cannot be used beside '{asked}'; `columns: {{instruction: {asked}}}` makes it Dolly's"
        )
    if isinstance(record.get(asked), list):
        answer = record.get(reply)
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        return [*_turns(record[asked], asked), *_turns(said, reply)]
    return _single(_text(record, asked), _text(record, reply))


# e.g. _first({"question": "Why?", "answer": "So."}, _ASKED) → "question"
def _first(record: dict[str, Any], fields: Sequence[str]) -> str:
    return next((field for field in fields if field in record), fields[0])


def read_aya(record: dict[str, Any]) -> list[Message]:
    return _single(_text(record, "inputs"), _text(record, "targets"))


def read_oasst(record: dict[str, Any]) -> list[Message]:
    """The way through a tree that takes the best-ranked reply each time, as far as somebody replied."""
    node, path = record.get("prompt"), []
    while node is not None:
        path.append(node)
        node = _best(node)
    if len(path) < 2:
        raise DataError("nobody replied to the prompt of this tree")
    return _until_reply(_turns(path, "prompt"))


# e.g. _best({"replies": [{"text": "a", "rank": 1}, {"text": "b", "rank": 0}]})["text"] → "b"
# e.g. _best({"replies": [{"text": "a", "rank": 0, "deleted": True}, {"text": "b", "rank": 1}]})["text"] → "b"
def _best(node: Any) -> dict[str, Any] | None:
    replies = node.get("replies") if isinstance(node, dict) else None
    kept = [
        one
        for one in (replies if isinstance(replies, list) else [])
        if isinstance(one, dict) and not one.get("deleted") and one.get("review_result") is not False
    ]
    # Only replies of assistants are ranked; of further questions one that was answered is taken.
    answered = [one for one in kept if SPEAKERS.get(str(one.get("role"))) != "user" or one.get("replies")]
    return min(answered, key=lambda one: one["rank"] if isinstance(one.get("rank"), int | float) else 1e9, default=None)


READERS: dict[str, Callable[[dict[str, Any]], list[Message]]] = {
    "messages": read_messages,
    "alpaca": read_alpaca,
    "dolly": read_dolly,
    "lima": read_lima,
    "ultrachat": read_ultrachat,
    "sharegpt": read_sharegpt,
    "completion": read_prompt_completion,
    "aya": read_aya,
    "oasst": read_oasst,
}


# e.g. recognise({"question": "Why?", "answer": "So."}) → "completion"
# e.g. recognise({"conversations": ["Why?", "So."]}) → "lima"
# e.g. recognise({"conversations": [{"from": "human", "value": "Why?"}]}) → "sharegpt"
def recognise(record: dict[str, Any]) -> str:
    """The format that a record's fields show. Raises DataError that names the fields found and expected."""
    told = {
        "messages": "messages" in record,
        "alpaca": {"instruction", "output"} <= set(record),
        "dolly": {"instruction", "response"} <= set(record),
        "lima": _holds(record, "conversations", str),
        "sharegpt": _holds(record, "conversations", dict) or _holds(record, "conversation", dict),
        "ultrachat": _holds(record, "data", str),
        "oasst": isinstance(record.get("prompt"), dict) or is_oasst_row(record),
        "completion": bool(set(_ASKED) & set(record) and set(_ANSWERED) & set(record)),
        "aya": {"inputs", "targets"} <= set(record),
    }
    found = next((name for name, fits in told.items() if fits), None)
    if found is None and record.get("chosen"):
        raise DataError(_PAIRS)
    if found is None:
        raise DataError(
            f"{NO_FORMAT}: found the fields {', '.join(sorted(record)) or '(none)'}; expected messages, "
            "or instruction and output (Alpaca), or instruction and response (Dolly), or conversations (LIMA, "
            "ShareGPT), or prompt and completion, or inputs and targets (Aya), or a map of `columns`"
        )
    return found


def _holds(record: dict[str, Any], field: str, kind: type) -> bool:
    turns = record.get(field)
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], kind)


# e.g. is_oasst_row({"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"}) → True
def is_oasst_row(record: dict[str, Any]) -> bool:
    return {"message_id", "role", "text"} <= set(record)


# e.g. renamed({"q": "Why?", "a": "So."}, {"prompt": "q", "completion": "a"}) → {"prompt": "Why?", "completion": "So."}
def renamed(record: dict[str, Any], columns: Mapping[Any, str]) -> dict[str, Any]:
    """The record with its fields under the names that they stand for. Raises DataError for one that is not there."""
    there = {name: record[column] for name, column in columns.items() if column in record}
    optional = {"input", "context", "system", "history", "language", "category"}
    lacking = [f"'{column}' (for {name})" for name, column in columns.items() if name not in {*there, *optional}]
    if lacking:
        raise DataError(f"no field {', '.join(lacking)}: found {', '.join(sorted(record)) or '(none)'}")
    return {name: value for name, value in record.items() if name not in columns.values()} | there


def messages_of(record: dict[str, Any], name: str, chosen: bool = False) -> list[Message]:
    """What a record of the format `name` says; `chosen`: which columns are meant has been said.

    Raises DataError for what cannot be learned from.
    """
    problems = _unusable(record, name, chosen)
    if problems:
        raise DataError(problems)
    messages = _with_system(READERS[name](record), record)
    problems = check_messages(messages, "messages", ends_with="assistant")
    if not problems and not any(m.get("learn", True) for m in messages if m["role"] == "assistant"):
        problems = ["no reply is learned: all have the weight 0"]
    if problems:
        raise DataError(problems)
    return messages


# e.g. _with_system([{"role": "user", "content": "Hi"}], {"system": "Be kind."})[0]["content"] → "Be kind."
def _with_system(messages: list[Message], record: dict[str, Any]) -> list[Message]:
    """The messages behind the record's own system prompt, where it has one."""
    system = next((record[field] for field in _SYSTEM if record.get(field)), "")
    if not isinstance(system, str):
        raise DataError(f"expected text in 'system', found {_shown(system)}")
    if not system.strip() or (messages and messages[0]["content"] == system):
        return messages
    if messages and messages[0]["role"] == "system":
        raise DataError("two system prompts: one in 'system' and another as the first turn")
    return [{"role": "system", "content": system.strip()}, *messages]


def _unusable(record: dict[str, Any], name: str, chosen: bool) -> list[str]:
    """Fields that matter for training and cannot be used."""
    problems = [
        f"'{field}' cannot be learned from: tools are not supported"
        for field in ("tools", "functions")
        if record.get(field)
    ]
    if not chosen and (record.get("chosen") or record.get("rejected")):
        problems.append(_PAIRS)
    if record.get("label") in (False, "False", "false") and name == "completion":
        problems.append("'label' is false: a reply that is not to be learned")
    if record.get("history") and name != "alpaca":
        problems.append(f"'history' cannot be used in the format {name}")
    if record.get("weight") not in (None, 1, "1"):
        problems.append(
            f"'weight' of a whole record must be 1, found {_shown(record['weight'])}; turns may have weight 0"
        )
    return problems


def oasst_trees(rows: Iterable[Row]) -> Iterator[Row]:
    """The trees that rows with `message_id` and `parent_id` make, each where its prompt stands; rows that make none."""
    nodes: dict[str, Row] = {}
    children: dict[str, list[dict[str, Any]]] = {}
    roots: list[Row] = []
    for row in rows:
        if row.problem or not is_oasst_row(row.record):
            yield row if row.problem else row._replace(problem=f"{row.where}: no message_id, role and text", record={})
            continue
        node, parent = row.record, row.record.get("parent_id")
        nodes[str(node["message_id"])] = row
        children.setdefault(str(node["message_id"]), [])
        if parent in (None, ""):
            roots.append(row)
        else:
            children.setdefault(str(parent), []).append(node)
    for identity, row in nodes.items():
        row.record["replies"] = children[identity]
    for parent, lost in children.items():
        for node in lost if parent not in nodes else []:
            row = nodes[str(node["message_id"])]
            yield Row(row.where, row.number, {}, f"{row.where}: its parent is not there")
    yield from (row._replace(record={"prompt": row.record}) for row in roots)


# e.g. reason_of("messages[3]: unknown speaker 'x'") → "messages: unknown speaker 'x'"
# e.g. reason_of("messages[0]: expected text, found 3") → "messages: expected text"
def reason_of(problem: str) -> str:
    """A problem of a record without what is its own, so that records with the same can be counted.

    "messages[3]: content must be non-empty text, found nothing" is "messages: content must be non-empty text".
    """
    return re.sub(r"^(\w+)\[\d+\]", r"\1", re.split(r"[,:;] found |: not JSON: ", problem)[0])
