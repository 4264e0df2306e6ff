"""The training loss: over response tokens only, without ever holding the logits of a whole batch.

With a vocabulary of 262 k entries the logits of 8,192 tokens take 8.6 GB in float32. Here the hidden states of the
response tokens go through the output layer in chunks, and each chunk's gradient is taken at once, so that one chunk of
logits is all that is ever held and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Project = Callable[[Tensor], Tensor]

LOSS_CHUNK = 512
"""Positions whose logits are held at once."""


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, project: Project, targets: Tensor, rows: Tensor, count: int, chunk: int, hidden: Tensor,
        *weights: Tensor,
    ) -> Tensor:  # fmt: skip
        totals = torch.zeros(count, dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grads = [torch.zeros_like(weight) for weight in weights]
        for start in range(0, len(targets), chunk):
            piece = hidden[start : start + chunk].detach().requires_grad_()
            with torch.enable_grad():
                logits = project(piece).float()
                losses = F.cross_entropy(logits, targets[start : start + chunk], reduction="none")
                grads = torch.autograd.grad(losses.sum(), [piece, *weights])
            totals.index_add_(0, rows[start : start + chunk], losses.detach())
            hidden_grad[start : start + chunk] = grads[0]
            for sum_, grad in zip(weight_grads, grads[1:], strict=True):
                sum_ += grad
        ctx.save_for_backward(hidden_grad, rows, *weight_grads)
        return totals

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad,) = grad_outputs
        hidden_grad, rows, *weight_grads = ctx.saved_tensors
        each = grad.to(hidden_grad.dtype) if len(grad) == 1 else grad.to(hidden_grad.dtype)[rows][:, None]
        return (None,) * 5 + (hidden_grad * each, *(saved * grad.to(saved.dtype) for saved in weight_grads))


def summed_loss(
    project: Project, hidden: Tensor, targets: Tensor, weights: list[Tensor], chunk: int = LOSS_CHUNK
) -> Tensor:
    """Sum of the cross-entropies of `targets` given `hidden`, as a float32 scalar.

    `hidden`: (n, d) states that predict `targets`: (n,). `project` maps states to logits (n, vocabulary); `weights`
    are its trainable parameters. Gradients flow to `hidden` and to `weights`.
    """
    if not torch.is_grad_enabled():
        pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        losses = [F.cross_entropy(project(h).float(), t, reduction="sum") for h, t in pieces]
        return torch.stack(losses).sum() if losses else hidden.new_zeros((), dtype=torch.float32)
    rows = torch.zeros_like(targets)
    return cast(Tensor, _ChunkedLoss.apply(project, targets, rows, 1, chunk, hidden, *weights))[0]


def projection(model: Any) -> tuple[Project, list[Tensor]]:
    """How a causal language model turns hidden states into logits, and that layer's trainable parameters.

    Covers the output layer and the rescaling that some families apply behind it (Gemma's soft caps, Cohere's and
    Granite's scale).
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)

    def project(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        logits = logits * scale if scale is not None else logits
        logits = logits / divisor if divisor is not None else logits
        return cast(Tensor, torch.tanh(logits / cap) * cap if cap is not None else logits)

    return project, [parameter for parameter in head.parameters() if parameter.requires_grad]


def decoder_of(model: Any) -> Any:
    """The part of a causal language model that ends with hidden states, adapters included."""
    decoder = model.get_decoder()
    # Some families take themselves for their decoder.
    return decoder if decoder.get_output_embeddings() is None else decoder.model


def response_loss(model: Any, batch: dict[str, Tensor], chunk: int = LOSS_CHUNK) -> Tensor:
    """Summed cross-entropy of the response tokens in a batch (see packing.py for its fields).

    Divide by the number of response tokens of the whole accumulated batch to get the mean that is trained on.
    """
    hidden, learned = _states(model, batch)
    project, weights = projection(model)
    return summed_loss(project, hidden[:, :-1][learned], batch["labels"][:, 1:][learned], weights, chunk)


def row_losses(model: Any, batch: dict[str, Tensor], chunk: int = LOSS_CHUNK) -> Tensor:
    """The same for each row of a batch, (rows,), where each has trainable weights of its own.

    Raises ValueError where the output layer is trained: its gradient is the sum over all rows.
    """
    hidden, learned = _states(model, batch)
    project, weights = projection(model)
    if weights:
        raise ValueError("the rows share a trained output layer")
    targets, rows = batch["labels"][:, 1:][learned], learned.nonzero()[:, 0]
    losses = _ChunkedLoss.apply(project, targets, rows, len(learned), chunk, hidden[:, :-1][learned])
    return cast(Tensor, losses)


def _states(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (rows, tokens, d), and which of their next tokens are learned (rows, tokens - 1)."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
    hidden: Tensor = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    return hidden, batch["labels"][:, 1:] != -100
