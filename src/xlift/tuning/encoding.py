"""The conversations of a run as tokens: what is trained on, what is held out, and what is left out of them."""

from __future__ import annotations

import shutil
import textwrap
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from xlift.data.kept import Late
from xlift.disk import temporary_path
from xlift.errors import DataError, TemplateError
from xlift.records import Conversation, fingerprint
from xlift.study.runs import RunConfig
from xlift.tuning.limits import Limits, beyond
from xlift.tuning.preference import Negatives, negatives, preferred_pairs
from xlift.tuning.proof import Claim
from xlift.tuning.stored import Stored, finish, stored_in, written
from xlift.tuning.templates import ChatFormat, Encoded, each_by_name

Take = Callable[[Iterator[Encoded]], Sequence[Encoded]]


@dataclass(frozen=True)
class Data:
    """Tokenised conversations of one run: what is trained on, what is held out, how many of each were too long."""

    train: Sequence[Encoded]
    heldout: Sequence[Encoded]
    too_long: int
    heldout_too_long: int = 0
    refused: Mapping[str, list[str]] = field(default_factory=dict)
    """Conversations that the chat template refuses and that were left out, by the reason."""
    wrong: Negatives = field(default_factory=dict)
    """Replies in another language, where replies in the right one are to be preferred."""

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each example that is trained on."""
        return self.train.lengths if isinstance(self.train, Stored) else [len(example) for example in self.train]

    @property
    def shortest(self) -> Encoded:
        """The first of the shortest examples that are trained on."""
        return self.train[min(range(len(self.lengths)), key=self.lengths.__getitem__)]


def encode_data(
    config: RunConfig,
    chat: ChatFormat,
    train: Sequence[Conversation],
    heldout: Sequence[Conversation],
    skip_unfit: bool = False,
    folder: Path | None = None,
) -> Data:
    """Tokenise conversations; those longer than `max_length` are left out, since a cut reply teaches no ending.

    With `folder` the examples are kept there, and taken from there where they are, without a look at conversations.
    Raises DataError if nothing is left, TemplateError with all conversations that the chat template refuses unless
    these are left out, too.
    """
    found = stored_in(folder) if folder else None
    if folder and not found:
        found = _store(folder, config, chat, train, heldout, skip_unfit)
    kept, held, facts = found or _encode(config, chat, train, heldout, skip_unfit, list, list)
    wrong = negatives(chat, train, config.max_length) if config.preference else {}
    if config.preference and not preferred_pairs(kept, wrong):
        problem = f"preference: none of {len(kept)} conversations has a parallel in another language"
        raise DataError(problem, "name parallel sources: [{path: builtin}, {path: builtin, language: fr}]")
    return Data(kept, held, facts["too_long"], facts["heldout_too_long"], facts["refused"], wrong)


def _store(folder: Path, *told: Any) -> tuple[Stored, Stored, dict[str, Any]]:
    """Examples written to a folder that comes into place whole."""
    made = temporary_path(folder)
    made.mkdir(parents=True)
    parts = [partial(written, path=made / f"{part}.arrow") for part in ("train", "heldout")]
    try:
        *_, facts = _encode(*told, *parts)
        finish(made, facts, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    found = stored_in(folder)
    if found is None:
        raise DataError(f"{folder}: what was just written there cannot be read", "run again; look at the disk")
    return found


def _encode(
    config: RunConfig,
    chat: ChatFormat,
    train: Sequence[Conversation],
    heldout: Sequence[Conversation],
    skip_unfit: bool,
    take: Take,
    take_heldout: Take,
) -> tuple[Sequence[Encoded], Sequence[Encoded], dict[str, Any]]:
    """What is made of the examples that are trained on and held out, and of what was left out the facts."""
    refused: dict[str, list[str]] | None = {} if skip_unfit else None
    long, heldout_long = array("l"), array("l")
    kept = take(_fitting(_examples(chat, train, refused), config.max_length, long))
    if refused and not kept and not long:
        raise TemplateError([f"all {len(names):,} conversations: {why}" for why, names in refused.items()])
    if not kept:
        raise DataError(
            f"none of {len(long)} conversations fits into max_length={config.max_length} "
            f"(the shortest has {min(long, default=0)} tokens)",
            "raise training.max_length",
        )
    held = take_heldout(_fitting(_examples(chat, heldout, refused), config.max_length, heldout_long))
    return kept, held, {"too_long": len(long), "heldout_too_long": len(heldout_long), "refused": refused or {}}


def _fitting(examples: Iterable[Encoded], most: int, long: array[int]) -> Iterator[Encoded]:
    """The examples of at most so many tokens; the lengths of the others go to `long`."""
    for one in examples:
        if len(one) <= most:
            yield one
        else:
            long.append(len(one))


def unreadable_examples(limits: Limits, what: str, *parts: Sequence[Encoded]) -> list[Claim]:
    """What `beyond` claims of examples; of stored ones only the unusual are looked at one by one."""
    own = (part.unusual(limits.embeddings, limits.positions) if isinstance(part, Stored) else part for part in parts)
    return beyond(limits, what, [one.ids for some in own for one in some], count=sum(map(len, parts)))


class Tokenised:
    """What the conversations asked for last were tokenised to, for the runs of a study that share them."""

    def __init__(self) -> None:
        self._of: tuple[object, object] = (None, None)
        self._found: dict[tuple[Any, ...], Data] = {}

    def data(
        self,
        config: RunConfig,
        chat: ChatFormat,
        train: Sequence[Conversation],
        heldout: Sequence[Conversation],
        skip_unfit: bool,
    ) -> Data:
        """What `encode_data` gives, and raises; conversations of a study are tokenised once and kept in its folder."""
        if self._of[0] is not train or self._of[1] is not heldout:
            self._of, self._found = (train, heldout), {}
        spoken = (chat.tokenizer.name_or_path, chat.name, chat.system, chat.thinking, fingerprint(chat.arguments))
        key = (*spoken, config.max_length, bool(config.preference), skip_unfit)
        if key not in self._found:
            folder = tokens_folder(train.folder, config, chat) if isinstance(train, Late) else None
            self._found[key] = encode_data(config, chat, train, heldout, skip_unfit, folder)
            if isinstance(train, Late):
                train.let_go()
        return self._found[key]


def tokens_folder(data: Path, config: RunConfig, chat: ChatFormat) -> Path:
    """Where the tokens of conversations are kept: by all that decides them, the tokenizer by its content."""
    tokenizer = chat.tokenizer.backend_tokenizer.to_str() + str(chat.tokenizer.chat_template)
    spoken = (chat.name, chat.end_of_turn, chat.system, chat.thinking, dict(chat.arguments), config.max_length)
    return data / f"tokens-{fingerprint(tokenizer, *spoken, length=16)}"


def data_lines(data: Data, max_length: int) -> list[str]:
    """What must be told of the data: conversations that the template refuses, and that none is left to hold out."""
    told = [f"{len(names):,} conversations left out: {why}; first {names[0]}" for why, names in data.refused.items()]
    if data.heldout_too_long and not data.heldout:
        told.append(
            f"no held-out loss: all {data.heldout_too_long} held-out conversations are longer than "
            f"max_length={max_length}; raise training.max_length, or hold out more (instructions.heldout)"
        )
    return told


def _name(conversation: Conversation) -> str:
    begins = textwrap.shorten(conversation["messages"][0]["content"], 40, placeholder=" …")
    return f"{conversation.get('where') or 'conversation ' + repr(conversation['id'])} ({begins})"


def _examples(
    chat: ChatFormat, conversations: Sequence[Conversation], refused: dict[str, list[str]] | None
) -> Iterator[Encoded]:
    named = ((_name(one), one["messages"]) for one in conversations)
    return chain.from_iterable(each_by_name(chat.examples, named, refused))
