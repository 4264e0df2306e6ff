"""The training loop: from instruction data and a base model to checkpoints.

Everything random is derived from (seed, step, micro-batch), and the data plan is a pure function of the settings. So a
run that was killed at any moment continues from its last checkpoint to the same weights as an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from xlift.disk import JsonlWriter, encode_record, write_atomic
from xlift.errors import ConfigError, ModelError, UserError
from xlift.hub import Located
from xlift.memory import kept_memory, peak_memory, reset_peak_memory
from xlift.models import KeptBase, Placement, load_model, load_tokenizer, unwrapped
from xlift.progress import progress, say
from xlift.records import Conversation, Logged, fingerprint, read_records
from xlift.study.runs import DEFAULT_STEPS, RunConfig
from xlift.tuning.adapters import choose_layers, with_adapters
from xlift.tuning.attention import by_lengths
from xlift.tuning.checkpoints import Write, checkpoint_writer, in_background, keep_state, restore, resume_step
from xlift.tuning.embeddings import gradient_by_rows
from xlift.tuning.encoding import Data, Tokenised, data_lines, unreadable_examples
from xlift.tuning.fp8 import in_eight_bits, refuse_device
from xlift.tuning.limits import limits_of
from xlift.tuning.loss import response_loss
from xlift.tuning.norms import fast_norms
from xlift.tuning.optimizer import DIVERGED, descend, make_optimizer
from xlift.tuning.packing import pack, pad, plan_steps, split_micro_batches
from xlift.tuning.passes import sum_of_passes, sum_over_workers
from xlift.tuning.preference import Negatives, preference_loss, preferred_pairs
from xlift.tuning.proof import prove_training, refuse
from xlift.tuning.quantized import quantized_base
from xlift.tuning.sharding import begin_again, can_begin_again, is_sharded, shard, through
from xlift.tuning.templates import ChatFormat, Encoded, chat_format
from xlift.tuning.tracking import tracked
from xlift.tuning.trouble import made_to_fit, spike_watch
from xlift.workers import agreed, first_worker, one_after_another, several_workers
from xlift.workspace import RunFolder


def plan(config: RunConfig, lengths: Sequence[int]) -> list[Sequence[int]]:
    """The examples of every optimiser step of a run. Raises ConfigError where the warm-up is longer."""
    steps = config.steps if config.steps or config.epochs else DEFAULT_STEPS
    planned = plan_steps(lengths, config.seed, config.batch_tokens, steps, config.epochs)
    if config.warmup_steps >= len(planned):
        problem = f"warmup_steps ({config.warmup_steps}) reach beyond the run, which has {len(planned)} steps"
        raise ConfigError(problem, "lower training.warmup_steps, or raise steps or epochs")
    return planned


@contextmanager
def prepared_model(
    config: RunConfig, base: Located, placement: Placement, kept: KeptBase | None = None
) -> Iterator[Any]:
    """The base model made trainable, for as long as the context lasts: all weights in float32, or LoRA adapters in
    float32 on the frozen base that `kept` lends."""
    kept = kept or KeptBase()
    if placement.dtype == "float16":
        raise ModelError("training in float16 overflows", "set dtype to bfloat16 or float32")
    if config.fp8:
        refuse_device(placement)
        kept.let_go()
        # A base whose weights are rounded is lent to nobody else.
        kept = KeptBase()
    if config.adaptation.method == "full":
        # Room for the optimiser: this run does not share the model that LoRA runs keep.
        kept.let_go()
        where = replace(placement, device="cpu") if config.offloads else placement
        model: Any = load_model(base.path, where, base.revision, fp32=True)
        choose_layers(model, config.adaptation.layers)
        alone = not several_workers() and not config.offloads
        with by_lengths(model), fast_norms(model), gradient_by_rows(model) if alone else nullcontext():
            yield _recomputing(model, config).train()
        return
    lent = quantized_base(base, placement, kept) if config.adaptation.quantized else kept.lent(base, placement)
    with lent as frozen, by_lengths(frozen):
        model = with_adapters(frozen, config)
        # After PEFT, which copies the layers that are trained whole.
        with fast_norms(model):
            yield _recomputing(model, config).train()
        # The next run that borrows the base must find it as it was lent.
        bare = unwrapped(model)
        if config.gradient_checkpointing:
            # transformers 6 has the new names only, 5.17 the old ones only.
            (getattr(bare, "activation_checkpointing_disable", None) or bare.gradient_checkpointing_disable)()
            bare.disable_input_require_grads()


def _recomputing(model: Any, config: RunConfig) -> Any:
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def make_batch(examples: Sequence[Encoded], config: RunConfig, pad_id: int, device: str) -> dict[str, Tensor]:
    batch = pack(examples) if config.packing else pad(examples, pad_id)
    return _to(batch, device)


def _to(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in batch.items()}


Watch = Callable[[Any, ChatFormat], dict[str, Any]]
"""What is measured of the model as it is during training, for train.jsonl."""


@dataclass(frozen=True)
class Watching:
    """What to measure while a run trains: `watch` at every checkpoint, and every so many steps; where curves go."""

    watch: Watch | None = None
    every: int | None = None
    trackers: Sequence[str] = ()
    project: str = "xlift"

    def due(self, step: int) -> bool:
        """Whether this step, counted from 1, is one to measure at, whether or not it makes a checkpoint."""
        return self.every is not None and step % self.every == 0


def train(
    run: RunFolder,
    base: Located,
    placement: Placement,
    conversations: Sequence[Conversation],
    heldout: Sequence[Conversation],
    watching: Watching = Watching(),
    until: int | None = None,
    kept: KeptBase | None = None,
    skip_unfit: bool = False,
    tokenised: Tokenised | None = None,
) -> None:
    """Train one run to its end, or to step `until`, continuing from its last checkpoint; the base comes from `kept`.

    Writes checkpoints and train.jsonl. Raises ConfigError where the run had begun with another base model, and
    UserError, naming the step, where loss or gradient is no number.
    """
    # First of all, since it gives every worker its own GPU.
    PartialState(cpu=placement.device == "cpu")
    forgot = reset_peak_memory(placement)
    started = time.monotonic()
    with own_randomness(placement.device):
        ahead = read_ahead(run, base, placement, conversations, heldout, until, skip_unfit, tokenised)
        if ahead.first < ahead.last:
            full = run.config.adaptation.method == "full"
            holds = kept_memory() if full and placement.device == "cpu" else nullcontext()
            with holds, prepared_model(run.config, base, placement, kept) as model:
                _train_steps(begun(ahead, model, placement, watching), ahead.first, ahead.last)
        if ahead.last == len(ahead.steps):
            finished(run, ahead.data, started, peak_memory(placement) if forgot else None, ahead.last - ahead.first)


@dataclass(frozen=True)
class Ahead:
    """What a run will do: its data, the examples of every step, and the steps `first` to `last` that are to be made."""

    run: RunFolder
    chat: ChatFormat
    data: Data
    steps: list[Sequence[int]]
    first: int
    last: int


def read_ahead(
    run: RunFolder,
    base: Located,
    placement: Placement,
    conversations: Sequence[Conversation],
    heldout: Sequence[Conversation],
    until: int | None,
    skip_unfit: bool,
    tokenised: Tokenised | None = None,
) -> Ahead:
    """Tokenise a run's data, unless that is done, tell what is left out, and plan its steps."""
    config = run.config
    chat = chat_format(load_tokenizer(base.path, base.revision), *config.spoken)
    told = (config, chat, conversations, heldout, skip_unfit)
    data = one_after_another(lambda: (tokenised or Tokenised()).data(*told), placement.device)
    for line in data_lines(data, config.max_length) if first_worker() else ():
        say(f"{run.label}: {line}")
    steps = plan(config, data.lengths)
    run.update_manifest(planned_steps=len(steps))
    return Ahead(
        run, chat, data, steps, agreed(lambda: resume_step(run), placement.device), min(until or len(steps), len(steps))
    )


def begun(ahead: Ahead, model: Any, placement: Placement, watching: Watching) -> Loop:
    """A run whose model is proved able to learn its data, with its optimiser, as its last checkpoint has left both."""
    run, data = ahead.run, ahead.data
    prove_training(model, run.config.packing)
    refuse(unreadable_examples(limits_of(model), "conversations", data.train, data.heldout))
    lay_out(model, run.config, placement)
    optimizer = make_optimizer(run.config, model)
    if ahead.first:
        restore(run, ahead.first, model, optimizer)
    return Loop(run, ahead.chat, placement, data, ahead.steps, model, optimizer, watching)


def lay_out(model: Any, config: RunConfig, placement: Placement) -> None:
    """Rounds a proved model's weights to 8 bits for `fp8`, and shares those of full fine-tuning out among processes, or
    between this one and main memory.

    Raises ConfigError for an optimiser that does not know weights that are shared out.
    """
    if config.fp8:
        # Only now: to the proof, what is rounded so coarsely would look like tokens that see each other.
        in_eight_bits(model, frozen=config.adaptation.method == "lora")
    # Processes would not have equally many pairs, which they must have who put weights together.
    several = several_workers() and config.adaptation.method == "full" and not config.preference
    if several and config.optimizer != "adamw":
        problem = f"optimizer: {config.optimizer} does not know weights that processes share out (FSDP2)"
        raise ConfigError(problem, "set training.optimizer to adamw, or train in one process")
    if several or config.offloads:
        shard(model, placement.device, config.offloads)


@dataclass(frozen=True)
class Loop:
    """All that the steps of one run share."""

    run: RunFolder
    chat: ChatFormat
    placement: Placement
    data: Data
    steps: list[Sequence[int]]
    model: Any
    optimizer: torch.optim.Optimizer
    watching: Watching


def _train_steps(loop: Loop, first: int, last: int) -> None:
    """Optimiser steps `first` to `last` (from 0, `last` not included)."""
    with (
        recorded(loop, first, last) as record_of,
        progress(f"train {loop.run.label}", len(loop.steps), first) if first_worker() else nullcontext() as bar,
    ):
        config = loop.run.config
        for step in range(first, last):
            made, config = _fitting_step(loop, step, config)
            record = record_of(step, made)
            if bar:
                bar.advance(1, _note(record))


def _fitting_step(loop: Loop, step: int, config: RunConfig) -> tuple[dict[str, Any], RunConfig]:
    """A step's record, and the settings whose micro-batches have fitted into memory."""
    examples = [loop.data.train[i] for i in loop.steps[step]]

    def make(settings: RunConfig) -> dict[str, Any]:
        told = (loop.model, loop.optimizer, examples, settings, loop.chat, loop.placement, step, len(loop.steps))
        return train_step(*told, loop.data.wrong)

    if not can_begin_again(loop.model):
        return make(config), config
    told = (max(map(len, examples)), step, loop.run.label)
    return made_to_fit(make, config, partial(begin_again, loop.model), told)


@contextmanager
def recorded(loop: Loop, first: int, last: int) -> Iterator[Callable[[int, dict[str, Any]], dict[str, Any]]]:
    """A function that is given each step (from 0) and its record, and does what is due: measure, check, log, save."""
    run, workers = loop.run, PartialState()
    if workers.is_main_process:
        # Steps after the last checkpoint are made again: else the log would tell them twice.
        _forget_after(run.train_log, first)
    with (
        JsonlWriter(run.train_log if workers.is_main_process else os.devnull) as log,
        tracked(run, loop.watching.trackers, loop.watching.project) as track,
        _written_beside(workers) as hand_over,
    ):
        spiked = spike_watch(run.label)

        def record_of(step: int, record: dict[str, Any]) -> dict[str, Any]:
            if spiked(step, record["loss"]):
                record |= {"spike": True}
            saves = (step + 1) % run.config.checkpoint_every == 0 or step + 1 == last
            if saves or loop.watching.due(step + 1):
                record |= _measured(loop)
            if saves:
                _check_whole(loop, step, record)
            log.write(record)
            if saves and (workers.is_main_process or is_sharded(loop.model)):
                told = (run, step + 1, loop.model, loop.optimizer, loop.chat, loop.placement)
                hand_over(partial(checkpoint_writer, *told))
            track(record)
            return record

        if first == 0:
            # The base itself, so that every curve begins where tuning found it.
            log.write({"step": 0} | _measured(loop))
        yield record_of


@contextmanager
def _written_beside(workers: PartialState) -> Iterator[Callable[[Callable[[], Write]], None]]:
    """`in_background`, at whose end all workers wait for what the first one writes."""
    with in_background() as hand_over:
        yield hand_over
    workers.wait_for_everyone()


def _check_whole(loop: Loop, step: int, record: dict[str, Any]) -> None:
    """Raises UserError where this step has broken the weights, which its own loss and gradient do not show."""
    loss = record["heldout_loss"] if loop.data.heldout else _loss_of(loop, [loop.data.shortest])
    if loss is None:
        raise UserError(f"step {step + 1}: the loss after it is no number", DIVERGED)


def _measured(loop: Loop) -> dict[str, Any]:
    """The loss on held-out English replies, and what is watched on validation prompts."""
    config, found = loop.run.config, dict[str, Any]()
    if loop.data.heldout:
        found["heldout_loss"] = _loss_of(loop, loop.data.heldout)
    if loop.watching.watch:
        loop.model.eval()
        with torch.no_grad(), _autocast(config, loop.placement):
            watch = loop.watching.watch
            found["validation"] = through(loop.model, lambda model: watch(model, loop.chat))
        loop.model.train()
    return found


def _loss_of(loop: Loop, examples: Sequence[Encoded]) -> float | None:
    return heldout_loss(loop.model, examples, loop.run.config, loop.chat, loop.placement)


# e.g. _note({"loss": 2.5, "tokens_per_second": 90.0}) → "loss 2.500  90 tokens/s"
def _note(record: dict[str, Any]) -> str:
    margins = record.get("validation", {}).get("margins", {})
    leaning = "".join(f"  {code} {value:.0%}" for code, value in margins.items())
    return f"loss {record['loss']:.3f}  {record['tokens_per_second']:.0f} tokens/s{leaning}"


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Encoded],
    config: RunConfig,
    chat: ChatFormat,
    placement: Placement,
    step: int,
    total: int,
    wrong: Negatives = MappingProxyType({}),
) -> dict[str, Any]:
    """One optimiser step over `examples`; the loss is the mean over all their response tokens.

    Of examples that have a negative among `wrong`, the mean loss of preference is added, times the run's preference.
    Several processes share the micro-batches of a step and sum their gradients, so their number does not change it:
    what dropout leaves out is drawn anew for each micro-batch.
    """
    began = time.monotonic()
    loss = _gradients(model, examples, config, chat, placement, step, wrong)
    if PartialState().num_processes > 1:
        trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        loss = sum_over_workers(loss, [] if is_sharded(model) else trainable)
    record = descend(optimizer, float(loss), config, step, total)
    return record | speed_of(examples, time.monotonic() - began)


def _gradients(
    model: Any,
    examples: Sequence[Encoded],
    config: RunConfig,
    chat: ChatFormat,
    placement: Placement,
    step: int,
    wrong: Negatives,
) -> Tensor:
    """This process's part of a step's gradients, left at the weights, and of its loss.

    Raises MemoryError in all processes where memory ended in one of them.
    """
    workers, lengths = PartialState(), [len(example) for example in examples]
    micro = split_micro_batches(range(len(examples)), lengths, config.micro_batch_tokens, padded=not config.packing)
    learned, pairs = learned_tokens(examples), len(preferred_pairs(examples, wrong))

    def learn(chosen: Sequence[Encoded], share: float) -> Tensor:
        batch = make_batch(chosen, config, chat.end_of_turn_id, placement.device)
        with _autocast(config, placement):
            loss = through(model, partial(response_loss, batch=batch)) * share
        loss.backward()
        return loss.detach()

    def micro_batch(number: int) -> Tensor:
        torch.manual_seed(seed_of(config, step, number))
        chosen = [examples[i] for i in micro[number]]
        found = learn(chosen, 1 / learned)
        for pair in preferred_pairs(chosen, wrong):
            with _autocast(config, placement):
                disliked = preference_loss(model, _to(pad(pair, chat.end_of_turn_id), placement.device), config)
            loss = disliked * config.preference / pairs
            loss.backward()
            found += loss.detach()
        return found

    own = [partial(micro_batch, number) for number in range(workers.process_index, len(micro), workers.num_processes)]
    idle = partial(learn, [Encoded(examples[0].ids[:2], [False, True])], 0.0)
    return sum_of_passes(model, own, -(-len(micro) // workers.num_processes), idle, placement.device)


def seed_of(config: RunConfig, step: int, number: int) -> int:
    """The seed of what dropout leaves out in a micro-batch of a step."""
    return int(fingerprint(config.seed, step, number, length=15), 16)


# e.g. learned_tokens([Encoded([1, 2, 3], [True, False, True])]) → 1
def learned_tokens(examples: Sequence[Encoded]) -> int:
    return sum(sum(example.mask[1:]) for example in examples)


# e.g. speed_of([Encoded([1, 2, 3], [False, False, True])], 0.5)["tokens_per_second"] → 6.0
def speed_of(examples: Sequence[Encoded], seconds: float) -> dict[str, Any]:
    """What a step's record says of its tokens and their speed."""
    tokens = sum(map(len, examples))
    learned = learned_tokens(examples)
    return {"tokens": tokens, "response_tokens": learned, "tokens_per_second": round(tokens / seconds, 1)}


@torch.no_grad()
def heldout_loss(
    model: Any, examples: Sequence[Encoded], config: RunConfig, chat: ChatFormat, placement: Placement
) -> float | None:
    """Mean loss per response token on held-out conversations; None where it is no number."""
    was_training = model.training
    model.eval()
    lengths = [len(example) for example in examples]
    micro = split_micro_batches(range(len(examples)), lengths, config.micro_batch_tokens, padded=not config.packing)
    total = 0.0
    for group in micro:
        batch = make_batch([examples[i] for i in group], config, chat.end_of_turn_id, placement.device)
        with _autocast(config, placement):
            total += float(through(model, partial(response_loss, batch=batch)))
    model.train(was_training)
    mean = total / sum(sum(example.mask[1:]) for example in examples)
    return mean if math.isfinite(mean) else None


def _autocast(config: RunConfig, placement: Placement) -> torch.autocast:
    """Full fine-tuning keeps float32 weights and computes in the chosen dtype."""
    mixed = config.adaptation.method == "full" and placement.dtype != "float32"
    return torch.autocast(placement.device, dtype=torch.bfloat16, enabled=mixed)


def _forget_after(log: Path, step: int) -> None:
    """Drop log records of steps that will be made again."""
    kept = [record for record in read_records(log, Logged) if record["step"] <= step and step > 0]
    if log.is_file():
        write_atomic(log, b"".join(encode_record(record) for record in kept))


def finished(run: RunFolder, data: Data, started: float, peak: int | None, steps: int) -> None:
    """Write down what a run came to, and the steps made now; `peak` is missing where it would be others' as well."""
    if first_worker() and (step := resume_step(run)):
        # The state of before is still there where a process ended between the last checkpoint and its removal.
        keep_state(run, step)
    run.set_stage(
        "train",
        "done",
        examples=len(data.train),
        too_long=data.too_long,
        heldout=len(data.heldout),
        heldout_too_long=data.heldout_too_long,
        refused=sum(map(len, data.refused.values())),
        seconds=round(time.monotonic() - started, 1),
        steps=steps,
        peak_memory_bytes=peak,
    )


@contextmanager
def own_randomness(device: str) -> Iterator[None]:
    """Seeds set inside do not reach the caller's global generator."""
    devices = list(range(torch.cuda.device_count())) if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
