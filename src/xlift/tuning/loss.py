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
    def forward(ctx: Any, project: Project, targets: Tensor, chunk: int, hidden: Tensor, *weights: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grads = [torch.zeros_like(weight) for weight in weights]
        for start in range(0, len(targets), chunk):
            piece = hidden[start : start + chunk].detach().requires_grad_()
            with torch.enable_grad():
                logits = project(piece).float()
                loss = F.cross_entropy(logits, targets[start : start + chunk], reduction="sum")
                grads = torch.autograd.grad(loss, [piece, *weights])
            total += loss.detach()
            hidden_grad[start : start + chunk] = grads[0]
            for sum_, grad in zip(weight_grads, grads[1:], strict=True):
                sum_ += grad
        ctx.save_for_backward(hidden_grad, *weight_grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad,) = grad_outputs
        scaled = [saved * grad.to(saved.dtype) for saved in ctx.saved_tensors]
        return (None, None, None, *scaled)


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
    return cast(Tensor, _ChunkedLoss.apply(project, targets, chunk, hidden, *weights))


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
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
    hidden = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    learned = batch["labels"][:, 1:] != -100
    project, weights = projection(model)
    return summed_loss(project, hidden[:, :-1][learned], batch["labels"][:, 1:][learned], weights, chunk)
