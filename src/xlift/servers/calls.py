"""One question to a served model, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from xlift.records import Message


class ServedReply(NamedTuple):
    """What a served model sent back for one call; `engine` is the fingerprint of what computed it, where it is told."""

    text: str
    finish: str = "stop"
    refusal: str | None = None
    engine: str | None = None


class ServedAnswer(NamedTuple):
    """The replies to one request (a second one after a re-ask), or why there is none (`failure`)."""

    replies: tuple[ServedReply, ...] = ()
    failure: str | None = None


class Asked(Protocol):
    """A request: `key` names all that decides its reply, `schema` the JSON that is wanted, where it is JSON."""

    @property
    def key(self) -> str: ...
    @property
    def messages(self) -> list[Message]: ...
    @property
    def schema(self) -> dict[str, Any] | None: ...
    def content(self, messages: list[Message]) -> dict[str, Any]:
        """What the request shows: the messages, or a text to go on with."""

    def follow_up(self, replies: Sequence[ServedReply]) -> list[Message] | None:
        """The messages of a second call, where the first reply needs one."""


def text_of(messages: Sequence[Any]) -> str:
    """All that a request shows, for counting."""
    return "\n".join(message["content"] for message in messages)
