"""Every code and name of a language is read by one function."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from xlift.annotation import campaign as campaigns
from xlift.annotation import database as db
from xlift.annotation import sampling, transfer
from xlift.data.instructions import load_source
from xlift.data.prompts import load_prompts, read_prompt_file
from xlift.data.sources import lcb_prompts, paper_prompts
from xlift.errors import ConfigError, DataError
from xlift.judging.questions import named_language
from xlift.languages import LANGUAGES, find_language, get_language, language_code, language_codes, rated_language
from xlift.rating import rate, text_fingerprint
from xlift.rating.files import rate_file, read_responses
from xlift.records import check_prompt, read_languages, read_records
from xlift.study.data import Prompts, PromptSet, Source
from xlift.study.loading import parse_study

SAME = {
    "fr": "fr FR fra fre fr-CA fr_Latn FRA_Latn French french français FRANCAIS fr-Latn-FR",
    "pt": "pt pt-BR pt_br PT-br por pt-PT Portuguese português portugues",
    "zh": "zh zho chi cmn zh-Hans zh_Hant zh-TW zh-Hans-CN cmn-Hant Chinese Mandarin 中文 zho_Hans zh-cmn",
    "no": "no nb nn nob nno nor nb-NO no-nyn Norwegian norsk bokmål Nynorsk",
    "he": "he iw heb Hebrew עברית iw-IL",
    "id": "id in ind in-ID Indonesian",
    "ro": "ro mo ron rum Romanian",
    "yi": "yi ji yid Yiddish",
    "ar": "ar arb ara ar-EG Arabic العربية arb_Arab",
    "fa": "fa pes per fas prs Farsi Persian",
    "ms": "ms zsm msa may Malay",
    "sw": "sw swh swa Swahili",
    "et": "et ekk est Estonian",
    "fil": "fil tl tgl Tagalog Filipino",
    "de": "de deu ger de-AT de-1996 German Deutsch",
    "sr": "sr sr-Cyrl sr-RS srp Serbian српски",
    "sr-Latn": "sr-Latn sr_latn sh hbs sr-Latn-RS sr-ME Serbo-Croatian",
    "hi-Latn": "hi-Latn hi_LATN hi-Latn-IN",
    "yo": "yo yor Yoruba",
    "arz": "arz arz_Arab",
    "yue": "yue Cantonese zh-yue",
}


NAMES = {
    "zh": ["简体中文", "繁體中文", "普通话", "Chinese (Simplified)", "中文（简体）"],
    "en": ["en_US.UTF-8", "British English", "English (US)", "__label__en", "English language"],
    "es": ["Latin American Spanish", "Español (España)"],
    "sr-Latn": ["Serbian (Latin)", "Serbian Latin"],
    "sr": ["Serbian (Cyrillic)"],
    "ru": ["русский язык"],
    "yue": ["Chinese (Cantonese)", "粤语"],
    "ckb": ["Kurdish (Sorani)", "Central Kurdish"],
    "ps": ["Southern Pashto"],
    "mg": ["Plateau Malagasy"],
    "ht": ["Haitian Creole"],
    "bn": ["Bangla"],
}


@pytest.mark.parametrize(("code", "name"), [(code, name) for code, names in NAMES.items() for name in names])
def test_names_of_several_words_and_with_a_variety_behind_are_read(code: str, name: str) -> None:
    assert language_code(name) == code


@pytest.mark.parametrize("name", ["Gaelic", "Bahasa", "Western Punjabi", "Klingon (Latin)", "fr.jsonl"])
def test_a_name_of_several_languages_or_of_none_is_refused(name: str) -> None:
    assert find_language(name) is None


@pytest.mark.parametrize("code", SAME)
def test_all_spellings_of_a_language_are_one_code_which_reads_as_itself(code: str) -> None:
    assert {spelling: language_code(spelling) for spelling in SAME[code].split()} == dict.fromkeys(
        SAME[code].split(), code
    )
    assert language_code(get_language(code).code) == code


@pytest.mark.parametrize("name", ["bahasa Indonesia", "Brazilian Portuguese", "Portuguese (Brazil)", " Tiếng  Việt "])
def test_names_of_several_words_are_read(name: str) -> None:
    assert get_language(name).code in {"id", "pt", "vi"}


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_of_the_table_is_read_by_code_and_by_its_names(code: str) -> None:
    own = LANGUAGES[code]
    assert {language_code(name) for name in (code, own.name, own.native_name)} == {code}
    assert get_language(code).rated


def test_region_and_script_are_kept_where_they_tell_something() -> None:
    assert get_language("pt_br").tag == "pt-BR"
    assert get_language("pt").tag == "pt"
    latin = get_language("sr-Latn")
    assert (latin.script, latin.name, latin.rated, latin.right_to_left) == ("Latn", "Serbian (Latin)", False, False)
    assert get_language("ms-Arab").right_to_left


def test_a_language_without_word_lists_is_a_language_with_a_script() -> None:
    tigrinya = get_language("tir")
    assert (tigrinya.code, tigrinya.script, tigrinya.rated) == ("ti", "Ethi", False)
    assert get_language("km").words == "characters"
    assert rated_language("yo") == ("yo", "no word lists of Yoruba (yo)")
    assert rated_language("nn") == ("no", None)
    assert rated_language("klingon")[1] == "unknown language 'klingon'"


@pytest.mark.parametrize(
    "text",
    [
        *("klingon", "xx", "", " ", "und", "mul", "zxx", "all", "qaa", "x-foo", "english please", "f", "fr fr"),
        *("a" * 500, "../fr", "fr/../x", "\ud800", None, 3, 3.5, True, ["fr"], {"fr": 1}),
    ],
)
def test_what_is_no_language_is_refused(text: object) -> None:
    assert find_language(text) is None
    with pytest.raises(DataError, match=r"unknown language|names no single language"):
        get_language(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("frnch", "fr"), ("jp", "ja"), ("cz", "cs"), ("Portugese", "pt"), ("Españiol", "es")]
)
def test_the_nearest_language_is_named(text: str, meant: str) -> None:
    with pytest.raises(DataError, match=rf"'{text}'; did you mean '{meant}'"):
        get_language(text)


def test_a_bare_no_of_yaml_is_explained() -> None:
    with pytest.raises(DataError, match="in quotes"):
        get_language(False)


# --- the places where a language comes in ------------------------------------------------------------------------


def prompt(language: object, number: int = 1, split: str = "test", **more: Any) -> dict[str, Any]:
    return {
        "id": f"{split}-{number}",
        "language": language,
        "split": split,
        "messages": [{"role": "user", "content": f"{split} {number}?"}],
        **more,
    }


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_settings_take_any_spelling_and_refuse_by_the_place_in_the_list() -> None:
    study = parse_study(
        {
            "name": "s",
            "prompts": {"languages": ["English", "nb", "iw", "pt-BR", "pt", "sr-Latn", "yo"]},
            "training": {"instructions": {"sources": [{"language": "fra"}]}},
        }
    )
    assert study.prompts.languages == ["en", "no", "he", "pt", "sr-Latn", "yo"]
    assert study.runs()[-1].instructions.sources[0].language == "fr"
    with pytest.raises(ConfigError) as caught:
        parse_study({"name": "s", "prompts": {"languages": ["en", "fr", "klingon", False]}})
    first, second = caught.value.problems
    assert "prompts.languages.2: unknown language 'klingon'" in first
    assert "prompts.languages.3" in second
    assert "'no', in quotes" in second


@pytest.mark.parametrize(("study", "file"), [("pt", "pt-BR"), ("no", "nb"), ("zh", "Chinese"), ("sr-Latn", "sh")])
def test_prompts_are_found_by_the_study_s_code_whatever_their_file_calls_it(
    tmp_path: Path, study: str, file: str
) -> None:
    own = [prompt(file, 1, split, reply_language=file) for split in ("validation", "test")]
    source = PromptSet(source=str(write(tmp_path / "p.jsonl", own)))
    found = load_prompts(Prompts(languages=[study], validation=source, test=source))
    assert [(one["language"], one["reply_language"]) for one in found] == [(study, study)] * 2
    assert [one.get("variety") for one in found] == ["pt-BR" if file == "pt-BR" else None] * 2


def test_an_unknown_language_of_a_prompt_or_a_constraint_is_refused_with_its_line(tmp_path: Path) -> None:
    asked = {"name": "reply_language", "language": "elvish"}
    records = [prompt("klingon"), prompt("fr", 2, reply_language="xx"), prompt("en", 3, constraint=asked), prompt(3, 4)]
    with pytest.raises(DataError) as caught:
        read_prompt_file(write(tmp_path / "p.jsonl", records))
    said = str(caught.value)
    for part in ("p.jsonl:1: 'language'", "p.jsonl:2: 'reply_language'", "p.jsonl:3: 'constraint'", "p.jsonl:4"):
        assert part in said
    assert "'klingon'" in said
    assert "'elvish'" in said


@pytest.mark.parametrize(
    ("given", "code"), [("French", "fr"), ("fra", "fr"), ("pt_BR", "pt"), (None, "es"), ("yo", "yo")]
)
def test_an_instruction_record_is_in_the_language_that_it_names(tmp_path: Path, given: str | None, code: str) -> None:
    path = write(tmp_path / "i.jsonl", [{"instruction": "?", "output": "!", "language": given}])
    assert [one["language"] for one in load_source(Source(path=str(path), language="es"))] == [code]


def test_an_unknown_language_of_an_instruction_record_is_never_the_source_s(tmp_path: Path) -> None:
    records = [{"instruction": "?", "output": "!", "language": language} for language in ("en", "klingon", 7)]
    with pytest.raises(DataError) as caught:
        load_source(Source(path=str(write(tmp_path / "i.jsonl", records))))
    first, second = caught.value.problems
    assert "i.jsonl:2: 'language': unknown language 'klingon'" in first
    assert "i.jsonl:3: 'language'" in second


NORWEGIAN = "God dag, i dag skal jeg forklare hvordan du lager et godt måltid til familien."
HEBREW = "שלום, היום אסביר כיצד לבשל ארוחה טעימה למשפחה."
FRENCH = "Bonjour, aujourd'hui je vais vous expliquer comment préparer un bon repas pour toute la famille."


@pytest.mark.parametrize(
    ("text", "spellings"),
    [(NORWEGIAN, ["no", "nb", "nob", "nn-NO"]), (HEBREW, ["he", "iw", "Hebrew"]), (FRENCH, ["fr", "fra", "French"])],
)
@pytest.mark.parametrize("rater", ["language", "language_lcb", "fluency"])
def test_raters_read_every_spelling_alike(text: str, spellings: list[str], rater: str) -> None:
    ratings = [rate({"id": "a", "text": text, "language": spelling}, rater) for spelling in spellings]
    values = {one["value"] for one in ratings}
    assert len(values) == 1
    assert values == {2} or (rater, text) == ("language_lcb", NORWEGIAN)  # which fastText takes for Danish
    assert {one["language"] for one in ratings} == {spellings[0]}


@pytest.mark.parametrize("rater", ["language", "language_lcb", "fluency"])
@pytest.mark.parametrize("code", ["yo", "eu", "sr-Latn", "hi-Latn"])
def test_what_surface_checks_have_no_lists_for_is_missing_never_wrong(rater: str, code: str) -> None:
    rating = rate({"id": "a", "text": FRENCH, "language": code}, rater)
    assert (rating["language"], rating["value"]) == (code, None)
    assert rating["reason"].startswith(f"no word lists of {get_language(code).name}")


def test_checks_that_need_no_list_rate_languages_outside_the_table() -> None:
    constraint = {"name": "items", "count": 2}
    rating = rate({"id": "a", "text": "- ọkan\n- méjì", "language": "Yoruba", "constraint": constraint}, "constraint")
    assert rating["value"] == 2
    cased = {"id": "a", "text": "ሰላም ለዓለም", "language": "am", "constraint": {"name": "capitalized"}}
    assert rate(cased, "constraint")["reason"] == "Amharic is written without capital letters"
    answer = {"id": "a", "text": "Sagot: Manila.", "language": "tl", "answers": ["Manila"]}
    assert rate(answer, "answers")["value"] == 2


def test_files_of_responses_are_rated_and_judged_by_people_under_one_code_and_one_id(tmp_path: Path) -> None:
    lines = [
        {"text": NORWEGIAN, "language": "nb"},
        {"id": 7, "text": FRENCH, "language": "French"},
        {"id": "x", "text": FRENCH, "language": "fr-CA"},
    ]
    source = write(tmp_path / "r.jsonl", lines)
    outcome = rate_file(source, tmp_path / "out.jsonl", ["language"])
    rated = read_records(tmp_path / "out.jsonl")
    assert (outcome.made, outcome.missing, outcome.unreadable) == (3, 0, 0)
    assert [(one["id"], one["language"], one["value"]) for one in rated] == [
        ("1", "no", 2),
        ("7", "fr", 2),
        ("x", "fr", 2),
    ]
    shown = sampling.file_responses(source)
    assert [(one["id"], one["language"]) for one in shown] == [("1", "no"), ("7", "fr"), ("x", "fr")]
    assert [text_fingerprint(one) for one in shown] == [one["response"] for one in rated]
    judged = list(read_responses(source, []))
    assert [text_fingerprint(one) for one in judged] == [one["response"] for one in rated]


def test_a_language_that_is_none_is_refused_with_its_line_wherever_files_of_responses_are_read(tmp_path: Path) -> None:
    source = write(tmp_path / "r.jsonl", [{"text": "x", "language": "fr"}, {"text": "x", "language": "klingon"}])
    outcome = rate_file(source, tmp_path / "out.jsonl", ["language"])
    problems: list[str] = []
    assert len(list(read_responses(source, problems))) == 1
    with pytest.raises(DataError) as caught:
        sampling.file_responses(source)
    assert outcome.problems == problems == caught.value.problems
    assert "r.jsonl:2: 'language': unknown language 'klingon'" in problems[0]


def test_a_judge_reads_the_variety_that_was_asked_for() -> None:
    record: dict[str, Any] = {"language": "pt-BR"}
    assert read_languages(record, "here") == []
    assert record == {"language": "pt", "variety": "pt-BR"}
    assert named_language(record) == "Portuguese (português), as in BR"
    assert named_language({"language": "zh-Hant"}) == "Chinese (中文)"
    assert named_language({"language": "sr-Latn"}) == "Serbian (Latin) (српски)"
    assert named_language({"language": "yo"}) == "Yoruba (Yorùbá)"


def test_published_sets_are_found_however_their_files_write_the_language(tmp_path: Path) -> None:
    for task in ("monolingual", "crosslingual"):
        folder = tmp_path / "lcb" / task / "set"
        folder.mkdir(parents=True)
        (folder / "pt-BR.csv").write_text("prompt\nPor quê?\n", encoding="utf-8")
    assert len(lcb_prompts(tmp_path / "lcb", "pt", "test")) == 2
    (folder / "por.csv").write_text("prompt\nPor quê?\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"crosslingual/set: por and pt-BR are both 'pt'"):
        lcb_prompts(tmp_path / "lcb", "pt", "test")
    turn = json.dumps([{"role": "user", "content": "Por quê? Em francês."}]) + "\n"
    for name in ("alpacaeval_test_subset", "modifiers"):
        (tmp_path / f"{name}.pt_BR.jsonl").write_text(turn, encoding="utf-8")
    (tmp_path / "modifiers.pt_BR.types").write_text("lang_fra\n", encoding="utf-8")
    assert [one.get("reply_language") for one in paper_prompts(tmp_path, "pt", "test")] == [None, "fr"]
    (tmp_path / "modifiers.pt_BR.types").write_text("lang_xx\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"types: type 1 \('lang_xx'\): unknown language 'xx'"):
        paper_prompts(tmp_path, "pt", "test")
    with pytest.raises(DataError, match=r"alpacaeval_test_subset.fr.jsonl: no such file; there are: pt_BR"):
        paper_prompts(tmp_path, "fr", "test")


def test_the_documentation_lists_the_languages_that_are_rated() -> None:
    text = (Path(__file__).parents[1] / "docs" / "raters.md").read_text(encoding="utf-8")
    listed = re.search(r"and fluency rate ([^.]*?), under", text)
    assert listed is not None
    assert re.findall(r"\b(?!and\b)[a-z]{2,3}\b", listed[1]) == sorted(LANGUAGES)


def test_people_are_added_and_their_ratings_come_in_under_any_name_of_a_language(tmp_path: Path) -> None:
    source = write(tmp_path / "r.jsonl", [{"text": NORWEGIAN, "language": "nb", "run": "a"}])
    opened = campaigns.open_campaign(source)
    campaigns.add(opened, "Ana", [" nn-NO", "Norwegian", "French"])
    with opened.database.read.connect() as connection:
        (person,) = connection.execute(sa.select(db.annotators)).all()
        assert person.languages == "no,fr"
        assert [row.language for row in connection.execute(sa.select(db.tasks))] == ["no"]
        assert connection.execute(sa.select(db.assignments)).all()
    with pytest.raises(ConfigError, match="unknown language 'klingon'"):
        campaigns.add(opened, "Bo", ["klingon"])
    table = tmp_path / "people.csv"
    head = "id,language,run,step,facet,rater,value\n"
    table.write_text(head + "1,nob,a,0,fluency,Cy,2\n", encoding="utf-8")
    campaigns.import_file(opened, table)
    with opened.database.read.connect() as connection:
        assert [one["language"] for one in transfer.rating_records(connection)] == ["no"]
    table.write_text(head + "1,klingon,a,0,fluency,Cy,2\n1,fr,a,0,accuracy,Cy,2\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        campaigns.import_file(opened, table)
    first, second = caught.value.problems
    assert "people.csv:2: unknown language 'klingon'" in first
    assert "is in no, not in fr" in second


def test_languages_of_accepted_answers_are_read_as_all_others_are() -> None:
    asked = {"id": "a", "language": "fr", "split": "test", "messages": [{"role": "user", "content": "Où ?"}]}
    named = asked | {"answers": ["Vienne"], "answers_any": {"German": ["Wien"], "pt-BR": ["Viena"]}}
    assert check_prompt(named, "p:1") == []
    assert named["answers_any"] == {"de": ["Wien"], "pt": ["Viena"]}
    (problem,) = check_prompt(asked | {"answers": ["Vienne"], "answers_any": {"klingon": ["Vienne"]}}, "p:1")
    assert "klingon" in problem


def test_codes_in_an_option_are_read_as_everywhere_and_none_is_no_choice() -> None:
    assert language_codes("French, pt-BR,fra") == ["fr", "pt"]
    with pytest.raises(DataError) as refused:
        language_codes("klingon,fr,und")
    assert len(refused.value.problems) == 2
    with pytest.raises(DataError, match="no language is named"):
        language_codes(" , ")
