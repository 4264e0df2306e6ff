"""LoRA adapters on a frozen base: which layers get one, and their layer in one step of autograd."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from xlift.errors import ModelError, nearest
from xlift.hub import quiet
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.fp8 import back, forth, ways_of


def with_adapters(model: Any, config: RunConfig) -> Any:
    """A model with fresh LoRA adapters in float32, initialised by the run's seed; the rest is frozen.

    Raises ModelError for targets that the model does not have, or that PEFT cannot adapt or merge.
    """
    from peft import LoraConfig, get_peft_model

    settings = config.adaptation
    _check_targets(model, settings)
    kept_out = _other_layers(model, settings.layers)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        exclude_modules=kept_out,
        modules_to_save=settings.modules_to_save or None,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
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
    _in_float32(adapted)
    return adapted


def choose_layers(model: Any, layers: str | list[int] | None) -> None:
    """Lets only these of a model's layers be trained, and nothing outside of them; all of it where none are named.

    Raises ModelError for layers that it does not have.
    """
    if layers is None:
        return
    other, (name, _) = _other_layers(model, layers), _layer_list(model)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith(f"{name}.") and not (other and re.fullmatch(other, key)))


def _layer_list(model: Any) -> tuple[str, int]:
    """The name of the list of a model's layers and how many there are, as in ("model.layers", 18)."""
    count = model.config.get_text_config().num_hidden_layers
    names = [name for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one) == count]
    if not names:
        raise ModelError("adaptation.layers: this model's layers are not known", "leave adaptation.layers out")
    return names[0], count


def _other_layers(model: Any, layers: str | list[int] | None) -> str | None:
    """A pattern of the names in all layers but these: of 4 layers, `last 1` keeps out model.layers.0 to 2."""
    if layers is None:
        return None
    name, count = _layer_list(model)
    wanted = set(layers) if isinstance(layers, list) else _counted(layers, count)
    if not wanted or not wanted <= set(range(count)):
        raise ModelError(
            f"adaptation.layers: {layers!r} of a model that has {count} layers", f"their numbers are 0 to {count - 1}"
        )
    others = [str(number) for number in range(count) if number not in wanted]
    return rf"{re.escape(name)}\.({'|'.join(others)})\..*" if others else None


# e.g. [sorted(_counted(layers, 4)) for layers in ("first 1", "last 2")] → [[0], [2, 3]]
def _counted(layers: str, count: int) -> set[int]:
    """Of 4 layers, `first 1` is 0, `last 1` is 3, `all-but-last 1` are 0 to 2."""
    kind, _, number = layers.partition(" ")
    k = int(number)
    return set({"first": range(k), "last": range(count - k, count), "all-but-last": range(count - k)}[kind])


def _in_float32(adapted: Any) -> None:
    """Modules that are trained whole learn in float32, as adapters do: steps of bfloat16 are too coarse to learn by."""
    from peft.utils import ModulesToSaveWrapper

    for wrapper in adapted.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            module = wrapper.modules_to_save["default"].float()
            dtype = next(wrapper.original_module.parameters()).dtype
            module.register_forward_pre_hook(lambda _, given: tuple(_cast(one, torch.float32) for one in given))
            module.register_forward_hook(lambda _, given, made, dtype=dtype: _cast(made, dtype))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_targets(model: Any, settings: Adaptation) -> None:
    """Raises ModelError for a target that is not there, or whose adapter would change two layers when it is merged."""
    _check_names(model, settings.targets, "targets")
    _check_names(model, settings.modules_to_save, "modules_to_save")


def _check_names(model: Any, targets: str | list[str], setting: str) -> None:
    modules = dict(model.named_modules())
    wanted = [] if isinstance(targets, str) else targets
    unknown = [name for name in wanted if not any(one == name or one.endswith(f".{name}") for one in modules)]
    if unknown:
        kinds = nn.Linear if setting == "targets" else nn.Module
        whole = {name: one for name, one in modules.items() if isinstance(one, kinds) and one._parameters}
        names = {name.split(".")[-1] for name in whole}
        where = f"adaptation.{setting}: the model has no layer"
        hint = "name layers" + (", or set adaptation.targets to all-linear" if setting == "targets" else "")
        raise ModelError([f"{where} '{name}'; {nearest(name, names)}" for name in unknown], hint)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", 0)
    shared = [name for name, one in modules.items() if (one is head or one is embeddings) and tied]
    # PEFT takes a string for a pattern of whole names, and leaves the output layer out of all-linear.
    patterns = [targets] if isinstance(targets, str) else [rf"(.*\.)?{re.escape(name)}" for name in wanted]
    for name in shared if targets != "all-linear" else []:
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            raise ModelError(
                f"adaptation.{setting}: '{name}' shares its weights ({', '.join(shared)}): merging would change both",
                f"leave '{name}' out, or take full fine-tuning",
            )


def _in_one_step(adapted: Any) -> None:
    """Lets the adapted layers that are plain linear ones, or such in 4 bits, compute with their adapter in one step of
    autograd."""
    from peft.tuners.lora import LoraLayer

    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and _is_linear(layer.get_base_layer()) and not layer.lora_variant:
            layer.__dict__["forward"] = _forward_of(layer)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or type(layer).__name__ == "Linear4bit"


def _forward_of(layer: Any) -> Callable[..., Tensor]:
    """The forward pass of one adapted layer; dropout, autocast and whatever else PEFT knows are left to PEFT's own."""
    plain, dropout = layer.forward, layer.lora_dropout["default"]
    base, down, up = layer.get_base_layer(), layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        unusual = arguments or named or layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]
        drops = layer.training and not isinstance(dropout, nn.Identity)
        if unusual or drops or x.dtype != getattr(base, "compute_dtype", base.weight.dtype):
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
        out = _linear(rows, weight, bias)
        out.addmm_(low, wide.t())
        ctx.save_for_backward(rows, narrow, wide, low)
        ctx.weight, ctx.scale, ctx.shape = weight, scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        rows, narrow, wide, low = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, wide.shape[0])
        grad_low = grad @ wide
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _linear_back(grad, ctx.weight).addmm_(grad_low, narrow).view(ctx.shape)
        return (grad_x, None, None, wide_product(grad_low, rows), wide_product(grad, low) * ctx.scale, None)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows W' + bias with a frozen weight as it is kept."""
    if not ways_of(weight):
        return nn.functional.linear(rows, _dense(weight), bias)
    made = forth(rows, weight)
    return made if bias is None else made.add_(bias)


def _linear_back(grad: Tensor, weight: Tensor) -> Tensor:
    """grad W."""
    ways = ways_of(weight)
    return back(grad, weight, ways) if ways else grad @ _dense(weight)


def _dense(weight: Tensor) -> Tensor:
    """A frozen weight as it is computed with: one in 4 bits is put together for each use."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left' right as float32, (n, a) and (n, b) to (a, b), of each row where there are several."""
    product = torch.bmm if left.dim() == 3 else torch.mm
    if left.is_cuda and left.dtype != torch.float32:
        return product(left.mT, right, out_dtype=torch.float32)
    return product(left.mT, right).float()
