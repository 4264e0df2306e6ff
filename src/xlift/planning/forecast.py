"""What a run takes on this machine, told before anything is spent: tokens, disk, memory and time.

Tokens, steps and disk follow from the settings. Memory has a lower bound that needs the model's configuration alone, so
that a model which cannot fit is never loaded. Time and peak memory are measured: a child process (`python -m
xlift.planning.forecast`, job on stdin, result on the last line of stdout) does a few training steps, one with the
widest micro-batch of the run's plan, and decodes a few tokens, all with the code that the run will use. Whatever ends
it for want of memory, the system's OOM killer too, means "does not fit".
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState

from xlift.disk import encode_record
from xlift.errors import ConfigError, UserError, out_of_memory
from xlift.generation.engine import Reply, answering, decode
from xlift.generation.margin import language_margins
from xlift.generation.proof import prove_answering
from xlift.generation.responses import margin_pairs
from xlift.hub import CHAT_FILES, Located, quiet
from xlift.memory import peak_memory
from xlift.models import Placement, causal_config, load_tokenizer
from xlift.records import Prompt
from xlift.study.runs import Adaptation, RunConfig
from xlift.study.served import Decoding
from xlift.tuning.adapters import choose_layers, with_adapters
from xlift.tuning.encoding import Data
from xlift.tuning.limits import Limits, limits_of
from xlift.tuning.loss import PIECES
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.packing import split_micro_batches
from xlift.tuning.proof import prove_training
from xlift.tuning.quantized import loaded_in
from xlift.tuning.templates import ChatFormat, Encoded, chat_format
from xlift.tuning.train import heldout_loss, lay_out, plan, prepared_model, train_step

NEW_TOKENS = 6
"""Tokens that the probe lets a reply have."""
PAIRS = 8
"""Question pairs whose language margin the probe measures."""
SMALL_FILES = 7_000
"""Bytes of a checkpoint's small files: settings, PEFT's model card."""


@dataclass(frozen=True)
class Workload:
    """What training does, counted from its plan; all zero for a run that is not trained itself."""

    steps: int = 0
    tokens: int = 0
    """Tokens trained on, prompts included."""
    widths: list[int] = field(default_factory=list)
    """Tokens of each micro-batch, padding included."""
    widest: list[Encoded] = field(default_factory=list)
    """The examples of the widest micro-batch."""
    heldout: int = 0
    """Tokens of the held-out conversations."""
    checkpoints: list[int] = field(default_factory=list)
    measured: int = 0
    """How often the held-out loss and the margins are measured."""


def work_of(config: RunConfig, data: Data, every: int | None) -> Workload:
    """Count the plan of a run; `every` is the setting validation.every."""
    steps = plan(config, data.lengths)
    padded, budget = not config.packing, config.micro_batch_tokens
    widths, widest, most = list[int](), list[int](), 0
    # One by one: over epochs of millions of conversations the groups are too many to hold.
    for group in (group for step in steps for group in split_micro_batches(step, data.lengths, budget, padded)):
        widths.append(_width([data.lengths[i] for i in group], padded))
        widest, most = (group, widths[-1]) if widths[-1] > most else (widest, most)
    checkpoints = [*range(config.checkpoint_every, len(steps), config.checkpoint_every), len(steps)]
    also = range(every, len(steps), every) if every else ()
    return Workload(
        len(steps),
        sum(data.lengths[i] for step in steps for i in step),
        widths,
        [data.train[i] for i in widest],
        sum(map(len, data.heldout)),
        checkpoints,
        1 + len({*checkpoints, *also}),
    )


# e.g. _width([3, 5, 9], padded=True) → 27
# e.g. _width([3, 5, 9], padded=False) → 17
def _width(lengths: list[int], padded: bool) -> int:
    return max(lengths) * len(lengths) if padded else sum(lengths)


# e.g. answering_checkpoints(RunConfig(), Workload(checkpoints=[200, 400]), Decoding(checkpoints=[200])) → 1
def answering_checkpoints(config: RunConfig, work: Workload, decoding: Decoding) -> int:
    """How many checkpoints of a run will answer the prompts; `work` is that of the run whose weights it uses."""
    if config.untuned or decoding.checkpoints == "last":
        return 1
    return len([step for step in work.checkpoints if decoding.checkpoints == "all" or step in decoding.checkpoints])


QUANTIZED = {4: (4 + 8 / 64 + 32 / 64 / 256) / 8, 8: 1.0}
"""Bytes of a weight by its bits; in NF4 with a scale of 8 for 64 weights, and one of 32 for 256 scales."""


class Size(NamedTuple):
    """A model by its configuration; `names` are the bytes that the trainable tensors' names take in a file."""

    parameters: int
    trainable: int
    names: int
    hidden: int
    layers: int
    vocabulary: int
    cached: int
    """Numbers that one layer keeps of a token while decoding; 0 where that is not attention."""
    windows: tuple[int | None, ...]
    """How many tokens back each layer keeps; None: all."""
    limits: Limits
    linear: int
    """Weights of the linear layers but the last, which `quantized` keeps small."""

    def weight_bytes(self, bits: int, each: float) -> float:
        """What the weights of a base take at `each` bytes, those of linear layers in so many bits; 0: as the others."""
        return each * (self.parameters - self.linear) + QUANTIZED.get(bits, each) * self.linear

    def optimizer_bytes(self, config: RunConfig) -> float:
        """Gradients in float32 and two moments, in 8 bits with a scale for 256 of them or in float32."""
        return self.trainable * (4 + 2 * (4 if config.optimizer == "adamw" else 1 + 4 / 256))


def model_size(base: Located, adaptation: Adaptation) -> Size:
    """Count a model's parameters from its configuration, without its weights.

    Raises ModelError if `adaptation.targets` do not fit the model.
    """
    return _size(base.path, base.revision, adaptation.model_dump_json())


@lru_cache(maxsize=64)
def _size(path: str, revision: str | None, settings: str) -> Size:
    from transformers import AutoModelForCausalLM

    adaptation = Adaptation.model_validate_json(settings)
    config = causal_config(path, revision)
    with quiet(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
        parameters, limits = sum(parameter.numel() for parameter in model.parameters()), limits_of(model)
        head = model.get_output_embeddings()
        layers = [one for one in model.modules() if type(one) is torch.nn.Linear and one is not head]
        linear = sum(layer.weight.numel() for layer in layers)
        if adaptation.method == "lora":
            model = with_adapters(model, RunConfig(adaptation=adaptation))
        else:
            choose_layers(model, adaptation.layers)
    trains = adaptation.method != "none"
    trainable = [(name, one.numel()) for name, one in model.named_parameters() if one.requires_grad and trains]
    text = config.get_text_config()
    # Models without attention have no heads and keep nothing that grows.
    heads = getattr(text, "num_attention_heads", 0)
    width = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
    kinds = getattr(text, "layer_types", None) or [""] * text.num_hidden_layers
    return Size(
        parameters,
        sum(count for _, count in trainable),
        # A tensor's entry in a safetensors header: its name, dtype, shape and place.
        sum(len(name) + 80 for name, _ in trainable),
        text.hidden_size,
        text.num_hidden_layers,
        text.vocab_size,
        2 * int(getattr(text, "num_key_value_heads", None) or heads) * int(width),
        tuple(text.sliding_window if kind == "sliding_attention" else None for kind in kinds),
        limits,
        linear,
    )


def _bytes_per(placement: Placement) -> int:
    return placement.torch_dtype.itemsize


def training_bound(config: RunConfig, size: Size, work: Workload, placement: Placement) -> dict[str, int]:
    """Bytes that training cannot do without, by what takes them: a lower bound.

    Weights (float32 in full fine-tuning), gradients and AdamW's two moments of the trainable ones in float32, what each
    layer hands on for the widest micro-batch, and one piece of the logits with its gradient.
    """
    rows, entries = PIECES["cuda" if placement.device == "cuda" else "cpu"]
    full = config.adaptation.method == "full"
    tokens = sum(len(example) for example in work.widest)
    learned = sum(sum(example.mask[1:]) for example in work.widest)
    # A layer at a time, where the rest lies in main memory.
    held = 1 / size.layers if config.offloads and placement.device == "cuda" else 1.0
    return {
        "weights": round(4 * size.parameters * held)
        if full
        else round(size.weight_bytes(4 * config.adaptation.quantized, _bytes_per(placement))) + 4 * size.trainable,
        "gradients and AdamW": round(size.optimizer_bytes(config) * held),
        "activations": size.layers * tokens * size.hidden * _bytes_per(placement)
        + 8 * min(rows, learned) * min(entries, size.vocabulary),
    }


def answering_bound(config: RunConfig, size: Size, placement: Placement, bits: int = 0) -> dict[str, int]:
    """Bytes that answering cannot do without: the weights, or what putting them together from two takes, which where
    they are in 4 or 8 `bits` is done beside a GPU's memory."""
    # On a CPU they lie whole in the same memory before.
    small = bits if placement.device != "cpu" else 0
    one = round(size.weight_bytes(small, _bytes_per(placement)))
    drawn = config.weight < 1 and config.adaptation.method == "full"
    return {"weights": 2 * one if drawn and not small else one}


def cache_bytes(size: Size, rows: int, tokens: int, placement: Placement) -> int:
    """Bytes that `rows` replies of `tokens` tokens keep while they are decoded."""
    kept = sum(min(tokens, window or tokens) for window in size.windows)
    return rows * kept * size.cached * _bytes_per(placement)


class Disk(NamedTuple):
    """Bytes that a run leaves, and those that it needs besides while it replaces its newest checkpoint."""

    kept: int
    spare: int


def disk_of(config: RunConfig, size: Size, work: Workload, placement: Placement, base: Located, answers: int) -> Disk:
    """Checkpoints (weights and tokenizer), the newest with what training continues from, and `answers` bytes."""
    if not work.checkpoints:
        return Disk(answers, 0)
    full = config.adaptation.method == "full"
    weights = _bytes_per(placement) * size.parameters if full else 4 * size.trainable
    one = weights + size.names + SMALL_FILES + _tokenizer_bytes(base.path)
    state = 12 * size.trainable + 4 * size.names
    return Disk(len(work.checkpoints) * one + state + answers, state if len(work.checkpoints) > 1 else 0)


@lru_cache(maxsize=64)
def _tokenizer_bytes(folder: str) -> int:
    return sum(path.stat().st_size for name in CHAT_FILES for path in Path(folder).glob(name))


def answer_bytes(prompts: Sequence[Prompt], decoding: Decoding, raters: int) -> int:
    """About how many bytes a checkpoint's responses and ratings take at most."""
    return sum(len(encode_record(prompt)) + 250 + 4 * decoding.max_new_tokens + 450 * raters for prompt in prompts)


@dataclass(frozen=True)
class Probing:
    """What a probe does: plain data, sent to the child as JSON.

    Without `widest` it does not train, without `prompts` it loads the model that answers and lets it answer nothing.
    """

    config: dict[str, Any]
    base: tuple[str, str | None]
    placement: tuple[str, str, str]
    decoding: dict[str, Any]
    languages: list[str]
    prompts: list[list[int]]
    widest: list[tuple[list[int], list[bool]]]


@dataclass(frozen=True)
class Probed:
    """Measured seconds and bytes; 0 what the job did not ask for."""

    overhead: int
    """Bytes of a process that has loaded its libraries and nothing else."""
    load: float
    """Seconds to load the model that answers."""
    memory: int
    """Peak bytes over all that the probe did."""
    training: float = 0.0
    """Seconds to load the model that is trained."""
    micro_batch: float = 0.0
    """Seconds of a micro-batch, whatever its size."""
    token: float = 0.0
    """Seconds for each token trained on, besides."""
    heldout_token: float = 0.0
    """Seconds for a token of a held-out conversation."""
    prompt_token: float = 0.0
    """Seconds for a token of a prompt, at the study's batch size."""
    new_token: float = 0.0
    """Seconds for a token of a reply, at the study's batch size."""
    pair: float = 0.0
    """Seconds for the language margin of one question."""


def run_probe(job: Probing) -> Probed | None:
    """Measure in a child process; None where it ran out of memory.

    Raises UserError with what the child found wrong, ConfigError where it broke.
    """
    line = [sys.executable, "-m", "xlift.planning.forecast"]
    done = subprocess.run(line, input=json.dumps(asdict(job)), capture_output=True, text=True)
    if done.returncode == -9:
        return None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ConfigError(f"the measurement broke: {last[0]}", "xlift check --no-probe leaves it out")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if "problems" in found:
        raise UserError(found["problems"], found["hint"])
    return Probed(**found) if found else None


def main() -> None:
    """The child: a job on stdin, {} for "out of memory" or the measurements on stdout."""
    job = Probing(**json.load(sys.stdin))
    _go_first()
    try:
        found = asdict(_probe(job))
    except UserError as error:
        found = {"problems": error.problems, "hint": error.hint}
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        found = {}
    print(json.dumps(found))


def _go_first() -> None:
    """Where memory ends, let the system end this process before any other."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def _probe(job: Probing) -> Probed:
    config, placement = RunConfig.model_validate(job.config), Placement(*job.placement)
    base, decoding = Located(*job.base, {}), Decoding.model_validate(job.decoding)
    PartialState(cpu=placement.device == "cpu")
    chat = chat_format(load_tokenizer(base.path, base.revision), *config.spoken)
    overhead, seconds = peak_memory(placement), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        if job.widest:
            widest = [Encoded(ids, mask) for ids, mask in job.widest]
            seconds |= _probe_training(config, base, placement, chat, widest, Path(folder))
        adapter = Path(folder) if job.widest and config.adaptation.method == "lora" else None
        began = time.monotonic()
        with loaded_in(decoding.quantized, base, adapter, placement) as model:
            load = time.monotonic() - began
            prove_answering(model, decoding.batch_size)
            if job.prompts:
                seconds |= _probe_answering(model, chat, decoding, job)
    return Probed(overhead, load, peak_memory(placement), **seconds)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began


def _probe_training(
    config: RunConfig, base: Located, placement: Placement, chat: ChatFormat, widest: list[Encoded], folder: Path
) -> dict[str, float]:
    """Steps on a short example, once to warm up, and on the widest micro-batch; an adapter is left in `folder`."""
    short, padded = [min(widest, key=len)], not config.packing
    narrow, wide = len(short[0]), _width([len(example) for example in widest], padded)
    began = time.monotonic()
    with prepared_model(config, base, placement) as model:
        loaded = time.monotonic() - began
        prove_training(model, config.packing)
        lay_out(model, config, placement)
        optimizer = make_optimizer(config, model)

        def step(examples: list[Encoded]) -> float:
            return _timed(lambda: train_step(model, optimizer, examples, config, chat, placement, 0, 1))[1]

        step(short)
        little, much = step(short), step(widest)
        _, heldout = _timed(lambda: heldout_loss(model, widest, config, chat, placement))
        if config.adaptation.method == "lora":
            model.save_pretrained(folder)
    token = max(0.0, much - little) / max(1, wide - narrow)
    fixed = max(0.0, much - token * wide)
    return {"training": loaded, "micro_batch": fixed, "token": token, "heldout_token": heldout / wide}


def _probe_answering(model: Any, chat: ChatFormat, decoding: Decoding, job: Probing) -> dict[str, float]:
    """Times of one batch of prompts: one token of each reply, with what comes before it, and several."""
    keys = [str(number) for number in range(len(job.prompts))]
    languages = [*job.languages, "en"][:1] * len(keys)
    made: list[int] = []

    def count(index: int, reply: Reply) -> None:
        made.append(reply.new_tokens)

    def answer(tokens: int, prompts: int | None = None) -> None:
        made.clear()
        brief = decoding.model_copy(update={"max_new_tokens": tokens})
        decode(model, chat, job.prompts[:prompts], keys[:prompts], brief, count, languages[:prompts], batch_of=batch_of)

    with answering(model) as batch_of:
        answer(1, prompts=1)
        _, reading = _timed(lambda: answer(1))
        _, whole = _timed(lambda: answer(NEW_TOKENS))
    pairs = margin_pairs(job.languages)[:PAIRS]
    _, margins = _timed(lambda: language_margins(model, chat, pairs))
    return {
        "prompt_token": reading / sum(len(prompt) for prompt in job.prompts),
        "new_token": max(0.0, whole - reading) / max(1, sum(made) - len(job.prompts)),
        "pair": margins / max(1, len(pairs)),
    }


@dataclass(frozen=True)
class CheckpointWork:
    """What a checkpoint of a run is asked: encoded prompts, question pairs for margins, and tokens of a reply."""

    prompts: list[list[int]]
    pairs: int
    new_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    def seconds(self, speed: Probed) -> float:
        """At most, since a reply may end before its longest."""
        reading = self.prompt_tokens * speed.prompt_token + self.pairs * speed.pair
        return reading + len(self.prompts) * self.new_tokens * speed.new_token


def training_seconds(work: Workload, watched: CheckpointWork, own: Probed, speed: Probed) -> float:
    """Seconds of training, with what is measured meanwhile; `speed` is a probe of the same model that answered."""
    if not work.steps:
        return 0.0
    steps = own.micro_batch * len(work.widths) + own.token * sum(work.widths)
    return own.training + steps + work.measured * (work.heldout * own.heldout_token + watched.seconds(speed))


if __name__ == "__main__":
    main()
