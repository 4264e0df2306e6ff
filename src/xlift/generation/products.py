"""Products of a model's weights with rows of tokens, on a CPU in bfloat16: weights in the layout that its kernels want.

As they are loaded, weights are brought into that layout anew in every product, which for few rows takes longer than
the product: 41 instead of 21 ms for one row of a vocabulary of 262 k. A product of a single row is made with another
kernel than that of several, which adds in another order: it is made of two, so that how many rows share a product
decides no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from xlift.memory import free_memory
from xlift.models import Placement

LAYOUT_ROWS = 48
"""Rows that the layout is chosen for; products of any number of rows are made with it."""


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """While it lasts, the model's linear layers keep their weights a second time, in the layout of the kernels, from
    their first product on.

    Where memory has no room for that, or off the CPU or in another dtype, weights stay as they are.
    """
    layers = [layer for layer in model.modules() if _is_linear(layer) and _computes_in(layer) == torch.bfloat16]
    if model.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        layers = []
    weights = {id(layer.weight): layer.weight for layer in layers if layer.weight.dtype == torch.bfloat16}
    room = free_memory(Placement("cpu", "bfloat16", "")) / 2 > sum(2 * weight.numel() for weight in weights.values())
    # The output layer is not asked where the likeliest tokens are found without it.
    packed = cache(lambda key: _packed(weights[key], layers))
    for layer in layers:
        whole = room and id(layer.weight) in weights
        layer.forward = _product(layer, partial(packed, id(layer.weight)) if whole else None)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_linear(layer: Any) -> bool:
    return type(layer) is nn.Linear or _is_transposed(layer) or hasattr(layer, "compute_dtype")


def _computes_in(layer: Any) -> torch.dtype:
    """The dtype of a layer's products: its weights', or what they are brought into from 4 bits."""
    return cast(torch.dtype, getattr(layer, "compute_dtype", layer.weight.dtype))


def _is_transposed(layer: Any) -> bool:
    """GPT-2's linear layer, whose weight is (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    return type(layer) is Conv1D


def _packed(weight: Tensor, layers: list[Any]) -> Tensor:
    turned = any(layer.weight is weight and _is_transposed(layer) for layer in layers)
    dense = (weight.t() if turned else weight).detach().contiguous()
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(dense, LAYOUT_ROWS))


def _product(layer: Any, packed: Callable[[], Tensor] | None) -> Callable[[Tensor], Tensor]:
    plain = type(layer).forward

    def forward(states: Tensor) -> Tensor:
        rows = states.reshape(-1, states.shape[-1]).contiguous()
        if len(rows) == 0:
            return cast(Tensor, plain(layer, states))
        two = rows.repeat(2, 1) if len(rows) == 1 else rows
        if packed is None:
            made = plain(layer, two)
        else:
            made = torch.ops.mkldnn._linear_pointwise(two, packed(), layer.bias, "none", [], "")
        return cast(Tensor, made[: len(rows)].view(*states.shape[:-1], -1))

    return forward
