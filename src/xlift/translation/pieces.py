"""How a text is cut for translation: sentences are said anew, everything between them stays as it is.

Code, links, addresses and placeholders are never translated, and neither are line breaks, list markers, headings and
the frames of tables. What was kept apart goes back to its place, so that a translation has the shape of its source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from xlift.languages import get_language
from xlift.rating.sentences import split_block
from xlift.rating.text import FENCE


class Piece(NamedTuple):
    """A stretch of a text: a sentence where `said`, else something that stays."""

    text: str
    said: bool


# What stands before the words of a line: "> 2. ", "  - [x] ", "## ", "**Step 1:** " is none.
_LEAD = re.compile(r"(?:>\s?)*\s*(?:#{1,6}\s+|[-*+•–]\s+|\(?\d{1,3}[.)]\s+|\(?[a-zA-Z][.)]\s+)?(?:\[[ xX]\]\s+)?")
_RULE = re.compile(r"[\s|:=*_-]*")
_MATH = re.compile(r"\$\$.*?\$\$|\\\[(?:(?!\\\[).)*?\\\]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
KEPT = re.compile(
    r"`[^`\n]{1,300}`"  # code
    r"|(?:https?://|www\.)[^\s<>\"')\]。，、；]*[\w/=&#%-]"  # links
    r"|[\w.+-]{1,60}@[\w-]{1,60}\.[\w.]{1,30}"  # addresses
    r"|\{\{?[\w .:|-]{1,60}\}?\}|<\/?[A-Za-z][^<>\n]{0,100}>|\[[A-Z][A-Z _]{1,30}\]"  # {name}, <b>, [MASK]
    r"|%\(?\w{0,20}\)?[sd]\b|\$[A-Za-z_]\w{1,30}|\$[^$\n]{1,80}\$"  # %s, $HOME, $x^2$
    r"|(?<!\w)@\w{2,30}|\S{1,80}\.(?:py|js|json|csv|txt|html|xml|yaml|yml|md|sh|exe|pdf)\b"  # @handle, file.py
)
"""What stays as it is inside a sentence."""


# e.g. pieces("1. Open `a.py`.\n", "en") → (("1. ", False), ("Open `a.py`.", True), ("\n", False))
@lru_cache(maxsize=1024)
def pieces(text: str, language: str) -> tuple[Piece, ...]:
    """The text cut into sentences and what stands between them; joined they are the text."""
    found: list[Piece] = []
    start = 0
    for kept in sorted([*FENCE.finditer(text), *_MATH.finditer(text)], key=re.Match.start):
        if kept.start() >= start:
            found += [*_prose(text[start : kept.start()], language), Piece(kept[0], False)]
            start = kept.end()
    return tuple(_merged([*found, *_prose(text[start:], language)]))


def _prose(text: str, language: str) -> Iterable[Piece]:
    for line in text.splitlines(keepends=True):
        bare = line.rstrip()
        yield from _line(bare, language)
        yield Piece(line[len(bare) :], False)


def _line(line: str, language: str) -> Iterable[Piece]:
    if line.count("|") > 1 and line.lstrip().startswith("|"):
        for cell in re.split(r"(\|)", line):
            yield from [Piece(cell, False)] if cell == "|" else _words(cell, language)
        return
    lead = "" if _RULE.fullmatch(line) else _LEAD.match(line)[0]  # type: ignore[index]
    yield Piece(lead, False)
    yield from _words(line[len(lead) :], language)


def _words(text: str, language: str) -> Iterable[Piece]:
    """The sentences of a line, with the blanks around them."""
    place = 0
    for sentence in split_block(text, language):
        start = text.find(sentence, place) if sentence else -1
        if start < 0:
            continue
        yield Piece(text[place:start], False)
        yield Piece(sentence, speaks(sentence))
        place = start + len(sentence)
    yield Piece(text[place:], False)


# e.g. speaks("https://a.org") → False
def speaks(text: str) -> bool:
    """Whether there is a word to translate."""
    return re.search(r"[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff]", KEPT.sub(" ", text)) is not None


def _merged(found: Iterable[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for piece in found:
        if not piece.text:
            continue
        if merged and not piece.said and not merged[-1].said:
            merged[-1] = Piece(merged[-1].text + piece.text, False)
        else:
            merged.append(piece)
    return merged


# e.g. fragments("Open `a.py` now.") → [("Open", True), (" `a.py` ", False), ("now.", True)]
def fragments(sentence: str) -> list[Piece]:
    """A sentence cut around what must stay, for a translator that does not leave it alone."""
    found, start = [], 0
    for kept in KEPT.finditer(sentence):
        found += [*_fragment(sentence[start : kept.start()]), Piece(kept[0], False)]
        start = kept.end()
    return _merged([*found, *_fragment(sentence[start:])])


def _fragment(text: str) -> list[Piece]:
    words = text.strip()
    before = text[: len(text) - len(text.lstrip())]
    return [Piece(before, False), Piece(words, speaks(words)), Piece(text[len(before) + len(words) :], False)]


def joined(found: Sequence[Piece], translate: Callable[[str], str], target: str) -> str:
    """The pieces with their sentences translated; between two sentences no blank where the target has none."""
    dense = get_language(target).words == "characters"
    texts: list[str] = []
    for number, piece in enumerate(found):
        between = 0 < number < len(found) - 1 and found[number - 1].said and found[number + 1].said
        blank = not piece.said and not piece.text.strip(" ") and between and dense
        texts.append(translate(piece.text) if piece.said else "" if blank else piece.text)
    return "".join(texts)


# e.g. kept_in("Open `a.py` at https://a.org.") → ["`a.py`", "https://a.org"]
def kept_in(text: str) -> list[str]:
    """What stays as it is in a sentence, in its order."""
    return [found[0] for found in KEPT.finditer(text)]
