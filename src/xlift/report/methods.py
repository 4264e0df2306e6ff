"""The methods section: definitions, versions, seeds, hashes and every setting, so that a reader could do it again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from xlift.report.reading import Material
from xlift.study.runs import SPOKEN
from xlift.workspace import RunFolder


def definitions(material: Material) -> list[tuple[str, str]]:
    """What is measured and how, as (word, meaning)."""
    study = material.workspace.study
    found = {
        "Share": "Share of responses that a rater gives the best value: 2 of 0, 1, 2, or the end of its own scale; "
        "missing ratings left out and counted.",
        "Interval": f"""{material.confidence}. Requests are resampled with all their translations together
            ({study.report.bootstrap} times, seed {study.decoding.seed}), and training seeds too where a setting has
            several. The variance so found is put as a number of independent requests, whose score interval (Wilson
            1927) is given, with quantiles of the t distribution where there are few.""",
        "Difference": """Paired by prompt, in percentage points; interval by resampling requests; p by exact sign flips
            of requests, or by a t test over requests and seeds where there are several; corrected by Holm (1979).""",
        "Effect of a choice": """Least squares over settings (runs that differ only in the seed), additive, each setting
            counting alike; the numbers of a choice sum to zero over its levels.""",
        "Cost": "Score of the pick by the mean over languages less that of the rule's pick, paired by prompt.",
        "Regret": "Score of the best candidate on test prompts less that of the rule's pick.",
        "Language margin": """Log probability of the start of the reference reply in the user's language less that of
            the English one, to the same question; given as the probability that it stands for.""",
        "Kappa, alpha, tau": "Cohen's with linear weights, Krippendorff's for ordered values, Kendall's tau-b.",
        "Calibrated": """Prediction-powered inference (PPI++, arXiv 2311.01453) from people's ratings of some responses
            and a judge's of all.""",
    }
    return [(word, " ".join(meaning.split())) for word, meaning in found.items()]


def report_facts(material: Material) -> list[tuple[str, str]]:
    """How this report itself came about."""
    study = material.workspace.study
    packages = ("xlift", "numpy", "scipy", "polars", "altair", "vl-convert-python")
    splits = [prompt["split"] for prompt in material.prompts]
    return [
        *data_facts(material),
        ("Decoding", study.decoding.signature),
        *engine_facts(material),
        ("Prompts", f"{splits.count('validation')} validation, {splits.count('test')} test, all languages together"),
        ("Made with", ", ".join(f"{name} {metadata.version(name)}" for name in packages)),
        ("Seeds", f"resampling and decoding {study.decoding.seed}; training: see the runs"),
    ]


def engine_facts(material: Material) -> list[tuple[str, str]]:
    """What computed the responses of served models, as far as their servers told, with how many each."""
    found = [
        (one.run.label, Counter(engine for response in one.responses if (engine := response.get("engine"))))
        for one in material.answered
    ]
    return [
        (f"Engine of {label}", ", ".join(f"{engine} ({count:,})" for engine, count in engines.items()))
        for label, engines in found
        if engines
    ]


def data_facts(material: Material) -> list[tuple[str, str]]:
    """What each set of instruction data came to, and what it shares with held-out data and prompts."""
    found: dict[tuple[str, str], None] = {}
    for run in material.workspace.runs:
        stage, data = run.stage("train"), run.known.get("data", {})
        if not run.trains or "examples" not in stage:
            continue
        counts = {"trained on": stage["examples"], "held out": stage["heldout"], "too long": stage["too_long"]}
        counts |= {"too long of the held-out": stage.get("heldout_too_long", 0)}
        counts |= {"refused by the chat template": stage.get("refused", 0)}
        counts |= {f"left out: {reason}": count for reason, count in data.get("left_out", {}).items()}
        counts |= {name.replace("_", " "): count for name, count in data.items() if name != "left_out"}
        told = "; ".join(f"{name} {count:,}" for name, count in counts.items() if count)
        found[(f"Data {run.config.instructions.label}", told)] = None
    return list(found)


def signatures(material: Material) -> list[tuple[str, str]]:
    """Every rater and how its numbers came about."""
    return sorted({told for one in material.answered for told in one.signatures})


def setting_lines(material: Material) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is known of the runs, as (title, lines): what they share, then of each run what is its own.

    Lines are (name, value): every setting, versions, hashes, states of the stages.
    """
    known = {run.id: (run.label, dict(_lines(_facts(run)))) for run in material.workspace.runs}
    tuned = [known[run.id][1] for run in material.workspace.runs if not run.config.untuned]
    shared = {
        name: value
        for name, value in (tuned[0] if tuned else {}).items()
        if len(tuned) > 1 and all(one.get(name) == value for one in tuned)
    }
    own = [
        (f"{label} ({id})", [(name, value) for name, value in lines.items() if shared.get(name) != value])
        for id, (label, lines) in known.items()
    ]
    return [("Alike in all tuned runs", list(shared.items())), *own] if shared else own


def study_lines(material: Material) -> list[tuple[str, str]]:
    """The study file as lines of (name, value)."""
    return list(_lines(material.workspace.study.model_dump(mode="json")))


def _facts(run: RunFolder) -> dict[str, Any]:
    # An untuned model has no training settings, whatever their defaults say.
    kept = {"model", "revision", *SPOKEN} if run.config.untuned else None
    facts = {key: value for key, value in run.known.items() if key != "label"}
    return run.config.model_dump(mode="json", include=kept) | facts


# e.g. list(_lines({"a": {"b": 1}, "c": [2, 3]}, "")) → [("a.b", "1"), ("c", "[2, 3]")]
def _lines(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A tree of settings as (path, value), one line a leaf."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _lines(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for place, part in enumerate(value):
            yield from _lines(part, f"{name}[{place}]")
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
