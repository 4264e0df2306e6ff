"""Stretches of a text where another language is apt: glosses in brackets, quotations, titles, explained terms."""

from __future__ import annotations

import re
from collections.abc import Callable

from xlift.rating.language.masks import WORD, blank_out, script, size

_BRACKETS = re.compile(r"[(（\[【［]([^()（）\[\]【】［］\n]{1,120})[)）\]】］]")
_QUOTES = re.compile(r"[\"“„«「『《〈‘]([^\"”“»」』》〉’\n]{1,300})[\"”“»」』》〉’]")
# Straight ones, which are apostrophes elsewhere: short, and no letter before.
_SINGLE_QUOTES = re.compile(r"(?<!\w)'([^'\n]{1,60})'(?![A-Za-z])")
GLOSS_WORDS = 5


QUOTED, QUOTED_WHERE_NAMED = 0.5, 0.85
"""The share of quotations from which on they are the answer, and where the text speaks of English, or in English of
another language."""
ENGLISH = re.compile(
    r"english|anglais|ingl[eéê]s|englisch|anglè?s\b|ingiliz|inggris|inggeris|engels|angiel|angli[cč]|angol\b|englez|englesk"
    r"|englanti|kiingereza|inglise|anglų|angļu|tiếng anh|англ[иі]|αγγλικ|אנגלית|إنجليزي|انجليزي|انگلیسی|انگریزی|अंग्रे|अँग्रे"
    r"|इंग्रजी|ইংরেজি|ஆங்கில|ఇంగ్లీ|อังกฤษ|英文|英语|英語|영어|영문|ინგლის|անգլ",
    re.IGNORECASE,
)


_LANGUAGE = re.compile(r"\b(?:say|means?|phrases?|french|german|italian|spanish|latin|portuguese)\b", re.IGNORECASE)


# e.g. without_quotations("Er sagt «hüt», nicht heute.") → "Er sagt « », nicht heute."
def without_quotations(text: str) -> str:
    """The text with a space for what stands in quotation marks."""
    return _QUOTES.sub(lambda found: f"{found[0][0]} {found[0][-1]}", text)


# e.g. zh: "英文句子“She sells sea shells by the sea shore every day”很难读。" → 2
# e.g. ko: "이 말은 그리스어 'katharsis'에서 유래한 용어로 정화를 뜻합니다." → 2
# e.g. de: "\"Eishockey, natürlich!\"\n\nTranslation: \"Ice hockey, of course!\"" → 0
# e.g. de: "1: \"Ich bin ein Mensch.\"\n\n2: \"I am a human being.\"" → 1
# e.g. fr: "On dit « Where is the pharmacy? », en français : « Où est la pharmacie ? »" → 2
# e.g. ru: "Он спросил: «How are you?» и сразу ушёл домой, не дождавшись ответа." → 2
def excuses(text: str, masked: str, code: str, is_native: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Stretches in which another language is apt: short glosses in brackets, and quotations.

    Quotations excuse nothing where they make up most of the text: then they are the answer. What `is_native` needs no
    excuse, and is no part of them where what stands around the quotations is so, too.
    """
    quotes = [m.span(1) for m in _QUOTES.finditer(text) if not _is_value(text, m.start())]
    if "'" in text:
        quotes += [m.span(1) for m in _SINGLE_QUOTES.finditer(text)]
    own = {quote for quote in quotes if is_native(masked[slice(*quote)])}
    others = [quote for quote in quotes if quote not in own]
    if own and others:
        around = blank_out(masked, quotes)
        speaks = 2 * size("".join(around.split())) >= _quoted(text, others)
        quotes = others if speaks and is_native(around) else quotes
    quoted = _quoted(text, quotes)
    whole = size(text.strip())
    if quotes and quoted >= QUOTED * whole and (quoted >= QUOTED_WHERE_NAMED * whole or not _names(text, code)):
        quotes = (
            [quote for quote in quotes if _is_quoted_title(text, *quote)]
            if WORD.search(blank_out(text, quotes))
            else []
        )
    excused = [gloss for gloss in glosses(text) if not is_native(masked[slice(*gloss)])]
    return excused + [quote for quote in quotes if quote not in own]


def _names(text: str, code: str) -> bool:
    """Whether a text speaks of English, or in English of another language."""
    return ENGLISH.search(text) is not None or (code == "en" and _LANGUAGE.search(text) is not None)


def _quoted(text: str, quotes: list[tuple[int, int]]) -> int:
    return sum([size(text[start:end]) for start, end in quotes])


# e.g. ja: "DNA（デオキシリボ核酸、deoxyribonucleic acid）は遺伝情報を担います。" → 2
def glosses(text: str) -> list[tuple[int, int]]:
    """What short brackets hold: a translation, a Latin name; of a bracket that goes on in the language, its parts."""
    found = []
    for bracket in _BRACKETS.finditer(text):
        if not _is_gloss(bracket[1]):
            continue
        if not _mixed(bracket[1]):
            found.append(bracket.span(1))
        else:
            parts = _PART.finditer(text, *bracket.span(1))
            found += [part.span() for part in parts if part[0].isascii()]
    return found


_PART = re.compile(r"[^、,，;；/]+")


TITLE = 80


# e.g. zh: "《Gone with the Wind》是一部很有名的小说。" → 2
def _is_quoted_title(text: str, start: int, end: int) -> bool:
    """Whether a short quotation is a title: between marks for titles, or several words in title case."""
    inside = text[start:end].strip()
    return len(inside) <= TITLE and (
        text[start - 1] in "《〈『" or (" " in inside and _TITLE_CASE.fullmatch(inside) is not None)
    )


# e.g. _is_gloss("machine learning") → True
# e.g. _is_gloss("Gone with the Wind and Other Tales of the South") → True
# e.g. _is_gloss("How do we go on from here?") → False
def _is_gloss(inside: str) -> bool:
    said = ":" in inside or inside.rstrip().endswith(("?", "!", "."))
    return not said and (len(inside.split()) <= GLOSS_WORDS or _TITLE_CASE.fullmatch(inside.strip()) is not None)


_TITLE_CASE = re.compile(
    r"(?:[A-Z][\w'’-]*|\d+)(?:[ ,]{1,2}(?:[A-Z][\w'’-]*|\d+|an?|and|as|at|by|for|from|in|of|on|or|the|to|with)){0,20}"
)


# e.g. _mixed("это very nice") → True
def _mixed(inside: str) -> bool:
    """Whether lower-case Latin words follow words of another script: then the bracket goes on in the language."""
    first = WORD.search(inside)
    if first is None or script(first[0][0]) == "Latn":
        return False
    return re.search(r"(?<![A-Za-z])[a-z]{3,}", inside) is not None


def _is_value(text: str, start: int) -> bool:
    """A quoted string that is a JSON value is what is said, not a quotation."""
    return text.lstrip()[:1] in {"{", "[", "`", "~"} and text[max(0, start - 3) : start].rstrip()[-1:] in {
        ":",
        "[",
        ",",
        "\n",
    }


_TERM_BEFORE = re.compile("[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f .,'’&-]{1,40}\\Z")
_ASCII_BEFORE = re.compile(r"[A-Za-z][A-Za-z .&-]{1,40}\Z")
_HAN_BEFORE, _HANGUL = re.compile("[\u3400-\u9fff]{1,12}\\Z"), re.compile("[가-힣 ]{1,12}")


# e.g. glossed_terms("Deep learning（深層学習）") → {"deep learning"}
# e.g. ko: "오늘의 사자성어는 溫故知新(온고지신)입니다. 옛것을 익힌다는 뜻입니다." → 2
def glossed_terms(text: str) -> set[str]:
    """Foreign terms that are explained right behind them in brackets: "Stable diffusion（ステーブル…）", "愛(애)"."""
    found = set()
    for bracket in _BRACKETS.finditer(text):
        before = text[max(0, bracket.start() - 42) : bracket.start()].rstrip(" ")
        terms = [term for pattern in (_ASCII_BEFORE, _TERM_BEFORE) if (term := pattern.search(before))]
        found |= {term[0].strip().lower() for term in terms}
        if (
            (term := _HAN_BEFORE.search(before))
            and _HANGUL.fullmatch(bracket[1])
            and len(term[0]) in {1, len(bracket[1])}
        ):
            found.add(term[0])
    return found
