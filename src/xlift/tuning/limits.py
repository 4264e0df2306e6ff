"""How far a model's positions and embeddings reach, and which texts go beyond: told before anything is spent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from xlift.records import Message, shorter
from xlift.tuning.proof import Claim
from xlift.tuning.templates import ChatFormat

# e.g. transformer.wpe (GPT-2), model.decoder.embed_positions (OPT), transformer.h.0.attn.embed_positions (GPT-J)
_TABLE = re.compile(r"(?:.*\.)?(?:wpe|embed_positions|position_embeddings)")
_BOUND = {"mpt"}
"""Families that make a table of positions of fixed length while they compute."""


class Limits(NamedTuple):
    """What a model can read."""

    embeddings: int
    """Tokens that have an embedding: their ids are below this."""
    positions: int | None
    """Tokens that a text may have where positions come from a table; None where they are computed."""
    made_for: int | None
    """Tokens that the model's texts had at most when it was made, as its configuration says."""

    @property
    def context(self) -> int | None:
        """Tokens that a prompt may have with its reply; None where the model does not say."""
        return self.positions or self.made_for


def limits_of(model: Any) -> Limits:
    """The limits of a model; its weights are not looked at."""
    config = model.config.get_text_config()
    made_for = _made_for(config)
    tables = [name for name, one in model.named_modules() if isinstance(one, nn.Embedding)]
    tables += [name for name, _ in model.named_buffers()]
    bound = config.model_type in _BOUND or any(_TABLE.fullmatch(name) for name in tables)
    return Limits(model.get_input_embeddings().weight.shape[0], made_for if bound else None, made_for)


# e.g. Qwen2.5 says 32,768 positions and yarn of factor 4: it reads 131,072; Llama 3.1 says 131,072 with its scaling
def _made_for(config: Any) -> int | None:
    names = ("max_position_embeddings", "max_seq_len", "seq_length")
    told: int | None = next((found for name in names if (found := getattr(config, name, None))), None)
    rope = getattr(config, "rope_parameters", None) or {}
    if told and rope.get("rope_type") in ("linear", "dynamic", "yarn"):
        before = rope.get("original_max_position_embeddings") or told
        return max(told, int(before * (rope.get("factor") or 1)))
    return told


def fitted(chat: ChatFormat, messages: Sequence[Message], most: int | None) -> tuple[list[int], int]:
    """A prompt's token ids without as many of the oldest turns as must go for at most `most`, and how many those are;
    all that is left to the last question where even that is too long."""
    ids, dropped = chat.encode_prompt(messages), 0
    for kept in shorter(messages) if most else ():
        if len(ids) <= (most or 0):
            break
        ids, dropped = chat.encode_prompt(kept), dropped + 1
    return ids, dropped


# e.g. reach([[1, 2, 3]], new_tokens=5) → [7]
def reach(rows: Sequence[Sequence[int]], new_tokens: int = 0) -> list[int]:
    """How many tokens are read of each text, with the reply to it; the last token of a reply is never read."""
    return [len(row) + max(0, new_tokens - 1) for row in rows]


def beyond(
    limits: Limits, what: str, rows: Sequence[Sequence[int]], new_tokens: int = 0, count: int | None = None
) -> list[Claim]:
    """That a model can read these texts and the replies to them; `what` they are, as in "prompts", and how many, where
    these are not all."""
    strange = sorted({token for row in rows for token in row if token >= limits.embeddings})
    # What is learned may be longer than the model was made for: that is one way to make it read more.
    most = (limits.context if new_tokens else limits.positions) or 0
    lengths = reach(rows, new_tokens)
    long = [length for length in lengths if most and length > most]
    room = most - max(map(len, rows), default=0) + 1
    hint = f"set training.max_length to {most} or less"
    if new_tokens:
        hint = f"set max_new_tokens to {room} or less" if room > 0 else "leave out the longer prompts"
        hint += ", let conversations lose their oldest turns (decoding.too_long: drop)"
    replies = f" with {new_tokens} new tokens" if new_tokens else ""
    end = f"are longer than the model's context of {most}"
    end = f"reach beyond the {most} positions that the model has" if limits.positions else end
    return [
        Claim(
            not strange,
            f"{what}: tokens {', '.join(map(str, strange[:5]))}{', …' if strange[5:] else ''} have no embedding: "
            f"the model has {limits.embeddings}",
            "take the tokenizer that belongs to the model",
        ),
        Claim(
            not long,
            f"{what}: {len(long)} of {count or len(rows)}{replies} {end} (to {max(lengths, default=0)})",
            f"{hint}, or take a model {'with more positions' if limits.positions else 'that reads more'}",
        ),
    ]
