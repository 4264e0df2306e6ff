"""Constraint facet: did the response follow the checkable constraint of its prompt?

2 followed, 0 not followed, 1 in part (only where the table says so), missing with a reason where it cannot be decided.

| name | parameters | followed if | 1 if |
|---|---|---|---|
| short | max_words / max_characters | at most that many; without either ≤ 0.75 × the unmodified response | |
| long | min_words / min_characters | at least that many; without either ≥ 1.25 × the unmodified response | |
| items | count | exactly that many list items at the top level | |
| paragraphs | count | exactly that many blocks between blank lines (without blank lines: lines) | |
| sentences | count | exactly that many sentences | |
| numbered | | at least 2 items at the top level numbered 1, 2, 3 … | |
| reply_language | language | as the language facet says | as there |
| markdown | | heading, bold, italic, table, code, link, quote, or ≥ 2 list items in Markdown | |
| html | | a balanced page (doctype, html or body), alone or fenced | fragment, unbalanced, text around it |
| arrow | marker | ≥ 2 points, each begins with the marker | ≥ 80 % of the points do |
| capitalized | | every word begins with a capital | ≥ 80 % of the words, and the first, do |
| lowercase | | no capital letter | ≥ 98 % of the words, and the first, have none |
| include, exclude | word | the word or phrase occurs, does not occur (missing where only another form of it does) | |
| json | keys | the reply is one JSON object with exactly these keys, alone or fenced | such an object within text |
| ends_with | phrase | the last words are the phrase | |
| ifeval | instructions | every instruction of IFEval is, strictly (see ifeval.py) | some of them are |
| style | style | never decided here: a judge has to | |

A response that was cut by the token limit (finish_reason "length") is missing where more text could change the value:
too few so far, or exactly the right number so far. Format (markdown, html, arrow, capitalized, lowercase) and exclude
are rated on what there is. Words are matched whole, without regard to case, vowel signs and invisible characters, with
what the language attaches to them (`text._ATTACHED`); an apostrophe or a hyphen ends a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any, NamedTuple

from xlift.languages import find_language, known_code, without_accents
from xlift.rating.endings import other_forms
from xlift.rating.ifeval import is_instruction, rate_instructions, without_answer
from xlift.rating.ifeval_counts import CASED
from xlift.rating.language.rater import rate_text
from xlift.rating.reasoning import without_reasoning
from xlift.rating.sentences import split_sentences as split_sentences
from xlift.rating.text import (
    FENCE,
    Line,
    at_boundary,
    cased_words,
    count_characters,
    fold,
    is_capital,
    is_label,
    is_list_line,
    list_readings,
    occurrences,
    paragraphs,
    parse_lines,
    spaced,
    top_lines,
    visible,
)
from xlift.rating.text import count_words as count_words
from xlift.records import Rated

VERSION = 7
RELATIVE_SHORT = 0.75
RELATIVE_LONG = 1.25
PARTLY = 0.8
NEARLY_LOWERCASE = 0.98
"""Share of right points or words for 1. Ordinary prose has some 90 % of its words in lower case."""


class Checked(NamedTuple):
    """What a check sees: the text, the language that it must be in, whether it was cut, the response to compare."""

    text: str
    language: str
    cut: bool
    unmodified: str | None


Check = Callable[[Checked, dict[str, Any]], Rated]


def signature() -> str:
    """How the number came about."""
    return f"constraint v{VERSION}"


def rate_constraint(record: dict[str, Any]) -> Rated:
    """Value 2 / 1 / 0 or None, detail with the kind of constraint, and the reason where the value is None."""
    constraint, text = record.get("constraint"), record.get("text")
    if not constraint:
        return None, {}, "the prompt has no constraint"
    if not isinstance(constraint, dict) or not isinstance(constraint.get("name"), str):
        return None, {}, f"the constraint must be an object with a 'name', found {constraint!r:.80}"
    if not isinstance(text, str):
        return None, {}, "the response has no 'text'"
    language = known_code(record.get("reply_language") or record.get("language"))
    kind = {"kind": constraint["name"]}
    if problem := _problem(constraint, language):
        return None, kind, problem
    answer, cut = without_reasoning(text), record.get("finish_reason") == "length"
    if not visible(answer).strip():
        unseen = "cut by the token limit within its reasoning" if cut and answer != text else None
        single = without_answer(constraint["instructions"], unseen) if constraint["name"] == "ifeval" else {}
        return (None, kind | single, unseen) if unseen else (0, kind | {"empty": True} | single, None)
    unmodified = record.get("unmodified")
    reply = Checked(answer, language, cut, without_reasoning(unmodified) if isinstance(unmodified, str) else None)
    value, detail, reason = CHECKS[constraint["name"]](reply, constraint)
    return value, kind | detail | ({"cut": True} if cut else {}), reason


_COUNTS = ("max_words", "max_characters", "min_words", "min_characters", "count")
_NEEDED = {
    "items": "count",
    "paragraphs": "count",
    "sentences": "count",
    "reply_language": "language",
    "arrow": "marker",
    "include": "word",
    "exclude": "word",
    "json": "keys",
    "ends_with": "phrase",
    "ifeval": "instructions",
}


def _problem(constraint: dict[str, Any], language: str) -> str | None:
    """Why the constraint cannot be checked, whatever the response says."""
    name = constraint["name"]
    if name == "style":
        return f"a judge has to decide: {constraint.get('style', 'style')}"
    if name not in CHECKS:
        return f"unknown constraint '{name}'; known: {', '.join(sorted([*CHECKS, 'style']))}"
    needed = [_NEEDED[name]] if name in _NEEDED else []
    for key in [*needed, *(key for key in _COUNTS if key in constraint and key not in needed)]:
        if wrong := _malformed(key, constraint.get(key)):
            return f"constraint '{name}': {wrong}"
    known = find_language(language)
    if name in ("capitalized", "lowercase") and known and known.script not in CASED:
        return f"{known.name} is written without capital letters"
    if name == "sentences" and known and known.code in ("th", "lo"):
        return "the end of a sentence is not marked in this language"
    return None


def _malformed(key: str, value: Any) -> str | None:
    if key in _COUNTS:
        right = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if right else f"'{key}' must be a whole number above 0, found {value!r:.40}"
    if key == "keys":
        right = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
        return None if right else f"'keys' must be a list of names, found {value!r:.40}"
    if key == "instructions":
        right = isinstance(value, list) and bool(value) and all(is_instruction(item) for item in value)
        return None if right else f"'instructions' must be a list of objects with an 'id', found {value!r:.40}"
    right = isinstance(value, str) and bool(fold(value))
    return None if right else f"'{key}' must be text, found {value!r:.40}"


def _short(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return _length(reply, constraint, "max", RELATIVE_SHORT)


def _long(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return _length(reply, constraint, "min", RELATIVE_LONG)


def _length(reply: Checked, constraint: dict[str, Any], bound: str, share: float) -> Rated:
    words, characters = constraint.get(f"{bound}_words"), constraint.get(f"{bound}_characters")
    if characters and not (words and spaced(reply.language)):
        return _bounded(count_characters(reply.text, reply.language), characters, bound, reply.cut)
    if words and not spaced(reply.language):
        return None, {}, f"words cannot be counted in '{reply.language}': give {bound}_characters"
    length = count_words(reply.text, reply.language)
    if words:
        return _bounded(length, words, bound, reply.cut)
    other = count_words(reply.unmodified or "", reply.language)
    if not other:
        return None, {}, "no response to the unmodified prompt to compare the length with"
    return _bounded(length, share * other, bound, reply.cut)


# e.g. en {"name": "short", "max_words": 3}: "One two three four." → 0
def _bounded(found: int, limit: float, bound: str, cut: bool) -> Rated:
    detail = {"found": found, bound: limit}
    followed = found <= limit if bound == "max" else found >= limit
    # More text only makes it longer: what is too long or long enough stays so.
    if cut and followed == (bound == "max"):
        return None, detail, "cut by the token limit before its length was clear"
    return 2 if followed else 0, detail, None


def _counted(found: int, wanted: int, cut: bool, **detail: Any) -> Rated:
    detail |= {"found": found, "wanted": wanted}
    if cut and found <= wanted:
        return None, detail, f"cut by the token limit after {found} of {wanted}"
    return 2 if found == wanted else 0, detail, None


def _items(reply: Checked, constraint: dict[str, Any]) -> Rated:
    readings, wanted = list_readings(reply.text, reply.language), constraint["count"]
    if not readings:
        return None, {}, "no list markup: what an item is cannot be told"
    by, found = next(iter(readings.items()))
    detail = {"by": by, "found": found, "wanted": wanted}
    if by == "line" and ((found <= 1 and wanted <= 2) or found == wanted + 1):
        return None, detail, "no list markup: one line may be an item or not"
    other = [kind for kind, count in readings.items() if count == wanted]
    if found != wanted and other:
        return None, detail | {"also": other[0]}, f"{found} by {by} but {wanted} by {other[0]}: which are the items?"
    return _counted(found, wanted, reply.cut, by=by)


# e.g. en {"name": "paragraphs", "count": 2}: "One.\n\nTwo." → 2
def _paragraphs(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return _counted(len(paragraphs(reply.text)), constraint["count"], reply.cut)


# e.g. es {"name": "sentences", "count": 2}: "¿Vienes? El Sr. Ruiz espera." → 2
def _sentences(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return _counted(len(split_sentences(reply.text, reply.language)), constraint["count"], reply.cut)


# e.g. en {"name": "numbered"}: "1. One\n2. Two" → 2
# e.g. en {"name": "numbered"}: "1. One\n3. Two" → 0
def _numbered(reply: Checked, constraint: dict[str, Any]) -> Rated:
    numbers = [line.number or 0 for line in top_lines(parse_lines(reply.text)) if line.kind == "number"]
    if reply.cut and numbers in ([], [1]):
        return None, {"numbers": numbers}, "cut by the token limit before a second item"
    # A second list may begin at 1 again; each has at least two items.
    starts = [i for i, number in enumerate(numbers) if number == 1]
    runs = [numbers[i:j] for i, j in pairwise([*starts, len(numbers)])]
    ordered = numbers[:1] == [1] and all(len(run) > 1 and run == [*range(1, len(run) + 1)] for run in runs)
    return 2 if ordered else 0, {"numbers": numbers[:50]}, None


# e.g. en {"name": "reply_language", "language": "fr"}: "Il fait beau aujourd'hui." → 2
def _reply_language(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return rate_text(reply.text, constraint["language"])


# Every pattern is bounded, so that no text makes it slow.
_MARKDOWN = {
    "heading": re.compile(r"^ {0,3}(?:#{1,6}[ \t]+\S|\S[^\n]{0,200}\n(?:={3,}|-{3,})[ \t]*$)", re.MULTILINE),
    "bold": re.compile(r"\*\*(?=\S)[^*\n]{1,500}(?<=\S)\*\*|(?<!\w)__(?=\S)[^_\n]{1,500}(?<=\S)__(?!\w)"),
    "italic": re.compile(r"(?<![\w*])\*(?=[^\s*])[^*\n]{1,500}(?<=\S)\*(?![\w*])|(?<!\w)_[^\s_][^_\n]{0,500}_(?!\w)"),
    "table": re.compile(r"^[ \t]{0,8}\|?[ \t]{0,8}:?-{2,}:?[ \t]{0,8}\|[-:| \t]*$", re.MULTILINE),
    "code": re.compile(r"```|^~~~|`[^`\n]{1,500}`", re.MULTILINE),
    "link": re.compile(r"\[[^\[\]\n]{1,300}\]\([^()\n]{1,500}\)"),
    "quote": re.compile(r"^ {0,3}>\s?\S", re.MULTILINE),
}
_MARKDOWN_ITEM = re.compile(r"^[ \t]{0,12}(?:[-*+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)


# e.g. en {"name": "markdown"}: "This is **bold**." → 2
# e.g. en {"name": "markdown"}: "2 * 3 * 4" → 0
def _markdown(reply: Checked, constraint: dict[str, Any]) -> Rated:
    text = visible(reply.text)
    found = [name for name, pattern in _MARKDOWN.items() if pattern.search(text)]
    items = len(_MARKDOWN_ITEM.findall(text))
    return 2 if found or items >= 2 else 0, {"structures": found, "items": items}, None


_TAG = re.compile(r"<(/?)([a-z][a-z0-9]*|!doctype)(?=[\s/>])[^<>]*>", re.IGNORECASE)
# Comments, and script and style, whose content looks like tags.
_OPAQUE = re.compile(
    r"<!--.*?(?:-->|\Z)|<\?[^<>]*>|<(script|style)\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE
)
_BALANCED = re.compile(
    "html|head|body|title|header|footer|main|nav|section|article|aside|div|span|h[1-6]|ul|ol|dl|table|a|b|i|strong|em|u|"
    "code|pre|blockquote|figure|form|button|label|select|textarea"
)
_UNCLOSED = re.compile("p|li|dt|dd|tr|td|th|thead|tbody|tfoot|br|hr|img|meta|link|input|option|figcaption")


# e.g. en {"name": "html"}: "<p>One</p><p>Two</p>" → 0
# e.g. en {"name": "html"}: "<html><p>One</html>" → 2
TEXT_AROUND = "text around the page"


def _html(reply: Checked, constraint: dict[str, Any]) -> Rated:
    """Tags are read by a pattern: html.parser takes minutes for 200 kB of unfinished tags."""
    text = visible(reply.text)
    pages = [fence for fence in FENCE.finditer(text) if _TAG.search(fence["inside"])]
    source = _OPAQUE.sub("", pages[0]["inside"] if pages else text)
    tags = [(slash, name.casefold()) for slash, name in _TAG.findall(source)]
    known = {name for _, name in tags if _BALANCED.fullmatch(name) or _UNCLOSED.fullmatch(name)}
    faults = _html_faults(source, tags, reply.cut)
    if pages and TEXT_AROUND not in faults and (text[: pages[0].start()] + text[pages[0].end() :]).strip():
        faults.append(TEXT_AROUND)
    detail = {"tags": sorted(known), "faults": faults}
    if known & {"html", "body"} or ("", "!doctype") in tags:
        return 1 if faults else 2, detail, None
    return 1 if len(known) >= 2 else 0, detail, None


def _html_faults(source: str, tags: list[tuple[str, str]], cut: bool) -> list[str]:
    opened: list[str] = []
    crossed = False
    for slash, name in ((slash, name) for slash, name in tags if _BALANCED.fullmatch(name)):
        if not slash:
            opened.append(name)
        elif opened and opened[-1] == name:
            opened.pop()
        else:
            crossed = True
    found = list(_TAG.finditer(source))
    around = source[: found[0].start()] + ("" if cut else source[found[-1].end() :]) if found else ""
    faults = {
        "tags closed out of order": crossed,
        "tags not closed": bool(opened) and not cut,
        TEXT_AROUND: bool(around.strip()),
        "no text": not _TAG.sub("", source).strip() and not cut,
    }
    return [fault for fault, is_so in faults.items() if is_so]


# e.g. en {"name": "arrow", "marker": "->"}: "-> one\n-> two" → 2
# e.g. en {"name": "arrow", "marker": "->"}: "a -> b -> c" → 0
def _arrow(reply: Checked, constraint: dict[str, Any]) -> Rated:
    marker = fold(constraint["marker"])
    lines = parse_lines(reply.text)
    marked = [i for i, line in enumerate(lines) if _carries(line, marker)]
    if len(marked) < 2:
        detail = {"marked": len(marked)}
        if fold(reply.text).count(marker) >= 2 and marked:
            return None, detail, "the points run on within a line"
        return (None, detail, "cut by the token limit after one point") if reply.cut and marked else (0, detail, None)
    unmarked = _unmarked_points(lines, marked)
    share = len(marked) / (len(marked) + unmarked)
    return _share_value(share, PARTLY), {"marked": len(marked), "unmarked": unmarked}, None


def _carries(line: Line, marker: str) -> bool:
    """Whether the line, or the text after its list marker, begins with `marker`."""
    return any(fold(part).startswith(marker) for part in (line.raw, line.raw.lstrip("*_`> "), line.text.lstrip("*_` ")))


def _unmarked_points(lines: list[Line], marked: list[int]) -> int:
    """Points without the marker; an introduction that ends in a colon, labels and one closing block are none."""
    first, last, edge = marked[0], marked[-1], lines[marked[0]].indent + 2
    introduced = 0 < first <= 3 and is_label(lines[first - 1])
    unmarked = closing = 0
    right = set(marked)
    for i, line in enumerate(lines):
        if i in right or is_label(line):
            continue
        if is_list_line(line):
            unmarked += line.indent < edge
        elif i < first:
            unmarked += not introduced
        elif line.after_blank:
            closing += i > last
            unmarked += i < last or closing > 1
    return unmarked


def _share_value(share: float, partly: float) -> int:
    return 2 if share == 1.0 else 1 if share >= partly else 0


# e.g. fr {"name": "capitalized"}: "L'Été Arrive." → 2
# e.g. ja {"name": "capitalized"}: "夏です。" → None
def _capitalized(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return _by_word(cased_words(reply.text), lambda word: any(is_capital(part[0]) for part in word[:2]), PARTLY)


# e.g. en {"name": "lowercase"}: "no capitals here." → 2
# e.g. en {"name": "lowercase"}: "it is the 1ST one" → 0
def _lowercase(reply: Checked, constraint: dict[str, Any]) -> Rated:
    words = cased_words(reply.text, behind_digits=True)
    return _by_word(words, lambda word: not any(map(is_capital, "".join(word))), NEARLY_LOWERCASE)


def _by_word(words: list[list[str]] | None, right: Callable[[list[str]], bool], partly: float) -> Rated:
    if words is None:
        return None, {}, "most of the response is not in a script with capital letters"
    wrong = ["'".join(word) for word in words if not right(word)]
    # Who wanted it in part began with it; one capital at the start of a long text is ordinary prose.
    share = 1 - len(wrong) / len(words) if right(words[0]) else 0.0
    return _share_value(share, partly), {"words": len(words), "wrong": len(wrong), "first": wrong[:3]}, None


# e.g. fr {"name": "include", "word": "label"}: "Les labels indépendants." → None
# e.g. ko {"name": "include", "word": "바다"}: "바다에서 놀았다." → 2
def _include(reply: Checked, constraint: dict[str, Any]) -> Rated:
    found, forms = _occurrences(reply, constraint["word"])
    if reply.cut and not found:
        return None, {"found": 0}, "cut by the token limit before the word occurred"
    if not found and forms:
        return None, {"found": 0, "forms": forms}, f"only other forms of the word occur: {', '.join(forms)}"
    return 2 if found else 0, {"found": found}, None


def _occurrences(reply: Checked, word: str) -> tuple[int, list[str]]:
    """How often the word occurs as it is; and, where it does not, what may be a form of it (laws for law)."""
    found = occurrences(reply.text, word, reply.language)
    text, phrase = fold(reply.text, reply.language), fold(word, reply.language)
    forms = [] if found else other_forms(text, phrase, reply.language)[:3]
    if found or forms:
        return found, forms
    bare = without_accents(phrase)
    typed = len(bare) >= TYPED and bare != phrase and bare.isascii()
    return found, [bare] if typed and occurrences(reply.text, bare, reply.language) else []


TYPED = 4
"""Letters of a word that may have been typed without its accents."""


# e.g. es {"name": "include", "word": "árbol"}: "El arbol es alto." → None
# e.g. en {"name": "exclude", "word": "cat"}: "A category." → 2
# e.g. ru {"name": "exclude", "word": "закон"}: "О новых законах." → None
def _exclude(reply: Checked, constraint: dict[str, Any]) -> Rated:
    found, forms = _occurrences(reply, constraint["word"])
    if forms:
        return None, {"found": 0, "forms": forms}, f"other forms of the word occur: {', '.join(forms)}"
    return 0 if found else 2, {"found": found}, None


_ENDING = " \t\n\"'”’»›」』）)]}*_`~"


# e.g. en {"name": "ends_with", "phrase": "the end"}: "And so, *the end*" → 2
def _ends_with(reply: Checked, constraint: dict[str, Any]) -> Rated:
    if reply.cut:
        return None, {}, "cut by the token limit before its end"
    text, phrase = (fold(part, reply.language).rstrip(_ENDING) for part in (reply.text, constraint["phrase"]))
    ends = bool(phrase) and text.endswith(phrase) and at_boundary(text, len(text) - len(phrase))
    return 2 if ends else 0, {"end": text[-40:]}, None


# e.g. en {"name": "json", "keys": ["a"]}: "Here: {\"a\": 1}" → 1
def _json(reply: Checked, constraint: dict[str, Any]) -> Rated:
    if reply.cut:
        return None, {}, "cut by the token limit before the object was closed"
    keys, text = sorted(constraint["keys"]), reply.text.strip().lstrip("\ufeff")
    fence = FENCE.fullmatch(text)
    body = (fence["inside"] if fence else text).strip()
    found, end = _object_keys(body, 0)
    if found is not None and end == len(body):
        return 2 if found == keys else 0, {"keys": found}, None
    # A dozen starts are enough for an object within text; trying each of a million braces is not linear.
    starts = [brace.start() for brace in islice(re.finditer(r"\{", text), 12)]
    within = any(_object_keys(text, start)[0] == keys for start in starts)
    return 1 if within else 0, {"keys": keys if within else None}, None


# e.g. en {"name": "ifeval", "instructions": [{"id": "punctuation:no_comma"}]}: "No comma." → 2
def _ifeval(reply: Checked, constraint: dict[str, Any]) -> Rated:
    return rate_instructions(reply.text, reply.language, reply.cut, constraint["instructions"])


def _object_keys(text: str, start: int) -> tuple[list[str] | None, int]:
    """The sorted keys of the JSON object that begins at `start`, and where it ends; None if there is none."""
    decoder = json.JSONDecoder(object_pairs_hook=list, parse_constant=_refuse)
    try:
        pairs, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    return (sorted(key for key, _ in pairs), end) if text[start] == "{" else (None, start)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


CHECKS: dict[str, Check] = {
    "short": _short,
    "long": _long,
    "items": _items,
    "paragraphs": _paragraphs,
    "sentences": _sentences,
    "numbered": _numbered,
    "reply_language": _reply_language,
    "markdown": _markdown,
    "html": _html,
    "arrow": _arrow,
    "capitalized": _capitalized,
    "lowercase": _lowercase,
    "include": _include,
    "exclude": _exclude,
    "json": _json,
    "ends_with": _ends_with,
    "ifeval": _ifeval,
}
