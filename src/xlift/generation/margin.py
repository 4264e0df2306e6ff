"""Language margin: would this model open its reply in the user's language or in English? Told without generating.

A fact question in language X has two reference replies that say the same, one in X and one in English. Under the
checkpoint's own chat format,

    margin = log p(start of the reply in X | question in X) - log p(start of the English reply | question in X)

in nats, where the start is the first MARGIN_TOKENS tokens from the token on which the two replies part. Above zero the
model would sooner open like the reply in X, below zero like the English one; the logistic function of the margin is the
probability of X if those two starts were the only choices, and 0.5 means even.

Only the start counts, since a reply goes on in the language in which it opens; whole replies are dominated by how hard
their content is to guess. Equal numbers of tokens put the two languages on a par. benchmarks/margin.py compares this
with other definitions (per token, per byte, against the untuned model or the English question, first token) by how
well they foretell the language of generated replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlift.checkpoint import MARGIN_TOKENS
from xlift.errors import DataError
from xlift.intervals import Estimate, estimate
from xlift.languages import language_code
from xlift.records import Message, Prompt
from xlift.tuning.loss import projection
from xlift.tuning.packing import IGNORED, pad, split_micro_batches
from xlift.tuning.templates import ChatFormat, Encoded

CHUNK = 256
"""Positions whose logits are held at once: 0.3 GB in float32 with a vocabulary of 262 k."""


@dataclass(frozen=True)
class FactPair:
    """A question in one language with its reference reply in that language and in English."""

    parallel_id: str
    language: str
    question: Sequence[Message]
    reply: str
    english: str

    def __post_init__(self) -> None:
        if not (self.reply.strip() and self.english.strip()):
            raise DataError(f"'{self.parallel_id}' in '{self.language}': a reference reply is empty")


# e.g. round(Margin("q", "fr", 2.0).probability, 2) → 0.88
@dataclass(frozen=True)
class Margin:
    """The margin of one question; `nats` is None where the two replies do not differ."""

    parallel_id: str
    language: str
    nats: float | None

    @property
    def probability(self) -> float | None:
        """Probability of the reply in X if its start and the English one were the only choices; 0.5 is even."""
        # The same as 1 / (1 + exp(-nats)), without its overflow.
        return None if self.nats is None else 0.5 * (1.0 + math.tanh(self.nats / 2.0))

    @property
    def wins(self) -> float | None:
        """1 where the model prefers the reply in X, 0 where it prefers the English one."""
        return None if self.nats is None else float(self.nats > 0)


@dataclass(frozen=True)
class MarginSummary:
    """One language over all its questions: the mean probability of X, and the share of questions in which X wins."""

    language: str
    probability: Estimate
    wins: Estimate


def fact_pairs(prompts_by_language: Mapping[str, Sequence[Prompt]]) -> list[FactPair]:
    """Pairs of prompts that carry a `reference` and share `parallel_id` with an English one; English is left out.

    Only validation prompts are used: whatever is selected by these margins must not have seen test prompts. Raises
    DataError that lists prompts without a reference or without an English partner.
    """
    chosen = {
        language_code(language): [prompt for prompt in prompts if prompt["split"] == "validation"]
        for language, prompts in prompts_by_language.items()
    }
    english = {prompt.get("parallel_id"): prompt.get("reference", "") for prompt in chosen.pop("en", [])}
    asked = [(language, prompt) for language, prompts in chosen.items() for prompt in prompts]
    problems = [f"prompt '{prompt['id']}': {problem}" for _, prompt in asked for problem in _problems(prompt, english)]
    if problems or not asked:
        raise DataError(problems or "no validation prompts in a language other than English", "use builtin:facts")
    return [
        FactPair(p["parallel_id"], language, p["messages"], p["reference"], english[p["parallel_id"]])
        for language, p in asked
    ]


def _problems(prompt: Prompt, english: Mapping[str | None, str]) -> list[str]:
    partner = prompt.get("parallel_id")
    problems = [] if prompt.get("reference", "").strip() else ["no reference reply"]
    if partner is None or not english.get(partner, "").strip():
        problems.append("no English reference reply with the same parallel_id")
    return problems


def language_margins(model: Any, chat: ChatFormat, pairs: Sequence[FactPair], batch_tokens: int = 2048) -> list[Margin]:
    """The margin of each pair, in order.

    Batching changes nothing but the time in float32; in bfloat16 a single margin may move by a few tenths of a nat.
    """
    starts = [start for pair in pairs for start in _starts(chat, pair)]
    sums = [math.fsum(values) for values in token_log_probs(model, chat, starts, batch_tokens)]
    return [
        Margin(pair.parallel_id, pair.language, own - english if any(start.mask) else None)
        for pair, start, own, english in zip(pairs, starts[::2], sums[::2], sums[1::2], strict=True)
    ]


def _starts(chat: ChatFormat, pair: FactPair) -> tuple[Encoded, Encoded]:
    """Both conversations, cut after the tokens that count, with only those in the mask."""
    own, english = (chat.encode([*pair.question, reply_message(text)]) for text in (pair.reply, pair.english))
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(own.ids, english.ids, strict=False)))
    return _cut(own, same), _cut(english, same)


def reply_message(text: str) -> Message:
    return {"role": "assistant", "content": text}


# e.g. _cut(Encoded([1, 2, 3, 4], [False, False, True, False]), 2).ids → [1, 2, 3]
def _cut(whole: Encoded, first: int) -> Encoded:
    # What a template writes behind the end of turn belongs to no reply; the mask's last token is that end.
    end = len(whole) - whole.mask[::-1].index(True)
    ids = whole.ids[: min(first + MARGIN_TOKENS, end)]
    return Encoded(ids, [place >= first for place in range(len(ids))])


@torch.inference_mode()
def token_log_probs(
    model: Any, chat: ChatFormat, examples: Sequence[Encoded], batch_tokens: int = 2048
) -> list[list[float]]:
    """Log-probability, in nats, of every token in each example's mask, given all that precedes it."""
    found: list[list[float]] = [[] for _ in examples]
    for group in split_micro_batches(range(len(examples)), [len(e) for e in examples], batch_tokens, padded=True):
        for index, values in zip(
            group, _batch_log_probs(model, [examples[i] for i in group], chat.end_of_turn_id), strict=True
        ):
            found[index] = values
    return found


def _batch_log_probs(model: Any, examples: list[Encoded], pad_id: int) -> list[list[float]]:
    batch = {name: rows.to(model.device) for name, rows in pad(examples, pad_id).items()}
    labels = batch.pop("labels")[:, 1:]
    hidden: Tensor = model.get_decoder()(**batch, use_cache=False).last_hidden_state
    learned = labels != IGNORED
    project, _ = projection(model)
    pieces = zip(hidden[:, :-1][learned].split(CHUNK), labels[learned].split(CHUNK), strict=True)
    losses = torch.cat([F.cross_entropy(project(states).float(), ids, reduction="none") for states, ids in pieces])
    return [row.tolist() for row in (-losses).cpu().split(learned.sum(dim=1).tolist())]


def summarise(margins: Sequence[Margin]) -> list[MarginSummary]:
    """One summary a language, in order of appearance; intervals resample questions (`parallel_id`)."""
    return [
        _summary(code, [m for m in margins if m.language == code])
        for code in dict.fromkeys(m.language for m in margins)
    ]


def _summary(language: str, margins: Sequence[Margin]) -> MarginSummary:
    clusters = [margin.parallel_id for margin in margins]
    return MarginSummary(
        language,
        estimate([margin.probability for margin in margins], clusters, top=1.0),
        estimate([margin.wins for margin in margins], clusters, top=1.0),
    )
