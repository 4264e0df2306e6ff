"""What training and generation must do on every device, measured: how far off they are, and how far they may be.

test_gpu.py holds them; benchmarks/gpu.py measures them on a machine that has no pytest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from xlift.generation.engine import Reply, decode
from xlift.hub import Located
from xlift.models import KeptBase, Placement, load_model, load_tokenizer
from xlift.study.runs import Adaptation, RunConfig
from xlift.study.served import Decoding
from xlift.tuning.attention import by_lengths
from xlift.tuning.encoding import Data
from xlift.tuning.loss import response_loss
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.packing import pack
from xlift.tuning.templates import Encoded, chat_format
from xlift.tuning.together import Passes, member_of, step_in_turn, step_together
from xlift.tuning.train import Ahead, Watching, prepared_model, train_step
from xlift.workspace import RunFolder

Measure = Callable[[Located, str], tuple[float, float]]


def some_examples() -> list[Encoded]:
    draw = random.Random(0)
    lengths = [5, 9, 17, 30]
    return [Encoded([draw.randrange(4, 250) for _ in range(n)], [i > n // 3 for i in range(n)]) for n in lengths]


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().cpu().float(), wanted.detach().cpu().float()
    return float((found - wanted).norm() / wanted.norm())


def losses(base: Located, device: str, dtype: str, groups: list[list[Encoded]]) -> Tensor:
    """The summed loss of each group, each in one packed row."""
    model = load_model(base.path, Placement(device, dtype, ""))
    batches = [{key: value.to(device) for key, value in pack(group).items()} for group in groups]
    with torch.no_grad():
        return torch.stack([response_loss(model, batch) for batch in batches])


def packed_as_apart(base: Located, device: str) -> tuple[float, float]:
    packed = losses(base, device, "float32", [some_examples()]).sum()
    return relative(packed, losses(base, device, "float32", [[one] for one in some_examples()]).sum()), 1e-5


def device_as_cpu(base: Located, device: str) -> tuple[float, float]:
    examples = [[one] for one in some_examples()]
    return relative(losses(base, device, "float32", examples), losses(base, "cpu", "float32", examples)), 1e-5


def half_as_single(base: Located, device: str) -> tuple[float, float]:
    examples = [some_examples()]
    return relative(losses(base, device, "bfloat16", examples), losses(base, "cpu", "float32", examples)), 2e-2


def trained(base: Located, device: str, method: str, micro: int = 64) -> Tensor:
    """All trained weights after 20 steps, in one row."""
    config = RunConfig(
        adaptation=Adaptation.model_validate({"method": method, "rank": 4}),
        learning_rate=1e-3,
        batch_tokens=64,
        micro_batch_tokens=micro,
    )
    placement = Placement(device, "float32", "")
    chat = chat_format(load_tokenizer(base.path), "plain")
    with prepared_model(config, base, placement) as model:
        optimizer = make_optimizer(config, model)
        for step in range(20):
            train_step(model, optimizer, some_examples(), config, chat, placement, step, 20)
        return torch.cat([one.detach().cpu().flatten() for one in model.parameters() if one.requires_grad])


def adapters_as_on_cpu(base: Located, device: str) -> tuple[float, float]:
    return relative(trained(base, device, "lora"), trained(base, "cpu", "lora")), 1e-3


def weights_as_on_cpu(base: Located, device: str) -> tuple[float, float]:
    return relative(trained(base, device, "full"), trained(base, "cpu", "full")), 1e-3


def accumulated_as_at_once(base: Located, device: str) -> tuple[float, float]:
    return relative(trained(base, device, "lora", 16), trained(base, device, "lora", 64)), 1e-3


def replies_alone_as_in_a_batch(base: Located, device: str) -> tuple[float, float]:
    """The share of greedy replies in float32 that change with the size of the batch."""
    model, chat = (
        load_model(base.path, Placement(device, "float32", "")),
        chat_format(load_tokenizer(base.path), "plain"),
    )
    prompts = [one.ids for one in some_examples()]

    def texts(batch_size: int) -> list[str]:
        said = [""] * len(prompts)

        def keep(index: int, reply: Reply) -> None:
            said[index] = reply.text

        decode(model, chat, prompts, list("abcd"), Decoding(max_new_tokens=12, batch_size=batch_size), keep)
        return said

    together, alone = texts(4), texts(1)
    return sum(one != other for one, other in zip(together, alone, strict=True)) / len(prompts), 0.0


def together_as_alone(base: Located, device: str) -> tuple[float, float]:
    """Losses in bf16 of the last of five steps of three runs that differ in learning rate, in one pass and in turn."""
    placement, chat = Placement(device, "bfloat16", ""), chat_format(load_tokenizer(base.path), "plain")
    losses = []
    for one_pass in (True, False):
        with KeptBase().lent(base, placement) as model, by_lengths(model):
            members = []
            for rate in (1e-3, 3e-3, 1e-2):
                config = RunConfig(
                    adaptation=Adaptation(rank=4), learning_rate=rate, batch_tokens=64, micro_batch_tokens=64
                )
                run = RunFolder(Path(str(rate)), str(rate), config, Path(str(rate)))
                ahead = Ahead(run, chat, Data(some_examples(), [], 0), [[0, 1, 2, 3]] * 5, 0, 5)
                members.append(member_of(model, ahead, placement, Watching(), {}))
            ready = [one for one in members if one]
            (group,) = Passes().of(ready, 3)
            for step in range(5):
                made = step_together(model, *group, step) if one_pass else step_in_turn(model, ready, step)
            losses.append(torch.tensor([one["loss"] for one in made.values() if isinstance(one, dict)]))
    return relative(*losses), 2e-2


PROPERTIES: dict[str, Measure] = {
    "a packed row has the loss of its examples apart": packed_as_apart,
    "the loss is that on a CPU": device_as_cpu,
    "the loss in bf16 is that in float32": half_as_single,
    "20 steps of adapters are those on a CPU": adapters_as_on_cpu,
    "20 steps of all weights are those on a CPU": weights_as_on_cpu,
    "accumulated gradients are those of one batch": accumulated_as_at_once,
    "runs in one pass have the losses of each alone": together_as_alone,
    "a greedy reply does not change with its batch": replies_alone_as_in_a_batch,
}
