"""Decoding on a local model by continuous batching.

Own loop rather than the library's, so that a response depends on its prompt alone: every sampled response has its own
generator, no sum depends on the rows beside it, and a row that has ended leaves its place to the next prompt at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import torch

from xlift.errors import out_of_memory
from xlift.generation.adapters import Adapter, adapted
from xlift.generation.allowed import left_out
from xlift.generation.choosing import Held, choose, generator_of
from xlift.generation.padded import Padded
from xlift.generation.products import fast_products
from xlift.generation.screening import Screen, likeliest, screening
from xlift.generation.slots import Slots, has_slots, plain_attention, slot_attention
from xlift.generation.steering import language_vectors, steered
from xlift.memory import free_memory
from xlift.models import Placement
from xlift.progress import say
from xlift.study.served import Decoding
from xlift.tuning.templates import ChatFormat

READ_TOKENS = 4096
"""Tokens of prompts that are read in one step: what a forward pass holds of them stays small."""
SHARED_TOKENS = 16
"""What prompts begin with alike is read once from so many tokens on."""


@dataclass
class Reply:
    """One decoded reply: the text without its end of turn, how it ended, and its share of the seconds spent."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int
    seconds: float = field(default=0.0, compare=False)


@dataclass
class _Row:
    index: int
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    finish_reason: Literal["stop", "length"] | None = None


Batch = Slots | Padded
BatchOf = Callable[..., Batch]
"""A new batch of rows, by what their prompts begin with, and of how many kinds they are where that is not 1."""


@contextmanager
def answering(model: Any) -> Iterator[BatchOf]:
    """While it lasts, and its weights stay as they are, the model answers fast, in batches that suit it."""
    with ExitStack() as stack:
        slots = has_slots(model)
        stack.enter_context(fast_products(model))
        if slots:
            stack.enter_context(slot_attention(model))
            screen = screening(model)
            yield lambda prefix, kinds=1: Slots(model, prefix, kinds, screen)
        else:
            yield lambda prefix, kinds=1: Padded(model)


@torch.inference_mode()
def decode(
    model: Any,
    chat: ChatFormat,
    prompts: Sequence[list[int]],
    keys: Sequence[str],
    decoding: Decoding,
    on_reply: Callable[[int, Reply], None],
    languages: Sequence[str] | None = None,
    on_tokens: Callable[[int, list[int]], bool | None] | None = None,
    batch_of: BatchOf | None = None,
    adapters: Sequence[Adapter] = (),
    kinds: Sequence[int] | None = None,
    more: Callable[[], Sequence[tuple[list[int], str]]] | None = None,
) -> None:
    """Answer tokenised prompts; `on_reply(index, reply)` is called as soon as each reply ends.

    `on_tokens(index, tokens)` is called with each token, and all before it, of a reply that goes on; True ends it.

    `keys` name the prompts: a sampled reply's generator is seeded by (decoding.seed, key). `languages` are those that
    the replies must be in, which `decoding.allow` and `decoding.steer` want to know. Long prompts come first. Where
    memory is short, fewer are answered at a time. `batch_of` is that of `answering` where it is open already. With
    several `adapters`, `kinds` are the numbers of the prompts' own; that asks for a model with slots. `more` is asked
    before each step for prompts, with their keys, that join those under way; their indices go on from the last.
    """
    told = (list(languages or [""] * len(prompts)), on_tokens, list(kinds or [0] * len(prompts)), more)
    work = _Work(model, chat, list(prompts), list(keys), decoding, on_reply, *told)
    longest = max(map(len, prompts), default=0) + decoding.max_new_tokens
    size = min(decoding.batch_size, rows_that_fit(model, longest))
    # States that are moved for one language are not those of another.
    prefix = [] if decoding.steer else _prefix(chat)
    opened = nullcontext(batch_of) if batch_of else answering(model)
    with adapted(model, adapters, work.owners), work.steered(), opened as made:
        while work.queue:
            try:
                work.run(made(prefix, len(adapters)) if adapters else made(prefix), size)
            except RuntimeError as error:
                if len(work.rows) <= 1 or not out_of_memory(error):
                    raise
                size = len(work.rows) // 2
                say(f"memory is short: going on with {size} prompts at a time")
                work.begin_again()


@dataclass
class _Work:
    """Prompts that wait, rows that are under way, and where replies go."""

    model: Any
    chat: ChatFormat
    prompts: list[list[int]]
    keys: list[str]
    decoding: Decoding
    on_reply: Callable[[int, Reply], None]
    languages: list[str]
    on_tokens: Callable[[int, list[int]], bool | None] | None
    kinds: list[int]
    more: Callable[[], Sequence[tuple[list[int], str]]] | None

    def __post_init__(self) -> None:
        self.device = self.model.device
        self.stops = self.chat.stop_ids | ends_of(self.model)
        self.batch: Batch | None = None
        self.screen: Screen | None = None
        self.left_out: dict[str, torch.Tensor] = {}
        # The longest first: prompts of like length are padded least, and what memory cannot hold shows at once.
        self.queue = deque(sorted(range(len(self.prompts)), key=lambda i: (-len(self.prompts[i]), i)))
        self.rows: list[_Row] = []

    def run(self, batch: Batch, size: int) -> None:
        """Answer all that waits, `size` at a time."""
        held = Held(self.decoding.repetition_penalty, self.stops)
        screened = self.decoding.strategy == "greedy" and not self.decoding.allow
        steps = -(-len(self.queue) // size) * self.decoding.max_new_tokens
        rows = min(size, len(self.queue))
        self.batch, self.screen = batch, batch.screen(steps, rows) if screened else None
        while self.queue or self.rows:
            started = time.perf_counter()
            self._let_join()
            if new := self._taken(size - len(self.rows)) if batch.joins or not self.rows else []:
                batch.join(new, [self.kinds[row.index] for row in self.rows[-len(new) :]])
                held.join(new, self.device)
            ids = self._chosen(batch, held)
            held.add(ids)
            batch.add(ids)
            self._append(ids.tolist(), time.perf_counter() - started)
            self._close_up(batch, held)

    def _chosen(self, batch: Batch, held: Held) -> torch.Tensor:
        """The next token of each row."""
        if self.screen and isinstance(batch, Slots):
            return likeliest(self.screen, self.model.get_output_embeddings(), batch.states(), held)
        logits = batch.logits()
        if self.decoding.allow:
            self._leave_out(logits)
        return choose(logits, held, self.decoding, [row.generator for row in self.rows])

    def owners(self) -> torch.Tensor | None:
        """The number of the adapter of each token of a forward pass; None while the model is tried out."""
        return None if self.batch is None else self.batch.kinds

    @contextmanager
    def steered(self) -> Iterator[None]:
        """While it lasts, the model leans to the language of each row, as far as `decoding.steer` says."""
        if not self.decoding.steer:
            yield
            return
        codes = list(dict.fromkeys(self.languages))
        with plain_attention(self.model):
            vectors = language_vectors(self.model, self.chat, codes, self.decoding.steer_layers)

        def owners() -> torch.Tensor:
            if self.batch is None:  # the model is being tried out
                return torch.tensor(codes.index(self.languages[0]), device=self.device)
            own = [codes.index(self.languages[row.index]) for row in self.rows]
            return torch.tensor(own, device=self.device)[self.batch.owners]

        with steered(self.model, vectors, self.decoding.steer, owners):
            yield

    def _leave_out(self, logits: torch.Tensor) -> None:
        """Take the tokens out of the scores that no answer in a row's language can hold."""
        for row, scores in zip(self.rows, logits, strict=True):
            language = self.languages[row.index]
            if language not in self.left_out:
                made = left_out(self.chat.tokenizer, language, len(scores))
                # An answer must be able to end, whatever its language.
                made[sorted(self.stops)] = False
                self.left_out[language] = made.to(self.device)
            scores.masked_fill_(self.left_out[language], float("-inf"))

    def _let_join(self) -> None:
        """Put what has come meanwhile behind what waits; it is of no language and of the first adapter."""
        for prompt, key in self.more() if self.more else ():
            self.queue.append(len(self.prompts))
            self.prompts.append(prompt)
            self.keys.append(key)
            self.languages.append("")
            self.kinds.append(0)

    def begin_again(self) -> None:
        """Let the rows under way wait once more: their tokens are made anew, the same ones."""
        self.queue.extendleft(row.index for row in reversed(self.rows) if not row.finish_reason)
        self.rows = []

    def _taken(self, free: int) -> list[list[int]]:
        """The prompts of rows that join: as many as are free, and may be read in one step."""
        taken: list[list[int]] = []
        while self.queue and len(taken) < free:
            prompt = self.prompts[self.queue[0]]
            if taken and sum(map(len, taken)) + len(prompt) > READ_TOKENS:
                break
            index = self.queue.popleft()
            self.rows.append(_Row(index, generator_of(self.decoding, self.keys[index])))
            taken.append(prompt)
        return taken

    def _append(self, ids: list[int], seconds: float) -> None:
        """A token for each row that has not ended; the replies of those that end with it."""
        going = [(row, token) for row, token in zip(self.rows, ids, strict=True) if not row.finish_reason]
        for row, token in going:
            row.seconds += seconds / len(going)
            if token in self.stops:
                row.finish_reason = "stop"
            else:
                row.tokens.append(token)
                row.finish_reason = self._end(row.tokens)
            if self.on_tokens and not row.finish_reason and self.on_tokens(row.index, row.tokens):
                row.finish_reason = "stop"
            if row.finish_reason:
                self._report(row, row.finish_reason)

    def _end(self, tokens: list[int]) -> Literal["stop", "length"] | None:
        """Whether a reply of these tokens ends with them. A text that stops it has at most a token a byte."""
        if self.decoding.stop:
            last = self._text(tokens[-max(len(text.encode()) for text in self.decoding.stop) - 1 :])
            if any(text in last for text in self.decoding.stop):
                return "stop"
        return "length" if len(tokens) >= self.decoding.max_new_tokens else None

    def _text(self, tokens: list[int]) -> str:
        return str(self.chat.tokenizer.decode(tokens, skip_special_tokens=True))

    def _report(self, row: _Row, finish_reason: Literal["stop", "length"]) -> None:
        text = ended(self._text(row.tokens), self.decoding.stop)
        prompt_tokens = len(self.prompts[row.index])
        self.on_reply(row.index, Reply(text, finish_reason, prompt_tokens, len(row.tokens), round(row.seconds, 3)))

    def _close_up(self, batch: Batch, held: Held) -> None:
        """Let rows that have ended go; the last rows take their places."""
        going = [row.finish_reason is None for row in self.rows]
        if all(going) or (any(going) and not batch.can_keep):
            return
        order = closed_up(going)
        self.rows = [self.rows[i] for i in order]
        batch.keep(order)
        held.keep(order)


# e.g. ended(" Yes.\nNo.", ["\n"]) → "Yes."
def ended(text: str, stops: Sequence[str]) -> str:
    """A reply's text before the first of the texts that stop it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)].strip()


# e.g. closed_up([True, False, True, True]) → [0, 3, 2]
# e.g. closed_up([False, False, True]) → [2]
def closed_up(going: Sequence[bool]) -> list[int]:
    """Which row stands where once those that do not go on are let go: as few as can be move."""
    kept = [i for i, on in enumerate(going) if on]
    late = [i for i in kept if i >= len(kept)]
    return [i if going[i] else late.pop() for i in range(len(kept))]


def _prefix(chat: ChatFormat) -> list[int]:
    """The tokens that every prompt of one turn begins with, where reading them once is worth it."""
    first, other = (chat.encode_prompt([{"role": "user", "content": text}]) for text in ("a", "b"))
    alike = [one for one, _ in takewhile(lambda two: two[0] == two[1], zip(first, other, strict=False))]
    return alike if len(alike) >= SHARED_TOKENS else []


def rows_that_fit(model: Any, tokens: int) -> int:
    """How many rows of so many tokens can keep their keys and values in half of the memory that is free."""
    return max(1, free_memory(Placement(model.device.type, "", "")) // 2 // (tokens * kept_bytes(model)))


def kept_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def ends_of(model: Any) -> set[int]:
    """The tokens that the model itself says end its text: one, several, or none."""
    config = getattr(model, "generation_config", None)
    ends: Any = getattr(config, "eos_token_id", None)
    return set(ends if isinstance(ends, list | tuple) else [ends]) - {None}
