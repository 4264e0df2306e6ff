"""What bitsandbytes keeps small: a frozen base in 4 bits beside adapters (QLoRA), a model that answers, AdamW's moments
in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
    _quantize(model, placement)
    # What PEFT asks a model by.
    model.is_loaded_in_4bit = True
    yield model.to(placement.device)


@contextmanager
def quantized_checkpoint(
    base: Located, checkpoint: Path | None, placement: Placement, weight: float = 1.0, kept: KeptBase | None = None
) -> Iterator[Any]:
    """The same of a model that is ready to answer: what tuning has added to the weights is in 4 bits with them."""
    require("quantize")
    if kept:
        kept.let_go()
    with loaded_checkpoint(base, checkpoint, replace(placement, device="cpu"), weight) as model:
        _quantize(model, placement)
        yield model.to(placement.device)  # type: ignore[arg-type]


def _quantize(model: Any, placement: Placement) -> None:
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        # An adapter that answers beside the weights stays as it is.
        if type(layer) is nn.Linear and layer is not head and "lora_" not in name:
            model.set_submodule(name, _in_4_bits(layer, placement))


def _in_4_bits(layer: nn.Linear, placement: Placement) -> nn.Module:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    how: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    shape = layer.in_features, layer.out_features, layer.bias is not None
    made = Linear4bit(*shape, compute_dtype=placement.torch_dtype, device="meta", **how)
    made.weight = Params4bit(layer.weight.detach(), requires_grad=False, module=made, **how)
    made.bias = layer.bias
    return made.to(placement.device)


def adamw_8bit(groups: list[dict[str, Any]], how: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW whose moments are in 8 bits, in blocks of 256 (Dettmers et al. 2022, arXiv 2110.02861)."""
    require("quantize")
    from bitsandbytes.optim.adamw import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, **how)
    return made
