"""A step's forward and backward passes in one of several processes, and the sums over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from xlift.tuning.sharding import can_begin_again, is_sharded, pass_begins, walk_on
from xlift.tuning.trouble import within_memory

BUCKET = 2**24
"""Entries of gradients that are summed at once, about."""


def sum_of_passes(
    model: Any, passes: Sequence[Callable[[], Tensor]], most: int, idle: Callable[[], Tensor], device: str
) -> Tensor:
    """The sum of what a step's forward and backward passes come to in this process, which are at most `most` in each.

    Weights that are shared out are put together by all processes or none: `idle`, a pass worth nothing, stands in for
    those that one does not have. Raises MemoryError in all processes where memory ended in one of them.
    """
    work = [*passes, *[idle] * (most - len(passes) if is_sharded(model) else 0)]
    # Summed on the device and read once at the end: each reading would wait for the device.
    total = torch.zeros((), device=device)
    if PartialState().num_processes == 1 or not can_begin_again(model):
        for one in work:
            total += one()
        return total
    ended = 0.0
    for number, one in enumerate(work):
        pass_begins(model)
        made = within_memory(one)
        if made is None:
            walk_on(model, idle, len(work) - number)
            ended = 1.0
            break
        total += made
    if float(reduce(torch.tensor(ended, device=device), reduction="sum")):
        raise MemoryError("memory ended in one of the processes")
    return total


def sum_over_workers(loss: Tensor, trainable: Sequence[Tensor]) -> Tensor:
    """The loss over all workers; the gradients of `trainable` become those over all, too."""
    for bucket in _buckets(trainable):
        # A worker without a micro-batch in this step has no gradient, and still takes part in the sum.
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in bucket]
        together = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(together)
        for one, part in zip(bucket, together.split([one.numel() for one in bucket]), strict=True):
            one.grad = part.view_as(one)
    return reduce(loss, reduction="sum")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype in groups that are sent as one: adapters are hundreds of small ones."""
    bucket, size = list[Tensor](), 0
    for one in tensors:
        if bucket and (one.dtype != bucket[0].dtype or size + one.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(one)
        size += one.numel()
    if bucket:
        yield bucket
