"""What is proved of a run without a step of its model: its files, and that it can read what it will be given."""

from __future__ import annotations

from collections.abc import Sequence

from xlift.errors import ModelError, UserError
from xlift.hub import Located
from xlift.models import empty_model
from xlift.planning.forecast import CheckpointWork
from xlift.tuning.encoding import Data, unreadable_examples
from xlift.tuning.limits import Limits, beyond
from xlift.tuning.templates import TODAY, ChatFormat


def unfit_files(base: Located) -> list[UserError]:
    """What is wrong with the tensors in a model's files, by their headers."""
    try:
        empty_model(base.path, base.revision)
    except ModelError as error:
        return [error]
    return []


def unreadable(limits: Limits, data: Data | None, asked: CheckpointWork, watched: CheckpointWork) -> list[UserError]:
    """What a model cannot read of what it is trained on and asked."""
    claims = beyond(limits, "prompts", asked.prompts, asked.new_tokens)
    if watched.prompts:
        claims += beyond(limits, "prompts of validation.responses", watched.prompts, watched.new_tokens)
    if data:
        claims += unreadable_examples(limits, "conversations", data.train)
        claims += unreadable_examples(limits, "held-out conversations", data.heldout)
    return [UserError(claim.problem, claim.hint) for claim in claims if not claim.holds]


def notes(chat: ChatFormat, limits: Limits, data: Data | None, asked: CheckpointWork) -> list[str]:
    """What is no fault and good to know of how a model is asked."""
    found = []
    if chat.dated:
        found.append(f"the chat template writes today's date: here it is always {TODAY:%d %B %Y}")
    if chat.system and chat.merges_system:
        found.append("the chat template has no system turn: the system prompt opens the first user's turn")
    longest = max(data.lengths, default=0) if data else 0
    if limits.made_for and not limits.positions and longest > limits.made_for:
        found.append(f"conversations have up to {longest} tokens; the model was made for {limits.made_for}")
    if unknown := _unknown(chat, asked.prompts):
        found.append(f"{unknown} of {len(asked.prompts)} prompts hold characters that the tokenizer does not know")
    return found


def _unknown(chat: ChatFormat, prompts: Sequence[list[int]]) -> int:
    """How many prompts hold the token that stands for what a tokenizer does not know."""
    tokenizer = chat.tokenizer
    # Of GPT-2 it is the end of text as well, which a template may write.
    own = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, None}
    return sum(bool(own & {*prompt}) for prompt in prompts)
