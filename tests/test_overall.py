"""One number a run, which runs it tells apart, and what became of the answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report_fixtures import GOOD, chances, made_study, rated_by, rated_study

from xlift.analysis.estimates import with_silence
from xlift.analysis.overall import overall
from xlift.records import EMPTY
from xlift.report.numbers import findings_of
from xlift.report.outcomes import outcome_of, outcome_rows
from xlift.report.overall import OverallRow, marks_of, overall_rows
from xlift.report.reading import Material
from xlift.report.rows import rows_of
from xlift.report.sections import sections_of
from xlift.results import load

LANGUAGE = ("language", "language")
LANGUAGES = ["en", "fr", "ru"]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two learning rates with two seeds each, in three languages."""
    return made_study(
        tmp_path_factory.mktemp("seeded") / "study",
        lambda _, prompt: GOOD[prompt["language"]],
        prompts={"languages": LANGUAGES, "test": {"size": 24}},
        training={"learning_rate": [1e-4, 1e-3], "seed": [1, 2]},
    )


def spoilt(run: Any, prompt: Any) -> float:
    """A high learning rate loses Russian."""
    high = not run.config.untuned and run.config.learning_rate > 5e-4
    return 0.1 if high and prompt["language"] == "ru" else 0.9


def rows_by(material: Material) -> dict[str, OverallRow]:
    return {row.run: row for row in overall_rows(material)}


def test_the_overall_number_weighs_languages_alike_and_leaves_out_english(seeded: Any) -> None:
    material = rated_by(seeded, {LANGUAGE: chances(spoilt, 1)})
    for row in overall_rows(material):
        runs = next(one.runs for one in material.conditions if one.name == row.run)
        own = material.test.filter(pl.col("run").is_in(runs) & (pl.col("language") != "en"))
        means = dict(own.group_by("language").agg(pl.col("value").mean()).iter_rows())
        assert row.mean == pytest.approx(sum(means.values()) / 2)
        assert (row.worst_language, row.worst) == min(means.items(), key=lambda item: item[1])
        mean, low, high = (end or 0.0 for end in row.share)
        assert 0 < low < mean < high <= 1


def test_runs_that_are_alike_share_their_ranks_and_one_that_lost_a_language_is_last(seeded: Any) -> None:
    ranks = {name: row.rank for name, row in rows_by(rated_by(seeded, {LANGUAGE: chances(spoilt, 1)})).items()}
    assert ranks == {"base": "1–2", "lora-r16-lr1e-4": "1–2", "lora-r16-lr1e-3": "3"}
    alike = rows_by(rated_by(seeded, {LANGUAGE: chances(lambda run, prompt: 0.6, 2)}))
    assert {row.rank for row in alike.values()} == {"1–3"}


def test_few_requests_that_all_agree_give_no_order(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], prompts={"test": {"size": 2}})
    rows = rows_by(rated_by(study, {LANGUAGE: lambda run, prompt: 2.0 if run.config.untuned else 0.0}))
    assert {row.rank for row in rows.values()} == {"1–3"}


def test_seeds_are_shown_as_their_range(seeded: Any) -> None:
    rows = rows_by(rated_by(seeded, {LANGUAGE: chances(spoilt, 1)}))
    tuned = rows["lora-r16-lr1e-3"]
    assert (tuned.n_seeds, rows["base"].lowest_seed) == (2, None)
    assert (tuned.lowest_seed or 0) <= (tuned.mean or 0) <= (tuned.highest_seed or 0)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(seeded: Any) -> None:
    frame = rated_by(seeded, {LANGUAGE: lambda run, prompt: 2.0}).tested.filter(pl.col("untuned"))
    generator, held = random.Random(4), 0
    asked = frame["parallel_id"].to_list()
    for _ in range(60):
        # A request is easy or hard in all languages alike.
        easy = {name: generator.random() < 0.5 for name in sorted(set(asked))}
        values = [2.0 if generator.random() < (0.95 if easy[name] else 0.45) else 0.0 for name in asked]
        (row,) = overall(frame.with_columns(value=pl.Series(values)), resamples=200).to_dicts()
        held += row["low"] <= 0.7 <= row["high"]
    assert held >= 52


def test_marks_stand_where_tuning_changes_something_beyond_chance(seeded: Any) -> None:
    material = rated_by(seeded, {LANGUAGE: chances(spoilt, 1)})
    marks = marks_of(material, rows_of(findings_of(material).versus, material.scales[0]))
    assert {(run.rsplit("-", 2)[0], code, mark) for (run, code), mark in marks.items()} == {
        ("lora-r16-lr1e-3", "ru", "▼")
    }


def test_an_empty_answer_is_not_in_the_language_and_not_missing() -> None:
    rows = [("language", None, EMPTY), ("language", None, "too short"), ("fluency", None, EMPTY), ("language", 2.0, "")]
    frame = pl.DataFrame(rows, schema=["facet", "value", "reason"], orient="row")
    assert with_silence(frame)["value"].to_list() == [0.0, None, None, 2.0]


def test_every_answer_has_one_outcome_and_a_cut_one_is_not_wrong(seeded: Any) -> None:
    def rating(value: float | None, reason: str = "") -> Any:
        return {"value": value, "reason": reason}

    cut, whole = {"finish_reason": "length"}, {"finish_reason": "stop"}
    assert outcome_of(cut, rating(2)) == "in the language, cut at the token limit"  # type: ignore[arg-type]
    assert outcome_of(cut, rating(0)) == "in another language"  # type: ignore[arg-type]
    assert outcome_of(whole, rating(None, EMPTY)) == "no answer"  # type: ignore[arg-type]
    assert outcome_of(whole, rating(None, "too short")) == "could not be told"  # type: ignore[arg-type]
    material = rated_by(seeded, {LANGUAGE: chances(spoilt, 1)})
    told: dict[tuple[str, int, str], list[Any]] = {}
    for row in outcome_rows(material):
        told.setdefault((row.id, row.step, row.language), []).append(row)
    assert len(told) == 5 * 3
    assert all(sum(row.count for row in own) == own[0].asked == 24 for own in told.values())


def test_overall_table_and_outcomes_open_the_results(seeded: Any) -> None:
    material = rated_by(seeded, {LANGUAGE: chances(spoilt, 1)})
    results = sections_of(material, findings_of(material))[0]
    shown = [block.figure.name if block.figure else block.table.name for block in results.blocks if block]  # type: ignore[union-attr]
    assert shown[:4] == ["heat-map-language", "overall-language", "outcomes", "outcomes"]


def test_python_reads_the_overall_number_of_a_study_as_the_report_tells_it(tmp_path: Path) -> None:
    study = rated_study(
        tmp_path / "study", lambda run, prompt: GOOD["en" if run.config.untuned else prompt["language"]]
    )
    told = {row["condition"]: row["mean"] for row in load(study.path).overall.filter(rater="language").to_dicts()}
    assert told == {run.id: 0.0 if run.config.untuned else 1.0 for run in study.runs}
