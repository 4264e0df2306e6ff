"""Attention over packed rows by the lengths of what they hold: no token computes what it may not see.

A packed row brings where its examples begin in place of a mask (`starts_mask`); every model that takes its attention
from transformers' interface hands it through unchanged. All else (padded rows, generation) has masks as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

BY_LENGTHS = "xlift_by_lengths"
"""The name of this attention in transformers' interface."""


def starts_mask(starts: Tensor, longest: int) -> Tensor:
    """What rows packed alike give for a mask, (1, 1, longest, examples + 1), int32: `starts` with the rows' end.

    Its third size tells the longest example without asking the device.
    """
    return starts.view(1, 1, 1, -1).expand(1, 1, longest, -1)


def attends_by_lengths(model: Any) -> bool:
    """Whether a model takes `starts_mask` for a mask now."""
    return bool(model.config.get_text_config()._attn_implementation == BY_LENGTHS)


def forget_lengths(model: Any) -> None:
    """Let a model attend by masks again."""
    model.get_decoder().set_attn_implementation("sdpa")


@contextmanager
def by_lengths(model: Any) -> Iterator[None]:
    """Let a model attend by lengths where its family tells its attention all that it may not see, a window alone, for
    as long as the context lasts.

    Whether the model then computes the same is for `prove_training` to see.
    """
    _use_lengths(model)
    try:
        yield
    finally:
        if attends_by_lengths(model):
            forget_lengths(model)


def _use_lengths(model: Any) -> None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    told = model._supports_flash_attn and model._can_set_attn_implementation()
    if model.config._attn_implementation != "sdpa" or not told or kinds - {"full_attention", "sliding_attention"}:
        return
    _register()
    model.set_attn_implementation(BY_LENGTHS)


TILED_TOKENS, TILE = 1024, 128
"""Tokens up to which whole products and a softmax are faster on a CPU than torch's kernel and what they keep is little,
and queries that share them."""


class _Tile(torch.autograd.Function):
    """Causal attention of some queries of one example, (batch, heads, n, d), to the keys up to the last query's own,
    key and value (batch, heads or fewer, k, d); with a window each sees so many keys at most, its own among them.

    Scores are float32, the other products in the dtype of the query; a group's heads share one product with its key.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        count, heads, length, width = query.shape
        groups, seen = key.shape[1:3]
        rows = query.reshape(count, groups, -1, width)
        scores = (rows.float() @ key.float().mT).view(count, groups, -1, length, seen)
        unseen = torch.full((length, seen), -torch.inf).triu_(1 + seen - length)
        if window is not None:
            unseen += torch.full_like(unseen, -torch.inf).tril_(seen - length - window)
        shares = scores.mul_(scale).add_(unseen).softmax(-1).to(query.dtype).view(count, groups, -1, seen)
        ctx.save_for_backward(rows, key, value, shares)
        ctx.scale, ctx.shape = scale, query.shape
        return (shares @ value).view(count, heads, length, -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        rows, key, value, shares = ctx.saved_tensors
        grad, wide = grad_outputs[0].reshape(*rows.shape[:3], -1), shares.float()
        pull = (grad @ value.mT).float().mul_(wide)
        pull = pull.sub_(wide * pull.sum(-1, keepdim=True)).mul_(ctx.scale).to(rows.dtype)
        return (pull @ key).view(ctx.shape), pull.mT @ rows, shares.mT @ grad, None, None


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(BY_LENGTHS, attention)
    AttentionMaskInterface.register(BY_LENGTHS, sdpa_mask)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    """transformers' interface: query (batch, heads, tokens, d), key and value with as many heads or fewer; returns
    (batch, tokens, heads, d)."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if how.get(name) is not None]:
        raise ValueError(f"attention by lengths does not know {unknown[0]}")
    starts, longest = attention_mask[0, 0, 0], attention_mask.shape[2]
    window = how.get("sliding_window")
    window = None if window is None or window >= longest else int(window)
    scale = how.get("scaling")
    if query.is_cuda and query.dtype != torch.float32 and query.shape[-1] == value.shape[-1] <= 256:
        return _by_kernel(query, key, value, starts, longest, window, scale), None
    lengths = starts.diff().tolist()
    queries, keys, values = (each.split(lengths, dim=2) for each in (query, key, value))
    parts = [_alone(*part, window, scale) for part in zip(queries, keys, values, strict=True)]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, window: int | None, scale: float | None
) -> Tensor:
    """One kernel over all rows. A window of w tokens, the token itself among them, looks w - 1 back."""
    from torch.nn.attention.varlen import varlen_attn

    count, tokens = query.shape[0], query.shape[2]
    rows, keys, values = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    if count > 1:
        offsets = torch.arange(count, device=starts.device, dtype=starts.dtype)[:, None] * tokens
        starts = F.pad((starts[None, :-1] + offsets).flatten(), (0, 1), value=count * tokens)
    reach = (-1 if window is None else window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    how: dict[str, Any] = {"scale": scale, "window_size": reach, "enable_gqa": grouped}
    return cast(Tensor, varlen_attn(rows, keys, values, starts, starts, longest, longest, **how)).unflatten(
        0, (count, tokens)
    )


def _alone(query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None) -> Tensor:
    """Attention of one example, in pieces where it is long."""
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    window = None if window is None or length <= window else window
    if query.device.type == "cpu" and (window or length) <= TILED_TOKENS:
        return _in_tiles(query, key, value, window, query.shape[-1] ** -0.5 if scale is None else scale)
    if window is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    found = []
    for begin, end, first in _pieces(length, window, window):
        rows = torch.arange(begin, end, device=query.device)[:, None]
        columns = torch.arange(first, end, device=query.device)[None]
        seen = (columns <= rows) & (columns > rows - window)
        piece = query[:, :, begin:end], key[:, :, first:end], value[:, :, first:end]
        found.append(F.scaled_dot_product_attention(*piece, attn_mask=seen, scale=scale, enable_gqa=grouped))
    return torch.cat(found, dim=2)


# e.g. list(_pieces(10, 4, 4)) → [(0, 4, 0), (4, 8, 1), (8, 10, 5)]
# e.g. list(_pieces(10, 4, None)) → [(0, 4, 0), (4, 8, 0), (8, 10, 0)]
def _pieces(length: int, size: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Where the pieces of an example begin and end, and the first token that one of theirs sees."""
    for begin in range(0, length, size):
        yield begin, min(begin + size, length), 0 if window is None else max(0, begin - window + 1)


def _in_tiles(query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float) -> Tensor:
    # As torch's own attention does, in full fine-tuning: norms leave queries in float32, and values are in bfloat16.
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast("cpu", enabled=False):
        found = [
            _Tile.apply(query[:, :, begin:end], key[:, :, first:end], value[:, :, first:end], scale, window)
            for begin, end, first in _pieces(query.shape[2], TILE, window)
        ]
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)
