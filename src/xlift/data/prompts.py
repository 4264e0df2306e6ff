"""Prompts in many languages: the built-in sets and files of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from xlift.data.sources import published_prompts
from xlift.data.tabular import Row, rows
from xlift.errors import DataError, nearest, shortened
from xlift.languages import get_language
from xlift.records import Message, Prompt, Split, check_prompt, fingerprint, reply_language
from xlift.study.data import NO_PROMPTS, Prompts, PromptSet, builtin_languages, builtin_path


def builtin_sets() -> list[str]:
    """Names of the prompt sets that ship with xlift."""
    return sorted({path.name.split(".")[1] for path in builtin_path("").glob("prompts.*.jsonl")})


def load_prompts(settings: Prompts, samples: int = 1) -> list[Prompt]:
    """Validation prompts, then test prompts, in the study's languages; then those asked again for `samples` replies.

    Raises DataError for malformed records, repeated ids, a language without prompts, or a request that is in both
    splits, by `parallel_id` or word by word: hyperparameters chosen on validation prompts must not have seen the test
    prompts.
    """
    validation = _load_split(settings.validation, "validation", settings.languages)
    test = _load_split(settings.test, "test", settings.languages)
    _check_apart(validation, test)
    prompts = [*validation.values(), *test.values()]
    return prompts + [_again(prompt, sample) for sample in range(2, samples + 1) for prompt in prompts]


# e.g. _again({"id": "open-001.fr", "parallel_id": "open-001"}, 2)["id"] → "open-001.fr#2"
# e.g. _again({"id": "open-001.fr", "parallel_id": "open-001"}, 2)["parallel_id"] → "open-001"
def _again(prompt: Prompt, sample: int) -> Prompt:
    """A prompt that is asked for one more reply."""
    named = {key: f"{prompt[key]}#{sample}" for key in ("id", "follows", "modifies") if key in prompt}  # type: ignore[literal-required]
    return cast(Prompt, {**prompt, "parallel_id": _request(prompt), "sample": sample, **named})


def _check_apart(validation: dict[str, Prompt], test: dict[str, Prompt]) -> None:
    first: dict[tuple[str, ...], str] = {}
    for where, prompt in validation.items():
        for _, mark in _marks(prompt):
            first.setdefault(mark, where)
    problems = []
    for where, prompt in test.items():
        found = next(((what, mark) for what, mark in _marks(prompt) if mark in first), None)
        if found:
            problems.append(f"{found[0]} is in both validation and test: {first[found[1]]} and {where}")
    if problems:
        raise DataError(shortened(problems), "validation and test must not share requests: take one of each pair out")


def _marks(prompt: Prompt) -> list[tuple[str, tuple[str, ...]]]:
    """What no prompt of the other split may share, and how it is called."""
    marks = [
        (f"id '{prompt['id']}'", ("id", prompt["id"])),
        (f"request '{_request(prompt)}'", ("request", _request(prompt))),
        (f"what '{prompt['id']}' asks", ("words", fingerprint(prompt["messages"]), reply_language(prompt))),
    ]
    # A later turn ("Shorter, please.") says little without its conversation, which is told by its first turn.
    return marks[:2] if "follows" in prompt else marks


def fact_prompts(languages: list[str]) -> dict[str, list[Prompt]]:
    """The built-in factual questions in English and in those of `languages` that have them."""
    codes = dict.fromkeys(["en", *languages])
    files = {code: builtin_path(f"prompts.facts.{code}.jsonl") for code in codes}
    return {code: read_prompt_file(path) for code, path in files.items() if path.is_file()}


def with_reminder(prompt: Prompt, system: str | None = None) -> list[Message]:
    """A prompt's messages with the demand to answer in its reply language at the end of the system prompt.

    It is said in that language, or in English of one without a built-in text.
    """
    code = reply_language(prompt)
    texts = json.loads(builtin_path("reminders.json").read_text(encoding="utf-8"))
    said = texts.get(code) or f"Answer in {get_language(code).name}."
    own = [one for one in prompt["messages"] if one["role"] == "system"]
    before = own[0]["content"] if own else system
    asked = "\n\n".join(filter(None, [before, said]))
    return [Message(role="system", content=asked), *prompt["messages"][len(own) :]]


# e.g. margin_languages(["en", "fr", "eu"]) → ["fr"]
def margin_languages(languages: list[str]) -> list[str]:
    """Languages whose margin against English can be measured with the built-in factual questions."""
    return [code for code in languages if code != "en" and builtin_path(f"prompts.facts.{code}.jsonl").is_file()]


class GrammarPair(NamedTuple):
    """Two sentences that differ as little as can be: one is right, in the other a rule of the language is broken."""

    id: str
    phenomenon: str
    good: str
    bad: str


def grammar_pairs(language: str) -> list[GrammarPair]:
    """The built-in minimal pairs of a language, as they are written by phenomenon; [] where there are none."""
    path = builtin_path(f"grammar.{language}.json")
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        GrammarPair(f"{name}-{place}", name, good, bad)
        for name, pairs in written.items()
        for place, (good, bad) in enumerate(pairs, start=1)
    ]


# e.g. _request({"id": "open-001.fr", "parallel_id": "open-001"}) → "open-001"
def _request(prompt: Prompt) -> str:
    return prompt.get("parallel_id") or prompt["id"]


def _load_split(prompt_set: PromptSet, split: Split, languages: list[str]) -> dict[str, Prompt]:
    """The prompts of one split, source by source in the order of the languages, by where they stand."""
    chosen: dict[str, Prompt] = {}
    for source in dict.fromkeys(prompt_set.sources) if prompt_set.source != NO_PROMPTS else ():
        chosen |= _load_source(source, prompt_set.size, split, languages)
    again = [name for name, count in Counter(prompt["id"] for prompt in chosen.values()).items() if count > 1]
    if again:
        raise DataError(shortened([f"id '{name}' is in several sources of prompts.{split}" for name in again]))
    return chosen


def _load_source(source: str, size: int | None, split: Split, languages: list[str]) -> dict[str, Prompt]:
    if source.startswith(("paper:", "lcb:", "ifeval:")):
        records = {f"{source}: {prompt['id']}": prompt for prompt in published_prompts(source, languages, split)}
    else:
        records = {}
        for path in _files(source, languages):
            records |= _read_prompts(path)
    there = {where: prompt for where, prompt in records.items() if prompt["split"] == split}
    built_in = builtin_languages(source.replace("builtin:", "prompts.")) if source.startswith("builtin:") else []
    have = ", ".join(built_in or sorted({prompt["language"] for prompt in there.values()})) or "none"
    chosen: dict[str, Prompt] = {}
    problems = []
    for language in languages:
        own = [(where, prompt) for where, prompt in there.items() if prompt["language"] == language]
        firsts = [prompt["id"] for _, prompt in own if "follows" not in prompt]
        if not own:
            problems.append(f"{source}: no {split} prompts in '{language}'; there are: {have}")
        elif len(firsts) < (size or 0):
            problems.append(f"{source}: {len(firsts)} {split} prompts in '{language}', asked: {size}")
        chosen |= _conversations(own, set(firsts[:size]))
    if problems:
        raise DataError(problems, f"edit prompts.languages or prompts.{split} in the study file")
    return chosen


def _conversations(prompts: list[tuple[str, Prompt]], names: set[str]) -> dict[str, Prompt]:
    """The prompts of these ids with the turns that follow them, which stand behind them; adds the ids of those."""
    chosen = {}
    for where, prompt in prompts:
        if prompt["id"] in names or prompt.get("follows") in names:
            names.add(prompt["id"])
            chosen[where] = prompt
    return chosen


def _files(source: str, languages: list[str]) -> list[Path]:
    if not source.startswith("builtin:"):
        return [Path(source)]
    name = source.removeprefix("builtin:")
    if name not in builtin_sets():
        raise DataError(f"unknown built-in prompt set '{name}'; {nearest(name, builtin_sets())}")
    files = [builtin_path(f"prompts.{name}.{language}.jsonl") for language in languages]
    return [path for path in files if path.is_file()]


def read_prompt_file(path: Path) -> list[Prompt]:
    """The prompts of a file in any format of records. Raises DataError that lists what is wrong by line number."""
    return list(_read_prompts(path).values())


def _read_prompts(path: Path) -> dict[str, Prompt]:
    problems: list[str] = []
    prompts: dict[str, Prompt] = {}
    places: dict[str, Row] = {}
    earlier: dict[str, dict[str, Any]] = {}
    for row in rows(path):
        where, record = row.where, _with_messages(row.record)
        if row.problem:
            problems.append(row.problem)
            continue
        problems += check_prompt(record, where)
        first = places.setdefault(str(record.get("id")), row)
        if first.where != where:
            there = f"on line {first.number}" if first.where == f"{path}:{first.number}" else f"at {first.where}"
            problems.append(f"{where}: id '{record.get('id')}' is already {there}")
        problems += _turn_problems(record, where, earlier)
        earlier[str(record.get("id"))] = record
        prompts[where] = cast(Prompt, record)
    if problems:
        raise DataError(shortened(problems))
    return prompts


def _with_messages(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its `prompt`, a text as tables have it, as the user's message."""
    asked = record.get("prompt")
    if "messages" in record or not isinstance(asked, str):
        return record
    kept = {key: value for key, value in record.items() if key != "prompt"}
    return kept | {"messages": [{"role": "user", "content": asked}]}


def _turn_problems(record: dict[str, Any], where: str, earlier: Mapping[str, dict[str, Any]]) -> list[str]:
    """What is wrong with a turn that follows another: that one stands before it, once, in its language and split."""
    name = record.get("follows")
    if not isinstance(name, str):
        return []
    if name not in earlier:
        return [f"{where}: follows '{name}', which no line before it has as its id"]
    problems = [
        f"{where}: '{field}' is {record.get(field)!r}, but {earlier[name].get(field)!r} in '{name}', which it follows"
        for field in ("language", "split")
        if record.get(field) != earlier[name].get(field)
    ]
    messages = record.get("messages")
    if isinstance(messages, list) and len(messages) != 1:
        problems.append(f"{where}: 'messages' of a later turn must be the user's alone, found {len(messages)}")
    return problems
