"""A run or a model, loaded here to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from xlift.errors import ConfigError, ModelError, TooLongError
from xlift.generation.engine import BatchOf, Reply, decode
from xlift.generation.responses import run_chat
from xlift.hub import locate
from xlift.integrity import refuse_other_base
from xlift.models import load_tokenizer, loaded_checkpoint, place
from xlift.records import Message
from xlift.study.served import Decoding
from xlift.tuning.limits import beyond, limits_of
from xlift.tuning.proof import refuse
from xlift.tuning.templates import ChatFormat, chat_format
from xlift.workspace import RunFolder, find_run


class Opened(NamedTuple):
    """A model that answers."""

    model: Any
    chat: ChatFormat
    batch_of: BatchOf

    def reply(self, messages: Sequence[Message], decoding: Decoding, on_piece: Callable[[str], None]) -> str:
        """The whole reply to a conversation, told piece by piece. Raises TooLongError for one that is too long."""
        asked, told, said = [self.chat.encode_prompt(messages)], "", ""
        try:
            refuse(beyond(limits_of(self.model), "the conversation", asked, decoding.max_new_tokens))
        except ModelError as error:
            raise TooLongError(error.problems, "shorten it, or take a model that reads more") from None

        def tell(text: str) -> None:
            nonlocal told
            new, told = text.removeprefix(told), text
            on_piece(new)

        def on_reply(_: int, reply: Reply) -> None:
            nonlocal said
            said = reply.text
            tell(reply.text)

        def on_tokens(_: int, tokens: list[int]) -> None:
            tell(text_so_far(self.chat, tokens))

        decode(self.model, self.chat, asked, ["chat"], decoding, on_reply, None, on_tokens, self.batch_of)
        return said


def text_so_far(chat: ChatFormat, tokens: list[int], held: int = 0) -> str:
    """What of a reply's tokens so far stays as it is: no half character, no blanks at the end, nor its last `held`
    characters."""
    text = str(chat.tokenizer.decode(tokens, skip_special_tokens=True)).lstrip()
    return text[: len(text) - held].rstrip("\ufffd").rstrip()


def open_model(name: str, system: str | None, offline: bool) -> tuple[AbstractContextManager[Any], ChatFormat]:
    """A run's or any other model, to be entered, and its chat format; a `system` prompt in place of its own.

    Raises UserError where it cannot be found or loaded.
    """
    if (Path(name) / "run.yaml").is_file():
        return open_run(find_run(name), system=system, offline=offline)
    base = locate(name, None, offline)
    return loaded_checkpoint(base, None, place()), chat_format(load_tokenizer(base.tokenizer), "auto", system)


def open_run(
    run: RunFolder, step: int | None = None, system: str | None = None, offline: bool = False
) -> tuple[AbstractContextManager[Any], ChatFormat]:
    """A run's model at a step, its last where none is named, to be entered; and its chat format.

    Raises ConfigError without a checkpoint, ModelError for damaged weights.
    """
    base = locate(run.config.model, run.pinned_revision or run.config.revision, offline)
    refuse_other_base(run, base)
    steps = run.checkpoint_steps()
    if not steps and not run.config.untuned:
        raise ConfigError(f"{run.path}: no checkpoint yet", "xlift train STUDY.yaml makes it")
    checkpoint = run.checkpoint(step or steps[-1]) if steps else None
    # An empty system prompt is one: none at all, whatever the run was trained with.
    spoken = run.config.system if system is None else system
    chat = run_chat(run.config.model_copy(update={"system": spoken}), base, checkpoint)
    return loaded_checkpoint(base, checkpoint, place(dtype=run.config.dtype), run.config.weight), chat
