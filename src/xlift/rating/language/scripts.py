"""Words in another script than the expected one, Chinese among Japanese: foreign words, or names, terms and titles."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from xlift.languages import LANGUAGES, get_language
from xlift.rating.language.masks import WORD, letters_outside, script, scripts_of, words_with_places
from xlift.rating.language.subjects import DISHES, LIBRARIES, LIBRARY_BEFORE, named_in, speaks_of_works
from xlift.rating.language.terms import INTERNATIONAL, TERMS, in_phrase
from xlift.rating.language.wordlists import COMMON, likelihood, zipf
from xlift.rating.spelling import alike

_LANGUAGE_OF = {"Hani": "zh", "Kana": "ja", "Hang": "ko", "Cyrl": "ru", "Arab": "ar", "Deva": "hi", "Grek": "el",
                "Hebr": "he", "Thai": "th", "Beng": "bn", "Taml": "ta", "Telu": "te", "Mlym": "ml", "Guru": "pa",
                "Gujr": "gu", "Knda": "kn", "Armn": "hy", "Geor": "ka", "Sinh": "si", "Laoo": "lo", "Mymr": "my",
                "Ethi": "am", "Khmr": "km", "Tibt": "bo", "Orya": "or", "Mong": "mn", "Thaa": "dv"}  # fmt: skip


class Span(NamedTuple):
    """Characters [start, end) of a text that are in `language`; "und" where the language is not known."""

    start: int
    end: int
    language: str


class Said(NamedTuple):
    """A text, the same masked, its words in lower case with their places, and the language it must be in."""

    text: str
    masked: str
    words: list[str]
    places: list[tuple[int, int]]
    code: str

    def capital(self, j: int) -> bool:
        return self.masked[self.places[j][0]].isupper()


# e.g. said_in("Le train", "Le train", "fr").words → ["le", "train"]
def said_in(text: str, masked: str, code: str) -> Said:
    """A text that must be in a language, cut into words."""
    return Said(text, masked, *words_with_places(masked, code), code)


def breaks_of(said: Said) -> set[int]:
    """Words before which a line ends."""
    if "\n" not in said.text:
        return set()
    after = {bisect_left(said.places, (found.start(), 0)) for found in _NEW_LINE.finditer(said.text)}
    return after - {0, len(said.places)}


_NEW_LINE = re.compile("\n")


# --- another script ---------------------------------------------------------------------------------------------


def other_script(said: Said, scripts: list[str], written: frozenset[str]) -> list[Span]:
    found, breaks, first = [], breaks_of(said), 0
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


# A bracket that begins with a name in its own letters: (進撃の巨人 / Shingeki no Kyojin).
_ORIGINAL = re.compile(r"[(（][^A-Za-zÀ-ɏ()（）\n.?!]{1,24}\Z")


# e.g. de: "Auf Japanisch heißt das ありがとう, und man verbeugt sich dabei." → 2
# e.g. pt: "É o anime mais visto do ano (進撃の巨人 / Shingeki no Kyojin em japonês) em todo o país." → 2
# e.g. es: "La casa está muy cerca del mar и города, con una vista preciosa." → 1
# e.g. fr: "La constante π vaut environ trois, et α est un angle du triangle." → 2
def _judge_script(said: Said, run: range, name: str) -> str | None:
    """The language of a run in a script that is neither the expected one nor Latin; None where it is blameless."""
    words = [said.words[j] for j in run]
    # Single Greek letters and the like are symbols; long vowel marks and iteration marks belong to any script.
    symbols = name == "Grek" and all(len(word) == 1 for word in words)
    if symbols or (said.code in {"ja", "zh"} and all(word in "ー々〇" for word in words)):
        return None
    start, end = said.places[run[0]][0], said.places[run[-1]][1]
    if "Latn" in scripts_of(said.code) and _ORIGINAL.search(said.text, max(0, start - 30), end):
        return None
    if said.code == "en" and len(words) <= MENTIONED and _is_named(said.text, _LANGUAGE_OF.get(name, "")):
        return None
    if end - start <= CITED and named_in(said.text, name, start):
        return None
    if name == "Hani" and _KANA.search(said.text, max(0, start - KANA_BESIDE), end + KANA_BESIDE):
        return "ja"
    return _LANGUAGE_OF.get(name, "und")


CITED = 20
"""Characters of a word in another script that a text cites behind the name of its language."""
MENTIONED = 3
"""Words in another script that an English text may mention where it names their language."""


# e.g. en: "The word 猫 means cat in Chinese and in Japanese, too." → 2
# e.g. _is_named("Written in Ukrainian.", "ru") → True
def _is_named(text: str, code: str) -> bool:
    """Whether an English text names a language that is written in the script of a language."""
    script = get_language(code).script if code else ""
    return any(one.name in text for one in LANGUAGES.values() if one.script == script) or (
        script in {"Hani", "Jpan"} and ("Chinese" in text or "Japanese" in text)
    )


KANA_BESIDE = 8
"""Characters beside Han within which kana makes it Japanese."""


# e.g. ko: "그녀의 노래 제목을 알파벳 순서로 쓰면 Death by a Thousand Cuts, Dress 순입니다." → 2
# e.g. ru: "Сегодня в меню ресторана есть Coq au vin и Crème brûlée." → 2
# e.g. ru: "Мы живём недалеко от Heathrow и часто летаем." → 2
# e.g. ru: "Это очень important для всех нас." → 1
def _judge_latin(said: Said, run: range) -> str | None:
    """The language of a Latin run in a text of another script; None where it may be a name, a term or a title."""
    text, code, longer = said.text, said.code, [j for j in run if len(said.words[j]) > 1]
    if not longer:
        return None
    start, end = said.places[run[0]][0], said.places[run[-1]][1]
    words = [said.words[j] for j in longer]
    line_start, line_end = line_of(text, start)
    alone = not letters_outside(_LATIN).search(text, line_start, line_end)
    if _is_binomial(said, run) or (is_listed_title if alone else _is_term)(said, run):
        return None
    if said.capital(run[0]) and len(words) <= DISH and _is_dish(text, words):
        return None
    if is_listed_library(said, run) if alone else LIBRARY_BEFORE.search(text, max(0, start - 24), start):
        return None
    if alone and len(words) >= 4:
        return _latin_language(words)
    small = [said.words[j] for j in longer if not said.capital(j) and (alone or not joins_names(said, j))]
    if len(small) >= PHRASE and 2 * len(small) > len(words):
        return _latin_language(small)
    if len(words) >= TITLE_WORDS and _title_case(said, run) and speaks_of_works(text):
        return None
    blamed = [word for word in small if _blamed(word) and not _in_use(word, code)]
    if blamed or (_attached(text, start, end, code) and (small or any(_in_capitals(said, j) for j in longer))):
        return _latin_language(blamed or words)
    unknown = [word for word in small if len(word) > 3 and word not in INTERNATIONAL]
    if unknown and code in {"ru", "ar", "hi", "uk", "bg", "ko", "zh", "ja"} and not _looks_like_a_name(unknown):
        return _latin_language(unknown)
    if len(words) >= 4 and sum(said.words[j] in FUNCTION_WORDS for j in run) >= 2:
        return "en"
    label = not WORD.search(text, line_start, start) and COLON.match(text, end)
    plain = all(map(_ordinary, words)) and any(len(word) > 2 for word in words)
    if label and not alone and _is_product(said, run):
        return None
    return _latin_language(words) if plain and (alone or label) else None


def _is_dish(text: str, words: list[str]) -> bool:
    return DISHES.search(text) is not None and _latin_language(words) not in {"en", "und"}


# e.g. fr: "J'écoute Simon and Garfunkel tous les jours en allant au travail." → 2
# e.g. ru: "Группа Simon and Garfunkel была очень популярна в шестидесятые годы." → 2
def joins_names(said: Said, j: int) -> bool:
    """Whether a word is the "and" between two capitalised ones."""
    if said.words[j] != "and" or not 0 < j < len(said.words) - 1:
        return False
    between = said.text[said.places[j - 1][1] : said.places[j + 1][0]]
    return between == " and " and said.capital(j - 1) and said.capital(j + 1)


# e.g. bg: "Екипът направи brainstorming за новия уебсайт на фирмата." → 2
# e.g. ko: "중소기업도 content marketing 전략을 세우면 고객을 더 쉽게 만날 수 있습니다." → 2
def _is_term(said: Said, run: range) -> bool:
    """Whether a run inside a line is a borrowed term in small letters, where they are written so."""
    words = [said.words[j] for j in run]
    apart = said.code in _WRITE_TERMS and not any(map(said.capital, run))
    return apart and all(word in INTERNATIONAL or word in TERMS or in_phrase(words, i) for i, word in enumerate(words))


_WRITE_TERMS = frozenset({"ko", "ja", "ru", "uk", "bg", "mk", "el"})
"""Languages of another script that write borrowed terms as English does; others put them into their own."""
DISH = 5
"""Words of a foreign dish that a text in another script names."""
TITLE_WORDS = 3
"""Words in title case that are a title where a text speaks of works."""
PHRASE = 4
"""Words in small letters, most of a run, from which on it is a phrase, in whatever language."""
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


BULLET = re.compile(r"\s*(?:[-*•–—·・‧●○◆■▪]|\d{1,3}[.)、．])[\s*_]*")


# e.g. ja: "好きな小説:\n1. The Old Man and the Sea\n2. Brave New World\nどれも面白いです。" → 2
# e.g. ja: "目次:\n1. The History of the City\n2. Time Management and Planning\nよろしくお願いします。" → 0
def is_listed_title(said: Said, run: range) -> bool:
    """Whether a run is an item in title case of a list in a text that speaks of works or products."""
    first, last = said.places[run[0]][0], said.places[run[-1]][1]
    start, end = line_of(said.text, first)
    item = BULLET.fullmatch(said.text, start, first) and not WORD.search(said.text, last, end)
    return bool(item) and _title_case(said, run) and speaks_of_works(said.text)


# e.g. ja: "便利なライブラリ：\n1. pandas\n2. scikit-learn\nどれも無料で使えます。" → 2
def is_listed_library(said: Said, run: range) -> bool:
    """Whether a run is a single name in small letters, an item of a list in a text that speaks of libraries."""
    first, last = said.places[run[0]][0], said.places[run[-1]][1]
    start, end = line_of(said.text, first)
    item = BULLET.fullmatch(said.text, start, first) and not WORD.search(said.text, last, end)
    return bool(item) and " " not in said.text[first:last] and LIBRARIES.search(said.text) is not None


def _title_case(said: Said, run: range) -> bool:
    small = [said.words[j] for j in run if not said.capital(j)]
    return said.capital(run[0]) and all(word in FUNCTION_WORDS or word == "s" for word in small)


LABELS = frozenset(
    "answer answers question questions note notes summary title step steps example examples response translation text "
    "introduction conclusion explanation definition description tip tips solution result results reason overview "
    "analysis advantages disadvantages meaning part section chapter problem hint task instructions".split()
)


# e.g. ru: "Полезные программы:\n- Windows: операционная среда\n- Apple Music: музыка" → 2
# e.g. ja: "便利なアプリ一覧：\n・Google Calendar：予定の管理\n・Apple Notes：メモの作成" → 2
# e.g. ru: "Answer: да, это возможно в любой день недели." → 1
def _is_product(said: Said, run: range) -> bool:
    """Whether what stands before a colon is a name: in capitals, and used or unheard of, or in a list of products."""
    words = [said.words[j] for j in run]
    most = IN_USE if len(words) == 1 else IN_USE_IN_NAMES
    start = said.places[run[0]][0]
    listed = BULLET.fullmatch(said.text, line_of(said.text, start)[0], start) and not LABELS.issuperset(words)
    if not all(map(said.capital, run)) or (LABELS.intersection(words) and not listed):
        return False
    return speaks_of_works(said.text) or any(_in_use(word, said.code, most) for word in words)


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
COLON = re.compile(r"[\s\d.*_]{0,8}[:：]")
FUNCTION_WORDS = frozenset(
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
    votes = [language for strength, language in map(_latin_zipf, words) if strength >= 3.0]
    return max(dict.fromkeys(votes), key=votes.count, default="und")


def line_of(text: str, position: int) -> tuple[int, int]:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return start, len(text) if end < 0 else end


# --- Chinese and Japanese ---------------------------------------------------------------------------------------

_KANA = re.compile("[\u3041-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U000323af]")
_HAN_LINE = 6
# Words of Chinese that Japanese has at most within others (目的, 完了, 是非): two of them are no chance.
_CHINESE_WORDS = frozenset("的是了我你您他她它们們这這那很把在和也就都不没沒吗嗎呢吧")
# Traditional characters that Japanese writes otherwise today, but for old names.
_OLD_FORMS = frozenset(
    "會樂學國來體對說點發變實讀賣經關當聲數應總從將樣覺寫圖氣戰歷廣團擇單專價顯雜證斷繼續邊檢險驗與舉歸擔獨擴權歡觀勸齊濟壓圍榮營"
    "圓鹽緣櫻繪壞懷據狹曉藝缺劍獻嚴恆號殘齒兒辭濕釋壽處獎燒狀條淨讓觸寢盡醉靜攝淺踐錢纖禪雙壯爭搜插裝騷增藏臟屬墮帶滯臺澤膽彈癡"
    "遲晝蟲廳聽鐵轉傳燈黨盜德屆惱腦霸廢拜麥髮拔蠻濱佛拂辯寶豐沒每萬滿默藥譯餘譽搖謠賴亂覽兩獵勵禮靈齡戀爐勞樓灣錄爲隱驛假"
) - frozenset("缺醉增藏拜默插")
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
# e.g. ja: "我爱你。" → 0
# e.g. ja: "早上八點起床，刷牙洗臉，吃早餐，出門上班。" → 0
# e.g. ja: "東京都立大学理学部物理学科卒業です。" → 2
def chinese_lines(text: str, code: str) -> list[Span]:
    """In Japanese, lines without kana, and sentences in other lines, that are Chinese by their characters or words."""
    if code == "zh":
        return _japanese_clauses(text)
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


KANA, KANA_SHARE = 3, 0.15


# e.g. zh: "アニメ是日语词，意思是动画片。" → 1
# e.g. zh: "他每天都学习日语。私は毎日日本語を勉強しています。今天也不例外，他又去了图书馆学习。" → 1
def _japanese_clauses(text: str) -> list[Span]:
    """In Chinese, sentences with so much kana that their Han characters are Japanese, too."""
    found = []
    for part in _CLAUSE.finditer(text) if _KANA.search(text) else ():
        kana, han = len(_KANA.findall(part[0])), len(_HAN.findall(part[0]))
        if kana >= KANA and kana >= KANA_SHARE * (kana + han) and not _around_kana(part[0]):
            found.append(Span(part.start(), part.end(), "ja"))
    return found


_HIRAGANA = re.compile("[\u3041-\u3096]")


# e.g. _around_kana("カタカナ是日语的一种文字") → True
# e.g. _around_kana("私は毎日日本語を勉強しています") → False
def _around_kana(part: str) -> bool:
    """Whether the kana of a Chinese sentence is a word or a title: no hiragana, of which Japanese grammar is made."""
    grammar = set(_HIRAGANA.findall(part)) - {"の"}
    return not grammar and bool(_not_japanese().search(part) or _CHINESE_WORDS.intersection(part))


# e.g. _is_chinese("天气很好适合郊游") → True
# e.g. _is_chinese("国際的技術協力機構") → False
def _is_chinese(part: str) -> bool:
    if _KANA.search(part):
        return False
    characters = _HAN.findall(part)
    simplified = _not_japanese().search(part) is not None
    if len(characters) < _HAN_LINE:  # "邓小平" is a name
        return simplified and not _CHINESE_WORDS.isdisjoint(characters)
    if simplified:
        return True
    words, old = len(_CHINESE_WORDS.intersection(characters)), len(_OLD_FORMS.intersection(characters))
    return words >= 2 or words + old >= 3 or leaning(part) <= CHINESE


HAN_TEXT, HAN_READ = 10, 300
"""Han characters from which on words tell Japanese from Chinese, and how many are looked at."""
CHINESE, JAPANESE = -1.2, 0.15
"""Powers of ten a character by which a text without kana is likelier Japanese than Chinese, by the words of both."""


# e.g. leaning("春夏秋冬、喜怒哀楽、起承転結、花鳥風月") >= JAPANESE → True
# e.g. leaning("早上八點起床，刷牙洗臉，然後出門上班") <= CHINESE → True
# e.g. leaning("東京") → 0.0
def leaning(text: str) -> float:
    """How much likelier the Han characters of a text are Japanese than Chinese, a character; 0.0 where they are few."""
    runs = _HAN_RUN.findall(text[: 2 * HAN_READ])
    count = sum(map(len, runs))
    if count < HAN_TEXT:
        return 0.0
    return sum(likelihood(run, "ja") - likelihood(alike(run, "zh"), "zh") for run in runs) / count


_HAN_RUN = re.compile("[\u3005-\u3007\u3400-\u9fff]+")
