"""`xlift export`: a run's weights as a folder that others load, whole or the adapter alone, with a card of findings.

The folder appears whole: it is written beside its place, read back and compared, and moved there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from xlift.chat import open_run
from xlift.disk import temporary_path, write_atomic
from xlift.errors import ConfigError, ModelError
from xlift.generation.engine import ends_of
from xlift.hub import quiet
from xlift.report.reading import Material, language_name, material_of, share_rows
from xlift.report.rows import ShareRow
from xlift.tuning.card import card_body, card_head
from xlift.tuning.proof import equal, probe_ids
from xlift.tuning.templates import ChatFormat
from xlift.workspace import RunFolder, find_run, find_study

PROBED = 16
"""Tokens on which the weights that were written must give what those in memory give."""


def export_run(name: str, to: Path, step: int | None = None, adapter: bool = False, offline: bool = False) -> Path:
    """Write a run's checkpoint (the last where no `step` is named) into the folder `to`, which must not be there yet.

    Whole weights in Hugging Face format, an adapter merged, or with `adapter` the adapter's files; with tokenizer, chat
    template, every token that ends a reply, and README.md. Raises ConfigError, ModelError.
    """
    run = find_run(name)
    step = _step_of(run, step)
    if adapter and (run.config.adaptation.method != "lora" or run.config.weight != 1):
        raise ConfigError(f"{name}: no adapter alone: its weights are {run.label}'s", "leave --adapter out")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to}: there is something already", "name a new folder")
    folder = temporary_path(to)
    try:
        if adapter:
            shutil.copytree(run.checkpoint(step), folder)
        else:
            _write_whole(run, step, folder, offline)
        write_atomic(folder / "README.md", export_card(run, step, whole=not adapter))
        if to.is_dir():
            to.rmdir()
        os.replace(folder, to)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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


def _write_whole(run: RunFolder, step: int, folder: Path, offline: bool) -> None:
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


def export_card(run: RunFolder, step: int, whole: bool) -> str:
    """README.md: how it was tuned, what the study found by language with intervals, and what it has not looked at."""
    material = material_of(find_study(run.path.parent.parent))
    rows = [row for row in share_rows(material, "test") if (row.id, row.step) == (run.id, step)]
    head = card_head(run, whole, public=True) | ({"model-index": [_index(run, material, rows)]} if rows else {})
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{card_body(run, step, whole, public=True)}\n{_findings(material, rows)}"


def _index(run: RunFolder, material: Material, rows: Sequence[ShareRow]) -> dict[str, Any]:
    """The results in the form that the hub shows."""
    data = {"name": f"prompts of the study {material.workspace.study.name}", "type": "xlift"}
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": data | {"config": row.language},
            "metrics": [{"type": row.rater, "name": f"{row.facet}, {language_name(row.language)}", "value": row.mean}],
        }
        for row in rows
        if row.mean is not None
    ]
    return {"name": run.label, "results": results}


def _findings(material: Material, rows: Sequence[ShareRow]) -> str:
    if not rows:
        return "## Findings\n\nIts answers have not been rated.\n"
    titles = {(scale.facet, scale.rater): scale.title for scale in material.scales}
    lines = [
        "| answers to test prompts | language | share | 95 % interval | rated | missing |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share, interval = ("", "") if row.mean is None else (f"{row.mean:.0%}", f"{row.low:.0%} – {row.high:.0%}")
        told = (titles[row.facet, row.rater], language_name(row.language), share, interval, row.rated, row.missing)
        lines.append(f"| {' | '.join(map(str, told))} |")
    asked = len({prompt.get("parallel_id", prompt["id"]) for prompt in material.prompts if prompt["split"] == "test"})
    limits = (
        f"From {asked} test requests a language; other languages and longer conversations were not looked at. "
        "Shares by surface checks and judges are no proof that an answer is true or safe."
    )
    return "\n".join(["## Findings", "", *lines, "", limits, ""])
