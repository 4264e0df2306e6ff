"""What in instruction data would make a model answer in the wrong language, stop too early, or never stop."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from xlift.data.overlap import units
from xlift.diagnosis.findings import Finding
from xlift.languages import get_language, known_code
from xlift.rating.fluency import cut, leaked
from xlift.rating.language.detection import MIN_LINE, SURE, identify
from xlift.rating.sentences import split_sentences
from xlift.rating.text import parse_lines
from xlift.records import Conversation
from xlift.terminal import fitted, paged

TOLD_BY = 400
"""Characters of a text by which its language is told."""
FEW_TURNS = 0.02
"""Share of conversations from which on a fault is told."""
ALONE = 0.95
"""Share of one language from which on the data is said to be of that language alone."""
SHOWN = 3


class Turn(NamedTuple):
    """A reply with what was asked, and the languages of both; "" where it cannot be told."""

    conversation: Conversation
    asked: str
    reply: str
    asked_in: str
    replied_in: str


# e.g. language_of("Bonjour à tous, voici la réponse que vous cherchez.") → "fr"
# e.g. language_of("Ok.") → ""
def language_of(text: str) -> str:
    """The language of a text by its beginning; "" where it is too short or mixed to tell."""
    start = " ".join(text[:TOLD_BY].split())
    code, sure = identify(start) if len(start) >= MIN_LINE else ("", 0.0)
    return known_code(code) if sure >= SURE else ""


def turns(conversations: Sequence[Conversation]) -> Iterator[Turn]:
    """Every reply of the data with the user's turn before it."""
    for one in conversations:
        for before, message in zip(one["messages"], one["messages"][1:], strict=False):
            if message["role"] == "assistant":
                asked, reply = before["content"], message["content"]
                yield Turn(one, asked, reply, language_of(asked), language_of(reply))


def turns_table(found: Sequence[Turn]) -> str:
    """One row a language of the questions: how many, and in what languages they are answered."""
    replies: dict[str, Counter[str]] = defaultdict(Counter)
    for one in found:
        replies[one.asked_in][one.replied_in] += 1
    rows = [["asked in", "turns", "answered in"]]
    for code, answers in sorted(replies.items(), key=lambda item: -item[1].total()):
        told = ", ".join(f"{_name(other)} {_share(count / answers.total())}" for other, count in answers.most_common(4))
        told += f" and {len(answers) - 4} more" if len(answers) > 4 else ""
        rows.append([_name(code), f"{answers.total():,}", told])
    return paged(rows, right={1})


# e.g. _share(0.004) → "under 1%"
def _share(share: float) -> str:
    return "under 1%" if share < 0.01 else f"{share:.0%}"


def _name(code: str) -> str:
    return get_language(code).name if code else "(too short to tell)"


def data_findings(found: Sequence[Turn]) -> list[Finding]:
    """What is wrong with the data, the most telling first; [] where nothing was found."""
    tests = (_other_language, _one_language, _rendered, _empty, _cut, _repeated)
    return [one for test in tests if (one := test(found))]


def _told(
    kind: str, title: str, spoilt: Sequence[Turn], found: Sequence[Turn], show: Callable[[Turn], str], tries: list[str]
) -> Finding | None:
    if len(spoilt) < max(1, FEW_TURNS * len(found)):
        return None
    shown = [f"{len(spoilt):,} of {len(found):,} replies ({len(spoilt) / len(found):.0%}); for instance:"]
    return Finding(kind, title, shown + [show(one) for one in spoilt[:SHOWN]], tries)


def _other_language(found: Sequence[Turn]) -> Finding | None:
    """Replies in another language than the question, where no other is asked for: "Translate …" is left out."""
    spoilt = [
        one
        for one in found
        if one.asked_in and one.replied_in and one.asked_in != one.replied_in and not _ASKS_FOR.search(one.asked)
    ]
    tries = ["take these out, or answer them in the language of the question: the model learns to switch from them"]

    def show(one: Turn) -> str:
        return f"  {_name(one.asked_in)} → {_name(one.replied_in)}: {_short(one.asked)} → {_short(one.reply)}"

    return _told("replies in another language", "It teaches to answer in another language", spoilt, found, show, tries)


_ASKS_FOR = re.compile(r"translat|tradu|übersetz|перевед|перевод|vertaal|翻訳|翻译|译|번역|अनुवाद|ترجم|çevir|dịch", re.I)


def _one_language(found: Sequence[Turn]) -> Finding | None:
    counts = Counter(one.replied_in for one in found if one.replied_in)
    if not counts:
        return None
    code, most = counts.most_common(1)[0]
    share = most / counts.total()
    if share < ALONE:
        return None
    shown = [f"{share:.1%} of the replies whose language can be told are in {_name(code)}"]
    tries = [
        "other languages then rest on transfer: choose the learning rate by all of them (xlift run, report)",
        "40 conversations in the users' languages are often enough to keep them (sources, in docs/study-files.md)",
    ]
    return Finding("one language", f"It is in {_name(code)} alone", shown, tries)


# e.g. _ASKS_FOR.search("Traduis cette phrase en anglais.") is not None → True
def _rendered(found: Sequence[Turn]) -> Finding | None:
    marks = {id(one): leaked(one.asked) + leaked(one.reply) for one in found}
    spoilt = [one for one in found if marks[id(one)]]
    tries = ["give the bare words of each turn: xlift writes the model's own template around them"]

    def show(one: Turn) -> str:
        return f"  {marks[id(one)][0].strip()} in: {_short(one.asked)}"

    return _told("rendered twice", "Its turns hold marks of a chat template", spoilt, found, show, tries)


def _empty(found: Sequence[Turn]) -> Finding | None:
    spoilt = [one for one in found if not one.reply.strip()]
    tries = ["take these out: from them a model learns to end at once"]
    return _told("no reply", "It has empty replies", spoilt, found, lambda one: f"  {_short(one.asked)}", tries)


def _cut(found: Sequence[Turn]) -> Finding | None:
    spoilt = [one for one in found if one.replied_in and _breaks_off(one.reply, one.replied_in)]
    tries = ["take these out, or complete them: from them a model learns to stop in the middle"]
    return _told("cut", "Its replies break off", spoilt, found, lambda one: f"  … {one.reply.strip()[-60:]}", tries)


# e.g. _breaks_off("It is easy. First you take the", "en") → True
# e.g. _breaks_off("# Soups of the world", "en") → False
# e.g. _breaks_off("42", "en") → False
def _breaks_off(reply: str, code: str) -> bool:
    """Whether a reply's last line is prose of several sentences that ends within one."""
    lines = parse_lines(reply)
    prose = bool(lines) and not lines[-1].kind
    return prose and cut(reply, code) and len(split_sentences(lines[-1].raw, code)) > 1


def _repeated(found: Sequence[Turn]) -> Finding | None:
    """Questions that differ in case, blanks and punctuation at most, after the first of each."""
    seen: set[str] = set()
    spoilt = []
    for one in found:
        key = " ".join(units(one.asked))
        if key in seen and len(key) > MIN_LINE:
            spoilt.append(one)
        seen.add(key)
    tries = ["keep one of each: repeated ones are learned by heart"]
    return _told("repeated", "It asks the same again", spoilt, found, lambda one: f"  {_short(one.asked)}", tries)


def _short(text: str) -> str:
    return fitted(text, 48)


def data_as_data(found: Sequence[Turn], told: Sequence[Finding]) -> dict[str, Any]:
    """The same for programs."""
    languages = Counter((one.asked_in, one.replied_in) for one in found)
    pairs = [{"asked": asked, "answered": replied, "turns": count} for (asked, replied), count in languages.items()]
    return {"turns": len(found), "languages": pairs, "findings": [one._asdict() for one in told]}
