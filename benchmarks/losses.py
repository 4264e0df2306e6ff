"""Ways to the loss of tokens through an output layer, with the gradient of their states: ours, and kernels beside it.

gpu.py times them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlift.tuning.loss import Scores, linear_losses

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
"""To the summed loss of states (n, d) through a layer (vocabulary, d), given the targets (n,)."""


def by_pieces(states: Tensor, layer: Tensor, targets: Tensor) -> Tensor:
    return linear_losses(states, layer, targets, torch.zeros_like(targets), 1, Scores())[0]


def by_whole_logits(states: Tensor, layer: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((states @ layer.t()).float(), targets, reduction="sum")


def by_liger(states: Tensor, layer: Tensor, targets: Tensor) -> Any:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(states, layer, targets, reduction="sum")


def by_cut(states: Tensor, layer: Tensor, targets: Tensor) -> Any:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(states, layer, targets, reduction="sum")


WAYS: dict[str, tuple[Way, str]] = {
    "xlift": (by_pieces, "torch"),
    "whole logits": (by_whole_logits, "torch"),
    "Liger": (by_liger, "liger_kernel"),
    "cut cross-entropy": (by_cut, "cut_cross_entropy"),
}
"""By name, and the package that each wants."""


def gradient(way: Way, states: Tensor, layer: Tensor, targets: Tensor) -> Tensor:
    """That of the states."""
    states.requires_grad_().grad = None
    way(states, layer, targets).backward()
    assert states.grad is not None
    return states.grad
