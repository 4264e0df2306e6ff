"""What answering relies on, proved on the model itself with a few tokens before anything is spent."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from xlift.generation.engine import Batch, BatchOf, answering
from xlift.generation.slots import ROUGH_SCORES, plain_attention
from xlift.tuning.proof import Claim, mostly_equal, probe_ids, refuse

GOES_ON = 4
"""Tokens one by one: those after a row was let go are most of all positions."""


@torch.inference_mode()
def prove_answering(model: Any, batch_size: int, batch_of: BatchOf | None = None) -> None:
    """Raises ModelError that names all of what answering relies on and this model does not do.

    Going on token by token gives the scores of the whole text at once; and, where prompts are answered together, a row
    gives the same beside a longer one, and after a row that has ended was let go. `batch_of` is that of `answering`
    where it is open already.
    """
    ids = probe_ids(model, 12 + GOES_ON)[0].tolist()
    short, long = ids[:5], ids[5:]
    prompt, goes_on = long[:-GOES_ON], long[-GOES_ON:]
    with plain_attention(model):
        whole = model(input_ids=torch.tensor([long], device=model.device), use_cache=False).logits[0, -GOES_ON - 1 :]

    def claim(made: BatchOf, prompts: list[list[int]], problem: str, hint: str) -> Claim:
        try:
            found = _scores(made([]), prompts, goes_on)
        except Exception as error:  # a model of a family that nobody has tried may fail in any way
            return Claim(False, f"{problem}: {type(error).__name__}: {error}", hint)
        return Claim(mostly_equal(found.to(whole.dtype), whole, ROUGH_SCORES), problem, hint)

    alone = "this model, asked token by token, does not give the scores that it gives to the whole text"
    with nullcontext(batch_of) if batch_of else answering(model) as made:
        hopeless = "no setting mends that; please report it with the model's name"
        claims = [claim(made, [prompt], alone, hopeless)]
        if batch_size > 1 and claims[0].holds:
            beside = "this model answers otherwise beside another prompt"
            claims.append(claim(made, [short, prompt], beside, "set decoding.batch_size to 1"))
    refuse(claims)


def _scores(batch: Batch, prompts: list[list[int]], goes_on: list[int]) -> Tensor:
    """The scores of the last prompt's next tokens, `goes_on` being those that come; the others end after one."""
    batch.join(prompts)
    rows = len(prompts)
    found = [batch.logits()[-1]]
    for token in goes_on:
        batch.add(torch.full((rows,), token, device=found[0].device))
        if rows > 1 and len(found) == 1 and batch.can_keep:
            batch.keep([rows - 1])
            rows = 1
        found.append(batch.logits()[-1])
    return torch.stack(found)
