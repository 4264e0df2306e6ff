"""What a study has found so far: one tidy table of its ratings, and one of its training logs.

import xlift
ratings = xlift.load("results/quickstart").ratings      # a polars frame, one row a rating
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from xlift.checkpoint import checkpoints, written_prompts
from xlift.records import Prompt, Rating, Response, kind_of, read_records
from xlift.study.settings import RunConfig, flat
from xlift.workspace import RunFolder, StudyFolder, find_run, find_study

AXES = {
    "model": pl.String, "method": pl.String, "rank": pl.Int64, "learning_rate": pl.Float64, "instructions": pl.String,
    "size": pl.Int64, "steps": pl.Int64, "seed": pl.Int64, "template": pl.String, "system": pl.String,
    "weight": pl.Float64, "untuned": pl.Boolean,
}  # fmt: skip
"""Columns of the tidy table that say how a run was trained; null where it does not apply to the untuned base."""

COLUMNS = {
    "run": pl.String, "label": pl.String, "step": pl.Int64, "id": pl.String, "parallel_id": pl.String,
    "language": pl.String, "split": pl.String, "category": pl.String, "facet": pl.String, "rater": pl.String,
    "kind": pl.String, "value": pl.Float64, "reason": pl.String, "response": pl.String,
}  # fmt: skip


def axes_of(run: RunFolder) -> dict[str, Any]:
    """How a run was trained, as one row of the columns AXES."""
    config: RunConfig = run.config
    facts: dict[str, Any] = {
        "model": config.model, "template": config.template, "system": config.system, "untuned": config.untuned
    }  # fmt: skip
    if config.untuned:
        return dict.fromkeys(AXES) | facts
    adaptation = config.adaptation
    done = run.stage("train")
    return facts | {
        "method": adaptation.method,
        "rank": adaptation.rank if adaptation.method == "lora" else None,
        "learning_rate": config.learning_rate,
        "instructions": config.instructions.label,
        "size": config.instructions.size or done.get("examples"),
        "steps": config.steps,
        "seed": config.seed,
        "weight": config.weight,
    }


@dataclass(frozen=True)
class Results:
    """A study's findings as tidy frames."""

    workspace: StudyFolder

    @cached_property
    def ratings(self) -> pl.DataFrame:
        """One row a rating: COLUMNS, then the run's AXES. `value` is null where it is missing, `reason` says why."""
        prompts = written_prompts(self.workspace)
        found = checkpoints(self.workspace, prompts=prompts)
        return tidy_table(((one.run, one.ratings) for one in found), prompts)

    @cached_property
    def responses(self) -> list[Response]:
        """Every answer of the checkpoints that count, as a record of responses/step-N.jsonl."""
        return [response for one in checkpoints(self.workspace) for response in one.responses]

    @cached_property
    def training(self) -> pl.DataFrame:
        """One row a record of train.jsonl: run, label, step, loss, heldout_loss, and what was watched, by language."""
        rows = [
            {"run": run.id, "label": run.label}
            | {key.removeprefix("validation/"): value for key, value in flat(record, "/").items()}
            for run in self.workspace.runs
            if run.trains
            for record in read_records(run.train_log)
        ]
        return pl.DataFrame(rows, infer_schema_length=None)


def load(study: str | Path) -> Results:
    """The findings of a study, given its file or folder. Raises ConfigError where there is none."""
    return Results(find_study(study))


def ratings_of_runs(folders: Sequence[Path]) -> pl.DataFrame:
    """The tidy ratings of the studies that run folders belong to. Raises ConfigError for what is not a run folder."""
    runs = [find_run(folder) for folder in folders]
    studies = dict.fromkeys(run.path.resolve().parent.parent for run in runs)
    return pl.concat([load(study).ratings for study in studies])


def tidy_table(found: Iterable[tuple[RunFolder, Sequence[Rating]]], prompts: Iterable[Prompt]) -> pl.DataFrame:
    """The tidy table (COLUMNS, then AXES) of the ratings of some runs' checkpoints."""
    by_id = {prompt["id"]: prompt for prompt in prompts}
    rows = [
        tidy(rating, by_id[rating["id"]], run) | axes
        for run, ratings in found
        for axes in [axes_of(run)]
        for rating in ratings
    ]
    return pl.DataFrame(rows, schema=COLUMNS | AXES)


def tidy(rating: Rating, prompt: Prompt, run: RunFolder) -> dict[str, Any]:
    """One rating as a row of the columns COLUMNS."""
    return {
        "run": run.id,
        "label": run.label,
        "step": rating["step"],
        "id": rating["id"],
        "parallel_id": prompt.get("parallel_id") or prompt["id"],
        "language": prompt["language"],
        "split": prompt["split"],
        "category": prompt.get("category"),
        "facet": rating["facet"],
        "rater": rating["rater"],
        "kind": kind_of(rating["rater"]),
        "value": rating["value"],
        "reason": rating.get("reason"),
        "response": rating["response"],
    }
