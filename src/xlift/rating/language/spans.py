"""Where a text leaves the expected language: spans of words, found by script and by word frequencies.

Words in another script are judged run by run: a foreign word, or a name, a term or a title. Words in the same script
are weighed together: a span is a best-scoring segment (Kadane's maximum-sum run) over the evidence of words.py that the
words are more common in another language. A text whose words all speak for the expected language is left at once.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from xlift.rating.language.masks import (
    WORD,
    anything_outside,
    blank_out,
    excuses,
    letters_outside,
    lowered,
    places_of,
    script,
    scripts_of,
    words_by_script,
)
from xlift.rating.language.wordlists import (
    COMMON,
    Vocabulary,
    Weight,
    evidence,
    in_lexicon,
    neighbours,
    vocabulary,
    zipf,
)

_LANGUAGE_OF = {"Hani": "zh", "Kana": "ja", "Hang": "ko", "Cyrl": "ru", "Arab": "ar", "Deva": "hi", "Grek": "el",
                "Hebr": "he", "Thai": "th", "Beng": "bn", "Taml": "ta", "Telu": "te", "Mlym": "ml", "Guru": "pa",
                "Gujr": "gu", "Knda": "kn", "Armn": "hy", "Geor": "ka"}  # fmt: skip


class Span(NamedTuple):
    """Characters [start, end) of a text that are in `language`; "und" where the language is not known."""

    start: int
    end: int
    language: str


# Terms that many languages write as English does.
INTERNATIONAL = frozenset(
    "ai api app apps blog blogs bot bug chat chatbot click cloud cookie cookies design desktop download email emails "
    "feedback firewall firmware gps hacker hardware hashtag html internet iphone laptop layout link links login "
    "manager marketing mail media newsletter offline online output input podcast podcasts "
    "password performance pixel pc qubit qubits router routers scanner score server site sites smartphone "
    "smartphones software spam startup startups stream streaming stress tablet team teams test tests token tokens "
    "tutorial upload video videos web webinar website websites wifi wi fi workshop workshops business avant garde "
    "jazz rock pop hip hop rap punk blues show shows band hit hits fan fans film star stars hobby hobbies sport "
    "start up ups yoga fitness jogging stretching squat squats crunch crunches smoothie smoothies sandwich pizza "
    "pasta burger ketchup snack snacks shampoo jeans boom boomer trend trends trendy designer designers model models "
    "vs etc et al de la le el il los las van von der den da di du del della en ex per cm km kg mm ml mg".split()
)


# Terms of the trade that are borrowed as they are where the script is Latin.
TERMS = frozenset("machine learning deep cloud computing big data diffusion stable science trading".split())


class Said(NamedTuple):
    """A text, the same masked, its words in lower case with their places, and the language it must be in."""

    text: str
    masked: str
    words: list[str]
    places: list[tuple[int, int]]
    code: str

    def capital(self, j: int) -> bool:
        return self.masked[self.places[j][0]].isupper()


def foreign_spans(
    text: str, masked: str, code: str, words: list[str] | None = None, weights: list[Weight] | None = None
) -> list[Span]:
    """Spans of words in another language than `code`, by script and by word frequency.

    `words` are those of `masked` in lower case and `weights` what they say, where the caller has them.
    """
    stretches = excuses(text)
    if stretches:
        masked, words, weights = blank_out(masked, stretches), None, None
    known, written = vocabulary(code), scripts_of(code)
    if not anything_outside(written).search(masked):
        if not known.rivals:
            return chinese_lines(masked, code)
        words = WORD.findall(lowered(masked, code)) if words is None else words
        return _same_script(Said(text, masked, words, [], code), weights or known.weigh(words), known)
    words, places, scripts = words_by_script(masked, lowered(masked, code))
    said = Said(text, masked, words, places, code)
    found = _other_script(said, scripts, written) + chinese_lines(masked, code)
    if known.rivals:
        own = [j for j, name in enumerate(scripts) if name in written]
        said = said._replace(words=[words[j] for j in own], places=[places[j] for j in own])
        found += _same_script(said, known.weigh(said.words), known)
    return sorted(found)


# --- another script ---------------------------------------------------------------------------------------------


def _other_script(said: Said, scripts: list[str], written: frozenset[str]) -> list[Span]:
    found, breaks, first = [], _breaks(said), 0
    while first < len(scripts):
        name, end = scripts[first], first + 1
        while end < len(scripts) and scripts[end] == name and end not in breaks:
            end += 1
        run = range(first, end)
        if name and name not in written:
            language = _judge_latin(said, run) if name == "Latn" else _judge_script(said, run, name)
            if language:
                found.append(Span(said.places[first][0], said.places[end - 1][1], language))
        first = end
    return found


# e.g. es: "La casa está muy cerca del mar и города, con una vista preciosa." → 1
# e.g. fr: "La constante π vaut environ trois, et α est un angle du triangle." → 2
def _judge_script(said: Said, run: range, name: str) -> str | None:
    """The language of a run in a script that is neither the expected one nor Latin; None where it is blameless."""
    words = [said.words[j] for j in run]
    # Single Greek letters and the like are symbols; long vowel marks and iteration marks belong to any script.
    symbols = name == "Grek" and all(len(word) == 1 for word in words)
    if symbols or (said.code in {"ja", "zh"} and all(word in "ー々〇" for word in words)):
        return None
    return _LANGUAGE_OF.get(name, "und")


# e.g. ru: "Мы живём недалеко от Heathrow и часто летаем." → 2
# e.g. ru: "Это очень important для всех нас." → 1
def _judge_latin(said: Said, run: range) -> str | None:
    """The language of a Latin run in a text of another script; None where it may be a name, a term or a title."""
    text, code, longer = said.text, said.code, [j for j in run if len(said.words[j]) > 1]
    if not longer:
        return None
    start, end = said.places[run[0]][0], said.places[run[-1]][1]
    words = [said.words[j] for j in longer]
    line_start, line_end = _line_of(text, start)
    alone = not letters_outside(_LATIN).search(text, line_start, line_end)
    if alone and len(words) >= 4:
        return _latin_language(words)
    small = [said.words[j] for j in longer if not said.capital(j)]
    blamed = [word for word in small if _blamed(word)]
    if blamed or (_attached(text, start, end, code) and (small or any(_in_capitals(said, j) for j in longer))):
        return _latin_language(blamed or words)
    unknown = [word for word in small if len(word) > 3 and word not in INTERNATIONAL]
    if unknown and code in {"ru", "ar", "hi", "uk", "bg", "ko", "zh", "ja"} and not _looks_like_a_name(unknown):
        return _latin_language(unknown)
    if len(words) >= 4 and sum(said.words[j] in _FUNCTION_WORDS for j in run) >= 2:
        return "en"
    label = not WORD.search(text, line_start, start) and _COLON.match(text, end)
    plain = all(map(_ordinary, words)) and any(len(word) > 2 for word in words)
    return _latin_language(words) if plain and (alone or label) else None


def _in_capitals(said: Said, j: int) -> bool:
    start, end = said.places[j]
    return said.masked[start:end].isupper()


_LATIN = frozenset({"Latn"})
_COLON = re.compile(r"[\s\d.*_]{0,8}[:：]")
_FUNCTION_WORDS = frozenset(
    "a an and are by for how in is of on or the to was what when where which who why with".split()
)


# e.g. _attached("в city центре", 2, 6, "ru") → False
def _attached(text: str, start: int, end: int, code: str) -> bool:
    """Whether letters of the expected script touch the run in a language that separates words by spaces."""
    if code in {"ja", "zh", "ko"}:
        return False
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return bool(before and script(before) not in {"", "Latn"}) or bool(after and script(after) not in {"", "Latn"})


def _blamed(word: str) -> bool:
    return word not in INTERNATIONAL and len(word) > 2 and _latin_zipf(word)[0] >= 3.0


def _ordinary(word: str) -> bool:
    return word not in INTERNATIONAL and (zipf(word, "en") or 0) >= 4.0


def _looks_like_a_name(words: list[str]) -> bool:
    return all(_latin_zipf(word)[0] > 0 for word in words)


@lru_cache(maxsize=50_000)
def _latin_zipf(word: str) -> tuple[float, str]:
    """The highest Zipf frequency of a word over Latin-script languages, English first, and its language."""
    english = zipf(word, "en") or 0.0
    best = (english, "en")
    for rival in ("es", "fr", "de", "pt", "it", "id", "tr", "vi", "nl"):
        found = zipf(word, rival, "small") or 0.0
        if found > best[0] + 1.0:
            best = (found, rival)
    return best


# e.g. _latin_language(["house", "with"]) → "en"
def _latin_language(words: list[str]) -> str:
    votes = Counter([language for strength, language in map(_latin_zipf, words) if strength >= 3.0])
    return max(votes, key=votes.__getitem__) if votes else "und"


def _line_of(text: str, position: int) -> tuple[int, int]:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return start, len(text) if end < 0 else end


# --- Chinese and Japanese ---------------------------------------------------------------------------------------

_KANA = re.compile("[\u3041-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U000323af]")
_HAN_LINE = 6
# Words of Chinese that Japanese has at most within others (目的, 完了, 是非): two of them are no chance.
_CHINESE_WORDS = frozenset("的是了我你您他她它们們这這那很把在和也就都不没沒吗嗎呢吧")
_WHOLE = re.compile(r"(?s:.+)")
_A_LINE, _CLAUSE = re.compile(r"[^\n]+"), re.compile(r"[^。！？!?\n]+")


@lru_cache(maxsize=1)
def _not_japanese() -> re.Pattern[str]:
    """Matches a Han character that Japanese encodings lack: simplified forms, and some traditional ones."""
    return re.compile(
        "[" + "".join(c for c in map(chr, range(0x4E00, 0xA000)) if not c.encode("cp932", "ignore")) + "]"
    )


# e.g. ja: "今日は天気がいいです。\n我们这样说吧，没问题\n明日も晴れるでしょう。" → 1
# e.g. ja: "您覺得如何？我認為這個問題並不簡單，需要時間。" → 0
# e.g. ja: "東京都立大学理学部物理学科卒業です。" → 2
def chinese_lines(text: str, code: str) -> list[Span]:
    """In Japanese, lines without kana, and sentences in other lines, that are Chinese by their characters or words."""
    if code != "ja":
        return []
    found = []
    # Without any kana, the lines are judged together: the items of a list are short.
    for line in (_A_LINE if _KANA.search(text) else _WHOLE).finditer(text):
        parts = _CLAUSE.finditer(text, *line.span()) if _KANA.search(line[0]) else [line]
        for part in parts:
            if _is_chinese(part[0]):
                inside = [match.start() for match in _HAN.finditer(text, *part.span())]
                found.append(Span(inside[0], inside[-1] + 1, "zh"))
    return found


# e.g. _is_chinese("天气很好适合郊游") → True
# e.g. _is_chinese("国際的技術協力機構") → False
def _is_chinese(part: str) -> bool:
    if _KANA.search(part):
        return False
    characters = _HAN.findall(part)
    if len(characters) < _HAN_LINE:
        return False
    return _not_japanese().search(part) is not None or len(_CHINESE_WORDS.intersection(characters)) >= 2


# --- the same script --------------------------------------------------------------------------------------------

SINGLE = 1.0
SINGLE_KNOWN = 2.6
"""Evidence at which one word is foreign: not in the expected language's lexicon, or in it by chance."""
SEVERAL = 3.0
SEVERAL_NEIGHBOURS = 6.0
DROP = 3.0
NEW_LINE = 1.0
"""What it costs a span to go on in the next line."""
RIVALS_TRIED = 3
CLEARLY = 20.0
"""Evidence by which one rival leads so far that the others need not be tried."""


def _same_script(said: Said, weights: list[Weight], known: Vocabulary) -> list[Span]:
    """Spans among words of the expected script; without their places, they are all words of the text."""
    flagged = [j for j, weight in enumerate(weights) if weight[1] >= SINGLE]
    if not flagged:
        return []
    if not said.places:
        said = said._replace(places=places_of(said.masked))
    candidates = _headings(said, flagged)
    limits = _limits(said, [j for j, weight in enumerate(weights) if weight[1] > 0])
    breaks = _breaks(said)
    against = [weight[2] for weight in weights]
    for i in _likeliest([against[j] for j in flagged]):
        scores = list(map(itemgetter(i), against))
        for j, limit in limits:
            scores[j] = min(scores[j], limit)
        for j in breaks:
            scores[j] -= NEW_LINE
        candidates += _segments(said, scores, known.rivals[i])
    chosen: list[Span] = []
    for _, span in sorted(candidates, key=lambda one: -one[0]):
        if all(span.end <= other.start or span.start >= other.end for other in chosen):
            chosen.append(span)
    return sorted(chosen)


def _breaks(said: Said) -> set[int]:
    """Words before which a line ends."""
    if "\n" not in said.text:
        return set()
    after = {bisect_left(said.places, (found.start(), 0)) for found in _NEW_LINE.finditer(said.text)}
    return after - {0, len(said.places)}


_NEW_LINE = re.compile("\n")


def _likeliest(against: list[tuple[float, ...]]) -> list[int]:
    """The few rivals that the flagged words speak for most, and those that any word is strongest for."""
    totals = list(map(sum, zip(*against, strict=True)))
    ranked = sorted(range(len(totals)), key=totals.__getitem__, reverse=True)
    if len(ranked) > 1 and totals[ranked[0]] > CLEARLY + 1.5 * max(0.0, totals[ranked[1]]):
        return ranked[:1]
    best = {max(range(len(row)), key=row.__getitem__) for row in against} if len(against) <= 6 else set()
    return sorted({*ranked[:RIVALS_TRIED], *best})


HEADING_WORDS = 5


# e.g. fr: "The History of the City and of Its People\n\nLa ville a été fondée il y a deux mille ans." → 1
def _headings(said: Said, flagged: list[int]) -> list[tuple[float, Span]]:
    """Whole lines in English title case, whose capitals would pass for names elsewhere."""
    if said.code == "en":
        return []
    found, places, last = [], said.places, 0
    for j in flagged:
        if j < last or said.words[j] not in _FUNCTION_WORDS:
            continue
        start, end = _line_of(said.text, places[j][0])
        first, last = bisect_left(places, (start, 0)), bisect_left(places, (end, 0))
        if last - first < HEADING_WORDS:
            continue
        scores = [evidence(word, said.code, "en") for word in said.words[first:last]]
        if sum(score > 0 for score in scores) >= 0.8 * len(scores) and sum(scores) >= SEVERAL_NEIGHBOURS:
            found.append((sum(scores), Span(places[first][0], places[last - 1][1], "en")))
    return found


def _segments(said: Said, scores: list[float], rival: str) -> list[tuple[float, Span]]:
    """Best-scoring runs of words for `rival`, each with its score."""
    found: list[tuple[float, Span]] = []
    count, beyond = len(scores), 0
    if max(scores) < SINGLE:
        return found
    for first in [j for j, score in enumerate(scores) if score > 0]:
        if first < beyond:
            continue
        total, peak, last = 0.0, 0.0, first
        for beyond in range(first, count):
            total += scores[beyond]
            if total > peak:
                peak, last = total, beyond
            elif total <= 0 or total < peak - DROP:
                break
        beyond += 1
        if max(scores[first : last + 1]) >= SINGLE and _convincing(said, first, last + 1, scores, rival):
            found.append((peak, Span(said.places[first][0], said.places[last][1], rival)))
    return found


# e.g. it: "Ho studiato con Helen Baker a New Haven per due anni." → 2
def _limits(said: Said, positive: list[int]) -> list[tuple[int, float]]:
    """Words that may be names or acronyms, and how much they can say for another language."""
    text, found = said.text, []
    for j in positive:
        start, end = said.places[j]
        hyphen = start > 0 and text[start - 1] == "-"
        if not hyphen and text[start].islower():
            continue
        if hyphen and _in_hyphenated_name(text, start):
            found.append((j, 0.0))
        elif said.capital(j) and said.code != "de" and not _opens(text, start):
            found.append((j, 0.4))  # a name, unless what is around it says otherwise
        elif end - start < 7 and text[start:end].isupper():
            found.append((j, 0.0))
    return found


def _is_label(text: str, start: int, end: int) -> bool:
    """Whether a word is all that stands before a colon on its line: "Answer:"."""
    return not WORD.search(text, _line_of(text, start)[0], start) and bool(_COLON.match(text, end))


# e.g. _in_hyphenated_name("Stratford-upon", 10) → True
def _in_hyphenated_name(text: str, position: int) -> bool:
    """Whether a word goes on a capitalised one behind a hyphen: Stratford-upon-Avon."""
    unit = re.search(r"[^\s,;:()]{1,60}\Z", text[max(0, position - 60) : position])
    return bool(unit) and unit[0][0].isupper()  # type: ignore[index]


def _opens(text: str, position: int) -> bool:
    """Whether a word stands at the beginning of a line or sentence, where a capital says nothing."""
    before = text[max(0, position - 12) : position].rstrip(" \t*_\"'«“„([#>-–—•0123456789.)")
    return (
        not before
        or before[-1] in "\n.!?:…;"
        or text[max(0, position - 3) : position].strip(' "«“*_') in {".", "!", "?", ":"}
    )


def _convincing(said: Said, first: int, end: int, scores: list[float], rival: str) -> bool:
    """Whether the words from `first` to before `end` are enough to be in `rival`; one at least is strong."""
    count, total, code = end - first, sum(scores[first:end]), said.code
    strong = [j for j in range(first, end) if scores[j] >= SINGLE]
    close = neighbours(code, rival)
    # Two or three words of a language other than English are more often a borrowed term than a switch.
    if rival != "en" and 1 < count < 4 and total < SEVERAL_NEIGHBOURS:
        return False
    if len(strong) == 1 and count < 4:
        return not close and _convincing_alone(said, strong[0], rival)
    if total < (SEVERAL_NEIGHBOURS if close else SEVERAL):
        return False
    terms = all(said.words[j] in INTERNATIONAL or said.words[j] in TERMS for j in strong)
    return not terms and not _is_title(said, range(first, end), strong)


# e.g. fr: "Nous devons several choses avant la fin de la semaine." → 1
# e.g. fr: "Elle fait du jogging le matin avant de partir." → 2
def _convincing_alone(said: Said, j: int, rival: str) -> bool:
    word, code, (start, end) = said.words[j], said.code, said.places[j]
    named = code != "en" and said.capital(j) and not _is_label(said.text, start, end)
    if end - start < 4 or word in INTERNATIONAL or word in TERMS or named:
        return False
    strength, frequency = evidence(word, code, rival), zipf(word, rival) or 0.0
    if rival != "en":
        borrowed = code != "en" and (zipf(word, "en") or 0.0) >= COMMON
        enough = frequency >= 4.0 and strength >= SINGLE_KNOWN and not borrowed
        return enough and not in_lexicon(word, code)
    if frequency < 3.4 or strength < SINGLE:
        return False
    known = in_lexicon(word, code)
    return strength >= (SINGLE_KNOWN if known else SINGLE if known is False else 1.8)


# e.g. de: "Er arbeitet am Institute for Advanced Study in Princeton." → 2
def _is_title(said: Said, segment: range, strong: list[int]) -> bool:
    """Capitalised words joined by little ones, as in "Institute for Nuclear Research": a name or a title."""
    small = [j for j in strong if not said.capital(j)]
    if not all(said.words[j] in _FUNCTION_WORDS for j in small):
        return False
    capitals = sum(said.capital(j) for j in segment)
    return capitals >= 2 and capitals > len(small)


TORN = 20


# e.g. de: "Die Reise war schön und das Hotel lag am Meer. Wir kommen wied" → 2
def excused(span: Span, text: str, terms: set[str]) -> bool:
    """Whether a foreign span is a term that the text explains, or a last word that was torn off."""
    said = text[span.start : span.end].strip().lower()
    torn = span.start > 0 and len(said) <= TORN and " " not in said and text.rstrip().lower().endswith(said)
    return said in terms or torn
