"""What a text in Latin letters names in another language: dishes, works, sayings, where it speaks of such things.

A mention is a few foreign words within a sentence of the expected language. Dishes are nouns and what joins them; works
and sayings begin with a capital.
"""

from __future__ import annotations

import re

from xlift.rating.language.masks import blank_out, mask, words_with_places
from xlift.rating.language.wordlists import Weight, vocabulary, zipfs

LONGEST = 8
"""Words of a mention."""
AROUND, SHARE, SHARE_OF_WORKS = 2, 1 / 6, 1 / 12
"""Words of the expected language in the sentence around mentions: how many, and their share; works have long titles."""
OWN_BY = 0.5
"""Powers of ten by which a word around is more common in the expected language than in that of the mentions."""
A_WORD = 6.5
"""Zipf frequency from which on a letter is a word of the expected language: Spanish y, French à."""
# Words by which a text in a language speaks of food, and of works or sayings.
_FOOD = {
    "en": "dish(?:es)?|cuisine|recipes?|menus?|dinner|lunch|breakfast|desserts?|sauce|flour|butter|cheese|wines?"
    "|restaurants?|cook(?:s|ed|ing)?|bak(?:e|ed|ing)|serve[ds]?|ingredients?",
    "de": "speise\\w*|hauptgericht\\w*|(?:beliebte|leckere|typische) gerichte|rezepte?|zutaten|küche|menü",
    "fr": "recettes?|plats?|cuisine|dîner|déjeuner|menu|restaurants?",
    "es": "recetas?|platos?|menú|cocina|restaurantes?|cena",
    "pt": "receitas?|pratos?|cozinha|menu|jantar|restaurantes?",
    "it": "ricett[ae]|piatt[oi]|cucina|men[uù]|ristorant[ei]|cena",
    "nl": "recept\\w*|gerechten|menu|keuken|restaurants?",
    "pl": "przepis\\w*|dani[ea]|kuchni\\w*|menu|restauracj\\w*",
}
_FOOD |= {
    "sv": "recept\\w*|maträtt\\w*|meny\\w*|restaurang\\w*|köket",
    "da": "opskrift\\w*|madretter|menu\\w*|restaurant\\w*|køkken\\w*",
    "no": "oppskrift\\w*|matretter|meny\\w*|restaurant\\w*|kjøkken\\w*",
    "fi": "ruok\\w*|resept\\w*|menu\\w*|ravintola\\w*",
    "cs": "recept\\w*|jíd(?:lo|la|el)|pokrm\\w*|menu|restaurac\\w*|kuchyn\\w*",
    "hu": "recept\\w*|étel\\w*|menü\\w*|étterem\\w*",
    "ro": "rețet\\w*|mâncăr\\w*|mâncare|meniu\\w*|restaurant\\w*",
    "tr": "yeme[kğ]\\w*|menü\\w*|restoran\\w*|mutfa\\w*",
    "id": "resep|masakan|hidangan|menu|restoran",
    "ca": "receptes|plats?|cuina|menú|restaurants?",
}
_MENU = re.compile(
    r"\b(?:men[uùúü]\w*|meny\w*|meniu\w*|dish(?:es)?|hauptgericht\w*|gerichte|plats?|platos?|pratos?|piatt[oi]|gerechten|dania|hidangan|jíd(?:lo|la|el))\b",
    re.IGNORECASE,
)
_WORKS = {
    "en": "films?|movies?|novels?|songs?|albums?|operas?|poems?|paintings?|books?|wrote|written by|author of|composed"
    "|sang|starring|museums?|streets?|churches|palaces?|visit|sayings?|proverbs?|idioms?|phrases",
    "de": "filmen?|filme?|lieder|romane?|bücher",
    "fr": "films?|romans?|chansons?|livres",
    "es": "películas?|novelas?|libros?|canciones",
    "pt": "filmes?|romances?|livros|canções",
    "it": "film|romanz[oi]|libri|canzoni",
    "nl": "films?|romans?|boeken|liedjes",
    "pl": "filmy?|książk\\w*|piosenk\\w*|powieś\\w*",
}
EVERYDAY_WORD = 4.0
"""Zipf frequency from which on a single word is an everyday one of another language, and no name of a dish."""
# Words of clauses and greetings, which no name of a dish has.
_CLAUSE = frozenset(
    "que qui je j ne pas il elle on nous vous ils est sont suis c ça me te se yo es son está soy muy lo no eu ele "
    "ela é são não muito um uma você io è sono non mi ti si che molto ich du er sie es wir ihr ist sind bin nicht "
    "sehr hat haben ik jij hij zij wij is zijn ben niet geehrte geehrter liebe lieber cher chère estimado estimada "
    "querido querida für auch noch nur bei nach pour dans sur par sans para por sobre per prezado prezada caro cara "
    "gentile beste geachte hola bonjour bonsoir salut guten buenos buenas bom boa buongiorno danke merci gracias "
    "obrigado grazie".split()
)
_JOIN = frozenset(
    "de del la las los le les l el al a à au aux d des du di da do dos das della alla alle allo con en e y i o et und "
    "mit der die das dem den von zu im am auf van het met na w z".split()
)
# What may stand between words of a mention; behind its first word a comma, too: "Non, je ne regrette rien".
_GAPS = {False: {" ", "-", "'", "’"}, True: {" ", "-", "'", "’", ", "}}
_SENTENCE = re.compile(r"[^\n.!?;]+(?:(?:\.(?!\s)|(?<=[\d ])\.)[^\n.!?;]*)*")


# e.g. en: "Try the chiles en nogada, the mole poblano and the tamales de rajas in a good restaurant." → 2
# e.g. en: "My favourite films are Das Leben der Anderen, Der Himmel über Berlin and Good Bye, Lenin!" → 2
# e.g. en: "The film was long. Me gusta mucho la música y también la fotografía de esta película." → 0
# e.g. en: "We went to the playa con los amigos de mi hermano and had fun." → 0
def without_mentions(text: str, code: str) -> str:
    """The text with what it names in another language than English as spaces; offsets stay."""
    food, works = _speaks_of(text, code)
    masked = mask(text) if food or works else text
    while food or works:
        rest = blank_out(text, _all_mentions(masked, code, food, works))
        # What is named in another language says nothing of what the text speaks of.
        left = tuple(before and now for before, now in zip((food, works), _speaks_of(rest, code), strict=True))
        if left == (food, works):
            return rest
        food, works = left
    return text


# e.g. fr: "Le menu de ce soir : gazpacho andaluz, tortilla de patatas, pollo al ajillo et crema catalana." → 2
# e.g. tells_of_a_menu("Le menu du soir", "fr") → True
def tells_of_a_menu(text: str, code: str) -> bool:
    """Whether a text speaks of dishes, most of which may be foreign, and not only of how to cook."""
    return _speaks_of(text, code)[0] and _MENU.search(text) is not None


def _speaks_of(text: str, code: str) -> tuple[bool, bool]:
    """Whether a text speaks of food, and of works or sayings."""
    food, works = (
        re.search(rf"\b(?:{words.get(code, '(?!)')})\b", text, re.IGNORECASE) is not None for words in (_FOOD, _WORKS)
    )
    return food, works


def _all_mentions(masked: str, code: str, food: bool, works: bool) -> list[tuple[int, int]]:
    sentences = [_mentions(sentence[0], sentence.start(), code, food, works) for sentence in _SENTENCE.finditer(masked)]
    around, said = sum([one[1] for one in sentences]), sum([one[2] for one in sentences])
    menu = food and tells_of_a_menu(masked, code) and around >= SHARE_OF_WORKS * said
    least = SHARE_OF_WORKS if works else SHARE
    return [
        stretch
        for found, own, words in sentences
        for stretch in (found if menu or own >= max(AROUND, least * words) else ())
    ]


def _mentions(text: str, begins: int, code: str, food: bool, works: bool) -> tuple[list[tuple[int, int]], int, int]:
    """Those of a sentence that begins somewhere in a text, by their places there, how many words around them are of the
    expected language, and how many words there are."""
    words, places = words_with_places(text, code)
    weights = vocabulary(code).weigh(words)
    capital = [text[place[0]].isupper() for place in places]
    found, inside = [], set()
    for run in _runs(text, words, places, [_kind(*one, code) for one in zip(words, weights, capital, strict=True)]):
        named = next((j for j in run if capital[j]), run[-1])
        dish = (
            food and _CLAUSE.isdisjoint(words[j] for j in run) and not (len(run) == 1 and _is_everyday(words[run[0]]))
        )
        first = run[0] if dish else named
        if run[-1] - first < LONGEST and (dish or (works and capital[first])):
            found.append((begins + places[first][0], begins + places[run[-1]][1]))
            inside |= set(range(first, run[-1] + 1))
    around = [weight for j, weight in enumerate(weights) if j not in inside and (not capital[j] or j == 0)]
    if not inside:
        return [], [weight[0] > 0 for weight in around].count(True), len(words)
    totals = [sum(evidence) for evidence in zip(*(weights[j][2] for j in inside), strict=True)]
    rival = totals.index(max(totals))
    return found, [weight[2][rival] < -OWN_BY for weight in around].count(True), len(words)


def _is_everyday(word: str) -> bool:
    return max(zipfs(word).values(), default=0.0) >= EVERYDAY_WORD


def _kind(word: str, weight: Weight, capital: bool, code: str) -> str:
    """Whether a word is "foreign" (not of the expected language, nor English), may "join" such, or is its "own"."""
    if weight[4] and (code == "en" or weight[1] == 0.0 or weight[2].index(max(weight[2])) > 0):
        return "foreign"
    usual = weight[0] > 0 or (len(word) == 1 and (weight[3] or 0.0) >= A_WORD)
    name = capital and (code != "de" or weight[3] is None)  # all nouns of German have capitals
    return "join" if name or (word in _JOIN and not usual) else "own"


def _runs(text: str, words: list[str], places: list[tuple[int, int]], kinds: list[str]) -> list[range]:
    """Foreign words and what joins them, with nothing but a space, a hyphen or an apostrophe between."""
    runs, first = [], 0
    while first < len(words):
        end = first + 1
        while end < len(words) and kinds[first] != "own" and kinds[end] != "own":
            if text[places[end - 1][1] : places[end][0]] not in _GAPS[end - first == 1]:
                break
            end += 1
        if "foreign" in kinds[first:end]:
            runs.append(range(first, end))
        first = end
    return runs
