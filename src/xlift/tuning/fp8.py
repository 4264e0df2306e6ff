"""Products with a model's weights in floats of 8 bits (e4m3), a scale for each row: `training.fp8`.

What is multiplied is rounded row by row: tokens, the gradients of what they come to, a layer's outputs, and for the way
back its inputs (Micikevicius et al. 2022, arXiv 2209.05433). Results are in bfloat16. Adapters, the gradients of
weights, norms, attention and the output layer stay as they are without.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlift.errors import ConfigError, ModelError
from xlift.models import Placement

EIGHT = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(EIGHT).max
MULTIPLE = 16
"""What a GPU wants the inputs and outputs of a layer to be a multiple of."""
CAPABILITY = (8, 9)
"""The first GPUs that multiply such floats: NVIDIA's Ada and Hopper."""


class Rounded(NamedTuple):
    """Rows (n, k) in floats of 8 bits, and what each of them is multiplied with, (n, 1) in float32."""

    values: Tensor
    scales: Tensor


# e.g. rounded(torch.tensor([[1.0, -2.0], [0.0, 0.0]])).values.float().tolist() → [[224.0, -448.0], [0.0, 0.0]]
def rounded(rows: Tensor) -> Rounded:
    """Rows rounded by the largest entry of each."""
    # A row of zeros is divided by something.
    scales = rows.abs().amax(1, keepdim=True).float().clamp_(min=1e-30) / E4M3_MAX
    # A GPU wants the entries of a row side by side, those of a transposed weight as well.
    return Rounded((rows / scales).to(EIGHT).contiguous(), scales)


def product(left: Rounded, right: Rounded, fast: bool = False) -> Tensor:
    """left · right' in bfloat16, (n, k) and (m, k) to (n, m); `fast` sums less exactly, where a GPU knows how."""
    row = F.ScalingType.RowWise  # type: ignore[attr-defined]
    told = (left.values, right.values.t(), left.scales, row, right.scales.t(), row)
    return F.scaled_mm(*told, output_dtype=torch.bfloat16, use_fast_accum=fast)  # type: ignore[attr-defined]


class Linear8(nn.Linear):
    """A linear layer whose products are made in floats of 8 bits."""

    compute_dtype = torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        # In full fine-tuning autocast says what a layer comes to; where it is off, what it was given does.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        made: Tensor = _Product.apply(x, self.weight)
        return made.to(dtype) if self.bias is None else made.to(dtype) + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """x W' for x (…, in); the gradient of W, where it has one, is a product in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        ctx.save_for_backward(rows if weight.requires_grad else rows[:0], weight)
        ctx.shape, ctx.dtype, ctx.ways = x.shape, x.dtype, ways_of(weight)
        return forth(rows, weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        x_grad = back(grad, weight, ctx.ways).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return x_grad, (grad.t() @ rows).to(weight.dtype) if ctx.needs_input_grad[1] else None


Ways = tuple[Rounded, Rounded]
"""A weight by its outputs and, transposed, by its inputs."""


def ways_of(weight: Tensor) -> Ways | None:
    """What a frozen weight was rounded to, once; None for one as it was loaded."""
    return getattr(weight, "ways", None)


def forth(rows: Tensor, weight: Tensor) -> Tensor:
    """rows W', (n, in) to (n, out)."""
    ways = ways_of(weight)
    return product(rounded(rows), ways[0] if ways else rounded(weight), fast=True)


def back(grad: Tensor, weight: Tensor, ways: Ways | None) -> Tensor:
    """grad W, (n, out) to (n, in)."""
    return product(rounded(grad), ways[1] if ways else rounded(weight.t()))


def in_eight_bits(model: Any, frozen: bool) -> None:
    """Lets a model's plain linear layers, adapted ones among them, multiply in floats of 8 bits; the output layer and
    those of other sizes than multiples of 16 stay as they are.

    Where all of them are `frozen`, as beside adapters, weights are rounded here, once, and kept as that alone.
    Raises ModelError where no layer is such.
    """
    head, found = model.get_output_embeddings(), 0
    for name, layer in model.named_modules():
        fits = type(layer) is nn.Linear and layer is not head and not any(n % MULTIPLE for n in layer.weight.shape)
        if fits and not (frozen and layer.weight.requires_grad) and "lora_" not in name:
            layer.__class__, found = Linear8, found + 1
            if frozen:
                _round_once(layer.weight)
    if not found:
        problem = f"training.fp8: the model has no linear layer whose sizes are multiples of {MULTIPLE}"
        raise ModelError(problem, "leave training.fp8 out")


def _round_once(weight: Any) -> None:
    weight.ways = rounded(weight.detach()), rounded(weight.detach().t())
    weight.data = weight.ways[0].values


def refuse_device(placement: Placement) -> None:
    """Raises ConfigError where products in floats of 8 bits cannot be made, or nobody has asked for bfloat16."""
    problems, hint = [], "leave training.fp8 out"
    if placement.dtype != "bfloat16":
        problems.append(f"training.fp8 computes in bfloat16, and dtype is {placement.dtype}")
        hint = "set dtype to bfloat16, or leave training.fp8 out"
    if not hasattr(F, "scaled_mm"):
        problems.append(f"training.fp8: torch {torch.__version__} has no products of scaled floats")
        hint = "pip install -U torch, or leave training.fp8 out"
    if placement.device == "cuda" and torch.cuda.get_device_capability() < CAPABILITY:
        problems.append(f"training.fp8: {torch.cuda.get_device_name()} multiplies no floats of 8 bits")
    if placement.device not in {"cpu", "cuda"}:
        problems.append(f"training.fp8: no floats of 8 bits on {placement.device}")
    if problems:
        raise ConfigError(problems, hint)
