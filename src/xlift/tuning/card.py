"""The model card that lies beside a checkpoint's weights, in the hub's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from xlift.study.study import Study
from xlift.workspace import RunFolder


def model_card(run: RunFolder, step: int) -> str:
    """README.md of a checkpoint: what it was tuned from and on, how, and how to load it."""
    whole = run.config.adaptation.method == "full"
    return f"---\n{yaml.safe_dump(card_head(run, whole), sort_keys=False)}---\n\n{card_body(run, step, whole)}"


def card_head(run: RunFolder, whole: bool, public: bool = False) -> dict[str, Any]:
    """What the hub reads of a card; `whole` weights, or an adapter; `public` without paths of this machine."""
    return {
        "base_model": _named(run.config.model, public),
        "language": sorted({source.language for source in run.config.instructions.sources}),
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["xlift", "instruction-tuning"],
    }


def card_body(run: RunFolder, step: int, whole: bool, public: bool = False) -> str:
    """What people read of a card; `public` without paths of this machine."""
    config = run.config
    revision = run.pinned_revision or config.revision
    at = f" at revision `{revision}`" if revision else ""
    data = ", ".join(f"`{Path(source.path).name}` ({source.language})" for source in config.instructions.sources)
    how = "all weights" if config.adaptation.method == "full" else f"LoRA, rank {config.adaptation.rank}"
    model = _named(config.model, public)
    told = without_paths(config.model_dump(mode="json")) if public else config.model_dump(mode="json")
    settings = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=110)
    return (
        f"# {run.label}, step {step}\n\n"
        f"`{model}`{at}, tuned by [xlift](https://arxiv.org/abs/2402.14778) ({how}) on {data}.\n"
        "The licence of the base model holds for these weights, too.\n\n"
        f"{_loading(model, revision, whole)}\n\n"
        "The tokenizer carries the chat template that the model was tuned with.\n\n"
        f"## Settings\n\n```yaml\n{settings}```\n"
    )


def public_settings(study: Study) -> str:
    """A study's settings as YAML, without paths of this machine."""
    told = without_paths(study.model_dump(mode="json", exclude_defaults=True))
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=110)


# e.g. without_paths({"model": "/home/ana/gemma", "hub": "google/gemma"}) → {"model": "gemma", "hub": "google/gemma"}
def without_paths(told: Any) -> Any:
    """Settings in which an absolute path is its last part; of a source's, as of a model's folder."""
    if isinstance(told, dict):
        return {name: without_paths(one) for name, one in told.items()}
    if isinstance(told, list):
        return [without_paths(one) for one in told]
    if not isinstance(told, str) or "://" in told:
        return told
    kind, colon, path = told.partition(":")
    return f"{kind}:{_named(path, True)}" if colon else _named(told, True)


def _named(name: str, public: bool) -> str:
    """A model or data file; as others may know it, of a path on this machine the last part."""
    return Path(name).name if public and Path(name).is_absolute() else name


def _loading(model: str, revision: str | None, whole: bool) -> str:
    """How to load it in Python; the embedded base is known to xlift alone."""
    if not whole and model.startswith("embedded:"):
        return f"Its base, `{model}`, comes with xlift: `xlift chat FOLDER` talks to it."
    named = f'"{model}"' + (f', revision="{revision}"' if revision else "")
    base = f"AutoModelForCausalLM.from_pretrained({named})"
    load = 'AutoModelForCausalLM.from_pretrained("FOLDER")' if whole else f'PeftModel.from_pretrained({base}, "FOLDER")'
    return f'```python\nmodel = {load}\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'
