"""The prompt sets that ship with xlift: parallel, complete, in their language, and true to their own constraints."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from xlift.data.prompts import builtin_sets, load_prompts, read_prompt_file
from xlift.languages import LANGUAGES
from xlift.rating import rate
from xlift.rating.constraints import CHECKS, rate_constraint
from xlift.rating.language.rater import rate_text
from xlift.study.data import Prompts, PromptSet, builtin_path

CODES = ["en", "fr", "pt", "ru", "de", "es", "it", "nl", "tr", "ar", "hi", "zh", "ja", "ko", "id"]
UNCASED = {"ar", "hi", "zh", "ja", "ko"}
SIZES = {"open": (20, 40), "constraints": (32, 64), "facts": (20, 40)}
# Which of a pair of neighbours a short question is in cannot always be told; that is no fault of the question.
MAY_BE_UNDETERMINED = 4


def prompts(name: str, code: str) -> list[Any]:
    return read_prompt_file(builtin_path(f"prompts.{name}.{code}.jsonl"))


def keys(found: list[Any]) -> list[tuple[str, str, str]]:
    return [(p["parallel_id"], p["split"], p["category"]) for p in found]


def test_sets_and_languages_are_all_there() -> None:
    assert builtin_sets() == sorted(SIZES)
    files = {path.name for path in builtin_path("").glob("prompts.*.jsonl")}
    assert files == {f"prompts.{name}.{code}.jsonl" for name in SIZES for code in CODES}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_set_is_parallel_in_all_languages_and_its_splits_are_disjoint(name: str, code: str) -> None:
    found, english = prompts(name, code), keys(prompts(name, "en"))
    left_out = {"capitalized", "lowercase"} if name == "constraints" and code in UNCASED else set()
    assert keys(found) == [key for key in english if key[2] not in left_out]
    splits = Counter(split for _, split, _ in english)
    assert (splits["validation"], splits["test"]) == SIZES[name]
    assert all(p["language"] == code and p["id"] == f"{p['parallel_id']}.{code}" for p in found)
    assert len({p["messages"][-1]["content"] for p in found}) == len(found)
    source = PromptSet(source=f"builtin:{name}")
    assert len(load_prompts(Prompts(languages=[code], validation=source, test=source))) == len(found)


@pytest.mark.parametrize("code", CODES)
def test_prompts_and_references_are_in_their_language(code: str) -> None:
    texts = [p["messages"][-1]["content"] for name in ("open", "facts") for p in prompts(name, code)]
    texts += [p["reference"] for p in prompts("facts", code)]
    values = [(rate_text(text, code)[0], text) for text in texts]
    assert [text for value, text in values if value is not None and value < 1] == []
    assert sum(value == 1 for value, _ in values) <= 2
    assert sum(value is None for value, _ in values) <= MAY_BE_UNDETERMINED


@pytest.mark.parametrize("code", CODES)
def test_constraints_are_in_the_text_and_can_be_checked(code: str) -> None:
    found = prompts("constraints", code)
    counts = Counter(p["constraint"]["name"] for p in found)
    assert set(counts.values()) == {6}
    assert set(counts) == set(CHECKS) - {"ifeval"} - ({"capitalized", "lowercase"} if code in UNCASED else set())
    for prompt in found:
        constraint, text = prompt["constraint"], prompt["messages"][-1]["content"]
        said = [constraint[key] for key in ("word", "phrase", "marker") if key in constraint]
        assert all(words in text for words in said + constraint.get("keys", [])), prompt["id"]
        # An empty answer never counts as one that follows, and the constraint is not one that nobody can check.
        assert rate_constraint({**prompt, "text": ""})[0] == 0, prompt["id"]
        if constraint["name"] == "reply_language":
            assert prompt["reply_language"] == constraint["language"] != code
            assert constraint["language"] in LANGUAGES


def obedient(constraint: dict[str, Any], word: str) -> str:
    """A reply in one made-up word that follows a constraint."""
    many = int(constraint.get("max_words") or constraint.get("max_characters") or 3)
    least = int(constraint.get("min_words") or constraint.get("min_characters") or 3)
    count = int(constraint.get("count") or 3)
    return {
        "short": " ".join([word] * max(1, many // (2 * len(word)))),
        "long": " ".join([word] * (least + 1)),
        "items": "\n".join(f"- {word}" for _ in range(count)),
        "markdown": f"# {word}\n\n**{word}** {word}\n",
        "html": f"<!DOCTYPE html><html><body><p>{word}</p></body></html>",
        "arrow": f"--> {word}\n--> {word}",
        "capitalized": f"{word.capitalize()} {word.capitalize()}",
        "lowercase": f"{word} {word}",
        "paragraphs": "\n\n".join([f"{word} {word}."] * count),
        "sentences": " ".join([f"{word.capitalize()} {word}."] * count),
        "include": f"{word} {constraint.get('word')} {word}",
        "exclude": f"{word} {word}",
        "json": json.dumps(dict.fromkeys(constraint.get("keys", []), word), ensure_ascii=False),
        "ends_with": f"{word}. {constraint.get('phrase')}",
        "numbered": f"1. {word}\n2. {word}\n3. {word}",
    }[constraint["name"]]


@pytest.mark.parametrize("code", CODES)
def test_an_obedient_reply_follows_and_a_careless_one_does_not(code: str) -> None:
    word = {"ru": "дом", "ar": "بيت", "hi": "घर", "zh": "房子", "ja": "いえ", "ko": "집안"}.get(code, "lamo")
    for prompt in prompts("constraints", code):
        constraint = prompt["constraint"]
        if constraint["name"] == "reply_language":
            continue
        value, detail, reason = rate_constraint({**prompt, "text": obedient(constraint, word), "finish_reason": "stop"})
        assert value == 2, (prompt["id"], detail, reason)
        careless = f"{word}. {constraint['word']}!" if constraint["name"] == "exclude" else f"{word}? <b {word}"
        if constraint["name"] in {"short", "lowercase"}:
            careless = " ".join([word.upper(), *[word] * 400])
        if constraint["name"] == "sentences":
            careless = " ".join([f"{word.capitalize()} {word}."] * (constraint["count"] + 1))
        assert rate_constraint({**prompt, "text": careless, "finish_reason": "stop"})[0] != 2, prompt["id"]


@pytest.mark.parametrize("code", CODES)
def test_references_are_right_by_their_own_answers_and_not_by_others(code: str) -> None:
    found = prompts("facts", code)
    for prompt in found:
        assert rate({**prompt, "text": prompt["reference"]}, "answers")["value"] == 2, prompt["id"]
    wrong = [
        rate({**prompt, "text": other["reference"]}, "answers")["value"]
        for prompt, other in zip(found, found[1:] + found[:1], strict=True)
    ]
    assert sum(value == 2 for value in wrong) <= 1
