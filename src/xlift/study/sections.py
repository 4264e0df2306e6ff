"""The settings of what a study does with its runs: measuring meanwhile, halving, a cluster, the report."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from xlift.records import KINDS, OWN_FACET
from xlift.study.settings import Settings


class Validation(Settings):
    """What is measured during training, on validation prompts only: at every checkpoint, and every so many steps."""

    every: int | None = Field(None, ge=1)
    """Optimiser steps between measurements; at checkpoints alone where it is not given."""
    margins: bool = True
    """Measure the language margin in every language of the study."""
    grammar: bool = True
    """Measure the grammar margin of checkpoints that answer, in the languages that have built-in pairs of sentences."""
    responses: int = Field(0, ge=0)
    """Also let the model answer so many validation prompts in each language, and rate the language of the answers."""
    max_new_tokens: int = Field(48, ge=1)
    """Longest of these answers in tokens."""


class Panel(Settings):
    """Several of the study's judges as one rater more."""

    judges: list[str] = []
    """Names of the judges that sit on it; all where none are named."""
    take: Literal["mean", "majority"] = "mean"
    """What it says of a facet: the mean of their values, or the value that more than half of them give."""
    least: int = Field(2, ge=1)
    """So many of them must have given a value; otherwise the panel's is missing."""
    name: str = "panel"
    """Its name among raters."""


class Halving(Settings):
    """Stop hopeless runs early: after `first` steps, and then after each `factor` times as many, the best
    1 / `factor` of the runs by the validation measure go on."""

    first: int = Field(ge=1)
    """Optimiser steps before the first comparison."""
    factor: int = Field(3, ge=2)


class Ray(Settings):
    """Resources of one run's task when `executor` is `ray`."""

    address: str | None = None
    """Address of a running cluster, or `auto`; a cluster on this machine is started where it is not given."""
    cpus: float = Field(1, gt=0)
    """CPU cores of a run."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of a run; one where the device is CUDA, else none, where it is not given."""


class Report(Settings):
    """What the report says about itself."""

    title: str | None = None
    remedies: bool = False
    """Tell of every other run what it mends, beside the first run of the grid, and what it costs."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind each bootstrap interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    measure: dict[str, float] = Field({"language": 1.0}, min_length=1)
    """What makes a response good when runs are selected: facets with weights; `facet:judge` or `facet:human` says who
    is believed, else people before judges before surface checks."""

    @field_validator("measure")
    @classmethod
    def _well_named(cls, measure: dict[str, float]) -> dict[str, float]:
        for name, weight in measure.items():
            facet, _, kind = name.partition(":")
            if not re.fullmatch(OWN_FACET, facet) or kind not in ("", *KINDS):
                raise ValueError(f"'{name}' is none of FACET, {', '.join(f'FACET:{kind}' for kind in KINDS)}")
            if weight <= 0:
                raise ValueError(f"the weight of '{name}' must be above 0")
        return measure
