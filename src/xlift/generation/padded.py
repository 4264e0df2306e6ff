"""Rows that begin together, padded on the left: for models that keep states of their own kind, or attend in their own
way. Any other model answers with slots.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


class Padded:
    """Rows of tokens that a model goes on with together. The model makes the cache that suits it."""

    joins = False
    """Whether rows can join others that are under way."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache: Any = None
        # State-space models keep no keys and values.
        self._kept_as = "cache_params" if _keeps_states(model) else "past_key_values"
        # An index copies the states together: a slice of them times a frozen output layer makes torch copy that layer
        # once a row.
        self._last = torch.tensor([-1], device=model.device)

    def screen(self, steps: int, rows: int) -> None:
        """Nothing finds its likeliest tokens faster than all scores do."""

    @property
    def kinds(self) -> Tensor:
        """The kind of each token, (tokens,): rows are of one."""
        return torch.zeros(self._new.numel(), dtype=torch.long, device=self._new.device)

    def join(self, prompts: Sequence[list[int]], kinds: Sequence[int] | None = None) -> None:
        """Begin anew with these prompts."""
        self._new, self.mask = _pad_left(prompts, self.model.device)
        self._positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self._cache = None

    def logits(self) -> Tensor:
        """The scores of each row's next token, (rows, vocabulary)."""
        output = self.model(
            input_ids=self._new,
            attention_mask=self.mask,
            position_ids=self._positions,
            use_cache=True,
            logits_to_keep=self._last,
            **({self._kept_as: self._cache} if self._cache is not None else {}),
        )
        self._cache = output[self._kept_as]
        return cast(Tensor, output.logits[:, -1])

    @property
    def owners(self) -> Tensor:
        """Which row each token belongs to, (rows, 1)."""
        return torch.arange(len(self._new), device=self._new.device)[:, None]

    def add(self, ids: Tensor) -> None:
        """One more token for each row, (rows,)."""
        self._new = ids[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1

    @property
    def can_keep(self) -> bool:
        """Whether rows can be let go: states of linear attention cannot be told apart by row."""
        return all(hasattr(layer, "batch_select_indices") for layer in getattr(self._cache, "layers", ()))

    def keep(self, order: Sequence[int]) -> None:
        """Let all other rows go."""
        if not order:
            return
        rows = torch.tensor(order, device=self.model.device)
        self._new, self.mask, self._positions = self._new[rows], self.mask[rows], self._positions[rows]
        self._cache.batch_select_indices(rows)


def _keeps_states(model: Any) -> bool:
    return "cache_params" in inspect.signature(model.forward).parameters


def _pad_left(rows: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row[:1] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
