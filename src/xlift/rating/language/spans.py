"""Where a text leaves the expected language: spans of words, found by script and by word frequencies.

Words in another script are judged run by run (scripts.py). Words in the same script are weighed together: a span is a
best-scoring segment (Kadane's maximum-sum run) over the evidence of wordlists.py that the words are more common in
another language. A text whose words all speak for the expected language is left at once.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from operator import itemgetter

from xlift.rating.language.excuses import excuses
from xlift.rating.language.headings import SEVERAL, SEVERAL_NEIGHBOURS, english_lists, headings
from xlift.rating.language.masks import (
    WORD,
    anything_outside,
    blank_out,
    script,
    scripts_of,
    words_by_script,
    words_of,
)
from xlift.rating.language.scripts import (
    BULLET,
    COLON,
    FUNCTION_WORDS,
    LABELS,
    Said,
    Span,
    breaks_of,
    chinese_lines,
    joins_names,
    line_of,
    other_script,
)
from xlift.rating.language.subjects import speaks_of_works
from xlift.rating.language.terms import INTERNATIONAL, TERMS, in_phrase
from xlift.rating.language.wordlists import (
    COMMON,
    LEXICON_RIVALS,
    LEXICONS,
    SINGLE,
    Vocabulary,
    Weight,
    evidence,
    in_lexicon,
    neighbours,
    vocabulary,
    zipf,
    zipfs,
)


def foreign_spans(said: Said, weights: list[Weight] | None = None) -> list[Span]:
    """Spans of words in another language than the expected one, by script and by word frequency.

    `weights` are what the words say, where the caller has them.
    """
    known, written = vocabulary(said.code), scripts_of(said.code)
    excused = excuses(said.text, said.masked, said.code, lambda stretch: _native(stretch, said.code))
    if excused:
        said, weights = _without(said, excused), None
    if ("Latn" in written and said.masked.isascii()) or not anything_outside(written).search(said.masked):
        if not known.rivals:
            return chinese_lines(said.masked, said.code)
        return _same_script(said, weights or known.weigh(said.words), known)
    words, places, scripts = words_by_script(said.masked, said.words, said.places)
    said = said._replace(words=words, places=places)
    found = other_script(said, scripts, written) + chinese_lines(said.masked, said.code)
    if known.rivals:
        own = [j for j, name in enumerate(scripts) if name in written]
        said = said._replace(words=[words[j] for j in own], places=[places[j] for j in own])
        found += _same_script(said, known.weigh(said.words), known)
    return sorted(found)


def _without(said: Said, stretches: list[tuple[int, int]]) -> Said:
    """What is said without some stretches, which begin and end between words."""
    inside = {j for stretch in stretches for j in range(*(bisect_left(said.places, (edge, 0)) for edge in stretch))}
    kept = [j for j in range(len(said.places)) if j not in inside]
    words, places = [said.words[j] for j in kept], [said.places[j] for j in kept]
    return said._replace(masked=blank_out(said.masked, stretches), words=words, places=places)


# e.g. de: "A: «Eislaufen macht mir im Winter Freude.» (Ice skating is a joy in winter.)" → 1
def _native(stretch: str, code: str) -> bool:
    """Whether what a quotation or a bracket says is in the expected language: then it needs no excuse."""
    known, written = vocabulary(code), scripts_of(code)
    if "Latn" not in written:
        own = sum(script(character) in written for character in stretch)
        kana = code == "zh" and any(script(character) == "Kana" for character in stretch)
        return not kana and own > 0.5 * sum(map(str.isalpha, stretch))
    weights = known.weigh(words_of(stretch, code))
    return sum([weight[0] for weight in weights]) > sum([weight[1] for weight in weights])


# --- the same script --------------------------------------------------------------------------------------------

SINGLE_KNOWN = 2.6
"""Evidence at which one word is foreign that is in the expected language's lexicon by chance."""
DROP = 3.0
NEW_LINE = 1.0
"""What it costs a span to go on in the next line."""
RIVALS_TRIED = 3
CLEARLY = 20.0
"""Evidence by which one rival leads so far that the others need not be tried."""


def _same_script(said: Said, weights: list[Weight], known: Vocabulary) -> list[Span]:
    """Spans among words of the expected script."""
    flagged = [j for j, weight in enumerate(weights) if weight[1] >= SINGLE]
    if not flagged:
        return []
    candidates = headings(said, flagged, weights) + english_lists(said, flagged)
    limits = _limits(said, flagged) + [(j, 0.0) for j in flagged if in_phrase(said.words, j)]
    limited = {j for j, _ in limits}
    strong = [weights[j][2] for j in flagged if j not in limited]
    if strong:
        candidates += _weighed(said, weights, known, flagged, limits, strong)
    chosen: list[Span] = []
    for _, span in sorted(candidates, key=lambda one: -one[0]):
        place = bisect_left(chosen, span)
        # They lie apart, in order: the two beside it are all that it could overlap.
        if all(span.end <= other.start or span.start >= other.end for other in chosen[max(0, place - 1) : place + 1]):
            chosen.insert(place, span)
    return chosen


def _weighed(
    said: Said,
    weights: list[Weight],
    known: Vocabulary,
    flagged: list[int],
    limits: list[tuple[int, float]],
    strong: list[tuple[float, ...]],
) -> list[tuple[float, Span]]:
    """Segments for the likeliest rivals; a word that is limited makes none, and one in `strong` has to speak for it."""
    limits = limits + _limits(said, [j for j, weight in enumerate(weights) if 0 < weight[1] < SINGLE])
    breaks, found = breaks_of(said), []
    against = [weight[2] for weight in weights]
    for i in _likeliest([against[j] for j in flagged]):
        if max(map(itemgetter(i), strong)) < SINGLE:
            continue
        scores = list(map(itemgetter(i), against))
        for j, limit in limits:
            scores[j] = min(scores[j], limit)
        for j in breaks:
            scores[j] -= NEW_LINE
        found += _segments(said, scores, known.rivals[i])
    return found


def _likeliest(against: list[tuple[float, ...]]) -> list[int]:
    """The few rivals that the flagged words speak for most, and those that any word is strongest for."""
    totals = list(map(sum, zip(*against, strict=True)))
    ranked = sorted(range(len(totals)), key=totals.__getitem__, reverse=True)
    if len(ranked) > 1 and totals[ranked[0]] > CLEARLY + 1.5 * max(0.0, totals[ranked[1]]):
        return ranked[:1]
    best = {max(range(len(row)), key=row.__getitem__) for row in against} if len(against) <= 6 else set()
    return sorted({*ranked[:RIVALS_TRIED], *best})


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


_UNITS = frozenset("in ft lb lbs oz yd mi mph inch inches".split())
"""Units that are words of English or no words, behind a number."""
# Vietnamese words in letters that English has too: "then", "ban", "long".
_SYLLABLE = re.compile(
    r"(?:b|ch?|d|gh?|gi|h|kh?|l|m|ngh?|nh?|ph|qu|r|s|th?|tr|v|x)?(?:[aeiouy]|a[iouy]|eo|i[au]|o[aei]|u[aeiy]|oa[iy]|uy[a])"
    r"(?:m|ng?|nh)?"
)


# e.g. vi: "Nước sạch là nhân tố then chốt cho sức khỏe của mọi người." → 2
# e.g. it: "Ho studiato con Helen Baker a New Haven per due anni." → 2
# e.g. es: "El paquete pesa 10 lb y mide 2 ft 3 in de largo." → 2
def _limits(said: Said, positive: list[int]) -> list[tuple[int, float]]:
    """Words that may be names or acronyms, and how much they can say for another language."""
    text, found = said.text, []
    for j in positive:
        start, end = said.places[j]
        if said.words[j] in _UNITS and text[max(0, start - 2) : start].strip()[-1:].isdecimal():
            found.append((j, 0.0))
            continue
        hyphen = start > 0 and text[start - 1] == "-"
        if said.code == "tr" and (limit := _apostrophe(text, start, end)) is not None:
            found.append((j, limit))
            continue
        if not hyphen and text[start].islower() and said.code != "vi":
            continue
        if hyphen and _in_hyphenated_name(text, start):
            found.append((j, 0.0))
        elif said.code == "vi" and not said.capital(j) and _SYLLABLE.fullmatch(text, start, end):
            found.append((j, SINGLE - 0.1))
        elif said.capital(j) and said.code != "de" and not _opens(text, start):
            found.append((j, 0.4))  # a name, unless what is around it says otherwise
        elif end - start < 7 and text[start:end].isupper():
            found.append((j, 0.0))
    return found


# e.g. tr: "Medium'ın öneri sistemi ve İngiltere'de açılan kurs çok beğenildi." → 2
def _apostrophe(text: str, start: int, end: int) -> float | None:
    """What a Turkish ending, or a name to which one is attached, can say for another language; None for other words."""
    if text[max(0, start - 1) : start] in {"'", "’"} and text[max(0, start - 2) : start - 1].isalnum():
        return 0.0
    return 0.4 if text[start].isupper() and text[end : end + 1] in {"'", "’"} else None


# e.g. es: "# Introduction\n\nLa inteligencia artificial es una rama de la informática que cambia el mundo." → 1
def _is_label(text: str, start: int, end: int) -> bool:
    """Whether a word is all that stands before a colon on its line, or in a heading of Markdown: "Answer:"."""
    first, last = line_of(text, start)
    if WORD.search(text, first, start):
        return False
    return bool(COLON.match(text, end)) or (text[first : first + 1] == "#" and not WORD.search(text, end, last))


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
    # Behind an article, two words of which one is a term are one term: "lo smart working".
    if count == 2 and any(map(_is_borrowed, said.words[first:end])) and _after_article(said, first):
        return False
    if len(strong) == 1 and count < 4:
        title = count > 1 and _is_title(said, range(first, end), strong)
        return not close and not title and _convincing_alone(said, strong[0], rival)
    if total < (SEVERAL_NEIGHBOURS if close else SEVERAL):
        return False
    terms = all(_is_borrowed(said.words[j]) for j in strong)
    return not terms and not _is_title(said, range(first, end), strong)


def _is_borrowed(word: str) -> bool:
    return word in INTERNATIONAL or word in TERMS


BORROWED = 4.2
"""Zipf frequency in English under which a word behind an article of the expected language is a borrowed noun."""
SINGLE_EXCLUSIVE, SINGLE_HARDLY_KNOWN, SINGLE_UNKNOWN = 2.0, 1.9, 1.7
"""Evidence at which one word is foreign that no third language's list has, that the lexicon has but not the list, and
that there is no lexicon for."""
SINGLE_BORROWED, EVERYDAY = 1.3, 5.5
"""Evidence at which one English word is foreign that the expected language's list has, unless it is more common yet."""
_ARTICLES = {
    code: frozenset(words.split())
    for code, words in {
        "it": "il lo la i gli le l un uno una del dello della dei al allo alla nel nello nella sul di in",
        "es": "el la los las un una unos unas del al de en",
        "pt": "o a os as um uma do da dos das no na ao de em",
        "fr": "le la les l un une du des au aux de d en",
        "de": "der die das dem den des ein eine einen einem einer eines im am zum zur beim vom",
        "nl": "de het een",
        "ro": "un o unui unei de",
        "ca": "el la els les un una del de",
        "sv": "en ett den det",
        "da": "en et den det",
        "no": "en et ei den det",
        "hu": "a az egy",
        "id": "sebuah seorang para",
        "tr": "bir bu",
    }.items()
}


# e.g. fr: "Elle présente un talk-show à la télévision tous les samedis." → 2
def _after_article(said: Said, j: int) -> bool:
    return j > 0 and said.words[j - 1] in _ARTICLES.get(said.code, frozenset())


# e.g. es: "El border collie es un perro muy inteligente y le gusta correr." → 2
def _begins_a_term(said: Said, j: int) -> bool:
    """Whether the next word is in no list either: "el border collie"."""
    if j + 1 >= len(said.words) or said.text[said.places[j][1] : said.places[j + 1][0]] not in {" ", "-"}:
        return False
    following = said.words[j + 1]
    return len(following) > 3 and zipf(following, said.code) is None and in_lexicon(following, "en") is True


# e.g. en: "1. Lassen Volcanic Park is a quiet place to walk in the summer." → 2
def _among_capitals(said: Said, j: int) -> bool:
    """Whether the word next to it is capitalised too, with nothing but a space between: part of a name."""
    for one, other in ((j - 1, j), (j, j + 1)):
        if one >= 0 and other < len(said.places):
            between = said.text[said.places[one][1] : said.places[other][0]]
            if between == " " and said.capital(one) and said.capital(other):
                return True
    return False


# e.g. es: "Hay varias aplicaciones de turnos:\n1. Deputy: sirve para organizar a todo el equipo." → 2
def _is_listed_name(said: Said, start: int) -> bool:
    """Whether an item of a list begins at a word, in a text that speaks of products or works."""
    item = BULLET.fullmatch(said.text, line_of(said.text, start)[0], start)
    word = said.words[bisect_left(said.places, (start, 0))]
    return item is not None and word not in LABELS and speaks_of_works(said.text)


_LITTLE = {"the": "", "and": "da no sv et", "was": "de nl pl", "you": "", "but": "fr nl pl da tr hr sl"}
"""Words of three letters that are looked for alone, and where they are words; others are words of many languages."""


# e.g. pt: "O menino was brincando no quintal quando começou a chover." → 1
# e.g. pl: "Wczoraj poszliśmy do kina and potem zjedliśmy kolację w domu." → 1
# e.g. pl: "W sobotę gramy rock and roll, a w niedzielę odpoczywamy w domu." → 2
# e.g. it: "Durante il lockdown abbiamo letto molti libri in casa." → 2
# e.g. pt: "Ela trabalha como freelance e aluga uma mesa no coworking do bairro." → 2
# e.g. fr: "Nous devons several choses avant la fin de la semaine." → 1
# e.g. fr: "Elle fait du jogging le matin avant de partir." → 2
def _convincing_alone(said: Said, j: int, rival: str) -> bool:
    word, code, (start, end) = said.words[j], said.code, said.places[j]
    little = end - start < 4 and (word not in _LITTLE or code in LEXICONS)
    if little or word in INTERNATIONAL or word in TERMS or joins_names(said, j):
        return False
    if said.capital(j) and (code != "en" or _among_capitals(said, j)):
        label = _is_label(said.text, start, end) and not _is_listed_name(said, start)
        if not label:
            return False  # a name
    strength, frequency = evidence(word, code, rival), zipf(word, rival) or 0.0
    if rival != "en":
        borrowed = code in LEXICONS or (code != "en" and (zipf(word, "en") or 0.0) >= COMMON)
        exclusive = zipf(word, code) is None and len(zipfs(word)) <= 2 and script(word[0]) != "Arab"
        least = SINGLE_EXCLUSIVE if exclusive else SINGLE_KNOWN
        return frequency >= 4.0 and strength >= least and not borrowed and not in_lexicon(word, code)
    if code in LEXICONS and any((zipf(word, other) or 0.0) >= frequency - 1.0 for other in LEXICON_RIVALS[1:]):
        return False  # a word of Latin that many languages have
    if _after_article(said, j) and (frequency < BORROWED or _begins_a_term(said, j)):
        return False
    if frequency < 3.4 or strength < SINGLE:
        return False
    # Lexicons have little English words from titles and quotations.
    known = _has_form(word, code) and (word not in _LITTLE or code in _LITTLE[word])
    if not known and frequency < EVERYDAY and (zipf(word, code) or 0.0) >= COMMON and strength < SINGLE_BORROWED:
        return False  # the language has borrowed it
    # What is in the lexicon alone may be there by chance.
    unheard = SINGLE_HARDLY_KNOWN if zipf(word, code) is None else SINGLE_KNOWN
    return strength >= (unheard if known else SINGLE if known is False else SINGLE_UNKNOWN)


# e.g. no: "Hver har rett til en god levestandard for seg og hans families helse." → 2
def _has_form(word: str, code: str) -> bool | None:
    """Whether the lexicon of a language has a word, or what a genitive in -s was made of."""
    known = in_lexicon(word, code)
    genitive = known is False and code in {"da", "no", "sv", "nl", "de"} and word.endswith("s")
    return in_lexicon(word[:-1], code) if genitive else known


def _goes_on(said: Said, one: int, other: int) -> bool:
    """Whether the name of which one of two words is a part has the other, a rare word, for a part, too."""
    if one < 0 or other >= len(said.words):
        return False
    outer = one if said.capital(one) and not _common(said.words[one]) else other
    joined = said.text[said.places[one][1] : said.places[other][0]] == " "
    return joined and said.capital(outer) and not _common(said.words[outer])


def _common(word: str) -> bool:
    return (zipf(word, "en") or 0.0) >= BORROWED


# e.g. es: "Fue invitado a asistir a Hogwarts School of Witchcraft and Wizardry cuando era niño." → 2
# e.g. fr: "Le groupe Rage Against the Machine jouera au stade demain soir." → 2
# e.g. de: "Er arbeitet am Institute for Advanced Study in Princeton." → 2
def _is_title(said: Said, segment: range, strong: list[int]) -> bool:
    """Capitalised words joined by little ones, as in "Institute for Nuclear Research": a name or a title."""
    small = [j for j in strong if not said.capital(j)]
    if not all(said.words[j] in FUNCTION_WORDS for j in small):
        return False
    capitals = sum(said.capital(j) for j in segment)
    capitals += sum(_goes_on(said, *two) for two in ((segment[0] - 1, segment[0]), (segment[-1], segment[-1] + 1)))
    return capitals >= 2 and capitals > len(small)
