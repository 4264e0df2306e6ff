"""Training beside TRL's SFTTrainer on a CPU: tokens a second, memory, and the share of what the core could compute.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--method full] [--data LIMA.jsonl --max-length 512] [--growth]

All train the same model on the same token ids, the same examples in each step, each in a process of its own, in turn: a
step of xlift, then the same step of TRL. Other work on the machine so slows all alike, and changes seconds of the
processor little; those decide. TRL runs padded and flattened (its `padding_free`), without its gradient checkpointing,
which is slower; with `--keep-memory` it keeps memory as xlift does in full fine-tuning. Operations are those of the
matrix products with weights, a frozen weight 4 a token and a trained one 6, the output layer for response tokens only;
attention is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from xlift.data.instructions import load_source
from xlift.hub import locate
from xlift.memory import kept_memory, peak_memory, reset_peak_memory
from xlift.models import Placement, load_model, load_tokenizer, place
from xlift.study.data import Source
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.attention import attention, starts_mask
from xlift.tuning.encoding import encode_data
from xlift.tuning.loss import Scores, linear_losses
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.templates import ChatFormat, Encoded, chat_format
from xlift.tuning.train import prepared_model, train_step

TOLD = "told:"
PEERS = {"TRL flattened": {"padding_free": True}, "TRL padded": {"padding_free": False}}
Batches = Sequence[Sequence[Encoded]]


class Took(NamedTuple):
    """What one step took, in seconds by the clock and of the processor, and its loss."""

    wall: float
    processor: float
    loss: float


class Clock:
    """Seconds since the clock was last read."""

    def __init__(self) -> None:
        self.read()

    def read(self) -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        since = wall - getattr(self, "wall", wall), processor - getattr(self, "processor", processor)
        self.wall, self.processor = wall, processor
        return since


class Setting(NamedTuple):
    """What is trained, how, and on what."""

    config: RunConfig
    placement: Placement
    chat: ChatFormat
    batches: Batches


def setting(arguments: argparse.Namespace) -> Setting:
    adaptation = Adaptation(method=arguments.method)
    length = {"max_length": arguments.max_length}
    config = RunConfig(model=arguments.model, adaptation=adaptation, schedule="constant", **length)
    base = locate(config.model)
    chat = chat_format(load_tokenizer(base.path, base.revision), "gemma")
    examples = encode_data(config, chat, load_source(Source(path=arguments.data)), []).train
    wanted = examples[: arguments.batch * arguments.steps]
    batches = [wanted[i : i + arguments.batch] for i in range(0, len(wanted), arguments.batch)]
    return Setting(config, place("cpu", arguments.dtype), chat, batches)


def ours(one: Setting, stack: ExitStack) -> Callable[[int], float]:
    """Makes a step of xlift on batch number so-and-so, and returns its loss."""
    model = stack.enter_context(prepared_model(one.config, locate(one.config.model), one.placement))
    optimizer = make_optimizer(one.config, model)
    told = (one.config, one.chat, one.placement)
    count = len(one.batches)
    return lambda step: float(train_step(model, optimizer, one.batches[step], *told, step, count)["loss"])


def theirs(one: Setting, how: dict[str, Any], folder: str) -> Any:
    """TRL's trainer over the same batches in the same order, which makes a step when the parent asks for one."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    class InOrder(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    class Tell(TrainerCallback):
        turns = Turns()

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.turns.wait()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if "loss" in logs:
                self.turns.tell(float(logs["loss"]))

    rows = [
        {"input_ids": e.ids, "labels": [t if m else -100 for t, m in zip(e.ids, e.mask, strict=True)]}
        for batch in one.batches
        for e in batch
    ]
    config, own = one.config, one.config.adaptation
    lora = LoraConfig(
        r=own.rank, lora_alpha=int(own.alpha), lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    arguments = trl.SFTConfig(  # type: ignore[attr-defined]
        output_dir=folder,
        max_steps=len(one.batches),
        per_device_train_batch_size=len(one.batches[0]),
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.max_gradient_norm,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        dataloader_drop_last=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=one.placement.dtype == "bfloat16",
        use_cpu=True,
        **how,
    )
    base = locate(config.model)
    return InOrder(
        model=load_model(base.path, one.placement, base.revision, fp32=own.method == "full").train(),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=one.chat.tokenizer,
        peft_config=lora if own.method == "lora" else None,
        callbacks=[Tell()],
    )


class Turns:
    """Lets this process make a step when the parent asks for one, and tells it what each took.

    What is done between two steps, as reading the next batch, counts to the later one; waiting does not.
    """

    def __init__(self) -> None:
        self.clock, self.before = Clock(), (0.0, 0.0)

    def wait(self) -> None:
        self.before = self.clock.read()
        sys.stdin.readline()
        self.clock.read()

    def tell(self, loss: float) -> None:
        wall, processor = self.clock.read()
        print(TOLD, json.dumps(Took(self.before[0] + wall, self.before[1] + processor, loss)), flush=True)


def alone(one: Setting, name: str, kept: bool) -> None:
    """Makes a step whenever the parent asks for one; at the end tells the peak of memory, the model's loading left
    out."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        # With all weights as `xlift train` does.
        if kept or (name == "xlift" and one.config.adaptation.method == "full"):
            stack.enter_context(kept_memory())
        if name == "xlift":
            step = ours(one, stack)
            reset_peak_memory(one.placement)
            turns = Turns()
            for number in range(len(one.batches)):
                turns.wait()
                turns.tell(step(number))
        else:
            trainer = theirs(one, PEERS[name], folder)
            reset_peak_memory(one.placement)
            trainer.train()
    print(TOLD, peak_memory(one.placement), flush=True)


class Trainer:
    """A process that trains by itself and makes a step when it is asked for one."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--alone", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.took: list[Took] = []

    def told(self) -> Any:
        """The next thing that it tells; whatever else it prints is passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(TOLD):
                return json.loads(line.removeprefix(TOLD))
        raise SystemExit(f"a trainer ended with exit code {self.process.wait()}")

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.took.append(Took(*self.told()))


def in_turn(names: Sequence[str], steps: int) -> list[tuple[list[Took], float]]:
    """What the steps of several trainers took, made in turn, and the peak of each one's memory in bytes."""
    trainers = [Trainer(name) for name in names]
    for _ in range(steps):
        for trainer in trainers:
            trainer.step()
    return [(trainer.took, float(trainer.told())) for trainer in trainers]


def ceiling(dtype: torch.dtype, size: int) -> float:
    """Operations of a large matrix product in one second of the processor, the best of three."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    rates = []
    for _ in range(4):
        began = time.process_time()
        left @ right
        rates.append(2 * size**3 / max(time.process_time() - began, 1e-9))
    return max(rates[1:])


def operations(one: Setting) -> float:
    """Operations of the matrix products with weights over all batches."""
    tokens = sum(len(example) for batch in one.batches for example in batch)
    learned = sum(sum(example.mask[1:]) for batch in one.batches for example in batch)
    with ExitStack() as stack:
        model = stack.enter_context(prepared_model(one.config, locate(one.config.model), one.placement))
        head = model.get_output_embeddings()
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
        each = sum(layer.weight.numel() * (6 if layer.weight.requires_grad else 4) for layer in layers)
        last = head.weight.numel() * (6 if head.weight.requires_grad else 4)
    return float(tokens * each + learned * last)


def row(name: str, took: Sequence[Took], one: Setting, best: float, peak: float) -> dict[str, Any]:
    """One line of the table; the first steps, which warm up, do not count: at the end of the first, AdamW's moments
    take memory that the second has to find elsewhere."""
    warm = min(2, len(took) - 1)
    tokens = [sum(map(len, batch)) for batch in one.batches][warm:]
    kept = took[warm:]
    share = operations(one) * sum(tokens) / sum(sum(map(len, batch)) for batch in one.batches)
    processor = sum(step.processor for step in kept)
    return {
        "": name,
        "tokens/s": sum(tokens) / sum(step.wall for step in kept),
        "tokens/CPU s": sum(tokens) / processor,
        "of ceiling %": 100 * share / processor / best,
        "peak MB": peak / 1e6,
        "loss": statistics.mean(step.loss for step in kept),
    }


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of the processor, the better of two behind a first one."""
    took = []
    for _ in range(3):
        clock = Clock()
        work()
        took.append(clock.read()[1])
    return min(took[1:])


def loss_seconds(vocabulary: int, dtype: torch.dtype, rows: int = 256, width: int = 640) -> float:
    """Of the loss of one response token and its gradient."""
    layer, hidden = torch.randn(vocabulary, width).to(dtype), torch.randn(rows, width).to(dtype).requires_grad_()
    told = torch.randint(vocabulary, (rows,)), torch.zeros(rows, dtype=torch.long)
    return seconds_of(lambda: linear_losses(hidden, layer, *told, 1, Scores()).sum().backward()) / rows


def attention_seconds(length: int, dtype: torch.dtype, tokens: int = 4096) -> float:
    """Of one layer's attention (4 heads of 256, one of keys) for a token of a packed row of examples this long."""
    query, key, value = (torch.randn(1, heads, tokens, 256).to(dtype).requires_grad_() for heads in (4, 1, 1))
    mask = starts_mask(torch.arange(0, tokens + 1, length, dtype=torch.int32), length)

    def work() -> None:
        found, _ = attention(None, query, key, value, mask, scaling=1 / 16)
        found.sum().backward()

    return seconds_of(work) / tokens


def growth(one: Setting, smoke: bool) -> None:
    """How the parts that grow with vocabulary and length grow, in microseconds of the processor a token."""
    dtype = one.placement.torch_dtype
    for size in [512] if smoke else [32768, 65536, 131072, 262144]:
        print(f"vocabulary {size}: {1e6 * loss_seconds(size, dtype):.0f} µs a response token")
    for length in [64] if smoke else [128, 512, 1024, 4096]:
        tokens = 128 if smoke else 4096
        print(f"examples of {length} tokens: {1e6 * attention_seconds(length, dtype, tokens):.1f} µs a token and layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=8, help="examples in a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--smoke", action="store_true", help="a few small steps, to see that all of it runs")
    parser.add_argument("--growth", action="store_true", help="how cost grows with vocabulary and length, alone")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="all keep what they free, as xlift does where all weights are trained",
    )
    parser.add_argument("--alone", choices=["xlift", *PEERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.batch, arguments.steps = 2, 2
    one = setting(arguments)
    if arguments.alone:
        alone(one, arguments.alone, arguments.keep_memory)
        return
    if arguments.growth:
        growth(one, arguments.smoke)
        return
    size = 64 if arguments.smoke else 2048
    names = ["xlift", *arguments.peers]
    rates = [ceiling(one.placement.torch_dtype, size)]
    found = in_turn(names, len(one.batches))
    rates.append(ceiling(one.placement.torch_dtype, size))
    rows = [row(name, took, one, max(rates), peak) for name, (took, peak) in zip(names, found, strict=True)]
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "peft", "trl")}
    tokens = sum(len(example) for batch in one.batches for example in batch)
    print(
        f"{arguments.method}, {arguments.model}, {arguments.data}: {len(one.batches)} steps of {arguments.batch} "
        f"examples, {tokens} tokens; {one.placement.dtype}, {torch.get_num_threads()} threads on {platform.machine()}; "
        f"ceiling {max(rates) / 1e9:.0f} GFLOP/s of a core; {json.dumps(versions)}"
    )
    print(" | ".join(rows[0]))
    for values in rows:
        print(" | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values.values()))


if __name__ == "__main__":
    main()
