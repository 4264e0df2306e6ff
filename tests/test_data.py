from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xlift.data.instructions import load_instructions, load_source, nested_subset
from xlift.data.prompts import load_prompts, read_prompt_file
from xlift.disk import JsonlWriter
from xlift.errors import DataError
from xlift.records import read_jsonl, read_records
from xlift.study.data import Instructions, Prompts, PromptSet, Source, builtin_path

GOOD: dict[str, Any] = {
    "messages": {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "So."},
    "dolly": {"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"},
    "lima": {"conversations": ["Why?", "So."], "source": "x"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
}
BAD: dict[str, Any] = {
    "messages": {"messages": [{"role": "user", "content": "Why?"}]},
    "alpaca": {"instruction": "", "output": "So."},
    "dolly": {"instruction": "Why?", "context": 3, "response": "So."},
    "lima": {"conversations": ["Why?"]},
    "sharegpt": {"conversations": [{"from": "robot", "value": "Why?"}]},
}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_format_is_recognised_and_gives_the_same_conversation(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "data.jsonl", [GOOD[name], GOOD[name]])
    (found,) = load_source(Source(path=str(path)))
    assert found["messages"] == GOOD["messages"]["messages"]
    array = tmp_path / "data.json"
    array.write_text(json.dumps([GOOD[name]]), encoding="utf-8")
    assert load_source(Source(path=str(array))) == [found | {"where": f"{array}:1"}]


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_malformed_record_is_refused_with_its_line_number(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "data.jsonl", [GOOD[name], BAD[name], GOOD[name]])
    with pytest.raises(DataError, match=r"data\.jsonl:2"):
        load_source(Source(path=str(path)))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"messages": ', "data.jsonl:1: not JSON"),
        (b'{"a": "\xff"}\n', "data.jsonl:1: not UTF-8"),
        (b"[1]\n", "expected a JSON object, found list"),
        (b'{"text": "x"}\n', "no known format: found the fields text"),
    ],
)
def test_unreadable_lines_say_where_and_what(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_source(Source(path=str(path)))
    assert says in str(caught.value)


def test_subsets_are_nested_and_do_not_depend_on_file_order(tmp_path: Path, conversations: list[Any]) -> None:
    small, large = (nested_subset(conversations, size, seed=1) for size in (3, 8))
    assert large[:3] == small
    assert nested_subset(conversations[::-1], 8, seed=1) == large
    assert nested_subset(conversations, 8, seed=2) != large
    with pytest.raises(DataError, match="99 conversations are asked for and 12 are there"):
        nested_subset(conversations, 99, seed=1)


def asked_in(language: str, count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"{language} {i}?", "output": "So.", "language": language} for i in range(count)]


def test_a_language_mix_trains_on_all_of_the_others_and_holds_out_the_same_english(tmp_path: Path) -> None:
    english = Source(path=str(write(tmp_path / "en.jsonl", asked_in("en", 30))))
    mixed = write(
        tmp_path / "mixed.jsonl", [*asked_in("fr", 20), *asked_in("ru", 20), {**GOOD["alpaca"], "language": ""}]
    )
    some = Source(path=str(mixed), language="pt", size=40)
    alone, kept_alone = load_instructions(Instructions(sources=[english], heldout=8))
    both, kept_both = load_instructions(Instructions(sources=[english, some], heldout=8))
    assert list(kept_both) == list(kept_alone)
    assert {one["language"] for one in kept_both} == {"en"}
    added = [one["language"] for one in both if one not in alone]
    assert len(added) == 40
    assert len(both) == len(alone) + 40
    assert {one["language"] for one in load_source(some)} == {"fr", "ru", "pt"}
    _, without_english = load_instructions(Instructions(sources=[some], heldout=8))
    assert len(without_english) == 8
    with pytest.raises(DataError, match="30 English conversations cannot spare 31"):
        load_instructions(Instructions(sources=[english, some], heldout=31))


def test_heldout_is_never_trained_on_and_is_the_same_for_every_size() -> None:
    small, kept_small = load_instructions(Instructions(size=10))
    large, kept_large = load_instructions(Instructions(size=40))
    assert list(kept_small) == list(kept_large)
    assert {one["id"] for one in small} <= {one["id"] for one in large}
    assert not {one["id"] for one in large} & {one["id"] for one in kept_large}


def plainly_chosen(settings: Instructions) -> tuple[list[Any], list[Any]]:
    """What `load_instructions` chooses, with all of it in lists."""
    loaded = [load_source(one) for one in settings.sources]
    every: dict[str, dict[str, str]] = {}
    for one in (one for found in loaded for one in found):
        every.setdefault(one.get("parallel_id", ""), {})[one["language"]] = one["messages"][-1]["content"]
    pool: dict[str, Any] = {}
    for source, found in zip(settings.sources, loaded, strict=True):
        for one in nested_subset(found, source.size, settings.subset_seed):
            others = {code: text for code, text in every[one.get("parallel_id", "")].items() if code != one["language"]}
            parallel = others and "parallel_id" in one
            wrong = {"wrong": others.get("en") or next(iter(others.values()))} if parallel else {}
            pool.setdefault(one["id"], {**one, **wrong})
    ranked = nested_subset([*pool.values()], None, settings.subset_seed)
    english = [one for one in ranked if one["language"] == "en"]
    heldout = (english or ranked)[: settings.heldout]
    rest = [one for one in ranked if one not in heldout]
    return nested_subset(rest, settings.size, settings.subset_seed), heldout


@pytest.mark.parametrize("seed", [0, 7])
def test_conversations_chosen_on_disk_are_those_that_lists_of_all_would_give(tmp_path: Path, seed: int) -> None:
    records = [
        {"prompt": f"{i % 17} é?", "completion": f"{code} {i % 23}", "language": code, "parallel_id": f"{i % 13}"}
        for i in range(60)
        for code in ("fr", "en", "ru")[: 1 + i % 3]
    ]
    own, other = write(tmp_path / "a.jsonl", records), write(tmp_path / "b.jsonl", [*records[30:], *asked_in("pt", 9)])
    sources = [Source(path=str(own), size=50), Source(path=str(other), languages=["pt", "ru", "fr"]), Source(size=7)]
    for one in (
        Instructions(sources=sources, heldout=5, subset_seed=seed, size=40),
        Instructions(sources=sources[1:2], heldout=5, subset_seed=seed),
    ):
        assert tuple(map(list, load_instructions(one))) == plainly_chosen(one)


def test_builtin_instructions_are_distinct_well_formed_and_varied() -> None:
    records = [record for _, record in read_jsonl(builtin_path("instructions.en.jsonl"))]
    assert len(load_source(Source())) == len(records)
    assert len({record["id"] for record in records}) == len(records)
    asked = [record["messages"][0]["content"].lower() for record in records]
    assert len(set(asked)) == len(asked)
    assert len(records) >= 500
    assert len({record["category"] for record in records}) >= 10
    lengths = sorted(len(record["messages"][-1]["content"]) for record in records)
    assert lengths[len(lengths) // 10] < 120 < 700 < lengths[-20]
    assert sum(len(record["messages"]) > 2 for record in records) >= 20
    assert not any(mark in json.dumps(record) for record in records for mark in ("<start_of", "[INST]", "<|im_"))


def test_several_sources_of_prompts_give_what_each_gives() -> None:
    sources = ["builtin:facts", "builtin:constraints"]
    both = load_prompts(Prompts(languages=["en", "fr"], test=PromptSet(source=sources, size=3)))
    alone = [load_prompts(Prompts(languages=["en", "fr"], test=PromptSet(source=one, size=3))) for one in sources]
    tested = [[prompt for prompt in prompts if prompt["split"] == "test"] for prompts in (both, *alone)]
    assert tested[0] == tested[1] + tested[2]
    assert len(tested[0]) == 12


def test_the_same_id_from_two_sources_is_refused(tmp_path: Path) -> None:
    record = {"id": "a", "language": "en", "split": "test", "messages": [{"role": "user", "content": "Why?"}]}
    paths = []
    for name, text in (("one", "Why?"), ("two", "How?")):
        paths.append(tmp_path / f"{name}.jsonl")
        record["messages"] = [{"role": "user", "content": text}]
        paths[-1].write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="id 'a' is in several sources"):
        load_prompts(Prompts(languages=["en"], test=PromptSet(source=[str(path) for path in paths])))


def test_a_request_in_both_splits_is_refused(tmp_path: Path) -> None:
    records = [
        {
            "id": f"{split}-1",
            "parallel_id": "same",
            "language": "en",
            "split": split,
            "messages": [{"role": "user", "content": "Why?"}],
        }
        for split in ("validation", "test")
    ]
    both = PromptSet(source=str(write(tmp_path / "p.jsonl", records)))
    with pytest.raises(DataError, match=r"request 'same' is in both validation and test: .*p.jsonl:1 and .*p.jsonl:2"):
        load_prompts(Prompts(languages=["en"], validation=both, test=both))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "a", "parallel_id": "q", "messages": [{"role": "user", "content": "How?"}]}, "id 'a'"),
        ({"id": "b", "parallel_id": "p", "messages": [{"role": "user", "content": "How?"}]}, "request 'p'"),
        ({"id": "p", "messages": [{"role": "user", "content": "How?"}]}, "request 'p'"),
        ({"id": "b", "parallel_id": "q"}, "what 'b' asks"),
    ],
)
def test_two_files_share_no_id_request_or_words(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    first = {"id": "a", "parallel_id": "p", "language": "en", "split": "validation"}
    first |= {"messages": [{"role": "user", "content": "Why?"}]}
    second = first | {"split": "test"} | change
    if "parallel_id" not in change:
        del second["parallel_id"]
    files = [write(tmp_path / f"{one['split']}.jsonl", [one]) for one in (first, second)]
    validation, test = (PromptSet(source=str(path)) for path in files)
    with pytest.raises(DataError) as caught:
        load_prompts(Prompts(languages=["en"], validation=validation, test=test))
    assert caught.value.problems == [f"{says} is in both validation and test: {files[0]}:1 and {files[1]}:1"]


@pytest.mark.parametrize("value", [["a"], 3, 1.5, True, {"a": 1}])
@pytest.mark.parametrize("field", ["parallel_id", "category", "modifies", "reference", "reply_language"])
def test_fields_that_must_be_text_are_refused_by_line_where_they_are_not(
    tmp_path: Path, field: str, value: object
) -> None:
    record = {"id": "a", "language": "en", "split": "test", "messages": [{"role": "user", "content": "Why?"}]}
    with pytest.raises(DataError, match=rf"p\.jsonl:1: '{field}' must be text"):
        read_prompt_file(write(tmp_path / "p.jsonl", [record | {field: value}]))


def test_prompts_of_a_table_or_a_folder_are_read_as_those_of_a_jsonl_file_are(tmp_path: Path) -> None:
    record = {"id": "a", "language": "fr", "split": "test", "messages": [{"role": "user", "content": "Why; so?"}]}
    lines = write(tmp_path / "p.jsonl", [record])
    (tmp_path / "p.csv").write_text('id;language;split;prompt\na;French;test;"Why; so?"\n', encoding="utf-8")
    assert read_prompt_file(tmp_path / "p.csv") == read_prompt_file(lines) == [record]
    (tmp_path / "both").mkdir()
    for name in ("1.jsonl", "2.jsonl"):
        write(tmp_path / "both" / name, [record])
    with pytest.raises(DataError, match=r"2\.jsonl:1: id 'a' is already at .*1\.jsonl:1"):
        read_prompt_file(tmp_path / "both")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": float("nan")}, "a number that is none"),
        ({"messages": [{"role": "user", "content": "So \ud800"}]}, "half of a character"),
        ({"category": "\ud800"}, "'category' holds half of a character"),
        ({"answers": ["yes", "\ud800"]}, "'answers' holds half of a character"),
        ({"notes": [[[[0]]]] * 3}, None),
    ],
)
def test_prompts_that_would_break_what_comes_after_are_refused(tmp_path: Path, change: Any, says: str | None) -> None:
    record = {"id": "a", "language": "fr", "split": "test", "messages": [{"role": "user", "content": "Why?"}]} | change
    path = write(tmp_path / "p.jsonl", [record])
    if says is None:
        assert read_prompt_file(path) == [record]
        return
    with pytest.raises(DataError, match=rf"p\.jsonl:1: .*{says}"):
        read_prompt_file(path)


def test_every_language_without_prompts_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_prompts(Prompts(languages=["en", "yo", "am"]))
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["yo", "am"]
    assert "there are: ar, de, en, es, fr, hi, id, it, ja, ko, nl, pt, ru, tr, zh" in caught.value.problems[0]


def test_bad_prompts_are_reported_all_together(tmp_path: Path) -> None:
    records = [{"id": "a", "language": "xx", "split": "train", "messages": []}, {"id": "a"}]
    with pytest.raises(DataError) as caught:
        read_prompt_file(write(tmp_path / "p.jsonl", records))
    text = str(caught.value)
    for part in ("p.jsonl:1", "p.jsonl:2", "'xx'", "'split'", "already on line 1", "ISO 639"):
        assert part in text


def test_a_torn_last_line_is_dropped_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonlWriter(path) as log:
        log.write({"a": 1, "text": "строка\u2028"})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "te')
    assert [r["a"] for r in read_records(path)] == [1]
    with JsonlWriter(path) as log:
        log.write({"a": 3, "lone": "\ud800"})
    assert [r["a"] for r in read_records(path)] == [1, 3]
