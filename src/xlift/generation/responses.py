"""Responses of one checkpoint to the study's prompts, made record by record and continued where they stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xlift.checkpoint import Checkpoint, grammar_signature, margin_signature
from xlift.data.prompts import fact_prompts, grammar_pairs
from xlift.disk import JsonlWriter, write_atomic
from xlift.generation.engine import Reply, decode
from xlift.generation.grammar import GrammarSummary, grammar_margins
from xlift.generation.margin import FactPair, MarginSummary, fact_pairs, language_margins, summarise
from xlift.generation.proof import prove_answering
from xlift.hub import Located
from xlift.integrity import refuse_damaged
from xlift.models import KeptBase, Placement, empty_model, load_tokenizer, loaded_checkpoint
from xlift.progress import progress
from xlift.records import Message, Prompt, reply_language
from xlift.study.runs import RunConfig
from xlift.study.study import Study
from xlift.tuning.limits import beyond, limits_of
from xlift.tuning.proof import refuse
from xlift.tuning.templates import ChatFormat, chat_format, each_by_name, load_chat_format


def answer_checkpoint(checkpoint: Checkpoint, base: Located, placement: Placement, kept: KeptBase | None = None) -> int:
    """Measure a checkpoint's margins and let it answer its prompts, as far as that is not done yet.

    The base comes from `kept`. Later turns of a conversation are asked when the turns before them are answered. Returns
    how many responses were made.
    """
    run, step, left = checkpoint.run, checkpoint.step, checkpoint.unanswered
    if not (left or checkpoint.unmeasured or checkpoint.ungraded):
        return 0
    chat = checkpoint_chat(checkpoint, base)
    title = f"generate {run.label} step {step}"
    with loaded_checkpoint(base, checkpoint.weights, placement, run.config.weight, kept) as model:
        prove_answering(model, checkpoint.decoding.batch_size)
        if checkpoint.unmeasured or checkpoint.ungraded:
            language = summarise(language_margins(model, chat, margin_pairs(checkpoint.unmeasured)))
            pairs = {code: grammar_pairs(code) for code in checkpoint.ungraded}
            write_margins(checkpoint, language, grammar_margins(model, chat, pairs))
        count = len(checkpoint.prompts)
        with JsonlWriter(run.responses(step)) as log, progress(title, count, count - len(left)) as bar:

            def keep(index: int, reply: Reply) -> None:
                log.write(_record(asked[index], seen[index], reply, checkpoint))
                bar.advance(1)

            while asked := checkpoint.askable:
                seen = [checkpoint.seen(prompt) for prompt in asked]
                named = [(f"prompt '{prompt['id']}'", own) for prompt, own in zip(asked, seen, strict=True)]
                encoded = each_by_name(chat.encode_prompt, named)
                refuse(beyond(limits_of(model), "prompts", encoded, checkpoint.decoding.max_new_tokens))
                names, languages = [prompt["id"] for prompt in asked], [reply_language(prompt) for prompt in asked]
                decode(model, chat, encoded, names, checkpoint.decoding, keep, languages)
                checkpoint = replace(checkpoint)  # reads what was answered, which later turns go on from
    return len(left)


def encoded_prompts(chat: ChatFormat, prompts: Sequence[Prompt], new_tokens: int = 0) -> list[list[int]]:
    """Token ids of prompts; a later turn comes after what was asked before it and replies of at most `new_tokens`.

    Raises TemplateError with all prompts that the chat template refuses.
    """
    named = [(f"prompt '{prompt['id']}'", prompt["messages"]) for prompt in prompts]
    encoded: dict[str, list[int]] = {}
    for prompt, own in zip(prompts, each_by_name(chat.encode_prompt, named), strict=True):
        before = [*encoded[prompt["follows"]], *own[-1:] * new_tokens] if "follows" in prompt else []
        encoded[prompt["id"]] = before + own
    return list(encoded.values())


def refuse_unreadable(study: Study, config: RunConfig, base: Located, prompts: Sequence[Prompt]) -> None:
    """Raises UserError where a run's model could not be asked the prompts of its study once it is trained."""
    chat = chat_format(load_tokenizer(base.tokenizer, base.revision), config.template, config.system, config.thinking)
    new_tokens = study.decoding.max_new_tokens
    encoded = encoded_prompts(chat, prompts, new_tokens)
    refuse(beyond(limits_of(empty_model(base.path, base.revision)), "prompts", encoded, new_tokens))


def margin_pairs(languages: Sequence[str]) -> list[FactPair]:
    """The built-in validation facts that language margins are measured on (see margin.py); [] without languages."""
    return fact_pairs(fact_prompts(list(languages))) if languages else []


def write_margins(checkpoint: Checkpoint, language: Sequence[MarginSummary], grammar: Sequence[GrammarSummary]) -> None:
    """Write down a checkpoint's margins, beside those of other languages that are up to date."""
    leaning = [
        {
            "language": one.language,
            "signature": checkpoint.signed(margin_signature(one.language)),
            "probability": asdict(one.probability),
            "wins": asdict(one.wins),
        }
        for one in language
    ]
    graded = [
        {
            "language": one.language,
            "signature": checkpoint.signed(grammar_signature(one.language)),
            "wins": asdict(one.wins),
        }
        for one in grammar
    ]
    found = {
        "languages": [*checkpoint.margins.values(), *leaning],
        "grammar": [*checkpoint.grammar.values(), *graded],
    }
    write_atomic(checkpoint.run.margins(checkpoint.step), json.dumps(found, indent=2, ensure_ascii=False))


def checkpoint_chat(checkpoint: Checkpoint, base: Located) -> ChatFormat:
    """The chat format saved with a checkpoint; for the untuned base, the one its tuned runs use."""
    return run_chat(checkpoint.run.config, base, checkpoint.weights)


def run_chat(config: RunConfig, base: Located, weights: Path | None) -> ChatFormat:
    """The chat format of a run at its tuned `weights`, or of its untuned base. Raises ModelError for damaged ones."""
    if weights:
        refuse_damaged(weights)
        return load_chat_format(load_tokenizer(str(weights)), config.template, config.system, config.thinking)
    tokenizer = load_tokenizer(base.tokenizer, base.revision)
    return chat_format(tokenizer, config.template, config.system, config.thinking)


def _record(prompt: Prompt, seen: list[Message], reply: Reply, checkpoint: Checkpoint) -> dict[str, Any]:
    made = {
        "messages": seen,
        "run": checkpoint.run.id,
        "step": checkpoint.step,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": reply.new_tokens,
        "seconds": reply.seconds,
        "signature": checkpoint.signatures[prompt["id"]],
    }
    return {**prompt, **made}
