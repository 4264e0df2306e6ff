"""Who answers in a conversation: a run or a model that is loaded here, or one behind a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from xlift.records import Message
from xlift.servers.named import is_served, served_model
from xlift.study.served import Decoding, Model

OnPiece = Callable[[str], None]


class Speaker(NamedTuple):
    """A model that answers a conversation, which its `system` prompt is no part of: `reply` is told piece by piece."""

    name: str
    system: str | None
    reply: Callable[[Sequence[Message], OnPiece], str]


@contextmanager
def opened_speaker(
    name: str, server: tuple[str | None, str | None], max_new_tokens: int, offline: bool
) -> Iterator[Speaker]:
    """A run, a model, a GGUF file, or the model called `server[0]` at an address, its key in the variable `server[1]`.

    Raises UserError where it cannot be found, loaded or reached.
    """
    with ExitStack() as stack:
        if is_served(name):
            # What is loaded here needs no client.
            from xlift.servers.streaming import streamed
            from xlift.servers.where import served_where

            served = Model.model_validate(served_model(name, *server, stack))
            served_where(served)
            served = served.model_copy(update={"decoding": {"max_new_tokens": max_new_tokens}})
            yield Speaker(served.model, None, lambda messages, on_piece: streamed(served, messages, on_piece))
            return
        # What is served needs no torch.
        from xlift.generation.engine import answering
        from xlift.opening import Opened, open_model

        context, chat = open_model(name, None, offline)
        model = stack.enter_context(context)
        opened = Opened(model, replace(chat, system=None), stack.enter_context(answering(model)))
        decoding = Decoding(max_new_tokens=max_new_tokens)
        yield Speaker(
            short_name(name), chat.system, lambda messages, on_piece: opened.reply(messages, decoding, on_piece)
        )


def short_name(one: str) -> str:
    """What a run or a model is called: a run by its folder without the hash."""
    path = Path(one)
    return path.name.rsplit("-", 1)[0] if (path / "run.yaml").is_file() else path.name.removeprefix("embedded:")
