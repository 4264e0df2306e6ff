"""LoRA adapters on a frozen base: which layers get one, and their layer in one step of autograd."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from xlift.errors import ModelError, nearest
from xlift.hub import quiet
from xlift.study.settings import RunConfig


def with_adapters(model: Any, config: RunConfig) -> Any:
    """A model with fresh LoRA adapters in float32, initialised by the run's seed; the rest is frozen.

    Raises ModelError for targets that the model does not have, or that PEFT cannot adapt or merge.
    """
    from peft import LoraConfig, get_peft_model

    settings = config.adaptation
    _check_targets(model, settings.targets)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            adapted: Any = get_peft_model(model, lora)
    except ValueError as error:
        raise ModelError(f"adaptation.targets {settings.targets!r} does not fit this model: {error}") from None
    found = adapted.peft_config["default"]
    if not isinstance(found.target_modules, str):
        # PEFT keeps the found targets in a set, whose order differs from process to process.
        found.target_modules = sorted(found.target_modules)
    _in_one_step(adapted)
    return adapted


def _check_targets(model: Any, targets: str | list[str]) -> None:
    """Raises ModelError for a target that is not there, or whose adapter would change two layers when it is merged."""
    modules = dict(model.named_modules())
    wanted = [] if isinstance(targets, str) else targets
    unknown = [name for name in wanted if not any(one == name or one.endswith(f".{name}") for one in modules)]
    if unknown:
        linear = {name.split(".")[-1] for name, one in modules.items() if isinstance(one, torch.nn.Linear)}
        problems = [f"adaptation.targets: the model has no layer '{name}'; {nearest(name, linear)}" for name in unknown]
        raise ModelError(problems, "name layers, or set adaptation.targets to all-linear")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", 0)
    shared = [name for name, one in modules.items() if (one is head or one is embeddings) and tied]
    # PEFT takes a string for a pattern of whole names, and leaves the output layer out of all-linear.
    patterns = [targets] if isinstance(targets, str) else [rf"(.*\.)?{re.escape(name)}" for name in wanted]
    for name in shared if targets != "all-linear" else []:
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            raise ModelError(
                f"adaptation.targets: '{name}' shares its weights ({', '.join(shared)}): merging would change both",
                f"leave '{name}' out, or take full fine-tuning",
            )


def _in_one_step(adapted: Any) -> None:
    """Lets the adapted layers that are plain linear ones compute with their adapter in one step of autograd."""
    from peft.tuners.lora import Linear

    for layer in adapted.modules():
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear and not layer.lora_variant:
            layer.__dict__["forward"] = _forward_of(layer)


def _forward_of(layer: Any) -> Callable[..., Tensor]:
    """The forward pass of one adapted layer; dropout, autocast and whatever else PEFT knows are left to PEFT's own."""
    plain, dropout = layer.forward, layer.lora_dropout["default"]
    base, down, up = layer.get_base_layer(), layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        unusual = arguments or named or layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]
        drops = layer.training and not isinstance(dropout, nn.Identity)
        if unusual or drops or x.dtype != base.weight.dtype:
            return cast(Tensor, plain(x, *arguments, **named))
        return adapted_product(x, base.weight, base.bias, down, up, layer.scaling["default"])

    return forward


def adapted_product(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W' + bias + scale · x A' B' with W frozen: x (…, in), W (out, in), A = `down` (rank, in), B = `up` (out, rank).

    Products are in x's dtype, summed in float32 inside each; gradients of A and B come in their own dtype, float32.
    Runs of several adapters in one batch: with the rows of each run side by side, `low` of `_Product` becomes one
    product for each run's slice of rows (torch.bmm where the slices are alike), likewise its gradient and those of A
    and B; all that has W in it stays one product over all rows.
    """
    return cast(Tensor, _Product.apply(x, weight, bias, down, up, scale))


class _Product(torch.autograd.Function):
    """See `adapted_product`. Of activations, x is all that is kept, in its own dtype, and rank numbers a token."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        narrow, wide = down.to(x.dtype), (up * scale).to(x.dtype)
        low = rows @ narrow.t()
        out = nn.functional.linear(rows, weight, bias)
        out.addmm_(low, wide.t())
        ctx.save_for_backward(rows, weight, narrow, wide, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        rows, weight, narrow, wide, low = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, weight.shape[0])
        grad_low = grad @ wide
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, narrow).view(ctx.shape)
        return (grad_x, None, None, _wide_product(grad_low, rows), _wide_product(grad, low) * ctx.scale, None)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left' right as float32, (n, a) and (n, b) to (a, b)."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left.t(), right, out_dtype=torch.float32)
    return (left.t() @ right).float()
