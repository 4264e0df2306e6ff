"""Runs of a grid trained in one pass beside one after another: seconds of the processor for a token.

    OMP_NUM_THREADS=1 python benchmarks/together.py [--runs 4] [--batch-tokens 320] [--steps 8]

Both ways train the same LoRA runs of the embedded model, which differ in their learning rate, in one process: a step
one after another, the next in one pass, and so on, both with memory kept, as runs together do. Other work on the
machine changes seconds of the processor little. The first step of each way warms up and does not count. Memory is the
peak of the process. On a GPU: benchmarks/gpu.sh.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from xlift.data.instructions import load_source
from xlift.hub import locate
from xlift.memory import kept_memory, peak_memory
from xlift.models import KeptBase, load_tokenizer, place
from xlift.study.data import Source
from xlift.study.runs import EMBEDDED_MODEL, RunConfig
from xlift.tuning.attention import by_lengths
from xlift.tuning.encoding import encode_data
from xlift.tuning.norms import fast_norms
from xlift.tuning.templates import chat_format
from xlift.tuning.together import Member, Passes, member_of, step_in_turn, step_together
from xlift.tuning.train import Ahead, Watching, plan
from xlift.workspace import RunFolder


def members(model: Any, arguments: argparse.Namespace, folder: Path) -> list[Member]:
    """The runs, ready for their first step."""
    base, placement, made = locate(EMBEDDED_MODEL), place("cpu", arguments.dtype), list[Member | None]()
    chat, conversations = chat_format(load_tokenizer(base.path), "gemma"), load_source(Source())
    for number in range(arguments.runs):
        config = RunConfig(
            learning_rate=1e-4 * (number + 1),
            max_length=min(256, arguments.batch_tokens),
            batch_tokens=arguments.batch_tokens,
            micro_batch_tokens=arguments.batch_tokens,
            steps=arguments.steps,
        )
        data = encode_data(config, chat, conversations, [])
        run = RunFolder(folder / str(number), str(number), config, folder / str(number))
        ahead = Ahead(run, chat, data, plan(config, data.lengths), 0, arguments.steps)
        made.append(member_of(model, ahead, placement, Watching(), {}))
    return [one for one in made if one]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=320)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    placement, seconds = place("cpu", arguments.dtype), dict[bool, list[float]]({False: [], True: []})
    with (
        tempfile.TemporaryDirectory() as folder,
        kept_memory(),
        KeptBase().lent(locate(EMBEDDED_MODEL), placement) as model,
        fast_norms(model),
        by_lengths(model),
    ):
        runs = members(model, arguments, Path(folder))
        (group,) = Passes().of(runs, len(runs))
        for step in range(arguments.steps):
            one_pass, began = bool(step % 2), time.process_time()
            made = step_together(model, *group, step) if one_pass else step_in_turn(model, runs, step)
            tokens = sum(record["tokens"] for record in made.values() if isinstance(record, dict))
            seconds[one_pass].append((time.process_time() - began) / tokens)
    turn, one = (sum(found[1:]) / len(found[1:]) for found in seconds.values())
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "peft")}
    print(
        f"{arguments.runs} runs, {arguments.batch_tokens} tokens each, {placement.dtype}, {torch.get_num_threads()} "
        f"threads: {1000 * turn:.2f} ms of the processor a token in turn, {1000 * one:.2f} in one pass, "
        f"{turn / one:.2f} times as fast, {peak_memory(placement) / 1e9:.1f} GB; {json.dumps(versions)}"
    )


if __name__ == "__main__":
    main()
