"""Conversations: the model answers each turn in turn, with its own replies before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xlift.checkpoint import checkpoints_of
from xlift.data.prompts import read_prompt_file
from xlift.errors import DataError
from xlift.planning.pending import pending
from xlift.stages import generate_stage, prepare, rate_stage
from xlift.study.loading import load_study
from xlift.workspace import StudyFolder


def turn(name: str, words: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "language": "en", "split": "test", "messages": [{"role": "user", "content": words}]} | more


TURNS = [
    turn("a1", "Why?"),
    turn("a2", "And why is that?", follows="a1"),
    turn("b1", "Why is the sky blue?"),
    turn("a3", "Shorter, please.", follows="a2", constraint={"name": "sentences", "count": 1}),
    turn("b2", "Shorter, please.", follows="b1"),
    turn("c1", "Why not?"),
    turn("v1", "Shorter, please.", split="validation"),
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def asked(tiny: Path, tmp_path: Path) -> StudyFolder:
    """A study of the untuned model alone on conversations of one, two and three turns, two at a time."""
    source = str(write(tmp_path / "turns.jsonl", TURNS))
    prompts = {"validation": {"source": source, "size": 1}, "test": {"source": source, "size": 2}}
    study = {
        "name": "turns",
        "training": {"model": str(tiny), "adaptation": {"method": "none"}},
        "prompts": {"languages": ["en"]} | prompts,
        "decoding": {"max_new_tokens": 6, "batch_size": 2},
        "validation": {"margins": False, "grammar": False},
        "raters": ["language", "constraint"],
        "device": "cpu",
        "dtype": "float32",
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    return prepare(load_study(tmp_path / "study.yaml"), tmp_path / "study")


def responses(asked: StudyFolder) -> dict[str, Any]:
    return {one["id"]: one for one in checkpoints_of(asked, asked.runs[0])[0].responses}


def test_each_turn_is_answered_with_the_models_own_replies_before_it(asked: StudyFolder) -> None:
    generate_stage(asked)
    rate_stage(asked)
    made = responses(asked)
    assert set(made) == {"v1", "a1", "a2", "a3", "b1", "b2"}, "the size counts conversations, with all their turns"
    said = [(message["role"], message["content"]) for message in made["a3"]["messages"]]
    assert said == [
        ("user", "Why?"), ("assistant", made["a1"]["text"]), ("user", "And why is that?"),
        ("assistant", made["a2"]["text"]), ("user", "Shorter, please."),
    ]  # fmt: skip
    assert made["a3"]["prompt_tokens"] > made["a2"]["prompt_tokens"] > made["a1"]["prompt_tokens"]
    ratings = checkpoints_of(asked, asked.runs[0])[0].ratings
    assert {rating["id"] for rating in ratings if rating["rater"] == "constraint"} == {"a3"}


def test_what_was_lost_is_answered_again_with_the_turns_after_it_and_nothing_else(asked: StudyFolder) -> None:
    generate_stage(asked)
    whole, path = responses(asked), asked.runs[0].responses(0)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [one for one in records if one["id"] != "a3"])
    assert "answer 1 of 6 prompts" in str(pending(asked))
    generate_stage(asked)
    again = responses(asked)
    assert again | {"a3": again["a3"] | {"seconds": whole["a3"]["seconds"]}} == whole
    changed = [one | {"text": "Because."} if one["id"] == "a1" else one for one in records]
    write(path, changed)
    left = checkpoints_of(asked, asked.runs[0])[0]
    assert [[one["id"] for one in some] for some in (left.unanswered, left.askable)] == [["a2", "a3"], ["a2"]]
    generate_stage(asked)
    assert responses(asked)["a2"]["messages"][1]["content"] == "Because."
    assert len(path.read_text().splitlines()) == len(changed) + 2


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (turn("b", "Go on.", follows="c"), "follows 'c', which no line before it"),
        (turn("b", "Go on.", follows="b"), "follows 'b', which no line before it"),
        (turn("b", "Go on.", follows="a", split="validation"), "'split' is 'validation', but 'test' in 'a'"),
        (turn("b", "Go on.", follows="a", language="fr"), "'language' is 'fr', but 'en' in 'a'"),
        (turn("b", "Go on.", follows=3), "'follows' must be text"),
    ],
)
def test_a_turn_that_follows_nothing_of_its_own_is_refused(second: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        read_prompt_file(write(tmp_path / "p.jsonl", [turn("a", "Why?"), second]))
