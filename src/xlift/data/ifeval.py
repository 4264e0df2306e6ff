"""IFEval and the sets made after it, read as they come: nothing of them ships with xlift.

ifeval:PATH    a file that tabular.py reads (JSON Lines, JSON, CSV, Parquet), or a folder of them, of records with
               key, prompt, instruction_id_list, kwargs                     IFEval, M-IFEval, Marco-Bench-MIF
               key, turn_1_prompt, turn_1_instruction_id_list, turn_1_kwargs, turn_2_prompt, …         Multi-IF

What is JSON within text, as in Multi-IF, is read. The language is the record's `language`, `lang` or `locale`; else
what its instruction ids begin with (fr:keywords:existence); else what the file's name says (fr_input_data.jsonl);
else English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from xlift.data.tabular import files, rows
from xlift.errors import DataError, shortened
from xlift.languages import find_language, known_code, language_problem
from xlift.records import Prompt, Split

_PREFIX = re.compile(r"([a-z]{2,3}):(?=\w+:)")
_WANTED = "ifeval:PATH wants records with key, prompt, instruction_id_list and kwargs, or those of Multi-IF"


def ifeval_prompts(path: Path, languages: Iterable[str], split: Split) -> list[Prompt]:
    """The prompts in these languages, each with its instructions as one constraint.

    Later turns follow the turn before. Raises DataError that lists what is wrong by file and record.
    """
    wanted, problems = set(languages), []
    found: dict[str, tuple[str, Prompt]] = {}
    for where, name, record in _records(path):
        try:
            language = _language(record, name, where)
            prompts = _prompts(record, language, split, where) if language in wanted else []
        except DataError as error:
            problems += error.problems
            continue
        for prompt in prompts:
            first, _ = found.setdefault(prompt["id"], (where, prompt))
            if first != where:
                problems.append(f"{where}: prompt '{prompt['id']}' is already in {first}")
    if problems:
        raise DataError(shortened(problems), _WANTED)
    return [prompt for _, prompt in found.values()]


def _records(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where every record stands, the name of its file, and the record; of a folder, of files that hold instructions.

    Folders also hold responses, scores and files that were not fetched.
    """
    there = files(path)
    holding = [file for file in there if _holds_instructions(file)] if path.is_dir() else there
    if not holding:
        raise DataError(f"{path}: none of {len(there)} files holds instructions", _WANTED)
    for file in holding:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for row in rows(file):
            if row.problem:
                raise DataError(f"{row.where}: {row.problem}", _WANTED)
            yield row.where, name, row.record


def _holds_instructions(file: Path) -> bool:
    return any(_turns(row.record) for row in islice(rows(file), 1))


def _language(record: Mapping[str, Any], name: str, where: str) -> str:
    said = next((record[field] for field in ("language", "lang", "locale") if record.get(field)), None)
    if said is not None:
        if known := find_language(said):
            return known.code
        raise DataError(f"{where}: {language_problem(said)}")
    if prefix := _PREFIX.match(str(record.get("instruction_id_list")).lstrip("['\"")):
        return known_code(prefix[1])
    # The last small code of two letters in the file's name: "ruIFEval_v1.jsonl", "zh_CN.json", "ar/test.parquet".
    named = re.findall(r"(?<![A-Za-z])[a-z]{2}(?![a-z])", name.split(".")[0])
    return next((tag for tag in reversed(named) if known_code(tag) == tag), "en")


def _turns(record: Mapping[str, Any]) -> list[tuple[Any, Any, Any]]:
    """The prompt, instruction ids and kwargs of every turn; [] for a record of another kind."""
    if "instruction_id_list" in record and "kwargs" in record:
        return [(record.get("prompt"), record["instruction_id_list"], record["kwargs"])]
    fields = ("prompt", "instruction_id_list", "kwargs")
    numbered = [tuple(record.get(f"turn_{number}_{field}") for field in fields) for number in range(1, 10)]
    return [(prompt, ids, kwargs) for prompt, ids, kwargs in numbered if prompt not in (None, "", "None") and ids]


def _prompts(record: Mapping[str, Any], language: str, split: Split, where: str) -> list[Prompt]:
    turns = _turns(record)
    key = str(record.get("key", "")).strip().removesuffix(f":{language}")
    if not turns or not key:
        raise DataError(f"{where}: no {'instruction_id_list with kwargs' if key else 'key'}")
    prompts: list[Prompt] = []
    for number, (asked, ids, kwargs) in enumerate(turns, start=1):
        words = _words(asked, where)
        fields = _asked_fields(words, ids, kwargs, where)
        instructions = fields["constraint"]["instructions"]
        # The keys of M-IFEval name other requests in each language.
        request = f"ifeval-{key}" if not _PREFIX.match(instructions[0]["id"]) else f"ifeval-{key}.{language}"
        turn = f".{number}" if len(turns) > 1 else ""
        prompt: Prompt = {
            "id": f"ifeval-{key}.{language}{turn}",
            "parallel_id": request + turn,
            "language": language,
            "split": split,
            "category": f"ifeval turn {number}" if turn else "ifeval",
            "messages": [{"role": "user", "content": words}],
            "constraint": fields["constraint"],
        }
        if fields.get("reply_language", language) != language:
            prompt["reply_language"] = fields["reply_language"]
        if prompts:
            prompt["follows"] = prompts[-1]["id"]
        prompts.append(prompt)
    return prompts


def instruction_fields(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a response to IFEval lets raters know: `constraint`, and `reply_language` where it is asked for; else {}.

    Raises DataError that begins with `where` for ids and kwargs that do not belong together.
    """
    if "instruction_id_list" not in record or "kwargs" not in record:
        return {}
    return _asked_fields(str(record.get("prompt") or ""), record["instruction_id_list"], record["kwargs"], where)


def _asked_fields(words: str, ids: Any, kwargs: Any, where: str) -> dict[str, Any]:
    instructions = _instructions(ids, kwargs, where)
    for one in instructions:
        if one["id"].endswith(":constrained_response") and "options" not in one:
            one |= {"options": offered} if (offered := _offered(words)) else {}
    asked = [known_code(one.get("language")) for one in instructions if one["id"].endswith("response_language")]
    fields = {"constraint": {"name": "ifeval", "instructions": instructions}}
    return fields | ({"reply_language": asked[0]} if asked and asked[0] else {})


def _words(asked: Any, where: str) -> str:
    """The text of a turn, which Multi-IF writes as the JSON of a message."""
    message = _parsed(asked)
    words = message.get("content") if isinstance(message, dict) else asked
    if not isinstance(words, str) or not words.strip():
        raise DataError(f"{where}: the prompt has no text")
    return words


def _instructions(ids: Any, kwargs: Any, where: str) -> list[dict[str, Any]]:
    """Each instruction's id with its parameters; those that are null are left out."""
    ids, kwargs = _parsed(ids), _parsed(kwargs)
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise DataError(f"{where}: 'instruction_id_list' must be a list of ids, found {ids!r:.60}")
    given = [_parsed(one) or {} for one in kwargs] if isinstance(kwargs, list) else []
    if len(given) != len(ids) or not all(isinstance(one, dict) for one in given):
        raise DataError(f"{where}: 'kwargs' must be {len(ids)} objects, as many as instructions, found {kwargs!r:.60}")
    return [
        {"id": name} | {key: _whole(value) for key, value in one.items() if value is not None}
        for name, one in zip(ids, given, strict=True)
    ]


# e.g. _parsed('["a", null]') → ["a", None]
# e.g. _parsed("[not JSON") → "[not JSON"
def _parsed(value: Any) -> Any:
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


# e.g. [_whole(value) for value in (3.0, 0.5, "a")] → [3, 0.5, "a"]
def _whole(value: Any) -> Any:
    """Whole numbers as such: tables may hold them as 3.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_QUOTED = re.compile(
    r"(?<![A-Za-zÀ-ÿ])[\"'“”‘«»„「『]\s?(\w[^\"'“”‘’«»„「」『』\n]{0,60}?)\s?[\"'“”’«»」』](?![A-Za-zÀ-ÿ])"
)


# e.g. _offered("Answer with one of: ('Yes.', 'No.').") → ["Yes.", "No."]
# e.g. _offered("「はい。」か「いいえ。」で答えて。") → ["はい。", "いいえ。"]
def _offered(words: str) -> list[str]:
    """The longest row of quoted phrases with hardly anything between them; [] where there are not two."""
    rows: list[list[re.Match[str]]] = []
    for found in _QUOTED.finditer(words):
        if rows and found.start() - rows[-1][-1].end() <= 8:
            rows[-1].append(found)
        else:
            rows.append([found])
    longest = max(rows, key=len, default=[])
    return [found[1].strip() for found in longest] if len(longest) > 1 else []
