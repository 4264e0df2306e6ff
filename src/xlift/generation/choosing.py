"""The next token of each row, from the model's scores: repetition penalty, greedy choice, sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from xlift.study.served import Decoding

SCORES_AT_ONCE = 512
"""Scores whose maximum is looked at first: the index of a maximum is slow to find in bfloat16, the maximum is not."""


class Held:
    """Which tokens each row has held, for the repetition penalty of CTRL (Keskar et al. 2019, section 4.1).

    Tokens that end a reply are exempt: the user's turn holds them already, and a penalised reply would run on.
    """

    def __init__(self, penalty: float, exempt: frozenset[int]) -> None:
        self.penalty, self.exempt = penalty, exempt
        self.ids = torch.empty(0, 0, dtype=torch.long)

    def join(self, prompts: Sequence[list[int]], device: torch.device) -> None:
        """More rows, with the tokens of their prompts; places that hold none point at the prompt's last one."""
        if self.penalty == 1.0:
            return
        own = [[one for one in prompt[:-1] if one not in self.exempt] + prompt[-1:] for prompt in prompts]
        width = max(self.ids.shape[1], *map(len, own))
        added = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in own], device=device)
        there = self.ids.to(device)
        if len(there):
            # What a row holds twice is penalised once: any of its own tokens may fill its line.
            there = torch.cat([there, there[:, -1:].expand(-1, width - there.shape[1])], 1)
            added = torch.cat([there, added])
        self.ids = added

    def add(self, ids: Tensor) -> None:
        """One more token for each row, (rows,)."""
        if self.penalty != 1.0:
            self.ids = torch.cat([self.ids, ids[:, None]], dim=1)

    def keep(self, order: Sequence[int]) -> None:
        """Let all rows go but these, in this order."""
        if self.penalty != 1.0:
            self.ids = self.ids[torch.tensor(order, dtype=torch.long, device=self.ids.device)]

    def of(self, rows: Tensor) -> Held:
        """What these rows alone have held."""
        found = Held(self.penalty, self.exempt)
        found.ids = self.ids[rows] if self.penalty != 1.0 else self.ids
        return found

    def penalised(self, logits: Tensor) -> Tensor:
        """The scores of the held tokens, (rows, held), in float32."""
        return self.lowered(logits.gather(1, self.ids).float())

    def lowered(self, scores: Tensor) -> Tensor:
        """Scores after the penalty."""
        return torch.where(scores < 0, scores * self.penalty, scores / self.penalty)


def choose(logits: Tensor, held: Held, decoding: Decoding, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Next tokens (rows,) from scores (rows, vocabulary), which are overwritten."""
    if decoding.strategy == "greedy":
        return choose_greedily(logits, held)
    scores = logits.float()
    if held.penalty != 1.0:
        scores = scores.scatter(1, held.ids, held.penalised(logits))
    chosen = [_sample(row, decoding, generator) for row, generator in zip(scores.cpu(), generators, strict=True)]
    return torch.tensor(chosen, device=logits.device)


def choose_greedily(logits: Tensor, held: Held) -> Tensor:
    """The first token of the highest score; penalised scores are compared in float32, as the others were computed."""
    if held.penalty == 1.0:
        return _first_maximum(logits)
    penalised = held.penalised(logits)
    logits[torch.arange(len(logits), device=logits.device)[:, None], held.ids] = float("-inf")
    free = _first_maximum(logits)
    best, height = penalised.max(dim=1).values, logits.gather(1, free[:, None])[:, 0].float()
    first = held.ids.masked_fill(penalised < best[:, None], logits.shape[1]).min(dim=1).values
    return torch.where((best > height) | ((best == height) & (first < free)), first, free)


# e.g. _first_maximum(torch.tensor([[0.0, 2.0, 2.0]])).tolist() → [1]
def _first_maximum(scores: Tensor) -> Tensor:
    """`argmax`, without a copy in float32 of scores in half precision on a CPU."""
    rows, size = scores.shape
    whole = size // SCORES_AT_ONCE * SCORES_AT_ONCE
    if scores.dtype == torch.float32 or scores.device.type != "cpu" or size != whole:
        return scores.argmax(dim=1)
    blocks = scores.view(rows, size // SCORES_AT_ONCE, SCORES_AT_ONCE)
    block = blocks.amax(dim=2).float().argmax(dim=1)
    return block * SCORES_AT_ONCE + blocks[torch.arange(rows), block].float().argmax(dim=1)


# e.g. _sample(torch.tensor([2.0, 1.0, 0.0]), Decoding(strategy="sample", top_k=1), None) → 0
def _sample(logits: Tensor, decoding: Decoding, generator: torch.Generator | None) -> int:
    """One token of the `top_k` likeliest; of those, of the smallest set that holds `top_p` (nucleus sampling, Holtzman
    et al. 2020); of those, one at least `min_p` times as likely as the first (Nguyen et al. 2024)."""
    scores, tokens = (logits / decoding.temperature).sort(descending=True)
    probabilities = scores[: decoding.top_k].softmax(dim=-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= decoding.top_p
    outside |= probabilities < decoding.min_p * probabilities[0]
    probabilities[outside] = 0.0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


# e.g. generator_of(Decoding(), "open-001.fr") is None → True
def generator_of(decoding: Decoding, key: str) -> torch.Generator | None:
    """What draws the tokens of one sampled reply; None for a greedy one."""
    if decoding.strategy == "greedy":
        return None
    digest = hashlib.sha256(f"{decoding.seed}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
