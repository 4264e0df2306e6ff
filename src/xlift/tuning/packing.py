"""From tokenised conversations to batches: which examples meet in which optimiser step, and in what shape.

The plan is a pure function of lengths, seed and budgets, so a run can be continued from any step without stored state.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xlift.tuning.attention import starts_mask
from xlift.tuning.templates import Encoded

IGNORED = -100


# e.g. sorted(itertools.islice(example_order(3, seed=0), 3)) → [0, 1, 2]
def example_order(count: int, seed: int) -> Iterator[int]:
    """Endless indices of `count` examples, freshly shuffled in every epoch."""
    for epoch in itertools.count():
        # Four bytes a number: data sets have millions of examples.
        order = array("I", range(count))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        yield from order


# e.g. [*itertools.chain(*plan_steps([4, 5, 6], 0, 10, None, 2.0))].count(1) → 2
def plan_steps(
    lengths: Sequence[int], seed: int, batch_tokens: int, steps: int | None, epochs: float | None
) -> list[Sequence[int]]:
    """The examples of each optimiser step: as many, in shuffled order, as fit into `batch_tokens`.

    Either `steps` limits the plan, or `epochs` does: then every example is used that often (to the nearest example).
    """
    if steps is None and epochs is None:
        raise ValueError("either steps or epochs must be given")
    order = example_order(len(lengths), seed)
    if epochs is not None:
        order = itertools.islice(order, max(1, round(epochs * len(lengths))))
    planned = group_by_tokens(order, lengths, batch_tokens)
    return [array("I", group) for group in itertools.islice(planned, steps)]


# e.g. list(group_by_tokens(iter([0, 1, 2, 3]), [4, 5, 12, 3], 10)) → [[0, 1], [2], [3]]
def group_by_tokens(order: Iterator[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Consecutive groups whose lengths sum to at most `budget`; a longer example is a group of its own."""
    group: list[int] = []
    used = 0
    for index in order:
        if group and used + lengths[index] > budget:
            yield group
            group, used = [], 0
        group.append(index)
        used += lengths[index]
    if group:
        yield group


# e.g. split_micro_batches([0, 1, 2], [3, 5, 9], 10, padded=True) → [[0, 1], [2]]
def split_micro_batches(step: Sequence[int], lengths: Sequence[int], budget: int, padded: bool) -> list[list[int]]:
    """Cut a step's examples into forward passes of at most `budget` tokens, padding counted where there is any."""
    if not padded:
        return _best_fit(step, lengths, budget)
    order = sorted(step, key=lambda index: lengths[index])
    groups: list[list[int]] = []
    for index in order:
        # Ascending order: the newest example is the longest, so it sets the padded width.
        if groups and (len(groups[-1]) + 1) * lengths[index] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


# e.g. _best_fit([0, 1, 2, 3], [3, 4, 6, 7], 10) → [[3, 0], [2, 1]]
def _best_fit(step: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The longest first, each into the fullest group that has room."""
    groups: list[list[int]] = []
    used: list[int] = []
    for index in sorted(step, key=lambda index: -lengths[index]):
        fitting = [place for place, tokens in enumerate(used) if tokens + lengths[index] <= budget]
        if fitting:
            # The fullest: what is left stays in large gaps, into which longer examples still fit.
            place = max(fitting, key=used.__getitem__)
            groups[place].append(index)
            used[place] += lengths[index]
        else:
            groups.append([index])
            used.append(lengths[index])
    return groups


# e.g. pack([Encoded([5, 6], [False, True]), Encoded([7, 8], [False, True])])["position_ids"].tolist() → [[0, 1, 0, 1]]
def pack(examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """All examples in one row (1, tokens); positions restart at each, which keeps them from seeing one another.

    `starts` says the same in short: see attention.py.
    """
    starts = torch.tensor([0, *itertools.accumulate(map(len, examples))], dtype=torch.int32)
    ids = [token for example in examples for token in example.ids]
    positions = [position for example in examples for position in range(len(example))]
    labels = [label for example in examples for label in _labels(example)]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor([labels]),
        "starts": starts_mask(starts, max(map(len, examples))),
    }


def pad(examples: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """One example a row (examples, longest), padded on the right and masked there."""
    width = max(len(example) for example in examples)

    def rows(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])

    return {
        "input_ids": rows([example.ids for example in examples], pad_id),
        "attention_mask": rows([[1] * len(example) for example in examples], 0),
        "labels": rows([_labels(example) for example in examples], IGNORED),
    }


# e.g. _labels(Encoded([5, 6, 7], [True, False, True])) → [-100, -100, 7]
def _labels(example: Encoded) -> list[int]:
    # The first token is never predicted: in a packed row it would be learned from the example before it.
    learned = [False, *example.mask[1:]]
    return [token if mark else IGNORED for token, mark in zip(example.ids, learned, strict=True)]
