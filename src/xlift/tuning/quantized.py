"""What bitsandbytes keeps small: a frozen base in 4 bits beside adapters (QLoRA), a model that answers in 4 bits or 8,
AdamW's moments in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from xlift.extras import require
from xlift.hub import Located
from xlift.models import KeptBase, Placement, load_model, loaded_checkpoint


@contextmanager
def quantized_base(base: Located, placement: Placement, kept: KeptBase) -> Iterator[Any]:
    """A frozen base whose linear layers but the last are in 4 bits (NF4, scales quantised as well: Dettmers et al.
    2023, arXiv 2305.14314); it computes in the dtype of the placement.

    It is read on the CPU and given to the device layer by layer, so that it need not fit there as it was.
    """
    require("quantize")
    kept.let_go()
    model: Any = load_model(base.path, replace(placement, device="cpu"), base.revision).requires_grad_(False)
    _quantize(model, placement, 4)
    # What PEFT asks a model by.
    model.is_loaded_in_4bit = True
    yield model.to(placement.device)


@contextmanager
def loaded_in(
    bits: int,
    base: Located,
    checkpoint: Path | None,
    placement: Placement,
    weight: float = 1.0,
    kept: KeptBase | None = None,
) -> Iterator[Any]:
    """A model that is ready to answer: with 0 `bits` as `loaded_checkpoint` has it, with 4 or 8 with its linear layers
    but the last in so many, and what tuning has added to their weights with them."""
    if not bits:
        with loaded_checkpoint(base, checkpoint, placement, weight, kept) as model:
            yield model
        return
    require("quantize")
    if kept:
        kept.let_go()
    with loaded_checkpoint(base, checkpoint, replace(placement, device="cpu"), weight) as model:
        _quantize(model, placement, bits)
        yield model.to(placement.device)  # type: ignore[arg-type]


def _quantize(model: Any, placement: Placement, bits: int) -> None:
    head, made = model.get_output_embeddings(), {4: _in_4_bits, 8: In8Bits}[bits]
    for name, layer in list(model.named_modules()):
        # An adapter that answers beside the weights stays as it is.
        if type(layer) is nn.Linear and layer is not head and "lora_" not in name:
            model.set_submodule(name, made(layer, placement))


def _in_4_bits(layer: nn.Linear, placement: Placement) -> nn.Module:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    how: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    shape = layer.in_features, layer.out_features, layer.bias is not None
    made = Linear4bit(*shape, compute_dtype=placement.torch_dtype, device="meta", **how)
    made.weight = Params4bit(layer.weight.detach(), requires_grad=False, module=made, **how)
    made.bias = layer.bias
    return made.to(placement.device)


class In8Bits(nn.Module):
    """A linear layer whose weights are whole numbers of 8 bits, with a scale for each of its outputs.

    States stay as they are, so that what a row comes to does not depend on the rows beside it, as it does where
    outliers of a batch are kept apart (LLM.int8: Dettmers et al. 2022, arXiv 2208.07339).
    """

    weight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, layer: nn.Linear, placement: Placement) -> None:
        from bitsandbytes.functional import int8_vectorwise_quant

        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        numbers, largest, _ = int8_vectorwise_quant(layer.weight.detach().to(placement.device))
        self.register_buffer("weight", numbers)
        self.register_buffer("scales", largest / 127)
        self.bias = layer.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made = (F.linear(states, self.weight.to(states.dtype)) * self.scales).to(states.dtype)
        return made if self.bias is None else made + self.bias


def adamw_8bit(groups: list[dict[str, Any]], how: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW whose moments are in 8 bits, in blocks of 256 (Dettmers et al. 2022, arXiv 2110.02861)."""
    require("quantize")
    from bitsandbytes.optim.adamw import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, **how)
    return made
