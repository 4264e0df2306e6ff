"""Where a text leaves the expected language: spans of words, found by script and by word frequencies.

Words in another script are judged run by run: a foreign word, or a name, a term or a title. Words in the same script
are weighed together: a span is a best-scoring segment (Kadane's maximum-sum run) over the evidence of words.py that the
words are more common in another language. A text whose words all speak for the expected language is left at once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from xlift.rating.masks import WORD, Token, blank_out, excuses, lowered, script, scripts_of, tokens_of
from xlift.rating.words import COMMON, Vocabulary, evidence, in_lexicon, neighbours, vocabulary, zipf

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


def foreign_spans(text: str, masked: str, code: str) -> list[Span]:
    """Spans of words in another language than `code`, by script and by word frequency."""
    masked = blank_out(masked, excuses(text))
    lower = lowered(masked, code)
    tokens = tokens_of(masked, lower)
    written = scripts_of(code)
    found = _other_script(text, tokens, code, written)
    own = [token for token in tokens if token.script in written]
    found += _kanji_or_hanzi(text, own, code)
    known = vocabulary(code)
    if known.rivals:
        found += _same_script(text, own, known)
    return sorted(found)


# --- another script ---------------------------------------------------------------------------------------------


def _other_script(text: str, tokens: list[Token], code: str, written: set[str]) -> list[Span]:
    runs: list[list[Token]] = []
    for previous, token in zip([None, *tokens], tokens, strict=False):
        if token.script in written or not token.script:
            continue
        joined = previous is not None and runs and runs[-1][-1] is previous and previous.script == token.script
        if joined and "\n" not in text[runs[-1][-1].end : token.start]:
            runs[-1].append(token)
        else:
            runs.append([token])
    found = []
    for run in runs:
        language = _judge_latin(text, run, code) if run[0].script == "Latn" else _judge_script(text, run, code)
        if language:
            found.append(Span(run[0].start, run[-1].end, language))
    return found


def _judge_script(text: str, run: list[Token], code: str) -> str | None:
    """The language of a run in a script that is neither the expected one nor Latin; None where it is blameless."""
    name = run[0].script
    letters = sum(len(token.text) for token in run)
    # Single Greek letters and the like are symbols; long vowel marks and iteration marks belong to any script.
    symbols = name == "Grek" and letters == len(run)
    if symbols or (code in {"ja", "zh"} and all(token.text in "ー々〇" for token in run)):
        return None
    return _LANGUAGE_OF.get(name, "und")


def _judge_latin(text: str, run: list[Token], code: str) -> str | None:
    """The language of a Latin run in a text of another script; None where it may be a name, a term or a title."""
    words = [token for token in run if len(token.text) > 1]
    if not words:
        return None
    start, end = run[0].start, run[-1].end
    line_start, line_end = _line_of(text, start)
    alone = not any(script(c) not in {"", "Latn"} for c in text[line_start:line_end])
    if alone and len(words) >= 4:
        return _latin_language(words)
    label = not WORD.search(text[line_start:start]) and bool(_COLON.match(text, end))
    attached = _attached(text, run, code)
    small = [token for token in words if not token.capital and _blamed(token)]
    unknown = [token for token in words if not token.capital and len(token.text) > 3 and not _is_term(token.word)]
    if small or (attached and any(not token.capital or token.text.isupper() for token in words)):
        return _latin_language(small or words)
    if unknown and code in {"ru", "ar", "hi", "uk", "bg", "ko", "zh", "ja"} and not _looks_like_a_name(unknown):
        return _latin_language(unknown)
    if len(words) >= 4 and sum(token.word in _FUNCTION_WORDS for token in run) >= 2:
        return "en"
    plain = [token for token in words if _ordinary(token)]
    if (alone or label) and len(plain) == len(words) and any(len(token.text) > 2 for token in words):
        return _latin_language(words)
    return None


_COLON = re.compile(r"[\s\d.*_]{0,8}[:：]")
_FUNCTION_WORDS = frozenset(
    "a an and are by for how in is of on or the to was what when where which who why with".split()
)


def _attached(text: str, run: list[Token], code: str) -> bool:
    """Whether letters of the expected script touch the run in a language that separates words by spaces."""
    if code in {"ja", "zh", "ko"}:
        return False
    before, after = text[max(0, run[0].start - 1) : run[0].start], text[run[-1].end : run[-1].end + 1]
    return bool(before and script(before) not in {"", "Latn"}) or bool(after and script(after) not in {"", "Latn"})


def _is_term(word: str) -> bool:
    return word in INTERNATIONAL


def _blamed(token: Token) -> bool:
    return not _is_term(token.word) and len(token.text) > 2 and _latin_zipf(token.word)[0] >= 3.0


def _ordinary(token: Token) -> bool:
    return not _is_term(token.word) and (zipf(token.word, "en") or 0) >= 4.0


def _looks_like_a_name(words: list[Token]) -> bool:
    return all(_latin_zipf(token.word)[0] > 0 for token in words)


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


def _latin_language(words: list[Token]) -> str:
    votes: dict[str, float] = {}
    for token in words:
        strength, language = _latin_zipf(token.word)
        if strength >= 3.0:
            votes[language] = votes.get(language, 0.0) + 1.0
    return max(votes, key=lambda name: votes[name]) if votes else "und"


def _line_of(text: str, position: int) -> tuple[int, int]:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return start, len(text) if end < 0 else end


# --- Chinese and Japanese ---------------------------------------------------------------------------------------

CHINESE_ONLY = re.compile(
    "[们这还没吗呢吧给让说请谢现电为关开问题实际对应该们时间进国发现样种类别点击较选择过边经济单机]"
)
_HAN_LINE = 6


def _kanji_or_hanzi(text: str, tokens: list[Token], code: str) -> list[Span]:
    """In Japanese, lines of Han characters alone that hold simplified forms Japanese does not use are Chinese."""
    if code != "ja":
        return []
    found = []
    for token in tokens:
        if token.script == "Hani" and len(token.text) >= 2 and CHINESE_ONLY.search(token.text):
            start, end = _line_of(text, token.start)
            line = text[start:end]
            kana = sum(script(c) == "Kana" for c in line)
            if kana == 0 and sum(script(c) == "Hani" for c in line) >= _HAN_LINE:
                found.append(Span(token.start, token.end, "zh"))
    return found


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


def _same_script(text: str, tokens: list[Token], known: Vocabulary) -> list[Span]:
    weights = [known.weigh(token.word) for token in tokens]
    flagged = [token for token, weight in zip(tokens, weights, strict=True) if weight.strongest >= SINGLE]
    if not flagged:
        return []
    candidates = _headings(text, tokens, flagged, known.code)
    breaks = [j for j in range(1, len(tokens)) if "\n" in text[tokens[j - 1].end : tokens[j].start]]
    for i in _likeliest([weight.against for weight in weights if weight.strongest >= SINGLE]):
        against = [weight.against[i] for weight in weights]
        scores = [_score(text, one, found, known.code) for one, found in zip(tokens, against, strict=True)]
        for j in breaks:
            scores[j] -= NEW_LINE
        candidates += _segments(text, tokens, scores, known.code, known.rivals[i])
    chosen: list[Span] = []
    for _, span in sorted(candidates, key=lambda one: -one[0]):
        if all(span.end <= other.start or span.start >= other.end for other in chosen):
            chosen.append(span)
    return chosen


def _likeliest(against: list[tuple[float, ...]]) -> list[int]:
    """The few rivals that the flagged words speak for most, and those that any word is strongest for."""
    totals = [sum(column) for column in zip(*against, strict=True)]
    ranked = sorted(range(len(totals)), key=totals.__getitem__, reverse=True)
    if len(ranked) > 1 and totals[ranked[0]] > CLEARLY + 1.5 * max(0.0, totals[ranked[1]]):
        return ranked[:1]
    best = {max(range(len(row)), key=row.__getitem__) for row in against} if len(against) <= 6 else set()
    return sorted({*ranked[:RIVALS_TRIED], *best})


HEADING_WORDS = 5


def _headings(text: str, tokens: list[Token], flagged: list[Token], code: str) -> list[tuple[float, Span]]:
    """Whole lines in English title case, whose capitals would pass for names elsewhere."""
    if code == "en":
        return []
    found = []
    for start in sorted({_line_of(text, token.start)[0] for token in flagged if token.word in _FUNCTION_WORDS}):
        end = _line_of(text, start)[1]
        line = [token for token in tokens if start <= token.start < end]
        if len(line) < HEADING_WORDS:
            continue
        scores = [evidence(token.word, code, "en") for token in line]
        if sum(score > 0 for score in scores) >= 0.8 * len(line) and sum(scores) >= SEVERAL_NEIGHBOURS:
            found.append((sum(scores), Span(line[0].start, line[-1].end, "en")))
    return found


def _segments(text: str, tokens: list[Token], scores: list[float], code: str, rival: str) -> list[tuple[float, Span]]:
    """Best-scoring runs of words for `rival`, each with its score."""
    found = []
    first, total, peak, last = 0, 0.0, 0.0, -1
    for i, score in enumerate([*scores, -99.0]):
        if last < 0 and total <= 0:
            first, total = i, 0.0
        total += score
        if total > peak:
            peak, last = total, i
        elif last >= 0 and (total <= 0 or total < peak - DROP):
            if _convincing(text, tokens[first : last + 1], scores[first : last + 1], code, rival):
                found.append((peak, Span(tokens[first].start, tokens[last].end, rival)))
            first, total, peak, last = i + 1, 0.0, 0.0, -1
    return found


def _score(text: str, token: Token, found: float, code: str) -> float:
    if found <= 0:
        return found
    if _in_hyphenated_name(text, token.start):
        return 0.0
    if token.capital and code != "de" and not _opens(text, token.start):
        return min(found, 0.4)  # a name, unless what is around it says otherwise
    if token.text.isupper() and len(token.text) < 7:
        return 0.0
    return found


def _is_label(text: str, token: Token) -> bool:
    """Whether a word is all that stands before a colon on its line: "Answer:"."""
    start = _line_of(text, token.start)[0]
    return not WORD.search(text[start : token.start]) and bool(_COLON.match(text, token.end))


def _in_hyphenated_name(text: str, position: int) -> bool:
    """Whether a word goes on a capitalised one behind a hyphen: Stratford-upon-Avon."""
    if text[position - 1 : position] != "-":
        return False
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


def _convincing(text: str, tokens: list[Token], scores: list[float], code: str, rival: str) -> bool:
    total = sum(scores)
    positive = [token for token, score in zip(tokens, scores, strict=True) if score >= SINGLE]
    close = neighbours(code, rival)
    if not positive:
        return False
    # Two or three words of a language other than English are more often a borrowed term than a switch.
    if rival != "en" and 1 < len(tokens) < 4 and total < SEVERAL_NEIGHBOURS:
        return False
    if len(positive) == 1 and len(tokens) < 4:
        token = positive[0]
        strength = evidence(token.word, code, rival)
        term = _is_term(token.word) or token.word in TERMS
        named = token.capital and code != "en" and not _is_label(text, token)
        if close or term or named or len(token.text) < 4:
            return False
        known = in_lexicon(token.word, code)
        frequency = zipf(token.word, rival) or 0.0
        if rival != "en":
            borrowed = code != "en" and (zipf(token.word, "en") or 0.0) >= COMMON
            return not known and not borrowed and frequency >= 4.0 and strength >= SINGLE_KNOWN
        return frequency >= 3.4 and strength >= (SINGLE_KNOWN if known else SINGLE if known is False else 1.8)
    if all(_is_term(token.word) or token.word in TERMS for token in positive) or _is_title(tokens, positive):
        return False
    return total >= (SEVERAL_NEIGHBOURS if close else SEVERAL)


def _is_title(tokens: list[Token], positive: list[Token]) -> bool:
    """Capitalised words joined by little ones, as in "Institute for Nuclear Research": a name or a title."""
    capitals = [token for token in tokens if token.capital]
    small = [token for token in positive if not token.capital]
    return len(capitals) >= 2 and len(capitals) > len(small) and all(token.word in _FUNCTION_WORDS for token in small)


TORN = 20


def excused(span: Span, text: str, terms: set[str]) -> bool:
    """Whether a foreign span is a term that the text explains, or a last word that was torn off."""
    said = text[span.start : span.end].strip().lower()
    torn = span.start > 0 and len(said) <= TORN and " " not in said and text.rstrip().lower().endswith(said)
    return said in terms or torn
