"""What a study has found so far: one tidy table of its ratings, and one of its training logs.

import xlift
ratings = xlift.load("results/quickstart").ratings      # a polars frame, one row a rating
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl

from xlift.analysis.estimates import last_steps
from xlift.analysis.overall import overall
from xlift.checkpoint import checkpoints, readable, written_prompts
from xlift.disk import whole_text
from xlift.progress import or_told
from xlift.records import Logged, Prompt, Rating, Response, ends_of, kind_of, read_records
from xlift.study.labels import FACTOR, run_settings, setting_kinds
from xlift.study.settings import flat
from xlift.workspace import RunFolder, StudyFolder, find_run, find_study

_TYPES: dict[type, Any] = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}

AXES = {name: _TYPES[kind] for name, kind in setting_kinds().items()} | {"untuned": pl.Boolean}
"""Columns of the tidy table that say how a run was trained, one a setting; null where it does not apply. Behind them
stand those of the factors that the study tells of its models."""

RATING_COLUMNS = {
    "run": pl.String, "label": pl.String, "step": pl.Int64, "id": pl.String, "parallel_id": pl.String,
    "language": pl.String, "split": pl.String, "category": pl.String, "facet": pl.String, "rater": pl.String,
    "kind": pl.String, "value": pl.Float64, "reason": pl.String, "response": pl.String, "lowest": pl.Int8,
    "best": pl.Int8,
}  # fmt: skip
"""Columns of the tidy table that say what a rating is; a run is known by `run`, its folder's name. `lowest` and `best`
are the ends of the scale: 0 and 2, but for scales of one's own."""

INSTRUCTION_COLUMNS = {
    "run": pl.String, "label": pl.String, "step": pl.Int64, "id": pl.String, "parallel_id": pl.String,
    "language": pl.String, "split": pl.String, "category": pl.String, "instruction": pl.String, "strict": pl.Boolean,
    "loose": pl.Boolean, "reason": pl.String,
}  # fmt: skip
"""Columns of the table of IFEval's instructions; `strict` and `loose` are null where the `reason` says why."""


def axes_of(run: RunFolder) -> dict[str, Any]:
    """How a run was trained, as one row of the columns AXES; `size` is what was trained on where nothing was asked."""
    settings = run_settings(run.config)
    if not run.config.untuned and settings["size"] is None:
        settings["size"] = run.stage("train").get("examples")
    return settings | {"untuned": run.config.reference}


def _factors_of(runs: Sequence[RunFolder]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Columns for what a study says of its models, and each run's values: numbers, or text where not all are."""
    told = [run.config.given.factors if run.config.given else {} for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    values = {name: [one[name] for one in told if name in one] for name in names}
    numeric = {name: all(type(one) in (int, float) for one in found) for name, found in values.items()}
    columns = {f"{FACTOR}{name}": pl.Float64 if numeric[name] else pl.String for name in values}
    rows = [{f"{FACTOR}{name}": float(v) if numeric[name] else _word(v) for name, v in one.items()} for one in told]
    return columns, rows


# e.g. [_word(value) for value in (True, 0.5)] → ["true", "0.5"]
def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Results:
    """A study's findings as tidy frames."""

    workspace: StudyFolder

    @cached_property
    def ratings(self) -> pl.DataFrame:
        """One row a rating: RATING_COLUMNS, then the run's AXES; `value` is null where it is missing, and why."""
        prompts = written_prompts(self.workspace)
        found = checkpoints(self.workspace, prompts=prompts)
        # Text, which joins and is put together with any other; four times the memory of `tidy_table` alone.
        return tidy_table(((one.run, one.ratings) for one in readable(found)), prompts).cast(
            {pl.Categorical: pl.String}
        )

    @cached_property
    def overall(self) -> pl.DataFrame:
        """One row a setting (runs that differ only in their seed), facet and rater: the mean over the languages other
        than English on test prompts, the worst of them, and ranks; the columns are analysis.overall.OVERALL."""
        study = self.workspace.study
        how: dict[str, Any] = {
            "resamples": study.report.bootstrap,
            "confidence": study.report.confidence,
            "seed": study.decoding.seed,
        }
        return overall(last_steps(self.ratings.filter(pl.col("split") == "test")), ["condition"], **how)

    @cached_property
    def instructions(self) -> pl.DataFrame:
        """One row an instruction of an `ifeval:` prompt that was rated: INSTRUCTION_COLUMNS."""
        prompts = written_prompts(self.workspace)
        found = checkpoints(self.workspace, prompts=prompts)
        return instruction_table(((one.run, one.ratings) for one in found), prompts)

    @cached_property
    def responses(self) -> list[Response]:
        """Every answer of the checkpoints that count, as a record of responses/step-N.jsonl."""
        return [response for one in readable(checkpoints(self.workspace)) for response in one.responses]

    @cached_property
    def training(self) -> pl.DataFrame:
        """One row a record of train.jsonl: run, label, step, loss, heldout_loss, and what was watched, by language."""
        rows = [
            {"run": run.id, "label": run.label}
            | {key.removeprefix("validation/"): value for key, value in flat(record, "/").items()}
            for run in self.workspace.runs
            if run.trains
            for record in or_told(partial(read_records, run.train_log, Logged), [])
        ]
        return pl.DataFrame(rows, infer_schema_length=None)


def load(study: str | Path) -> Results:
    """The findings of a study, given its file or folder. Raises ConfigError where there is none."""
    return Results(find_study(study))


def ratings_of_runs(folders: Sequence[Path]) -> tuple[pl.DataFrame, list[str]]:
    """The tidy ratings of the studies that run folders belong to, and what each of the folders is called there.

    Runs of two studies that have the same name stay two: there `run` is STUDY/RUN. Raises ConfigError for what is not a
    run folder.
    """
    runs = [find_run(folder).path.resolve() for folder in folders]
    frames = {study: load(study).ratings for study in dict.fromkeys(run.parent.parent for run in runs)}
    names = Counter(name for frame in frames.values() for name in frame["run"].unique())
    again = [name for name, times in names.items() if times > 1]
    parts = [
        frame.with_columns(
            pl.when(pl.col("run").is_in(again)).then(pl.format("{}/{}", pl.lit(str(study)), "run")).otherwise("run")
            .alias("run")
        )
        for study, frame in frames.items()
    ]  # fmt: skip
    found = [f"{run.parent.parent}/{run.name}" if run.name in again else run.name for run in runs]
    return pl.concat(parts, how="diagonal"), found


def tidy_table(found: Iterable[tuple[RunFolder, Iterable[Rating]]], prompts: Iterable[Prompt]) -> pl.DataFrame:
    """The tidy table (RATING_COLUMNS, then AXES) of the ratings of some runs' checkpoints; texts are categorical."""
    return beside(*narrow_table(found, prompts))


def narrow_table(
    found: Iterable[tuple[RunFolder, Iterable[Rating]]], prompts: Iterable[Prompt], without: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The ratings of some runs' checkpoints (RATING_COLUMNS, but `without` some), and their AXES, one row a run.

    Texts are categorical: they compare and are shown as text, and take four bytes a row.
    """
    asked = pl.DataFrame([asked_of(prompt) for prompt in prompts], schema=_texts(_ASKED))
    runs: dict[str, RunFolder] = {}
    columns = _texts(name for name in RATING_COLUMNS if name not in without)
    frames = [pl.DataFrame(schema=columns)]
    # One checkpoint's ratings after another: all of a large study's as rows of Python would fill the memory.
    for run, ratings in found:
        runs[run.id] = run
        frames.append(_rated(run, list(ratings), asked).select(*columns))
    told_by_study, factors = _factors_of(list(runs.values()))
    told = [{"run": one.id} | axes_of(one) | own for one, own in zip(runs.values(), factors, strict=True)]
    axes = _told_apart(pl.DataFrame(told, schema={"run": pl.String} | AXES | told_by_study))
    return pl.concat(frames), axes.cast({pl.String: pl.Categorical})


_ASKED = ("id", "parallel_id", "language", "split", "category")


def _texts(names: Iterable[str]) -> dict[str, Any]:
    """Some of RATING_COLUMNS; texts that stand in many rows are categorical."""
    types = {name: RATING_COLUMNS[name] for name in names}
    return {name: pl.Categorical if kind == pl.String and name != "response" else kind for name, kind in types.items()}


def _rated(run: RunFolder, ratings: Sequence[Rating], asked: pl.DataFrame) -> pl.DataFrame:
    """The ratings of one checkpoint, with what was `asked`."""
    ends = [ends_of(one) for one in ratings]
    told: dict[str, list[Any]] = {
        "run": [run.id] * len(ratings),
        "label": [run.label] * len(ratings),
        **{name: [one[name] for one in ratings] for name in ("step", "id", "facet", "rater", "value", "response")},  # type: ignore[literal-required]
        "kind": [kind_of(one["rater"]) for one in ratings],
        "reason": [whole_text(one["reason"]) if one.get("reason") else None for one in ratings],
        "lowest": [lowest for lowest, _ in ends],
        "best": [best for _, best in ends],
    }
    return pl.DataFrame(told, schema=_texts(told)).join(asked, on="id", how="left", maintain_order="left")


def beside(ratings: pl.DataFrame, axes: pl.DataFrame) -> pl.DataFrame:
    """The ratings with the columns of `axes`, of which those that are alike in all runs take no memory."""
    ratings = ratings.drop([name for name in axes.columns if name != "run"], strict=False)
    alike = [name for name in axes.columns if axes[name].n_unique() < 2 and name != "run"]
    # Joined to the column that it takes, so that the others are not copied.
    own = ratings.select("run").join(axes.drop(alike), on="run", how="left", maintain_order="left").drop("run")
    constants = {name: pl.lit(axes[name][0] if len(axes) else None, axes.schema[name]) for name in alike}
    return (
        ratings.hstack(own.get_columns()).with_columns(**constants).select(*ratings.columns, *axes.drop("run").columns)
    )


def instruction_table(found: Iterable[tuple[RunFolder, Iterable[Rating]]], prompts: Iterable[Prompt]) -> pl.DataFrame:
    """Whether each instruction was followed (INSTRUCTION_COLUMNS), from the ratings of some runs' checkpoints."""
    by_id = {prompt["id"]: prompt for prompt in prompts}
    rows = [
        tidy(rating, by_id[rating["id"]], run)
        | {"instruction": one["id"], "strict": one["strict"], "loose": one["loose"], "reason": one.get("why")}
        for run, ratings in found
        for rating in ratings
        if rating["rater"] == "constraint"
        for one in rating.get("detail", {}).get("instructions", [])
    ]
    return pl.DataFrame([{name: row[name] for name in INSTRUCTION_COLUMNS} for row in rows], schema=INSTRUCTION_COLUMNS)


def _told_apart(axes: pl.DataFrame) -> pl.DataFrame:
    """Instructions of one name that are made from different sources are called by their sources."""
    said = pl.when(pl.col("size").is_null()).then("sources").otherwise(pl.format("{}-{}", "sources", "size"))
    several = pl.col("sources").n_unique().over("instructions") > 1
    return axes.with_columns(instructions=pl.when(several).then(said).otherwise("instructions"))


def tidy(rating: Rating, prompt: Prompt, run: RunFolder) -> dict[str, Any]:
    """What a rating is of, as a row of the columns INSTRUCTION_COLUMNS begins with."""
    return {"run": run.id, "label": run.label, "step": rating["step"]} | asked_of(prompt)


def asked_of(prompt: Prompt) -> dict[str, Any]:
    """What tables tell of a prompt."""
    told = {name: prompt.get(name) for name in _ASKED}
    return told | {"parallel_id": told["parallel_id"] or prompt["id"]}
