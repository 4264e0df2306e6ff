"""What a study has found so far, read from its files: up-to-date responses and ratings, and one tidy table of them.

import xlift
ratings = xlift.load("results/quickstart").ratings      # a polars frame, one row a rating
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import polars as pl

from xlift.rating import signature_of, text_fingerprint
from xlift.records import Prompt, Rating, Response, kind_of, read_records, response_signatures
from xlift.study.settings import Judge, RunConfig, flat
from xlift.workspace import RunFolder, StudyFolder, current_ratings, current_responses, find_run, find_study


def study_prompts(workspace: StudyFolder) -> list[Prompt]:
    """The study's prompts as written down."""
    return [cast(Prompt, record) for record in read_records(workspace.prompts)]


def responses_of(workspace: StudyFolder, run: RunFolder, step: int) -> list[Response]:
    """Up-to-date responses of one checkpoint."""
    prompts = study_prompts(workspace)
    return current_responses(run, step, prompts, response_signatures(prompts, workspace.study.decoding.signature))


def rateable(workspace: StudyFolder, run: RunFolder, step: int) -> list[dict[str, Any]]:
    """The responses of one checkpoint as raters see them.

    A modified request ("…, in a few words") carries the same run's answer to the request that it modifies
    (`modifies`), which short and long are relative to.
    """
    responses = [cast(dict[str, Any], response) for response in responses_of(workspace, run, step)]
    texts = {response["id"]: response["text"] for response in responses}
    return [
        {**response, "unmodified": texts[response["modifies"]]} if response.get("modifies") in texts else response
        for response in responses
    ]


def ratings_of(workspace: StudyFolder, run: RunFolder, step: int) -> list[Rating]:
    """Up-to-date ratings of one checkpoint's responses: surface raters, judges and people."""
    responses = rateable(workspace, run, step)
    keys = [(response["id"], text_fingerprint(response)) for response in responses]
    found = []
    for name in workspace.study.raters:
        ratings = current_ratings(run, step, name, signature_of(name))
        found += [ratings[key] for key in keys if key in ratings]
    return found + judge_ratings(workspace, run, step, responses) + people_ratings(run, step, keys)


def judge_ratings(workspace: StudyFolder, run: RunFolder, step: int, responses: list[dict[str, Any]]) -> list[Rating]:
    """What the study's judges, as they are now, have said of a checkpoint's `responses`, as `rateable` gives them."""
    if not workspace.study.judges:
        return []
    from xlift.judging.ratings import current_judge_ratings

    return [
        rating
        for judge in workspace.study.judges
        for rating in current_judge_ratings(judge_ratings_path(run, step, judge), responses, judge)
    ]


def judge_ratings_path(run: RunFolder, step: int, judge: Judge) -> Path:
    """Where a judge's ratings of a checkpoint's responses are."""
    return run.ratings(step, f"judge-{judge.label}")


def people_ratings(run: RunFolder, step: int, keys: list[tuple[str, str]]) -> list[Rating]:
    """What people have said of a checkpoint's responses as they are now; the last word of each person counts."""
    wanted = set(keys)
    found = {
        (record["id"], record["rater"], record["facet"]): cast(Rating, record)
        for record in read_records(run.ratings(step, "human"))
        if (record["id"], record["response"]) in wanted
    }
    return list(found.values())


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
        checkpoints = self.workspace.study.decoding.checkpoints
        found = (
            (run, ratings_of(self.workspace, run, step))
            for run in self.workspace.runs
            for step in run.evaluated_steps(checkpoints)
        )
        return tidy_table(found, study_prompts(self.workspace))

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
