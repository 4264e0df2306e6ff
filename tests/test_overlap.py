"""What training data, held-out conversations and prompts share is found whatever the case, blanks and Unicode form."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlift.data.instructions import load_examples
from xlift.data.overlap import Overlaps, overlaps, units
from xlift.data.prompts import builtin_sets, load_prompts
from xlift.disk import write_jsonl
from xlift.errors import DataError
from xlift.study.data import Instructions, Prompts, PromptSet, Source

ASKED = {
    "en": "Please explain to a curious child why the sky turns red in the evening, in three short sentences.",
    "ru": "Объясни любопытному ребёнку, почему вечером небо становится красным, в трёх коротких фразах, без формул.",
    "hi": "किसी जिज्ञासु बच्चे को तीन छोटे वाक्यों में समझाओ कि शाम को आसमान लाल क्यों हो जाता है और सुबह क्यों नहीं।",
    "zh": "请用三句简短的话向一个好奇的孩子解释为什么傍晚的天空会变成红色，不要使用任何公式。",
    "th": "ช่วยอธิบายให้เด็กที่อยากรู้อยากเห็นฟังว่าทำไมท้องฟ้ายามเย็นจึงเป็นสีแดง!",
    "ko": "호기심 많은 아이에게 저녁 하늘이 왜 붉게 변하는지 짧은 세 문장으로 공식 없이 아주 쉽게 설명해 주세요.",
}


def conversation(name: str, *turns: str) -> Any:
    roles = ("user", "assistant") * len(turns)
    return {"id": name, "messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]}


def prompt(text: str, split: str = "test", name: str = "p") -> Any:
    return {"id": name, "language": "en", "split": split, "messages": [{"role": "user", "content": text}]}


OTHERS = [conversation(f"o{i}", f"What is number {i}?", f"It is {i}.") for i in range(5)]
CHANGES = {
    "case": str.upper,
    "blanks": lambda text: f"\n {text.replace(' ', '  ')}\t",
    "punctuation": lambda text: f"«{text[:-1]}»!?",
    "Unicode form": lambda text: unicodedata.normalize("NFD", text),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("language", ASKED)
def test_what_is_the_same_but_for_its_form_is_found(language: str, change: str) -> None:
    text, same = ASKED[language], CHANGES[change](ASKED[language])
    train = [*OTHERS, conversation("a", text, "So."), conversation("b", same, "SO")]
    found = overlaps(train, [conversation("h", same, "Else.")], [prompt(same), prompt("Who?", name="q")])
    assert [(one.id, one.place) for one in found.repeated] == [("b", "a")]
    assert [(one.id, one.place) for one in found.heldout] == [("h", "a")]
    assert [(one.id, one.place) for one in found.prompts["test"]] == [("p", "a")]
    assert not found.parts["test"]
    with pytest.raises(DataError, match="test prompt 'p' stands in the training data at a"):
        found.refuse()


@pytest.mark.parametrize("language", ASKED)
def test_a_prompt_inside_a_longer_text_is_found_and_a_part_of_one_told_with_its_words(language: str) -> None:
    text = ASKED[language]
    inside = overlaps([conversation("a", "Hm.", f"You asked: {text} I say: no.")], [], [prompt(text)])
    assert [one.id for one in inside.prompts["test"]] == ["p"]
    part = overlaps([conversation("a", "Hm.", f"You asked: {text}")], [], [prompt(f"{text} {text[::-1]}")])
    assert not part.prompts["test"]
    (shared,) = part.parts["test"]
    assert 0 < shared.share < 1
    assert units(shared.words.strip("'"))[0] == units(text)[0]
    part.refuse()


@pytest.mark.parametrize(("first", "second"), [("3+4", "3/4"), ("1+23", "12+3"), ("5-3", "53"), ("3 < 4", "3 > 4")])
def test_other_sums_are_not_the_same_nor_are_mere_signs(first: str, second: str) -> None:
    assert not overlaps([conversation("a", "?!", "So.")], [], [prompt("…")]).prompts["test"]
    for one, other in ((first, second), (f"Сколько {first}", f"Сколько {second}")):
        found = overlaps([conversation("a", one, "So.")], [], [prompt(other)])
        assert not found.prompts["test"]
        assert overlaps([conversation("a", f"{one} 7", "So.")], [], [prompt(f"{one}  7!")]).prompts["test"]


def test_of_other_texts_nothing_is_found_and_short_prompts_count_as_whole_turns_alone() -> None:
    train = [*OTHERS, conversation("a", "Go on.", "Go on and on.", "Why?", "So.")]
    found = overlaps(train, [], [prompt(text, name=text) for text in [*ASKED.values(), "Go on and", "WHY", "..."]])
    assert [one.id for one in found.prompts["test"]] == ["WHY"]
    assert found.parts == {"validation": [], "test": []}
    assert overlaps([], [], []) == Overlaps([], [], {"validation": [], "test": []}, {"validation": [], "test": []})


@given(st.text(st.characters(max_codepoint=127)))
def test_a_text_in_ascii_has_the_units_that_it_has_beside_other_signs(text: str) -> None:
    assert [*units(text), "é"] == units(f"{text} é")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_runs_of_words_are_found_exactly_where_they_are(data: Any) -> None:
    words = st.lists(st.sampled_from("abcd"), min_size=20, max_size=40)
    asked, said = data.draw(words), data.draw(st.lists(words, min_size=1, max_size=4))
    found = overlaps([conversation("a", *(" ".join(one) for one in said))], [], [prompt(" ".join(asked))])
    runs = [asked[i : i + 13] for i in range(len(asked) - 12)]
    there = [run for run in runs if any(one[i : i + 13] == run for one in said for i in range(len(one)))]
    shared = [*found.prompts["test"], *found.parts["test"]]
    assert bool(shared) == bool(there)
    if found.parts["test"]:
        assert shared[0].share == pytest.approx(len(there) / len(runs))


def test_no_builtin_prompt_stands_in_the_builtin_instructions() -> None:
    for name in builtin_sets():
        prompts = PromptSet(source=f"builtin:{name}")
        asked = load_prompts(Prompts(languages=["en", "fr", "zh"], validation=prompts, test=prompts))
        assert not any(load_examples(Instructions(), asked).facts.values()), name


def test_what_is_told_counts_everything_and_shows_some(tmp_path: Path) -> None:
    records: list[Any] = [{"instruction": f"What is {i}?", "output": "So."} for i in range(9)]
    path = tmp_path / "d.jsonl"
    write_jsonl(
        path, [*records, *(one | {"output": "SO!"} for one in records), {"instruction": "x"}, "x", [1], {"output": 1}]
    )
    source = Source(path=str(path))
    examples = load_examples(Instructions(sources=[source], heldout=0), [prompt("what is 3", "validation")], True, True)
    assert examples.facts["left_out"] == {
        "no known format": 2,
        "expected a JSON object": 2,
    }
    assert (examples.facts["near_duplicates"], examples.facts["validation_prompts_in_training"]) == (9, 1)
    text = "\n".join(examples.lines)
    assert "records that cannot be learned from, left out: 4" in text
    assert f"2 × no known format (first: {path}:19)" in text
    assert "training conversations that say what another one says, but for case, blanks and punctuation: 9" in text
    assert "… and 6 more" in text
    assert "validation prompts that stand in the training data, but for case, blanks and punctuation: 1" in text
