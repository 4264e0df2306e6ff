"""What training relies on, proved on the model itself with a few tokens before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlift.errors import ModelError
from xlift.tuning.attention import attends_by_lengths, forget_lengths
from xlift.tuning.loss import decoder_inputs, decoder_of, projection
from xlift.tuning.packing import pack
from xlift.tuning.templates import Encoded

EXACT, ROUGH = 1e-3, 5e-2
"""Relative error that is rounding: in float32, and in half precision."""


class Claim(NamedTuple):
    """Something that a model must do: whether it does, what is wrong if not, and what to change."""

    holds: bool
    problem: str
    hint: str


@torch.no_grad()
def prove_training(model: Any, packing: bool) -> None:
    """Raises ModelError that names all of what training relies on and this model does not do.

    The decoder's states through the output layer are the model's own logits; no token sees a later one; packed examples
    do not see each other. Evaluation mode while it lasts.
    """
    was_training = model.training
    model.eval()
    try:
        claims = _computed(model, packing)
    except Exception as error:  # a model of a family that nobody has tried may fail in any way
        raise ModelError(f"this model cannot be trained: {type(error).__name__}: {error}") from None
    finally:
        model.train(was_training)
    refuse(claims)


def refuse(claims: Sequence[Claim]) -> None:
    """Raises ModelError with the problems of all claims that do not hold."""
    failed = [claim for claim in claims if not claim.holds]
    if failed:
        hints = dict.fromkeys(claim.hint for claim in failed)
        raise ModelError([claim.problem for claim in failed], "; ".join(hints))


def _computed(model: Any, packing: bool) -> list[Claim]:
    ids = probe_ids(model, 20)
    whole = model(input_ids=ids, use_cache=False).logits
    if not whole.isfinite().all():
        return [Claim(False, "this model's scores are no numbers: its weights are damaged", "take a whole copy of it")]
    project, _ = projection(model)
    states = project(decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state)
    other = torch.cat([ids[:, :10], ids[:, 10:].flip(1)], dim=1)
    causal = model(input_ids=other, use_cache=False).logits[:, :10]
    claims = [
        Claim(
            equal(states, whole),
            "this model computes its scores in a way that xlift does not know",
            "please report it with the model's name",
        ),
        Claim(
            equal(causal, whole[:, :10]),
            "this model's tokens see those that come after them: it is no causal language model",
            "take a model that was trained to write, such as one of text-generation on the hub",
        ),
    ]
    if packing:
        problem = "this model lets packed examples see each other"
        claims.append(Claim(_packs(model, ids[0].tolist()), problem, "set training.packing to false"))
    return claims


def _packs(model: Any, ids: list[int]) -> bool:
    """Whether two examples in one row give the states that they give apart.

    A model that does not do so by lengths is left to its masks.
    """
    parts, decoder = (ids[:9], ids[9:]), decoder_of(model)
    rows = [torch.tensor([part], device=model.device) for part in parts]
    apart = torch.cat([decoder(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows])
    batch = {key: value.to(model.device) for key, value in pack([Encoded(p, [True] * len(p)) for p in parts]).items()}

    def holds() -> bool:
        return equal(decoder(**decoder_inputs(model, batch), use_cache=False).last_hidden_state[0], apart)

    if attends_by_lengths(model):
        with suppress(Exception):  # a family that nobody has tried may fail in any way
            if holds():
                return True
        forget_lengths(model)
    return holds()


def probe_ids(model: Any, count: int) -> Tensor:
    """Some token ids, (1, count), always the same for a model."""
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows // 100, rows, (1, count), generator=generator).to(model.device)


def equal(found: Tensor, wanted: Tensor, rough: float = ROUGH) -> bool:
    """Whether two results differ by rounding only; by `rough` at most in half precision."""
    tolerance = EXACT if wanted.dtype == torch.float32 else rough
    found, wanted = found.float(), wanted.float()
    return bool((found - wanted).norm() <= tolerance * wanted.norm())


def mostly_equal(found: Tensor, wanted: Tensor, rough: float = ROUGH) -> bool:
    """The same for scores of several positions, (positions, ...): in half precision most of them have to be equal.

    What a model says after a single token that means nothing can tip over with a rounding, in tuned ones by 0.4.
    """
    if wanted.dtype == torch.float32:
        return equal(found, wanted)
    held = [equal(one, other, rough) for one, other in zip(found, wanted, strict=True)]
    return 2 * held.count(True) > len(held)
