"""One normal form of words that may be written in several ways, for all raters.

`unhidden` readies a whole text; `plain_form` and `listed_form` say how lists of words spell a word; `alike` makes
spellings equal that a reader takes for the same, for matching words that were asked for.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from functools import lru_cache
from typing import Any

# What does not show inside a word: soft hyphen, zero-width space, directional marks, joiner of words, BOM.
_HIDDEN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_WIDE = {i: unicodedata.normalize("NFKC", chr(i)) for i in [*range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B)]}
# Mathematical letters: bold and italics of those who have no other.
_WIDE |= {i: unicodedata.normalize("NFKC", chr(i)) for i in range(0x1D400, 0x1D7CC)}
_ODD = re.compile(f"{_HIDDEN.pattern[:-1]}\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7cb]")

_ARABIC_SIGNS = "\u0640\u064b-\u065f\u0670\u06d6-\u06ed"
_HEBREW_SIGNS = "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
# Vowel signs of Arabic and Hebrew, and the dot that casefolding leaves of İ.
_UNWRITTEN = re.compile(f"[\u0307{_HEBREW_SIGNS}{_ARABIC_SIGNS}]")
_STRESS = re.compile("(?<=[\u0400-\u052f])[\u0300\u0301]")
# Stressed vowels of the Latin keyboard inside a Cyrillic word.
_LATIN_STRESS = re.compile("(?<=[\u0400-\u052f])[áéóýÁÉÓÝ]|[áéóýÁÉÓÝ](?=[\u0400-\u052f])")
_CYRILLIC_FOR: dict[int, Any] = str.maketrans("áéóýÁÉÓÝ", "аеоуАЕОУ")
_CYRILLIC: dict[int, Any] = str.maketrans("ѐЀѝЍ", "еЕиИ")

_SERBIAN: dict[int, Any] = str.maketrans({"љ": "lj", "њ": "nj", "џ": "dž"})
_SERBIAN |= str.maketrans("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš")
_SERBIAN_CODES = frozenset({"sr", "hr", "bs", "sh", "cnr"})
_LETTERS_OF: dict[str, dict[int, Any]] = {
    "ar": str.maketrans("کیٱھہ", "كياهه"),
    "fa": str.maketrans("كيىٱۀە", "کییاهه"),
    "ur": str.maketrans("كيىٱهە", "کییاہہ"),
    "ro": str.maketrans("şţŞŢ", "șțȘȚ"),
    "tr": str.maketrans("șțâîû", "şţaiu"),
}
_GREEK = re.compile("[\u0370-\u03ff\u1f00-\u1fff]")
_TO_ACUTE = re.compile("[\u0300\u0342]")
_BREATHINGS = re.compile("[\u0313\u0314\u0345\u0304\u0306]")
_GREEK_MARKS = re.compile("[\u0300-\u0345]")
# The tone of oa, oe and uy stands on the first vowel or on the second; not where another letter follows, nor after q.
_TONE_ON_SECOND = re.compile("(?<![\\wÀ-ỹ])([^\\W\\d_]{0,3})(o[àáảãạèéẻẽẹ]|(?<!q)u[ỳýỷỹỵ])(?![\\wÀ-ỹ])")

_APOSTROPHES: dict[int, Any] = str.maketrans(dict.fromkeys("’ʼʻ‘′´`׳＇", "'") | {"״": '"'})
_HYPHENS: dict[int, Any] = str.maketrans(dict.fromkeys("‐‑−־", "-"))
# Hamza on alif, final ya and ta marbuta, and letters that Persian and Urdu write with code points of their own;
# chandrabindu and nukta of Devanagari; ё, œ.
_ALIKE: dict[int, Any] = str.maketrans("أإآٱىةکیھہەۀےё", "اااايهكيههههيе", "़") | {ord("ँ"): "ं", ord("œ"): "oe"}
# A nasal before a consonant of its own kind: हिन्दी and हिंदी.
_NASAL = re.compile("ङ्(?=[क-घ])|ञ्(?=[च-झ])|ण्(?=[ट-ढ])|न्(?=[त-ध])|म्(?=[प-भ])")
_THAI_VOWEL = re.compile("\u0e4d([\u0e48-\u0e4b])")
_CEDILLAS: dict[int, Any] = str.maketrans("şţ", "șț")
_CIRCUMFLEXES: dict[int, Any] = str.maketrans("âîû", "aiu")


# e.g. unhidden("Do\u00adnau") → ("Donau", [0, 1, 3, 4, 5, 6])
# e.g. unhidden("ｏｋ") → ("ok", None)
def unhidden(text: str) -> tuple[str, list[int] | None]:
    """The text with plain letters and without what does not show, and the places of its characters if they moved."""
    if text.isascii() or not _ODD.search(text):
        return text, None
    text = text.translate(_WIDE)
    if not _HIDDEN.search(text):
        return text, None
    kept = [i for i, character in enumerate(text) if not _HIDDEN.match(character)]
    return "".join([text[i] for i in kept]), [*kept, len(text)]


# e.g. plain_form("объясню́") → "объясню"
# e.g. plain_form("قُلْ") → "قل"
# e.g. plain_form("ﬁche") → "fiche"
def plain_form(word: str) -> str:
    """A word without compatibility forms, stress marks and vowel signs; its letters stay those of its language."""
    if word.isascii():
        return word
    word = _UNWRITTEN.sub("", unicodedata.normalize("NFKC", word)).translate(_APOSTROPHES)
    word = _LATIN_STRESS.sub(lambda found: found[0].translate(_CYRILLIC_FOR), word)
    return _STRESS.sub("", word.replace("ѐ", "е"))


# e.g. listed_form("помогнем", "sr") → "pomognem"
# e.g. listed_form("كتاب", "fa") → "کتاب"
# e.g. listed_form("hoà", "vi") → "hòa"
# e.g. listed_form("ἄνθρωπος", "el") → "άνθρωπος"
@lru_cache(maxsize=50_000)
def listed_form(word: str, code: str) -> str:
    """A lower-case word as the lists of a language spell it."""
    if word.isascii():
        return word
    word = plain_form(word)
    if code in _SERBIAN_CODES:
        return word.translate(_SERBIAN)
    if code == "el":
        return _monotonic(word)
    if code == "vi":
        return _tone_on_first(word)
    return word.translate(_LETTERS_OF[code]) if code in _LETTERS_OF else word


def _monotonic(word: str) -> str:
    """Greek of one accent and no breathings."""
    apart = _BREATHINGS.sub("", _TO_ACUTE.sub("\u0301", unicodedata.normalize("NFD", word)))
    return unicodedata.normalize("NFC", apart)


def _tone_on_first(text: str) -> str:
    """Vietnamese with the tone of open oa, oe and uy on the first vowel."""
    return _TONE_ON_SECOND.sub(lambda found: found[1] + _moved(found[2]), text)


def _moved(vowels: str) -> str:
    base, tone = [*unicodedata.normalize("NFD", vowels[1])]
    return unicodedata.normalize("NFC", vowels[0] + tone) + base


# e.g. alike("οδόσ", "el") → "οδοσ"
# e.g. alike("أحمد", "ar") → "احمد"
# e.g. alike("well‑being", "en") → "well-being"
# e.g. alike("हिन्दी", "hi") → "हिंदी"
# e.g. alike("perché", "it") → "perchè"
# e.g. alike("น\u0e4d\u0e49า", "th") == alike("น\u0e49\u0e4dา", "th") → True
# e.g. alike("здраво", "sr") → "zdravo"
# e.g. alike("電腦", "zh") → "电脑"
def alike(text: str, code: str) -> str:
    """Casefolded text in which spellings of one word are equal: Greek accents, Arabic letters, and so on."""
    text = text.translate(_APOSTROPHES)
    if text.isascii():
        return _GEMINATE.sub("·", text) if code == "ca" else text
    text = _NASAL.sub("ं", plain_form(text).translate(_HYPHENS).translate(_CYRILLIC).translate(_ALIKE))
    if _GREEK.search(text):
        text = _GREEK_CLUSTER.sub(lambda found: _GREEK_MARKS.sub("", unicodedata.normalize("NFD", found[0])), text)
    if code in _SERBIAN_CODES:
        return text.translate(_SERBIAN)
    if code == "vi":
        return _tone_on_first(text)
    if code == "it":
        return text.replace("é", "è")
    if code == "th":
        return _THAI_VOWEL.sub("\\1\u0e4d", text)
    if code == "ca":
        return _GEMINATE.sub("·", text)
    if code == "zh":
        return _simplified(text)
    return text.translate(_CEDILLAS) if code == "ro" else text.translate(_CIRCUMFLEXES) if code == "tr" else text


def _simplified(text: str) -> str:
    return text.translate(_simplified_characters())


@lru_cache(maxsize=1)
def _simplified_characters() -> dict[int, Any]:
    """Traditional characters with their simplified ones, of wordfreq, whose own function needs jieba."""
    import msgpack
    from wordfreq.util import data_path

    found = msgpack.loads(gzip.decompress(data_path("_chinese_mapping.msgpack.gz").read_bytes()), strict_map_key=False)
    return {old: new for old, new in found.items() if len(new) == 1}


_GEMINATE = re.compile("(?<=l)[·•‧∙.](?=l)")
_GREEK_CLUSTER = re.compile("[\u0370-\u03ff\u1f00-\u1fff][\u0300-\u0345]*")
