"""How strongly a word speaks for one language against another, from word frequencies (wordfreq, offline).

Frequencies are on the Zipf scale (log10 of occurrences per billion words). Foreign words occur in every large text
collection, so that "the" is in the French list too; what tells languages apart is the difference of frequencies:
"the" is 240 times rarer in French. So the evidence of a word is a log-likelihood ratio, in powers of ten.

The lists, and simplemma's lexicons of word forms, take seconds to unpack. So their words are hashed once, and kept in
the user's cache as sorted 64-bit hashes (with the frequencies), which all processes map into memory.
"""

from __future__ import annotations

import math
import mmap
import sys
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xlift.disk import write_atomic
from xlift.hub import cache_dir
from xlift.languages import LANGUAGES, get_language
from xlift.progress import say
from xlift.rating.spelling import listed_form, plain_form

if TYPE_CHECKING:
    import numpy as np

# Languages whose frequency lists are weighed against the expected one, by script.
RIVALS: dict[str, tuple[str, ...]] = {
    "Latn": tuple("en es fr pt it de nl id tr pl ro ca sv da nb fi hu cs vi".split()),
    "Cyrl": ("ru", "uk", "bg", "mk"),
    "Arab": ("ar", "fa", "ur"),
    "Deva": ("hi",),
}
# Languages that are weighed only against those which they resemble, and each side of such a pair.
RELATED = {"cs": ("sk",), "sk": ("hr", "sl"), "pl": ("sk",), "hr": ("sk", "sl"), "sl": ("sk", "hr"), "lt": ("lv",)}
RELATED |= {"lv": ("lt",), "da": ("is",), "no": ("is",), "sv": ("is",), "id": ("ms", "fil"), "ms": ("fil",)}
RELATED |= {"bg": ("sr",), "mk": ("sr",)}
LEXICON_RIVALS = ("en", "es", "fr", "pt", "it", "de", "ca")
"""What a language with a lexicon and no list of frequencies is weighed against."""
WORDFREQ_CODES = {"no": "nb", "hr": "sh", "sr": "sh", "bs": "sh"}

# Pairs that share much of their vocabulary: more and stronger words are needed before one is told from the other.
NEIGHBOURS = [
    {"pt", "es", "ca", "gl", "it"},
    {"id", "ms"},
    {"no", "nb", "da", "sv"},
    {"ru", "uk", "bg", "mk", "sr"},
    {"cs", "sk"},
    {"hr", "sl"},
    {"nl", "de"},
]

SINGLE = 1.0
"""Evidence at which one word is foreign that the expected language's lexicon lacks."""
COMMON = 3.0
"""Words of a rival language count from this Zipf frequency on: once in a million words."""


# --- tables of hashed words -------------------------------------------------------------------------------------

_MAGIC = b"xlift words1"


def _hash(word: str) -> bytes:
    return blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _hashed(words: Iterable[str]) -> np.ndarray:
    import numpy as np

    return np.frombuffer(b"".join(map(_hash, words)), "<u8").astype(np.uint64)


def _stored(name: str, build: Callable[[], np.ndarray]) -> memoryview:
    """The 64-bit numbers kept in the cache under a name; built where they are missing or damaged.

    Processes that build them at once write the same, each moving a whole file into place.
    """
    path = cache_dir() / "words" / f"{name}.{sys.byteorder}"
    found = _read(path)
    if found is not None:
        return found
    body = build().tobytes()
    try:
        write_atomic(path, _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
    except OSError as error:
        say(f"word lists cannot be kept in {path.parent} ({error.strerror}): they are prepared again each time")
    return memoryview(body).cast("Q")


def _read(path: Path) -> memoryview | None:
    """The numbers in a file, mapped into memory; None where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if len(head) < 16:
                return None
            body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[16:]
    except OSError:
        return None
    sound = head == _MAGIC + zlib.crc32(body).to_bytes(4, "little") and len(body) % 8 == 0
    return body.cast("Q") if sound else None


# --- word frequencies -------------------------------------------------------------------------------------------

_ZIPF = [math.log10(10 ** (-centibels / 100)) + 9.0 for centibels in range(1_200)]


@lru_cache(maxsize=64)
def frequencies(code: str) -> dict[str, float]:
    """Relative frequency of the words of a language; empty where wordfreq has no list.

    For whoever needs all words; single words are looked up much faster by `zipf`.
    """
    import wordfreq

    code = WORDFREQ_CODES.get(code, code)
    known = code in wordfreq.available_languages("small")
    return wordfreq.get_frequency_dict(code, "small") if known else {}


@lru_cache(maxsize=8)
def _frequency_table(name: str) -> tuple[memoryview, int]:
    """Sorted hashes of words and then, in the same order, what `_entries` packs; and how many there are of each.

    "small" holds the small lists of all languages, "best-ar" the best of one.
    """
    version = f"{metadata.version('wordfreq')}-{zlib.crc32(' '.join(LANGUAGES).encode()):08x}"
    table = _stored(f"frequencies-{name}-{version}", lambda: _build_frequencies(name))
    return table, len(table) // 2


def warm_up() -> None:
    """Makes the table of frequencies, where the cache lacks it, before several processes ask for it."""
    _frequency_table("small")


def _build_frequencies(name: str) -> np.ndarray:
    import numpy as np
    import wordfreq

    size, _, only = name.partition("-")
    if not only:
        say("preparing word lists once (some seconds)")
    lists = wordfreq.available_languages(size)
    wanted = {only} if only else {WORDFREQ_CODES.get(code, code) for code in LANGUAGES}
    hashes, packed = [], []
    for code in sorted(wanted & lists.keys()):
        bands = [(centibels, band) for centibels, band in enumerate(wordfreq.read_cBpack(lists[code])) if band]
        # The empty word stands for the list as a whole: its rarest words.
        bands.append((bands[-1][0], [""]))
        hashes.append(_hashed(word for _, band in bands for word in band))
        entries = [(int.from_bytes(code.encode(), "big") << 16) + centibels for centibels, _ in bands]
        packed.append(np.repeat(np.array(entries, np.uint64), [len(band) for _, band in bands]))
    joined = np.concatenate(hashes)
    order = np.argsort(joined, kind="stable")
    return np.concatenate([joined[order], np.concatenate(packed)[order]])


@lru_cache(maxsize=20_000)
def _row(word: str, name: str = "small") -> dict[str, float]:
    """Zipf frequencies of a word by language."""
    table, count = _frequency_table(name)
    wanted = int.from_bytes(_hash(word), "little")
    found, place = {}, bisect_left(table, wanted, 0, count)
    while place < count and table[place] == wanted:
        code, centibels = divmod(table[count + place], 1 << 16)
        found[_code(code)] = _ZIPF[centibels]
        place += 1
    return found


@lru_cache(maxsize=256)
def _code(packed: int) -> str:
    return packed.to_bytes(3, "big").decode().lstrip("\0")


# e.g. [listed(code) for code in ("fr", "sw", "yo")] → [True, True, False]
def listed(code: str) -> bool:
    """Whether there is a list of word frequencies of a language, or at least a lexicon good enough to stand for one."""
    return _has_list(code) or code in LEXICONS


def _has_list(code: str) -> bool:
    return WORDFREQ_CODES.get(code, code) in _row("")


# Short words that lexicons lack, in languages with a lexicon and no list of frequencies.
LEXICONS = {
    code: frozenset(words.split())
    for code, words in {
        "gl": "o a os as ao aos á ás do da dos das no na nos nas co coa cos coas polo pola polos polas dun dunha nun "
        "nunha del dela incluso e ou que non se lle lles me te de en",
        "sq": "e i të së dhe në me për nga ose si që nuk është janë ka kanë do duhet mund kjo ky këtë u a edhe por kur",
        "sw": "na ya wa kwa ni la za katika cha vya hii kama yako yao hiyo hadi pia lakini kuwa leo sana ana au lo "
        "mali si tu wo ye yo yote kila mtu haki hana wake yake zake lake chake wote zote lolote yeyote bila hiki hizi",
        "et": "ja on ei ka et kui see ta mis oma või ning",
        "cy": "y yr a ac i o yn ar am gan na ni ei eu",
        "ga": "an na ag ar is ní go le i a agus do de nó",
    }.items()
}
IN_LEXICON = 8.0
"""Zipf frequency of words of a lexicon without frequencies: it lets no word speak for another language."""


# e.g. zipf("wa", "sw") → 8.0
@lru_cache(maxsize=50_000)
def zipf(word: str, code: str, size: str = "small") -> float | None:
    """Zipf frequency of a lower-case word, as it stands or as lists spell it; None where it is not listed."""
    if code in LEXICONS:
        return IN_LEXICON if word in LEXICONS[code] or in_lexicon(word, code) else None
    listed_as = WORDFREQ_CODES.get(code, code)
    name = size if size == "small" else f"{size}-{listed_as}"
    # The lists are casefolded: "straße" stands there as "strasse".
    found = [_row(form.replace("ß", "ss"), name).get(listed_as) for form in {word, listed_form(word, code)}]
    return max((one for one in found if one is not None), default=None)


# e.g. zipfs("amitié").keys() → {"fr"}
def zipfs(word: str) -> dict[str, float]:
    """Zipf frequencies of a lower-case word by the lists that hold it."""
    return _row(plain_form(word).replace("ß", "ss"))


# e.g. likelihood("", "zh") → 0.0
# e.g. likelihood("映画", "ja") > likelihood("电影", "ja") → True
def likelihood(run: str, code: str) -> float:
    """Log10 of the probability of the likeliest words of a run without spaces; a character that is no word is one in
    10^8."""
    best = [0.0]
    for end in range(1, len(run) + 1):
        words = [(begin, zipf(run[begin:end], code)) for begin in range(max(0, end - 5), end)]
        known = [best[begin] + frequency - 9.0 for begin, frequency in words if frequency is not None]
        best.append(max([*known, best[end - 1] - 8.0]))
    return best[-1]


# e.g. floor("fr") < zipf("maison", "fr") → True
@lru_cache(maxsize=64)
def floor(code: str) -> float:
    """Zipf frequency assumed for a word that the list of `code` lacks: a little under its rarest."""
    rarest = _row("").get(WORDFREQ_CODES.get(code, code))
    return 1.0 if rarest is None else max(1.0, rarest - 0.5)


# --- lexicons ---------------------------------------------------------------------------------------------------


class _Forms(NamedTuple):
    """The word forms of a lexicon; `get` is what simplemma's look-up asks for."""

    hashes: memoryview

    def get(self, word: str) -> str | None:
        wanted = int.from_bytes(_hash(word), "little")
        place = bisect_left(self.hashes, wanted)
        return word if place < len(self.hashes) and self.hashes[place] == wanted else None


class _Lexicons:
    """Stands in for simplemma's dictionaries where only the forms matter, not their lemmas."""

    @staticmethod
    @lru_cache(maxsize=64)
    def get_dictionary(name: str) -> Any:
        version = metadata.version("simplemma")
        return _Forms(_stored(f"forms-{name}-{version}", lambda: _build_forms(name)))


def _build_forms(name: str) -> np.ndarray:
    import numpy as np
    from simplemma.strategies.dictionaries.stream_dictionary_factory import StreamDictionaryFactory

    return np.unique(_hashed(StreamDictionaryFactory().get_dictionary(name)))


@lru_cache(maxsize=1)
def _lexicons() -> tuple[Any, frozenset[str]]:
    from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES
    from simplemma.strategies.dictionary_lookup import DictionaryLookupStrategy

    return DictionaryLookupStrategy(_Lexicons()), frozenset(SUPPORTED_LANGUAGES)


# e.g. in_lexicon("maisons", "fr") → True
@lru_cache(maxsize=100_000)
def in_lexicon(word: str, code: str) -> bool | None:
    """Whether the lexicon of `code` has the word as a form; None where there is no lexicon."""
    lookup, languages = _lexicons()
    name = {"no": "nb", "hr": "hbs", "sr": "hbs", "bs": "hbs", "fil": "tl"}.get(code, code)
    if name not in languages:
        return None
    return any(lookup.get_lemma(form, name) is not None for form in {word, listed_form(word, code)})


# --- evidence ---------------------------------------------------------------------------------------------------


# e.g. rivals("ru") → ("uk", "bg", "mk")
@lru_cache(maxsize=64)
def rivals(code: str) -> tuple[str, ...]:
    """Languages of the same script to weigh `code` against."""
    if not listed(code):
        return ()
    found = RIVALS.get(get_language(code).script, ()) if _has_list(code) else LEXICON_RIVALS
    return tuple(other for other in (*found, *RELATED.get(code, ())) if other not in {code, WORDFREQ_CODES.get(code)})


# e.g. neighbours("pt", "es") → True
@lru_cache(maxsize=4_096)
def neighbours(one: str, other: str) -> bool:
    """Whether two languages are easily mistaken for each other."""
    return any(one in group and other in group for group in NEIGHBOURS)


# e.g. round(evidence("the", "fr", "en")) → 2
# e.g. evidence("xqzt", "fr", "en") → 0.0
@lru_cache(maxsize=50_000)
def evidence(word: str, expected: str, rival: str) -> float:
    """How much more common a lower-case word is in `rival` than in `expected`, in powers of ten, within ±4.

    A word that neither list holds (a name, a typing error) is no evidence: 0.
    """
    return _evidence(zipf(word, expected), zipf(word, rival), floor(expected))


# e.g. _evidence(3.0, 6.0, 1.0) → 3.0
# e.g. _evidence(None, None, 1.0) → 0.0
def _evidence(own: float | None, other: float | None, rarest: float) -> float:
    if other is None or other < COMMON:
        return 0.0 if own is None else max(-4.0, min(0.0, 2.0 - own))
    return max(-4.0, min(4.0, other - (rarest if own is None else own)))


class Weight(NamedTuple):
    """What a word says: support for the expected language (≥ 0), its evidence for each rival, and the highest.

    `zipf` is its frequency in the expected language, None where the list lacks it; `strange` is a word that it lacks,
    or that is clearly more common in another. Loops over all words of a text read the fields by position, which is
    faster than by name.
    """

    support: float
    strongest: float
    against: tuple[float, ...]
    zipf: float | None
    strange: bool


class Vocabulary(dict[str, Weight]):
    """What lower-case words of texts in one expected language say; words are weighed when first asked for."""

    REMEMBERED = 40_000
    """Words of a vocabulary."""
    LONGEST = 64
    """Letters of a word; a longer run of letters says nothing and is not remembered."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code
        self.listed = listed(code)
        self.tells = self.listed and get_language(code).script not in {"Hani", "Jpan", "Kore"}
        """Whether single words say anything: they are separated by spaces, and there is a list of them."""
        self.rivals = rivals(code)
        self.near = [i for i, rival in enumerate(self.rivals) if neighbours(code, rival)]
        self._far = [i for i in range(len(self.rivals)) if i not in self.near]
        # The list of Serbian is Latin: Cyrillic words are brought to it one by one.
        lists = ["sr" if rival == "sr" else WORDFREQ_CODES.get(rival, rival) for rival in self.rivals]
        self._place = {name: i for i, name in enumerate(lists)}
        self._alike: dict[Weight, Weight] = {}

    def weigh(self, words: Iterable[str]) -> list[Weight]:
        """What each of some lower-case words says."""
        return list(map(self.__getitem__, words))

    def __missing__(self, word: str) -> Weight:
        if len(word) > self.LONGEST:
            return Weight(0.0, 0.0, (0.0,) * len(self.rivals), None, True)
        if len(self) >= self.REMEMBERED:
            self.clear()
            self._alike.clear()
        weight = self._weigh(word)
        # Many words say the same: one object for all of them takes a third of the memory.
        weight = self[word] = self._alike.setdefault(weight, weight)
        return weight

    def _weigh(self, word: str) -> Weight:
        foreign = "i" + word[1:] if word[:1] == "ı" else word  # Turkish makes another letter of a capital I
        row = zipfs(foreign)
        own = zipf(word, self.code)
        if len(word) < 2:
            return Weight(0.0, 0.0, (0.0,) * len(self.rivals), own, own is None)
        rarest = floor(self.code)
        against = [_evidence(own, None, rarest)] * len(self.rivals)
        for other, frequency in row.items():
            if (place := self._place.get(other)) is not None:
                against[place] = _evidence(own, frequency, rarest)
        if "sr" in self._place:
            against[self._place["sr"]] = _evidence(own, zipf(word, "sr"), rarest)
        strongest = max((0.0, *against))
        if own is None:
            return Weight(0.0, strongest, tuple(against), None, True)
        # Neighbours share words: they are weighed against the whole text instead.
        far = max((against[i] for i in self._far), default=COMMON - own)
        return Weight(max(0.0, min(2.0, -far)), strongest, tuple(against), own, strongest >= SINGLE)


@lru_cache(maxsize=64)
def vocabulary(code: str) -> Vocabulary:
    """The vocabulary of an expected language, one a process."""
    return Vocabulary(code)


def wordlists_version() -> str:
    """The word lists' version."""
    return f"wordfreq {metadata.version('wordfreq')}, simplemma {metadata.version('simplemma')}"
