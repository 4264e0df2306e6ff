"""A preference for the right language: each reply made likelier than its parallel in another language.

The odds ratio of ORPO (Hong et al. 2024, arXiv 2403.07691), which needs no second model beside the one that is trained,
or DPO (Rafailov et al. 2023, arXiv 2305.18290), whose second model is the base under the adapter that is trained.
The negatives are not written by anybody: they are the replies of the parallel conversations (`data/instructions.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlift.records import Conversation, Message
from xlift.study.runs import RunConfig
from xlift.tuning.loss import rows_in_turn
from xlift.tuning.templates import ChatFormat, Encoded

Negatives = Mapping[tuple[int, ...], Encoded]
"""By the ids of an example, the same with the reply in another language."""


def negatives(chat: ChatFormat, conversations: Sequence[Conversation], max_length: int) -> Negatives:
    """The negatives of the conversations that have a parallel in another language, of those that fit."""
    found: dict[tuple[int, ...], Encoded] = {}
    for one in (one for one in conversations if "wrong" in one):
        other = Message(role="assistant", content=one["wrong"])
        chosen, wrong = chat.encode(one["messages"]), chat.encode([*one["messages"][:-1], other])
        if len(wrong) <= max_length:
            found[tuple(chosen.ids)] = wrong
    return found


def preferred_pairs(examples: Sequence[Encoded], wrong: Negatives) -> list[tuple[Encoded, Encoded]]:
    """The examples that have a negative, each with it."""
    return [(one, wrong[key]) for one in examples if (key := tuple(one.ids)) in wrong]


def preference_loss(model: Any, batch: dict[str, Tensor], config: RunConfig) -> Tensor:
    """The loss of a padded batch (see packing.py) of two rows: the reply and its negative."""
    now = mean_log_probs(model, batch)
    if config.preference_loss == "orpo":
        return odds_ratio_loss(now[0], now[1])
    with torch.no_grad(), model.disable_adapter():
        before = mean_log_probs(model, batch)
    chosen, wrong = (now - before) * (batch["labels"][:, 1:] != -100).sum(dim=1)
    return dpo_loss(chosen, wrong, config.preference_beta)


# e.g. round(float(dpo_loss(torch.tensor(3.0), torch.tensor(1.0), 0.1)), 3) → 0.598
def dpo_loss(chosen: Tensor, wrong: Tensor, beta: float) -> Tensor:
    """-log σ(beta (chosen - wrong)) of what the log-probabilities of whole replies have gained over the base's."""
    return -F.logsigmoid(beta * (chosen - wrong))


def odds_ratio_loss(chosen: Tensor, wrong: Tensor) -> Tensor:
    """-log σ(log odds(chosen) - log odds(wrong)) of mean log-probabilities a token, elementwise."""
    return -F.logsigmoid(_log_odds(chosen) - _log_odds(wrong))


def _log_odds(log_prob: Tensor) -> Tensor:
    # A probability that float32 cannot tell from 1 has infinite odds.
    log_prob = log_prob.clamp(max=-1e-6)
    return log_prob - torch.log1p(-log_prob.exp())


def mean_log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean log-probability of each row's response tokens: (rows,), float32."""
    return -rows_in_turn(model, batch)
