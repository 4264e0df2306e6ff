"""Adapters of several checkpoints of one base in one batch: each row is multiplied with its own.

What the base does is done once for all rows. At each adapted layer the tokens of one adapter are brought together, and
all adapters make one batched product; a token of another adapter is in none of its sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlift.tuning.proof import probe_ids

STEPS_TRIED = 3
"""Steps made each way before the faster is chosen: the first warms up."""
LEAST_TOKENS = 4
"""Tokens of an adapter that are multiplied at least: kernels for fewer add in another order."""


class AdapterPart(NamedTuple):
    """An adapter at one layer, in the dtype of the model: `down` (rank, inputs) and, times its scale, `up` (outputs,
    rank).

    With DoRA, `more` (outputs,) is how much more there is of the layer's own product: magnitude / length - 1.
    """

    down: Tensor
    up: Tensor
    more: Tensor | None = None


Adapter = dict[str, AdapterPart]
"""The parts of one adapter by the names of the layers that they add to."""


class _Groups(NamedTuple):
    """Whose the tokens of a forward pass are, and where they go so that those of an adapter lie together, `width`
    places for each."""

    owners: Tensor
    places: Tensor
    width: int


def part_of(layer: Any, weight: float) -> AdapterPart | None:
    """What a PEFT layer adds, times `weight`; None where it does more than add a product to a linear layer."""
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or layer.lora_bias["default"] or set(layer.lora_variant) - set(layer.use_dora):
        return None
    some: Any = layer
    down, up = (side["default"].weight.detach().float() for side in (some.lora_A, some.lora_B))
    up, own = up * some.scaling["default"], some.get_base_layer().weight.detach()
    if not some.use_dora["default"]:
        return AdapterPart(down.to(own.dtype), (up * weight).to(own.dtype))
    length = ((own.t() if some.fan_in_fan_out else own) + up @ down).norm(dim=1)
    factor = some.lora_magnitude_vector["default"].weight.detach().float() / length
    made = (down, factor[:, None] * up * weight, (factor - 1) * weight)
    return AdapterPart(*(one.to(own.dtype) for one in made))


@contextmanager
def adapted(model: Any, adapters: Sequence[Adapter], owners: Callable[[], Tensor | None]) -> Iterator[None]:
    """While it lasts, each token of a forward pass is answered with its adapter.

    `owners()` tells the number of every token's adapter, (tokens,), where it is another than the first.
    """
    names = dict.fromkeys(name for one in adapters for name in one)
    told: list[tuple[Tensor, _Groups]] = []

    def groups() -> _Groups | None:
        found = owners() if len(adapters) > 1 else None
        if found is None:
            return None
        if not told or told[0][0] is not found:
            told[:] = [(found, _grouped(found, len(adapters)))]
        return told[0][1]

    with ExitStack() as stack:
        for name in names:
            hook = _adds(_stacked([one.get(name) for one in adapters]), groups)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def _stacked(parts: Sequence[AdapterPart | None]) -> AdapterPart:
    """The parts of all adapters at one layer, (adapters, …); zeros for one that has none there."""
    some = next(part for part in parts if part)
    none = AdapterPart(torch.zeros_like(some.down), torch.zeros_like(some.up))
    own = [part or none for part in parts]
    more = None
    if any(part.more is not None for part in own):
        more = torch.stack([part.up.new_zeros(len(part.up)) if part.more is None else part.more for part in own])
    return AdapterPart(torch.stack([part.down for part in own]), torch.stack([part.up for part in own]), more)


def _grouped(owners: Tensor, adapters: int) -> _Groups:
    counts = owners.bincount(minlength=adapters)
    width = max(LEAST_TOKENS, int(counts.max()))
    order = owners.argsort(stable=True)
    places = torch.empty_like(owners)
    before = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
    places[order] = owners[order] * width + before
    return _Groups(owners, places, width)


def _adds(part: AdapterPart, groups: Callable[[], _Groups | None]) -> Callable[..., Tensor]:
    count, (down, up) = len(part.down), (part.down.mT, part.up.mT)

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        states = inputs[0].reshape(-1, inputs[0].shape[-1])
        found = groups()
        if part.more is not None:
            own = output if module.bias is None else output - module.bias
            more = part.more[0] if found is None else part.more[found.owners].view(output.shape)
            output = torch.addcmul(output, own, more)
        if found is None:
            few = max(0, LEAST_TOKENS - len(states))
            rows = torch.cat([states, states.new_zeros(few, states.shape[1])]) if few else states
            added = torch.mm(torch.mm(rows, down[0]), up[0])[: len(states)]
            return output + added.view(output.shape)
        given = states.new_zeros(count * found.width, states.shape[1]).index_copy_(0, found.places, states)
        made = torch.bmm(torch.bmm(given.view(count, found.width, -1), down), up)
        return output + made.view(count * found.width, -1)[found.places].view(output.shape)

    return hook


@torch.inference_mode()
def pays(model: Any, adapters: Sequence[Adapter], batch_of: Callable[..., Any], alone: int, together: int) -> bool:
    """Whether a token comes faster in steps of `together` rows of all adapters than of `alone` rows of one: tried."""
    return seconds_a_row(model, adapters, batch_of, together) < seconds_a_row(model, adapters[:1], batch_of, alone)


@torch.inference_mode()
def seconds_a_row(
    model: Any,
    adapters: Sequence[Adapter],
    batch_of: Callable[..., Any],
    rows: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that a token takes in the fastest of a few steps with so many rows of these adapters."""
    batch, seconds = batch_of([], len(adapters)), []
    with adapted(model, adapters, lambda: batch.kinds):
        batch.join([probe_ids(model, 8)[0].tolist()] * rows, [row % len(adapters) for row in range(rows)])
        batch.add(batch.logits().argmax(dim=1))
        for _ in range(STEPS_TRIED):
            began = clock()
            ids = batch.logits().argmax(dim=1)
            ids.tolist()  # waits for a GPU
            seconds.append(clock() - began)
            batch.add(ids)
    return min(seconds) / rows
