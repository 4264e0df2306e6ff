"""Which responses people rate, and who rates which.

The sample is stratified by run, step and language: in every cell the same prompts are taken, those that come first in
an order drawn by seed. So runs and languages are compared on the same prompts, and a larger sample holds the smaller.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from xlift.annotation.database import ASKED_FACETS
from xlift.checkpoint import checkpoints
from xlift.errors import DataError, nearest
from xlift.rating import text_fingerprint
from xlift.rating.files import read_responses
from xlift.rating.foreign import COLUMN_NAMES, ReadingOptions
from xlift.records import any_response, fingerprint, is_halved, read_jsonl, reply_language
from xlift.workspace import StudyFolder

LEVELS: dict[str, tuple[int, ...]] = dict.fromkeys(ASKED_FACETS, (2, 1, 0))


class Task(NamedTuple):
    """What assignment needs to know of a task: its id, the languages that one must read, whether it is a control, and
    one for practice."""

    id: str
    languages: frozenset[str]
    control: bool
    practice: bool = False


_IMPORTED = ReadingOptions(command="import FILE --as results/NAME")
"""Columns are named where a file becomes a study, which people then rate."""


def study_responses(workspace: StudyFolder, split: str | None = None) -> list[dict[str, Any]]:
    """The up-to-date responses of the checkpoints that count, of one split or of all."""
    found = [response for one in checkpoints(workspace) for response in one.rateable]
    return [response for response in found if split is None or response.get("split") == split]


def file_responses(path: Path) -> list[dict[str, Any]]:
    """The responses in a file: `text` and `language`, and where present `id`, `run`, `step`, `messages`.

    Files of other programs are read as `xlift rate` reads them.

    Raises DataError with every line that cannot be used, ConfigError where nothing says what its columns are.
    """
    found, problems, seen = [], list[str](), set()
    records = read_jsonl(path) if _is_ours(path) else enumerate(read_responses(path, problems, _IMPORTED), 1)
    for number, record in records:
        where = f"{path}:{number}"
        wrong = _response_problems(record, where)
        try:
            response = any_response(record, where, number)
        except DataError as error:
            problems += wrong + error.problems
            continue
        key = (response.get("run", ""), response.get("step", 0), response["id"])
        if not wrong and key in seen:
            wrong = [f"{where}: a second response to '{response['id']}' by the same run and step"]
        seen.add(key) if not wrong else problems.extend(wrong)
        found.append(response)
    if problems:
        raise DataError(problems, f"mend {path} and run again")
    return found


def _is_ours(path: Path) -> bool:
    """Whether the first record of a file of lines has fields of ours alone: all others are then held to be ours."""
    first = next(iter(read_jsonl(path)), None) if path.suffix == ".jsonl" else (0, {"": None})
    if first is None or "text" in first[1]:
        return True
    return "language" in first[1] and first[1].keys().isdisjoint((*COLUMN_NAMES["text"], "messages"))


def read_controls(path: Path, levels: dict[str, tuple[int, ...]] = LEVELS) -> list[dict[str, Any]]:
    """Control items: responses with `expected`, per facet the value or the list of values that are right.

    With `practice: true` they come first, and `why` is told after them. `levels` are the values of each facet.

    Raises DataError with every line that cannot be used.
    """
    controls = [{**record, "run": "", "step": 0} for record in file_responses(path)]
    problems = [
        problem
        for number, record in read_jsonl(path)
        for problem in _expected_problems(record, f"{path}:{number}", levels)
    ]
    if problems:
        raise DataError(problems, 'for instance "expected": {"language": 0, "fluency": [1, 2]}')
    return controls


def _response_problems(record: dict[str, Any], where: str) -> list[str]:
    problems = []
    if not isinstance(record.get("text"), str):
        problems.append(f"{where}: 'text' must be the text of the response")
    for field in ("id", "language", "reply_language"):
        given = str(record[field]) if field == "id" and type(record.get(field)) is int else record.get(field)
        if not isinstance(given, str | None) or given == "" or (given is None and field == "language"):
            problems.append(f"{where}: '{field}' must be non-empty text")
    if not isinstance(record.get("run", ""), str):
        problems.append(f"{where}: 'run' must be text")
    if any(is_halved(named) or "\0" in named for named in (str(record.get("id")), str(record.get("run")))):
        problems.append(f"{where}: 'id' or 'run' holds NUL or half of a character, which no database takes")
    messages = record.get("messages", [])
    turns = messages if isinstance(messages, list) else [None]
    if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns):
        problems.append(f"{where}: 'messages' must be a list of objects with role and content")
    return problems


def _expected_problems(record: dict[str, Any], where: str, levels: dict[str, tuple[int, ...]]) -> list[str]:
    expected = record.get("expected")
    if not isinstance(expected, dict) or not expected:
        return [f"{where}: 'expected' must give at least one facet its value; facets: {', '.join(levels)}"]
    problems = [
        f"{where}: unknown facet '{facet}'; {nearest(facet, levels)}" for facet in expected.keys() - levels.keys()
    ]
    for facet, value in expected.items():
        values = value if isinstance(value, list) else [value]
        scale = levels.get(facet, LEVELS["fluency"])
        if not values or any(type(one) is not int or one not in scale for one in values):
            choices = ", ".join(map(str, sorted(scale)))
            problems.append(f"{where}: expected {facet} must be one of {choices} or a list of these, found {value!r}")
    if type(record.get("practice", False)) is not bool or not isinstance(record.get("why", ""), str):
        problems.append(f"{where}: 'practice' must be true or false, and 'why' text")
    return sorted(problems)


# e.g. len(blind_pairs([{"id": "a", "run": run} for run in ("x", "y", "z")], None, 0)) → 3
def blind_pairs(responses: Sequence[dict[str, Any]], total: int | None, seed: int) -> list[dict[str, Any]]:
    """Responses to the same prompt side by side, each two of them once, which stands first drawn by seed.

    A pair is the record of one, with the other under `second`; `total` takes those that come first by prompt.
    """
    prompts = defaultdict(list)
    for response in responses:
        prompts[response["id"], json.dumps(response.get("messages"))].append(response)
    found = [sorted(two, key=lambda one: _draw(seed, one)) for own in prompts.values() for two in combinations(own, 2)]
    found.sort(key=lambda two: fingerprint(seed, two[0].get("parallel_id") or two[0]["id"], _draw(seed, two[0])))
    return [{**one, "second": other} for one, other in found[:total]]


def _draw(seed: int, response: dict[str, Any]) -> str:
    return fingerprint(seed, response["id"], response.get("run", ""), response.get("step", 0))


# e.g. len(sample([{"id": name, "language": "fr"} for name in "abc"], 2, None, 0)) → 2
def sample(
    responses: Sequence[dict[str, Any]], per_cell: int | None, total: int | None, seed: int
) -> list[dict[str, Any]]:
    """`per_cell` responses of each run, step and language, or `total` spread evenly over these; all without both."""
    cells = defaultdict(list)
    for response in responses:
        cells[response.get("run", ""), response.get("step", 0), response["language"]].append(response)
    ranked = []
    for cell, members in cells.items():
        members.sort(key=lambda response: fingerprint(seed, response.get("parallel_id") or response["id"]))
        ranked += [(rank, fingerprint(seed, cell), response) for rank, response in enumerate(members)]
    if per_cell is not None:
        ranked = [one for one in ranked if one[0] < per_cell]
    ranked.sort(key=lambda one: one[:2])
    return [response for _, _, response in ranked[:total]]


def task_row(response: dict[str, Any], task: str) -> dict[str, Any]:
    """The values of `tasks` for a response, but for what is stored as JSON (`shown`, `expected`)."""
    return {
        "id": task,
        "prompt": response["id"],
        "language": response["language"],
        "reply_language": reply_language(response),
        "run": response.get("run", ""),
        "step": response.get("step", 0),
        "response": _fingerprint_of(response),
    }


def _fingerprint_of(response: dict[str, Any]) -> str:
    texts = [text_fingerprint(response)]
    if "second" in response:
        texts.append(text_fingerprint(response["second"]))
    return texts[0] if len(texts) == 1 else fingerprint(*texts)


def shown_of(response: dict[str, Any]) -> dict[str, Any]:
    """What an annotator sees of a response: the conversation and the text, of a pair both; and what to tell after a
    practice item."""
    prompt = response.get("prompt")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else []
    messages = response.get("messages") or asked
    shown: dict[str, Any] = {
        "messages": [{"role": m.get("role"), "content": m["content"]} for m in messages],
        "text": response["text"],
    }
    if other := response.get("second"):
        shown |= {"second": other["text"], "other": {"run": other.get("run", ""), "step": other.get("step", 0)}}
    if response.get("practice") and "expected" in response:
        shown |= {"practice": True, "why": response.get("why", "")}
    return shown


# e.g. assign([Task("t", frozenset({"fr"}), False)], {1: {"fr", "en"}, 2: {"ru"}}, [], 2, 0) → [(1, "t")]
# e.g. assign([Task("t", frozenset({"fr"}), False)], {1: frozenset({"fr"})}, [(1, "t")], 1, 0) → []
def assign(
    tasks: Iterable[Task],
    readers: dict[int, frozenset[str]],
    kept: Iterable[tuple[int, str]],
    per_response: int,
    seed: int,
) -> list[tuple[int, str]]:
    """New pairs (annotator, task), so that each task has `per_response` annotators who read its languages.

    `readers` are the languages of each annotator, `kept` the pairs that stay as they are. Whoever has least to do comes
    first. Controls go to everybody who reads them.
    """
    holders = defaultdict(set)
    for annotator, task in kept:
        holders[task].add(annotator)
    able = {task: [who for who, languages in readers.items() if task.languages <= languages] for task in tasks}
    load = Counter(annotator for held in holders.values() for annotator in held)
    made = []
    # Tasks that few can read come first, while those few still have little to do.
    for one in sorted(able, key=lambda task: (len(able[task]), fingerprint(seed, task.id))):
        free = [who for who in able[one] if who not in holders[one.id]]
        free.sort(key=lambda who: (load[who], fingerprint(seed, one.id, who)))
        chosen = free if one.control else free[: max(0, per_response - len(holders[one.id]))]
        load.update(chosen)
        made += [(who, one.id) for who in chosen]
    return made


# e.g. in_order(["begun"], ["trial"], 1, 0, practice={"trial"}) → ["begun", "trial"]
def in_order(
    kept: Sequence[str], new: Iterable[str], annotator: int, seed: int, practice: Container[str] = ()
) -> list[str]:
    """An annotator's tasks: those begun stay in front, then practice, the others shuffled by seed and annotator."""
    return [*kept, *sorted(new, key=lambda task: (task not in practice, fingerprint(seed, annotator, task)))]
