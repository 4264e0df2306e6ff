"""The conversations of a run as tokens: what is trained on, what is held out, and what is left out of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlift.errors import DataError, TemplateError
from xlift.records import Conversation, fingerprint
from xlift.study.runs import RunConfig
from xlift.tuning.preference import Negatives, negatives, preferred_pairs
from xlift.tuning.templates import ChatFormat, Encoded, each_by_name


@dataclass(frozen=True)
class Data:
    """Tokenised conversations of one run: what is trained on, what is held out, how many of each were too long."""

    train: list[Encoded]
    heldout: list[Encoded]
    too_long: int
    heldout_too_long: int = 0
    refused: Mapping[str, list[str]] = field(default_factory=dict)
    """Conversations that the chat template refuses and that were left out, by the reason."""
    wrong: Negatives = field(default_factory=dict)
    """Replies in another language, where replies in the right one are to be preferred."""

    @property
    def lengths(self) -> list[int]:
        return [len(example) for example in self.train]


def encode_data(
    config: RunConfig,
    chat: ChatFormat,
    train: Sequence[Conversation],
    heldout: Sequence[Conversation],
    skip_unfit: bool = False,
) -> Data:
    """Tokenise conversations; those longer than `max_length` are left out, since a cut reply teaches no ending.

    Raises DataError if nothing is left, TemplateError with all conversations that the chat template refuses unless
    these are left out, too.
    """
    refused: dict[str, list[str]] | None = {} if skip_unfit else None
    encoded = _examples(chat, train, refused)
    if refused and not encoded:
        raise TemplateError([f"all {len(names):,} conversations: {why}" for why, names in refused.items()])
    kept = [example for example in encoded if len(example) <= config.max_length]
    if not kept:
        shortest = min((len(example) for example in encoded), default=0)
        raise DataError(
            f"none of {len(encoded)} conversations fits into max_length={config.max_length} "
            f"(the shortest has {shortest} tokens)",
            "raise training.max_length",
        )
    checks = _examples(chat, heldout, refused)
    held = [one for one in checks if len(one) <= config.max_length]
    wrong = negatives(chat, train, config.max_length) if config.preference else {}
    if config.preference and not preferred_pairs(kept, wrong):
        problem = f"preference: none of {len(kept)} conversations has a parallel in another language"
        raise DataError(problem, "name parallel sources: [{path: builtin}, {path: builtin, language: fr}]")
    return Data(kept, held, len(encoded) - len(kept), len(checks) - len(held), refused or {}, wrong)


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
        """What `encode_data` gives. Raises what it raises."""
        if self._of[0] is not train or self._of[1] is not heldout:
            self._of, self._found = (train, heldout), {}
        spoken = (chat.tokenizer.name_or_path, chat.name, chat.system, chat.thinking, fingerprint(chat.arguments))
        key = (*spoken, config.max_length, bool(config.preference), skip_unfit)
        if key not in self._found:
            self._found[key] = encode_data(config, chat, train, heldout, skip_unfit)
        return self._found[key]


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
) -> list[Encoded]:
    named = [(_name(one), one["messages"]) for one in conversations]
    return [example for examples in each_by_name(chat.examples, named, refused) for example in examples]
