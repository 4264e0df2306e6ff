"""vLLM lets checkpoints answer: one engine for a base and all of its adapters, on one GPU or several.

Its sums are not those of xlift's own decoding, so its responses carry signatures of their own, and name its version.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from xlift.checkpoint import Checkpoint
from xlift.disk import JsonlWriter
from xlift.errors import ModelError, UserError
from xlift.extras import require
from xlift.generation.engine import Reply, ended
from xlift.generation.responses import Answerer, adapter_folder, checkpoint_chat, encoded_seen, measure, response_of
from xlift.generation.served import note_engine
from xlift.hub import ADAPTER_CONFIG, Located
from xlift.integrity import refuse_damaged
from xlift.models import KeptBase, Placement, empty_model, loaded_checkpoint
from xlift.progress import progress
from xlift.records import fingerprint
from xlift.study.served import Decoding
from xlift.tuning.limits import Limits, limits_of
from xlift.tuning.templates import ChatFormat

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks that vLLM makes room for."""
ADAPTERS = 8
"""Adapters in one of its batches at most."""
HANDED_OVER = 512
"""Prompts that are handed over together: what they have answered is written down before the next ones begin."""


class VllmMember(NamedTuple):
    """A checkpoint that vLLM lets answer: its chat format, and the folder of its adapter; None without one."""

    checkpoint: Checkpoint
    chat: ChatFormat
    adapter: Path | None


def answer_by_vllm(
    checkpoints: Sequence[tuple[Checkpoint, Located]], placement: Placement, kept: KeptBase
) -> dict[str, UserError]:
    """Measure the margins of checkpoints of one base and let them answer their prompts, as far as that is not done yet.

    Margins come first, by the model loaded here: then vLLM has the memory. Returns what went wrong, by run. Raises
    ConfigError where vLLM is not installed.
    """
    require("vllm")
    failed: dict[str, UserError] = {}
    engines: dict[str, list[VllmMember]] = defaultdict(list)
    for one, base in checkpoints:
        try:
            if problems := beyond_vllm(one):
                raise ModelError([f"{one.run.label}: vLLM has no {name}" for name in problems], "decoding.engine=local")
            chat = checkpoint_chat(one, base)
            if one.unmeasured or one.ungraded:
                with loaded_checkpoint(base, one.weights, placement, 1.0, kept) as model:
                    measure(model, Answerer(one, chat))
            adapter = adapter_folder(one, base)
            if weights := adapter or one.weights:
                refuse_damaged(weights)
            engines[str(one.weights) if one.weights and not adapter else base.path].append(
                VllmMember(one, chat, adapter)
            )
        except UserError as error:
            failed[one.run.id] = error
    kept.let_go()
    for model_path, members in engines.items():
        try:
            _answer_together(model_path, members, checkpoints[0][1], placement, failed)
        except UserError as error:
            failed |= {one.checkpoint.run.id: error for one in members}
    return failed


def beyond_vllm(checkpoint: Checkpoint) -> list[str]:
    """What a checkpoint asks for that vLLM has not, by the names of the settings."""
    run, own = checkpoint.run.config, checkpoint.run.config.adaptation
    asked = {
        "weight below 1": run.weight != 1,
        "allow": checkpoint.decoding.allow,
        "steer": bool(checkpoint.decoding.steer),
        "adaptation.dora": own.dora,
        "adaptation.modules_to_save": bool(own.modules_to_save),
        f"adaptation.rank above {RANKS[-1]}": own.method == "lora" and own.rank > RANKS[-1],
    }
    return [name for name, wanted in asked.items() if wanted]


def _answer_together(
    model_path: str,
    members: Sequence[VllmMember],
    base: Located,
    placement: Placement,
    failed: dict[str, UserError],
) -> None:
    left = [one for one in members if one.checkpoint.unanswered]
    if not left:
        return
    revision = base.revision if model_path == base.path else None
    limits = limits_of(empty_model(model_path, revision))
    ranks = [rank_of(one.adapter) for one in left if one.adapter]
    tensor_parallel = left[0].checkpoint.decoding.tensor_parallel
    arguments = engine_arguments(model_path, revision, placement.dtype, ranks, tensor_parallel)
    with _engine({**arguments, "tokenizer": base.tokenizer}) as engine:
        from vllm import __version__

        told = f"vLLM {__version__} {placement.dtype}"
        for number, one in enumerate(left, 1):
            note_engine(one.checkpoint, one.checkpoint.run.label, told)
            try:
                _answer(engine, one, number, limits, told)
            except UserError as error:
                failed[one.checkpoint.run.id] = error


def rank_of(adapter: Path) -> int:
    """The LoRA rank of an adapter, as its own file says it."""
    return int(json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"])


# e.g. engine_arguments("m", None, "bfloat16", [4, 16, 20], 1)["max_lora_rank"] → 32
def engine_arguments(
    model: str, revision: str | None, dtype: str, ranks: Sequence[int], tensor_parallel: int
) -> dict[str, Any]:
    """What `vllm.LLM` is made with, for adapters of these `ranks` beside the model."""
    given: dict[str, Any] = {"model": model, "dtype": dtype, "tensor_parallel_size": tensor_parallel, "seed": 0}
    given |= {"revision": revision, "tokenizer_revision": revision} if revision else {}
    if ranks:
        room = next((rank for rank in RANKS if rank >= max(ranks)), RANKS[-1])
        given |= {"enable_lora": True, "max_loras": min(len(ranks), ADAPTERS), "max_lora_rank": room}
    return given


def sampling_arguments(decoding: Decoding, stops: Sequence[int], key: str) -> dict[str, Any]:
    """What `vllm.SamplingParams` are made with; a sampled reply has a seed by its prompt, so that samples differ."""
    given: dict[str, Any] = {
        "max_tokens": decoding.max_new_tokens,
        "repetition_penalty": decoding.repetition_penalty,
        "temperature": 0.0,
        "stop": decoding.stop or None,
        "stop_token_ids": sorted(stops),
    }
    if decoding.strategy == "sample":
        given |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "min_p": decoding.min_p}
        given |= {"seed": int(fingerprint(decoding.seed, key, length=7), 16)}
        given |= {"top_k": decoding.top_k} if decoding.top_k else {}
    return given


@contextmanager
def _engine(arguments: dict[str, Any]) -> Iterator[Any]:
    """A vLLM engine; its processes and memory are let go at the end. Raises ModelError for what it cannot load."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM

    try:
        engine = LLM(**arguments)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{arguments['model']}: vLLM cannot serve it: {error}", "decoding.engine=local") from None
    try:
        yield engine
    finally:
        engine.llm_engine.engine_core.shutdown()


def _answer(engine: Any, member: VllmMember, number: int, limits: Limits, told: str) -> None:
    """Let one checkpoint answer all its prompts, later turns after those that they follow."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    one, chat = member.checkpoint, member.chat
    lora = LoRARequest(one.run.id, number, str(member.adapter.resolve())) if member.adapter else None
    count, left = len(one.prompts), len(one.unanswered)
    with (
        JsonlWriter(one.run.responses(one.step)) as log,
        progress(f"generate {one.run.label} step {one.step}", count, count - left) as bar,
    ):
        while asked := one.askable:
            seen = [one.seen(prompt) for prompt in asked]
            ids, dropped = encoded_seen(chat, asked, seen, limits, one.decoding)
            for start in range(0, len(asked), HANDED_OVER):
                part = slice(start, start + HANDED_OVER)
                sampling = [
                    SamplingParams(**sampling_arguments(one.decoding, sorted(chat.stop_ids), prompt["id"]))
                    for prompt in asked[part]
                ]
                prompts = [{"prompt_token_ids": own} for own in ids[part]]
                made = engine.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
                for own, prompt, shown, gone in zip(made, asked[part], seen[part], dropped[part], strict=True):
                    reply = _reply(own, chat, one.decoding.stop)
                    log.write(response_of(prompt, shown, reply, one, gone) | {"engine": told})
                    bar.advance(1)
            one = replace(one)  # reads what was answered, which later turns go on from


def _reply(made: Any, chat: ChatFormat, stops: Sequence[str]) -> Reply:
    """A reply of vLLM, with the token that ended it; its own text leaves out half a character at the end."""
    output = made.outputs[0]
    tokens = list(output.token_ids)
    closed = bool(tokens) and tokens[-1] in chat.stop_ids
    reason = "length" if output.finish_reason == "length" else "stop"
    own = tokens[: len(tokens) - closed]
    text = ended(str(chat.tokenizer.decode(own, skip_special_tokens=True)), stops)
    return Reply(text, reason, len(made.prompt_token_ids), len(own))  # type: ignore[arg-type]
