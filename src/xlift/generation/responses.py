"""Responses of one checkpoint to the study's prompts, made record by record and continued where they stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from xlift.data.prompts import fact_prompts
from xlift.generation.engine import Reply, decode
from xlift.generation.margin import SIGNATURE, FactPair, MarginSummary, fact_pairs, language_margins, summarise
from xlift.models import Located, Placement, load_tokenizer, loaded_checkpoint
from xlift.progress import progress
from xlift.records import JsonlWriter, Prompt, response_signatures, write_atomic
from xlift.study.settings import Decoding, RunConfig
from xlift.tuning.templates import ChatFormat, chat_format, load_chat_format
from xlift.workspace import RunFolder, current_responses


def answer_checkpoint(
    run: RunFolder,
    step: int,
    base: Located,
    placement: Placement,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    languages: Sequence[str],
) -> int:
    """Measure one checkpoint's margins in `languages` and let it answer `prompts`, as far as that is not done yet.

    Returns how many responses were made.
    """
    signatures = response_signatures(prompts, decoding.signature)
    done = {response["id"] for response in current_responses(run, step, list(prompts), signatures)}
    open_prompts = [prompt for prompt in prompts if prompt["id"] not in done]
    unmeasured = bool(languages) and run.margins_of(step, languages) is None
    if not open_prompts and not unmeasured:
        return 0
    chat = checkpoint_chat(run, step, base)
    encoded = [chat.encode_prompt(prompt["messages"]) for prompt in open_prompts]
    title = f"generate {run.label} step {step}"
    checkpoint = run.checkpoint(step) if step else None
    with loaded_checkpoint(base, checkpoint, placement, run.config.weight) as model:
        if unmeasured:
            write_margins(run, step, summarise(language_margins(model, chat, margin_pairs(languages))))
        with JsonlWriter(run.responses(step)) as log, progress(title, len(prompts), len(done)) as bar:

            def keep(index: int, reply: Reply) -> None:
                log.write(_record(open_prompts[index], reply, run, step, signatures))
                bar.advance(1)

            decode(model, chat, encoded, [prompt["id"] for prompt in open_prompts], decoding, keep)
    return len(open_prompts)


def margin_pairs(languages: Sequence[str]) -> list[FactPair]:
    """The built-in validation facts that language margins are measured on (see margin.py); [] without languages."""
    return fact_pairs(fact_prompts(list(languages))) if languages else []


def write_margins(run: RunFolder, step: int, found: Sequence[MarginSummary]) -> None:
    """Write down the language margins of a run's checkpoint."""
    rows = [
        {"language": one.language, "probability": asdict(one.probability), "wins": asdict(one.wins)} for one in found
    ]
    facts = {"signature": SIGNATURE, "languages": rows}
    write_atomic(run.margins(step), json.dumps(facts, indent=2, ensure_ascii=False))


def checkpoint_chat(run: RunFolder, step: int, base: Located) -> ChatFormat:
    """The chat format saved with a checkpoint; for the untuned base, the one its tuned runs use."""
    config: RunConfig = run.config
    if step:
        return load_chat_format(load_tokenizer(str(run.checkpoint(step))), config.template, config.system)
    return chat_format(load_tokenizer(base.path, base.revision), config.template, config.system)


def _record(prompt: Prompt, reply: Reply, run: RunFolder, step: int, signatures: dict[str, str]) -> dict[str, Any]:
    made = {
        "run": run.id,
        "step": step,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": reply.new_tokens,
        "signature": signatures[prompt["id"]],
    }
    return {**prompt, **made}
