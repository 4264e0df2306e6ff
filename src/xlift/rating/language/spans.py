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
    "logo logos pin faq selfie selfies emoji emojis widget "
    "vs etc et al de la le el il los las van von der den da di du del della en ex per cm km kg mm ml mg".split()
)


# Terms of the trade that are borrowed as they are where the script is Latin.
TERMS = frozenset(
    "machine learning deep cloud computing big data diffusion stable science trading running meeting "
    "report focus budget weekend "
    "freelance freelancer coworking lockdown brunch influencer brand branding target deadline staff trekking shopping "
    "smart checklist networking mindfulness crowdfunding ticket outfit retriever terrier bulldog beagle husky disk "
    "bestseller".split()
)


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
    stretches = [stretch for stretch in excuses(text) if not _native(masked[slice(*stretch)], code)]
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


# e.g. de: "A: «Eislaufen macht mir im Winter Freude.» (Ice skating is a joy in winter.)" → 1
def _native(stretch: str, code: str) -> bool:
    """Whether what a quotation or a bracket says is in the expected language: then it needs no excuse."""
    known, written = vocabulary(code), scripts_of(code)
    if "Latn" not in written:
        own = sum(script(character) in written for character in stretch)
        return own > 0.5 * sum(map(str.isalpha, stretch))
    weights = known.weigh(WORD.findall(lowered(stretch, code)))
    return sum([weight[0] for weight in weights]) > sum([weight[1] for weight in weights])


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
    if _is_binomial(said, run) or (alone and _is_listed_title(said, run)):
        return None
    if alone and len(words) >= 4:
        return _latin_language(words)
    small = [said.words[j] for j in longer if not said.capital(j)]
    blamed = [word for word in small if _blamed(word) and not _in_use(word, code)]
    if blamed or (_attached(text, start, end, code) and (small or any(_in_capitals(said, j) for j in longer))):
        return _latin_language(blamed or words)
    unknown = [word for word in small if len(word) > 3 and word not in INTERNATIONAL]
    if unknown and code in {"ru", "ar", "hi", "uk", "bg", "ko", "zh", "ja"} and not _looks_like_a_name(unknown):
        return _latin_language(unknown)
    if len(words) >= 4 and sum(said.words[j] in _FUNCTION_WORDS for j in run) >= 2:
        return "en"
    label = not WORD.search(text, line_start, start) and _COLON.match(text, end)
    plain = all(map(_ordinary, words)) and any(len(word) > 2 for word in words)
    if label and not alone and _is_product(said, run):
        return None
    return _latin_language(words) if plain and (alone or label) else None


_EPITHET = re.compile(r"[a-z]{2,}(?:us|a|um|is|ii?|ae|o|ens|ans|or|i?x|es|[aou]s|re|le|se|ys)\Z")


# e.g. ko: "마늘의 학명은 Allium sativum이며 요리에 널리 쓰입니다." → 2
def _is_binomial(said: Said, run: range) -> bool:
    """Whether a run is a Latin name of a species: a capitalised genus, or its letter, and one or two epithets."""
    genus, *epithets = [said.words[j] for j in run]
    if not 1 <= len(epithets) <= 2 or not said.capital(run[0]) or any(map(said.capital, run[1:])):
        return False
    common = [zipf(word, "en") or 0.0 for word in epithets]
    if len(genus) > 1 and (zipf(genus, "en") or 0.0) >= (5.0 if max(common) < COMMON else 4.0):
        return False
    return all(_EPITHET.match(word) for word in epithets) and max(common) < 4.2


# Words for works, products and firms, by their beginnings: a list in a text that speaks of them is one of names.
_WORKS = re.compile(
    r"\b(?:film|movie|book|novel|song|album|game|series\b|apps?\b|brand|compan|band|magazin|pelícu|libro|novela|canci"
    r"|juego|serie|empresa|aplicaci|livre|roman|chanson|jeux?\b|série|entrepri|logiciel|livro|canç|jogo|aplicativ"
    r"|romanz|canzon|gioc|aziend|buch|bücher|lied|spiele?\b|marke\b|marken\b|unternehm|firm|boek|merk|bedrij|buku|lagu"
    r"|merek|perusahaan|aplikasi|phim|sách|bài hát|trò chơi|ứng dụng|thương hiệu|công ty|kitap|şarkı|oyun|dizi|marka"
    r"|şirket|uygulama|książ|powieś|piosenk|фильм|фільм|книг|роман|песн|пісн|альбом|игр|сериал|серіал|бренд|компани"
    r"|компані|приложен|програм|программ|застосун|бібліот|команд"
    r"|equipo|équipe|squadr|mannschaft|teams?\b|univers|artist|cantant|chanteu|sänger)"
    r"|فيلم|أفلام|افلام|كتاب|كتب|رواي|أغني|أغاني|لعبة|ألعاب|مسلسل|شرك|تطبيق|برنامج|فیلم|رمان|آهنگ|بازی|سریال|برند|برنامه"
    r"|फिल्म|फ़िल्म|किताब|पुस्तक|उपन्यास|गाने|गीत|ऐप|कंपन|ब्रांड"
    r"|映画|小説|書籍|名著|曲|歌|アルバム|ゲーム|アプリ|ドラマ|ブランド|会社|企業|作品|バンド|电影|電影|书|書|小说|专辑|游戏|应用|软件"
    r"|品牌|公司|乐队|영화|책|소설|노래|앨범|게임|앱|드라마|브랜드|회사|기업|밴드|ภาพยนตร์|หนัง|เพลง|เกม|แอป"
    r"|סרט|ספר|שיר|משחק|אפליקצי|חברה|חברות|チーム|球队|팀",
)


@lru_cache(maxsize=64)
def _speaks_of_works(text: str) -> bool:
    return _WORKS.search(text.lower()) is not None


_BULLET = re.compile(r"\s*(?:[-*•–—·]|\d{1,3}[.)、．])[\s*_]*")


# e.g. ja: "好きな小説:\n1. The Old Man and the Sea\n2. Brave New World\nどれも面白いです。" → 2
# e.g. ja: "目次:\n1. The History of the City\n2. Time Management and Planning\nよろしくお願いします。" → 0
def _is_listed_title(said: Said, run: range) -> bool:
    """Whether a run is an item in title case of a list in a text that speaks of works or products."""
    first, last = said.places[run[0]][0], said.places[run[-1]][1]
    start, end = _line_of(said.text, first)
    item = _BULLET.fullmatch(said.text, start, first) and not WORD.search(said.text, last, end)
    return bool(item) and _title_case(said, run) and _speaks_of_works(said.text)


def _title_case(said: Said, run: range) -> bool:
    return said.capital(run[0]) and all(said.capital(j) or said.words[j] in _FUNCTION_WORDS for j in run)


_LABELS = frozenset(
    "answer answers question questions note notes summary title step steps example examples response translation text "
    "introduction conclusion explanation definition description tip tips solution result results reason overview "
    "analysis advantages disadvantages meaning part section chapter problem hint task instructions".split()
)


# e.g. ru: "Полезные программы:\n- Windows: операционная среда\n- Apple Music: музыка" → 2
# e.g. ru: "Answer: да, это возможно в любой день недели." → 1
def _is_product(said: Said, run: range) -> bool:
    """Whether what stands before a colon is a name: in capitals, and used or unheard of, or in a list of products."""
    words = [said.words[j] for j in run]
    if not all(map(said.capital, run)) or _LABELS.intersection(words):
        return False
    most = IN_USE if len(words) == 1 else IN_USE_IN_NAMES
    return _speaks_of_works(said.text) or any(_in_use(word, said.code, most) for word in words)


IN_USE, IN_USE_IN_NAMES = 1.0, 1.5
"""By how much a Latin word may be rarer than in English where it is a term, or one of several words of a name."""


# e.g. zh: "请把新的logo发给客户，谢谢。" → 2
# e.g. zh: "他们的新家 beautiful 极了，大家都喜欢。" → 1
def _in_use(word: str, code: str, most: float = IN_USE) -> bool:
    """Whether a language in another script writes a word almost as often as English does: logo, google."""
    return code != "en" and (zipf(word, code) or 0.0) >= max(COMMON, (zipf(word, "en") or 0.0) - most)


def _in_capitals(said: Said, j: int) -> bool:
    start, end = said.places[j]
    return said.masked[start:end].isupper()


_LATIN = frozenset({"Latn"})
_COLON = re.compile(r"[\s\d.*_]{0,8}[:：]")
_FUNCTION_WORDS = frozenset(
    "a an and are by for how in is of on or the to was what when where which who why with".split()
)


# Arabic and Hebrew write "and", "the", "in" as letters of the next word.
_PREFIX = re.compile(r"(?<!\w)(?:[وفبلك]{0,2}(?:ال)?ـ?|[והבלמכש]{1,3})\Z")


# e.g. ar: "يمكنك استخدام Windows وLinux وUSB-C في هذا الجهاز." → 2
# e.g. _attached("в city центре", 2, 6, "ru") → False
def _attached(text: str, start: int, end: int, code: str) -> bool:
    """Whether letters of the expected script touch the run in a language that separates words by spaces."""
    if code in {"ja", "zh", "ko"}:
        return False
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    if _PREFIX.search(text, max(0, start - 5), start):
        before = ""
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
    candidates = _headings(said, flagged) + _english_lists(said, flagged)
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
SHORT_HEADING = 3


# e.g. es: "The Importance of Exercise\n\nMoverse todos los días es muy bueno para la salud de las personas." → 1
# e.g. fr: "The History of the City and of Its People\n\nLa ville a été fondée il y a deux mille ans." → 1
def _headings(said: Said, flagged: list[int]) -> list[tuple[float, Span]]:
    """Whole lines in English title case, whose capitals would pass for names elsewhere."""
    if said.code == "en":
        return []
    found, places, last = [], said.places, 0
    for j in flagged:
        if j < last or not (said.words[j] in _FUNCTION_WORDS or _unheard(said.words[j], said.code)):
            continue
        start, end = _line_of(said.text, places[j][0])
        first, last = bisect_left(places, (start, 0)), bisect_left(places, (end, 0))
        if last - first < SHORT_HEADING or _is_listed_title(said, range(first, last)):
            continue
        scores = [evidence(word, said.code, "en") for word in said.words[first:last]]
        if last - first < HEADING_WORDS and not _short_heading(said.words[first:last], said.code):
            continue
        if sum(score > 0 for score in scores) >= 0.8 * len(scores) and sum(scores) >= SEVERAL_NEIGHBOURS:
            found.append((sum(scores), Span(places[first][0], places[last - 1][1], "en")))
    return found


# e.g. _short_heading(["the", "importance", "of", "sleep"], "es") → True
# e.g. _short_heading(["university", "of", "oxford"], "es") → False
def _short_heading(words: list[str], code: str) -> bool:
    return sum(_unheard(word, code) for word in words) + (words[0] in _FUNCTION_WORDS) >= 2


# e.g. _unheard("retirement", "es") → True
# e.g. _unheard("marketing", "es") → False
@lru_cache(maxsize=20_000)
def _unheard(word: str, code: str) -> bool:
    """Whether a word of English, no name, is in no list of the expected language."""
    return (zipf(word, "en") or 0.0) >= COMMON and zipf(word, code) is None and in_lexicon(word, "en") is True


LIST_ITEMS, ITEM = 3, 1.4
"""Items of a list that are English, and the evidence of a word that makes one so."""


# e.g. es: "Temas de la clase de finanzas:\n1. Saving\n2. Investing\n3. Credit Cards\n4. Insurance" → 1
def _english_lists(said: Said, flagged: list[int]) -> list[tuple[float, Span]]:
    """List items in English, whose capitals would pass for names, in a text that does not speak of works."""
    if said.code == "en" or "\n" not in said.text:
        return []
    items, strong, unheard, places, last = [], 0, 0, said.places, 0
    for j in flagged:
        if j < last:
            continue
        start, end = _line_of(said.text, places[j][0])
        first, last = bisect_left(places, (start, 0)), bisect_left(places, (end, 0))
        # Turkish makes another letter of a capital I.
        words = [word.replace("ı", "i") for word in said.words[first:last]]
        scores = [evidence(word, said.code, "en") for word in words]
        bullet = _BULLET.fullmatch(said.text, start, places[first][0])
        english = [in_lexicon(word, "en") and not in_lexicon(word, said.code) for word in words]
        if bullet and all(map(_in_english, words)) and any(map(bool, english)):
            items.append((SEVERAL + max(scores), Span(places[first][0], places[last - 1][1], "en")))
            strong += any(sure and score >= ITEM for sure, score in zip(english, scores, strict=True))
            unheard += any(_unheard(word, said.code) for word in words)
    listed = unheard and strong >= LIST_ITEMS and 2 * strong >= len(items)
    return items if listed and not _speaks_of_works(said.text) else []


def _in_english(word: str) -> bool:
    return len(word) < 2 or (zipf(word, "en") or 0.0) >= COMMON


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


# Vietnamese words in letters that English has too: "then", "ban", "long".
_SYLLABLE = re.compile(
    r"(?:b|ch?|d|gh?|gi|h|kh?|l|m|ngh?|nh?|ph|qu|r|s|th?|tr|v|x)?(?:[aeiouy]|a[iouy]|eo|i[au]|o[aei]|u[aeiy]|oa[iy]|uy[a])"
    r"(?:m|ng?|nh)?"
)


# e.g. vi: "Nước sạch là nhân tố then chốt cho sức khỏe của mọi người." → 2
# e.g. it: "Ho studiato con Helen Baker a New Haven per due anni." → 2
def _limits(said: Said, positive: list[int]) -> list[tuple[int, float]]:
    """Words that may be names or acronyms, and how much they can say for another language."""
    text, found = said.text, []
    for j in positive:
        start, end = said.places[j]
        hyphen = start > 0 and text[start - 1] == "-"
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
    borrowed = [said.words[j] in INTERNATIONAL or said.words[j] in TERMS for j in range(first, end)]
    # Behind an article, two words of which one is a term are one term: "lo smart working".
    if count == 2 and any(borrowed) and _after_article(said, first):
        return False
    if len(strong) == 1 and count < 4:
        return not close and _convincing_alone(said, strong[0], rival)
    if total < (SEVERAL_NEIGHBOURS if close else SEVERAL):
        return False
    terms = all(borrowed[j - first] for j in strong)
    return not terms and not _is_title(said, range(first, end), strong)


BORROWED = 4.2
"""Zipf frequency in English under which a word behind an article of the expected language is a borrowed noun."""
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
    return len(following) > 3 and zipf(following, said.code) is None


# e.g. en: "1. Lassen Volcanic Park is a quiet place to walk in the summer." → 2
def _among_capitals(said: Said, j: int) -> bool:
    """Whether the word next to it is capitalised too, with nothing but a space between: part of a name."""
    for one, other in ((j - 1, j), (j, j + 1)):
        if one >= 0 and other < len(said.places):
            between = said.text[said.places[one][1] : said.places[other][0]]
            if between == " " and said.capital(one) and said.capital(other):
                return True
    return False


# e.g. it: "Durante il lockdown abbiamo letto molti libri in casa." → 2
# e.g. pt: "Ela trabalha como freelance e aluga uma mesa no coworking do bairro." → 2
# e.g. fr: "Nous devons several choses avant la fin de la semaine." → 1
# e.g. fr: "Elle fait du jogging le matin avant de partir." → 2
def _convincing_alone(said: Said, j: int, rival: str) -> bool:
    word, code, (start, end) = said.words[j], said.code, said.places[j]
    named = said.capital(j) and not _is_label(said.text, start, end) and (code != "en" or _among_capitals(said, j))
    if end - start < 4 or word in INTERNATIONAL or word in TERMS or named:
        return False
    strength, frequency = evidence(word, code, rival), zipf(word, rival) or 0.0
    if rival != "en":
        borrowed = code != "en" and (zipf(word, "en") or 0.0) >= COMMON
        enough = frequency >= 4.0 and strength >= SINGLE_KNOWN and not borrowed
        return enough and not in_lexicon(word, code)
    if _after_article(said, j) and (frequency < BORROWED or _begins_a_term(said, j)):
        return False
    if frequency < 3.4 or strength < SINGLE:
        return False
    known = in_lexicon(word, code)
    if not known and frequency < EVERYDAY and (zipf(word, code) or 0.0) >= COMMON and strength < SINGLE_BORROWED:
        return False  # the language has borrowed it
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
