"""Answering beside transformers and llama.cpp on a CPU: tokens and replies a second, memory, share of the limit.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--model embedded:gemma-3-270m] [--limits 48 256] [--smoke]

All answer the same built-in prompts in four languages greedily with repetition penalty 1.2, in turn in one process, so
that other work on the machine slows all alike; seconds of the processor decide. xlift and `generate` take batches of
several sizes, `generate` with prompts in order of length; `generate_batch` is its continuous batching; llama.cpp
answers over HTTP in this process from the Q4_K_M file of the embedded model and from the same weights in BF16, where
the packages xllamacpp and gguf are installed. The limit is what products with all weights would take at the rate of a
product of 1024 x 1024 matrices, or reading the weights once a step at the rate of memory, whichever is slower. The
second share counts, besides, what else nobody can leave out: the prompts' tokens through the layers, and reading the
keys and values of a row at each of its tokens (windows of attention are taken not to be reached). Peak memory is that
of the whole process while a peer answers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from xlift.data.prompts import read_prompt_file
from xlift.generation.engine import Reply, decode, kept_bytes
from xlift.hub import EMBEDDED, _part_files, locate
from xlift.memory import peak_memory, reset_peak_memory
from xlift.models import Placement, load_tokenizer, loaded_checkpoint, place
from xlift.study.data import builtin_path
from xlift.study.served import Decoding
from xlift.tuning.templates import ChatFormat, chat_format

LANGUAGES = ("en", "fr", "pt", "ru")
PENALTY = 1.2
ROOM = 512
"""Tokens of a prompt and its reply by llama.cpp."""


class Took(NamedTuple):
    """What one pass over all prompts took, and what it made."""

    wall: float
    processor: float
    tokens: int
    peak: int


Answer = Callable[[int], int]
"""Answers all prompts up to a limit of new tokens; returns how many it has made."""


def asked(chat: ChatFormat, count: int) -> list[list[int]]:
    """Token ids of the first open prompts of each language."""
    files = [read_prompt_file(builtin_path(f"prompts.open.{code}.jsonl")) for code in LANGUAGES]
    return [chat.encode_prompt(prompt["messages"]) for file in files for prompt in file[: count // len(LANGUAGES)]]


def with_xlift(model: Any, chat: ChatFormat, prompts: list[list[int]], batch: int) -> Answer:
    def answer(limit: int) -> int:
        made: list[int] = []
        decoding = Decoding(max_new_tokens=limit, repetition_penalty=PENALTY, batch_size=batch)

        def count(_: int, reply: Reply) -> None:
            made.append(reply.new_tokens)

        decode(model, chat, prompts, [str(i) for i in range(len(prompts))], decoding, count)
        return sum(made)

    return answer


def with_generate(model: Any, chat: ChatFormat, prompts: list[list[int]], batch: int) -> Answer:
    ends = sorted(chat.stop_ids)
    order = sorted(prompts, key=len)

    def answer(limit: int) -> int:
        made = 0
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            how = {"do_sample": False, "repetition_penalty": PENALTY, "eos_token_id": ends, "pad_token_id": 0}
            found = model.generate(ids, attention_mask=mask, max_new_tokens=limit, **how)[:, width:]
            ended = torch.isin(found, torch.tensor(ends)).cumsum(dim=1) > 0
            made += int((~ended).sum())
        return made

    return answer


def with_generate_batch(model: Any, chat: ChatFormat, prompts: list[list[int]], batch: int) -> Answer:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    ends = sorted(chat.stop_ids)

    def answer(limit: int) -> int:
        how = GenerationConfig(
            max_new_tokens=limit, do_sample=False, repetition_penalty=PENALTY, eos_token_id=ends, pad_token_id=0
        )
        # Unbounded, it takes nine tenths of the memory for its cache, and 12 GB for 48 rows.
        room = ContinuousBatchingConfig(
            num_blocks=4 * batch, max_requests_per_batch=batch, max_batch_tokens=max(256, 8 * batch)
        )
        found = model.generate_batch(prompts, how, room, warmup=False)
        answered = [reply for reply in found.values() if not reply.error]
        if len(answered) < len(prompts):
            raise RuntimeError(f"only {len(answered)} of {len(prompts)} prompts were answered")
        return sum(len([one for one in reply.generated_tokens if one not in ends]) for reply in found.values())

    return answer


def embedded_file(folder: Path) -> Path:
    """The embedded model's own file, Q4_K_M."""
    path = folder / "q4_k_m.gguf"
    path.write_bytes(b"".join(part.read_bytes() for part in _part_files("gemma-3-270m", EMBEDDED["gemma-3-270m"])))
    return path


def in_bfloat16(source: Path) -> Path:
    """The same model with weights of 16 bits, beside the file."""
    import gguf

    read, path = gguf.GGUFReader(source), source.with_name("bf16.gguf")
    own = ("GGUF.", "general.file_type")
    told = {name: (one.contents(), *one.types) for name, one in read.fields.items() if not name.startswith(own)}
    made = gguf.GGUFWriter(path, told.pop("general.architecture")[0])
    for name, (value, kind, *of) in told.items():
        made.add_key_value(name, value, kind, *of[:1])
    made.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for one in read.tensors:
        values = gguf.dequantize(one.data, one.tensor_type)
        kind = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType.BF16
        made.add_tensor(one.name, gguf.quantize(values, kind), raw_dtype=kind)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def with_llama(prompts: list[list[int]], file: Path, slots: int) -> Answer:
    """llama.cpp's own server in this process, with `slots` prompts at a time."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_parallel, settings.n_ctx = slots, slots * ROOM
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
    settings.verbosity, settings.warmup = 0, False
    server = xllamacpp.Server(settings)

    def one(prompt: list[int], limit: int) -> int:
        body = {"prompt": prompt, "n_predict": limit, "temperature": 0, "repeat_penalty": PENALTY}
        body["repeat_last_n"] = len(prompt) + limit
        wanted = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(wanted, timeout=3600) as reply:
            return int(json.load(reply)["tokens_predicted"])

    def answer(limit: int) -> int:
        with ThreadPoolExecutor(slots) as pool:
            return sum(pool.map(lambda prompt: one(prompt, limit), prompts))

    return answer


def took(answer: Answer, limit: int, placement: Placement) -> Took:
    reset_peak_memory(placement)
    wall, processor = time.perf_counter(), time.process_time()
    tokens = answer(limit)
    return Took(time.perf_counter() - wall, time.process_time() - processor, tokens, peak_memory(placement))


class Limit(NamedTuple):
    """What nobody can be faster than: products a second of the processor, bytes a second from memory, and tokens a
    second in steps of as many rows as a batch has."""

    operations: float
    moved: float
    tokens: float

    def whole(self, model: Any, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second with the reading of prompts, and of keys and values, which all replies of one length need
        least of."""
        read, each = sum(map(len, prompts)), tokens / len(prompts)
        products = 2 * read * (own_weights(model) - model.get_output_embeddings().weight.numel()) / self.operations
        kept = kept_bytes(model) * (each * read + len(prompts) * each**2 / 2) / self.moved
        return tokens / (tokens / self.tokens + products + kept)


def own_weights(model: Any) -> int:
    """The weights that a token is multiplied with."""
    embeddings = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embeddings
    return sum(one.numel() for one in model.parameters()) - (0 if tied else embeddings.numel())


def limit_of(model: Any, batch: int) -> Limit:
    def seconds(work: Callable[[], Any], times: int = 12) -> float:
        work()
        found = []
        for _ in range(times):
            started = time.process_time()
            work()
            found.append(time.process_time() - started)
        return min(found)

    square = torch.randn(1024, 1024).to(model.dtype)
    operations = 2 * 1024**3 / seconds(lambda: square @ square)
    block = torch.ones(1 << 26)
    moved = 4 * len(block) / seconds(block.amax)
    print(f"limit at {batch} rows: products {operations / 1e9:.0f} GFLOP/s, memory {moved / 1e9:.1f} GB/s", flush=True)
    weights = own_weights(model)
    step = max(2 * batch * weights / operations, weights * model.dtype.itemsize / moved)
    return Limit(operations, moved, batch / step)


def table(found: dict[tuple[str, int], list[Took]], model: Any, prompts: list[list[int]], least: Limit) -> None:
    shares = "of the limit | with prompts, keys and values"
    print(f"peer | limit | tokens | tokens / CPU s | {shares} | replies / CPU s | tokens / s by the clock | peak GB")
    for (name, limit), passes in found.items():
        processor, wall = (statistics.median(getattr(one, part) for one in passes) for part in ("processor", "wall"))
        tokens = passes[0].tokens
        rate, peak = tokens / processor, max(one.peak for one in passes) / 1e9
        print(
            f"{name} | {limit} | {tokens} | {rate:.1f} | {rate / least.tokens:.0%} "
            f"| {rate / least.whole(model, prompts, tokens):.0%} | {len(prompts) / processor:.2f} "
            f"| {tokens / wall:.1f} | {peak:.1f}"
        )


def main(options: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:gemma-3-270m", help="as in a study; an adapter's folder, too")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limits", type=int, nargs="+", default=[48, 256])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[16, 48], help="rows together; continuous batching has the last"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out, by the beginning of their names")
    parser.add_argument("--smoke", action="store_true", help="few short replies")
    given = parser.parse_args(options)
    if given.smoke:
        given.limits, given.prompts, given.batches, given.rounds = [4], 8, [2, 4], 1
    placement, base = place("cpu", given.dtype), locate(given.model)
    chat = chat_format(load_tokenizer(base.tokenizer, base.revision), "auto")
    prompts = asked(chat, given.prompts)
    with loaded_checkpoint(base, None, placement) as model, tempfile.TemporaryDirectory() as folder:
        # Of frozen weights, `generate` copies the output layer once a row: it would take 16 GB and minutes for 48 rows.
        model.requires_grad_(True)
        batch = given.batches[-1]
        peers: dict[str, Callable[[], Answer]] = {}
        for name, make in (("xlift", with_xlift), ("generate", with_generate)):
            for size in given.batches:
                peers[f"{name}, {size} rows"] = partial(make, model, chat, prompts, size)
        peers["generate_batch"] = lambda: with_generate_batch(model, chat, prompts, batch)
        if given.model == "embedded:gemma-3-270m":
            file = embedded_file(Path(folder))
            peers["llama.cpp Q4_K_M, 16 at a time"] = lambda: with_llama(prompts, file, 16)
            peers["llama.cpp BF16, 16 at a time"] = lambda: with_llama(prompts, in_bfloat16(file), 16)
        found = measured(peers, given, placement)
        table(found, model, prompts, limit_of(model, batch))


def measured(
    peers: dict[str, Callable[[], Answer]], given: argparse.Namespace, placement: Placement
) -> dict[tuple[str, int], list[Took]]:
    """All passes of all peers, in turn; why one takes no part is said."""
    answers: dict[str, Answer] = {}
    for name, make in peers.items():
        if any(name.startswith(one) for one in given.without):
            continue
        try:
            answers[name] = make()
            answers[name](2)
        except Exception as error:  # whatever a peer raises on this machine
            answers.pop(name, None)
            print(f"{name} takes no part: {type(error).__name__}: {error}"[:300], flush=True)
    found: dict[tuple[str, int], list[Took]] = {}
    for limit in given.limits:
        for _ in range(given.rounds):
            for name, answer in answers.items():
                found.setdefault((name, limit), []).append(took(answer, limit, placement))
                print(name, limit, found[name, limit][-1], flush=True)
    return found


if __name__ == "__main__":
    main()
