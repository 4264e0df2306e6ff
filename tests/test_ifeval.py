"""IFEval's instructions: followed or not, in any script; and the sets of prompts that ask for them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import xlift
from xlift.data.ifeval import ifeval_prompts
from xlift.data.prompts import load_prompts
from xlift.errors import DataError
from xlift.rating.constraints import rate_constraint
from xlift.rating.files import Job, rate_files
from xlift.rating.foreign import ReadingOptions
from xlift.rating.ifeval import rate_instructions
from xlift.rating.ifeval_checks import INSTRUCTION_CHECKS
from xlift.rating.ifeval_counts import COUNTS
from xlift.records import read_jsonl
from xlift.report.numbers import instruction_rows
from xlift.report.reading import material_of
from xlift.stages import generate_stage, prepare, rate_stage
from xlift.study.data import Prompts, PromptSet
from xlift.study.loading import load_study

Told = bool | None


def told(name: str, text: str, language: str = "en", given: Any = None, cut: bool = False) -> tuple[Told, Told]:
    """Followed strictly, and loosely."""
    value, detail, reason = rate_instructions(text, language, cut, [{"id": name} | (given or {})])
    (one,) = detail["instructions"]
    assert (one["strict"] is None) == (value is None) == bool(reason) == ("why" in one)
    assert value == {True: 2, False: 0, None: None}[one["strict"]]
    return one["strict"], one["loose"]


ONE, TWO = {"num_paragraphs": 1}, {"num_paragraphs": 2}
POEM = "the sea is calm tonight and the moon lies fair upon the quiet water of the bay."
# Instruction, language, parameters, a reply that follows it, one that does not.
CASES: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("keywords:existence", "en", {"keywords": ["harbour", "gull"]},
     "A gull flew over the harbour.", "A gullible man."),
    ("keywords:existence", "ja", {"keywords": ["創造性"]}, "豊かな創造性が必要です。", "想像力が必要です。"),
    ("keywords:existence", "ar", {"keywords": ["كتاب"]}, "قرأت الكتاب أمس.", "قرأت الجريدة أمس."),
    ("keywords:frequency", "en", {"keyword": "rain", "frequency": 2, "relation": "at least"},
     "Rain, rain.", "Rainbow, rain."),
    ("keywords:frequency", "es", {"keyword": "sol", "frequency": 1, "relation": "como máximo"},
     "El sol.", "Sol y sol."),
    ("keywords:forbidden_words", "fr", {"forbidden_words": ["mer"]}, "Le merle chante.", "La mer chante."),
    ("keywords:forbidden_words", "zh", {"forbidden_words": ["健康"]}, "今天天气很好。", "吃得健康。"),
    ("keywords:letter_frequency", "en", {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
     "#a #b", "#a b"),
    ("keywords:letter_frequency", "ja", {"letter": "か", "let_frequency": 2, "let_relation": "未満"},
     "かめ", "かめとカモ"),
    ("language:response_language", "en", {"language": "ru"},
     "Сегодня очень хорошая погода.", "The weather is very fine."),
    ("language:response_language", "fr", {"language": "ml"},
     "ഇന്ന് കാലാവസ്ഥ വളരെ നല്ലതാണ്, എല്ലാവരും പുറത്തിറങ്ങി.", "Il fait très beau aujourd'hui, tout le monde est dehors."),
    ("length_constraints:number_sentences", "hi", {"num_sentences": 2, "relation": "at least"},
     "आज धूप है। हम चलें।", "आज धूप है।"),
    ("length_constraints:number_sentences", "fr", {"num_sentences": 2, "relation": "moins de"},
     "Voici M. Roy.", "Oui. Non."),
    ("length_constraints:number_paragraphs", "en", {"num_paragraphs": 2}, "One.\n***\nTwo.", "***One.***\n\nTwo."),
    ("length_constraints:number_words", "en", {"num_words": 3, "relation": "at least"}, "One two three.", "One two."),
    ("length_constraints:number_words", "zh", {"num_words": 5, "relation": "less than"}, "今天好。", "今天天气很好。"),
    ("length_constraints:number_words", "th", {"num_words": 50, "relation": "less than"},
     "วันนี้อากาศดี", "วันนี้อากาศดีมาก" * 60),
    ("length_constraints:number_letters", "ja", {"num_letters": 6, "relation": "以上"}, "今日は晴れ。", "晴れ。"),
    ("length_constraints:nth_paragraph_first_word", "en", {"first_word": "Later", "nth_paragraph": 2} | TWO,
     "One.\n\n**Later**, two.", "Later.\n\nTwo."),
    ("length_constraints:nth_paragraph_first_word", "es", {"first_word": "En mi opinión", "nth_paragraph": 1} | ONE,
     "¡En mi opinión, sí!", "En mi casa."),
    ("length_constraints:nth_paragraph_first_word", "ja", {"first_word": "愛", "nth_paragraph": 2} | TWO,
     "昔。\n\n愛とは何か。", "愛。\n\n昔。"),
    ("detectable_content:number_placeholders", "en", {"num_placeholders": 2},
     "Dear [name], of [town]", "- [x] [name](http://a.b)"),
    ("detectable_content:postscript", "en", {"postscript_marker": "P.S."},
     "Bye.\n\nP. S. Write!", "Bye.\n\nP.P.S. Write!"),
    ("detectable_content:postscript", "fr", {"postscript_marker": "P-S"},
     "Merci.\nP.-S. : À demain.", "Merci.\nNPS : 3."),
    ("detectable_content:postscript", "es", {"postscript_marker": "Nota"}, "Sí.\n**Nota**: no.", "Se nota mucho."),
    ("detectable_content:informal_address", "fr", {}, "Je t'aime bien.", "Je vous aime bien."),
    ("detectable_content:no_digits", "fr", {}, "Deux ans.", "2 ans."),
    ("detectable_format:number_bullet_lists", "en", {"num_bullets": 2}, "* a\n* b", "- a\n---\n1. b"),
    ("detectable_format:number_bullet_lists", "ja", {"num_bullets": 2}, "・海\n・山", "・海"),
    ("detectable_format:number_numbered_lists", "ja", {"num_items": 2}, "1. 海\n2. 山", "・海\n1. 山"),
    ("detectable_format:constrained_response", "en", {}, "My answer is no.", "No."),
    ("detectable_format:constrained_response", "tr", {"options": ["Evet.", "Hayır."]}, "Hayır.", "Belki."),
    ("detectable_format:number_highlighted_sections", "en", {"num_highlights": 2},
     "* *One* and **two**.", "* One and\n* two, 2 * 3."),
    ("ja:detectable_format:number_highlighted_sections", "ja", {"num_highlights": 1}, "《海》へ。", "*海*へ。"),
    ("detectable_format:multiple_sections", "en", {"section_spliter": "SECTION", "num_sections": 2},
     "## SECTION 1\na\n**SECTION II**: b", "SECTION 1\nSee SECTION 2."),
    ("detectable_format:multiple_sections", "tr", {"section_spliter": "Bölüm", "num_sections": 2},
     "1. Bölüm\nBir.\n2. Bölüm\nİki.", "Bölüm X\nBir.\nBölüm"),
    ("ja:detectable_format:multiple_sections", "ja", {"section_spliter": "章", "num_sections": 2},
     "第１章 海\n第2章 山", "第一の海と章"),
    ("detectable_format:json_format", "en", {}, '```json\n{"a": [1]}\n```', 'Here: {"a": 1}'),
    ("detectable_format:title", "en", {}, "<<A day>>\nSun.", "<<>> # A day"),
    ("fr:detectable_format:title", "fr", {}, "##Un jour##", "## Un jour"),
    ("ja:detectable_format:title", "ja", {}, "『ある日』", "<<ある日>>"),
    ("detectable_format:nominal_ending", "ja", {"count": 2}, "青い海。白い雲。", "海は青い。雲は白い。"),
    ("combination:two_responses", "en", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", "en", {"prompt_to_repeat": "Why is it so?"},
     "Why is it so? Because.", "Because. Why is it so?"),
    ("startend:end_checker", "en", {"end_phrase": "Any questions?"},
     "Yes. **Any questions?**", "Any questions? Ask."),
    ("startend:quotation", "de", {}, "„Guten Tag.“", "Er sagte: „Guten Tag.“"),
    ("startend:quotation", "ja", {}, "「晴れ。」", "“晴れ”です"),
    ("startend:quotation", "en", {}, '"Hello."', "'Hello.'"),
    ("startend:sentence_unified_end", "ja", {"ending": "です"}, "海です。「山だ」です。", "海です。山だ。"),
    ("change_case:english_capital", "en", {}, POEM.upper(), POEM.title()),
    ("change_case:english_lowercase", "en", {}, POEM, "The sea is calm tonight, and the moon lies fair."),
    ("change_case:english_capital", "de", {},
     "DIE STRAßE IST HEUTE NACHT RUHIG UND LEER.", "Die Straße ist heute ruhig."),
    ("es:change_case:spanish_capital", "es", {},
     "EL 1º DE MAYO ES FIESTA EN TODO EL PAÍS.", "El 1º de mayo es fiesta."),
    ("change_case:capital_word_frequency", "fr", {"capital_frequency": 2, "capital_relation": "au moins"},
     "L'ONU et la FIFA.", "À Paris, l'Onu et la Fifa."),
    ("change_case:capital_word_frequency", "ru", {"capital_frequency": 1, "capital_relation": "less than"},
     "Я иду.", "Я в США."),
    ("punctuation:no_comma", "en", {}, "No; none.", "Yes, one."),
    ("punctuation:no_comma", "ar", {}, "نعم. لا.", "نعم، لا."),
    ("punctuation:no_comma", "ja", {}, "晴れです。", "今日は、晴れです。"),
    ("punctuation:no_comma", "zh", {}, "苹果、梨。", "今天晴，很好。"),
    ("punctuation:no_period", "ja", {}, "晴れです", "晴れです。"),
    ("punctuation:question_marks", "es", {}, "¿Vienes?", "Vienes?"),
    ("punctuation:exclamation_marks", "es", {}, "¡Ven!", "Ven!"),
    ("special_character:enie", "es", {"let_frequency": 2}, "El niño sueña.", "El niño."),
    ("special_character:dieresis", "es", {"let_frequency": 1}, "Un pingüino.", "Un pinguino."),
    ("special_character:tildes", "es", {"num_words": 2, "relation": "al menos"}, "Él cantó.", "El canto."),
    ("special_character:ethel_or_cedilla", "fr", {"forbidden_char": "œ"}, "Un coeur.", "Un Œuf."),
    ("special_character:no_accents", "fr", {}, "Un chat noir.", "Un garçon."),
    ("special_character:accents", "fr", {"word_to_accentuate": {"lecon": "leçon"}}, "Une leçon.", "Une lecon."),
    ("letters:furigana", "ja", {}, "食（た）べる人（ひと）", "食（た）べる人"),
    ("letters:kansuuji", "ja", {}, "二十人です。", "２０人です。"),
    ("letters:kanji", "ja", {"kanji_limit": 3, "relation": "未満"}, "海へ行く。", "山川草木。"),
    ("letters:no_katakana", "ja", {}, "うみ。", "ウミ。"),
    ("letters:katakana_only", "ja", {}, "ウミ。", "ウミへ。"),
    ("letters:no_hiragana", "ja", {}, "海。", "うみ。"),
    ("letters:hiragana_only", "ja", {}, "うみ、やま。", "うみのABC。"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "language", "given", "right", "wrong"), CASES)
def test_each_instruction_is_told_followed_from_not_followed(
    name: str, language: str, given: dict[str, Any], right: str, wrong: str
) -> None:
    assert told(name, right, language, given)[0] is True, right
    assert told(name, wrong, language, given)[0] is False, wrong


def test_every_instruction_of_ifeval_and_m_ifeval_has_a_case() -> None:
    cased = {"english_capital": "capital", "english_lowercase": "lowercase", "spanish_capital": "capital"}
    names = [name.split(":")[-2:] for name, *_ in CASES]
    assert {f"{group}:{cased.get(kind, kind)}" for group, kind in names} == COUNTS.keys() | INSTRUCTION_CHECKS.keys()
    assert len(COUNTS.keys() | INSTRUCTION_CHECKS.keys()) == 25 + 22


@pytest.mark.parametrize(
    ("name", "language", "text", "given", "why"),
    [
        ("length_constraints:number_words", "fr", "L'été, c'est fini.", {"num_words": 4, "relation": "at least"},
         "3 or 5"),
        ("length_constraints:number_words", "th", "วันนี้อากาศดีมาก", {"num_words": 9, "relation": "at least"},
         "cannot be counted"),
        ("length_constraints:number_sentences", "en", "# Sea\nIt is calm.", {"num_sentences": 2}, "1 or 2"),
        ("length_constraints:number_sentences", "th", "วันนี้อากาศดี", {"num_sentences": 2, "relation": "at least"},
         "not marked"),
        ("keywords:frequency", "fr", "Des étoiles, une étoile.", {"keyword": "étoile", "frequency": 2},
         "other forms"),
        ("keywords:forbidden_words", "ru", "О новых законах.", {"forbidden_words": ["закон"]}, "other forms"),
        ("keywords:letter_frequency", "fr", "été", {"letter": "e", "let_frequency": 1}, "accent"),
        ("change_case:english_capital", "hi", "आज मौसम बहुत अच्छा है।", {}, "without capital"),
        ("change_case:capital_word_frequency", "ar", "الطقس جميل.", {"capital_frequency": 1}, "without capital"),
        ("detectable_format:number_bullet_lists", "en", "* a\n    * b", {"num_bullets": 1}, "1 or 2"),
        ("detectable_format:constrained_response", "sw", "Ndiyo.", {}, "not known"),
        ("detectable_format:constrained_response", "fr", "Oui. Non. Oui.", {}, "several"),
        ("detectable_format:rhyme", "en", "a", {}, "unknown instruction"),
        ("keywords:frequency", "en", "a", {"keyword": "a", "frequency": 2, "relation": "roughly"},
         "unknown relation"),
        ("keywords:frequency", "en", "a", {"keyword": "a", "frequency": "2"}, "whole number"),
        ("keywords:existence", "en", "a", {}, "'keywords' is not given"),
        ("keywords:existence", "en", "a", {"keywords": "a"}, "'keywords' is not given"),
        ("keywords:forbidden_words", "en", "a", {"forbidden_words": [3]}, "'forbidden_words' is not given"),
        ("special_character:accents", "fr", "a", {"word_to_accentuate": ["a"]}, "'word_to_accentuate' is not given"),
        ("startend:end_checker", "en", "a", {"end_phrase": 3}, "'end_phrase' is not given"),
        ("fr:detectable_content:informal_address", "fr", "Le ton est libre.", {}, "'ton'"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_has_no_verdict_but_a_reason(
    name: str, language: str, text: str, given: dict[str, Any], why: str
) -> None:
    value, detail, reason = rate_instructions(text, language, False, [{"id": name} | given])
    assert (value, detail["instructions"][0]["strict"]) == (None, None)
    assert why in str(reason)


def test_the_loose_criterion_leaves_out_first_and_last_line_and_asterisks() -> None:
    for text in ("Sure, here it is:\nall calm", "all calm\nWell, bye", "Sure:\nall calm\nBye, now", "all calm"):
        strict = "," not in text
        assert told("punctuation:no_comma", text) == (strict, True)
    assert told("punctuation:no_comma", "one, two\nthree, four\nfive, six") == (False, False)
    assert told("startend:quotation", '**"All calm."**') == (False, True)
    assert told("startend:quotation", 'Here:\n*"All calm."*\nBye') == (False, True)
    assert told("keywords:existence", "-", given={"keywords": ["a"]}) == (False, False)


def test_the_value_says_all_some_or_none_and_is_missing_where_it_hangs_on_what_is_open() -> None:
    comma, digits = {"id": "punctuation:no_comma"}, {"id": "fr:detectable_content:no_digits"}
    opened = {"id": "length_constraints:number_words", "num_words": 4, "relation": "at least"}

    def value(text: str, *instructions: Any) -> float | None:
        constraint = {"name": "ifeval", "instructions": list(instructions)}
        return rate_constraint({"text": text, "language": "fr", "constraint": constraint})[0]

    assert [value(text, comma, digits) for text in ("Rien.", "Rien, non.", "1, 2")] == [2, 1, 0]
    assert value("C'est l'été.", comma, opened) is None
    assert value("C'est, l'été.", comma, opened) == 0
    assert value("C'est, l'été.", comma, digits, opened) == 1


def test_an_empty_reply_follows_no_instruction_and_one_cut_within_its_reasoning_leaves_all_open() -> None:
    record = {"language": "en", "constraint": {"name": "ifeval", "instructions": [{"id": "punctuation:no_comma"}]}}
    value, detail, _ = rate_constraint(record | {"text": " "})
    assert (value, detail["instructions"][0]["strict"], detail["instructions"][0]["loose"]) == (0, False, False)
    value, detail, reason = rate_constraint(record | {"text": "<think>Hm", "finish_reason": "length"})
    assert (value, detail["instructions"][0]["strict"]) == (None, None)
    assert "reasoning" in str(reason)


@pytest.mark.parametrize(
    ("name", "given", "text", "verdict"),
    [
        ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}, "One two three", True),
        ("length_constraints:number_words", {"num_words": 9, "relation": "at least"}, "One two three", None),
        ("length_constraints:number_words", {"num_words": 2, "relation": "less than"}, "One two three", False),
        ("length_constraints:number_words", {"num_words": 9, "relation": "less than"}, "One two three", None),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a\n* b", False),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", None),
        ("keywords:existence", {"keywords": ["two"]}, "One two", True),
        ("keywords:existence", {"keywords": ["ten"]}, "One two", None),
        ("punctuation:no_comma", {}, "One two", True),
        ("combination:repeat_prompt", {"prompt_to_repeat": "One"}, "Two", False),
        ("startend:quotation", {}, '"One" and "two"', None),
    ],
)
def test_a_cut_reply_is_told_only_as_far_as_more_text_could_not_change_it(
    name: str, given: dict[str, Any], text: str, verdict: Told
) -> None:
    assert told(name, text, "en", given, cut=True)[0] is verdict


@pytest.mark.parametrize("unit", ["[", "*a ", "<<", "《", "¿", "\n", "Section 1 ", "第1", "(P. ", "l'ONU ", "「a"])
def test_no_text_makes_an_instruction_slow(unit: str) -> None:
    text = unit * (30_000 // len(unit))
    given = {
        "keywords": ["a"],
        "keyword": "a",
        "section_spliter": "Section",
        "postscript_marker": "P.S.",
        "letter": "a",
    }
    given |= {"first_word": "a", "nth_paragraph": 1, "num_paragraphs": 1, "ending": "a", "end_phrase": "a"}
    given |= {
        "forbidden_words": ["b"],
        "forbidden_char": "b",
        "prompt_to_repeat": "b",
        "word_to_accentuate": {"a": "à"},
    }
    given |= {number: 3 for _, number, _ in COUNTS.values()}
    names = [name for name in [*INSTRUCTION_CHECKS, *COUNTS] if "language" not in name and "case:" not in name]
    started = time.process_time()
    rate_instructions(text, "fr", False, [{"id": name} | given for name in names])
    assert time.process_time() - started < 10


ROWS: list[dict[str, Any]] = [
    {"key": 1, "prompt": "Say why.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"key": 2, "prompt": "Answer in Thai.", "kwargs": [{"language": "th", "num_words": None}, {}],
     "instruction_id_list": ["language:response_language", "punctuation:no_comma"]},
]  # fmt: skip


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_prompts_of_ifeval_carry_their_instructions_and_the_language_of_the_reply(tmp_path: Path) -> None:
    first, second = ifeval_prompts(write(tmp_path / "input_data.jsonl", ROWS), ["en"], "test")
    assert (first["id"], first["parallel_id"], first["language"]) == ("ifeval-1.en", "ifeval-1", "en")
    assert first["constraint"] == {"name": "ifeval", "instructions": [{"id": "punctuation:no_comma"}]}
    assert second["reply_language"] == "th"
    assert second["constraint"]["instructions"][0] == {"id": "language:response_language", "language": "th"}


def test_a_folder_of_languages_is_one_parallel_set_by_names_fields_or_prefixes(tmp_path: Path) -> None:
    write(tmp_path / "ruIFEval_v1.jsonl", ROWS)
    write(tmp_path / "sets" / "pt_BR.jsonl", ROWS)
    write(tmp_path / "more.jsonl", [row | {"lang": "Korean"} for row in ROWS])
    prefixed = [row | {"instruction_id_list": [f"fr:{one}" for one in row["instruction_id_list"]]} for row in ROWS]
    write(tmp_path / "input.jsonl", prefixed)
    write(tmp_path / "responses.jsonl", [{"prompt": "Say why.", "response": "No."}])
    found = ifeval_prompts(tmp_path, ["ru", "pt", "ko", "fr", "de"], "test")
    assert {prompt["language"] for prompt in found} == {"ru", "pt", "ko", "fr"}
    requests = {prompt["language"]: prompt["parallel_id"] for prompt in found if prompt["id"].startswith("ifeval-1.")}
    assert requests == {"ru": "ifeval-1", "pt": "ifeval-1", "ko": "ifeval-1", "fr": "ifeval-1.fr"}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_turns_of_multi_if_follow_one_another(ending: str, tmp_path: Path) -> None:
    def turn(number: int, words: str, ids: list[str], kwargs: list[dict[str, Any]]) -> dict[str, str]:
        said = {"prompt": {"role": "user", "content": words}, "instruction_id_list": ids}
        texts = said | {"kwargs": [json.dumps(one) for one in kwargs]}
        return {f"turn_{number}_{name}": json.dumps(value) for name, value in texts.items()}

    ids = ["punctuation:no_comma", "startend:end_checker"]
    row = {"key": "7:1:fr", "language": "French"} | turn(1, "Dis pourquoi.", ids[:1], [{}])
    row |= turn(2, "Finis par « Voilà ».", ids, [{}, {"end_phrase": "Voilà"}]) | {"turn_3_prompt": "None"}
    path = tmp_path / f"multi.{ending}"
    frame = pl.DataFrame([row])
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    first, second = ifeval_prompts(path, ["fr"], "test")
    assert (first["id"], second["id"], second["follows"]) == ("ifeval-7:1.fr.1", "ifeval-7:1.fr.2", "ifeval-7:1.fr.1")
    assert second["messages"] == [{"role": "user", "content": "Finis par « Voilà »."}]
    assert second["constraint"]["instructions"][1] == {"id": "startend:end_checker", "end_phrase": "Voilà"}
    settings = Prompts(languages=["fr"], test=PromptSet(source=f"ifeval:{path}", size=1))
    assert [prompt["id"] for prompt in load_prompts(settings)][-2:] == [first["id"], second["id"]]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("Is it? Choose: ('Yes.', 'No.', 'Maybe.')", ["Yes.", "No.", "Maybe."]),
        ("C'est vrai ? L'une des options : « Oui », « Non ».", ["Oui", "Non"]),
        ("「はい。」か「いいえ。」で答えて。", ["はい。", "いいえ。"]),
        ('Say "yes" and then explain at length why you said "no".', None),
    ],
)
def test_choices_are_read_off_the_prompt_that_offers_them(
    words: str, options: list[str] | None, tmp_path: Path
) -> None:
    row = {"key": 1, "prompt": words, "instruction_id_list": ["detectable_format:constrained_response"], "kwargs": [{}]}
    (prompt,) = ifeval_prompts(write(tmp_path / "p.jsonl", [row]), ["en"], "test")
    assert prompt["constraint"]["instructions"][0].get("options") == options


def test_what_is_wrong_with_a_set_is_told_by_line_all_at_once(tmp_path: Path) -> None:
    bad = [
        ROWS[0] | {"kwargs": []},
        ROWS[0] | {"prompt": " "},
        ROWS[0] | {"instruction_id_list": "no_comma"},
        ROWS[0] | {"language": "Klingonese"},
        {"key": 3, "prompt": "Why?"},
        ROWS[0],
        ROWS[0],
    ]
    path = write(tmp_path / "bad.jsonl", bad)
    with pytest.raises(DataError) as caught:
        ifeval_prompts(path, ["en"], "test")
    told = "\n".join(caught.value.problems)
    assert all(f"{path}:{line}: " in told for line in (1, 2, 3, 4, 5, 7))
    assert "'kwargs' must be 1 objects" in told
    write(tmp_path / "other" / "a.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="none of 1 files holds instructions"):
        ifeval_prompts(tmp_path / "other", ["en"], "test")


def test_responses_to_ifeval_that_other_programs_wrote_are_rated_by_its_instructions(tmp_path: Path) -> None:
    replies = ["Because. No comma.", "ขอบคุณครับ ผมสบายดี และวันนี้อากาศดีมาก"]
    plain = [row | {"response": reply, "lang": "en"} for row, reply in zip(ROWS, replies, strict=True)]
    samples = [
        {"doc_id": row["key"], "doc": row, "resps": [[reply]], "filtered_resps": [reply]}
        for row, reply in zip(ROWS, replies, strict=True)
    ]
    for name, rows, asked in (
        ("a.jsonl", plain, ReadingOptions()),
        ("samples.jsonl", samples, ReadingOptions(language="en")),
    ):
        source, target = write(tmp_path / name, rows), tmp_path / f"out-{name}"
        found = rate_files([source], target, Job(["language", "constraint"]), asked, workers=1)
        rated = [record for _, record in read_jsonl(target)]
        assert (found.counts.unreadable, {one["value"] for one in rated if one["rater"] == "constraint"}) == (0, {2})
        assert {one["value"] for one in rated if one["rater"] == "language"} == {2}, "the reply is asked for in Thai"


def test_the_report_and_the_results_have_prompts_and_instructions_strict_and_loose(tiny: Path, tmp_path: Path) -> None:
    also: list[dict[str, Any]] = [{}, {"length_constraints:number_words": {"num_words": 300}}, {"keywords:rhyme": {}}]
    rows = [
        {"key": key, "prompt": f"Why {key}?", "instruction_id_list": ["punctuation:no_comma", *more]}
        | {"kwargs": [{}, *more.values()]}
        for key, more in enumerate(also)
    ]
    source = f"ifeval:{write(tmp_path / 'p.jsonl', rows)}"
    study = {
        "name": "instructions",
        "training": {"model": str(tiny), "adaptation": {"method": "none"}},
        "prompts": {"languages": ["en"], "validation": {"size": 1}, "test": {"source": source}},
        "decoding": {"max_new_tokens": 8},
        "validation": {"margins": False, "grammar": False},
        "raters": ["constraint"],
        "device": "cpu",
        "dtype": "float32",
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    workspace = prepare(load_study(tmp_path / "study.yaml"), tmp_path / "out")
    generate_stage(workspace)
    path = workspace.runs[0].responses(0)
    made = [record | {"text": "No comma here.", "finish_reason": "stop"} for _, record in read_jsonl(path)]
    write(path, made)
    rate_stage(workspace)
    table = xlift.load(workspace.path).instructions
    assert sorted(table["strict"].to_list(), key=str) == [False, None, True, True, True]
    found = {
        (row.counted, row.criterion): (row.mean, row.rated, row.missing)
        for row in instruction_rows(material_of(workspace))
    }
    # One prompt is followed, one is not, and one hangs on an instruction that nobody knows.
    assert found["prompts", "strict"] == found["prompts", "loose"] == (0.5, 2, 1)
    assert found["instructions", "strict"] == found["instructions", "loose"] == (0.75, 4, 1)
