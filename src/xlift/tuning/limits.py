"""How far a model's positions and embeddings reach, and which texts go beyond: told before anything is spent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from xlift.tuning.proof import Claim

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


def limits_of(model: Any) -> Limits:
    """The limits of a model; its weights are not looked at."""
    config = model.config.get_text_config()
    made_for = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    tables = [name for name, one in model.named_modules() if isinstance(one, nn.Embedding)]
    tables += [name for name, _ in model.named_buffers()]
    bound = config.model_type in _BOUND or any(_TABLE.fullmatch(name) for name in tables)
    return Limits(model.get_input_embeddings().weight.shape[0], made_for if bound else None, made_for)


# e.g. reach([[1, 2, 3]], new_tokens=5) → [7]
def reach(rows: Sequence[Sequence[int]], new_tokens: int = 0) -> list[int]:
    """How many tokens are read of each text, with the reply to it; the last token of a reply is never read."""
    return [len(row) + max(0, new_tokens - 1) for row in rows]


def beyond(limits: Limits, what: str, rows: Sequence[Sequence[int]], new_tokens: int = 0) -> list[Claim]:
    """That a model can read these texts and the replies to them; `what` they are, as in "prompts"."""
    strange = sorted({token for row in rows for token in row if token >= limits.embeddings})
    lengths, most = reach(rows, new_tokens), limits.positions or 0
    long = [length for length in lengths if limits.positions and length > most]
    room = most - max(map(len, rows), default=0) + 1
    hint = f"set training.max_length to {most} or less"
    if new_tokens:
        hint = f"set max_new_tokens to {room} or less" if room > 0 else "leave out the longer prompts"
    replies = f" with {new_tokens} new tokens" if new_tokens else ""
    return [
        Claim(
            not strange,
            f"{what}: tokens {', '.join(map(str, strange[:5]))}{', …' if strange[5:] else ''} have no embedding: "
            f"the model has {limits.embeddings}",
            "take the tokenizer that belongs to the model",
        ),
        Claim(
            not long,
            f"{what}: {len(long)} of {len(rows)}{replies} reach beyond the {most} positions that the model has (to "
            f"{max(lengths, default=0)})",
            f"{hint}, or take a model with more positions",
        ),
    ]
