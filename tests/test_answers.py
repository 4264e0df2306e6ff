from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from xlift.rating.answers import rate_answers, signature
from xlift.records import read_jsonl
from xlift.study.data import builtin_path

OTTAWA = {
    "en": ["Ottawa"],
    "fr": ["Ottawa"],
    "pt": ["Ottawa", "Otava"],
    "ru": ["Оттава", "Оттавы", "Оттаве", "Оттаву", "Оттавой"],
    "de": ["Ottawa"],
    "es": ["Ottawa"],
    "it": ["Ottawa"],
    "nl": ["Ottawa"],
    "tr": ["Ottawa"],
    "ar": ["أوتاوا"],
    "hi": ["ओटावा"],
    "zh": ["渥太华"],
    "ja": ["オタワ"],
    "ko": ["오타와"],
    "id": ["Ottawa"],
}
EIGHT = {
    "en": ["8", "eight"],
    "fr": ["8", "huit"],
    "pt": ["8", "oito"],
    "ru": ["8", "восемь", "восьми"],
    "de": ["8", "acht"],
    "es": ["8", "ocho"],
    "it": ["8", "otto"],
    "nl": ["8", "acht"],
    "tr": ["8", "sekiz"],
    "ar": ["8", "ثمانية", "ثماني"],
    "hi": ["8", "आठ"],
    "zh": ["8", "八"],
    "ja": ["8", "八"],
    "ko": ["8", "여덟"],
    "id": ["8", "delapan"],
}


def value(text: str, answers: list[str], language: str = "en", **more: Any) -> float | None:
    rated = rate_answers({"text": text, "language": language, "answers": answers, **more})
    assert (rated[0] is None) == bool(rated[2]), "a missing value has a reason, and only a missing value"
    return rated[0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "OTTAWA"),
        ("en", "It's Ottawa's parliament."),
        ("en", "**Ottawa**"),
        ("en", "_Ottawa_."),
        ("en", "Not Toronto but Ottawa."),
        ("en", "No, Ottawa."),
        ("en", "It is not Toronto. Ottawa is."),
        ("en", "Ottawa, not Toronto."),
        ("en", "Ottawa is not only the capital, it is a city on a river."),
        ("fr", "C'est la ville d'Ottawa."),
        ("fr", "Ce n'est pas Toronto, c'est Ottawa."),
        ("pt", "Não é Toronto, é Otava."),
        ("ru", "Столица Канады — Оттава."),
        ("ru", "Правительство заседает в ОТТАВЕ"),
        ("ru", "Не Торонто, а Оттава"),
        ("de", "Nicht Toronto, sondern Ottawa."),
        ("es", "No es Toronto, sino Ottawa."),
        ("es", "¡Ottawa!"),
        ("it", "Non è Toronto ma Ottawa."),
        ("nl", "Niet Toronto maar Ottawa."),
        ("tr", "OTTAWA'dır."),
        ("tr", "Başkent Ottawadır."),
        ("tr", "Toronto değil Ottawa."),
        ("ar", "بأوتاوا"),
        ("ar", "العاصمة هي أُوتاوا."),
        ("ar", "عاصمة كندا اوتـاوا"),
        ("ar", "ليست تورونتو بل أوتاوا"),
        ("hi", "कनाडा की राजधानी ओटावा है।"),
        ("hi", "टोरंटो नहीं, ओटावा"),
        ("zh", "加拿大的首都是渥太华。"),
        ("zh", "不是多伦多,而是渥太华"),
        ("ja", "カナダの首都はオタワです。"),
        ("ja", "トロントではなくオタワです。"),
        ("ko", "캐나다의 수도는 오타와입니다."),
        ("ko", "토론토가 아니라 오타와예요"),
        ("id", "Bukan Toronto, melainkan Ottawa."),
        ("id", "Ottawalah ibu kotanya."),
    ],
)
def test_the_answer_in_a_sentence_is_right(language: str, text: str) -> None:
    assert value(text, OTTAWA[language], language) == 2


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Toronto"),
        ("en", "I don't know."),
        ("en", "It is not Ottawa."),
        ("en", "It isn’t in Ottawa, it is Toronto."),
        ("en", "Toronto rather than Ottawa"),
        ("en", "Ottawan food is good."),
        ("fr", "Ce n'est pas Ottawa."),
        ("fr", "Toronto, et non Ottawa."),
        ("fr", "Ottawa n’est pas la capitale."),
        ("pt", "Não é Otava, é Toronto."),
        ("ru", "Это не Оттава, а Торонто."),
        ("ru", "Оттава — не столица."),
        ("de", "Es ist nicht Ottawa."),
        ("de", "Ottawa ist nicht die Hauptstadt."),
        ("es", "Toronto, no Ottawa"),
        ("es", "No es “Ottawa”."),
        ("it", "Non è Ottawa."),
        ("nl", "Het is niet Ottawa."),
        ("tr", "Başkent Ottawa değildir."),
        ("tr", "Ottawa değil, Toronto"),
        ("ar", "ليست أوتاوا بل تورونتو"),
        ("hi", "ओटावा नहीं, टोरंटो"),
        ("hi", "राजधानी ओटावा नहीं है।"),
        ("zh", "不是渥太华,是多伦多。"),
        ("zh", "渥太华不是加拿大的首都"),
        ("ja", "オタワではありません。"),
        ("ja", "オタワではなく、トロントです。"),
        ("ko", "오타와가 아닙니다."),
        ("ko", "오타와가 아니라 토론토입니다"),
        ("id", "Bukan Ottawa, tetapi Toronto."),
    ],
)
def test_another_answer_or_a_negated_one_is_wrong(language: str, text: str) -> None:
    assert value(text, OTTAWA[language], language) == 0


def test_a_denial_of_something_else_does_not_deny_the_answer() -> None:
    asked = [{"role": "user", "content": "Which planet is the hottest in our Solar System?"}]
    assert value("Venus is not the nearest to the Sun, but its air is thick.", ["Venus"], messages=asked) == 2
    assert value("Venus is not the hottest.", ["Venus"], messages=asked) == 0
    assert value("The ostrich is not able to fly.", ["ostrich"], messages=asked) == 2
    assert (
        value(
            "Страус не умеет летать",
            ["страус"],
            "ru",
            messages=[{"role": "user", "content": "Какая птица больше всех?"}],
        )
        == 2
    )
    assert value("Ottawa is not the largest city. The capital is Ottawa.", ["Ottawa"]) == 2


@pytest.mark.parametrize("language", EIGHT)
def test_digits_match_in_any_script_and_only_as_a_whole_number(language: str) -> None:
    answers = EIGHT[language]
    for right in ("8", "٨", "۸", "८", "８", "8.", "(8)", "8,", "= 8", "**8**", "8.0", "8-", "»8«", "$8$", "7 + 1 = 8!"):
        assert value(right, answers, language) == 2, right
    for wrong in (
        *(
            "18",
            "80",
            "8.5",
            "8,5",
            "8,000",
            "8 000",
            "1.8",
            "1/8",
            "8/10",
            "1８",
            "٨٠",
            "८८",
            "8%",
            "8:30",
            "7-8",
            "2⁸",
            "h8",
        ),
        *("8th", "8 million", "8 tausend", "8x", "⑧. x", "1, 8, 9", "1、8、9", "8月", "第8", "8百"),
    ):
        assert value(wrong, answers, language) == 0, wrong


@pytest.mark.parametrize(
    "text", ["1000", "1,000", "1 000", "1\u202f000", "1.000", "1'000", "1’000", "１０００", "١٠٠٠", "١٬٠٠٠"]
)
@pytest.mark.parametrize("answer", ["1000", "1,000", "1 000"])
def test_thousands_may_be_grouped(text: str, answer: str) -> None:
    assert value(f"It is {text}.", [answer]) == 2
    assert value(f"It is 2{text}.", [answer]) == 0
    assert value(f"It is {text}0.", [answer]) == 0
    assert value(f"It is {text},000.", [answer]) == 0
    assert value(f"It is {text}.", ["000"]) == 0


@pytest.mark.parametrize("answer", ["2.75", "2,75"])
@pytest.mark.parametrize(
    "language", ["de", "fr", "es", "pt", "it", "nl", "ru", "pl", "sv", "tr", "id", "vi", "el", "no"]
)
def test_a_fraction_is_found_with_the_mark_of_its_language_and_with_a_point(language: str, answer: str) -> None:
    for right in ("2,75", "2.75", "(2,75)", "**2,75**", "= 2,75."):
        assert value(right, [answer], language) == 2, right
    for wrong in ("12,75", "2,751", "2,7", "2,75,8", "2 75", "275", "-2,75"):
        assert value(wrong, [answer], language) == 0, wrong


@pytest.mark.parametrize(
    ("language", "answer", "text"),
    [
        ("en", "5%", "It is 5 percent."),
        ("en", "5 percent", "About 5%."),
        ("fr", "5 %", "Environ 5 pour cent."),
        ("es", "5%", "Es el 5 por ciento."),
        ("ru", "5%", "Это 5 процентов."),
        ("tr", "5%", "Yüzde 5'tir."),
        ("zh", "5%", "答案是百分之5。"),
        ("ar", "5%", "الجواب ٥٪"),
    ],
)
def test_percent_is_found_as_the_language_says_it(language: str, answer: str, text: str) -> None:
    assert value(text, [answer], language) == 2
    assert value(text.replace("5", "15").replace("٥", "١٥"), [answer], language) == 0


def test_a_number_with_a_percent_sign_answers_where_a_share_is_asked_for() -> None:
    asked = [{"role": "user", "content": "What percentage of the air is argon?"}]
    assert value("About 1%.", ["1"], messages=asked) == 2
    assert value("About 1%.", ["1"], messages=[{"role": "user", "content": "How many moons are there?"}]) == 0


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("5 kg", "It weighs 5kg.", "It weighs 15kg."),
        ("12h30", "At 12 h 30.", "At 12 h 35."),
        ("0.5", "It is 0.50.", "It is 0.501."),
        ("UK", "In the U.K.", "In Ukraine."),
        ("The Nile", "It is called Nile.", "It is called Senile."),
        ("The Police", "By The Police.", "It is called police."),
        ("Beyonce", "Beyoncé sang it.", "Beyo sang it."),
    ],
)
def test_forms_are_found_as_people_write_them(answer: str, right: str, wrong: str) -> None:
    assert (value(right, [answer]), value(wrong, [answer])) == (2, 0)


@pytest.mark.parametrize("language", ["en", "zh", "ja", "ko", "hi", "th"])
def test_a_comma_marks_no_fraction_where_a_point_does(language: str) -> None:
    assert value("2.75", ["2.75"], language) == 2
    assert value("2,75", ["2.75"], language) == 0


@pytest.mark.parametrize(
    ("language", "answer", "text", "expected"),
    [
        ("de", "2400.5", "2.400,5", 2),
        ("fr", "2400.5", "2\u202f400,5", 2),
        ("ar", "2.75", "٢٫٧٥", 2),
        ("fa", "2.75", "۲٫۷۵", 2),
        ("ru", "0.125", "0,125", 2),
        ("de", "2.125", "2,125", 0),  # may be 2125
        ("de", "8.5.1945", "8,5,1945", 0),
        ("en", "2400", "2,400.75", 0),
        ("en", "2400", "2,400.00", 2),
        ("zh", "1949", "1949.10", 2),
        ("zh", "1949", "1949.10.1", 2),
    ],
)
def test_a_mark_is_read_as_decimal_only_where_it_is_nothing_else(
    language: str, answer: str, text: str, expected: int
) -> None:
    assert value(text, [answer], language) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1939–1945", 2),
        ("8.5.1945", 2),
        ("1945-05-08", 2),
        ("1945/46", 2),
        ("1945年", 2),
        ("1945년에", 2),
        ("в 1945-м", 2),
        ("1945'te", 2),
        ("19450", 0),
        ("1945,5", 0),
        ("1945th", 2),
    ],
)
def test_years_may_stand_in_a_date(text: str, expected: int) -> None:
    assert value(text, ["1945"]) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "A spider has eight legs.", 2),
        ("en", "an eight-legged animal", 2),
        ("en", "twenty-eight", 0),
        ("en", "eight hundred", 0),
        ("en", "one hundred and eight", 0),
        ("en", "eighteen, eighty, eighth", 0),
        ("fr", "Elle a huit pattes.", 2),
        ("fr", "quatre-vingt-huit", 0),
        ("fr", "vingt huit", 0),
        ("fr", "huit cents", 0),
        ("pt", "São oito patas", 2),
        ("pt", "cinquenta e oito", 0),
        ("pt", "oito mil", 0),
        ("es", "presenta ocho patas", 2),
        ("es", "treinta y ocho", 0),
        ("es", "dieciocho", 0),
        ("ru", "ходят на восьми ногах", 2),
        ("ru", "тридцать восемь", 0),
        ("ru", "восемь тысяч", 0),
        ("de", "um acht Beine", 2),
        ("de", "achtzehn, achtundzwanzig, achthundert", 0),
        ("it", "ha otto zampe", 2),
        ("it", "ventotto", 0),
        ("nl", "acht poten", 2),
        ("nl", "achttien", 0),
        ("tr", "sekiz bacak", 2),
        ("tr", "sekizdir", 2),
        ("tr", "on sekiz", 0),
        ("tr", "sekizinci", 0),
        ("tr", "sekiz yüz", 0),
        ("tr", "sekiz yüzdür", 0),
        ("ar", "لها ثماني أرجل", 2),
        ("ar", "ثمانيةٌ", 2),
        ("ar", "ثمانية عشر", 0),
        ("ar", "ثمانية وثمانون", 0),
        ("hi", "आठ पैर", 2),
        ("hi", "आठवाँ", 0),
        ("hi", "आठ सौ", 0),
        ("id", "delapan kaki", 2),
        ("id", "delapan puluh", 0),
        ("id", "dua puluh delapan", 0),
        ("id", "delapan belas", 0),
        ("zh", "八条腿", 2),
        ("zh", "答案是八。", 2),
        ("zh", "十八条", 0),
        ("zh", "八十", 0),
        ("zh", "八月", 0),
        ("zh", "第八", 0),
        ("zh", "八路军", 0),
        ("ja", "八本です", 2),
        ("ja", "八つの足", 2),
        ("ja", "八百屋", 0),
        ("ja", "二十八本", 0),
        ("ko", "여덟 개입니다", 2),
        ("ko", "여덟이에요", 2),
        ("ko", "스물여덟", 0),
        ("ko", "스물 여덟", 0),
        ("ko", "여덟 번째입니다", 0),
        ("ko", "8개", 2),
        ("ko", "8천", 0),
        ("ko", "8월 8일", 0),
    ],
)
def test_number_words_match_whole(language: str, text: str, expected: int) -> None:
    assert value(text, EIGHT[language], language) == expected


@pytest.mark.parametrize(
    ("language", "answer", "text", "expected"),
    [
        ("zh", "水", "水", 2),
        ("zh", "水", "这是水。", 2),
        ("zh", "水", "水是一种液体", 2),
        ("zh", "水", "由水分子组成", 2),
        ("zh", "水", "是水银", 0),
        ("zh", "水", "水果", 0),
        ("zh", "水", "用水灭火", 2),
        ("zh", "铁", "铁元素", 2),
        ("zh", "铁", "金属铁", 2),
        ("zh", "铁", "地铁", 0),
        ("zh", "银", "银元素", 2),
        ("zh", "银", "银行", 0),
        ("zh", "西", "太阳向西落下", 2),
        ("zh", "西", "西班牙", 0),
        ("zh", "氧", "二氧化碳", 0),
        ("ja", "水", "これは水です。", 2),
        ("ja", "水", "水素です", 0),
        ("ja", "水", "水銀", 0),
        ("ja", "銀", "銀です", 2),
        ("ja", "銀", "水銀です", 0),
        ("ja", "鉄", "鉄道", 0),
        ("ja", "七", "七月", 0),
        ("ja", "ローマ", "ローマです", 2),
        ("ja", "ローマ", "ローマンス", 0),
        ("ja", "レオナルド・ダ・ヴィンチ", "レオナルド ダ ヴィンチ", 2),
        ("ko", "은", "은입니다", 2),
        ("ko", "은", "정답은 은", 2),
        ("ko", "은", "정답은 금", 0),
        ("ko", "은", "은행", 0),
        ("ko", "물", "물이에요", 2),
        ("ko", "물", "물가가 올랐다", 0),
        ("ko", "물", "물고기", 0),
        ("ko", "철", "철도", 0),
        ("ko", "뇌", "뇌가 합니다", 2),
        ("ko", "Seine", "Seine강은", 2),
        ("fr", "Afrique", "en l’Afrique", 2),
        ("fr", "Pérou", "au Perou", 2),
        ("fr", "fer", "enfer", 0),
        ("fr", "œuf", "un oeuf", 2),
        ("it", "Africa", "nord dell'Africa", 2),
        ("it", "Africa", "africano", 0),
        ("de", "Strauß", "der Strauss", 2),
        ("de", "Grönland", "Groenland", 2),
        ("de", "Grönland", "Gronland", 2),
        ("de", "Panama-Kanal", "Panama Kanal", 2),
        ("nl", "één", "een man", 0),
        ("ru", "Фёдор Достоевский", "Федор Достоевский", 2),
        ("ru", "Рим", "Римский", 0),
        ("tr", "Iğdır", "IĞDIR", 2),
        ("tr", "İzmir", "izmir", 2),
        ("tr", "su", "sudur", 2),
        ("tr", "Roma", "Romanya", 0),
        ("tr", "Nil", "Nil'dir", 2),
        ("ar", "الحديد", "كَالحديد", 2),
        ("ar", "حديد", "للحديد", 2),
        ("ar", "فضة", "فضه", 2),
        ("ar", "ماء", "سماء", 0),
        ("hi", "अफ़्रीका", "अफ्रीका", 2),
        ("hi", "पाँच", "पांच", 2),
        ("hi", "नील", "नीला", 0),
        ("en", "William Shakespeare", "William\nShakespeare", 2),
        ("th", "กรุงเทพ", "คือกรุงเทพครับ", 2),
        ("fi", "Helsinki", "Helsinkiin", 2),
        ("he", "רומא", "ברומא", 2),
        ("xx", "Rome", "Rome!", 2),
        # Thousands by threes and as in India, in digits of any script.
        ("hi", "2500000", "कुल 25,00,000 किताबें हैं।", 2),
        ("hi", "2500000", "कुल २५,००,००० किताबें हैं।", 2),
        ("bn", "700000", "প্রায় ৭,০০,০০০ মানুষ।", 2),
        ("en", "12,34,567", "It has 1,234,567 lines.", 2),
        ("en", "2500000", "It has 12,500,000 lines.", 0),
        # The sign is part of a number.
        ("en", "-12", "It falls to −12 degrees.", 2),
        ("en", "-12", "It falls to 12 degrees.", 0),
        ("en", "12", "It falls to −12 degrees.", 0),
        ("fr", "-3", "Il fait moins 3 degrés.", 2),
        ("fr", "3", "Il fait moins 3 degrés.", 0),
        ("ru", "-7", "Сейчас минус 7 градусов.", 2),
        ("zh", "8", "今天零下8度。", 0),
        ("en", "12", "The pages 10-12 are missing: 12 in all.", 2),
        ("en", "5", "It is 10 minus 5.", 2),
        # Accents in short words of longer names; initials.
        ("pt", "Cabo da Boa Esperança", "É o Cabo da Boa Esperanca.", 2),
        ("es", "Río de la Plata", "Es el Rio de la Plata.", 2),
        ("en", "J.R.R. Tolkien", "It was J. R. R. Tolkien.", 2),
        ("en", "J. R. R. Tolkien", "It was JRR Tolkien.", 2),
        ("en", "C. S. Lewis", "It was C.S. Lewis.", 2),
        ("en", "U.S.", "It was one of us.", 0),
        # Words of scripts without spaces.
        ("zh", "京都", "他住在北京都市圈。", 0),
        ("zh", "北京", "首都是北京市。", 2),
        ("zh", "海南", "答案是海南省。", 2),
        ("ja", "大阪", "それは大阪府です。", 2),
        ("zh", "堪培拉", "澳大利亚的首都是堪培拉。", 2),
        # A letter names a choice or is a word.
        ("en", "A", "A nice idea would be C.", 0),
        ("en", "A", "The answer is A.", 2),
        ("en", "A", "A) The first one", 2),
        ("fr", "A", "Il y a deux réponses : B.", 0),
        ("es", "A", "La respuesta es A porque llueve.", 2),
        # Negations.
        ("cs", "Brno", "Není to Brno, ale Praha.", 0),
        ("sv", "Malmö", "Det är inte Malmö utan Stockholm.", 0),
        ("da", "Aarhus", "Det er ikke Aarhus, men København.", 0),
        ("fi", "Turku", "Se ei ole Turku vaan Helsinki.", 0),
        ("hu", "Pécs", "Nem Pécs, hanem Budapest.", 0),
        ("ro", "Cluj", "Nu este Cluj, ci București.", 0),
        ("uk", "Львів", "Це не Львів, а Київ.", 0),
        ("el", "Πάτρα", "Δεν είναι η Πάτρα αλλά η Αθήνα.", 0),
        ("he", "חיפה", "זה לא חיפה אלא ירושלים.", 0),
        ("fa", "شیراز", "شیراز نیست، تهران است.", 0),
        ("ur", "لاہور", "دارالحکومت لاہور نہیں بلکہ اسلام آباد ہے۔", 0),
        ("bn", "চট্টগ্রাম", "রাজধানী চট্টগ্রাম নয়, ঢাকা।", 0),
        ("th", "เชียงใหม่", "ไม่ใช่เชียงใหม่ แต่เป็นกรุงเทพ", 0),
        ("vi", "Huế", "Đó không phải là Huế mà là Hà Nội.", 0),
        ("pl", "Gdańsk", "Stolicą nie jest Gdańsk.", 0),
        # Cases.
        ("ru", "Канберра", "Речь идёт о Канберре.", 2),
        ("ru", "Новая Зеландия", "Он живёт в Новой Зеландии.", 2),
        ("uk", "Одеса", "Він живе в Одесі.", 2),
        ("pl", "Warszawa", "Mieszka w Warszawie.", 2),
        ("cs", "Berlín", "Bydlí v Berlíně.", 2),
        ("sr", "Београд", "Живи у Београду.", 2),
        ("el", "Λονδίνο", "Η πρωτεύουσα του Λονδίνου.", 2),
        ("ru", "Рим", "Пример дал Римский сенат.", 0),
        ("pl", "Kraków", "Mieszka w Krakowie.", 2),
        ("cs", "Praha", "Narodil se v Praze.", 2),
        ("fi", "Turku", "Hän asuu Turussa.", 2),
        ("uk", "Харків", "Він живе у Харкові.", 2),
        ("ta", "சென்னை", "அவர் சென்னையில் வாழ்கிறார்.", 2),
        ("de", "Österreich", "Die Hauptstadt Österreichs.", 2),
        ("it", "A", "La risposta è a Torino: B", 0),
        ("ru", "В", "В этом случае ответ Б.", 0),
        ("nl", "-7", "Het is min 7 graden.", 2),
        ("nl", "7", "Het duurt 5 min 7 seconden.", 2),
        ("pl", "Łomża", "To Lomza.", 2),
    ],
)
def test_an_answer_is_found_as_the_language_writes_it_and_nothing_else(
    language: str, answer: str, text: str, expected: int
) -> None:
    assert value(text, [answer], language) == expected


def test_a_power_is_not_part_of_its_base() -> None:
    assert value("Because 9² = 81.", ["9"]) == 2
    assert value("Because 9² = 81.", ["92", "2"]) == 0


def test_the_rules_are_those_of_the_reply_language() -> None:
    assert value("H2O sudur", ["su"], "en", reply_language="tr") == 2
    assert value("H2O sudur", ["su"], "en") == 0


def test_a_list_number_is_no_answer() -> None:
    months = "1. January\n2. March\n3. May\n4. July\n5. August\n6. October\n7. December"
    assert value(months, ["7", "seven"]) == 0
    assert value(f"{months}\nSo 7 months.", ["7", "seven"]) == 2
    assert value("1️⃣ a\n2️⃣ b", ["2"]) == 0
    assert value("7. That is all.", ["7"]) == 2


def test_a_repetition_of_the_question_is_no_answer() -> None:
    question = "Is the capital of Australia Canberra or Sydney?"
    asked = {"messages": [{"role": "user", "content": f"Tell me. {question}"}]}
    assert value("is the capital of Australia  Canberra or Sydney? Sydney!", ["Canberra"], **asked) == 0
    assert value(f"{question} Canberra.", ["Canberra"], **asked) == 2
    assert value(question, ["Canberra"], prompt=question) == 0
    assert value(question, ["Canberra"]) == 2
    spoken = [*asked["messages"], {"role": "assistant", "content": "Canberra it is."}]
    assert value("Canberra it is.", ["Canberra"], messages=spoken) == 2, "only the user's words are the question"


@pytest.mark.parametrize("messages", ["Canberra?", ["Canberra?"], [{}], [{"role": "user"}], {}, 3])
def test_messages_of_another_shape_are_passed_over(messages: Any) -> None:
    assert value("Canberra it is.", ["Canberra"], messages=messages) == 2


def test_a_wrong_form_that_is_asserted_outranks_the_right_one() -> None:
    def rated(text: str, language: str = "en") -> Any:
        record = {
            "text": text,
            "language": language,
            "answers": ["Canberra", "Sudan"],
            "wrong": ["Sydney", "South Sudan"],
        }
        return rate_answers(record)[:2]

    assert rated("Canberra or Sydney") == (0, {"wrong": "Sydney"})
    assert rated("Sydney. Canberra.") == (0, {"wrong": "Sydney"})
    assert rated("Canberra, not Sydney") == (2, {"matched": "Canberra"})
    assert rated("SUDAN") == (2, {"matched": "Sudan"})
    assert rated("South Sudan") == (0, {"wrong": "South Sudan"})
    assert rated("Not Canberra") == (0, {"negated": "Canberra"})
    assert rated("Not Sydney") == (0, {})


def test_a_right_answer_in_another_language_is_right() -> None:
    def rated(text: str, language: str) -> Any:
        record = {"text": text, "language": language, "answers": EIGHT[language]}
        return rate_answers(
            record | {"answers_any": {"en": ["eight"], "ru": ["восемь"], "id": ["delapan"], "hi": "?"}}
        )[:2]

    assert rated("A spider has got eight legs, as everyone knows.", "fr") == (2, {"matched": "eight", "language": "en"})
    assert rated("У паука восемь ног.", "en") == (2, {"matched": "восемь", "language": "ru"})
    assert rated("Laba-laba punya delapan kaki", "fr") == (2, {"matched": "delapan", "language": "id"}), "looks Malay"
    assert rated("Delapan.", "fr") == (2, {"matched": "delapan", "language": "id"})
    assert rated("거미 다리는 eight 개입니다", "ko") == (2, {"matched": "eight", "language": "en"})
    assert rated("La classe « Delapan » est le nom d'un groupe de musique.", "fr") == (0, {})


def test_what_was_cut_before_an_answer_is_missing() -> None:
    cut = {"finish_reason": "length"}
    assert value("The capital of Canada, a large country in", ["Ottawa"], **cut) is None
    assert value("It is not Ottawa but", ["Ottawa"], **cut) is None
    assert value("The capital is Ottawa, a large", ["Ottawa"], **cut) == 2
    assert value("The capital is Toronto, a", ["Ottawa"], wrong=["Toronto"], **cut) == 0


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\ufeff", None, 8])
def test_an_empty_reply_is_missing(text: Any) -> None:
    assert rate_answers({"text": text, "language": "en", "answers": ["x"]}) == (None, {}, "empty response")


@pytest.mark.parametrize("answers", [None, [], [""], [" "], "Ottawa", [None, 8], {}])
def test_a_prompt_without_answers_is_missing(answers: Any) -> None:
    assert rate_answers({"text": "Ottawa", "language": "en", "answers": answers})[2] == "the prompt has no answers"


@pytest.mark.parametrize(
    "answer", ["(", "a|b", "\\", "[x", "C++", "?", "...", "\u0301", "\ud800", "٨" * 50, "x" * 5000, "—"]
)
def test_odd_answers_are_matched_literally_or_not_at_all(answer: str) -> None:
    assert value("nothing here", [answer], "zh") == 0
    assert value("C++!", ["C++"]) == 2
    assert value("a|b", ["a|b"]) == 2


@pytest.mark.parametrize(
    ("language", "piece"),
    [
        ("en", "8th "),
        ("en", "8,"),
        ("en", "not 8 "),
        ("en", "eight hundred "),
        ("en", "1. 8th\n"),
        ("en", "?"),
        ("fr", "("),
        ("fr", "é"),
        ("tr", "1" * 50 + "."),
        ("ar", "و"),
        ("ar", "ثمانية عشر "),
        ("ko", "오 "),
        ("zh", "1、8、9 "),
        ("zh", "水果"),
        ("zh", "不是八"),
        ("ru", "a"),
    ],
)
def test_a_megabyte_is_rated_in_linear_time(piece: str, language: str) -> None:
    text = piece * (1_000_000 // len(piece.encode()))
    answers = [*EIGHT[language], *OTTAWA[language], "水"]
    asked = [{"role": "user", "content": "Why not? " * 100_000}]
    started = time.perf_counter()
    rated = rate_answers(
        {"text": text, "language": language, "answers": answers, "wrong": ["otter"], "messages": asked}
    )
    assert rated[0] == 0
    # Half a second on one core; quadratic time would be minutes.
    assert time.perf_counter() - started < 5


def test_the_signature_begins_with_rater_and_version() -> None:
    assert re.match(r"answers v\d+\|", signature())


FACTS = sorted(builtin_path("").glob("prompts.facts.*.jsonl"))
# Answers that the reference of another fact really contains, in most languages.
MENTIONED = {
    ("facts-005", "facts-048"),
    ("facts-018", "facts-002"),
    ("facts-025", "facts-045"),
    ("facts-036", "facts-028"),
}


@pytest.mark.skipif(not FACTS, reason="the built-in facts are not there")
@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.name.split(".")[2])
def test_built_in_references_are_right_for_their_own_fact_only(path: Any) -> None:
    facts = [record for _, record in read_jsonl(path)]
    for one in facts:
        for other in facts:
            pair = (one["parallel_id"], other["parallel_id"])
            expected = 2 if one is other else 0
            rated = rate_answers(other | {"text": one["reference"]})
            assert rated[0] == expected or pair in MENTIONED, (pair, rated, one["reference"])
        assert rate_answers(one | {"text": one["messages"][-1]["content"]})[0] == 0, "the question is no answer"
        for form in one["answers"]:
            assert rate_answers(one | {"text": form})[0] == 2, json.dumps([one["parallel_id"], form])


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("et", "See ei ole Praha, vaid Viin."),
        ("sl", "To ni Praha, ampak Dunaj."),
        ("is", "Það er ekki Praha heldur Vín."),
        ("fil", "Hindi Praha kundi Viena."),
        ("az", "Praha deyil, Vyanadır."),
        ("eu", "Ez da Praha, Viena baizik."),
    ],
)
def test_a_denied_answer_is_wrong_in_languages_without_a_list_of_words(language: str, text: str) -> None:
    assert value(text, ["Praha"], language) == 0


def test_an_answer_is_missing_where_nobody_knows_how_the_language_denies() -> None:
    assert value("Ba Praha ba ce.", ["Praha"], "ha") is None
    assert value("Praha.", ["Praha"], "ha") == 2
