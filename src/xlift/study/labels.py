"""Readable names of runs, made from the settings that differ between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xlift.records import fingerprint
from xlift.study.settings import RunConfig


def run_labels(runs: Sequence[RunConfig]) -> list[str]:
    """A short readable name for each run: what differs between the runs, and always the adaptation."""
    parts = [_label_parts(run) for run in runs]
    tuned = [part for part, run in zip(parts, runs, strict=True) if not run.untuned]
    varied = [key for key in parts[0] if len({part[key] for part in tuned}) > 1] if parts else []
    return [_join_label(part, run, runs, varied) for part, run in zip(parts, runs, strict=True)]


def _join_label(part: dict[str, str], run: RunConfig, runs: Sequence[RunConfig], varied: list[str]) -> str:
    if run.untuned:
        several = len({(other.model, other.revision) for other in runs}) > 1
        return f"base-{part['model']}" if several else "base"
    shown = [part[key] for key in part if key in varied or key in {"adaptation", "learning_rate"}]
    return "-".join(shown)


def _label_parts(run: RunConfig) -> dict[str, str]:
    named = {
        "model": Path(run.model.split(":")[-1]).name,
        "instructions": run.instructions.label,
        "adaptation": run.adaptation.label,
        "learning_rate": f"lr{rate_text(run.learning_rate)}",
        "steps": f"{run.steps}steps" if run.steps else "",
        "epochs": f"{run.epochs:g}epochs" if run.epochs else "",
        "seed": f"s{run.seed}",
    }
    return named | dict(_other_parts(run))


def rate_text(value: float) -> str:
    """A learning rate as people write it: 2e-4."""
    text = f"{value:.6g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value < 1 else text


def _other_parts(run: RunConfig) -> Iterator[tuple[str, str]]:
    done = {"dtype", "model_sha256", "model", "instructions", "adaptation", "learning_rate", "steps", "epochs", "seed"}
    for key, value in run.model_dump(mode="json").items():
        if key not in done:
            yield key, f"{key}={fingerprint(value, length=4) if isinstance(value, str) else value}"
