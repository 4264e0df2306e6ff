"""What a token costs when checkpoints of one base answer one after another and in one pass, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/adapters.py [--model embedded:gemma-3-270m] [--rows 48] [--rank 16] [--smoke]

Adapters of random numbers on all linear layers but the last; seconds of the processor in the fastest of a few steps. A
pass has `--rows` rows of all adapters; alone, an adapter has its share of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xlift.generation.adapters import Adapter, AdapterPart, seconds_a_row
from xlift.generation.engine import answering
from xlift.hub import locate
from xlift.models import loaded_checkpoint, place


def random_adapter(model: Any, rank: int) -> Adapter:
    """An adapter on every linear layer but the output layer."""
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and name != "lm_head"}
    made: Adapter = {}
    for name, one in layers.items():
        down, up = torch.randn(rank, one.weight.shape[1]), torch.randn(one.weight.shape[0], rank)
        made[name] = AdapterPart(*((side * 0.01).to(one.weight.dtype) for side in (down, up)))
    return made


def main(options: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="two adapters, few rows")
    given = parser.parse_args(options)
    counts = [1, 2] if given.smoke else [1, 2, 4, 8]
    rows = 8 if given.smoke else given.rows
    with loaded_checkpoint(locate(given.model), None, place("cpu", given.dtype)) as model:
        adapters = [random_adapter(model, given.rank) for _ in range(counts[-1])]
        print("checkpoints | rows alone | ms a token | in one pass | times as fast")
        with answering(model) as batch_of:
            for count in counts:
                alone = seconds_a_row(model, adapters[:1], batch_of, rows // count, time.process_time)
                shared = seconds_a_row(model, adapters[:count], batch_of, rows, time.process_time)
                told = f"{1000 * alone:.2f} | {1000 * shared:.2f} | {alone / shared:.2f}"
                print(f"{count} | {rows // count} | {told}", flush=True)


if __name__ == "__main__":
    main()
