"""`xlift export`: a run's weights as a folder that others load, whole or the adapter alone, with a card of findings.

The folder appears whole: it is written beside its place, read back and compared, and moved there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from xlift.disk import whole_folder, write_atomic
from xlift.errors import ConfigError, ModelError
from xlift.export.card import export_card
from xlift.export.gguf import GgufType, find_converter, write_gguf, write_modelfile
from xlift.export.licence import keep_licence
from xlift.generation.engine import ends_of
from xlift.hub import quiet
from xlift.opening import open_run
from xlift.tuning.proof import equal, probe_ids
from xlift.tuning.templates import ChatFormat
from xlift.workspace import RunFolder, find_run

PROBED = 16
"""Tokens on which the weights that were written must give what those in memory give."""


def export_run(
    name: str,
    to: Path,
    step: int | None = None,
    adapter: bool = False,
    offline: bool = False,
    gguf: GgufType | None = None,
) -> Path:
    """Write a run's checkpoint (the last where no `step` is named) into the folder `to`, which must not be there yet.

    Whole weights in Hugging Face format, an adapter merged, or with `adapter` the adapter's files; with tokenizer, chat
    template, every token that ends a reply, README.md and what the base says of its licence; with `gguf` also as one
    file of that type for llama.cpp, and a Modelfile for Ollama. Raises ConfigError, ModelError.
    """
    converter = find_converter() if gguf else None
    run = find_run(name)
    step = _step_of(run, step)
    if adapter and (run.config.adaptation.method != "lora" or run.config.weight != 1):
        raise ConfigError(f"{name}: no adapter alone: its weights are {run.label}'s", "leave --adapter out")
    with whole_folder(to) as folder:
        if adapter:
            shutil.copytree(run.checkpoint(step), folder)
        else:
            chat = _write_whole(run, step, folder, offline)
            if gguf and converter:
                write_modelfile(folder, write_gguf(folder, run.label, gguf, converter), chat)
        licence = keep_licence(run, folder, offline)
        write_atomic(folder / "README.md", export_card(run, step, not adapter, licence))
    return to


def _step_of(run: RunFolder, step: int | None) -> int:
    there = run.checkpoint_steps()
    if run.config.untuned:
        raise ConfigError(f"{run.label}: the untuned base, which is there already: {run.config.model}")
    if not there:
        raise ConfigError(f"{run.label}: no checkpoint yet", "xlift train STUDY.yaml makes it")
    if step is not None and step not in there:
        raise ConfigError(f"{run.label}: no checkpoint of step {step}; there are: {', '.join(map(str, there))}")
    return there[-1] if step is None else step


def _write_whole(run: RunFolder, step: int, folder: Path, offline: bool) -> ChatFormat:
    import torch

    opened, chat = open_run(run, step, offline=offline)
    with opened as model, quiet():
        _name_ends(model, chat)
        model.save_pretrained(folder)
        chat.tokenizer.save_pretrained(folder)
        ids = probe_ids(model, PROBED)
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits
    _compare(folder, ids, wanted)
    return chat


def _name_ends(model: Any, chat: ChatFormat) -> None:
    """Others stop where xlift stops: at every token that ends a reply."""
    model.generation_config.eos_token_id = sorted(chat.stop_ids | ends_of(model))


def _compare(folder: Path, ids: Any, wanted: Any) -> None:
    """Raises ModelError where plain transformers reads other weights than were written."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet(), torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted.dtype, trust_remote_code=False)
        found = again.to(ids.device).eval()(input_ids=ids, use_cache=False).logits
    if not equal(found, wanted):
        raise ModelError(f"{folder.name}: what was written gives other scores than the run", "export it with --adapter")
