"""The training loss: over response tokens only, without ever holding the logits of a whole batch.

With a vocabulary of 262 k entries the logits of 8,192 tokens take 8.6 GB in float32. Here the hidden states of the
response tokens go through the output layer piece by piece, and the gradient is taken at once, so that nothing is
computed twice. Through a plain linear layer a piece is a part of the vocabulary that the processor's cache holds; the
softmax is then put together as it is in flash attention. Any other layer is called with some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlift.tuning.attention import attends_by_lengths

Project = Callable[[Tensor], Tensor]

LOSS_CHUNK = 512
"""Positions whose logits are held at once."""
PIECES = {"cpu": (256, 4096), "cuda": (4096, 16384)}
"""Positions and vocabulary entries of a piece: 4 MiB in float32 stay in a core's cache; a GPU wants large products."""


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
        return (None,) * 5 + _scaled(ctx.saved_tensors, grad_outputs[0])


def _scaled(saved: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of hidden states and weights, by those of the rows' losses."""
    hidden_grad, rows, *weight_grads = saved
    each = grad if len(grad) == 1 else grad[rows][:, None]
    # In place: a gradient of the output layer is as large as the layer, and nobody else has it.
    return (hidden_grad * each.to(hidden_grad.dtype), *(one.mul_(grad.to(one.dtype)) for one in weight_grads))


# e.g. [round(float(one), 2) for one in Scores(cap=30.0).of(torch.tensor([3.0, 300.0]))[0]] → [2.99, 30.0]
# e.g. Scores(factor=2.0).of(torch.tensor([1.5]))[0].tolist() → [3.0]
class Scores(NamedTuple):
    """How the products of states and output layer become logits: times `factor`, then softly capped at `cap`."""

    factor: float = 1.0
    cap: float | None = None

    def of(self, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, in place of the products, and what each changes by for a change of its product where that varies."""
        logits = products.mul_(self.factor) if self.factor != 1 else products
        if self.cap is None:
            return logits, None
        share = logits.div_(self.cap).tanh_()
        slope = 1 - share.square()
        return share.mul_(self.cap), slope


class _LinearLoss(torch.autograd.Function):
    """Loss through a linear layer, in pieces of `rows` tokens and `columns` entries of the vocabulary.

    Each piece is exponentiated against the highest logit so far, as flash attention does, and what was summed before
    is scaled down when a higher one comes. So probabilities need no second pass over the vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, of_row: Tensor, count: int, scores: Scores,
        rows: int, columns: int,
    ) -> Tensor:  # fmt: skip
        totals = torch.zeros(count, dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grads = [torch.empty_like(weight)] if ctx.needs_input_grad[1] else []
        if weight_grads and not len(targets):
            weight_grads[0].zero_()
        layer = weight.to(hidden.dtype)
        # Fewer passes over a gradient as large as the layer.
        rows *= 2 if weight_grads else 1
        for start in range(0, len(targets), rows):
            piece = slice(start, start + rows)
            told = hidden[piece], layer, targets[piece], scores, columns
            sought = hidden_grad[piece] if ctx.needs_input_grad[0] else None, *weight_grads
            losses = _piece(*told, start == 0, *sought)
            totals.index_add_(0, of_row[piece], losses)
        ctx.save_for_backward(hidden_grad, of_row, *weight_grads)
        return totals

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        hidden_grad, weight_grad = (*_scaled(ctx.saved_tensors, grad_outputs[0]), None)[:2]
        return hidden_grad, weight_grad, *([None] * 6)


def _piece(
    hidden: Tensor,
    layer: Tensor,
    targets: Tensor,
    scores: Scores,
    columns: int,
    first: bool,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None = None,
) -> Tensor:
    """The losses (n,) of some tokens (n, d). Where they are wanted, gradients are written to `hidden_grad` and added to
    `weight_grad`; those of the `first` piece are written there too."""
    highest = torch.full((len(hidden), 1), -torch.inf, device=hidden.device)
    total = torch.zeros_like(highest)
    pull = torch.zeros(hidden.shape, device=hidden.device)
    kept: list[tuple[Tensor, Tensor]] = []
    for part in layer.split(columns):
        logits, slope = scores.of((hidden @ part.t()).float())
        before, highest = highest, torch.maximum(highest, logits.amax(1, keepdim=True))
        shrink = (before - highest).exp_()
        powers = logits.sub_(highest).exp_()
        total.mul_(shrink).add_(powers.sum(1, keepdim=True))
        if hidden_grad is None and weight_grad is None:
            continue
        powers = (powers if slope is None else powers.mul_(slope)).to(hidden.dtype)
        if hidden_grad is not None:
            pull.mul_(shrink).add_(powers @ part)
        if weight_grad is not None:
            kept.append((powers, highest))
    own = layer[targets]
    logit, slope = scores.of((hidden.float() * own.float()).sum(1, keepdim=True))
    push = scores.factor if slope is None else scores.factor * slope
    if hidden_grad is not None:
        hidden_grad.copy_(pull.mul_(scores.factor / total).sub_(push * own.float()))
    if weight_grad is not None:
        for grad, (powers, reference) in zip(weight_grad.split(columns), kept, strict=True):
            share = scores.factor * (reference - highest).exp_() / total
            found = powers.t() @ (hidden * share).to(hidden.dtype)
            grad.copy_(found) if first else grad.add_(found)
        weight_grad.index_add_(0, targets, (hidden * -push).to(weight_grad.dtype))
    return (highest + total.log() - logit)[:, 0]


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


def scores_of(model: Any) -> tuple[Scores, float | None]:
    """How a model's logits come from the products of its output layer: factor and cap, and what they are divided by."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    scale = getattr(config, "logit_scale", None)
    return Scores(1.0 if scale is None else scale, cap), getattr(config, "logits_scaling", None)


def projection(model: Any) -> tuple[Project, list[Tensor]]:
    """How a causal language model turns hidden states into logits, and that layer's trainable parameters.

    Covers the output layer and the rescaling that some families apply behind it (Gemma's soft caps, Cohere's and
    Granite's scale).
    """
    head = model.get_output_embeddings()
    (factor, cap), divisor = scores_of(model)

    def project(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        logits = logits * factor if factor != 1 else logits
        logits = logits / divisor if divisor is not None else logits
        return cast(Tensor, torch.tanh(logits / cap) * cap if cap is not None else logits)

    return project, [parameter for parameter in head.parameters() if parameter.requires_grad]


def decoder_of(model: Any) -> Any:
    """The part of a causal language model that ends with hidden states, adapters included."""
    decoder = model.get_decoder()
    # Some families take themselves for their decoder.
    return decoder if decoder.get_output_embeddings() is None else decoder.model


def decoder_inputs(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the decoder is given of a batch: in place of a mask, packed rows tell where their examples begin to a model
    that attends by lengths."""
    mask = "starts" if "starts" in batch and attends_by_lengths(model) else "attention_mask"
    found = {
        "input_ids": batch["input_ids"],
        "position_ids": batch.get("position_ids"),
        "attention_mask": batch.get(mask),
    }
    return {name: value for name, value in found.items() if value is not None}


def response_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed cross-entropy of the response tokens in a batch (see packing.py for its fields).

    Divide by the number of response tokens of the whole accumulated batch to get the mean that is trained on.
    """
    hidden, learned = _states(model, batch)
    rows = torch.zeros(hidden.shape[:1], dtype=torch.long, device=hidden.device)
    return _losses(model, hidden, learned, batch, rows, 1)[0]


def row_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same for each row of a batch, (rows,), where each has trainable weights of its own.

    Raises ValueError where the output layer is trained: its gradient is the sum over all rows.
    """
    hidden, learned = _states(model, batch)
    if projection(model)[1]:
        raise ValueError("the rows share a trained output layer")
    return _losses(model, hidden, learned, batch, torch.arange(len(hidden), device=hidden.device), len(hidden))


def rows_in_turn(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean of each row's response tokens, (rows,), one row after another: the output layer may be trained."""
    hidden, learned = _states(model, batch)
    alone = torch.zeros(1, dtype=torch.long, device=hidden.device)
    rows = zip(hidden.split(1), learned.split(1), batch["labels"].split(1), strict=True)
    losses = [_losses(model, states, told, {"labels": labels}, alone, 1) for states, told, labels in rows]
    return torch.cat(losses) / learned.sum(dim=1)


def _states(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (rows, tokens, d), and which of their next tokens are learned (rows, tokens - 1)."""
    hidden: Tensor = decoder_of(model)(**decoder_inputs(model, batch), use_cache=False).last_hidden_state
    # Rows that attention takes for one are rows again.
    return hidden.view(*batch["labels"].shape, -1), batch["labels"][:, 1:] != -100


def _losses(model: Any, hidden: Tensor, learned: Tensor, batch: dict[str, Tensor], rows: Tensor, count: int) -> Tensor:
    """Summed losses (count,); `rows` says which of them each row of the batch adds to."""
    states, targets = hidden[:, :-1][learned], batch["labels"][:, 1:][learned]
    of_row, head = rows[:, None].expand_as(learned)[learned], model.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None:
        (factor, cap), divisor = scores_of(model)
        return linear_losses(states, head.weight, targets, of_row, count, Scores(factor / (divisor or 1.0), cap))
    project, weights = projection(model)
    if count == 1:
        return summed_loss(project, states, targets, weights)[None]
    return cast(Tensor, _ChunkedLoss.apply(project, targets, of_row, count, LOSS_CHUNK, states, *weights))


def linear_losses(
    states: Tensor, weight: Tensor, targets: Tensor, of_row: Tensor, count: int, scores: Scores
) -> Tensor:
    """Summed losses (count,) through a linear layer: states (n, d), weight (vocabulary, d), targets (n,), and which
    sum each adds to, (n,).

    Sums are in float32, products in the dtype of the states, or in autocast's.
    """
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    weight = weight if torch.is_grad_enabled() else weight.detach()
    with torch.autocast(device, enabled=False):
        told = (targets, of_row, count, scores, *PIECES.get(device, PIECES["cpu"]))
        return cast(Tensor, _LinearLoss.apply(states, weight, *told))
