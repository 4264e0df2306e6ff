"""Full fine-tuning by several processes: each holds its share of weights, gradients and AdamW's moments (FSDP2).

Layer by layer the weights are put together, used, and let go; where they lie in main memory, by one process, too. What
is trained does not depend on the number of processes, and neither do checkpoints: they are written whole, so that any
number goes on from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

Result = TypeVar("Result")
_ROOT = "_xlift_sharded"


@dataclass
class _Collectives:
    """What the processes have done together in the pass under way, and how much of it the next one leaves out."""

    made: int = 0
    left_out: int = 0


@dataclass
class _Counted:
    """A collective of FSDP2's that is counted, or left out, so that what it comes to is zeros."""

    make: Callable[..., dist.Work | None]
    seen: _Collectives

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, **how: Any) -> dist.Work | None:
        if self.seen.left_out:
            self.seen.left_out -= 1
            output_tensor.zero_()
            return None
        work = self.make(output_tensor, input_tensor, **how)
        self.seen.made += 1
        return work


class _Through(nn.Module):
    """A model whose weights are whole for as long as something is computed with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.collectives = _Collectives()

    def forward(self, work: Callable[[Any], Any]) -> Any:
        return work(self.model)


def shard(model: Any, device: str, offload: bool = False) -> None:
    """Share a model's parameters out among all processes: those of each layer apart, the rest together.

    With `offload` each share lies in main memory, with its gradient and moments, and is updated there.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

    policy = CPUOffloadPolicy(pin_memory=device == "cuda") if offload else OffloadPolicy()
    how: dict[str, Any] = {"mesh": _mesh(device, offload), "offload_policy": policy}
    for layer in layers_of(model):
        fully_shard(layer, **how)
    root = _Through(model)
    # The classes that torch wants are not for the public; it asks for what they do.
    counted: Any = _Counted
    # Else the weights of the rest would stay whole, and stale, after what has no backward pass.
    fully_shard(root, reshard_after_forward=True, **how)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Each process's loss is its part of the sum, and gloo knows sums alone.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
            if hasattr(module, "reset_iter_state"):
                module.set_custom_all_gather(counted(dist.all_gather_single, root.collectives))
                module.set_custom_reduce_scatter(counted(dist.reduce_scatter_single, root.collectives))
            # Put together once outside of inference mode, whose tensors could not be trained.
            module.unshard()
            module.reshard()
    # Not as a submodule of its own: a model is no part of itself.
    model.__dict__[_ROOT] = root


def _mesh(device: str, offload: bool) -> DeviceMesh:
    """All processes in a row; with `offload` they can also sum what lies in main memory, which is gloo's to do."""
    if not offload:
        return init_device_mesh(device, (dist.get_world_size(),))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return DeviceMesh.from_group(dist.new_group(backend=backend), device)


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of a decoder: the longest list of modules in it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def is_sharded(model: Any) -> bool:
    return _ROOT in getattr(model, "__dict__", {})


def can_begin_again(model: Any) -> bool:
    """Whether a pass that broke off can be made again; torch 2.13 knows how with sharded weights."""
    return not is_sharded(model) or hasattr(model.__dict__[_ROOT], "reset_iter_state")


def begin_again(model: Any) -> None:
    """Makes a model ready for the next pass where one broke off; its gradients are gone, as is memory kept for them."""
    # Before weights are shared out again: what has been put together keeps a gradient of its own.
    model.zero_grad(set_to_none=True)
    if is_sharded(model):
        model.__dict__[_ROOT].reset_iter_state()
        model.zero_grad(set_to_none=True)
    # Nothing where there is no GPU.
    torch.cuda.empty_cache()


def pass_begins(model: Any) -> None:
    """From here on `walk_on` counts."""
    if is_sharded(model):
        model.__dict__[_ROOT].collectives.made = 0


def walk_on(model: Any, idle: Callable[[], Any], passes: int) -> None:
    """Goes through a pass that broke off in this process, and those after it, `passes` in all, by small ones, `idle`.

    The others wait at each layer for all processes. What the broken pass has done with them, the first small one
    leaves out. Gradients are worth nothing then.
    """
    if not is_sharded(model):
        return
    begin_again(model)
    seen = model.__dict__[_ROOT].collectives
    seen.left_out = seen.made
    for _ in range(passes):
        idle()


def through(model: Any, work: Callable[[Any], Result]) -> Result:
    """What `work` makes of a model; of a sharded one all processes must ask alike, as often, in the same order."""
    return cast(Result, model.__dict__[_ROOT](work)) if is_sharded(model) else work(model)


def whole(value: Tensor) -> Tensor:
    """A tensor put together from its shares, on the CPU; any other as it is. All processes must ask."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as a parameter is shared out."""
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    mesh = parameter.device_mesh
    # Shared out over the mesh's devices, and from there to where the parameter lies.
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements).to(parameter.device)
