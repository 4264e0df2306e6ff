"""How strongly a word speaks for one language against another, from word frequencies (wordfreq, offline).

Frequencies are on the Zipf scale (log10 of occurrences per billion words). Foreign words occur in every large text
collection, so that "the" is in the French list too; what tells languages apart is the difference of frequencies:
"the" is 1,500 times rarer in French. So the evidence of a word is a log-likelihood ratio, in powers of ten.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple

from xlift.languages import get_language

# Languages whose frequency lists are weighed against the expected one, by script.
RIVALS: dict[str, tuple[str, ...]] = {
    "Latn": tuple("en es fr pt it de nl id tr pl ro ca sv da nb fi hu cs vi ms".split()),
    "Cyrl": ("ru", "uk", "bg", "mk"),
    "Arab": ("ar", "fa", "ur"),
    "Deva": ("hi",),
}
WORDFREQ_CODES = {"no": "nb", "hr": "sh", "sr": "sh", "bs": "sh"}

# Pairs that share much of their vocabulary: more and stronger words are needed before one is told from the other.
NEIGHBOURS = [
    {"pt", "es", "ca", "gl", "it"},
    {"id", "ms"},
    {"no", "nb", "da", "sv"},
    {"ru", "uk", "bg", "mk", "sr"},
    {"cs", "sk"},
    {"nl", "de"},
]

COMMON = 3.0
"""Words of a rival language count from this Zipf frequency on: once in a million words."""


@lru_cache(maxsize=64)
def frequencies(code: str, size: str = "small") -> dict[str, float]:
    """Relative frequency of the words of a language; empty where wordfreq has no list."""
    import wordfreq

    code = WORDFREQ_CODES.get(code, code)
    known = code in wordfreq.available_languages("small")
    return wordfreq.get_frequency_dict(code, size) if known else {}


def zipf(word: str, code: str, size: str = "small") -> float | None:
    """Zipf frequency of a lower-case word, None where the list of `code` lacks it."""
    # The lists are casefolded: "straße" stands there as "strasse".
    found = frequencies(code, size).get(word.replace("ß", "ss"))
    return None if found is None else math.log10(found) + 9.0


@lru_cache(maxsize=8)
def common_words(code: str) -> frozenset[str]:
    """Words that occur at least once in a million."""
    return frozenset(word for word, found in frequencies(code).items() if found >= 10 ** (COMMON - 9))


@lru_cache(maxsize=64)
def floor(code: str) -> float:
    """Zipf frequency assumed for a word that the list of `code` lacks: a little under its rarest."""
    known = frequencies(code)
    return max(1.0, math.log10(min(known.values())) + 8.5) if known else 1.0


@lru_cache(maxsize=1)
def _lexicons() -> tuple[Any, frozenset[str]]:
    from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES
    from simplemma.strategies.dictionaries.stream_dictionary_factory import StreamDictionaryFactory
    from simplemma.strategies.dictionary_lookup import DictionaryLookupStrategy

    # The compressed form: a tenth of the memory; and all languages kept, since a file may alternate between them.
    return DictionaryLookupStrategy(StreamDictionaryFactory(cache_max_size=64)), frozenset(SUPPORTED_LANGUAGES)


@lru_cache(maxsize=100_000)
def in_lexicon(word: str, code: str) -> bool | None:
    """Whether the lexicon of `code` has the word as a form; None where there is no lexicon."""
    lookup, languages = _lexicons()
    name = {"no": "nb", "hr": "hbs", "sr": "hbs", "bs": "hbs"}.get(code, code)
    return lookup.get_lemma(word, name) is not None if name in languages else None


@lru_cache(maxsize=64)
def rivals(code: str) -> tuple[str, ...]:
    """Languages of the same script to weigh `code` against; Malay only against Indonesian, which it resembles."""
    if not frequencies(code):
        return ()
    script = get_language(code).script
    found = [other for other in RIVALS.get(script, ()) if other != code and WORDFREQ_CODES.get(code) != other]
    return tuple(other for other in found if other != "ms" or code == "id")


def neighbours(one: str, other: str) -> bool:
    """Whether two languages are easily mistaken for each other."""
    return any(one in group and other in group for group in NEIGHBOURS)


def evidence(word: str, expected: str, rival: str) -> float:
    """How much more common a lower-case word is in `rival` than in `expected`, in powers of ten, within ±4.

    A word that neither list holds (a name, a typing error) is no evidence: 0.
    """
    own = zipf(word, expected)
    other = zipf(word, rival)
    if other is None or other < COMMON:
        return 0.0 if own is None else max(-4.0, min(0.0, 2.0 - own))
    return max(-4.0, min(4.0, other - (floor(expected) if own is None else own)))


class Weight(NamedTuple):
    """What a word says: support for the expected language (≥ 0), and its evidence for each rival (see `evidence`)."""

    support: float
    strongest: float
    against: tuple[float, ...]


class Vocabulary:
    """What the words of texts in one expected language say, remembered from text to text."""

    REMEMBERED = 200_000

    def __init__(self, code: str) -> None:
        self.code = code
        self.rivals = rivals(code)
        self.near = [i for i, rival in enumerate(self.rivals) if neighbours(code, rival)]
        self._far = [i for i in range(len(self.rivals)) if i not in self.near]
        self._seen: dict[str, Weight] = {}

    def weigh(self, word: str) -> Weight:
        """What a lower-case word says."""
        found = self._seen.get(word)
        if found is None:
            if len(self._seen) >= self.REMEMBERED:
                self._seen.clear()
            found = self._seen[word] = self._weigh(word)
        return found

    def _weigh(self, word: str) -> Weight:
        if len(word) < 2:
            return Weight(0.0, 0.0, (0.0,) * len(self.rivals))
        against = tuple(evidence(word, self.code, rival) for rival in self.rivals)
        strongest = max((0.0, *against))
        own = zipf(word, self.code)
        if own is None:
            return Weight(0.0, strongest, against)
        # Neighbours share words: they are weighed against the whole text instead.
        far = max((against[i] for i in self._far), default=COMMON - own)
        return Weight(max(0.0, min(2.0, -far)), strongest, against)


@lru_cache(maxsize=32)
def vocabulary(code: str) -> Vocabulary:
    """The vocabulary of an expected language, loaded once a process."""
    return Vocabulary(code)


def signature() -> str:
    """The word lists' version."""
    return f"wordfreq {metadata.version('wordfreq')}, simplemma {metadata.version('simplemma')}"
