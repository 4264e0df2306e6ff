"""The likeliest token, exactly, without the scores of all tokens: on a CPU in bfloat16, with a large vocabulary.

A product in whole numbers of 8 bits, which the processor makes twice as fast, leaves only the tokens whose score may be
the highest, by a bound that always holds; only these are computed with the weights as they are. For states x and a
token's weights w, rounded to x' and w', |x·w - x'·w'| <= |x - x'| |w| + |x'| |w - w'|. Both are rotated alike before
they are rounded, so that no entry stands out and the bound is narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xlift.generation.choosing import Held, choose_greedily
from xlift.tuning.loss import scores_of

LEAST_VOCABULARY = 2**15
"""Smaller vocabularies are multiplied whole: there is little to gain."""
TOKEN_BLOCKS = (64, 512)
"""Tokens whose bound and highest score are looked at together, at least and at most."""
ROTATED = 64
"""Entries that are rotated together."""
STEPS_OF_BYTE = 127
ZERO = 128
"""The byte without sign that stands for zero."""
_ONE_BY_ONE: Any = ([1, 1], [0, 0], [1, 1], 1)
SCREENED_ROWS = 48
"""Rows whose product is made together: from 64 on, the library takes another kernel, eight times as slow."""
TOKENS_AT_ONCE = 512
"""Tokens whose weights are rounded together: what that holds stays in the cache."""
MOST_ALONE = 8192
"""Tokens of a row that are computed one by one at most; where more may be the likeliest, all are, by the product."""
WORTH_SCREENING = 1440
"""Steps, each times 16 and its rows, from which on a screen pays: of 262 k tokens it takes 0.8 s to make, and saves 9
ms of a step of one row, 34 of one of 48."""
SCORE_ROUNDING = 2.0**-6
"""Of a score, what its roundings to bfloat16 come to at most: half a step of 2**-7, a few times."""


class Screen(NamedTuple):
    """An output layer: its `weight` (tokens, inputs), and that rotated and rounded, in the layout of the kernel.

    `steps` (tokens,) are what one is worth; `norms` and `errors` (blocks,) the longest weights of a block, and the most
    that rounding took of them.
    """

    weight: Tensor
    rounded: Tensor
    steps: Tensor
    norms: Tensor
    errors: Tensor


def screening(model: Any) -> Callable[[int, int], Screen | None]:
    """What asks for a screen by how many steps of how many rows are to come: once that pays, with all that came before,
    it is made, and once made it is always used."""
    work = 0
    made = cache(lambda: screen_of(model))

    def screen(steps: int, rows: int) -> Screen | None:
        nonlocal work
        work += steps * (16 + rows)
        return made() if work >= WORTH_SCREENING else None

    return screen


def screen_of(model: Any) -> Screen | None:
    """What the output layer is screened with; None where scores are more than its product, or it would not pay."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or head._forward_hooks:
        return None
    tokens, inputs = head.weight.shape
    large = tokens >= LEAST_VOCABULARY and tokens % TOKEN_BLOCKS[0] == 0 and inputs % ROTATED == 0
    halved = head.weight.device.type == "cpu" and head.weight.dtype == torch.bfloat16
    (factor, cap), divisor = scores_of(model)
    plain = factor == 1 and cap is None and divisor in (None, 1)
    # Without these instructions, sums of whole numbers may overflow.
    return _screen(head.weight.detach()) if large and halved and plain and torch.cpu._is_vnni_supported() else None


def _screen(weight: Tensor) -> Screen:
    rounded = torch.empty(*weight.shape, 1, 1, dtype=torch.int8)
    steps, norms, errors = [], [], []
    for own, made in zip(weight.split(TOKENS_AT_ONCE), rounded[..., 0, 0].split(TOKENS_AT_ONCE), strict=True):
        rotated = _rotated(own.float())
        step = rotated.abs().amax(1).clamp(min=1e-12) / STEPS_OF_BYTE
        whole = (rotated / step[:, None]).round_()
        made.copy_(whole)
        steps.append(step)
        norms.append(rotated.norm(dim=1))
        errors.append(rotated.addcmul_(whole, step[:, None], value=-1).norm(dim=1))
    worth = torch.cat(steps)
    packed = torch.ops.onednn.qconv_prepack(rounded, worth, 1.0, ZERO, *_ONE_BY_ONE, None)
    block = min(TOKEN_BLOCKS[1], len(weight) & -len(weight))
    longest, lost = (torch.cat(parts).view(-1, block).amax(1) for parts in (norms, errors))
    return Screen(weight, packed, worth, longest, lost)


def _rotated(rows: Tensor) -> Tensor:
    """Rows after one rotation, in float32: what two of them are multiplied is as before."""
    return (rows.view(-1, ROTATED) @ _rotation()).view(rows.shape)


@cache
def _rotation() -> Tensor:
    """Signs by chance, and a Hadamard matrix."""
    made = torch.ones(1, 1)
    while len(made) < ROTATED:
        above = torch.cat([made, made], 1)
        made = torch.cat([above, torch.cat([made, -made], 1)])
    signs = torch.randint(0, 2, (ROTATED, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return signs * made / ROTATED**0.5


def likeliest(screen: Screen, project: Callable[[Tensor], Tensor], states: Tensor, held: Held) -> Tensor:
    """The first token of the highest score of each row, (rows,), from states (rows, inputs): what a greedy choice takes
    of the scores that `project` makes of them."""
    if len(states) > SCREENED_ROWS:
        parts = torch.arange(len(states)).split(SCREENED_ROWS)
        return torch.cat([likeliest(screen, project, states[own], held.of(own)) for own in parts])
    row, token, kept = _candidates(screen, states, held)
    height = _exact(screen, states, row, token)
    height = torch.where(kept, held.lowered(height), height)
    count, none = row.bincount(minlength=len(states)), len(screen.weight)
    best = height.new_full((len(states),), float("-inf")).scatter_reduce(0, row, height, "amax")
    first = token.masked_fill(height < best[row], none)
    chosen = token.new_full((len(states),), none).scatter_reduce(0, row, first, "amin")
    whole = ((count > MOST_ALONE) | (chosen == none)).nonzero()[:, 0]
    if len(whole):
        chosen[whole] = choose_greedily(project(states[whole]), held.of(whole))
    return chosen


def _candidates(screen: Screen, states: Tensor, held: Held) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and tokens that may be the likeliest of their row, and whether the row has held the token."""
    scores, bounds, unit = _rough(screen, states)
    rows = torch.arange(len(states))
    own = held.ids if held.penalty != 1.0 else rows.new_empty(len(rows), 0)
    before = scores.gather(1, own).float()
    scores[rows[:, None], own] = float("-inf")
    size = len(screen.weight) // len(screen.norms)
    blocks = scores.view(len(rows), -1, size)
    heights = blocks.amax(2).float()
    block = heights.argmax(1)
    inside = blocks[rows, block].float().argmax(1)
    # The likeliest is at least as high as this token is.
    floor = (_exact(screen, states, rows, block * size + inside) / unit)[:, None]
    bounds += SCORE_ROUNDING * (floor.abs() + bounds.amax(1, keepdim=True))
    row, block = (heights + bounds >= floor).nonzero(as_tuple=True)
    at, inside = (blocks[row, block].float() + bounds[row, block][:, None] >= floor[row]).nonzero(as_tuple=True)
    may = held.lowered(before + held.penalty * bounds.gather(1, own // size)) >= floor
    held_row, place = may.nonzero(as_tuple=True)
    found = torch.cat([row[at], held_row]), torch.cat([block[at] * size + inside, own[held_row, place]])
    return *found, torch.arange(len(found[0])) >= len(at)


def _rough(screen: Screen, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (rows, tokens) and how far off those of a block may be (rows, blocks), in units of each row (rows,)."""
    rotated = _rotated(states.float())
    unit = rotated.abs().amax(1).clamp(min=1e-12) / STEPS_OF_BYTE
    rotated /= unit[:, None]
    whole = rotated.round()
    shifted, none = (whole + ZERO).to(torch.uint8), torch.zeros(1, dtype=torch.long)
    # A convolution of one by one over rows side by side: its layout is made in half the time of a linear layer's.
    asked = shifted.t().reshape(1, shifted.shape[1], 1, len(states))
    how: Any = (None, *_ONE_BY_ONE, 1.0, 0, torch.bfloat16, "none", [], None)
    scores = torch.ops.onednn.qconv_pointwise(asked, 1.0, ZERO, screen.rounded, screen.steps, none, *how)
    length = whole.norm(dim=1, keepdim=True)
    # With what sums in float32 may be off.
    lost = (rotated - whole).norm(dim=1, keepdim=True) + 1e-4 * length
    return scores[0, :, 0].t(), lost * screen.norms + length * screen.errors, unit


def _exact(screen: Screen, states: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """The scores of tokens in rows, as the product in bfloat16 makes them."""
    pairs = zip(row.split(TOKENS_AT_ONCE), token.split(TOKENS_AT_ONCE), strict=True)
    made = [(states[own].float() * screen.weight[these].float()).sum(1) for own, these in pairs]
    return torch.cat(made).to(states.dtype).float()
