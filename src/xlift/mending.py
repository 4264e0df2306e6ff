"""The study behind `xlift mend`: one model or run as it ails, and beside it one run a remedy, on the same prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlift.errors import ConfigError, ModelError
from xlift.hub import ADAPTER_CONFIG
from xlift.study.data import BUILTIN, Source, builtin_languages
from xlift.study.labels import model_text
from xlift.study.runs import ANSWERING, DEFAULT_STEPS, EMBEDDED_MODEL, FILLED_IN
from xlift.workspace import find_run

AILING: dict[str, Any] = {
    "model": EMBEDDED_MODEL,
    "instructions": {"name": "english", "sources": [{"path": BUILTIN, "size": 144}], "heldout": 16},
    "adaptation": {"method": "lora", "rank": 16, "alpha": 32},
    "learning_rate": 3e-3,
    "steps": 16,
    "max_length": 96,
    "batch_tokens": 320,
    "micro_batch_tokens": 320,
    "checkpoint_every": 16,
}
"""How a model that is no run is made to ail: tuned on English at a learning rate ten times too high."""
EXAMPLES = (9, 30, 90)
"""Examples in all languages together; the middle one is tried with a preference, the last with swapped layers."""
PROMPTS_EACH = 24
"""Test prompts of each kind in each language."""


def mending_study(source: str, languages: Sequence[str], base: str | None = None) -> dict[str, Any]:
    """The settings of a study file: what ails `source`, a model or a run's folder, and what may mend it in `languages`.

    With `base`, the model that it was tuned from, `source` are tuned weights whose run is not at hand: they ail as they
    are. Raises ConfigError for a language without built-in examples, and for a run whose data cannot be added to.
    """
    codes = [code for code in dict.fromkeys(languages) if code != "en"]
    there = builtin_languages()
    problems = [
        f"--languages {code}: no built-in examples; there are: {', '.join(there)}"
        for code in codes
        if code not in there
    ]
    if problems or not codes:
        raise ConfigError(
            problems or ["--languages: name one other than English"], f"the languages: {', '.join(there)}"
        )
    run = (Path(source) / "run.yaml").is_file()
    if run and base:
        raise ConfigError(f"--base: {source} is a run, which knows its base", f"xlift mend {source}")
    ailing = _of_run(source) if run else {**AILING, "model": source}
    ailing, tried = (
        ({"model": source, "adaptation": {"method": "none"}}, remedies_of_weights(ailing, codes))
        if base
        else (ailing, remedies(ailing, codes))
    )
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(source).name if run else model_text(source)).strip("-") or "model"
    return {
        "name": f"mend-{name}",
        "question": f"What mends the answers of {name} to users of other languages, and what does each remedy cost?",
        "training": ailing,
        "include": tried,
        "report": {"remedies": True},
        "validation": {"grammar": False},
        "prompts": {
            "languages": ["en", *codes],
            "validation": {"source": "builtin:open", "size": 8},
            "test": {"source": ["builtin:open", "builtin:facts"], "size": PROMPTS_EACH},
        },
        "decoding": {"max_new_tokens": 32},
        "raters": ["language", "fluency", "answers"],
    }


def remedies(ailing: dict[str, Any], codes: Sequence[str]) -> list[dict[str, Any]]:
    """What differs from the ailing run, one remedy after another."""
    found: list[dict[str, Any]] = [{"learning_rate": _rounded(ailing["learning_rate"] / 10)}]
    epochs, steps = ailing.get("epochs"), ailing.get("steps") or DEFAULT_STEPS
    found.append({"epochs": epochs / 4} if epochs else {"steps": max(1, steps // 4)})
    found += [{"adaptation": {"layers": "last 4"}}, {"weight": 0.5}, {"remind": True}, {"allow": True}, {"steer": 1.0}]
    mixes = [{"instructions": mixed(ailing["instructions"], codes, count)} for count in EXAMPLES]
    by = [{**mixes[1], "preference": 0.5}, {**mixes[1], "preference": 0.5, "preference_loss": "dpo"}]
    return [*found, *mixes, *by, {**mixes[2], "swap": 2}]


def remedies_of_weights(ailing: dict[str, Any], codes: Sequence[str]) -> list[dict[str, Any]]:
    """What tuned weights can be given whose data and settings nobody knows: other decoding, or some examples on top."""
    asked: list[dict[str, Any]] = [{"remind": True}, {"allow": True}, {"steer": 1.0}]
    model = ailing["model"]
    if (Path(model) / ADAPTER_CONFIG).is_file():
        return asked
    on_top = {**ailing, "learning_rate": _rounded(ailing["learning_rate"] / 10)}
    return [*asked, {**on_top, "instructions": mixed(ailing["instructions"], codes, EXAMPLES[1])}]


def drawn_back(source: str, base: str, folder: Path, weight: float = 0.5, offline: bool = False) -> None:
    """Write tuned weights drawn back to their base, base + weight · (tuned − base), as a model of its own.

    Nothing is done where the folder is there already. Raises ModelError for either model that is not to be had, and
    where the two are not of one shape.
    """
    from xlift.disk import whole_folder
    from xlift.hub import locate, quiet
    from xlift.models import load_tokenizer, loaded_checkpoint, place

    if folder.is_dir():
        return
    tuned, placement = locate(source, offline=offline), place("auto", "auto")
    beneath, own = locate(base, offline=offline), Path(tuned.adapter or tuned.path)
    if tuned.adapter and tuned.path != beneath.path:
        raise ModelError(f"--base {base}: the adapter {source} names another, {tuned.path}", f"--base {tuned.path}")
    with whole_folder(folder) as made, loaded_checkpoint(beneath, own, placement, weight) as model, quiet():
        model.save_pretrained(made)
        load_tokenizer(tuned.tokenizer, tuned.revision).save_pretrained(made)


# e.g. _rounded(0.00031623) → 0.000316
def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def mixed(data: dict[str, Any], codes: Sequence[str], count: int) -> dict[str, Any]:
    """Instruction data with `count` built-in examples in other languages, as many in each."""
    each = min(max(1, count // len(codes)), 40)
    others = [{"path": BUILTIN, "language": code, "size": each} for code in codes]
    name = f"{data.get('name') or 'english'}+{each * len(codes)}"
    return {**data, "name": name, "sources": [*data["sources"], *others]}


def _of_run(source: str) -> dict[str, Any]:
    """The settings that a run was trained with, as a study file has them."""
    config = find_run(source).config.trained
    if config.untuned:
        raise ConfigError(f"{source}: an untuned model", f"xlift mend {config.model}")
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={*FILLED_IN, *ANSWERING})
    data = config.instructions
    if data.size and len(data.sources) > 1:
        raise ConfigError(f"{source}: instructions.size is of several sources together", "give each source its size")
    # A size of all together would leave out some of what a remedy adds.
    added = {"size": data.size + data.heldout} if data.size else {}
    own = [_told(one) | added for one in data.sources]
    told = data.model_dump(mode="json", exclude_defaults=True, exclude={"size", "sources"})
    settings |= {"model": config.model, "learning_rate": config.learning_rate}
    return {**settings, "instructions": {**told, "sources": own}}


def _told(source: Source) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude_defaults=True, exclude={"sha256"}) | {"path": source.path}
