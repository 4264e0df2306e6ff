"""Training and generation on a GPU: is it right, and how much of what the GPU can compute does it use?

    bash benchmarks/gpu.sh [--smoke] [--only lora-7b,together]

Every part is a process of its own with a time of its own, so that one that fails or hangs leaves the rest: gpu.json
holds what each found (written after each), gpu.md the tables. Models have the shapes of gemma-3-270m and Llama-2-7B and
random weights. Steps are over 8,192 tokens, examples of 64 to 1,024 tokens packed, or rows of 4,096.

Utilisation: operations of matrix products that a step cannot do without (a frozen weight 4 a token, a trained one 6,
the output layer for learned tokens only, causal attention 6 · length² · width a layer), by the second, as a share of
what an 8192³ product in bf16 reaches in the same process. The peer is a plain loop over PEFT's model: the same token
ids, padded batches of like length, the logits that the model itself returns, fused AdamW. `loss` times the kernels of
Liger and of cut cross-entropy beside our loss, where they are installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from xlift.errors import ConfigError
from xlift.hub import Located
from xlift.memory import free_memory, peak_memory, reset_peak_memory
from xlift.models import Placement, load_model, load_tokenizer, place
from xlift.study.runs import RunConfig
from xlift.study.served import Decoding
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.packing import pad
from xlift.tuning.templates import ChatFormat, Encoded, chat_format
from xlift.tuning.train import lay_out, prepared_model, train_step
from xlift.tuning.trouble import within_memory

LIMIT = 470
"""Seconds for all parts together."""
BUDGETS = {
    "checks": 45, "lora-270m": 35, "full-270m": 35, "together-270m": 80, "loss": 40, "lora-7b": 85, "lora-7b-rows": 45,
    "full-7b": 65, "generation-270m": 40,
}  # fmt: skip
"""Seconds for each part, in this order; what one leaves goes to those after it."""
SHAPES: dict[str, dict[str, Any]] = {
    "270m": {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "sliding_window": 512,
    },
    "7b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    },
}  # fmt: skip
TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What all parts are given: where they compute, and whether shapes are tiny."""

    placement: Placement
    smoke: bool
    tokens: int = 8192
    """Tokens of a step."""

    def sync(self) -> None:
        if self.placement.device == "cuda":
            torch.cuda.synchronize()


def bench_of(placement: Placement, smoke: bool) -> Bench:
    return Bench(placement, smoke, 96 if smoke else 8192)


def write_model(bench: Bench, shape: str, folder: Path) -> Located:
    """A model of a shape with random weights and a tokenizer that has a word for every token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    settings = SHAPES[shape] | (TINY if bench.smoke else {})
    config = AutoConfig.for_model(**settings)
    torch.manual_seed(0)
    with torch.device(bench.placement.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=bench.placement.torch_dtype)
    model.save_pretrained(folder)
    names = {f"t{i}": i for i in range(settings["vocab_size"])}
    # The end is a token that random weights hardly ever write.
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(names, unk_token="t3")), eos_token="t1")
    made.pad_token, made.bos_token = "t0", "t2"
    made.save_pretrained(folder)
    return Located(str(folder), None, {})


def examples(bench: Bench, vocabulary: int, rows: bool) -> list[Encoded]:
    """A step's examples: lengths drawn on a logarithmic scale, or two rows; the last two thirds of each are learned."""
    draw, left, made = random.Random(0), bench.tokens, list[Encoded]()
    low, high = (8, 32) if bench.smoke else (64, 1024)
    while left > 0:
        length = bench.tokens // 2 if rows else min(left, round(low * (high / low) ** draw.random()))
        ids = [draw.randrange(4, vocabulary) for _ in range(length)]
        made.append(Encoded(ids, [i >= length // 3 for i in range(length)]))
        left -= length
    return made


def operations(model: Any, batch: Sequence[Encoded]) -> float:
    """Operations of one step's matrix products, those with weights and those of attention."""
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    tokens, learned = sum(map(len, batch)), sum(sum(one.mask[1:]) for one in batch)
    found = 0.0
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            each = 6 if layer.weight.requires_grad else 4
            found += each * layer.weight.numel() * (learned if layer is head else tokens)
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    for kind in kinds:
        window = text.sliding_window if kind == "sliding_attention" else None
        # e.g. 1,024 tokens and a window of 512: the triangle of 1,024 without that of the 512 that are out of sight
        seen = sum(len(one) ** 2 - max(0, len(one) - (window or len(one))) ** 2 for one in batch)
        found += 6 * seen * width
    return found


def ceiling(bench: Bench) -> float:
    """Operations a second of a large square product, the best of ten."""
    size = 128 if bench.smoke else 8192
    left, right = (torch.randn(size, size, device=bench.placement.device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(12):
        bench.sync()
        began = time.perf_counter()
        left @ right
        bench.sync()
        seconds.append(time.perf_counter() - began)
    return float(2 * size**3 / min(seconds[2:]))


def reset_memory(bench: Bench) -> None:
    torch.cuda.empty_cache()
    reset_peak_memory(bench.placement)


def timed(bench: Bench, step: Callable[[], Any], most: float = 4) -> float:
    """Seconds of a step: the median of as many as take `most` seconds, after two that warm up."""
    for _ in range(1 if bench.smoke else 2):
        step()
    seconds, until = list[float](), time.perf_counter() + (0 if bench.smoke else most)
    while not seconds or (time.perf_counter() < until and len(seconds) < 30):
        bench.sync()
        began = time.perf_counter()
        step()
        bench.sync()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def told(bench: Bench, name: str, seconds: float, tokens: int, work: float, best: float) -> dict[str, Any]:
    share = {"TFLOP/s": work / seconds / 1e12, "utilisation %": 100 * work / seconds / best} if work else {}
    memory = peak_memory(bench.placement) / 1e9
    return {"what": name, "tokens/s": tokens / seconds, "ms": 1000 * seconds, **share, "peak GB": memory}


def peer_loop(model: Any, optimizer: Any, batch: Sequence[Encoded], bench: Bench, rate: int = 8) -> None:
    """One step of a plain loop: padded batches of `rate` examples of like length, the model's own logits."""
    ordered = sorted(batch, key=len)
    for start in range(0, len(ordered), rate):
        given = {key: value.to(bench.placement.device) for key, value in pad(ordered[start : start + rate], 0).items()}
        labels = given.pop("labels")
        full = bench.placement.torch_dtype != torch.float32
        with torch.autocast(bench.placement.device, torch.bfloat16, enabled=full and model.dtype == torch.float32):
            logits = model(**given, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def chat_of(base: Located) -> ChatFormat:
    return chat_format(load_tokenizer(base.path), "plain")


def training(bench: Bench, method: str, shape: str, rows: bool = False) -> list[dict[str, Any]]:
    """Steps of one run, of the peer on the same examples, and of the run with products in floats of 8 bits."""
    # Weights, gradients and AdamW's two moments of 6.7 billion parameters in float32.
    if (method, shape) == ("full", "7b") and not bench.smoke and free_memory(bench.placement) < 16 * 6.8e9:
        raise MemoryError("full fine-tuning of 7B takes 109 GB on one GPU")
    with tempfile.TemporaryDirectory() as folder:
        base, best, found = write_model(bench, shape, Path(folder)), ceiling(bench), list[dict[str, Any]]()
        chat, settings = chat_of(base), SHAPES[shape] | (TINY if bench.smoke else {})
        batch = examples(bench, settings["vocab_size"], rows)
        config = RunConfig.model_validate(
            {"adaptation": {"method": method}, "batch_tokens": bench.tokens, "micro_batch_tokens": bench.tokens}
            | {"gradient_checkpointing": shape == "7b" and method == "full"}
        )

        def own(name: str, config: RunConfig) -> float:
            reset_memory(bench)
            with prepared_model(config, base, bench.placement) as model:
                lay_out(model, config, bench.placement)
                optimizer, given = make_optimizer(config, model), (batch, config, chat, bench.placement, 0, 1000)
                work = operations(model, batch)
                seconds = timed(bench, lambda: train_step(model, optimizer, *given))
            found.append(told(bench, f"xlift {method} {shape}{name}", seconds, bench.tokens, work, best))
            print(json.dumps({"found": found}), flush=True)
            return work

        def peer(work: float) -> None:
            reset_memory(bench)
            with peer_model(bench, method, base, config) as (model, optimizer):
                seconds = timed(bench, lambda: peer_loop(model, optimizer, batch, bench, 1 if rows else 8))
            found.append(told(bench, f"peer {method} {shape}", seconds, bench.tokens, work, best))
            print(json.dumps({"found": found}), flush=True)

        peer(own("", config))
        try:
            own(" fp8", config.model_copy(update={"fp8": True}))
        except ConfigError as error:
            found.append({"what": f"xlift {method} {shape} fp8: {error}"})
    return [{**one, "ceiling TFLOP/s": best / 1e12} for one in found]


def together(bench: Bench, shape: str) -> list[dict[str, Any]]:
    """1 to 16 runs of one base, one after another and in one pass, over 1,024 tokens each and over 8,192, as far as
    memory goes."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base, best = write_model(bench, shape, Path(folder)), ceiling(bench)
        for tokens in (bench.tokens // 8, bench.tokens):
            small = Bench(bench.placement, bench.smoke, tokens)
            for count in (1, 4) if bench.smoke else (1, 4, 8, 16):
                rows = within_memory(partial(both_ways, small, base, Path(folder), count, best))
                found += rows or [{"what": f"{count} runs of {tokens} tokens: memory ends"}]
                print(json.dumps({"found": found}), flush=True)
                if rows is None:
                    torch.cuda.empty_cache()
                    break
    return found


def both_ways(bench: Bench, base: Located, folder: Path, count: int, best: float) -> list[dict[str, Any]]:
    """Steps of so many runs, one after another and in one pass."""
    from xlift.tuning.together import Passes, step_in_turn, step_together

    found: list[dict[str, Any]] = []
    reset_peak_memory(bench.placement)
    with members_of(bench, base, folder, count) as (model, members):
        work = count * operations(members[0].loop.model, members[0].loop.data.train)
        (group,) = Passes().of(members, count)
        ways = {"in turn": partial(step_in_turn, model, members, 0)}
        ways["in one pass"] = partial(step_together, model, *group, 0)
        for name, way in ways.items():
            seconds = timed(bench, way, 2)
            row = told(
                bench, f"{count} runs of {bench.tokens} tokens {name}", seconds, count * bench.tokens, work, best
            )
            found.append(row | {"times": (found[0]["ms"] if found else row["ms"]) / row["ms"]})
    return found

    return found


@contextmanager
def members_of(bench: Bench, base: Located, folder: Path, count: int) -> Iterator[tuple[Any, list[Any]]]:
    """So many LoRA runs that differ in their learning rate, ready for their first step, and their base."""
    from xlift.models import KeptBase
    from xlift.tuning.attention import by_lengths
    from xlift.tuning.encoding import Data
    from xlift.tuning.together import member_of
    from xlift.tuning.train import Ahead, Watching
    from xlift.workspace import RunFolder

    chat = chat_of(base)
    with KeptBase().lent(base, bench.placement) as model, by_lengths(model):
        batch = examples(bench, model.config.get_text_config().vocab_size, False)
        members, failed = [], dict[str, Any]()
        for number in range(count):
            config = RunConfig(
                learning_rate=1e-5 * (number + 1),
                batch_tokens=bench.tokens,
                micro_batch_tokens=bench.tokens,
                steps=1000,
            )
            run = RunFolder(folder / str(number), str(number), config, folder / str(number))
            ahead = Ahead(run, chat, Data(batch, [], 0), [list(range(len(batch)))] * 1000, 0, 1000)
            members.append(member_of(model, ahead, bench.placement, Watching(), failed))
        if failed:
            raise next(iter(failed.values()))
        yield model, members


def loss(bench: Bench) -> list[dict[str, Any]]:
    """The loss of a step's learned tokens and the gradient of their states, the layer frozen, in each of WAYS; how far
    each gradient is off that in float32."""
    from device_properties import relative
    from losses import WAYS, by_whole_logits, gradient

    found, best = list[dict[str, Any]](), ceiling(bench)
    for shape in SHAPES:
        settings, device = SHAPES[shape] | (TINY if bench.smoke else {}), bench.placement.device
        count, width, words = 2 * bench.tokens // 3, settings["hidden_size"], settings["vocab_size"]
        torch.manual_seed(0)
        states, layer = (torch.randn(n, width, device=device, dtype=torch.bfloat16) for n in (count, words))
        layer, targets = layer / width**0.5, torch.randint(words, (count,), device=device)

        few = states[:256].float(), layer.float(), targets[:256]
        wanted = gradient(by_whole_logits, *few)
        for name, (way, package) in WAYS.items():
            if find_spec(package) is None:
                found.append({"what": f"{name} {shape}: not installed"})
                continue
            reset_peak_memory(bench.placement)
            try:
                off = relative(gradient(way, states, layer, targets)[:256], wanted)
                seconds = timed(bench, partial(gradient, way, states, layer, targets), 1)
            except Exception as error:
                found.append({"what": f"{name} {shape}: {type(error).__name__}: {str(error)[:200]}"})
                continue
            row = told(bench, f"{name} {shape}", seconds, count, 4.0 * count * width * words, best)
            found.append(row | {"off": off})
            print(json.dumps({"found": found}), flush=True)
    return found


@contextmanager
def peer_model(bench: Bench, method: str, base: Located, config: RunConfig) -> Iterator[tuple[Any, Any]]:
    """The peer's model and optimiser."""
    from peft import LoraConfig, get_peft_model

    model: Any = load_model(base.path, bench.placement, fp32=method == "full").train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if method == "lora":
        own = config.adaptation
        lora = LoraConfig(r=own.rank, lora_alpha=int(own.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    trained = [one for one in model.parameters() if one.requires_grad]
    yield model, torch.optim.AdamW(trained, lr=1e-4, fused=bench.placement.device == "cuda")


def generation(bench: Bench, shape: str) -> list[dict[str, Any]]:
    """Greedy replies to prompts of mixed lengths, beside the model's own `generate` in the same batches."""
    from xlift.generation.engine import Reply, decode

    draw, found = random.Random(0), list[dict[str, Any]]()
    count, longest = (4, 4) if bench.smoke else (128, 128)
    with tempfile.TemporaryDirectory() as folder:
        base = write_model(bench, shape, Path(folder))
        chat, model = chat_of(base), load_model(base.path, bench.placement)
        words = model.config.get_text_config().vocab_size
        prompts = [
            [draw.randrange(4, words) for _ in range(draw.randint(8, 16 if bench.smoke else 200))] for _ in range(count)
        ]
        settings, made = Decoding(max_new_tokens=longest, batch_size=64, repetition_penalty=1.0), list[int]()

        def keep(index: int, reply: Reply) -> None:
            made.append(reply.new_tokens)

        def ours() -> int:
            made.clear()
            decode(model, chat, prompts, [str(i) for i in range(count)], settings, keep)
            return sum(made)

        def theirs() -> int:
            new, ordered = 0, sorted(prompts, key=len)
            for start in range(0, count, 64):
                part = ordered[start : start + 64]
                width = max(map(len, part))
                ids = torch.tensor([[0] * (width - len(p)) + p for p in part], device=model.device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=model.device)
                out = model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=0
                )
                new += (out.shape[1] - width) * len(part)
            return new

        for name, work in (("xlift decode", ours), ("generate", theirs)):
            new = work()
            found.append(told(bench, f"{name} {shape}", timed(bench, work), new, 0.0, 1.0))
            print(json.dumps({"found": found}), flush=True)
    return found


def checks(bench: Bench) -> list[dict[str, Any]]:
    """Every property of tests/device_properties.py on this device: how far off it is, and how far it may be."""
    from device_properties import PROPERTIES

    found = []
    with tempfile.TemporaryDirectory() as folder:
        base = write_model(Bench(bench.placement, True), "7b", Path(folder))
        for name, measure in PROPERTIES.items():
            try:
                off, allowed = measure(base, bench.placement.device)
                found.append({"what": name, "off": off, "allowed": allowed, "holds": off <= allowed})
            except Exception as error:
                found.append({"what": name, "holds": False, "problem": f"{type(error).__name__}: {error}"})
    return found


PARTS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "checks": checks,
    "lora-270m": lambda bench: training(bench, "lora", "270m"),
    "full-270m": lambda bench: training(bench, "full", "270m"),
    "together-270m": lambda bench: together(bench, "270m"),
    "loss": loss,
    "lora-7b": lambda bench: training(bench, "lora", "7b"),
    "lora-7b-rows": lambda bench: training(bench, "lora", "7b", rows=True),
    "full-7b": lambda bench: training(bench, "full", "7b"),
    "generation-270m": lambda bench: generation(bench, "270m"),
}


def run_part(name: str, arguments: list[str], seconds: float) -> dict[str, Any]:
    """A part in a process of its own; what it had found before it failed or ran out of time counts."""
    began = time.monotonic()
    line = [sys.executable, __file__, "--part", name, *arguments]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, told_errors = process.communicate(timeout=seconds)
        problem = "" if process.returncode == 0 else (told_errors.strip().splitlines() or ["no message"])[-1][:300]
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        problem = f"stopped after {seconds:.0f} s"
    lines = [json.loads(one) for one in out.splitlines() if one.startswith("{")]
    found = lines[-1]["found"] if lines else []
    return {"part": name, "seconds": round(time.monotonic() - began, 1), "problem": problem, "found": found}


def table(results: dict[str, Any]) -> str:
    """All parts as Markdown."""
    text = [
        f"# {results['device']}, {results['date']}",
        "",
        ", ".join(f"{k} {v}" for k, v in results["versions"].items()),
    ]
    for part in results["parts"]:
        text += ["", f"## {part['part']} ({part['seconds']} s)", ""]
        text += [f"Problem: {part['problem']}", ""] if part["problem"] else []
        columns = list(dict.fromkeys(key for row in part["found"] for key in row))
        if columns:
            text += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for row in part["found"]:
            shown = [row.get(key, "") for key in columns]
            text.append("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown) + " |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on whatever there is")
    parser.add_argument("--only", help="names of parts, with commas between them")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cpu" if arguments.smoke else "cuda"
    if arguments.part:
        bench = bench_of(place(device, "bfloat16"), arguments.smoke)
        print(json.dumps({"found": PARTS[arguments.part](bench)}))
        return
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --smoke shows on any machine that all of it runs")
    wanted = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        sys.exit(f"no part {', '.join(unknown)}; choices: {', '.join(PARTS)}")
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "peft", "accelerate")}
    machine = platform.machine() if arguments.smoke else torch.cuda.get_device_name()
    results: dict[str, Any] = {"device": machine, "date": time.strftime("%Y-%m-%d"), "versions": versions, "parts": []}
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, passed = time.monotonic(), ["--smoke"] if arguments.smoke else []
    for number, name in enumerate(wanted):
        # What earlier parts have left is this part's, what those after it are promised is not.
        left = LIMIT - (time.monotonic() - began) - sum(BUDGETS[later] for later in wanted[number + 1 :])
        results["parts"].append(run_part(name, passed, max(BUDGETS[name] / 2, left)))
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=1))
        (arguments.out / "gpu.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
