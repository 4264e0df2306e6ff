"""A word may be written in several ways; whichever it is, every rater takes it for the same word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import pytest

from xlift.languages import LANGUAGES
from xlift.rating import RATERS
from xlift.rating.language import rate_text
from xlift.rating.language.wordlists import frequencies
from xlift.rating.spelling import listed_form, unhidden
from xlift.rating.text import fold

# A word of the text, and the text, as its lists spell it.
TEXTS = {
    "ru": ("молоко", "Утром она купила молоко и хлеб, а потом пошла домой вместе с младшим братом."),
    "ar": ("المدرسة", "ذهب الولد إلى المدرسة في الصباح مع أخيه الكبير ثم عاد إلى البيت."),
    "fa": ("کتاب", "این کتاب را دیروز از دوستم گرفتم و امروز آن را تا پایان خواندم."),
    "ur": ("کتاب", "یہ کتاب مجھے کل اپنے دوست سے ملی اور میں نے اسے آج پڑھ لیا ہے۔"),
    "he": ("הילד", "הילד הלך בבוקר לבית הספר עם אחיו הגדול וחזר הביתה."),
    "el": ("σπίτι", "Το πρωί η μητέρα έφυγε από το σπίτι και πήγε στην αγορά με την αδελφή της."),
    "vi": ("hòa bình", "Mọi người đều mong muốn hòa bình và cuộc sống tốt đẹp hơn cho con cái của mình."),
    "ro": ("și", "Copiii merg la școală dimineața și se întorc acasă după prânz."),
    "de": ("Donau", "Die Donau fließt durch viele Länder und mündet schließlich in das Schwarze Meer."),
    "fr": ("fichier", "Le fichier est enregistré dans le dossier que vous avez choisi hier soir."),
    "en": ("river", "The river runs through many countries before it reaches the sea in the east."),
    "sr": ("време", "Данас је лепо време па идемо у шетњу поред реке са пријатељима."),
    "hi": ("सड़क", "बच्चे सुबह सड़क के किनारे खेलते हैं और शाम को घर लौट आते हैं।"),
    "ko": ("학교", "아이들은 아침에 학교에 가고 저녁에 집으로 돌아옵니다."),
}
# Greek vowels with an accent, as they were written before 1982.
GRAVE = str.maketrans("άέήίόύώ", "ὰὲὴὶὸὺὼ")
EASTERN = str.maketrans("کی", "كي")


def bold(text: str) -> str:
    letters = {c: chr(0x1D41A + i) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    return "".join(letters.get(c, c) for c in text)


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in text)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def between(sign: str) -> Callable[[str], str]:
    """A sign between the letters of every longer word."""
    return lambda text: re.sub(r"(?<=[^\W\d_]{2})(?=[^\W\d_]{2})", sign, text)


def presented(text: str) -> str:
    """Isolated forms of two Arabic letters, as text copied from a PDF has them."""
    return text.replace("ل", "ﻝ").replace("م", "ﻡ")


WRITTEN: dict[str, tuple[str, Callable[[str], str]]] = {
    **{f"{code} decomposed": (code, decomposed) for code in TEXTS},
    **{f"{code} with soft hyphens": (code, between("\u00ad")) for code in ("de", "fr", "ru", "en", "el")},
    **{f"{code} with zero-width spaces": (code, between("\u200b")) for code in ("en", "ru", "vi")},
    "ru with stress marks": ("ru", lambda text: re.sub("([ое])(?=[^ ,.]*[ ,.])", "\\1\u0301", text)),
    "ar with vowel signs": ("ar", lambda text: re.sub("([بدرلم])", "\\1\u064e", text)),
    "ar with tatweel": ("ar", lambda text: re.sub("([سمل])(?=[سملدر])", "\\1\u0640\u0640", text)),
    "ar in presentation forms": ("ar", presented),
    "fa on an Arabic keyboard": ("fa", lambda text: text.translate(EASTERN)),
    "ur on an Arabic keyboard": ("ur", lambda text: text.translate(EASTERN)),
    "he with points": ("he", lambda text: re.sub("([לבה])", "\\1\u05b7", text)),
    "el polytonic": ("el", lambda text: text.translate(GRAVE)),
    "vi with the tone on the second vowel": ("vi", lambda text: text.replace("hòa", "hoà")),
    "ro with cedillas": ("ro", lambda text: text.replace("ș", "ş").replace("ț", "ţ")),
    "en in mathematical bold": ("en", bold),
    "fr in full width": ("fr", wide),
    "fr with a ligature": ("fr", lambda text: text.replace("fi", "ﬁ")),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_word_is_the_same_however_it_is_written(written: str) -> None:
    code, write = WRITTEN[written]
    word, text = TEXTS[code]
    other = write(text)
    assert other != text or written.endswith("decomposed")
    record = {"text": other, "language": code, "answers": [word]}
    assert rate_text(other, code)[0] == 2
    assert RATERS["fluency"].rate(record)[0] == 2
    assert RATERS["answers"].rate(record)[0] == 2
    for asked in (word, write(word)):
        for name, value in (("include", 2), ("exclude", 0)):
            assert RATERS["constraint"].rate(record | {"constraint": {"name": name, "word": asked}})[0] == value


@pytest.mark.parametrize(
    ("code", "one", "other"),
    [
        ("el", "Ο ΔΡΌΜΟΣ", "ο δρομος"),
        ("el", "ἡ ὁδός", "Η ΟΔΟΣ"),
        ("ar", "أُسرة", "اسره"),
        ("ar", "على", "علي"),
        ("fa", "كتابهاي", "کتابهای"),
        ("ur", "هے", "ہے"),
        ("vi", "thuý khoẻ hoạ", "thúy khỏe họa"),
        ("vi", "quý", "quý"),
        ("sr", "Љубав и њива", "ljubav i njiva"),
        ("ru", "Ещё всё", "еще все"),
        ("uk", "м’ята", "мʼята"),
        ("he", "בית־ספר", "בית-ספר"),
        ("tr", "Kâğıt", "kağıt"),
        ("en", "well‐being", "well-being"),
        ("en", "don’t", "don't"),
        ("fr", "cœur", "coeur"),
        ("hi", "क़लम", "कलम"),
    ],
)
def test_spellings_of_one_word_match(code: str, one: str, other: str) -> None:
    assert fold(one, code) == fold(other, code)


@pytest.mark.parametrize(("code", "one", "other"), [("ru", "май", "маи"), ("es", "año", "ano"), ("vi", "hoàn", "hòan")])
def test_other_words_do_not(code: str, one: str, other: str) -> None:
    assert fold(one, code) != fold(other, code)


def test_vietnamese_tones_stay_where_a_letter_follows_or_q_leads() -> None:
    for word in ("hoàn", "quý", "toán", "thuyền"):
        assert listed_form(word, "vi") == word


@pytest.mark.parametrize("code", ["ru", "ar", "fa", "el", "he", "ro", "tr", "uk"])
def test_the_listed_form_of_a_common_word_is_listed(code: str) -> None:
    words = sorted(frequencies(code), key=lambda word: -frequencies(code)[word])[:1000]
    assert all(listed_form(listed_form(word, code), code) == listed_form(word, code) for word in words)
    assert code in LANGUAGES


def test_places_are_those_of_the_text_as_it_was() -> None:
    text = "Он\u00adсказал, что it was a very\u200b good day for all of us, и ушёл домой со своими друзьями."
    (span,) = rate_text(text, "ru")[1]["spans"]
    assert text[span["start"] : span["end"]] == "it was a very\u200b good day for all of us"
    shown, places = unhidden(text)
    assert places
    assert all(text[places[i]] == character for i, character in enumerate(shown))
