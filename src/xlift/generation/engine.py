"""Batched decoding on a local model.

Own loop rather than the library's, so that a response depends on its prompt alone: every sampled response has its own
generator, padding is masked out of attention and penalty, and finished rows leave the batch at once (the output layer
of a 262 k vocabulary is most of the cost on a CPU).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from xlift.study.settings import Decoding
from xlift.tuning.templates import ChatFormat


@dataclass
class Reply:
    """One decoded reply: the text without its end of turn, and how it ended."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int


@dataclass
class _Row:
    index: int
    prompt: list[int]
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)


def decode(
    model: Any,
    chat: ChatFormat,
    prompts: Sequence[list[int]],
    keys: Sequence[str],
    decoding: Decoding,
    on_reply: Callable[[int, Reply], None],
) -> None:
    """Answer tokenised prompts; `on_reply(index, reply)` is called as soon as each reply ends.

    `keys` name the prompts: a sampled reply's generator is seeded by (decoding.seed, key). Prompts of like length are
    decoded together.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(order), decoding.batch_size):
        indices = order[start : start + decoding.batch_size]
        rows = [_Row(i, prompts[i], _generator(decoding, keys[i])) for i in indices]
        _decode_batch(model, chat, rows, decoding, on_reply)


@torch.inference_mode()
def _decode_batch(
    model: Any, chat: ChatFormat, rows: list[_Row], decoding: Decoding, on_reply: Callable[[int, Reply], None]
) -> None:
    batch = Batch(model, [row.prompt for row in rows], chat.end_of_turn_id)
    stops = chat.stop_ids | ends_of(model)
    seen = _Seen(batch.ids, batch.mask, decoding.repetition_penalty, stops)
    going = [True] * len(rows)
    while any(going):
        ids = choose(seen.penalise(batch.logits()), decoding, [row.generator for row in rows])
        seen.add(ids[:, None])
        batch.add(ids)
        for i, token in enumerate(ids.tolist()):
            going[i] = going[i] and _append(rows[i], token, token in stops, chat, decoding, on_reply)
        if any(going) and not all(going) and batch.can_keep:
            keep = torch.tensor([i for i, on in enumerate(going) if on], device=model.device)
            rows, going = [row for row, on in zip(rows, going, strict=True) if on], [True] * len(keep)
            batch.keep(keep)
            seen.keep(keep)


class Batch:
    """Rows of tokens that a model goes on with together, padded on the left, and what it keeps of them.

    `ids`, `mask`: (rows, tokens). The model makes the cache that suits it.
    """

    def __init__(self, model: Any, prompts: Sequence[list[int]], pad_id: int) -> None:
        self.model = model
        self.ids, self.mask = _pad_left(prompts, pad_id, model.device)
        self._new = self.ids
        self._positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self._cache: Any = None
        # State-space models keep no keys and values.
        self._kept_as = "cache_params" if _keeps_states(model) else "past_key_values"
        # An index copies the states together: a slice of them times a frozen output layer makes torch copy that layer
        # once a row.
        self._last = torch.tensor([-1], device=model.device)

    def logits(self) -> Tensor:
        """The scores of each row's next token, (rows, vocabulary), in float32."""
        output = self.model(
            input_ids=self._new,
            attention_mask=self.mask,
            position_ids=self._positions,
            use_cache=True,
            logits_to_keep=self._last,
            **({self._kept_as: self._cache} if self._cache is not None else {}),
        )
        self._cache = output[self._kept_as]
        return cast(Tensor, output.logits[:, -1].float())

    def add(self, ids: Tensor) -> None:
        """One more token for each row, (rows,)."""
        self._new = ids[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1

    @property
    def can_keep(self) -> bool:
        """Whether rows can be let go: states of linear attention cannot be told apart by row."""
        return all(hasattr(layer, "batch_select_indices") for layer in getattr(self._cache, "layers", ()))

    def keep(self, rows: Tensor) -> None:
        """Let all other rows go."""
        self._new, self.mask, self._positions = self._new[rows], self.mask[rows], self._positions[rows]
        self._cache.batch_select_indices(rows)


def _keeps_states(model: Any) -> bool:
    return "cache_params" in inspect.signature(model.forward).parameters


def ends_of(model: Any) -> set[int]:
    """The tokens that the model itself says end its text: one, several, or none."""
    config = getattr(model, "generation_config", None)
    ends: Any = getattr(config, "eos_token_id", None)
    return set(ends if isinstance(ends, list | tuple) else [ends]) - {None}


def _append(
    row: _Row, token: int, stopped: bool, chat: ChatFormat, decoding: Decoding, on_reply: Callable[[int, Reply], None]
) -> bool:
    """Add a token to a row, unless it ends the reply; report the reply and return False when it has ended."""
    if not stopped:
        row.tokens.append(token)
    if not stopped and len(row.tokens) < decoding.max_new_tokens:
        return True
    text = str(chat.tokenizer.decode(row.tokens, skip_special_tokens=True)).strip()
    on_reply(row.index, Reply(text, "stop" if stopped else "length", len(row.prompt), len(row.tokens)))
    return False


def choose(logits: Tensor, decoding: Decoding, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Next tokens (rows,) from penalised logits (rows, vocabulary)."""
    if decoding.strategy == "greedy":
        return logits.argmax(dim=-1)
    chosen = [_sample(row, decoding, generator) for row, generator in zip(logits.cpu(), generators, strict=True)]
    return torch.tensor(chosen, device=logits.device)


def _sample(logits: Tensor, decoding: Decoding, generator: torch.Generator | None) -> int:
    """One token by nucleus sampling (Holtzman et al. 2020): the smallest set of tokens that holds `top_p`."""
    probabilities, tokens = (logits / decoding.temperature).softmax(dim=-1).sort(descending=True)
    outside = probabilities.cumsum(dim=-1) - probabilities >= decoding.top_p
    probabilities[outside] = 0.0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def _generator(decoding: Decoding, key: str) -> torch.Generator | None:
    if decoding.strategy == "greedy":
        return None
    digest = hashlib.sha256(f"{decoding.seed}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class _Seen:
    """Which tokens each row has held, for the repetition penalty of CTRL (Keskar et al. 2019, section 4.1).

    Tokens that end a reply are exempt: the user's turn holds them already, and a penalised reply would run on.
    """

    def __init__(self, ids: Tensor, mask: Tensor, penalty: float, stop_ids: frozenset[int]) -> None:
        self.penalty = penalty
        exempt = torch.isin(ids, torch.tensor(sorted(stop_ids), device=ids.device)) | (mask == 0)
        exempt[:, -1] = False
        self.ids = ids.masked_fill(exempt, -1)

    def add(self, ids: Tensor) -> None:
        self.ids = torch.cat([self.ids, ids], dim=1)

    def keep(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]

    def penalise(self, logits: Tensor) -> Tensor:
        if self.penalty == 1.0:
            return logits
        # Padding points at the row's newest token, which is penalised anyway: the write is the same value twice.
        held = torch.where(self.ids >= 0, self.ids, self.ids[:, -1:])
        scores = logits.gather(1, held)
        return logits.scatter(1, held, torch.where(scores < 0, scores * self.penalty, scores / self.penalty))


def _pad_left(rows: Sequence[list[int]], pad_id: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
