"""The model card that lies beside a checkpoint's weights, in the hub's form."""

from __future__ import annotations

from pathlib import Path

import yaml

from xlift.workspace import RunFolder


def model_card(run: RunFolder, step: int) -> str:
    """README.md of a checkpoint: what it was tuned from and on, how, and how to load it."""
    config = run.config
    full = config.adaptation.method == "full"
    languages = sorted({source.language for source in config.instructions.sources})
    revision = run.pinned_revision or config.revision
    head = {
        "base_model": config.model,
        "language": languages,
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["xlift", "instruction-tuning"],
    }
    at = f" at revision `{revision}`" if revision else ""
    data = ", ".join(f"`{Path(source.path).name}` ({source.language})" for source in config.instructions.sources)
    load = (
        'AutoModelForCausalLM.from_pretrained("FOLDER")'
        if full
        else f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{config.model}"), "FOLDER")'
    )
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {run.label}, step {step}\n\n"
        f"`{config.model}`{at}, tuned by [xlift](https://arxiv.org/abs/2402.14778) "
        f"({'all weights' if full else f'LoRA, rank {config.adaptation.rank}'}) on {data}.\n"
        "The licence of the base model holds for these weights, too.\n\n"
        f'```python\nmodel = {load}\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n\n'
        "The tokenizer carries the chat template that the model was tuned with.\n\n"
        f"## Settings\n\n```yaml\n{settings}```\n"
    )
