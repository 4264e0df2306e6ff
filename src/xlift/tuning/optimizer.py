"""The optimiser: AdamW over what is trained, the learning rate of each step, and the step itself."""

from __future__ import annotations

import math
from typing import Any

import torch

from xlift.errors import UserError
from xlift.study.runs import RunConfig
from xlift.tuning.quantized import adamw_8bit
from xlift.tuning.sharding import whole

DIVERGED = "lower training.learning_rate, add warmup_steps, or set dtype to float32"
"""What to do about a loss that is no number."""


# e.g. [round(learning_rate_at(RunConfig(warmup_steps=2), step, 5), 6) for step in (0, 1, 4)] → [5e-05, 0.0001, 1e-05]
# e.g. learning_rate_at(RunConfig(min_learning_rate_ratio=0.1), 0, 1) → 0.0001
def learning_rate_at(config: RunConfig, step: int, total: int) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`; the last has the lowest, a single one the highest."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    # From 0 at the first step after the warm-up to 1 at the last, so that the last has the lowest rate.
    done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
    share = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.min_learning_rate_ratio + (1 - config.min_learning_rate_ratio) * share)


def make_optimizer(config: RunConfig, model: Any) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        # Decay pulls to zero, and a norm's scale at zero would silence its layer.
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    how: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": 1e-8}
    if config.optimizer == "adamw8bit":
        return adamw_8bit(groups, how)
    return torch.optim.AdamW(groups, fused=True, **how)


def descend(optimizer: torch.optim.Optimizer, loss: float, config: RunConfig, step: int, total: int) -> dict[str, Any]:
    """The optimiser's own part of a step, once all gradients are there. Raises UserError where one is no number."""
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(whole(torch.nn.utils.clip_grad_norm_(trainable, config.max_gradient_norm)))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(f"step {step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}", DIVERGED)
    rate = learning_rate_at(config, step, total)
    for settings in optimizer.param_groups:
        settings["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"step": step + 1, "loss": loss, "learning_rate": rate, "grad_norm": norm}
