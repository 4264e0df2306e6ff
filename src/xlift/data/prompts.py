"""Prompts in many languages: the built-in sets and files of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from xlift.data.sources import published_prompts
from xlift.errors import DataError, nearest
from xlift.languages import base_code
from xlift.records import Prompt, Split, check_prompt, read_jsonl
from xlift.study.settings import Prompts, PromptSet, builtin_path

MAX_PROBLEMS = 20


def builtin_sets() -> list[str]:
    """Names of the prompt sets that ship with xlift."""
    return sorted({path.name.split(".")[1] for path in builtin_path("").glob("prompts.*.jsonl")})


def load_prompts(settings: Prompts) -> list[Prompt]:
    """Validation prompts, then test prompts, in the study's languages.

    Raises DataError for malformed records, repeated ids, a language without prompts, or a request (`parallel_id`) that
    is in both splits: hyperparameters chosen on validation prompts must not have seen the test prompts.
    """
    validation = _load_split(settings.validation, "validation", settings.languages)
    test = _load_split(settings.test, "test", settings.languages)
    shared = {_request(prompt) for prompt in validation} & {_request(prompt) for prompt in test}
    if shared:
        raise DataError(f"requests in both validation and test: {', '.join(sorted(shared)[:5])}")
    return validation + test


def fact_prompts(languages: list[str]) -> dict[str, list[Prompt]]:
    """The built-in factual questions in English and in those of `languages` that have them."""
    codes = dict.fromkeys(["en", *languages])
    files = {code: builtin_path(f"prompts.facts.{code}.jsonl") for code in codes}
    return {code: read_prompt_file(path) for code, path in files.items() if path.is_file()}


def margin_languages(languages: list[str]) -> list[str]:
    """Languages whose margin against English can be measured with the built-in factual questions."""
    return [code for code in languages if code != "en" and builtin_path(f"prompts.facts.{code}.jsonl").is_file()]


def _request(prompt: Prompt) -> str:
    return prompt.get("parallel_id") or prompt["id"]


def _load_split(prompt_set: PromptSet, split: Split, languages: list[str]) -> list[Prompt]:
    if prompt_set.source.startswith(("paper:", "lcb:")):
        records = published_prompts(prompt_set.source, languages, split)
    else:
        records = [prompt for path in _files(prompt_set, languages) for prompt in read_prompt_file(path)]
    chosen: list[Prompt] = []
    for language in languages:
        own = [p for p in records if p["split"] == split and base_code(p["language"]) == language]
        if not own:
            have = sorted({base_code(p["language"]) for p in records if p["split"] == split})
            raise DataError(f"{prompt_set.source}: no {split} prompts in '{language}'; there are: {', '.join(have)}")
        if prompt_set.size is not None and len(own) < prompt_set.size:
            raise DataError(
                f"{prompt_set.source}: {len(own)} {split} prompts in '{language}', asked: {prompt_set.size}"
            )
        chosen += own[: prompt_set.size]
    return chosen


def _files(prompt_set: PromptSet, languages: list[str]) -> list[Path]:
    if not prompt_set.source.startswith("builtin:"):
        return [Path(prompt_set.source)]
    name = prompt_set.source.removeprefix("builtin:")
    if name not in builtin_sets():
        raise DataError(f"unknown built-in prompt set '{name}'; {nearest(name, builtin_sets())}")
    files = [builtin_path(f"prompts.{name}.{language}.jsonl") for language in languages]
    return [path for path in files if path.is_file()]


def read_prompt_file(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file. Raises DataError that lists what is wrong by line number."""
    problems: list[str] = []
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    for number, record in read_jsonl(path):
        found = check_prompt(record, f"{path}:{number}")
        first = lines.setdefault(str(record.get("id")), number)
        if first != number:
            found.append(f"{path}:{number}: id '{record.get('id')}' is already on line {first}")
        problems += found
        prompts.append(cast(Prompt, record))
    if problems:
        more = [f"… and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise DataError([*problems[:MAX_PROBLEMS], *more])
    return prompts
