"""What training data, held-out conversations and prompts have in common: the same but for case, blanks, punctuation and
Unicode form; or a run of words, as in decontamination by n-grams.

A text is taken as units: words, and single characters of scripts that part words by nothing. Two texts of the same
units are near-duplicates. A prompt overlaps where WORDS of its units in a row (CHARACTERS of those scripts) stand in a
training conversation; a shorter prompt, where it stands there as a whole.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlift.errors import DataError, shortened
from xlift.records import Conversation, Message, Prompt

WORDS, CHARACTERS = 13, 20
"""Units in a row that are no chance: as GPT-3's authors had it, and about as much of Chinese."""
SHORTEST_PROMPT = 8
"""Units of the shortest prompt that is looked for inside longer texts; shorter ones only as a whole turn."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_PUNCTUATION = (
    "\x00-\x1f\x7f!-$&-*,-.:;?@\\[-\\]_`{-~\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u060c\u061b\u061f\u06d4\u0964\u0965"
    "\u2000-\u206f\u2190-\u21ff\u2300-\u2bff\u3000-\u3004\u3008-\u3030\uff00-\uff0f"
)
_UNIT = re.compile(f"[{_UNSPACED}]|[^\\s{_PUNCTUATION}{_UNSPACED}]+")
_ASCII = str.maketrans({sign: " " for sign in map(chr, range(128)) if not sign.isalnum() and sign not in "+/<=>^%"})
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1_000_000
_SHOWN, _LISTED = 3, 1_000
"""How many of a kind are told, and how many near-duplicates are kept: data may have millions."""


class Shared(NamedTuple):
    """Something that stands in the training data, too."""

    id: str
    """Of the prompt; where the conversation stands."""
    place: str
    """Where the training conversation stands."""
    words: str
    share: float = 1.0
    """Of a prompt's runs of words, how many stand in the training data."""


@dataclass(frozen=True)
class Overlaps:
    """What was found; of prompts by split."""

    repeated: list[Shared] = field(default_factory=list)
    """Training conversations that say what an earlier one says: the first of them."""
    heldout: list[Shared] = field(default_factory=list)
    """Held-out conversations whose request stands in the training data."""
    prompts: Mapping[str, list[Shared]] = field(default_factory=dict)
    """Prompts that stand there as a whole."""
    parts: Mapping[str, list[Shared]] = field(default_factory=dict)
    """Prompts of which a run of words stands there."""
    near_duplicates: int = 0
    """Training conversations that say what an earlier one says: all of them."""

    @property
    def facts(self) -> dict[str, int]:
        """How many of each."""
        counts = {"near_duplicates": self.near_duplicates, "heldout_in_training": len(self.heldout)}
        for split in self.prompts:
            counts[f"{split}_prompts_in_training"] = len(self.prompts[split])
            counts[f"{split}_prompts_sharing_words"] = len(self.parts[split])
        return counts

    @property
    def lines(self) -> list[str]:
        """What was found, in words."""
        found = [
            *_told(self.repeated, "training conversations that say what another one says", self.near_duplicates),
            *_told(self.heldout, "held-out requests that stand in the training data"),
        ]
        for split in self.prompts:
            found += _told(self.prompts[split], f"{split} prompts that stand in the training data")
            found += _told(
                self.parts[split],
                f"{split} prompts that share {WORDS} words ({CHARACTERS} characters) in a row with the training data",
            )
        return found

    def refuse(self) -> None:
        """Raises DataError if test prompts stand in the training data: their scores would show what was learned."""
        problems = [
            f"test prompt '{one.id}' stands in the training data at {one.place}: {one.words}"
            for one in self.prompts.get("test", ())
        ]
        if problems:
            hint = "take them out of the data or out of the prompts, or set prompts.allow_contamination: true"
            raise DataError(shortened(problems), hint)


def _told(found: Sequence[Shared], what: str, count: int | None = None) -> list[str]:
    """A headline and the first of what was found, of which there are `count`; nothing where nothing was."""
    count = len(found) if count is None else count
    shown = [
        f"  {one.id} and {one.place}{f' ({one.share:.0%})' if one.share < 1 else ''}: {one.words}"
        for one in found[:_SHOWN]
    ]
    more = [f"  … and {count - _SHOWN:,} more"] if count > _SHOWN else []
    return [f"{what}, but for case, blanks and punctuation: {count:,}", *shown, *more] if found else []


# e.g. units("Don't — STOP!") → ["don", "t", "stop"]
# e.g. units("3+4 is not 3/4.") → ["3+4", "is", "not", "3/4"]
# e.g. units("天气很好。OK?") → ["天", "气", "很", "好", "ok"]
def units(text: str) -> list[str]:
    """Words without case, punctuation and Unicode form; characters of scripts without blanks.

    Signs of arithmetic are no punctuation: 3+4 is not 3/4.
    """
    if text.isascii():
        return text.lower().translate(_ASCII).split()  # the same, four times as fast
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


# e.g. len(overlaps([{"id": "a", "messages": [{"role": "user", "content": "Hi!"}]}] * 2, [], []).repeated) → 1
def overlaps(train: Sequence[Conversation], heldout: Sequence[Conversation], prompts: Sequence[Prompt]) -> Overlaps:
    """Look for what the three have in common. 100,000 conversations take seconds; of each a number is kept."""
    sought = {_request(one["messages"]) for one in (*heldout, *prompts)} - {""}  # of signs alone nothing is left
    asked: dict[str, int] = {}
    whole, search = array("q"), _Search(prompts)
    for place, conversation in enumerate(train):
        turns = [units(message["content"]) for message in conversation["messages"]]
        whole.append(hash("\n".join(map(" ".join, turns))))
        asks = [one["role"] == "user" for one in conversation["messages"]]
        for request in {_request(conversation["messages"], turns), *map(" ".join, compress(turns, asks))} & sought:
            asked.setdefault(request, place)
        for own in turns:
            search.add(place, own)
    search.flush()
    held = [(one, asked.get(_request(one["messages"]))) for one in heldout]
    found = {split: [one for one in prompts if one["split"] == split] for split in ("validation", "test")}
    complete = {split: list(_whole(search, asked, train, some)) for split, some in found.items()}
    repeated, count = _repeated(train, np.frombuffer(whole, dtype=np.int64))
    return Overlaps(
        repeated,
        [Shared(_where(one), _where(train[at]), _first_words(one["messages"])) for one, at in held if at is not None],
        complete,
        {
            split: list(_partly(search, train, some, {one.id for one in complete[split]}))
            for split, some in found.items()
        },
        count,
    )


def _repeated(train: Sequence[Conversation], hashes: NDArray[np.int64]) -> tuple[list[Shared], int]:
    """The first conversations whose hash an earlier one has, each with the first of these, and how many there are."""
    order = np.argsort(hashes, kind="stable")
    begins = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order[:1]] + 1))
    later = np.delete(np.arange(len(order)), begins)
    first = order[begins[np.searchsorted(begins, later, side="right") - 1]]
    shown = np.argsort(order[later])[:_LISTED]
    pairs = ((train[place], train[earlier]) for place, earlier in zip(order[later[shown]], first[shown], strict=True))
    listed = [Shared(_where(one), _where(other), _first_words(one["messages"])) for one, other in pairs]
    return listed, len(later)


def _where(conversation: Conversation) -> str:
    return conversation.get("where", conversation["id"])


# e.g. _request([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]) → "why"
def _request(messages: Sequence[Message], turns: Sequence[list[str]] | None = None) -> str:
    """All that the user says, without what makes no difference; `turns` are the messages' units where known."""
    said = turns or [units(message["content"]) for message in messages]
    return "\n".join(" ".join(one) for message, one in zip(messages, said, strict=True) if message["role"] == "user")


# e.g. _first_words([{"role": "user", "content": "Why is the sky blue?"}]) → "'Why is the sky blue?'"
def _first_words(messages: Sequence[Message]) -> str:
    said = next((message["content"] for message in messages if message["role"] == "user"), "")
    return repr(said if len(said) <= 60 else f"{said[:59]}…")


def _whole(
    search: _Search, asked: dict[str, int], train: Sequence[Conversation], prompts: Iterable[Prompt]
) -> Iterator[Shared]:
    for prompt in prompts:
        place = asked.get(_request(prompt["messages"]))
        if place is None and search.share(prompt["id"]) == 1.0:
            place = search.place(prompt["id"])
        if place is not None:
            yield Shared(prompt["id"], _where(train[place]), _first_words(prompt["messages"]))


def _partly(
    search: _Search, train: Sequence[Conversation], prompts: Iterable[Prompt], whole: set[str]
) -> Iterator[Shared]:
    for prompt in prompts:
        share = search.share(prompt["id"])
        if share and prompt["id"] not in whole:
            place = search.place(prompt["id"])
            yield Shared(prompt["id"], _where(train[place]), repr(search.words(prompt["id"])), share)


class _Search:
    """Looks for the runs of words of prompts in many texts, by rolling hashes over chunks of them."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._numbers: dict[str, int] = {}
        self._runs: dict[str, list[tuple[int, str]]] = {}
        self._known: dict[int, set[int]] = {}
        self._found: dict[int, int] = {}
        self._ids, self._starts, self._places = array("Q"), array("Q"), array("Q")
        for prompt in prompts:
            self._take(prompt["id"], units(prompt["messages"][-1]["content"]))

    def _take(self, name: str, said: list[str]) -> None:
        alone = sum(len(unit) == 1 and bool(re.match(f"[{_UNSPACED}]", unit)) for unit in said)
        length = min(CHARACTERS if 2 * alone > len(said) else WORDS, len(said))
        if length < SHORTEST_PROMPT:
            return
        ids = np.array([self._numbers.setdefault(unit, len(self._numbers) + 1) for unit in said], dtype=np.uint64)
        hashes = ids[: len(ids) - length + 1]
        for step in range(1, length):
            hashes = hashes * _PRIME + ids[step : len(ids) - length + 1 + step]
        joint = "" if 2 * alone > len(said) else " "
        self._runs[name] = [(int(one), joint.join(said[at : at + length])) for at, one in enumerate(hashes)]
        self._known.setdefault(length, set()).update(int(one) for one in hashes)

    def add(self, place: int, said: list[str]) -> None:
        """Search the units of a text, which belongs to the conversation `place`; later, with others."""
        self._starts.append(len(self._ids))
        self._places.append(place)
        self._ids.extend(map(self._numbers.get, said, repeat(0)))
        self._ids.append(0)
        if len(self._ids) > _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Search what was added. A unit that no prompt has is 0, and no run goes on over it."""
        longest = max(self._known, default=0)
        ids = np.concatenate([np.frombuffer(self._ids, dtype=np.uint64), np.zeros(longest, dtype=np.uint64)])
        at = np.flatnonzero(ids) if longest else np.empty(0, dtype=np.int64)
        hashes = ids[at]
        for length in range(2, longest + 1):
            following = ids[at + length - 1]
            at, hashes, following = at[following != 0], hashes[following != 0], following[following != 0]
            hashes = hashes * _PRIME + following
            if length in self._known:
                known = np.fromiter(self._known[length], dtype=np.uint64)
                self._note(at[hit := np.isin(hashes, known)], hashes[hit])
        self._ids, self._starts, self._places = array("Q"), array("Q"), array("Q")

    def _note(self, at: NDArray[Any], hashes: NDArray[np.uint64]) -> None:
        texts = np.searchsorted(np.array(self._starts), at, side="right") - 1
        for one, text in zip(hashes.tolist(), texts.tolist(), strict=True):
            self._found.setdefault(one, self._places[text])

    def share(self, name: str) -> float:
        """How many of a prompt's runs were found; 0 for one too short to be looked for."""
        runs = self._runs.get(name, [])
        return sum(one in self._found for one, _ in runs) / len(runs) if runs else 0.0

    def place(self, name: str) -> int:
        """The conversation in which the first run that was found stands."""
        return next(self._found[one] for one, _ in self._runs[name] if one in self._found)

    def words(self, name: str) -> str:
        """The first run that was found."""
        return next(words for one, words in self._runs[name] if one in self._found)
