"""Responses that exist already become a study: `xlift import FOLDER --as results/NAME`.

Each model is a run whose responses are there, on prompts known by id and language; from there on it is a study like any
other: rated, judged, annotated, compared, reported.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from xlift.disk import write_jsonl
from xlift.errors import ConfigError, DataError, shortened
from xlift.progress import say
from xlift.rating.files import FIRST_ROWS, file_rows, open_reading, response_files
from xlift.rating.foreign import ReadingOptions, look, responses
from xlift.records import ROLES, check_prompt, response_signature
from xlift.stages import prepare
from xlift.study.loading import load_study, parse_study
from xlift.study.study import Study
from xlift.workspace import StudyFolder, locked, refuse_foreign

PROMPTS_FILE = "imported.jsonl"
"""In the study's folder: the prompts that the responses answer."""
UNTOLD = "(The request is not in the imported file.)"
OF_PROMPTS = ("reply_language", "parallel_id", "category", "constraint", "answers", "answers_any", "wrong", "reference")
OUR_FIELDS = ("model", "language", "task", "id")
"""What a pattern can say of a file; any other name in it is a factor of its model."""


class Imported(NamedTuple):
    """One response: its model, factors, prompt and text, and what else tells prompts of one id apart."""

    model: str
    factors: dict[str, Any]
    record: dict[str, Any]
    row: dict[str, Any]
    where: str


class Wanted(NamedTuple):
    """What a user says of the files."""

    pattern: str | None = None
    asked: ReadingOptions = ReadingOptions()
    factors: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()


def import_study(source: Path, target: Path, wanted: Wanted) -> StudyFolder:
    """Make a study at `target` of the responses in a file or folder; imported again, they replace those of before.

    Raises ConfigError or DataError, all problems at once, for files that cannot be read or told apart; nothing is
    written then.
    """
    refuse_foreign(target)
    found = list(_imported(source, wanted))
    names = _prompt_names(found)
    prompts, problems = _prompts(found, names)
    if problems:
        raise DataError(shortened(problems), f"xlift import --help; nothing of {target} is changed")
    target.mkdir(parents=True, exist_ok=True)
    study = _study(found, list(prompts.values()), target, wanted)
    # From the prompts to the last response: two at once would mix what each has read.
    with locked(target):
        _refuse_other(target, study)
        write_jsonl(target / PROMPTS_FILE, list(prompts.values()))
        workspace = prepare(study, target, held=True)
        for run in workspace.runs:
            assert run.config.given
            own = {name: one for one, name in zip(found, names, strict=True) if one.model == run.config.model}
            made = [_response(own.get(name), prompt, run.id) for name, prompt in prompts.items()]
            write_jsonl(run.responses(0), made)
            run.set_stage("generate", "done", responses=len(own))
    return workspace


def _imported(source: Path, wanted: Wanted) -> Iterator[Imported]:
    """Every response of every file, by what its name, its columns or its place say."""
    paths = _matching(source, wanted.pattern)
    problems: list[str] = []
    for path, told in paths:
        asked = wanted.asked._replace(language=told.get("language") or wanted.asked.language)
        reading = open_reading(path, asked, None)
        _refuse_columns(path, wanted.factors)
        for row in file_rows(path):
            try:
                if row.problem:
                    raise DataError(row.problem)
                for record in responses(row.record, reading, row.where, row.number):
                    fields = record | {name: told[name] for name in ("id", "task") if name in told}
                    model = told.get("model") or record.get("run") or path.name.split(".")[0]
                    factors = {name: _number(value) for name, value in told.items() if name not in OUR_FIELDS}
                    factors |= {name: look(row.record, name) for name in wanted.factors}
                    yield Imported(str(model), factors, fields, row.record, row.where)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(shortened(problems), "mend these rows and import again; nothing is written")


def _refuse_columns(path: Path, factors: Sequence[str]) -> None:
    first = [row.record for row in islice(file_rows(path), FIRST_ROWS) if row.problem is None]
    if lacking := [name for name in factors if first and all(look(row, name) is None for row in first)]:
        raise ConfigError(f"{path}: no column '{lacking[0]}' for --factor; columns: {', '.join(first[0])}")


# e.g. a pattern "{model}/{language}.csv" takes a/fr.csv as {"model": "a", "language": "fr"}
def _matching(source: Path, pattern: str | None) -> list[tuple[Path, dict[str, str]]]:
    """The files of responses, with what the pattern tells of each by its place in the folder."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    paths = response_files(source)
    if pattern is None:
        return [(path, {}) for path in paths]
    folder = source if source.is_dir() else source.parent
    parts = re.split(r"(\{\w+\}|\*)", pattern)
    names = [part[1:-1] for part in parts if part.startswith("{")]
    if again := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"--pattern '{pattern}': {{{again[0]}}} stands there twice")
    named = [f"(?P<{one[1:-1]}>[^/]+?)" if one.startswith("{") else re.escape(one) for one in parts]
    regex = "".join(named).replace(re.escape("*"), "[^/]*")
    found = [(path, re.fullmatch(regex, path.relative_to(folder).as_posix())) for path in paths]
    kept = [(path, match.groupdict()) for path, match in found if match]
    others = [path for path, match in found if not match]
    if not kept:
        there = ", ".join(path.relative_to(folder).as_posix() for path in others[:3])
        raise ConfigError(f"no file in {folder} is called as --pattern '{pattern}' says; there are: {there}")
    if others:
        say(f"left out, since --pattern does not fit: {', '.join(path.name for path in others[:5])}")
    return kept


# e.g. [_number(text) for text in ("7", "0.5", "true", "7b")] → [7, 0.5, True, "7b"]
def _number(text: str) -> Any:
    """A factor from a file's name: 7 and 0.5 are numbers, true and false what they say, 7b is a text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    whole = re.fullmatch(r"-?\d{1,15}", text)
    return int(text) if whole else float(text) if re.fullmatch(r"-?\d+\.\d+", text) else text


def _prompt_names(found: Sequence[Imported]) -> list[str]:
    """The id of each response's prompt, alike for all models that answer it.

    Where a model has several responses under one id, columns that tell them apart are part of it. In the files of the
    Language Confusion Benchmark, 100 ids stand for 6,586 prompts, told apart by language, task and source:
    monolingual-okapi-fr-7.
    """
    told = _telling(found)
    names = []
    for one in found:
        parts = [_value(one, name) for name in told]
        names.append("-".join([*parts, str(one.record["id"])]))
    again = Counter((one.model, name) for one, name in zip(found, names, strict=True))
    twice = [f"{model}: several responses to prompt '{name}'" for (model, name), count in again.items() if count > 1]
    if twice:
        raise DataError(shortened(twice), "which column tells them apart? --map COLUMN=id")
    return names


def _telling(found: Sequence[Imported]) -> list[str]:
    """The fewest further columns, in their order, that leave no model two responses to one prompt."""
    first = [one.row | one.record for one in found[:FIRST_ROWS]]
    columns = dict.fromkeys(name for row in first for name, value in row.items() if _short(value))
    chosen: list[str] = []

    def repeats(names: Sequence[str]) -> int:
        keys = [(one.model, one.record["id"], *(_value(one, name) for name in names)) for one in found]
        return len(keys) - len(set(keys))

    left = repeats(())
    while left:
        better = {name: repeats([*chosen, name]) for name in columns if name not in chosen}
        name = min(better, key=lambda name: better[name], default=None)
        if name is None or better[name] >= left:
            break
        chosen, left = [*chosen, name], better[name]
    return sorted(chosen, key=list(columns).index)


def _value(one: Imported, name: str) -> str:
    return str(one.record[name] if name in one.record else look(one.row, name))


# e.g. _short("a" * 41) → False
def _short(value: Any) -> bool:
    return isinstance(value, str | int) and len(str(value)) <= 40


def _prompts(found: Sequence[Imported], names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The prompts by id, and what is wrong: languages or requests that differ between models."""
    prompts: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    untold = 0
    for one, name in zip(found, names, strict=True):
        record = one.record
        asked = _asked(record)
        kept = {field: record[field] for field in OF_PROMPTS if record.get(field)}
        kept |= {"category": str(record["task"])} if record.get("task") and "category" not in kept else {}
        told = asked or [{"role": "user", "content": UNTOLD}]
        kept |= {} if asked else {"untold": True}
        prompt = {"id": name, "language": record["language"], "messages": told, "split": "test", **kept}
        if name not in prompts:
            untold += asked is None
            prompts[name] = prompt
            problems += check_prompt(prompt, one.where)
        elif differ := [key for key in ("language", "messages") if prompts[name][key] != prompt[key]]:
            problems.append(f"{one.where}: prompt '{name}' has another {' and '.join(differ)} than before")
    if untold:
        say(f"{untold} of {len(prompts)} prompts have no request in the files: raters of the answer alone still apply")
    return prompts, problems


# e.g. _asked({"prompt": "Why?"}) → [{"role": "user", "content": "Why?"}]
# e.g. _asked({"messages": [{"role": "assistant", "content": "So."}]}) → None
def _asked(record: dict[str, Any]) -> list[dict[str, str]] | None:
    """The request as messages, without the reply; None where it is not there."""
    messages = record.get("messages")
    if isinstance(messages, list) and all(isinstance(m, dict) and m.get("role") in ROLES for m in messages):
        kept = [{"role": m["role"], "content": m.get("content")} for m in messages]
        return (kept[:-1] if kept and kept[-1]["role"] == "assistant" else kept) or None
    text = record.get("prompt")
    return [{"role": "user", "content": text}] if isinstance(text, str) and text.strip() else None


def _study(found: Sequence[Imported], prompts: Sequence[dict[str, Any]], target: Path, wanted: Wanted) -> Study:
    """The study of these models and prompts."""
    factors: dict[str, dict[str, Any]] = defaultdict(dict)
    problems = []
    for one in found:
        for name, value in one.factors.items():
            before = factors[one.model].setdefault(name, value)
            if before != value:
                problems.append(f"{one.where}: {name} of {one.model} is {value!r}, and {before!r} before")
    if problems:
        raise DataError(shortened(problems), "a factor has one value for each model")
    models = [
        {"model": name, "engine": "imported", "factors": {k: v for k, v in factors[name].items() if v is not None}}
        for name in dict.fromkeys(one.model for one in found)
    ]
    languages = list(dict.fromkeys(prompt["language"] for prompt in prompts))
    raw: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", target.resolve().name).strip("-._") or "imported",
        "models": [{key: value for key, value in one.items() if value} for one in models],
        "prompts": {"languages": languages, "validation": {"source": "none"}, "test": {"source": PROMPTS_FILE}},
    }
    raw |= {"raters": list(wanted.raters)} if wanted.raters else {}
    return parse_study(raw, str(target / "study.yaml"), target)


def _refuse_other(target: Path, study: Study) -> None:
    """Raises ConfigError where the folder holds a study that was not imported: its runs are not replaced."""
    path = target / "study.yaml"
    if not path.is_file():
        return
    models = load_study(path, resolved=True).models
    if not models or any(one.by != "imported" for one in models):
        raise ConfigError(f"{target}: holds a study that was not imported", f"--as another folder than {study.name}")


def _response(one: Imported | None, prompt: dict[str, Any], run: str) -> dict[str, Any]:
    record = one.record if one else {}
    text = record.get("text")
    made: dict[str, Any] = {
        "run": run,
        "step": 0,
        "text": text if isinstance(text, str) else "",
        "finish_reason": record.get("finish_reason") or "stop",
        "prompt_tokens": 0,
        "new_tokens": 0,
        "signature": response_signature("imported", prompt["messages"], "imported"),
    }
    why = "the imported file has no reply" if one else "no response of this model has been imported"
    return prompt | made | ({} if isinstance(text, str) else {"missing": why})
