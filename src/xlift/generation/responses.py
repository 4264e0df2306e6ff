"""Responses of checkpoints to the study's prompts, made record by record and continued where they stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from xlift.checkpoint import Checkpoint, grammar_signature, margin_signature
from xlift.data.prompts import fact_prompts, grammar_pairs
from xlift.disk import JsonlWriter, write_atomic
from xlift.errors import UserError
from xlift.generation.adapters import Adapter, adapted, part_of, pays
from xlift.generation.engine import BatchOf, Reply, answering, decode
from xlift.generation.grammar import GrammarSummary, grammar_margins
from xlift.generation.margin import FactPair, MarginSummary, fact_pairs, language_margins, summarise
from xlift.generation.proof import prove_answering
from xlift.generation.slots import has_slots, plain_attention
from xlift.hub import ADAPTER_CONFIG, Located
from xlift.integrity import refuse_damaged
from xlift.models import KeptBase, Placement, adapter_layers, empty_model, load_tokenizer
from xlift.progress import progress
from xlift.records import Message, Prompt, fingerprint, reply_language
from xlift.study.runs import RunConfig
from xlift.study.served import Decoding
from xlift.study.study import Study
from xlift.tuning.limits import Limits, beyond, fitted, limits_of
from xlift.tuning.proof import refuse
from xlift.tuning.quantized import loaded_in
from xlift.tuning.templates import ChatFormat, chat_format, each_by_name, load_chat_format

AT_ONCE = 8
"""Checkpoints that answer in one pass at most."""


@dataclass
class Answerer:
    """A checkpoint that answers, alone or with others: `adapter` where the model is its base, and it stands beside."""

    checkpoint: Checkpoint
    chat: ChatFormat
    adapter: Adapter | None = None


class _Asked(NamedTuple):
    """A prompt as a member is asked it; of the turns that it follows `dropped` are left out."""

    member: Answerer
    number: int
    prompt: Prompt
    seen: list[Message]
    ids: list[int]
    dropped: int


def answer_checkpoints(
    checkpoints: Sequence[tuple[Checkpoint, Located]], placement: Placement, kept: KeptBase | None = None
) -> dict[str, UserError]:
    """Measure the margins of checkpoints of one base and let them answer their prompts, as far as that is not done yet.

    Each comes with its base, which may be an adapter that answers itself. The base's weights come from `kept`. Adapters
    stand beside them, and where that is faster their checkpoints answer in one pass; what each answers is the same
    alone. Later turns of a conversation are asked when the turns before them are answered. Returns what went wrong, by
    run; the others are not held up.
    """
    failed: dict[str, UserError] = {}
    kept = kept or KeptBase()
    left = [pair for pair in checkpoints if pair[0].unanswered or pair[0].unmeasured or pair[0].ungraded]
    beside, alone = [], [pair for pair in left if _shared_adapter(*pair) is None]
    if len(alone) < len(left):
        with kept.lent(left[0][1].base, placement) as model:
            slots = has_slots(model)
            for one, base in left:
                folder = _shared_adapter(one, base)
                with _told(one, failed):
                    adapter = _adapter_of(model, folder, one.run.config.weight) if folder and slots else None
                    if folder is None or adapter is None:
                        alone += [(one, base)] if folder else []
                        continue
                    beside.append(Answerer(one, checkpoint_chat(one, base), adapter))
            if beside:
                _answer_beside(model, beside, failed)
    for one, base in alone:
        with (
            _told(one, failed),
            loaded_in(one.decoding.quantized, base, one.weights, placement, one.run.config.weight, kept) as model,
        ):
            member = Answerer(one, checkpoint_chat(one, base))
            with answering(model) as batch_of:
                measure(model, member, batch_of)
                _answer(model, [member], batch_of, failed)
    return failed


@contextmanager
def _told(checkpoint: Checkpoint, failed: dict[str, UserError]) -> Iterator[None]:
    """What goes wrong with a checkpoint stops neither the others nor what comes after it."""
    try:
        yield
    except UserError as error:
        failed[checkpoint.run.id] = error


def _shared_adapter(checkpoint: Checkpoint, base: Located) -> Path | None:
    """The folder of the adapter that a checkpoint answers with beside its base's weights; None where it has its own."""
    return None if checkpoint.decoding.quantized else adapter_folder(checkpoint, base)


def adapter_folder(checkpoint: Checkpoint, base: Located) -> Path | None:
    """The folder of the adapter that a checkpoint answers with; None for one that answers with whole weights."""
    weights = checkpoint.weights or (Path(base.adapter) if base.adapter else None)
    return weights if weights and (weights / ADAPTER_CONFIG).is_file() else None


def _adapter_of(model: Any, folder: Path, weight: float) -> Adapter | None:
    """An adapter as it stands beside the weights of a model; None where it does more than LoRA or DoRA does."""
    layers = adapter_layers(model, folder)
    parts = {name: part_of(one, weight) for name, one in (layers or {}).items()}
    return {name: part for name, part in parts.items() if part} if parts and all(parts.values()) else None


def measure(model: Any, member: Answerer, batch_of: BatchOf | None = None) -> None:
    """Prove that the model answers, and write down its margins; `batch_of` as for `decode`."""
    one = member.checkpoint
    prove_answering(model, one.decoding.batch_size, batch_of)
    if one.unmeasured or one.ungraded:
        with plain_attention(model):
            language = summarise(language_margins(model, member.chat, margin_pairs(one.unmeasured)))
            pairs = {code: grammar_pairs(code) for code in one.ungraded}
            write_margins(one, language, grammar_margins(model, member.chat, pairs))


def _answer_beside(model: Any, members: list[Answerer], failed: dict[str, UserError]) -> None:
    """Measure adapters of a base and let them answer, in passes of several where that is faster."""
    with answering(model) as batch_of:
        measured = []
        for one in members:
            with _told(one.checkpoint, failed), adapted(model, [one.adapter or {}], lambda: None):
                measure(model, one, batch_of)
                measured.append(one)
        for group in _alike(measured):
            adapters = [one.adapter for one in group if one.adapter]
            counts = [len(one.checkpoint.unanswered) for one in group]
            rows = [min(group[0].checkpoint.decoding.batch_size, max(1, count)) for count in (max(counts), sum(counts))]
            if len(group) > 1 and not pays(model, adapters, batch_of, *rows):
                for one in group:
                    _answer(model, [one], batch_of, failed)
            else:
                _answer(model, group, batch_of, failed)


def _alike(members: Sequence[Answerer]) -> list[list[Answerer]]:
    """Members in groups that may share a pass: alike in rank, chat format and decoding; steered ones are alone."""
    found: dict[Any, list[Answerer]] = {}
    for place, one in enumerate(members):
        decoding, parts = one.checkpoint.decoding, list((one.adapter or {}).values())
        rank = parts[0].down.shape[0] if len({part.down.shape[0] for part in parts}) == 1 else -place
        chat, steered = one.chat, place if decoding.steer else -1
        template = fingerprint(chat.tokenizer.chat_template, chat.arguments)
        key = (rank, decoding.signature, decoding.batch_size, steered, template, chat.system, chat.stop_ids)
        found.setdefault(key, []).append(one)
    return [own[start : start + AT_ONCE] for own in found.values() for start in range(0, len(own), AT_ONCE)]


def _answer(model: Any, members: Sequence[Answerer], batch_of: BatchOf, failed: dict[str, UserError]) -> None:
    """Let members answer in one pass, each reply written down as it comes."""
    firsts = [one.checkpoint for one in members]
    count, left = sum(len(one.prompts) for one in firsts), sum(len(one.unanswered) for one in firsts)
    who = f"{len(members)} checkpoints" if len(members) > 1 else f"{firsts[0].run.label} step {firsts[0].step}"
    going = dict(enumerate(members))
    adapters = [one.adapter for one in members if one.adapter]
    with ExitStack() as stack:
        logs = [stack.enter_context(JsonlWriter(one.run.responses(one.step))) for one in firsts]
        bar = stack.enter_context(progress(f"generate {who}", count, count - left))

        def keep(index: int, reply: Reply) -> None:
            one = asked[index]
            logs[one.number].write(response_of(one.prompt, one.seen, reply, one.member.checkpoint, one.dropped))
            bar.advance(1)

        while asked := [one for number in list(going) for one in _asked(model, going, number, failed)]:
            names, languages = [one.prompt["id"] for one in asked], [reply_language(one.prompt) for one in asked]
            told = (names, firsts[0].decoding, keep, languages)
            decode(
                model,
                members[0].chat,
                [one.ids for one in asked],
                *told,
                batch_of=batch_of,
                adapters=adapters,
                kinds=[one.number for one in asked],
            )
            for one in going.values():
                one.checkpoint = replace(one.checkpoint)  # reads what was answered, which later turns go on from


def _asked(model: Any, going: dict[int, Answerer], number: int, failed: dict[str, UserError]) -> list[_Asked]:
    """What a member can be asked now; one whose prompts do not fit goes on no more."""
    member = going[number]
    prompts = member.checkpoint.askable
    seen = [member.checkpoint.seen(prompt) for prompt in prompts]
    with _told(member.checkpoint, failed):
        made = encoded_seen(member.chat, prompts, seen, limits_of(model), member.checkpoint.decoding)
        return [_Asked(member, number, *one) for one in zip(prompts, seen, *made, strict=True)]
    del going[number]
    return []


def encoded_seen(
    chat: ChatFormat, prompts: Sequence[Prompt], seen: Sequence[list[Message]], limits: Limits, decoding: Decoding
) -> tuple[list[list[int]], list[int]]:
    """Token ids of what is seen of prompts, and how many turns were dropped of each.

    Raises TemplateError with all that the chat template refuses, ModelError with how many are too long for the model.
    """
    most = _room(limits, decoding)
    named = [(f"prompt '{prompt['id']}'", own) for prompt, own in zip(prompts, seen, strict=True)]
    made = list(each_by_name(lambda messages: fitted(chat, messages, most), named))
    encoded, dropped = [ids for ids, _ in made], [count for _, count in made]
    refuse(beyond(limits, "prompts", encoded, decoding.max_new_tokens))
    return encoded, dropped


def _room(limits: Limits, decoding: Decoding) -> int | None:
    """Tokens that a prompt may have where longer ones lose turns; None where none do."""
    drops = decoding.too_long == "drop" and limits.context
    return max(1, limits.context - decoding.max_new_tokens + 1) if drops and limits.context else None


def encoded_prompts(
    chat: ChatFormat, prompts: Sequence[Prompt], decoding: Decoding | None = None, limits: Limits | None = None
) -> list[list[int]]:
    """Token ids of prompts; with `decoding`, a later turn comes after what was asked before it and the longest replies,
    as far as the model's `limits` let it.

    Raises TemplateError with all prompts that the chat template refuses.
    """
    most = _room(limits, decoding) if decoding and limits else None
    named = [(f"prompt '{prompt['id']}'", prompt["messages"]) for prompt in prompts]
    encoded: dict[str, list[int]] = {}
    made = list(each_by_name(lambda one: fitted(chat, one, most), named))
    for prompt, (own, _) in zip(prompts, made, strict=True):
        replied = own[-1:] * (decoding.max_new_tokens if decoding else 0)
        before = [*encoded[prompt["follows"]], *replied] if "follows" in prompt else []
        # Turns that do not fit are dropped: at worst all of them.
        encoded[prompt["id"]] = own if most and len(before) + len(own) > most else before + own
    return list(encoded.values())


def refuse_unreadable(study: Study, config: RunConfig, base: Located, prompts: Sequence[Prompt]) -> None:
    """Raises UserError where a run's model could not be asked the prompts of its study once it is trained."""
    chat = chat_format(load_tokenizer(base.tokenizer, base.revision), *config.spoken)
    limits = limits_of(empty_model(base.path, base.revision))
    encoded = encoded_prompts(chat, prompts, study.decoding, limits)
    refuse(beyond(limits, "prompts", encoded, study.decoding.max_new_tokens))


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
        return load_chat_format(load_tokenizer(str(weights)), *config.spoken)
    return chat_format(load_tokenizer(base.tokenizer, base.revision), *config.spoken)


def response_of(
    prompt: Prompt, seen: list[Message], reply: Reply, checkpoint: Checkpoint, dropped: int
) -> dict[str, Any]:
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
    return {**prompt, **made, **({"dropped_turns": dropped} if dropped else {})}
