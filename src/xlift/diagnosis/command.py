"""What `xlift diagnose` does, with the models or with data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from xlift.analysis.comparison import compare
from xlift.analysis.estimates import with_silence
from xlift.analysis.measures import holm
from xlift.diagnosis import text
from xlift.diagnosis.findings import findings
from xlift.diagnosis.measure import SIZES, Measured, diagnosis_study, measure, model_name
from xlift.errors import ConfigError, nearest
from xlift.languages import language_code
from xlift.progress import say
from xlift.rating.tally import least_shares
from xlift.results import Results
from xlift.servers.named import is_served, served_model
from xlift.workspace import RunFolder, StudyFolder


def diagnose_models(
    models: Sequence[str],
    base: str | None,
    languages: Sequence[str],
    size: str,
    folder: Path | None,
    page: Path | None,
    offline: bool,
    fail_under: Sequence[str],
    server: tuple[str | None, str | None] = (None, None),
    **settings: Any,
) -> tuple[dict[str, Any], str, list[str]]:
    """Measure models, and the base that they were tuned from: as data, as text, and what of `fail_under` is not met.

    `server` are, for models given as an address, the name that the server knows and the variable with its key. Raises
    ConfigError, ModelError, DataError for what cannot be measured.
    """
    if size not in SIZES:
        raise ConfigError(f"unknown size '{size}'; {nearest(size, SIZES)}")
    named = dict.fromkeys([*models, *([base] if base else ())])
    local = {model_name(one): one for one in named if not is_served(one)}
    with ExitStack() as servers:
        served = {one: served_model(one, *server, servers) for one in named if is_served(one)}
        for one in served.values() if settings["repetition_penalty"] != 1 else ():
            one["body"] = {"repeat_penalty": settings["repetition_penalty"]}  # as llama.cpp calls it
        codes = list(map(language_code, languages))
        study = diagnosis_study(list(local), codes, SIZES[size], list(served.values()), **settings)
        asked = least_shares(fail_under, study.prompts.languages)
        count = len(study.prompts.languages) * (3 * SIZES[size].prompts + 1)
        say(f"{len(study.runs())} × {count} answers of at most {study.decoding.max_new_tokens} tokens")
        workspace, found_out = measure(study, folder, offline)
    # A study has its own order: models that are loaded, then those that are served.
    of = dict(zip([*local.values(), *served], zip(workspace.runs, found_out, strict=True), strict=True))
    runs = [of[name][0] for name in named if name in of]
    measured = [replace(of[name][1], name=name) for name in named if name in of]
    if page:
        from xlift.report.page import write_report

        shutil.copyfile(write_report(workspace), page)
    tuned = measured[: len(measured) - bool(base)] or measured
    found = {one.name: findings(one, measured[-1] if base else None) for one in tuned}
    parts = [part for one in measured for part in text.parts(one, found.get(one.name)) if part]
    beside = _side_by_side(workspace, runs, measured, len(tuned) if base else 0)
    said = "\n\n".join([*parts, *([text.beside(beside)] if beside else [])])
    failures = [line for one in tuned for line in text.failed(one, asked)]
    told = text.as_data(measured, found) | ({"side_by_side": [one._asdict() for one in beside]} if beside else {})
    return told, f"{said}\n\nanswers and ratings: {workspace.path}", failures


def _side_by_side(
    workspace: StudyFolder, runs: Sequence[RunFolder], measured: Sequence[Measured], first: int
) -> list[text.Beside]:
    """The share of answers wholly in the language of each model beside the one in place `first`: the base, if there is
    one; paired by prompt, p by Holm over languages and models."""
    if len(measured) < 2:
        return []
    ratings = Results(workspace).ratings.filter((pl.col("rater") == "language") & (pl.col("split") == "test"))
    wholly = with_silence(ratings).with_columns(value=(pl.col("value") == 2).cast(pl.Float64))
    against, *others = [runs[first], *(run for run in runs if run is not runs[first])]
    names = {run.id: one.name for run, one in zip(runs, measured, strict=True)}
    found = [
        (names[other.id], row)
        for other in others
        for row in compare(wholly, against.id, other.id, by=("language",), top=1.0).iter_rows(named=True)
    ]
    corrected = holm([row["p"] for _, row in found])
    keys = ("language", "first_mean", "second_mean", "difference", "low", "high", "pairs")
    return [
        text.Beside(first=names[against.id], second=name, p=p, **{key: row[key] for key in keys})
        for (name, row), p in zip(found, corrected, strict=True)
    ]


def diagnose_data(path: str, offline: bool) -> tuple[dict[str, Any], str]:
    """What is wrong with instruction data, in any form that `sources` of a study takes: as data and as text."""
    from xlift.data.instructions import load_source
    from xlift.diagnosis.data import data_as_data, data_findings, turns, turns_table
    from xlift.study.data import Source

    conversations = load_source(Source(path=path), offline)
    found = list(turns(conversations))
    told = data_findings(found)
    head = f"{path}: {len(conversations):,} conversations, {len(found):,} replies"
    return data_as_data(found, told), f"{head}\n\n{turns_table(found)}\n\n{text.findings_text(told, DATA_SOUND)}"


DATA_SOUND = "Nothing was found that would make a model answer in another language, stop too early, or never stop."
