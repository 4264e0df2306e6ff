"""Reasoning is no part of an answer, however it is set off, for every rater and for replies of judges."""

from __future__ import annotations

import time
from typing import Any

import pytest

from xlift.judging.replies import read_preference, read_values, read_why
from xlift.rating import RATERS
from xlift.rating.language import rate_text
from xlift.rating.reasoning import blank_reasoning, without_reasoning

THOUGHT = "The user would like to know the capital. It could be Sydney, but I think that is wrong."
ANSWER = "Столица Австралии называется Канберра, это небольшой город."
FORMS = {
    "think": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    "thinking": f"<thinking>{THOUGHT}</thinking>{ANSWER}",
    "capitals": f"<THINK>{THOUGHT}</THINK>{ANSWER}",
    "attribute": f'<think effort="low">{THOUGHT}</think>{ANSWER}',
    "thought": f"<thought>{THOUGHT}</thought>{ANSWER}",
    "reasoning": f"<reasoning>{THOUGHT}</reasoning>{ANSWER}",
    "lone close": f"{THOUGHT}\n</think>\n{ANSWER}",
    "lone close of reasoning": f"{THOUGHT}</reasoning>{ANSWER}",
    "nested": f"<think>{THOUGHT}<think>Hm.</think>{THOUGHT}</think>{ANSWER}",
    "twice": f"<think>{THOUGHT}</think><think>{THOUGHT}</think>{ANSWER}",
    "after": f"{ANSWER}\n<think>{THOUGHT}</think>",
    "unclosed": f"{ANSWER}\n<think>{THOUGHT}",
    "answer tags": f"<think>{THOUGHT}</think>\n<answer>{ANSWER}</answer>",
    "brackets": f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
    "triangles": f"◁think▷{THOUGHT}◁/think▷{ANSWER}",
    "tokens": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
    "harmony": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
    "harmony to its end": f"<|start|>assistant<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
    "harmony from the prompt on": f"analysis<|message|>{THOUGHT}<|end|><|channel|>final<|message|>{ANSWER}",
    "harmony with a comment": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|channel|>commentary<|message|>{THOUGHT}"
    f"<|end|><|channel|>final<|message|>{ANSWER}",
    "harmony without its tokens": f"analysis{THOUGHT}assistantfinal{ANSWER}",
    "escaped": f"&lt;think&gt;{THOUGHT}&lt;/think&gt;{ANSWER}",
    "labels": f"**Thinking:**\n{THOUGHT}\n\n**Answer:**\n{ANSWER}",
    "headings": f"## Thought process\n{THOUGHT}\n\n## Final answer\n{ANSWER}",
    "label of reasoning": f"Reasoning: {THOUGHT}\n\nAnswer: {ANSWER}",
    "folded away": f'<details type="reasoning"><summary>Thought for a second</summary>{THOUGHT}</details>{ANSWER}',
    "own prefix": f"<mm:think>{THOUGHT}</mm:think>{ANSWER}",
    "spaces in tags": f"< think >{THOUGHT}< /think >{ANSWER}",
    "bars": f"<|thinking|>{THOUGHT}<|/thinking|>{ANSWER}",
    "unused tokens": f"<unused94>thought\n{THOUGHT}<unused95>{ANSWER}",
    "harmony in lines": f"analysis\n{THOUGHT}\nassistant\nfinal\n{ANSWER}",
}


@pytest.mark.parametrize("form", FORMS)
def test_reasoning_is_no_part_of_an_answer(form: str) -> None:
    text = FORMS[form]
    assert without_reasoning(text) == ANSWER
    record: dict[str, Any] = {"text": text, "language": "ru", "answers": ["Сидней", "Sydney"]}
    value, detail, _ = RATERS["language"].rate(record)
    assert (value, detail["line_pass"], detail["word_pass"]) == (2, True, True)
    assert detail["reasoning"] >= len(THOUGHT)
    assert detail["reasoning_language"] == "en"
    assert RATERS["language_lcb"].rate(record)[0] == 2
    assert RATERS["fluency"].rate(record)[0] == 2
    assert RATERS["answers"].rate(record)[0] == 0
    for constraint in ({"name": "exclude", "word": "Sydney"}, {"name": "sentences", "count": 1}):
        assert RATERS["constraint"].rate(record | {"constraint": constraint})[0] == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_judges_rating_counts_only_outside_its_reasoning(form: str) -> None:
    text = FORMS[form].replace(THOUGHT, '{"fluency": 0, "better": "tie", "why": "a"}')
    text = text.replace(ANSWER, '{"fluency": 2, "better": "first", "why": "b"}')
    assert read_values(text, ["fluency"]) == {"fluency": (2.0, None)}
    assert (read_preference(text), read_why(text)) == ("first", "b")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Schreibe `<think>` vor die Überlegung und `</think>` dahinter.", "de"),
        ("Analysis of the figures shows that the final result is better than the first.", "en"),
        ("Final answer: we think that the assistant was right about the weather.", "en"),
        ("Il faut que a < b et que b > c pour que la suite converge.", "fr"),
    ],
)
def test_words_about_thinking_are_part_of_an_answer(text: str, code: str) -> None:
    assert without_reasoning(text) == text
    value, detail, _ = rate_text(text, code)
    assert (value, "reasoning" in detail) == (2, False)


def test_reasoning_in_another_language_is_said_apart_and_places_stay() -> None:
    text = f"<think>Je dois répondre à la question de l'utilisateur.</think>\n{ANSWER}\nThis line is in English again."
    value, detail, _ = rate_text(text, "ru")
    assert (value, detail["reasoning_language"], detail["wrong_lines"]) == (1, "fr", [3])
    (span,) = detail["spans"]
    assert text[span["start"] : span["end"]] == "This line is in English again"
    assert "reasoning" not in rate_text(f"<think>\n\n</think>\n{ANSWER}", "ru")[1]


def test_nothing_but_reasoning_is_missing_or_follows_nothing() -> None:
    record = {"text": f"<think>{THOUGHT}", "language": "en", "constraint": {"name": "lowercase"}, "answers": ["Sydney"]}
    assert RATERS["language"].rate(record)[::2] == (None, "nothing but reasoning")
    assert RATERS["fluency"].rate(record)[0] is None
    assert RATERS["constraint"].rate(record)[0] == 0
    cut = record | {"finish_reason": "length"}
    assert RATERS["constraint"].rate(cut)[::2] == (None, "cut by the token limit within its reasoning")
    assert RATERS["answers"].rate(cut)[0] is None


@pytest.mark.parametrize(
    "text",
    [
        '{"fluency": 2, "fluency": 0}',
        '{"Fluency": 2, "fluency": 0}',
        '{"ratings": {"fluency": 1, "fluency": 2}}',
        '{"fluency": {"value": 1, "value": 2}}',
        '{"fluency": 2, "ratings": {"fluency": 1}}',
    ],
)
def test_one_facet_said_twice_and_differently_is_missing(text: str) -> None:
    value, reason = read_values(text, ["fluency"])["fluency"]
    assert value is None
    assert "disagree" in (reason or "")


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think>a</think>", "<|channel|>final<|message|>", "[THINK]", "<"]
)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    began = time.process_time()
    blank_reasoning(piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 4
