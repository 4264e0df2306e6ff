"""`xlift chat`: talk to a run or a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from xlift.errors import ConfigError
from xlift.generation.engine import BatchOf, Reply, answering, decode
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


def talk(name: str, system: str | None, max_new_tokens: int, offline: bool) -> None:
    """Answer the lines of stdin; the conversation so far is part of every prompt."""
    opened, chat = open_model(name, system, offline)
    with opened as model, answering(model) as batch_of:
        _converse(model, chat, Decoding(max_new_tokens=max_new_tokens), batch_of)


def _converse(model: Any, chat: ChatFormat, decoding: Decoding, batch_of: BatchOf) -> None:
    messages: list[Message] = []
    for line in _lines():
        messages.append({"role": "user", "content": line})

        def reply_with(_: int, reply: Reply) -> None:
            print(reply.text, flush=True)
            messages.append({"role": "assistant", "content": reply.text or "…"})

        asked = [chat.encode_prompt(messages)]
        refuse(beyond(limits_of(model), "the conversation", asked, decoding.max_new_tokens))
        decode(model, chat, asked, ["chat"], decoding, reply_with, batch_of=batch_of)


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


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
