"""Every setting of a run under one flat name, and readable names of runs, made from the settings that differ.

`run_settings` is the one list that columns of the tidy table, conditions and factors are made from, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlift.records import fingerprint
from xlift.study.data import Source
from xlift.study.runs import FILLED_IN, UNTUNED, RunConfig
from xlift.study.served import Model
from xlift.study.settings import flat, kinds_of

LONGEST_LABEL = 80
"""Bytes of a label; with the run's hash behind it, it is the name of a folder."""
FACTOR = "factor."
"""What the columns of the factors that a study tells of its models begin with: `factor.size`."""
OF_LORA = ("rank", "alpha", "dropout", "targets", "rslora", "dora", "quantized", "modules_to_save")
"""Settings that LoRA alone has: full fine-tuning, where they are None, is no other value of them."""
_OFF: dict[str, Any] = {
    "preference": 0,
    "preference_loss": "orpo",
    "preference_beta": 0.1,
    "swap": 0,
    "rslora": False,
    "dora": False,
    "quantized": False,
    "weight": 1,
    "remind": False,
    "heldout": 16,
    "allow": False,
    "steer": 0,
    "offload": False,
}
"""Values that a label need not say: most runs have them."""
_KEPT = "._=+-"
"""Signs that every file system takes in a name, besides letters and digits."""


def setting_kinds() -> dict[str, type]:
    """The names of `run_settings`, each with the type of its values: str, int, float or bool."""
    kinds = _kinds("", RunConfig)
    return {name: kinds[name] for name in run_settings(RunConfig())}


def _kinds(name: str, annotation: Any) -> dict[str, type]:
    nested = getattr(annotation, "model_fields", None)
    if nested is not None:
        inner = {key: kind for part, field in nested.items() for key, kind in _kinds(part, field.annotation).items()}
        return inner | {name: str}
    found = kinds_of(annotation)
    return {name: str if str in found else next((kind for kind in (bool, float, int) if kind in found), str)}


def run_settings(config: RunConfig) -> dict[str, Any]:
    """Every setting of a run: text, a number, or None where it does not apply (LoRA's rank to full fine-tuning).

    Names are those of the study file without their section; `instructions` is the name with the size, `sources` what
    the instructions are made of.
    """
    dumped = config.model_dump(mode="json", exclude={"given", "chat_template_kwargs"})
    found = {path.rpartition(".")[2]: value for path, value in flat(dumped).items()}
    del found["name"]
    found |= {"sources": " + ".join(map(_source_text, config.instructions.sources))}
    found |= {name: _joined(found[name]) for name in ("targets", "layers")}
    found |= {"modules_to_save": _joined(config.adaptation.modules_to_save or ["none"])}
    told = [f"{name}={_joined(value)}" for name, value in sorted(config.chat_template_kwargs.items())]
    found |= {"chat_template_kwargs": " ".join(told) or None}
    found = {"model": found.pop("model"), "instructions": config.instructions.label} | found
    if config.untuned:
        return {name: value if name in UNTUNED else None for name, value in found.items()}
    return found if config.adaptation.method == "lora" else found | dict.fromkeys(OF_LORA)


# e.g. _source_text(Source(path="alpaca.jsonl", size=100)) → "alpaca.jsonl size=100"
def _source_text(source: Source) -> str:
    """A source in one line: its path and what differs from the defaults."""
    told = source.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
    return " ".join([source.path, *(f"{key}={_joined(value)}" for key, value in told.items())])


# e.g. _joined(["q_proj", "v_proj"]) → "[q_proj, v_proj]"
def _joined(value: Any) -> Any:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value


# e.g. run_labels([RunConfig(seed=one) for one in (1, 2)]) → ["lora-r16-lr1e-4-s1", "lora-r16-lr1e-4-s2"]
def run_labels(runs: Sequence[RunConfig]) -> list[str]:
    """A short readable name for each run of a study: what differs between the runs, and always the adaptation.

    Runs that differ have names that differ, in upper and lower case alike, and of at most LONGEST bytes.
    """
    parts = [_label_parts(run) for run in runs]
    several_models = len({run.model for run in runs if not run.given}) > 1
    labels = [model_label(run.given) if run.given else "" for run in runs]
    for untuned in (True, False):
        places = [place for place, run in enumerate(runs) if run.untuned == untuned and not run.given]
        varied = _varied([parts[place] for place in places])
        shown = (
            varied | ({"model"} if several_models else set()) if untuned else varied | {"adaptation", "learning_rate"}
        )
        for place, said in zip(places, _texts([parts[place] for place in places]), strict=True):
            labels[place] = "-".join(["base"] * untuned + [said[name] for name in said if name in shown and said[name]])
    return _distinct(labels, [_identity(run) for run in runs])


def model_label(model: Model) -> str:
    """What a model of the study is called: its name, or the last part of what it is known by."""
    return _safe(model.name or model_text(model.model)) or "model"


def _identity(run: RunConfig) -> str:
    if run.given:
        return fingerprint(run.model_dump(mode="json", include={*UNTUNED, "given"}), length=64)
    return fingerprint(run.model_dump(mode="json", include=set(UNTUNED) if run.untuned else None), length=64)


def _label_parts(run: RunConfig) -> dict[str, Any]:
    """What a label can say of a run, in order: settings that people name together are one part, those of none left."""
    settings = run_settings(run)
    if run.untuned:
        return {name: settings[name] for name in UNTUNED if name not in FILLED_IN}
    data, own = run.instructions, run.adaptation
    named = {
        "model": run.model,
        "instructions": [data.label, data.name, settings["sources"], data.size],
        "adaptation": own.label,
        **{name: settings[name] for name in ("alpha", "dropout", "targets", "learning_rate", "steps", "epochs")},
    }
    done = {*named, *FILLED_IN, "sources", "size", "method", "rank", "seed"}
    return named | {name: value for name, value in settings.items() if name not in done} | {"seed": run.seed}


def _varied(parts: Sequence[Mapping[str, Any]]) -> set[str]:
    # LoRA's settings do not differ from those of full fine-tuning: there are none.
    values = {
        name: {fingerprint(part[name]) for part in parts if part[name] is not None or name not in OF_LORA}
        for name in (parts[0] if parts else ())
    }
    return {name for name, found in values.items() if len(found) > 1}


def _texts(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The parts in words; values of a part that would be called the same have a hash behind the word."""
    texts: list[dict[str, str]] = [{} for _ in parts]
    for name in parts[0] if parts else ():
        values = {fingerprint(part[name]): part[name] for part in parts}
        said = {key: _text(name, value) for key, value in values.items()}
        words = {key: _safe(text) for key, text in said.items()}
        times = Counter(word.casefold() for word in words.values())
        for text, part in zip(texts, parts, strict=True):
            key = fingerprint(part[name])
            alone = not said[key] or times[words[key].casefold()] == 1
            text[name] = words[key] if alone else f"{words[key]}-{key[:4]}".lstrip("-")
    return texts


# e.g. _text("targets", "[q_proj, v_proj]") → "targets=[q_proj, v_proj]"
# e.g. _text("alpha", 32.0) → "alpha=32"
# e.g. _text("system", "You are a helpful assistant.") → "system=You are a helpfu"
def _text(name: str, value: Any) -> str:
    """A setting's value in words; a text of several words by their beginning."""
    if name == "instructions":
        return str(value[0])
    if name == "adaptation":
        return str(value)
    if name == "model":
        return model_text(value)
    if _OFF.get(name) == value:
        return ""
    if value is None:
        return f"{name}=none" if name in ("revision", "system") else ""
    if name == "learning_rate":
        return f"lr{learning_rate_text(value)}"
    if name in ("steps", "epochs"):
        return f"{value:g}{name}" if isinstance(value, float) else f"{value}{name}"
    if name == "seed":
        return f"s{value}"
    if isinstance(value, bool):
        return f"{name}={'on' if value else 'off'}"
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={str(value)[:16]}"


# e.g. model_text("google/gemma-3-270m") → "gemma-3-270m"
def model_text(name: str) -> str:
    """A model by the last part of its name; a run's checkpoint by the run and the step."""
    path = Path(name.split(":")[-1])
    return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "checkpoints" else path.name


# e.g. learning_rate_text(0.00003) → "3e-5"
# e.g. learning_rate_text(3.5e-05) → "3.5e-5"
def learning_rate_text(value: float) -> str:
    """A learning rate as people write it: 2e-4."""
    text = f"{value:.6g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value < 1 else text


# e.g. _safe("mistral 7b/v0.3 (ours)") → "mistral-7b-v0.3-ours"
def _safe(text: str) -> str:
    """The text with letters, digits and a few signs only, so that it can be part of a file name."""
    plain = unicodedata.normalize("NFC", text)
    kept = "".join(one if one.isalnum() or one in _KEPT else "-" for one in plain)
    return re.sub("-+", "-", kept).strip("-.")


# e.g. _distinct(["run", "Run"], ["a" * 64, "b" * 64]) → ["run-aaaaaa", "Run-bbbbbb"]
def _distinct(labels: Sequence[str], identities: Sequence[str]) -> list[str]:
    """The labels, with a hash behind those that are too long or that several runs would have."""
    own = dict(zip(identities, labels, strict=True))
    found = dict(own)
    again = _shared(found) | {key for key, label in own.items() if not label or len(label.encode()) > LONGEST_LABEL}
    for length in (6, 12, 24, 64):
        found |= {key: _with_hash(own[key], key[:length]) for key in again}
        again = _shared(found)
    return [found[identity] for identity in identities]


# e.g. _with_hash("lora-r16", "ab12") → "lora-r16-ab12"
def _with_hash(label: str, ending: str) -> str:
    start = label.encode()[: LONGEST_LABEL - len(ending) - 1].decode(errors="ignore").rstrip("-.")
    return f"{start}-{ending}".lstrip("-")


def _shared(found: Mapping[str, str]) -> set[str]:
    times = Counter(label.casefold() for label in found.values())
    return {identity for identity, label in found.items() if times[label.casefold()] > 1}
