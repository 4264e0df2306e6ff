"""How text is cut for rating: visible characters, words, lines and lists, in many scripts.

Every function is linear in the length of the text: a response of a megabyte of brackets must not stop a study.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from xlift.languages import find_language, known_code
from xlift.rating.spelling import alike

# Control, format and surrogate characters: zero-width, bidirectional marks, soft hyphen. Newlines and tabs stay.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ud800-\udfff\ufe0e\ufe0f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U000e0001\U000e0020-\U000e007f]"
)
_NEWLINE = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Unicode normalisation sorts a run of combining marks in quadratic time; no real text has 30 of them on a letter.
_LONG_RUN = re.compile(r"([^\w\s\x00-\x7f]{30})[^\w\s\x00-\x7f]+")
# Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)
_TURKISH = str.maketrans({"İ": "i", "I": "ı"})
# A fence of backticks or tildes, closed by as many or by the end of the text.
FENCE = re.compile(
    r"(?P<mark>`{3,}|(?m:^)~{3,}(?=[^~\n]*\n))(?P<tag>[^\n`]*(?=\n)|\w*)(?P<inside>.*?)(?:(?P=mark)|\Z)", re.DOTALL
)


# e.g. visible("a\u00adb\r\nc") → "ab\nc"
def visible(text: str) -> str:
    """The text in NFC without invisible characters, every line break a newline."""
    shown = _LONG_RUN.sub(r"\1", _INVISIBLE.sub("", _NEWLINE.sub("\n", text)))
    return unicodedata.normalize("NFC", shown)


# e.g. fold("ISPARTA", "tr") → "ısparta"
# e.g. fold("مُحَمَّد") → "محمد"
def fold(text: str, language: str = "") -> str:
    """The text for matching: NFKC, casefolded as the language does, spellings of one word and spacing evened out."""
    wide, code = unicodedata.normalize("NFKC", visible(text)), known_code(language)
    cased = wide.translate(_TURKISH) if code == "tr" else wide
    return " ".join(alike(unicodedata.normalize("NFKC", cased.casefold()), code).split())


# e.g. fenced("~~~ hello ~~~") → False
def fenced(text: str) -> bool:
    """Whether a part of the text is in a fence."""
    return ("```" in text or "~~~" in text) and FENCE.search(text) is not None


# e.g. ends_fenced("So:\n```\nx = 1") → True
def ends_fenced(text: str) -> bool:
    """Whether the text ends before a fence is closed."""
    last = max(FENCE.finditer(text), key=re.Match.start, default=None) if fenced(text) else None
    return last is not None and not last[0].removeprefix(last["mark"] + last["tag"]).endswith(last["mark"])


# e.g. without_code("~~~\nbonjour\n~~~") → "\n\nbonjour\n"
# e.g. without_code("So:\n```py\nx = 1\n```") → "So:\n\n"
def without_code(text: str) -> str:
    """The text without fenced code; a reply that is one fence as a whole is taken out of its fence."""
    if not fenced(text):
        return text
    outside = FENCE.sub("\n", text)
    return outside if outside.strip() else FENCE.sub(lambda found: "\n" + found["inside"], text)


# e.g. spaced("th") → False
def spaced(language: str) -> bool:
    """Whether the language separates words by spaces; True for a language that xlift does not know."""
    known = find_language(language)
    return known is None or known.words == "spaces"


# e.g. count_words("C'est l'été — enfin !", "fr") → 3
# e.g. count_words("今天很好。", "zh") → 4
def count_words(text: str, language: str) -> int:
    """Words with at least one letter or digit; for zh, ja, th their letters, without punctuation.

    In any language a character of an unspaced script counts as one word, so that 200 Chinese characters in an
    English reply are not one word.
    """
    shown = visible(text)
    if not spaced(language):
        return sum(map(str.isalnum, shown))
    dense = sum(character.isalnum() for character in UNSPACED.findall(shown))
    tokens = re.split(r"[\s—…]+|--+", UNSPACED.sub(" ", shown))
    return dense + sum(any(map(str.isalnum, token)) for token in tokens)


# e.g. count_characters("a  b", "en") → 3
def count_characters(text: str, language: str) -> int:
    """For zh, ja, th their letters, without punctuation; elsewhere all characters, a run of spaces as one."""
    return len(" ".join(visible(text).split())) if spaced(language) else count_words(text, language)


_NO_WORDS = re.compile(r"`[^`\n]{1,500}`|<[^<>]{1,500}>|https?://\S+|www\.\S+|\S{1,100}@\S+|[—–…]")


# e.g. cased_words("l'Été 12 jours") → [["l", "Été"], ["jours"]]
# e.g. cased_words("今天 OK") → None
# e.g. cased_words("The 1ST one", True) → [["The"], ["ST"], ["one"]]
def cased_words(text: str, behind_digits: bool = False) -> list[list[str]] | None:
    """Words that begin with a letter of a cased script, cut at apostrophes; None if most letters have no case.

    `behind_digits`: also what follows the digits of "1ST".
    """
    tokens = [re.split(r"['’ʼ]", token) for token in _NO_WORDS.sub(" ", without_code(visible(text))).split()]
    lead = r"^[\W\d_]+" if behind_digits else r"^[\W_]+"
    words = [[re.sub(lead, "", part) for part in token] for token in tokens]
    words = [[part for part in word if part] for word in words]
    words = [word for word in words if word and word[0][0].isalpha()]
    cased = [word for word in words if _cased(word[0][0])]
    return cased if cased and 2 * len(cased) > len(words) else None


# e.g. _cased("ბ") → False
def _cased(letter: str) -> bool:
    # Georgian has capitals in Unicode, but no word begins with one: its title case is the small letter.
    return letter.title() != letter.lower()


def is_capital(letter: str) -> bool:
    return letter.isupper() or letter.istitle()


class _Attached(NamedTuple):
    """What may stand attached before and after a word; `letters` is the shortest word to which that applies."""

    before: str = ""
    after: str = ""
    letters: int = 1


_SUFFIXES = _Attached(after=".{0,8}", letters=4)
_JOSA = (
    "은|는|이|가|을|를|의|에|에서|에게|께|께서|와|과|랑|이랑|도|만|로|으로|부터|까지|처럼|보다|마다|조차|마저|이나|나|"
    "라고|이라고|이다|다|입니다|이에요|예요|이며|이고|이라는|라는|들|하고|한테|에는|에도|에서는|으로는|로는"
)
_ATTACHED = {
    "ko": _Attached(after=f"(?:{_JOSA}){{0,3}}"),
    "ar": _Attached(before="[وف]?[بكل]?(?:ال|لل)?", after="(?:ه|ها|هم|هن|ك|كم|ي|نا)?", letters=2),
    "he": _Attached(before="[ושהכלבמ]{0,3}", letters=3),
    "tr": _SUFFIXES,
    "fi": _SUFFIXES,
    "hu": _SUFFIXES,
    "ta": _SUFFIXES,
    "te": _SUFFIXES,
}


# e.g. occurrences("والكتاب على الطاولة", "كتاب", "ar") → 1
# e.g. occurrences("the category of cats", "cat", "en") → 0
def occurrences(text: str, word: str, language: str) -> int:
    """How often the word or phrase occurs as whole words, with what the language attaches to them."""
    code = known_code(language)
    haystack, attached = fold(text, language), _ATTACHED.get(code, _Attached())
    # Persian parts of a word stand joined, apart or at a narrow space.
    parts = re.split("[ \u200c]+", word) if code in {"fa", "ckb"} else [word]
    needles = {fold(joint.join(parts), language) for joint in (" ", "")} if len(parts) > 1 else {fold(word, language)}
    return sum(_count_whole(haystack, needle, attached) for needle in needles)


def _count_whole(haystack: str, needle: str, attached: _Attached) -> int:
    if len(needle) < attached.letters:
        attached = _Attached()
    found, start = 0, haystack.find(needle) if needle else -1
    while start >= 0:
        found += _stands_alone(haystack, start, start + len(needle), attached)
        start = haystack.find(needle, start + 1)
    return found


def _stands_alone(text: str, start: int, end: int, attached: _Attached) -> bool:
    if not (attached.before or at_boundary(text, start)) or not (attached.after or at_boundary(text, end)):
        return False
    before, after = start, end
    # No particle is longer than a dozen characters: what goes on is another word.
    while not at_boundary(text, before) and start - before < 12:
        before -= 1
    while not at_boundary(text, after) and after - end < 12:
        after += 1
    prefix, suffix = text[before:start], text[end:after]
    return bool(re.fullmatch(attached.before, prefix) and re.fullmatch(attached.after, suffix))


# e.g. at_boundary("a-b", 1) → True
# e.g. at_boundary("人口", 1) → True
# e.g. at_boundary("ab", 1) → False
def at_boundary(text: str, index: int) -> bool:
    """Whether a word may begin or end between two characters: always in scripts without spaces."""
    if not 0 < index < len(text):
        return True
    left, right = text[index - 1], text[index]
    return not (_in_word(left) and _in_word(right)) or bool(UNSPACED.match(left) or UNSPACED.match(right))


def _in_word(character: str) -> bool:
    # Python's \w leaves out combining marks, such as the vowel signs of Devanagari.
    return character.isalnum() or unicodedata.category(character)[0] == "M"


class Line(NamedTuple):
    """A non-empty line: `kind` is the sort of list marker, "" for prose; `number` where the marker is one."""

    kind: str
    number: int | None
    indent: int
    after_blank: bool
    text: str
    raw: str


_NUMBER = r"(?:#{1,6}\s+)?(?:\*\*|__)?"
_ARROW = r"(?:-{1,3}|={1,2})>|[→⇒➔➜➡⟶]"
_EMOJI = "[\u2600-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff]"
# In this order: a line such as "**1. One**" is numbered before it is bold.
_MARKERS = {
    "number": re.compile(
        rf"{_NUMBER}[(（]?(?P<digits>\d{{1,3}})(?:\\?[.)）．、।](?!\d)|\s?[:：](?=\s)|\s?[-–—](?=\s+\D)|\u20e3)"
        rf"|{_NUMBER}(?P<digit>[①-⑳⑴-⒛❶-❿➀-➓㊀-㊉])[.、)]?"
        rf"|{_NUMBER}[(（]?(?P<ideographs>[一二三四五六七八九十]{{1,3}})[)）、．.]"
    ),
    "letter": re.compile(
        r"[(（]?[^\W\d_][)）](?=\s)|[a-zа-яё]\.(?=\s)|[가나다라마바사아자차카타파하]\.(?=\s)|(?:[IVX]{1,5}|[ivx]{2,5})[.)](?=\s)"
    ),
    "arrow": re.compile(_ARROW),
    "dash": re.compile(r"[-–—−](?=\s|[^\W\d_]|\*\*)"),
    "bullet": re.compile(r"[*+](?=\s)|[•‣▪▫●○◦■□◆◇·・∙⁃►▶]"),
    "emoji": re.compile(rf"{_EMOJI}{{1,5}}\s"),
    "markup": re.compile(r"[|<{}]"),
    "heading": re.compile(r"#{1,6}\s+(?=\S)"),
    "bold": re.compile(r"(?:\*\*|__)(?=\w)"),
    "label": re.compile(r"[^\W\d_]{2,20}\s\d{1,3}(?:[:：)]|\s[-–—])(?=\s)"),
}
LIST_KINDS = {"number", "letter", "arrow", "dash", "bullet"}
_QUOTED = re.compile(r"(?:>\s?)+(?=\S)")
# A second number within a line: "1. One 2. Two".
_INLINE = re.compile(r"[\s,;،、；][(（]?[2２٢२۲][.)）](?!\d)")
_STOPS = ".!?…。！？．؟۔।॥"


def parse_lines(text: str) -> list[Line]:
    """The non-empty lines with their list markers; horizontal rules and fenced code are left out."""
    lines, after_blank = [], False
    for line in without_code(visible(text)).split("\n"):
        bare = line.strip()
        if bare and not _is_rule(bare):
            lines.append(_parse_line(line, after_blank))
        after_blank = not bare or _is_rule(bare)
    return lines


# e.g. _is_rule("* * *") → True
def _is_rule(bare: str) -> bool:
    marks = bare.replace(" ", "")
    return len(marks) >= 3 and marks[0] in "-*_=" and marks == marks[0] * len(marks)


def _parse_line(line: str, after_blank: bool) -> Line:
    raw = line.strip()
    indent = len(line[: len(line) - len(line.lstrip())].expandtabs(4))
    bare = _QUOTED.sub("", raw, count=1) if raw[0] == ">" else raw
    for kind, marker in _MARKERS.items():
        if found := marker.match(bare):
            # Bullets of different shapes are different levels of one list, whatever their indent.
            name = f"bullet {found[0]}" if kind == "bullet" else kind
            return Line(name, _number(found), indent, after_blank, bare[found.end() :].strip(), raw)
    return Line("", None, indent, after_blank, bare, raw)


def _number(found: re.Match[str]) -> int | None:
    groups = found.groupdict()
    if groups.get("digits"):
        return int(groups["digits"])
    if groups.get("digit"):
        return int(unicodedata.numeric(groups["digit"]))
    return _ideographic(groups["ideographs"]) if groups.get("ideographs") else None


# e.g. _ideographic("二十三") → 23
# e.g. _ideographic("一二") → 12
def _ideographic(numeral: str) -> int:
    """一 to 九十九; two digits without 十 (一二) are read as 12."""
    values = [int(unicodedata.numeric(character)) for character in numeral]
    if "十" not in numeral:
        return int("".join(map(str, values)))
    ten = values.index(10)
    return 10 * (values[ten - 1] if ten else 1) + sum(values[ten + 1 :])


def is_list_line(line: Line) -> bool:
    return line.kind.split(" ")[0] in LIST_KINDS


def top_lines(lines: list[Line]) -> list[Line]:
    """The list lines that are not indented below the first of them."""
    listed = [line for line in lines if is_list_line(line)]
    return [line for line in listed if line.indent < listed[0].indent + 2]


# e.g. list_readings("- a\n- b\n  - c", "en") → {"dash": 2}
# e.g. list_readings("Oui, non, peut-être.", "fr") → {}
def list_readings(text: str, language: str) -> dict[str, int]:
    """How many items the text has, by what could be its items, the likeliest first; {} where that cannot be told.

    List markers come first. Without them lines led by bold, a heading, an emoji or "Option 1:" are items, then short
    lines without a full stop. Prose, tables, HTML and lists within a line are left to a judge.
    """
    lines = parse_lines(text)
    top = top_lines(lines)
    if len(top) == 1 and top[0].number == 1 and _INLINE.search(top[0].text):
        return {}
    readings = dict(Counter(line.kind for line in top))
    sections = Counter(_section(line) for line in lines)
    readings |= {kind: count for kind, count in sections.items() if kind and count > 1}
    # Fenced code beside prose may hold the list.
    return readings or ({} if fenced(text) else _plain_readings(lines, language))


def is_label(line: Line) -> bool:
    """A line that introduces what follows: a heading, wholly bold, or with a colon at its end."""
    return _is_title(line.raw) or line.raw.rstrip("*_ ").endswith((":", "："))


def _section(line: Line) -> str:
    if line.kind == "heading":
        return "heading " + "#" * (len(line.raw) - len(line.raw.lstrip("#")))
    return line.kind if line.kind in {"bold", "label", "emoji"} else ""


def _plain_readings(lines: list[Line], language: str) -> dict[str, int]:
    body = lines[1:] if lines and is_label(lines[0]) else lines
    if any(line.kind == "markup" for line in body):
        return {}
    if len(body) < 2:
        joined = " ".join(line.raw for line in body)
        # Text without any separator holds no list, whatever it says.
        return {} if re.search(r"[,،、，;；؛/]|\d[.)）]", joined) else {"line": len(body)}
    limit = 12 if spaced(language) else 24
    short = all(count_words(line.raw, language) <= limit and line.raw[-1] not in _STOPS for line in body)
    return {"line": len(body)} if short else {}


# e.g. paragraphs("# Titre\n\nUn.\nDeux.\n\nTrois.") → ["Un.\nDeux.", "Trois."]
def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines; where there is no blank line, every line. Rules and lone headings are none."""
    lines = [line.strip() for line in visible(text).strip().split("\n")]
    blank = "" in lines
    blocks = [list(block) for filled, block in groupby(lines, bool) if filled] if blank else [[line] for line in lines]
    return ["\n".join(block) for block in blocks if block[0] and not (len(block) == 1 and _is_title(block[0]))]


def _is_title(line: str) -> bool:
    wholly_bold = line[:2] in {"**", "__"} and line.rstrip(":：")[-2:] == line[:2] and len(line) < 120
    return _is_rule(line) or bool(re.match(r"#{1,6}\s", line)) or (wholly_bold and line.count(line[:2]) == 2)
