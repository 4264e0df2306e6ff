"""Lines that are English as a whole in a text of another language: headings, and items of lists.

Their capitals would pass for names where single words are weighed (spans.py).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache

from xlift.rating.language.scripts import (
    BULLET,
    FUNCTION_WORDS,
    Said,
    Span,
    is_listed_title,
    line_of,
)
from xlift.rating.language.subjects import speaks_of_works
from xlift.rating.language.wordlists import COMMON, SINGLE, Weight, evidence, in_lexicon, zipf

SEVERAL, SEVERAL_NEIGHBOURS = 3.0, 6.0
"""Evidence at which several words are in another language, and in one that is easily mistaken for the expected one."""
HEADING_WORDS = 5
SHORT_HEADING = 3
ENGLISH_WORDS = 0.8


# e.g. es: "The Importance of Exercise\n\nMoverse todos los días es muy bueno para la salud de las personas." → 1
# e.g. fr: "The History of the City and of Its People\n\nLa ville a été fondée il y a deux mille ans." → 1
def headings(said: Said, flagged: list[int], weights: list[Weight]) -> list[tuple[float, Span]]:
    """Whole lines in English title case, whose capitals would pass for names elsewhere."""
    if said.code == "en":
        return []
    found, places, last = [], said.places, 0
    for j in flagged:
        if j < last or not (said.words[j] in FUNCTION_WORDS or _unheard(said.words[j], said.code)):
            continue
        start, end = line_of(said.text, places[j][0])
        first, last = bisect_left(places, (start, 0)), bisect_left(places, (end, 0))
        if last - first < SHORT_HEADING:
            continue
        # A word that speaks for no rival does not for English; single letters are weighed here alone.
        line = zip(said.words[first:last], weights[first:last], strict=True)
        if [weight[1] > 0 or len(word) < 2 for word, weight in line].count(True) < ENGLISH_WORDS * (last - first):
            continue
        if ", " in said.text[start:end] and speaks_of_works(said.text[start:end]):
            continue  # titles in a row
        scores = [evidence(word, said.code, "en") for word in said.words[first:last]]
        if sum(scores) < SEVERAL_NEIGHBOURS or sum([score > 0 for score in scores]) < ENGLISH_WORDS * len(scores):
            continue
        if last - first < HEADING_WORDS and not _short_heading(said.words[first:last], said.code):
            continue
        if not is_listed_title(said, range(first, last)):
            found.append((sum(scores), Span(places[first][0], places[last - 1][1], "en")))
    return found


# e.g. _short_heading(["the", "importance", "of", "sleep"], "es") → True
# e.g. _short_heading(["university", "of", "oxford"], "es") → False
def _short_heading(words: list[str], code: str) -> bool:
    return sum(_unheard(word, code) for word in words) + (words[0] in FUNCTION_WORDS) >= 2


# e.g. _unheard("retirement", "es") → True
# e.g. _unheard("marketing", "es") → False
@lru_cache(maxsize=20_000)
def _unheard(word: str, code: str) -> bool:
    """Whether a word of English, no name, is in no list of the expected language."""
    return (zipf(word, "en") or 0.0) >= COMMON and zipf(word, code) is None and in_lexicon(word, "en") is True


# What opens or closes an answer, set off by a sign or a line; each would pass for a name.
_SET_PHRASE = re.compile(
    r"^[ \t*_>#]{0,8}(?:(?P<opening>sure|certainly|absolutely|definitely|of course|sorry|hello|welcome|great question)"
    r"(?: thing)?(?=[!,.])|(?P<closing>(?:(?:best|kind|warm|kindest|warmest) )?regards"
    r"|yours (?:sincerely|truly|faithfully)|sincerely(?: yours)?|best wishes|dear(?: [^\W\d_]{1,20}\.?){1,4})"
    r"(?=[ \t]*[,!.]?[ \t]*$))",
    re.IGNORECASE | re.MULTILINE,
)


# e.g. ko: "Sure! 고양이가 소파 위에서 자고 있어요." → 1
# e.g. tr: "Dear Mr. Yılmaz,\n\nSiparişiniz yarın sabah kargoya verilecektir." → 1
# e.g. fr: "Bonjour,\n\nJe vous remercie pour votre message.\n\nBest regards,\nAnna" → 1
def set_phrases(said: Said) -> list[Span]:
    """English phrases that open or close a letter or an answer in another language."""
    if said.code == "en":
        return []
    found = [match.span(match.lastgroup or 0) for match in _SET_PHRASE.finditer(said.masked)]
    words = [said.masked[start:end].split()[0].lower() for start, end in found]
    return [Span(*at, "en") for at, word in zip(found, words, strict=True) if evidence(word, said.code, "en") >= SINGLE]


LIST_ITEMS, ITEM, JOINING = 3, 1.4, 2.0
"""Items of a list that are English, and the evidence of a word, and of a little one inside, that makes one so."""


# e.g. de: "Agenda:\n1. Welcome\n2. Market Overview\n3. Next Steps\n4. Questions\nWir freuen uns auf alle Gäste." → 0
# e.g. es: "Temas de la clase de finanzas:\n1. Saving\n2. Investing\n3. Credit Cards\n4. Insurance" → 1
def english_lists(said: Said, flagged: list[int]) -> list[tuple[float, Span]]:
    """List items in English, whose capitals would pass for names, in a text that does not speak of works."""
    if said.code == "en" or said.text.count("\n") < LIST_ITEMS - 1:
        return []
    items, strong, unheard, places, last = [], 0, 0, said.places, 0
    for j in flagged:
        if j < last:
            continue
        start, end = line_of(said.text, places[j][0])
        first, last = bisect_left(places, (start, 0)), bisect_left(places, (end, 0))
        if not BULLET.fullmatch(said.text, start, places[first][0]):
            continue
        # Turkish makes another letter of a capital I.
        words = [word.replace("ı", "i") for word in said.words[first:last]]
        if not all(map(_in_english, words)):
            continue
        scores = [evidence(word, said.code, "en") for word in words]
        english = [in_lexicon(word, "en") and not in_lexicon(word, said.code) for word in words]
        # Words that the lexicon has by chance, several together: "Next Steps" in German, "Introduction to" in French.
        together = len(words) > 1 and (min(scores) >= ITEM or _joined(words, scores))
        if any(english) or together:
            items.append((SEVERAL + max(scores), Span(places[first][0], places[last - 1][1], "en")))
            strong += together or any(sure and score >= ITEM for sure, score in zip(english, scores, strict=True))
            unheard += any(_unheard(word, said.code) for word in words)
    listed = unheard and strong >= LIST_ITEMS and 2 * strong >= len(items)
    return items if listed and not speaks_of_works(said.text) else []


# e.g. _joined(["history", "of", "art"], [1.0, 2.5, 0.2]) → True
def _joined(words: list[str], scores: list[float]) -> bool:
    """Whether a little English word that is no word of the other language stands between others."""
    between = list(zip(words, scores, strict=True))[1:-1]
    return any(word in FUNCTION_WORDS and score >= JOINING for word, score in between)


def _in_english(word: str) -> bool:
    return len(word) < 2 or (zipf(word, "en") or 0.0) >= COMMON
