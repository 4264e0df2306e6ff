"""A study's responses and ratings as a data set of the hub: Parquet tables, a card, no name of a person."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from xlift.disk import whole_folder, whole_text, write_atomic
from xlift.errors import ConfigError
from xlift.export.card import findings_section, front
from xlift.report.formats import plain
from xlift.report.reading import Material, material_of, share_rows
from xlift.results import Results, load
from xlift.tuning.card import public_settings

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
RESPONSE_COLUMNS: dict[str, Any] = {
    "run": pl.String, "label": pl.String, "step": pl.Int64, "id": pl.String, "parallel_id": pl.String,
    "language": pl.String, "reply_language": pl.String, "split": pl.String, "category": pl.String,
    "constraint": pl.String, "messages": MESSAGES, "text": pl.String, "finish_reason": pl.String,
    "prompt_tokens": pl.Int64, "new_tokens": pl.Int64, "signature": pl.String,
}  # fmt: skip
"""Columns of the responses; `constraint` is JSON, since each kind has fields of its own."""


def export_data(study: Path, to: Path) -> Path:
    """Write a study's responses and ratings into the folder `to`, which must not be there yet.

    data/responses.parquet has one row a response, data/ratings.parquet one row a rating (the tidy table of
    `xlift.load`), README.md says what they are. Raises ConfigError where nothing has been answered yet.
    """
    results = load(study)
    responses = _responses(results)
    if responses.is_empty():
        raise ConfigError(f"{study}: no responses yet", f"xlift run {study}")
    with whole_folder(to) as folder:
        (folder / "data").mkdir(parents=True)
        ratings = without_names(results.ratings)
        for name, table in (("responses", responses), ("ratings", ratings)):
            # Not written by polars itself, which does not say why it cannot.
            table.write_parquet(packed := io.BytesIO())
            (folder / "data" / f"{name}.parquet").write_bytes(packed.getvalue())
        write_atomic(folder / "README.md", _card(material_of(results.workspace), responses, ratings))
    return to


def _responses(results: Results) -> pl.DataFrame:
    labels = {run.id: run.label for run in results.workspace.runs}
    rows: list[dict[str, Any]] = [
        {name: one.get(name) for name in RESPONSE_COLUMNS}
        | {
            "label": labels[one["run"]],
            "text": whole_text(one["text"]),
            "messages": [{"role": told["role"], "content": whole_text(told["content"])} for told in one["messages"]],
            "constraint": json.dumps(one["constraint"], ensure_ascii=False) if one.get("constraint") else None,
        }
        for one in results.responses
    ]
    return pl.DataFrame(rows, schema=RESPONSE_COLUMNS)


def without_names(ratings: pl.DataFrame) -> pl.DataFrame:
    """Ratings whose people are numbered in the order of their names: "human:Ana" becomes "human:1"."""
    people = sorted(name for name in ratings["rater"].unique() if name.startswith("human:"))
    numbered = {name: f"human:{number}" for number, name in enumerate(people, start=1)}
    return ratings.with_columns(pl.col("rater").cast(pl.String).replace(numbered))


def _card(material: Material, responses: pl.DataFrame, ratings: pl.DataFrame) -> str:
    study = material.workspace.study
    head = {
        "language": sorted(study.prompts.languages),
        "pretty_name": study.name,
        "tags": ["xlift", "multilingual-evaluation"],
        "task_categories": ["text-generation"],
        "configs": [
            {"config_name": name, "data_files": f"data/{name}.parquet"} | ({"default": True} if first else {})
            for name, first in (("responses", True), ("ratings", False))
        ],
    }
    missing = ratings["value"].null_count()
    asks = f"{plain(study.question)}\n\n" if study.question else ""
    return (
        f"{front(head)}# {study.name}\n\n{asks}"
        f"What {len(material.workspace.runs)} models answered and how it was rated, by "
        f"[xlift](https://arxiv.org/abs/2402.14778): {len(responses):,} responses, {len(ratings):,} ratings, "
        f"{missing:,} of them missing with a `reason` (`value` is null, not 0). Values are 0, 1 or 2, of `human:N` and "
        "judges too; people are numbers. The answers are by models whose licences say what may be done with them.\n\n"
        f"{findings_section(material, share_rows(material, 'test'), of_runs=True)}\n"
        f"## Settings\n\n```yaml\n{public_settings(study)}```\n"
    )
