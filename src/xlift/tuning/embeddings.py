"""The gradient of embeddings whose weights are the output layer's too.

Autograd makes a gradient as large as the vocabulary for the few rows that were looked up, and adds it to the output
layer's: of 262 k entries 0.7 GB that are filled and read for each micro-batch. Here the rows alone are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def gradient_by_rows(model: Any) -> Iterator[None]:
    """Adds the gradient of looked-up rows to the shared weights' own, for as long as the context lasts; where
    embeddings have weights of their own, or frozen ones, nothing changes.

    Not for weights that several processes share out: those are others from step to step.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = isinstance(embeddings, nn.Embedding) and embeddings.weight is getattr(head, "weight", None)
    if not shared or not embeddings.weight.requires_grad:
        yield
        return
    weight: Tensor = embeddings.weight
    rows, sparse = weight.detach().requires_grad_(), embeddings.sparse

    def add(_: Tensor) -> None:
        found, rows.grad = rows.grad, None
        assert found is not None
        # The loss comes behind the look-up, so that its gradient is there before.
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.add_(found)

    rows.register_post_accumulate_grad_hook(add)
    # Seen before the parameter of that name, which stays what is saved and optimised.
    embeddings.__dict__["weight"], embeddings.sparse = rows, True
    try:
        yield
    finally:
        del embeddings.__dict__["weight"]
        embeddings.sparse = sparse
