"""Several workers that train one run together, as torchrun or accelerate start them: who writes, what all agree on.

Whatever one worker writes and others read, and whatever is decided from files (which runs are trained, from which
step), is decided by the first and told to all: else two workers could train two runs and sum their gradients.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar, cast

from xlift.errors import UserError

Decision = TypeVar("Decision")


def first_worker() -> bool:
    """Whether this process is the one that writes: the only one, or the first."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def several_workers() -> bool:
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def part() -> None:
    """Close this process's connection to others, if any, once nothing is under way between them.

    Its threads may still hold what the interpreter owns; at the interpreter's end that would abort the process
    (pytorch/pytorch#179291). With something under way it would wait for the others.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def agreed(decide: Callable[[], Decision], device: str) -> Decision:
    """What the first worker decides, the same for all of them; nobody goes on before it is decided.

    What a decision raises as UserError is raised by all. `device` is where the study computes.
    """
    if not several_workers():
        return decide()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # First of all, since it gives every worker its own GPU.
    PartialState(cpu=device == "cpu")
    told: list[object] = [None, None]
    if first_worker():
        try:
            told = [decide(), None]
        except UserError as error:
            told = [None, error]
    decision, refusal = broadcast_object_list(told)
    if refusal is not None:
        raise cast(UserError, refusal)
    return cast(Decision, decision)


def one_after_another(work: Callable[[], Decision], device: str) -> Decision:
    """Do what fills a cache on this machine in its first worker, then in the others, which find it filled.

    What it raises in one of them as UserError is raised by all, once all have come to its end.
    """
    if not several_workers():
        return work()
    from accelerate import PartialState
    from accelerate.utils import gather_object

    found: list[Decision] = []
    refused: list[UserError] = []
    with PartialState(cpu=device == "cpu").local_main_process_first():
        try:
            found.append(work())
        except UserError as error:
            refused.append(error)
    for refusal in gather_object(refused):
        raise refusal
    return found[0]
