"""What a run is and takes, how many are worked on at a time, and the table that `xlift check` prints of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xlift.data.instructions import Examples
from xlift.errors import UserError
from xlift.hub import Located
from xlift.models import Placement
from xlift.planning.forecast import CheckpointWork, Disk, Size, Workload
from xlift.planning.proof import notes
from xlift.progress import byte_size, duration
from xlift.study.runs import RunConfig
from xlift.study.study import Study
from xlift.terminal import paged, terminal_room, wrapped
from xlift.tuning.encoding import Data, data_lines
from xlift.tuning.templates import ChatFormat, Encoded
from xlift.workspace import RunFolder


@dataclass(frozen=True)
class Planned:
    """A run, what its training does, and what its checkpoints are asked."""

    run: RunFolder
    base: Located
    size: Size
    chat: ChatFormat
    data: Data | None
    work: Workload
    """Its own training; empty for the untuned and for weights drawn back from another run."""
    answering: int
    """How many checkpoints answer."""
    asked: CheckpointWork
    watched: CheckpointWork
    """What is measured each time while it trains."""
    unfit: list[UserError]
    """What is wrong with the files of its base."""
    examples: Examples | None
    bits: int
    """Of its weights while it answers; 0: as they are."""

    @property
    def config(self) -> RunConfig:
        return self.run.config


class Takes(NamedTuple):
    """What a run takes: seconds (None: not measured; answering at most) and bytes (without a probe: at least)."""

    training: float | None
    answering: float | None
    memory: int
    disk: Disk


def at_a_time(study: Study, placement: Placement) -> int:
    """How many runs are worked on side by side on this machine."""
    if study.executor != "ray":
        return 1
    import torch

    by_cpu = (os.cpu_count() or 1) / study.ray.cpus
    gpus = 1 if study.ray.gpus is None else study.ray.gpus
    by_gpu = torch.cuda.device_count() / gpus if placement.device == "cuda" and gpus else by_cpu
    return max(1, int(min(by_cpu, by_gpu)))


# e.g. spread([3.0, 2.0, 1.0], 2) → 3.0
def spread(seconds: Sequence[float], workers: int) -> float:
    """Seconds until all is done, where the next run goes to whichever of `workers` is free first."""
    free = [0.0] * workers
    for one in seconds:
        free[free.index(min(free))] += one
    return max(free)


def _total_seconds(study: Study, seconds: list[float | None], placement: Placement) -> float | None:
    """All runs together. Side by side on a CPU each has only its share of the cores."""
    known = [one for one in seconds if one is not None]
    if len(known) < len(seconds) or not known:
        return None
    shared = study.executor == "ray" and placement.device == "cpu"
    slower = max(1.0, (os.cpu_count() or 1) / study.ray.cpus) if shared else 1.0
    return spread([one * slower for one in known], at_a_time(study, placement))


def print_table(study: Study, plans: list[Planned], takes: dict[str, Takes], placement: Placement) -> None:
    """One row a run, and the totals."""
    own = [takes[plan.run.id] for plan in plans]
    replies = [plan.answering * len(plan.asked.prompts) for plan in plans]
    new_tokens = [plan.answering * len(plan.asked.prompts) * plan.asked.new_tokens for plan in plans]
    workers = at_a_time(study, placement)
    measured = all(one.training is not None for one in own)
    total = "together" + (f", {workers} at a time" if workers > 1 else "")
    most = sum(sorted((one.memory for one in own), reverse=True)[:workers])
    columns = {
        "run": [*(plan.run.label for plan in plans), total],
        "examples": [*(_count(len(plan.data.train) if plan.data else 0) for plan in plans), ""],
        "steps": _counts([plan.work.steps for plan in plans]),
        "tokens": _counts([plan.work.tokens for plan in plans]),
        "training": _times(study, [one.training for one in own], placement),
        "replies": _counts(replies),
        "new tokens ≤": _counts(new_tokens),
        "answering ≤": _times(study, [one.answering for one in own], placement),
        "memory" if measured else "memory ≥": [*(byte_size(one.memory) for one in own), byte_size(most)],
        "disk": [byte_size(count) for count in _summed([one.disk.kept for one in own])],
    }
    print(paged([list(columns), *zip(*columns.values(), strict=True)], right=range(1, len(columns))))
    for told in dict.fromkeys(_left_out(plan) for plan in plans):
        for line in told.splitlines():
            print(wrapped(line, terminal_room()))
    for line in dict.fromkeys(n for one in plans for n in notes(one.chat, one.size.limits, one.data, one.asked)):
        print(wrapped(line, terminal_room()))


def _left_out(plan: Planned) -> str:
    data = plan.data
    if data is None:
        return ""
    lines = data_lines(data, plan.config.max_length)
    trained, held = len(data.train), len(data.heldout)
    if data.too_long + data.heldout_too_long:
        lines.append(
            f"{plan.config.instructions.label}: {trained} of {trained + data.too_long} examples are trained on and "
            f"{held} of {held + data.heldout_too_long} held out; the others are longer than "
            f"max_length={plan.config.max_length}"
        )
    return "".join(f"{line}\n" for line in lines)


def _summed(counts: list[int]) -> list[int]:
    return [*counts, sum(counts)]


# e.g. _counts([0, 1200]) → ["–", "1,200", "1,200"]
def _counts(counts: list[int]) -> list[str]:
    """Numbers and their sum."""
    return [_count(count) for count in _summed(counts)]


def _times(study: Study, seconds: list[float | None], placement: Placement) -> list[str]:
    """Times and what they come to together."""
    return [_time(one) for one in [*seconds, _total_seconds(study, seconds, placement)]]


def _count(number: int) -> str:
    return f"{number:,}" if number else "–"


# e.g. [_time(None), _time(90.0)] → ["–", "1 min 30 s"]
def _time(seconds: float | None) -> str:
    return "–" if not seconds else duration(seconds)


def show_mask(chat: ChatFormat, example: Encoded) -> None:
    """One example as the model sees it: learned tokens green, the rest dim."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for token, learned in zip(example.ids, example.mask, strict=True):
        text.append(str(chat.tokenizer.decode([token])), style="bold green" if learned else "dim")
    print(f"template {chat.name}, end of turn {chat.end_of_turn}; learned tokens are green:")
    Console().print(text, soft_wrap=True)
