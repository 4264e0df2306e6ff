from __future__ import annotations

import json
import time
from typing import Any

import pytest

from xlift.rating.constraints import CHECKS, rate_constraint, signature
from xlift.rating.sentences import split_sentences
from xlift.rating.text import count_words
from xlift.records import Rated

PARAMETERS: dict[str, dict[str, Any]] = {
    "short": {"max_words": 5, "max_characters": 5},
    "long": {"min_words": 5, "min_characters": 5},
    "items": {"count": 3},
    "paragraphs": {"count": 3},
    "sentences": {"count": 3},
    "reply_language": {"language": "fr"},
    "arrow": {"marker": "-->"},
    "include": {"word": "sun"},
    "exclude": {"word": "sun"},
    "json": {"keys": ["a", "b"]},
    "ends_with": {"phrase": "the end"},
    "ifeval": {"instructions": [{"id": "punctuation:no_comma"}]},
}
NEW_LINES = "One thing\nAnother thing\nA third thing"


def value(text: str, name: str, language: str = "en", cut: bool = False, **more: Any) -> float | None:
    rated = rate(text, name, language, cut, **more)
    assert (rated[0] is None) == bool(rated[2]), "a missing value has a reason, and only a missing value"
    return rated[0]


def rate(text: str, name: str, language: str = "en", cut: bool = False, **more: Any) -> Rated:
    unmodified = more.pop("unmodified", None)
    record = {"text": text, "language": language, "constraint": {"name": name, **(more or PARAMETERS.get(name, {}))}}
    return rate_constraint(record | {"finish_reason": "length" if cut else "stop", "unmodified": unmodified})


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200f\ufeff", "\x00"])
def test_an_empty_reply_follows_nothing(name: str, text: str) -> None:
    found, detail, reason = rate(text, name)
    assert (found, detail["kind"], detail["empty"], reason) == (0, name, True, None)


@pytest.mark.parametrize("name", PARAMETERS)
def test_malformed_parameters_are_missing_with_a_reason(name: str) -> None:
    for parameter, right in PARAMETERS[name].items():
        for wrong in (
            (None, [], {}, 0, True, 2.5, -3, "", "\u200b") if not isinstance(right, int) else ("3", 0, True, 2.5)
        ):
            rated = rate("One. Two. Three.", name, **{parameter: wrong})
            assert rated[0] is None
            assert parameter in str(rated[2])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "no constraint"),
        ({"text": "x", "constraint": {}}, "no constraint"),
        ({"text": "x", "constraint": "short"}, "name"),
        ({"text": "x", "constraint": {"count": 3}}, "name"),
        ({"text": None, "constraint": {"name": "markdown"}}, "text"),
        ({"constraint": {"name": "markdown"}}, "text"),
        ({"text": "x", "constraint": {"name": "rhyme"}}, "reply_language"),
        ({"text": "", "constraint": {"name": "style", "style": "scientific"}}, "judge"),
        ({"text": "x", "constraint": {"name": "style"}}, "judge"),
    ],
)
def test_what_cannot_be_checked_is_missing_and_says_why(record: dict[str, Any], reason: str) -> None:
    found = rate_constraint(record)
    assert found[0] is None
    assert reason in str(found[2])


def test_style_is_left_to_judges_and_unknown_kinds_are_missing() -> None:
    for constraint in ({"name": "style", "style": "simple"}, {"name": "haiku"}, {"name": 3}, "short"):
        found = rate_constraint({"text": NEW_LINES, "language": "en", "constraint": constraint})
        assert found[0] is None
        assert found[2]
    assert signature() == "constraint v7"


HOSTILE = [
    "<a ",
    "<!--",
    "```",
    '{"a":',
    "[a](",
    "**a",
    "- - ",
    "1. a 2. ",
    "...",
    "\u0315\u0300",
    "\u202e",
    "\ud800",
    "ب\u0640",
]


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_text_is_rated_in_time_that_grows_with_its_length(part: str) -> None:
    for name in CHECKS.keys() - {"reply_language"}:
        for text in (part * (200_000 // len(part)), "sun " + part * 1000 + "\x00\x01\u200f~"):
            started = time.process_time()
            value(text, name)
            assert time.process_time() - started < 10


def test_a_megabyte_of_prose_is_rated() -> None:
    text = "The sun is up. " * 70_000
    assert value(text, "include") == 2
    assert value(text, "sentences", count=70_000) == 2
    assert value(text, "long") == 2


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("It's a well-known fact — really!", "en", 5),
        ("- ... 42 **bold** !!", "en", 2),
        ("क्या यह हिन्दी है?", "hi", 4),
        ("می\u200cخواهم بروم", "fa", 2),
        ("今天很冷。", "zh", 4),
        ("コーヒーを、飲む", "ja", 7),
        ("今天 weather", "en", 3),
        ("", "en", 0),
    ],
)
def test_words_are_counted_as_the_language_cuts_them(text: str, language: str, words: int) -> None:
    assert count_words(text, language) == words


@pytest.mark.parametrize(
    ("name", "limit", "language", "text", "expected", "expected_cut"),
    [
        ("short", {"max_words": 3}, "en", "one two three", 2, None),
        ("short", {"max_words": 3}, "en", "one two three four", 0, 0),
        ("long", {"min_words": 3}, "ru", "раз два три", 2, 2),
        ("long", {"min_words": 3}, "ru", "раз два", 0, None),
        ("short", {"max_characters": 4}, "zh", "今天，很冷。", 2, None),
        ("short", {"max_characters": 3}, "zh", "今天，很冷。", 0, 0),
        ("short", {"max_words": 3}, "zh", "今天，很冷。", None, None),
        ("short", {"max_words": 3, "max_characters": 9}, "ja", "寒いです", 2, None),
        ("long", {"min_characters": 5}, "en", "ab c", 0, None),
        ("long", {"min_characters": 5}, "en", "ab cd", 2, 2),
    ],
)
def test_short_and_long_by_a_limit(
    name: str, limit: dict[str, int], language: str, text: str, expected: int | None, expected_cut: int | None
) -> None:
    assert value(text, name, language, **limit) == expected
    assert value(text, name, language, cut=True, **limit) == expected_cut


@pytest.mark.parametrize(("words", "short", "long"), [(75, 2, 0), (76, 0, 0), (124, 0, 0), (125, 0, 2)])
def test_short_and_long_relative_to_the_unmodified_response(words: int, short: int, long: int) -> None:
    for name, expected in (("short", short), ("long", long)):
        record = {"text": "w " * words, "language": "en", "constraint": {"name": name}}
        assert rate_constraint(record | {"unmodified": "w " * 100})[0] == expected
        for nothing in ({}, {"unmodified": ""}, {"unmodified": "…"}, {"unmodified": 3}):
            assert rate_constraint(record | nothing)[0] is None


MARKERS = [
    "{n}. {x}", "{n}) {x}", "({n}) {x}", "**{n}.** {x}", "**{n}. {x}**", "### {n}. {x}", "{n}\\. {x}",
    "{n}\ufe0f\u20e3 {x}",
    "- {x}", "* {x}", "+ {x}", "• {x}", "•{x}", "– {x}", "· {x}", "‣ {x}", "▪ {x}", "● {x}", "--> {x}", "→ {x}",
    "> - {x}",
    "**{x}**: why", "## {x}\n\nSome prose. More.", "Option {n}: {x}", "🎵 {x}", "\u200f{n}. {x}", "  {n}. {x}", "{x}",
    "{n}. {x}\n   - nested\n   - nested", "{n}. {x}\n- nested\n- nested", "- {x}\n\n  Some prose. More.\n",
]  # fmt: skip
DIGITS = ["٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "〇一二三四五六七八九", "⓪①②③④⑤⑥⑦⑧⑨", "⓿❶❷❸❹❺❻❼❽❾"]


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("intro", ["", "Here they are:\n\n"])
def test_items_are_counted_under_every_marker(marker: str, intro: str) -> None:
    items = [marker.format(n=n, x=x) for n, x in enumerate(["Jazz", "Rock", "Soul", "Folk"], start=1)]
    text = intro + "\n".join(items)
    assert [value(text, "items", count=n) for n in (2, 4, 6)] == [0, 2, 0]


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("after", [".", ")", "．", "、", ". "])
def test_items_are_counted_and_ordered_in_digits_of_every_script(digits: str, after: str) -> None:
    lines = [f"{digits[n]}{after}项" for n in range(1, 5)]
    assert value("\n".join(lines), "items", "zh", count=4) == 2
    assert value("\n".join(lines), "numbered", "zh") == 2
    assert value("\n".join(lines[::-1]), "numbered", "zh") == 0


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("Jazz, rock, soul and folk", 4, None),
        ("ジャズ、ロック、ソウル", 3, None),
        ("1. Jazz 2. Rock 3. Soul", 3, None),
        ("Choose: 1) Jazz 2) Rock", 2, None),
        ("| a | b |\n|---|---|\n| 1 | 2 |", 2, None),
        ("<ul>\n<li>a</li>\n<li>b</li>\n</ul>", 2, None),
        ("A paragraph of prose. It has no list.\n\nAnother one. It goes on.", 2, None),
        ("I cannot help with that.", 5, 0),
        ("Jupiter", 1, None),
        ("Jazz and blues", 2, None),
        ("Jazz\nRock\nSoul", 4, 0),
        ("Jazz\nRock\nSoul", 1, 0),
        ("word " * 12 + "\n" + "word " * 12, 2, 2),
        ("word " * 13 + "\n" + "word " * 12, 2, None),
        ("- a\n  - b\n  - c", 1, 2),
        ("Sure!\nJazz\nRock", 2, None),
        ("**Pro**\n- a\n- b\n- c\n**Con**\n- d", 2, None),
        ("**Pro**\n- a\n- b\n- c\n**Con**\n- d", 4, 2),
        ("3.5 is a number\n2024. was a year", 2, 2),
        ("- a\n---\n- b\n***", 2, 2),
        ("Code:\n```\n- x\n- y\n```\n- a\n- b\n- c", 3, 2),
        ("```\n1. a\n2. b\n```", 2, 2),
        ('Here:\n```\n["a", "b"]\n```', 2, None),
        ("1. a\n2. b\n\nTips:\n- x\n- y\n- z", 2, 2),
    ],
)
def test_items_that_cannot_be_told_are_left_to_a_judge(text: str, count: int, expected: int | None) -> None:
    assert value(text, "items", count=count) == expected


def test_a_decimal_at_the_start_of_a_line_is_no_item() -> None:
    assert value("- a\n3.5 litres\n- b", "items", count=2) == 2


BLOCKS = {"items": "- a\n", "paragraphs": "A block.\n\n", "sentences": "A sentence. "}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_cut_reply_is_missing_until_it_has_too_many(name: str) -> None:
    found = [value(BLOCKS[name] * n, name, cut=True, count=3) for n in (1, 2, 3, 4)]
    assert found == [None, None, None, 0]
    assert [value(BLOCKS[name] * n, name, count=3) for n in (2, 3, 4)] == [0, 2, 0]
    assert rate(BLOCKS[name], name, cut=True)[1]["cut"] is True


def test_ideographic_numbers_are_read() -> None:
    ones = "一二三四五六七八九"
    numbers = [tens + one for tens in ("", "十", "二十", "三十") for one in ("", *ones)][1:]
    lines = [f"{number}、项" for number in numbers]
    assert value("\n".join(lines), "numbered", "zh") == 2
    assert value("\n".join([*lines[:20], *lines[21:]]), "numbered", "zh") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. a\n2. b", 2),
        ("Steps:\n\n1) a\n   1) nested\n2) b\n\nDone.", 2),
        ("1. a\n2. b\n\nThen:\n1. c\n2. d", 2),
        ("1. a\n1. b", 0),
        ("2. a\n3. b", 0),
        ("1. a\n3. b", 0),
        ("1. a\n2. b\n1. c", 0),
        ("1. a 2. b", 0),
        ("- a\n- b", 0),
        ("a) x\nb) y", 0),
    ],
)
def test_numbered_asks_for_one_two_three_on_lines_of_their_own(text: str, expected: int) -> None:
    assert value(text, "numbered") == expected


def test_numbered_is_missing_where_the_second_item_was_cut() -> None:
    assert [value(text, "numbered", cut=True) for text in ("Well", "1. a", "1. a\n2. b", "1. a\n1. b")] == [
        None,
        None,
        2,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a", 1),
        ("a\nb\nc", 3),
        ("a\nb\n\nc", 2),
        ("\n\n\na\n \t \n\u200b\nb\n\n", 2),
        ("# Title\n\na\n\n---\n\nb", 2),
        ("**Title**\n\na\n\n**Led** by bold\n\nb", 3),
        ("a\r\n\r\nb\u2029\u2029c", 3),
        ("　　一段。\n\n　　二段。", 2),
    ],
)
def test_paragraphs(text: str, count: int) -> None:
    assert [value(text, "paragraphs", count=n) for n in (count, count + 1)] == [2, 0]


SENTENCES = {
    "en": [
        "Dr. Smith met J. R. Tolkien at 3.5 p.m. in the U.S. and left.| Go!| Is it?| Yes",
        'He said: "Go!"| Then... nothing.| See Fig. 3 (e.g. the top).| No.| It is no. 5.',
        "See example.com, v1.2.3, Mr. X!| (Really?)| **Bold.**| Done?!",
        "the sky is blue.| water is wet.| the end",
    ],
    "fr": ["M. Dupont, p. ex., a dit : « Bonjour. »| Puis il part à 10 h.| C'est l'art. 5, etc.| Fin !"],
    "ru": ["В 1990 г. в г. Москве, т.е. здесь, жил А. С. Пушкин.| И т. д.| Потом ушёл…| Да"],
    "de": ["Am 3. Oktober kam z. B. Dr. Müller bzw. ich.| Das war Nr. 5 usw.| Gut."],
    "es": ["¿Qué?| ¡Nada!| El Sr. López vive en la av. Sol."],
    "tr": ["Bu ne?| Örn. Ankara'da 3.5 km."],
    "zh": ["今天很冷。|他说：“我走了。”然后走了！|真的吗？|好……我不知道"],
    "ja": ["「行く。」と言った。|はい！|ありがとう"],
    "ar": ["ما هذا؟| قال د. أحمد: نعم... وذهب.| حسنا"],
    "ur": ["یہ کتاب ہے۔| اچھا؟| ہاں"],
    "hi": ["यह क्या है?| डॉ. शर्मा आए।|वह 3.5 किमी है॥| हाँ"],
    "el": ["Τι είναι αυτό;| Ένα βιβλίο."],
    "ko": ["안녕하세요.| 반갑습니다!| 네"],
}


@pytest.mark.parametrize(("language", "text"), [(code, text) for code, texts in SENTENCES.items() for text in texts])
def test_sentences_end_where_a_reader_ends_them(language: str, text: str) -> None:
    wanted = [sentence.strip().replace("**", "") for sentence in text.split("|")]
    assert split_sentences(text.replace("|", ""), language) == wanted
    assert value(text.replace("|", ""), "sentences", language, count=len(wanted)) == 2


def test_list_items_and_lines_are_sentences_and_wrapped_lines_are_not() -> None:
    text = "1. First item\n2. Second item. With two.\n\nA line that is\nwrapped here.\nAnother\n```\nCode. More.\n```"
    assert len(split_sentences(text, "en")) == 5
    assert split_sentences("Day 1: Go to Rome.\nDay 2: Rest", "en") == ["Day 1: Go to Rome.", "Day 2: Rest"]


def test_sentences_of_languages_that_do_not_mark_them_are_missing() -> None:
    assert value("สวัสดีครับ ผมชื่อสมชาย", "sentences", "th", count=2) is None


@pytest.mark.parametrize(
    "text", ["# Head", "Head\n===", "a **b** c", "a *b* c", "a __b__", "|a|b|\n|-|-|\n", "```\nx\n```", "a `b`"]
)
def test_markdown_is_any_real_structure(text: str) -> None:
    assert value(text.replace("|-|-|", "|---|---|"), "markdown") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](https://b.c)", 2),
        ("> quoted", 2),
        ("- a\n- b", 2),
        ("1. a\n2. b", 2),
        ("- a", 0),
        ("#hashtag and 2 * 3 * 4 and snake_case_name", 0),
        ("• a\n• b", 0),
        ("** not bold ** and --- and [1]", 0),
        ("plain prose.", 0),
    ],
)
def test_markdown_is_not_seen_in_plain_text(text: str, expected: int) -> None:
    assert value(text, "markdown") == expected


PAGE = "<!DOCTYPE html>\n<html><head><title>T</title></head><body><h1>A</h1><p>b<br>c<ul><li>d</ul></body></html>"


@pytest.mark.parametrize(
    ("text", "expected", "expected_cut"),
    [
        (PAGE, 2, 2),
        (PAGE.upper(), 2, 2),
        (f"\u200f\n<!-- <b> -->{PAGE}\n", 2, 2),
        (f"Here is the page:\n```html\n{PAGE}\n```\nEnjoy!", 1, 1),
        (f"~~~html\n{PAGE}\n~~~", 2, 2),
        (PAGE.replace("<p>", "<script>if (a<b && c>d) {}</script><p>"), 2, 2),
        ("<body><p>a</p></body>", 2, 2),
        (f"Here is the page: {PAGE}", 1, 1),
        (f"{PAGE} I hope that helps.", 1, 2),
        (PAGE.replace("</h1>", ""), 1, 1),
        (PAGE.replace("</body></html>", ""), 1, 2),
        ("<html><body></body></html>", 1, 2),
        ("<h1>A</h1><p>b</p>", 1, 1),
        ("Use <br> here", 0, 0),
        ("a < b and <name> or <city>, 2 > 1", 0, 0),
        ("# Markdown", 0, 0),
    ],
)
def test_html_is_a_page(text: str, expected: int, expected_cut: int) -> None:
    assert value(text, "html") == expected
    assert value(text, "html", cut=True) == expected_cut


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--> a\n--> b", 2),
        ("Here you are:\n\n--> a\ngoes on\n\n--> b\n\nGood luck!", 2),
        ("Вот советы：\n--> а\n   --> б\n--> в", 2),
        ("# Salt\n--> a\n--> b\n\n**Pepper**\n\n--> c", 2),
        ("- --> a\n- **--> b**", 2),
        ("--> a\n--> b\n--> c\n--> d\n- e", 1),
        ("--> a\n--> b\n--> c\n- d", 0),
        ("First, salt it.\n\n--> a\n--> b", 0),
        ("--> a\n\nA point without.\n\n--> b", 0),
        ("--> a\n--> b\n\nOne more.\n\nAnd another.", 0),
        ("--> only one", 0),
        ("--> a --> b", None),
        ("--> a --> b --> c", None),
        ("a --> b --> c", 0),
        ("-> a\n-> b", 0),
        ("1. a\n2. b", 0),
    ],
)
def test_arrow_asks_for_the_marker_at_every_point(text: str, expected: int | None) -> None:
    assert value(text, "arrow") == expected


def test_arrow_cut_after_one_point_is_missing() -> None:
    assert [value(text, "arrow", cut=True) for text in ("--> a", "--> a\n--> b", "Prose")] == [None, 2, 0]


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Salt The Steak 2 Days Before, Don't Wait!", "en", 2),
        ("L'Eau D'Une Source, l'Air Et Aujourd'hui", "fr", 2),
        ("Каждое Слово С Большой Буквы", "ru", 2),
        ("ALL CAPITALS", "en", 2),
        ("**Bold** (Words) `code` https://example.org/page 3rd Ǆungla", "hr", 2),
        ("Salt The Steak Well And Then Cook It slowly", "en", 1),
        ("Salt the steak well", "en", 0),
        ("Ärger Über ölige Übel Öfter Ändern", "de", 1),
        ("盐 牛排", "zh", None),
        ("Title Case", "hi", None),
        ("أملح اللحم جيدا", "ru", None),
        ("42", "en", None),
    ],
)
def test_capitalized(text: str, language: str, expected: int | None) -> None:
    assert value(text, "capitalized", language) == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("salt the steak, don't wait. 42!", "en", 2),
        ("straße über ölige übel", "de", 2),
        ("every word " * 30 + "NASA", "en", 1),
        ("Every word " + "every word " * 30, "en", 0),
        ("Salt the steak", "en", 0),
        ("Ивана зовут", "ru", 0),
        ("盐", "zh", None),
        ("2 + 2", "fr", None),
    ],
)
def test_lowercase(text: str, language: str, expected: int | None) -> None:
    assert value(text, "lowercase", language) == expected


WORDS = [
    (
        "en",
        "sun",
        ["The SUN.", "**sun**", "sun-dried", "the sun's", "\u202esun\u202c", "s\u200bun", "_sun_"],
        ["sunny", "Sunday", "s un"],
    ),
    ("en", "climate  change", ["Climate change", "climate\nchange"], ["climate chance", "climate, change"]),
    ("fr", "été", ["L'été", "l’e\u0301te\u0301!", "ÉTÉ"], ["étendue", "ete"]),
    ("de", "Straße", ["STRASSE", "die Straße."], ["Straßenbahn"]),
    ("ru", "ёлка", ["Ёлка!", "елка"], ["ёлочка", "ёлка1"]),
    ("tr", "ışık", ["IŞIK", "Işıklar"], ["İŞİK", "ışı"]),
    ("tr", "İstanbul", ["istanbul", "İSTANBUL'da", "İstanbullu"], ["Istanbul"]),
    ("ar", "كتاب", ["الكتاب", "وكتاب", "كِتَابٌ", "كـــتاب", "وبالكتاب", "كتابه"], ["مكتاب", "كتابات"]),
    ("he", "ספר", ["הספר", "שבספר"], ["סיפור"]),
    ("hi", "हिन्दी", ["यह हिन्दी।", "हिन्दी"], ["हिन्दीभाषी"]),
    ("hi", "कि", ["कि वह"], ["किताब", "की"]),
    ("ko", "사과", ["사과를", "사과는 맛있다", "사과입니다"], ["사과나무", "풋사과"]),
    ("zh", "苹果", ["我吃苹果。", "苹果手机", "我吃蘋果。"], ["苹 果"]),
    ("fa", "می‌روم", ["من می روم.", "من می‌روم."], ["من رفتم."]),
    ("ca", "col·laborar", ["Cal col.laborar."], ["Cal cooperar."]),
    ("zh", "AI", ["使用ＡＩ技术", "ai。"], ["AIR", "MAIL"]),
    ("ja", "コーヒー", ["コーヒーを飲む", "ｺｰﾋｰ"], ["コヒー"]),
    ("th", "กาแฟ", ["ดื่มกาแฟร้อน"], ["ชา"]),
]


@pytest.mark.parametrize(("language", "word", "inside", "outside"), WORDS)
def test_words_are_found_as_the_script_writes_them(
    language: str, word: str, inside: list[str], outside: list[str]
) -> None:
    assert [text for text in inside if value(text, "include", language, word=word) != 2] == []
    assert [text for text in outside if value(text, "include", language, word=word) != 0] == []
    assert {value(text, "exclude", language, word=word) for text in inside} == {0}
    assert {value(text, "exclude", language, word=word) for text in outside} == {2}


def test_a_word_that_may_still_come_is_missing() -> None:
    assert value("The moon", "include", cut=True) is None
    assert value("The sun", "include", cut=True) == 2
    assert value("The sun", "exclude", cut=True) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well, the end", 2),
        ('"That is **The End**"\n\n', 2),
        ("the end", 2),
        ("The end.", 0),
        ("the end of it", 0),
        ("Breathe end", 0),
    ],
)
def test_ends_with(text: str, expected: int) -> None:
    assert value(text, "ends_with") == expected
    assert value(text, "ends_with", cut=True) is None


def test_ends_with_in_scripts_without_spaces() -> None:
    assert value("谢谢大家！", "ends_with", "zh", phrase="大家！") == 2
    assert value("故事完", "ends_with", "zh", phrase="大家") == 0


OBJECT = json.dumps({"b": {"c": [1]}, "a": "{x}"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OBJECT, 2),
        (f"\n ```json\n{OBJECT}\n```", 2),
        (f"```\n{OBJECT}```", 2),
        (f"~~~json\n{OBJECT}\n~~~", 2),
        (f"````\n{OBJECT}\n````", 2),
        (f"{OBJECT} Enjoy!", 1),
        (f"Here {{it}} is: {OBJECT} Enjoy!", 1),
        (f"Here:\n```json\n{OBJECT}\n```\nEnjoy!", 1),
        (OBJECT.replace('"a"', '"c"'), 0),
        (OBJECT[:-1], 0),
        (OBJECT[:-1] + ', "d": 1}', 0),
        ('{"a": 1, "a": 2, "b": 3}', 0),
        ('{"a": NaN, "b": 3}', 0),
        ("{'a': 1, 'b': 2}", 0),
        (f'{{"outer": {OBJECT}}}', 0),
        (f"[{OBJECT}]", 1),
        ('["a", "b"]', 0),
        ("[" * 100_000, 0),
        ('{"a":' * 100_000, 0),
    ],
)
def test_json_is_one_object_with_exactly_these_keys(text: str, expected: int) -> None:
    assert value(text, "json") == expected
    assert value(text, "json", cut=True) is None


def test_reply_language_is_what_the_language_facet_says() -> None:
    french = "Bonjour, la lumière du soleil est diffusée par l'air, surtout la partie bleue."
    record = {"text": french, "language": "en", "constraint": {"name": "reply_language", "language": "fr"}}
    assert rate_constraint(record)[0] == 2
    assert rate_constraint(record | {"constraint": {"name": "reply_language", "language": "pt"}})[0] == 0
    assert rate_constraint(record | {"text": "42"})[0] is None


def test_reply_language_tells_french_from_english() -> None:
    french = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."
    english = "The leaves turn yellow because the days become shorter and colder."
    for text, expected in ((french, 2), (english, 0), ("", 0)):
        record = {"text": text, "language": "en", "constraint": {"name": "reply_language", "language": "fr"}}
        assert rate_constraint(record)[0] == expected


@pytest.mark.parametrize("fence", ["```", "~~~", "````", "```text"])
@pytest.mark.parametrize(
    ("name", "inside", "expected"),
    [
        ("lowercase", "la nuit tombe sur la ville.", 2),
        ("lowercase", "La Nuit Tombe Sur La Ville.", 0),
        ("capitalized", "La Nuit Tombe Sur La Ville.", 2),
        ("capitalized", "la nuit tombe sur la ville.", 0),
    ],
)
def test_a_reply_in_one_fence_is_the_text_inside(fence: str, name: str, inside: str, expected: int) -> None:
    text = f"{fence}\n{inside}\n{fence.rstrip('tex')}"
    assert rate_constraint({"text": text, "language": "fr", "constraint": {"name": name}})[0] == expected


@pytest.mark.parametrize(
    ("code", "word", "text", "included", "excluded"),
    [
        ("ru", "книга", "Мы читали старые книги.", None, None),
        ("uk", "мова", "Він вивчає мови.", None, None),
        ("pl", "szkoła", "Dzieci są w szkole i w szkołach.", None, None),
        ("cs", "město", "Bydlíme ve městě.", None, None),
        ("hr", "grad", "Živimo u gradu.", None, None),
        ("sr", "град", "Живимо у граду.", None, None),
        ("el", "δρόμος", "Περπατάμε στους δρόμους.", None, None),
        ("fr", "voiture", "Les voitures sont chères.", None, None),
        ("es", "flor", "Las flores son rojas.", None, None),
        ("pt", "casa", "As casas são brancas.", None, None),
        ("it", "libro", "I libri sono vecchi.", None, None),
        ("de", "Tag", "Die Tage werden kürzer.", None, None),
        ("en", "river", "Two rivers meet here.", None, None),
        ("sv", "flicka", "Flickorna leker.", None, None),
        ("ru", "книга", "Это хорошая книга, таких книг мало.", 2, 0),
        ("ru", "дом", "Домино лежит на столе.", 0, 2),
        ("en", "cat", "The category is wide.", 0, 2),
        ("fr", "car", "Une carte du monde.", 0, 2),
        ("de", "Haus", "Der Haushalt ist klein.", 0, 2),
    ],
)
def test_another_form_of_a_word_is_neither_the_word_nor_another_word(
    code: str, word: str, text: str, included: int | None, excluded: int | None
) -> None:
    record = {"text": text, "language": code}
    for name, expected in (("include", included), ("exclude", excluded)):
        found, detail, reason = rate_constraint(record | {"constraint": {"name": name, "word": word}})
        assert found == expected, name
        assert (reason is None) == (expected is not None)
        assert ("forms" in detail) == (expected is None)


@pytest.mark.parametrize(
    ("code", "text", "count"),
    [
        ("fr", "Merci. P.-S. : Prends les clés.", 2),
        ("fr", "J.-C. Martin habite ici. Il est médecin.", 2),
        ("id", "Biayanya Rp. 20.000. Itu murah.", 2),
        ("id", "Kami makan nasi, ikan, dll. Setelah itu kami pulang.", 2),
        ("pl", "Mieszka przy ul. Długiej. Lubi np. Kraków.", 2),
        ("cs", "Bydlí v ul. Dlouhé. Stojí to Kč. 500.", 2),
        ("vi", "Anh ấy sống ở TP. Huế. Trời mưa.", 2),
        ("tr", "Sn. Yılmaz geldi. Doç. Kaya gitti.", 2),
        ("uk", "Він живе на вул. Шевченка. Це далеко.", 2),
        ("sv", "Han bor i bl.a. Lund. Det regnar.", 2),
        ("zh", "她问：“你好吗？我很好。”大家都笑了。", 1),
        ("ja", "彼は「行かない。君は？」と言った。雨が降った。", 2),
        ("ja", "母は「もう寝なさい!もう遅いよ!」と言った。僕は寝た。", 2),
        ("ko", '그는 "안 가요. 당신은요?"라고 물었다. 그리고 떠났다.', 2),
        ("pl", "W 1683 r. Sobieski wygrał bitwę. Był królem.", 2),
        ("ru", "В 1812 г. Кутузов принял командование. Было лето.", 2),
        ("ro", "Dna. Ionescu stă pe str. Florilor. E frumos.", 2),
        ("en", "She was born in the U.K. She moved to the U.S. Navy base.", 2),
        ("zh", "“今天下雨。我不出门。”", 2),
        ("zh", "天气很好。她说“走吧。", 2),
        ("en", "On Jan. 5 they won 3.5 vs. 2.5 points. Nice!", 2),
        ("id", "PT. Maju Terus ada di Jl. Melati No. 7. Kantornya besar.", 2),
        ("ru", "«Пойдём!» — сказала она. Он кивнул.", 2),
        ("hy", "Նա եկավ: Նա գնաց:", 2),
        ("km", "សួស្តី\u17d4 អរគុណ\u17d4", 2),
        ("sw", "Bw. Juma alifika jana. Alifurahi.", 2),
    ],
)
def test_abbreviations_and_quotations_end_no_sentence(code: str, text: str, count: int) -> None:
    assert len(split_sentences(text, code)) == count


def test_capitals_behind_digits_are_capitals() -> None:
    for text in ("he came in 2ND at 5PM today", "the 3RD of may"):
        assert rate_constraint({"text": text, "language": "en", "constraint": {"name": "lowercase"}})[0] in (0, 1)
    text = "The 3rd Of May"
    assert rate_constraint({"text": text, "language": "en", "constraint": {"name": "capitalized"}})[0] == 2


@pytest.mark.parametrize(
    ("code", "word", "text"),
    [
        ("tr", "ev", "Evler boş."),
        ("de", "Traum", "Die Träume sind schön."),
        ("pt", "sinal", "Os sinais são claros."),
        ("fr", "journal", "Les journaux du matin."),
        ("ja", "読む", "本を読んで寝ました。"),
        ("lt", "upė", "Prie upės auga medžiai."),
        ("nl", "brief", "Zij schrijft brieven."),
        ("sw", "kisima", "Visima vingi vimekauka."),
        ("ka", "სახლი", "სახლში ვართ."),
        ("en", "co-author", "They coauthor a book."),
    ],
)
def test_what_may_be_a_form_of_a_forbidden_word_is_missing(code: str, word: str, text: str) -> None:
    assert value(text, "exclude", code, word=word) is None


def test_spellings_of_one_word_are_one_in_hindi_italian_and_catalan() -> None:
    for code, word, text in [
        ("hi", "चंपा", "चम्पा का फूल"),
        ("it", "poiché", "Poichè piove."),
        ("ca", "il·lusió", "Quina il•lusió!"),
    ]:
        assert value(text, "include", code, word=word) == 2
