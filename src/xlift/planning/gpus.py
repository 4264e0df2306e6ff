"""What training takes on GPUs that are not here, from a model's configuration alone: memory, hours, and what would fit.

The model is built without weights and trained one step without numbers (torch's fake tensors): what it keeps for the
backward pass is counted, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from xlift.errors import ConfigError
from xlift.hub import Located, hub_snapshot, locate, quiet
from xlift.models import causal_config
from xlift.planning.forecast import Size, model_size
from xlift.progress import byte_size, duration
from xlift.study.runs import DEFAULT_STEPS, Adaptation, RunConfig
from xlift.study.study import Study
from xlift.terminal import paged
from xlift.tuning.adapters import with_adapters
from xlift.tuning.loss import PIECES, decoder_of
from xlift.tuning.norms import fast_norms


class Card(NamedTuple):
    """A GPU: its memory in bytes, and what it computes in dense bf16, in operations a second, by its data sheet."""

    name: str
    memory: float
    rate: float


CARDS = (
    Card("RTX 4090 24 GB", 24e9, 165e12),
    Card("L40S 48 GB", 48e9, 362e12),
    Card("A100 80 GB", 80e9, 312e12),
    Card("H100 80 GB", 80e9, 989e12),
    Card("H200 141 GB", 141e9, 989e12),
)
USED = 0.4
"""Share of a card's rate that training reaches, about what is published for LoRA on an H100."""
RECKONED_BY = (
    "model",
    "revision",
    "adaptation",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "offload",
    "optimizer",
)
"""Settings of a run that decide what it takes; runs that share them are told of once."""
GPU_COUNTS = (2, 4, 8)
"""Numbers of GPUs that share the weights of full fine-tuning out."""
BUS, HOST = 25e9, 50e9
"""Bytes a second between main memory and a card, and of main memory by itself: what `offload` waits for, about."""
USABLE_MEMORY = 0.92
"""Share of a card's memory that tensors can take: the rest is CUDA's own, and gaps."""
COUNTED = "xlift_counted"
"""The name, in transformers' interface, of an attention that computes nothing."""
TRIED_TOKENS = (64, 128)
"""Tokens of two steps without numbers: the difference is what a token takes."""


class Needs(NamedTuple):
    """Bytes that training takes on one GPU, by what takes them."""

    weights: float
    optimiser: float
    """Gradients and AdamW's two moments."""
    activations: float

    @property
    def whole(self) -> float:
        return sum(self)


def training_needs(config: RunConfig, size: Size, kept: float, gpus: int = 1) -> Needs:
    """What a run takes on each of so many GPUs; `kept` are the bytes kept of a token for the backward pass."""
    full = config.adaptation.method == "full"
    # In full fine-tuning autocast keeps a copy of the float32 weights in bf16.
    weights, optimiser = 6.0 * size.parameters, size.optimizer_bytes(config)
    if not full:
        weights = size.weight_bytes(4 * config.adaptation.quantized, 2.0) + 4.0 * size.trainable
    # The embeddings, a layer, and the next.
    held = size.parameters - size.linear + 2.0 * size.linear / size.layers
    if config.offloads:
        # Each as it comes and as it is used, its gradient too.
        weights, optimiser = 10.0 * held, 8.0 * held
    elif full and gpus > 1:
        # A share of all, and these put together.
        weights, optimiser = 4.0 * size.parameters / gpus + 6.0 * held, optimiser / gpus + 4.0 * held
    tokens, each = config.pass_tokens, kept
    if config.gradient_checkpointing:
        # What one layer hands to the next, and all that one of them keeps while it is computed again.
        each = 2.0 * (2 if full else 1) * size.hidden * size.layers + kept / size.layers
    rows, columns = PIECES["cuda"]
    return Needs(weights, optimiser, tokens * each + 3 * 4.0 * rows * columns)


def kept_bytes(path: str, revision: str | None, adaptation: Adaptation) -> float:
    """Bytes that a step in bf16 keeps of each token for its backward pass, without gradient checkpointing."""
    return _kept(path, revision, adaptation.model_dump_json())


@lru_cache(maxsize=32)
def _kept(path: str, revision: str | None, settings: str) -> float:
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from transformers import AttentionInterface, AutoModelForCausalLM

    adaptation, config = Adaptation.model_validate_json(settings), causal_config(path, revision)
    full = adaptation.method == "full"
    # PEFT cannot move fake tensors; tensors on `meta` know no autocast.
    with quiet(), ExitStack() as stack, FakeTensorMode() if full else torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if full else torch.bfloat16)
        model = model if full else with_adapters(model.requires_grad_(False), RunConfig(adaptation=adaptation))
        AttentionInterface.register(COUNTED, _counted)
        model.set_attn_implementation(COUNTED)
        with unset_fake_temporarily():
            stack.enter_context(fast_norms(model))
        with torch.autocast("cpu", torch.bfloat16) if full else nullcontext():
            few, many = (saved_bytes(model, torch.zeros(1, count, dtype=torch.long)) for count in TRIED_TOKENS)
    # What does not grow with tokens, such as weights in another dtype, is counted with the weights.
    return (many - few) / (TRIED_TOKENS[1] - TRIED_TOKENS[0])


class _Kernel(torch.autograd.Function):
    """What an attention kernel keeps: its inputs and its result, and nothing that grows with the square of tokens."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        made = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, made)
        return made


def _counted(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **how: Any
) -> tuple[torch.Tensor, None]:
    made: torch.Tensor = _Kernel.apply(query, key, value)
    return made.transpose(1, 2), None


def saved_bytes(model: Any, ids: torch.Tensor) -> float:
    """Bytes that the decoder keeps of tokens (rows, tokens) for its backward pass, its weights left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # What is kept here stays alive, so that no other storage takes its address.
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = decoder_of(model)(input_ids=ids, attention_mask=ids.new_zeros(1, 1, 1, 1), use_cache=False)
    counted = sum(storage.nbytes() for at, storage in found.items() if at not in own)
    # Only now may what it has kept be freed.
    del states
    return float(counted)


def training_operations(config: RunConfig, size: Size) -> float:
    """Operations of a token: 4 a frozen weight, 6 a trained one, 2 more for each where activations are made again."""
    each = (6.0 if config.adaptation.method == "full" else 4.0) + (2.0 if config.gradient_checkpointing else 0.0)
    return each * size.parameters + 6.0 * size.trainable * (config.adaptation.method == "lora")


def offload_seconds(config: RunConfig, size: Size) -> float:
    """What keeping weights in main memory adds to a run: each pass brings them twice and takes gradients away, each
    step reads and writes all that AdamW has there."""
    if not config.offloads:
        return 0.0
    steps = config.steps or DEFAULT_STEPS
    passes = steps * math.ceil(config.batch_tokens / config.pass_tokens)
    return size.parameters * (12.0 * passes / BUS + 28.0 * steps / HOST)


def variants(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """A run as it is, and with settings that take less memory, each beside what makes it so."""
    yield "as it is", config
    saving = config.model_copy(update={"gradient_checkpointing": True})
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing: true", saving
    small = min(config.pass_tokens, max(config.max_length, 2048))
    if small < config.pass_tokens:
        yield f"… micro_batch_tokens: {small}", saving.model_copy(update={"micro_batch_tokens": small})
    if config.adaptation.method == "lora" and not (config.adaptation.quantized or config.adaptation.dora):
        quantized = config.adaptation.model_copy(update={"quantized": True})
        yield "… adaptation.quantized: true", saving.model_copy(update={"adaptation": quantized})
    if config.can_offload:
        yield "… offload: true", saving.model_copy(update={"offload": True})
    if config.adaptation.method == "full":
        lora = saving.model_copy(update={"adaptation": Adaptation()})
        yield "… adaptation: {method: lora}", lora


def shape_location(config: RunConfig, offline: bool) -> Located:
    """Where a model's configuration is; of a folder or a hub model that alone is read.

    Raises ConfigError for a folder that is not there, and ModelError for a hub model that is not to be had.
    """
    if config.model.startswith("embedded:"):
        return locate(config.model)
    if Path(config.model).is_dir():
        return Located(config.model, config.revision, {})
    if config.model.startswith((".", "/", "~")):
        raise ConfigError(f"model '{config.model}': no such folder", "name a folder with a config.json, or a hub id")
    folder = hub_snapshot(config.model, config.revision, offline, "model", ["config.json"])
    return Located(str(folder), None, {})


def gpu_needs(study: Study, offline: bool = False) -> list[dict[str, Any]]:
    """What each kind of run of a study takes on common GPUs: a record a kind and setting that would lower it.

    `training` says the kind and `runs` how many there are; `gpus` how many share it; `bytes` of each card's memory,
    `main_bytes` of main memory, and `seconds` by card of the longest of them, None where it does not fit.
    """
    kinds: dict[str, list[RunConfig]] = {}
    for config in study.runs():
        if not config.untuned:
            kinds.setdefault(config.model_dump_json(include=set(RECKONED_BY)), []).append(config)
    told = [(max(alike, key=_tokens), shape_location(alike[0], offline), len(alike)) for alike in kinds.values()]
    return [record for one in told for record in _needs(*one)]


def _needs(config: RunConfig, base: Located, count: int) -> Iterator[dict[str, Any]]:
    saving = config.model_copy(update={"gradient_checkpointing": True})
    # As offload, FSDP2 knows neither moments in 8 bits nor preferences.
    shared = [(f"… torchrun on {gpus} GPUs, each", saving, gpus) for gpus in GPU_COUNTS if saving.can_offload]
    for what, one, gpus in [*((*variant, 1) for variant in variants(config)), *shared]:
        size = model_size(base, one.adaptation)
        needs = training_needs(one, size, kept_bytes(base.path, base.revision, one.adaptation), gpus)
        # Each process loads the whole model before it lets go of what others hold.
        most = max(needs.whole, 4.0 * size.parameters if gpus > 1 else 0.0)
        seconds = _tokens(config) * training_operations(one, size) / USED / gpus
        waits = offload_seconds(one, size)
        fits = {
            card.name: seconds / card.rate + waits if most <= USABLE_MEMORY * card.memory else None for card in CARDS
        }
        facts = {"training": f"{Path(config.model).name} {config.adaptation.label}", "runs": count, "setting": what}
        main = 16 * size.parameters if one.offloads else 0
        yield {**facts, "gpus": gpus, "bytes": round(most), "main_bytes": main, "seconds": fits}


def gpus_text(found: Sequence[dict[str, Any]]) -> str:
    """The same for a terminal."""
    rows, last = [["training", "setting", "memory", *(card.name for card in CARDS)]], None
    for one in found:
        name = one["training"] + (f", {one['runs']} runs, each" if one["runs"] > 1 else "")
        cells = ["–" if seconds is None else duration(seconds) for seconds in one["seconds"].values()]
        memory = byte_size(one["bytes"]) + (f" + {byte_size(one['main_bytes'])} main" if one["main_bytes"] else "")
        rows.append([name if one["training"] != last else "", one["setting"], memory, *cells])
        last = one["training"]
    told = "time by the clock at {:.0%} of a GPU's bf16 rate, for as many tokens as a run's steps can hold"
    told += "; –: does not fit"
    told += "; what several GPUs wait for each other is left out" if any(one["gpus"] > 1 for one in found) else ""
    told += "; main: in the machine's memory" if any(one["main_bytes"] for one in found) else ""
    return f"{paged(rows, right=range(2, len(rows[0])))}\n{told.format(USED)}"


def _tokens(config: RunConfig) -> int:
    """Tokens of a run at most; of epochs, whose data is not looked at here, those of the steps that are the default."""
    return (config.steps or DEFAULT_STEPS) * config.batch_tokens
