"""Formats of instruction data: each gives the same conversation, and no field that matters is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xlift.data.instructions import Unfit, load_source
from xlift.errors import ConfigError, DataError
from xlift.study.data import Source
from xlift.study.loading import parse_study

USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
ONE: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, REPLY]},
    "messages of OpenAI": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, REPLY | {"tool_calls": None}]
    },
    "messages as text": {"messages": json.dumps([USER, REPLY])},
    "alpaca": {"instruction": "Why?", "input": "", "output": "So.", "system": None, "history": []},
    "dolly": {"instruction": "Why?", "context": "", "response": "So."},
    "lima": {"conversations": ["Why?", "So."]},
    "a question without its reply": {"conversations": ["Why?", "So.", "And?"]},
    "ultrachat": {"id": "0", "data": ["Why?", "So."]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    "sharegpt of another hand": {"conversation": [{"role": "Human", "text": "Why?"}, {"role": "model", "text": "So."}]},
    "completion": {"prompt": "Why?", "completion": "So."},
    "completion of TRL": {"prompt": [USER], "completion": [REPLY]},
    "response": {"prompt": "Why?", "response": "So.", "label": True},
    "question": {"question": "Why?", "answer": "So.", "context": ""},
    "query": {"query": "Why?", "response": "So."},
    "pairs": {"conversation": [{"input": "Why?", "output": "So."}]},
    "no input": {"instruction": "Why?", "input": "<noinput>", "output": "So."},
    "nothing": {"instruction": "Why?", "context": "nan", "response": "So."},
    "sheet": {"Question": "Why?", "Answer": "So."},
    "aya": {"inputs": "Why?", "targets": "So.", "language": "Moroccan Arabic", "language_code": "eng"},
}
TWO: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, REPLY, USER, REPLY]},
    "alpaca": {"instruction": "Why?", "output": "So.", "history": [["Why?", "So."]]},
    "lima": {"conversations": ["Why?", "So.", "Why?", "So."]},
    "sharegpt": {
        "conversations": [{"from": who, "value": said} for who, said in [("user", "Why?"), ("bot", "So.")] * 2]
    },
}
SYSTEM: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER, REPLY]},
    "alpaca": {"instruction": "Why?", "output": "So.", "system": "Be brief."},
    "sharegpt": ONE["sharegpt"] | {"system": "Be brief."},
    "said twice": {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, USER, REPLY]},
    "orca": {"system_prompt": "Be brief.", "prompt": "Why?", "response": "So."},
}


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(folder: Path, *records: Any, unfit: Unfit | None = None, **settings: Any) -> list[Any]:
    return [
        one["messages"]
        for one in load_source(Source(path=write(folder / "d.jsonl", *records), **settings), True, unfit)
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        *((record, [USER, REPLY]) for record in ONE.values()),
        *((record, [USER, REPLY, USER, REPLY]) for record in TWO.values()),
        *((record, [{"role": "system", "content": "Be brief."}, USER, REPLY]) for record in SYSTEM.values()),
    ],
    ids=[*ONE, *TWO, *SYSTEM],
)
def test_every_format_is_told_by_its_fields_and_says_the_same(tmp_path: Path, record: Any, expected: Any) -> None:
    assert read(tmp_path, record) == [expected]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": [USER, REPLY | {"tool_calls": [{"id": "1"}]}]}, "calls of tools"),
        ({"messages": [USER, REPLY, {"role": "tool", "content": "3"}, REPLY]}, "calls of tools"),
        ({"conversations": [{"from": "observation", "value": "3"}]}, "calls of tools"),
        (ONE["messages"] | {"tools": [{"name": "f"}]}, "'tools' cannot be learned from"),
        (ONE["messages"] | {"chosen": [USER, REPLY], "rejected": [USER, REPLY]}, "preference pairs"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "preference pairs"),
        (ONE["completion"] | {"label": False}, "'label' is false"),
        (ONE["dolly"] | {"history": [["Why?", "So."]]}, "'history' cannot be used in the format dolly"),
        (ONE["question"] | {"context": "The sky."}, "'context' cannot be used beside 'question'"),
        (TWO["alpaca"] | {"history": [["Why?"]]}, "expected pairs of texts in 'history'"),
        (ONE["messages"] | {"weight": 0.5}, "'weight' of a whole record must be 1, found 0.5"),
        ({"messages": [USER, REPLY | {"weight": 0.5}]}, "messages[1]: 'weight' must be 0 or 1, found 0.5"),
        ({"messages": [USER, REPLY | {"weight": 0}]}, "no reply is learned"),
        (SYSTEM["messages"] | {"system": "Be long."}, "two system prompts"),
        (ONE["alpaca"] | {"system": ["Be brief."]}, "expected text in 'system'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, REPLY]},
            "parts that are no text (image_url)",
        ),
        ({"messages": [{"role": "robot", "content": "x"}, REPLY | {"content": None}]}, "unknown speaker 'robot'"),
        ({"messages": [USER, REPLY | {"content": float("nan")}]}, "content must be non-empty text, found float"),
        ({"instruction": "Why?", "output": "So \ud800"}, "half of a character"),
        ({"instruction": "Why?", "input": float("nan"), "output": "So."}, "expected text in 'input', found nan"),
        ({"prompt": [USER], "completion": 3}, "expected a non-empty list of turns in 'completion', found 3"),
    ],
)
def test_what_matters_and_cannot_be_used_is_refused_by_name(tmp_path: Path, record: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, ONE["messages"], record)
    assert f"d.jsonl:2: {says}" in caught.value.problems[0] or says in caught.value.problems[0]
    assert "d.jsonl:2: " in caught.value.problems[0]
    assert "--skip-unfit" in caught.value.hint


def test_unfit_records_are_left_out_where_that_is_wished_and_counted_by_reason(tmp_path: Path) -> None:
    unfit: Unfit = {}
    bad = {"messages": [USER, REPLY | {"content": ""}]}
    found = read(tmp_path, bad, ONE["messages"], ONE["alpaca"] | {"output": 3}, TWO["messages"], bad, "no", unfit=unfit)
    assert found == [[USER, REPLY], [USER, REPLY, USER, REPLY]]
    path = tmp_path / "d.jsonl"
    assert unfit == {
        "messages: content must be non-empty text": [f"{path}:1", f"{path}:5"],
        "expected non-empty text in 'output'": [f"{path}:3"],
        "expected a JSON object": [f"{path}:6"],
    }
    with pytest.raises(DataError, match=r"d\.jsonl:1"):
        read(tmp_path, bad, unfit={})


def test_of_many_records_with_one_fault_some_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, *({"a": i} for i in range(1000)), *({"messages": []} for _ in range(5)))
    *told, first, second = caught.value.problems
    path = tmp_path / "d.jsonl"
    assert [problem.split(": ")[0] for problem in told] == [f"{path}:{line}" for line in (1, 2, 3, 1001, 1002, 1003)]
    assert first == f"{path}: 997 more records: no known format"
    assert second.startswith(f"{path}: 2 more records: expected a non-empty list of turns in 'messages'")


def test_a_map_of_columns_makes_any_record_one_of_a_known_format(tmp_path: Path) -> None:
    record = {"question": "Why?", "answer": {"text": "So."}, "best": "So.", "lang": "fr", "rejected": "No."}
    columns = {"prompt": "question", "completion": "best", "language": "lang", "system": "persona"}
    (found,) = load_source(Source(path=write(tmp_path / "d.jsonl", record), columns=columns))
    assert (found["messages"], found["language"]) == ([USER, REPLY], "fr")
    about = {"question": "Why?", "answer": "So.", "context": "The sky."}
    (found,) = read(tmp_path, about, columns={"instruction": "question", "response": "answer"})
    assert found[0]["content"] == "Why?\n\nThe sky."
    (tmp_path / "d.csv").write_text("question;best\nWhy?;So.\n", encoding="utf-8")
    (found,) = load_source(Source(path=str(tmp_path / "d.csv"), columns={"prompt": "question", "completion": "best"}))
    assert found["messages"] == [USER, REPLY]
    with pytest.raises(DataError, match=r"no field 'reply' \(for completion\): found answer, best"):
        read(tmp_path, record, columns={"prompt": "question", "completion": "reply"})
    with pytest.raises(ConfigError, match="columns"):
        parse_study({"name": "s", "training": {"instructions": {"sources": [{"columns": {"question": "q"}}]}}})


TREE = {
    "message_id": "r", "role": "prompter", "text": "Why?", "lang": "pt-BR",
    "replies": [
        {"message_id": "a", "role": "assistant", "text": "No.", "rank": 1, "replies": []},
        {
            "message_id": "b", "role": "assistant", "text": "So.", "rank": 0,
            "replies": [
                {"message_id": "c", "role": "prompter", "text": "Hm?", "replies": []},
                {
                    "message_id": "d", "role": "prompter", "text": "And?",
                    "replies": [
                        {"message_id": "e", "role": "assistant", "text": "x", "rank": 0, "deleted": True},
                        {"message_id": "f", "role": "assistant", "text": "Thus.", "rank": None, "replies": []},
                    ],
                },
            ],
        },
    ],
}  # fmt: skip


def flat(node: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    row = {key: value for key, value in node.items() if key != "replies"} | {"parent_id": parent}
    return [row, *(one for reply in node.get("replies", []) for one in flat(reply, node["message_id"]))]


def test_of_a_tree_of_replies_the_best_ranked_are_taken_nested_or_flat_in_any_order(tmp_path: Path) -> None:
    rows = flat(TREE)
    expected = ["Why?", "So.", "And?", "Thus."]
    for records in ([{"message_tree_id": "r", "prompt": TREE}], rows, rows[::-1]):
        (found,) = load_source(Source(path=write(tmp_path / "d.jsonl", *records)))
        assert [message["content"] for message in found["messages"]] == expected
        assert found["language"] == "pt"
    unfit: Unfit = {}
    lost = {"message_id": "z", "parent_id": "nowhere", "role": "assistant", "text": "x"}
    silent = {"message_id": "s", "parent_id": None, "role": "prompter", "text": "Who?"}
    assert len(read(tmp_path, *rows, lost, silent, unfit=unfit)) == 1
    assert sorted(unfit) == ["its parent is not there", "nobody replied to the prompt of this tree"]


ODD = [None, True, 0, -1, 1.5, float("nan"), "", " ", "x", "\ud800", [], [None], [[1]], {}, {"a": []}, [{"role": []}]]


def changed(value: Any) -> Iterator[Any]:
    """Copies of a record with one value in it, however deep, replaced by an odd one."""
    yield from ODD
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        for other in changed(inner):
            copy = value.copy()
            copy[key] = other
            yield copy


@pytest.mark.parametrize("name", [*ONE, "tree", "flat"])
def test_no_value_of_any_field_is_more_than_a_fault_of_its_record(tmp_path: Path, name: str) -> None:
    record = {"tree": {"prompt": TREE}, "flat": {"parent_id": None, **TREE}}.get(name) or ONE[name]
    turns = {"system": "x", "language": "en", "category": "x", "weight": 1}
    records = [one for one in changed(record | turns) if isinstance(one, dict)]
    unfit: Unfit = {}
    found = read(tmp_path, ONE["messages"], *records, unfit=unfit)
    assert len(found) >= 1
    assert sum(map(len, unfit.values())) >= len(ODD)
    json.dumps(found, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("fields", "language"),
    [({"lang": "fr"}, "fr"), ({"locale": "pt_BR"}, "pt"), ({"lang": "python"}, "en"), ({"lang": "lua"}, "en")],
)
def test_a_language_under_another_name_is_read_and_that_of_a_program_is_none(
    tmp_path: Path, fields: dict[str, str], language: str
) -> None:
    path = write(tmp_path / "d.jsonl", ONE["alpaca"] | fields)
    assert [one["language"] for one in load_source(Source(path=path), True)] == [language]


def test_thoughts_that_have_a_field_of_their_own_stand_before_the_reply(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"messages": [USER, REPLY | {"reasoning_content": "Hm."}]})
    assert found[-1]["content"] == "<think>\nHm.\n</think>\n\nSo."


def test_a_reply_of_weight_0_is_context_and_not_learned(tmp_path: Path) -> None:
    for name, zero in (("weight", 0), ("train", False), ("weight", 0.0)):
        first = REPLY | {name: zero}
        (found,) = read(tmp_path, {"messages": [USER | {"weight": 1}, first, USER, REPLY | {name: 1}]})
        assert found == [USER, REPLY | {"learn": False}, USER, REPLY]
