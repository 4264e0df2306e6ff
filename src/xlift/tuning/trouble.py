"""What goes wrong while a run trains, and what is done about it: memory that ends, a loss that jumps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

from xlift.errors import UserError, out_of_memory
from xlift.progress import say
from xlift.study.runs import RunConfig
from xlift.workers import first_worker

WINDOW = 20
"""Steps that a loss is compared with; the first that can be a spike is the one behind them."""
Made = TypeVar("Made")


# e.g. is_spike([2.0, 2.1, 1.9, 2.0] * 5, 3.2) → True
# e.g. is_spike([2.0, 2.1, 1.9, 2.0] * 5, 2.6) → False
# e.g. is_spike([1.0, 3.0] * 10, 3.2) → False
def is_spike(before: Sequence[float], loss: float) -> bool:
    """Whether a loss stands out of those before it: half above their median, and six of their usual deviations."""
    if len(before) < WINDOW:
        return False
    middle = median(before)
    usual = median(abs(one - middle) for one in before)
    return loss > middle + max(0.5 * middle, 6 * usual)


def spike_watch(label: str) -> Callable[[int, float], bool]:
    """A function that is given each step (from 0) and its loss, tells a spike, once in WINDOW steps, and answers
    whether this is one."""
    before: deque[float] = deque(maxlen=WINDOW)
    told = -WINDOW

    def look(step: int, loss: float) -> bool:
        nonlocal told
        found = is_spike(before, loss)
        if found and step - told >= WINDOW:
            told = step
            _tell(
                f"{label}: step {step + 1}: the loss jumped to {loss:.3f} from about {median(before):.3f}; if it does "
                "not come back, lower training.learning_rate or add warmup_steps"
            )
        before.append(loss)
        return found

    return look


def _tell(line: str) -> None:
    """All workers see the same, and one of them says it."""
    if first_worker():
        say(line)


def smaller(config: RunConfig, longest: int, step: int, label: str) -> RunConfig:
    """A run's settings with forward passes of half as many tokens, told; the examples of a step stay the same.

    Raises UserError where one example fills a pass, and where dropout would drop something else in smaller ones.
    """
    size, where = config.pass_tokens, f"{label}: step {step + 1}: memory ended"
    if config.adaptation.method == "lora" and config.adaptation.dropout:
        hint = "lower training.micro_batch_tokens; with dropout that makes another run, so it is not done unasked"
        raise UserError(f"{where} in a forward pass of {size:,} tokens", hint)
    if size <= longest:
        saving = [] if config.gradient_checkpointing else ["gradient_checkpointing"]
        saving += ["offload"] if config.can_offload else []
        told = f"set training.{' and '.join(saving)} to true, or " if saving else ""
        hint = f"{told}lower training.max_length"
        raise UserError(f"{where} in a forward pass of one conversation ({longest:,} tokens)", hint)
    _tell(f"{where} with {size:,} tokens in a forward pass: going on with {size // 2:,}, the batch stays as it is")
    return config.model_copy(update={"micro_batch_tokens": size // 2})


def made_to_fit(
    make: Callable[[RunConfig], Made], config: RunConfig, again: Callable[[], None], told: tuple[int, int, str]
) -> tuple[Made, RunConfig]:
    """What `make` makes with these settings, or with the first smaller ones that fit, and those settings.

    `again` undoes what a failed try has left; `told` is the longest example in tokens, the step (from 0), the label.
    """
    while True:
        made = within_memory(partial(make, config))
        if made is not None:
            return made, config
        again()
        config = smaller(config, *told)


def within_memory(work: Callable[[], Made]) -> Made | None:
    """What `work` makes; None where memory ends, with nothing left that holds the tensors of the failed try."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    return None
