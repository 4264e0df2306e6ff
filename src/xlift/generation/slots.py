"""Rows that come and go at any step: what continuous batching keeps of each, and how they attend.

One forward pass takes a token of every row under way and the whole prompts of rows that join, one after the other in a
single line without padding. The keys and values of a row lie from the first slot on, so that no sum of its attention
depends on the rows beside it; layers with a sliding window keep that many slots and write over the oldest. What all
prompts begin with, the system prompt for instance, is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, Cache

from xlift.generation.screening import Screen
from xlift.tuning.attention import BY_LENGTHS
from xlift.tuning.loss import decoder_of, projection
from xlift.tuning.proof import mostly_equal, probe_ids

BLOCK = 64
"""Slots are made and attended to in blocks of so many: further ones are empty and add nothing to a sum."""
ATTENTION = "xlift_slots"
ROUGH_SCORES = 0.15
"""Relative error of scores that is rounding in half precision: those of a text at once are 0.03 from float32's in tuned
models of 270 M, those token by token 0.05, and up to 0.07 from each other; without one token of the text, 0.28."""


class _Segment(NamedTuple):
    """The tokens of a joining row: where they lie in the line, and how many before them were read already.

    `kind` tells whose keys and values of the shared beginning are its own.
    """

    row: int
    kind: int
    start: int
    end: int
    shared: int


def has_slots(model: Any) -> bool:
    """Whether rows can join one another in this model: tried once, since some change keys and values that are kept."""
    if _may_have_slots(model) and not hasattr(model, "rows_can_join"):
        model.rows_can_join = _rows_can_join(model)
    return _may_have_slots(model) and bool(model.rows_can_join)


@torch.inference_mode()
def _rows_can_join(model: Any) -> bool:
    ids = probe_ids(model, 5)
    wanted = model(input_ids=ids, use_cache=False).logits[0, 2:]
    try:
        with slot_attention(model):
            batch = Slots(model, [])
            batch.join([ids[0, :3].tolist()])
            found = [projection(model)[0](batch.states())]
            for token in ids[0, 3:]:
                batch.add(token[None])
                found.append(batch.logits())
            return mostly_equal(torch.cat(found), wanted, ROUGH_SCORES)
    except Exception:  # a model of a family that nobody has tried may fail in any way
        return False


def _may_have_slots(model: Any) -> bool:
    """Whether the model attends through the library's attention interface alone, as far as it says."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and model.config._attn_implementation in ("sdpa", BY_LENGTHS)
        and kinds <= {"full_attention", "sliding_attention"}
    )


@contextmanager
def slot_attention(model: Any) -> Iterator[None]:
    """While it lasts, the model's layers attend to what `Slots` keeps."""
    before = model.config._attn_implementation
    AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)
    model.attends_without_slots = before
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        del model.attends_without_slots


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """While it lasts, the model reads whole texts, also within `slot_attention`."""
    now = model.config._attn_implementation
    model.set_attn_implementation(getattr(model, "attends_without_slots", now))
    try:
        yield
    finally:
        model.set_attn_implementation(now)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    slots, layer = key.slots  # type: ignore[attr-defined]
    return slots.attend(layer, query[0], key[0], value[0], scaling, more.get("sliding_window"))[None], None


class Slots(Cache):
    """Rows of tokens that a model goes on with together; `prefix` are tokens that prompts may begin with.

    Rows of several kinds, with adapters of their own for instance, may go on together. `screen` gives what their
    likeliest tokens are found with, where for so many steps of so many rows that is faster than all scores.
    """

    joins = True
    can_keep = True

    def __init__(
        self,
        model: Any,
        prefix: list[int],
        kinds: int = 1,
        screen: Callable[[int, int], Screen | None] = lambda steps, rows: None,
    ) -> None:
        super().__init__(layers=[])
        self.model, self.screen = model, screen
        self._kinds: list[int] = []
        self.kinds = torch.empty(0, dtype=torch.long, device=model.device)
        """The kind of each token of the line, (tokens,)."""
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: (rows, heads, slots, dimension)
        self._lengths: list[int] = []
        self._joining: list[list[int]] = []
        self._new = torch.empty(0, dtype=torch.long, device=model.device)
        self._prefix: list[int] = []
        self._unread = [prefix] * kinds if prefix else []
        self._shared: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.owners = torch.empty(0, dtype=torch.long, device=model.device)
        """Which row each token of the line belongs to, (1, tokens)."""

    def join(self, prompts: Sequence[list[int]], kinds: Sequence[int] | None = None) -> None:
        """More rows; their prompts are read with the next `logits`."""
        if self._unread:
            shared, self._unread = self._unread, []
            self._read_prefix(shared)
        self._joining = list(prompts)
        self._kinds += kinds or [0] * len(prompts)

    def _read_prefix(self, shared: list[list[int]]) -> None:
        """Keep what all prompts begin with, for each kind."""
        self.join(shared, range(len(shared)))
        self.states()
        self._lengths, self._kinds, self._prefix = [], [], shared[0]

    def logits(self) -> Tensor:
        """The scores of each row's next token, (rows, vocabulary): rows under way first, then those that join."""
        return cast(Tensor, self._forward(self.model).logits[0])

    def states(self) -> Tensor:
        """What the output layer makes these scores of, (rows, inputs)."""
        return cast(Tensor, self._forward(decoder_of(self.model)).last_hidden_state[0, self._ends])

    def _forward(self, part: Any) -> Any:
        """What the whole model makes of the line, or its decoder."""
        device, going = self.model.device, len(self._lengths)
        ids, positions = self._line()
        self._places = torch.tensor(self._lengths, device=device)
        self._rows = torch.arange(going, device=device)
        self._masks: dict[int, Tensor] = {}
        lengths = [1] * going + [one.end - one.start for one in self._segments]
        self.owners = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None].to(device)
        self.kinds = torch.tensor(self._kinds, device=device)[self.owners[0]]
        output = part(
            input_ids=torch.cat([self._new, torch.tensor(ids, dtype=torch.long, device=device)])[None],
            position_ids=torch.tensor([positions], device=device),
            past_key_values=self,
            use_cache=True,
            **({"logits_to_keep": torch.tensor(self._ends, device=device)} if part is self.model else {}),
        )
        self._lengths = [length + 1 for length in self._lengths] + [len(prompt) for prompt in self._joining]
        self._joining = []
        return output

    def _line(self) -> tuple[list[int], list[int]]:
        """The joining rows' tokens, and the positions of all."""
        ids: list[int] = []
        going = len(self._lengths)
        positions = list(self._lengths)
        self._ends = list(range(going))
        self._segments: list[_Segment] = []
        for number, prompt in enumerate(self._joining):
            count = len(self._prefix)
            shared = count if count < len(prompt) and prompt[:count] == self._prefix else 0
            start = going + len(ids)
            ids += prompt[shared:]
            positions += range(shared, len(prompt))
            row = going + number
            self._segments.append(_Segment(row, self._kinds[row], start, going + len(ids), shared))
            self._ends.append(going + len(ids) - 1)
        longest = max([length + 1 for length in self._lengths] + [len(prompt) for prompt in self._joining])
        self._width = -(-longest // BLOCK) * BLOCK
        return ids, positions

    def add(self, ids: Tensor) -> None:
        """One more token for each row, (rows,)."""
        self._new = ids

    def keep(self, order: Sequence[int]) -> None:
        """Let all rows go but these, which stand in this order from now on."""
        moved = [(to, row) for to, row in enumerate(order) if to != row]
        if moved:
            to, row = torch.tensor(moved, device=self.model.device).unbind(1)
            for kept in self._kept.values():
                for states in kept:
                    states[to] = states[row]
        self._lengths = [self._lengths[row] for row in order]
        self._kinds = [self._kinds[row] for row in order]
        self._new = self._new[torch.tensor(order, dtype=torch.long, device=self.model.device)]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Called by each layer before it attends, with (1, heads, tokens, dimension)."""
        key_states.slots = (self, layer_idx)  # type: ignore[attr-defined]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given with every call."""
        return 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """What each token of the line sees: (tokens, heads, dimension); query, key, value are (heads, tokens, …)."""
        keys, values = self._room(layer, key, value, window)
        seen = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        if going := len(self._lengths):
            seen[:going] = self._step(query[:, :going], key[:, :going], value[:, :going], keys, values, scaling)
        for row, kind, start, end, shared in self._segments:
            own_keys, own_values = key[:, start:end], value[:, start:end]
            if (layer, kind) not in self._shared:  # the first row is the prefix, or nothing that others need
                self._shared[layer, kind] = (own_keys.clone(), own_values.clone())
            elif shared:
                before = self._shared[layer, kind]
                own_keys, own_values = torch.cat([before[0], own_keys], 1), torch.cat([before[1], own_values], 1)
            _store(keys[row], own_keys)
            _store(values[row], own_values)
            seen[start:end] = _read(query[:, start:end], own_keys, own_values, scaling, window)
        return seen

    def _step(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, scaling: float | None
    ) -> Tensor:
        """One token of each row under way, after it is kept: heads that share keys are asked together."""
        (heads, going, size), slots = query.shape, keys.shape[2]
        places = self._places % slots
        keys[self._rows, :, places] = key.transpose(0, 1)
        values[self._rows, :, places] = value.transpose(0, 1)
        used = min(slots, self._width)
        asked = query.transpose(0, 1).reshape(going, len(key), heads // len(key), size)
        mask = self._mask(used, query.dtype)[:, None, None].expand(-1, -1, asked.shape[2], -1)
        own = asked, keys[:going, :, :used], values[:going, :, :used], mask
        seen = _by_products(*own, scaling) if _turned(keys) else F.scaled_dot_product_attention(*own, scale=scaling)
        return seen.reshape(going, heads, -1)

    def _mask(self, slots: int, dtype: torch.dtype) -> Tensor:
        """What each row may see of so many slots, (rows, slots): once it has gone round a window, all of them."""
        if slots not in self._masks:
            hidden = torch.arange(slots, device=self._places.device) > self._places[:, None]
            self._masks[slots] = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))
        return self._masks[slots]

    def _room(self, layer: int, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, with room for all rows and for what they hold after this step."""
        rows, slots = len(self._lengths) + len(self._joining), min(self._width, window or self._width)
        kept = self._kept.get(layer)
        if kept is None or kept[0].shape[0] < rows or kept[0].shape[2] < slots:
            before = kept or (None, None)
            turned = key.dtype == torch.bfloat16 and key.device.type == "cpu"
            kept = _grown(before[0], key, rows, slots, turned), _grown(before[1], value, rows, slots)
            self._kept[layer] = kept
        return kept


def _grown(states: Tensor | None, like: Tensor, rows: int, slots: int, turned: bool = False) -> Tensor:
    """Room for so many rows and slots that holds what there was; empty slots are zeros: they are multiplied by 0.

    `turned`, the slots of an entry lie side by side in memory, as `_by_products` wants the keys.
    """
    if states is not None:
        rows, slots = max(rows, states.shape[0]), max(slots, states.shape[2])
    heads, _, size = like.shape
    shape = (rows, heads, size, slots) if turned else (rows, heads, slots, size)
    made = like.new_zeros(shape).transpose(2, 3) if turned else like.new_zeros(shape)
    if states is not None:
        made[: states.shape[0], :, : states.shape[2]] = states
    return made


def _turned(keys: Tensor) -> bool:
    return keys.stride(2) == 1


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention of a few tokens in bfloat16 on a CPU, which the library's kernel takes half as long again for."""
    scores = (query @ key.transpose(2, 3)).float().mul_(scaling or query.shape[-1] ** -0.5).add_(mask)
    return scores.softmax(-1).to(value.dtype) @ value


def _store(slots: Tensor, states: Tensor) -> None:
    """Keep a row's states, (heads, tokens, dimension), in its slots: the last ones where there are fewer slots."""
    length, room = states.shape[1], slots.shape[1]
    first = max(0, length - room)
    slots[:, torch.arange(first, length, device=slots.device) % room] = states[:, first:]


def _read(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """What the last tokens of a row see of it, (tokens, heads, dimension)."""
    tokens, length = query.shape[1], key.shape[1]
    mask = None
    if tokens < length or (window and length > window):
        behind = torch.arange(length - tokens, length, device=key.device)[:, None] - torch.arange(
            length, device=key.device
        )
        mask = (behind >= 0) & (behind < (window or length))
    found = F.scaled_dot_product_attention(
        query[None], key[None], value[None], mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return found[0].transpose(0, 1)
