"""The records that stages hand to each other, and how they are read and written.

JSONL: one whole record a line, appended and flushed. A torn last line (the process was killed while writing) is
dropped when the file is opened again, so that its record is made again. Unknown fields are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from xlift.errors import ConfigError, DataError, shortened
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


class Prompt(TypedDict):
    """A user request in one language; translations of a request share `parallel_id`.

    `answers` are accepted short answers to a factual question, `answers_any` those in other languages, `wrong` known
    wrong ones, and `reference` is a full answer; `modifies` is the id of the request that this one constrains;
    `variety` is the reply language as it was given, where that says more than its code: pt-BR. A later turn of a
    conversation `follows` another prompt: the model has asked and answered that one before.
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


class Response(Prompt):
    """A model's reply to a prompt. `signature` names the prompt text and decoding that it came from.

    Of a later turn, `messages` are the whole conversation: the turns before it with the model's own replies.
    """

    run: str
    step: int
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int
    signature: str


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


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def parse_response(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    """The response in one line of anybody's file; see `any_response`."""
    where = f"{path}:{number}"
    return any_response(parse_line(raw, where), where, number)


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
    records, problems = [], list[str]()
    for number, raw in enumerate(whole.split(b"\n"), start=1):
        if raw.strip():
            try:
                records.append(as_written(parse_line(raw, f"{path}:{number}"), kind, f"{path}:{number}"))
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(shortened(problems), "xlift verify STUDY says what is damaged, and how to mend it")
    return records


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


# e.g. on_scale({"value": 7}) → {"value": None, "reason": "7 is not on the scale"}
def on_scale(rating: dict[str, Any]) -> dict[str, Any]:
    """A rating as it is; one whose value is no number from 0 to 2 as a missing one, which is counted as such."""
    value = rating.get("value")
    if value is None or (type(value) in (int, float) and 0 <= value <= SCALES.get(str(rating.get("facet")), 2.0)):
        return rating
    return rating | {"value": None, "reason": f"{value!r:.20} is not on the scale"}


def written_part(path: Path) -> dict[str, Any]:
    """How much of a file to which lines are added has been written, and the hash of that."""
    return {"bytes": path.stat().st_size, "sha256": _sha256_of(path, None)}


def is_as_written(path: Path, part: dict[str, Any]) -> bool:
    """Whether a file still begins with what had been written."""
    size = part["bytes"]
    return path.is_file() and path.stat().st_size >= size and _sha256_of(path, size) == part["sha256"]


def _sha256_of(path: Path, size: int | None) -> str:
    found, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            found.update(part)
            left -= len(part)
    return found.hexdigest()


class JsonlWriter:
    """Appends records to a JSONL file, each flushed as one whole line; opening drops a torn last line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._file = self.path.open("ab")

    def write(self, record: Any) -> None:
        self.write_encoded(encode_record(record))

    def write_encoded(self, lines: bytes) -> None:
        """Append whole lines made by `encode_record`. Raises OSError that names the file."""
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise _named(error, self.path) from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode_record(record: Any) -> bytes:
    """One line of JSONL. Lone surrogates, which UTF-8 cannot hold, are escaped."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        return line.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode("ascii") + b"\n"


def _drop_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            file.truncate(position)


@contextlib.contextmanager
def exclusive(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which is left behind, empty. Raises ConfigError(`busy`) where another process holds it."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ConfigError(busy, "wait for it") from None
    try:
        yield
    finally:
        held.release()


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a whole file under a temporary name and move it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            # Half a character, which JSON can write and UTF-8 cannot, is shown by its code.
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, path) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _named(error: OSError, path: Path) -> OSError:
    """The same error about a file that the user knows: a full disk is told without any, or of a temporary one."""
    return OSError(error.errno, error.strerror, str(path))


def sync(*paths: Path) -> None:
    """Make files, and what was moved into folders, survive a loss of power; where the system cannot, nothing."""
    for path in paths:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


_TEMPORARY = re.compile(r"\..+\.xlift-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")
_DAY_SECONDS = 86_400


def temporary_path(path: Path) -> Path:
    """A new name beside `path` for what is being written; it says which process of which machine writes."""
    return path.with_name(f".{path.name[:150]}.xlift-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path) -> list[Path]:
    """What processes that were killed had under temporary names of ours; nothing else, and of nobody alive."""
    named = [(path, _TEMPORARY.fullmatch(path.name)) for path in sorted(folder.rglob(".*.tmp"))]
    return [path for path, name in named if name and _is_left(path, name[1], int(name[2]))]


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left; see `leftovers`."""
    for path in leftovers(folder):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_left(path: Path, machine: str, process: int) -> bool:
    try:
        if time.time() - path.stat().st_mtime > _DAY_SECONDS:
            return True
        if machine != _machine() or os.name != "posix" or process == os.getpid():
            return False
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _machine() -> str:
    return fingerprint(platform.node(), length=8)


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write a whole JSONL file at once, atomically."""
    write_atomic(path, b"".join(encode_record(record) for record in records))


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


def kind_of(rater: str) -> str:
    """ "human", "judge" or "check"."""
    kind, colon, _ = rater.partition(":")
    return kind if colon and kind in KINDS else "check"
