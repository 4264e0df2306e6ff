"""What IFEval and M-IFEval let a reply have so many of, counted in any script.

All counts take the visible text, the language that the reply must be in, and the instruction with its parameters. Where
a count hangs on a convention (is "l'été" one word, is a heading a sentence), it is a range.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from xlift.languages import find_language
from xlift.rating.endings import other_forms
from xlift.rating.sentences import split_sentences
from xlift.rating.text import cased_words, count_words, fold, occurrences, parse_lines, spaced

CASED = {"Latn", "Cyrl", "Grek", "Armn", "Cher", "Copt", "Glag", "Adlm"}
"""Scripts with capital letters."""
KANJI = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
JA_QUOTED = re.compile(r"「[^「」\n]*」|『[^『』\n]*』")

Instruction = dict[str, Any]


class CountRange(NamedTuple):
    """From `least` to `most` of something, which differ for the reason `why`."""

    least: int
    most: int
    why: str = ""


Count = Callable[[str, str, Instruction], CountRange | str]


def _exactly(count: int) -> CountRange:
    return CountRange(count, count)


def _between(one: int, other: int, why: str) -> CountRange:
    return CountRange(min(one, other), max(one, other), why)


# e.g. _words("Don't stop.", "en", {}) → (2, 3, "words by spaces or cut at apostrophes and hyphens")
def _words(text: str, language: str, instruction: Instruction) -> CountRange | str:
    by_spaces = count_words(text, language)
    if language in ("zh", "ja"):
        return _exactly(by_spaces)
    if not spaced(language):
        return CountRange(by_spaces // 12, by_spaces, "words cannot be counted where nothing separates them")
    parts = len(re.findall(r"[^\W_]+", "".join(c for c in text if unicodedata.category(c)[0] != "M")))
    return _between(by_spaces, parts, "words by spaces or cut at apostrophes and hyphens")


def _letters(text: str, language: str, instruction: Instruction) -> CountRange | str:
    return _exactly(sum(not c.isspace() for c in text))


_CLOSED = re.compile(r"[.!?…‽。！？｡．؟۔।॥։።;][\"'”’»›)\]}」』）】》*_`\s]*$")


# "One.\n- two\n- three" has from 1 to 3 sentences.
def _sentences(text: str, language: str, instruction: Instruction) -> CountRange | str:
    known = find_language(language)
    if known and known.code in ("th", "lo"):
        return "the end of a sentence is not marked in this language"
    found = split_sentences(text, language)
    closed = sum(bool(_CLOSED.search(sentence)) for sentence in found)
    return _between(closed, len(found), "headings and list items without a full stop may be sentences or not")


# e.g. _divided("One.\n***\nTwo.", "en", {}) → (2, 2, "")
def _divided(text: str, language: str, instruction: Instruction) -> CountRange | str:
    # What is bold and italic stands between the same asterisks, but touches them.
    parts = re.split(r"(?<!\*)\*{3}(?!\*)", re.sub(r"\*{3}(?=[^\s*])[^*\n]{1,500}(?<=\S)\*{3}", "a", text))
    return _exactly(sum(bool(part.strip()) for part in parts))


def _bullets(text: str, language: str, instruction: Instruction) -> CountRange | str:
    marks = "-*+・•" if language == "ja" else "-*+"
    lines = [line for line in parse_lines(text) if line.kind.startswith(("dash", "bullet"))]
    points = [line for line in lines if line.raw.lstrip("> ")[:1] in marks]
    edge = min((line.indent for line in points), default=0) + 2
    outer = sum(line.indent < edge for line in points)
    return CountRange(outer, len(points), "points below points may count or not")


def _numbered(text: str, language: str, instruction: Instruction) -> CountRange | str:
    points = [line for line in parse_lines(text) if line.kind == "number"]
    edge = min((line.indent for line in points), default=0) + 2
    outer = sum(line.indent < edge for line in points)
    return CountRange(outer, len(points), "numbers below numbers may count or not")


_PLACEHOLDER = re.compile(r"(?<!\])[\[［](?![ xX]?\])[^\[\]［］\n]{1,200}[\]］](?!\()")


def _placeholders(text: str, language: str, instruction: Instruction) -> CountRange | str:
    return _exactly(len(_PLACEHOLDER.findall(text)))


_BULLET = re.compile(r"^[ \t]*[*+-][ \t]+", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,3}(?=[^\s*])[^*\n]{1,500}\*{1,3}")


# e.g. _highlights("* a *b* and **c**", "en", {"id": ""}) → (2, 2, "")
def _highlights(text: str, language: str, instruction: Instruction) -> CountRange | str:
    starred = len(_EMPHASIS.findall(_BULLET.sub("", text)))
    if not instruction["id"].startswith("ja:"):
        return _exactly(starred)
    return _exactly(len(re.findall(r"《[^\n《》]*\S[^\n《》]*》", text)))


_NUMBER = r"(?:\d{1,3}|[一二三四五六七八九十]{1,3}|(?![xX]\b)[IVXivx]{1,5})"
_AFTER = r"(?=[^\w]|[\u3040-\u9fff\uac00-\ud7a3]|$)"
_NUMBER_FIRST = {"tr", "az", "hu", "fi", "et", "lt", "lv", "ko", "ja", "zh", "cs", "sk", "hr", "sl", "sr"}


# e.g. _sections("Section 1\nOne.\nSection 2\nTwo.", "en", {"section_spliter": "Section"}) → (2, 2, "")
# e.g. _sections("1. Bölüm\nBir.", "tr", {"section_spliter": "Bölüm"}) → (1, 1, "")
def _sections(text: str, language: str, instruction: Instruction) -> CountRange | str:
    word = re.escape(str(instruction.get("section_spliter") or "").strip())
    if not word:
        return "no 'section_spliter' is given"
    first = rf"|(?:第 ?)?{_NUMBER}[.:]? ?{word}" if language in _NUMBER_FIRST else ""
    begun = rf"(?:{word}[ :.№-]{{0,3}}{_NUMBER}{first}){_AFTER}"
    lines = [line.lstrip("#*_`>[(【《「«“\"'- \t") for line in unicodedata.normalize("NFKC", text).split("\n")]
    heads = sum(bool(re.match(begun, line)) for line in lines)
    inside = sum(len(re.findall(rf"[.!?…:;»”\"] {begun}", line)) for line in lines)
    return _exactly(heads + inside)


def _keyword(text: str, language: str, instruction: Instruction) -> CountRange | str:
    word = instruction.get("keyword")
    if not isinstance(word, str) or not fold(word):
        return "no 'keyword' is given"
    found = occurrences(text, word, language)
    forms = other_forms(fold(text, language), fold(word, language), language)
    return _between(
        found, max(found, len(forms)), f"other forms of the word occur: {', '.join(dict.fromkeys(forms[:3]))}"
    )


# e.g. _letter("été", "fr", {"letter": "e"}) → (0, 2, "letters with an accent may count or not")
# e.g. _letter("カ", "ja", {"letter": "か"}) → (1, 1, "")
def _letter(text: str, language: str, instruction: Instruction) -> CountRange | str:
    letter = instruction.get("letter")
    if not isinstance(letter, str) or len(letter.strip()) != 1:
        return f"'letter' must be one character, found {letter!r:.40}"
    wanted, folded = letter.strip().casefold(), text.casefold()
    if "ぁ" <= wanted <= "ゖ":
        return _exactly(folded.count(wanted) + folded.count(chr(ord(wanted) + 96)))
    exact = folded.count(wanted)
    if wanted not in "aeiouy" or language not in ("fr", "es", "pt", "it", "ca", "gl", "nl"):
        return _exactly(exact)
    bare = unicodedata.normalize("NFD", folded).count(wanted)
    return CountRange(exact, bare, "letters with an accent may count or not")


# e.g. _capital_words("I met NASA.", "en", {}) → (1, 1, "parts of words in capitals may count or not")
# e.g. _capital_words("l'ONU", "fr", {}) → (0, 1, "parts of words in capitals may count or not")
def _capital_words(text: str, language: str, instruction: Instruction) -> CountRange | str:
    tokens = [token for token in re.findall(r"[^\W\d_][\w'’.&-]*", text) if not token.islower()]
    parts = [part for token in tokens for part in re.split("['’]", token) if _is_shouted(part)]
    known = find_language(language)
    if not parts and known and known.script not in CASED and cased_words(text) is None:
        return f"{known.name} is written without capital letters"
    return _between(sum(map(_is_shouted, tokens)), len(parts), "parts of words in capitals may count or not")


def _is_shouted(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 1


def _words_with(letters: str) -> Count:
    def count(text: str, language: str, instruction: Instruction) -> CountRange | str:
        return _exactly(sum(any(c in letters for c in word.lower()) for word in re.findall(r"[^\W\d_]+", text)))

    return count


def _kanji(text: str, language: str, instruction: Instruction) -> CountRange | str:
    return _exactly(len(re.findall(f"[{KANJI}]", text)))


_JA_PREDICATE = re.compile("[るうくすつぬぶむぐいただなねよかぞわんでてもへにをはがの]$")


# e.g. ja_sentences("## 海\n青い「海。」です。行く") → (["青いです"], ["海", "行く"])
def ja_sentences(text: str) -> tuple[list[str], list[str]]:
    """The sentences with a full stop, without it and without what they quote; and the pieces that have none."""
    pieces = [*re.split("([。！？!?\n])", JA_QUOTED.sub("", text)), ""]
    closed: list[str] = []
    loose: list[str] = []
    for piece, stop in zip(pieces[::2], pieces[1::2], strict=True):
        if bare := piece.strip(" \t　*#-_>（）()「」『』"):
            (loose if stop in ("", "\n") else closed).append(bare)
    return closed, [piece for piece in loose if any(map(str.isalnum, piece))]


# e.g. _nominal("夏の海。泳ぐ。", "ja", {}) → (1, 1, "what ends in hiragana may be a noun or not")
# e.g. _nominal("気の流れ。", "ja", {}) → (0, 1, "what ends in hiragana may be a noun or not")
def _nominal(text: str, language: str, instruction: Instruction) -> CountRange | str:
    ended, _ = ja_sentences(text)
    sure = sum(bool(re.search(f"[{KANJI}ァ-ヺーA-Za-z0-9０-９]$", part)) for part in ended)
    kana = sum(bool(re.search("[ぁ-ゖ]$", part)) and not _JA_PREDICATE.search(part) for part in ended)
    return CountRange(sure, sure + kana, "what ends in hiragana may be a noun or not")


COUNTS: dict[str, tuple[Count, str, str]] = {
    "keywords:frequency": (_keyword, "frequency", "relation"),
    "keywords:letter_frequency": (_letter, "let_frequency", "let_relation"),
    "length_constraints:number_sentences": (_sentences, "num_sentences", "relation"),
    "length_constraints:number_paragraphs": (_divided, "num_paragraphs", "=="),
    "length_constraints:number_words": (_words, "num_words", "relation"),
    "length_constraints:number_letters": (_letters, "num_letters", "relation"),
    "detectable_content:number_placeholders": (_placeholders, "num_placeholders", "relation"),
    "detectable_format:number_bullet_lists": (_bullets, "num_bullets", "=="),
    "detectable_format:number_numbered_lists": (_numbered, "num_items", "=="),
    "detectable_format:number_highlighted_sections": (_highlights, "num_highlights", "relation"),
    "detectable_format:multiple_sections": (_sections, "num_sections", "relation"),
    "detectable_format:nominal_ending": (_nominal, "count", ">="),
    "change_case:capital_word_frequency": (_capital_words, "capital_frequency", "capital_relation"),
    "special_character:enie": (_words_with("ñ"), "let_frequency", "=="),
    "special_character:dieresis": (_words_with("ü"), "let_frequency", "=="),
    "special_character:tildes": (_words_with("áéíóú"), "num_words", "relation"),
    "letters:kanji": (_kanji, "kanji_limit", "relation"),
}
"""Per instruction: what counts, the parameter of how many, and how they compare or the parameter that says it."""
