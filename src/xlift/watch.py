"""What is watched while a model trains, on validation prompts only: does it still hold the users' languages?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xlift.checkpoint import measured_languages
from xlift.errors import DataError
from xlift.generation.engine import Reply, decode
from xlift.generation.margin import language_margins, summarise
from xlift.generation.responses import encoded_prompts, margin_pairs
from xlift.rating.language.rater import rate_text
from xlift.records import Prompt, counted, reply_language
from xlift.study.served import Decoding
from xlift.study.study import Study
from xlift.tuning.templates import ChatFormat


@dataclass(frozen=True)
class ValidationPrompts:
    """Prompts that may be looked at while hyperparameters are being chosen. Raises DataError for a test prompt."""

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        leaked = [prompt["id"] for prompt in self.prompts if prompt["split"] != "validation"]
        if leaked:
            raise DataError(f"not validation prompts: {', '.join(leaked[:5])}")

    def first(self, count: int) -> list[Prompt]:
        """The first `count` prompts of each language; later turns of conversations are left out."""
        codes = dict.fromkeys(prompt["language"] for prompt in self.prompts)
        alone = [prompt for prompt in self.prompts if "follows" not in prompt]
        return [p for code in codes for p in [p for p in alone if p["language"] == code][:count]]


def validation_prompts(prompts: Sequence[Prompt]) -> ValidationPrompts:
    """The validation prompts among a study's prompts."""
    return ValidationPrompts(tuple(prompt for prompt in prompts if prompt["split"] == "validation"))


def watcher(study: Study, prompts: ValidationPrompts) -> Callable[[Any, ChatFormat], dict[str, Any]] | None:
    """A function of a model and its chat format that measures what `validation` asks for; None where that is nothing.

    `margins`: mean probability of opening in the user's language rather than in English, by language. `language`: share
    of replies to validation prompts that are wholly in the language they must be in, of those that can be told.
    """
    settings = study.validation
    chosen, pairs = prompts.first(settings.responses), margin_pairs(measured_languages(study))
    if not chosen and not pairs:
        return None
    brief = study.decoding.model_copy(update={"max_new_tokens": settings.max_new_tokens})

    def watch(model: Any, chat: ChatFormat) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if pairs:
            margins = summarise(language_margins(model, chat, pairs))
            found["margins"] = {one.language: _rounded(one.probability.mean) for one in margins}
        if chosen:
            found["language"] = _language_shares(model, chat, chosen, brief)
        return found

    return watch


def _language_shares(
    model: Any, chat: ChatFormat, prompts: Sequence[Prompt], decoding: Decoding
) -> dict[str, float | None]:
    values: dict[str, list[float]] = {prompt["language"]: [] for prompt in prompts}

    def keep(index: int, reply: Reply) -> None:
        value, _, reason = rate_text(reply.text, reply_language(prompts[index]))
        value = counted({"facet": "language", "value": value, "reason": reason})
        if value is not None:
            values[prompts[index]["language"]].append(float(value == 2))

    encoded = encoded_prompts(chat, prompts)
    names, languages = [prompt["id"] for prompt in prompts], [reply_language(prompt) for prompt in prompts]
    decode(model, chat, encoded, names, decoding, keep, languages)
    return {code: _rounded(sum(shares) / len(shares)) if shares else None for code, shares in values.items()}


# e.g. _rounded(0.123456) → 0.1235
def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
