from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest, bootstrap, norm, t

from xlift.analysis.calibration import calibrated_mean
from xlift.analysis.estimates import SETTINGS, summary, with_conditions
from xlift.errors import DataError
from xlift.intervals import KEPT_DRAWS, Table, draw, estimate, interval_of_mean, prompt_draws, wilson
from xlift.results import AXES, RATING_COLUMNS
from xlift.study.labels import run_settings
from xlift.study.runs import INDIFFERENT, RunConfig

SCHEMA: dict[str, Any] = RATING_COLUMNS | AXES
USUAL: dict[str, Any] = {
    **run_settings(RunConfig()),
    **{"step": 8, "language": "en", "split": "test", "category": "open", "facet": "helpfulness", "rater": "judge:m"},
    **{"kind": "judge", "reason": None, "response": "f", "untuned": False, "model": "m", "method": "lora", "rank": 16},
    **{"learning_rate": 1e-4, "instructions": "d", "size": 64, "steps": 8, "seed": 0, "template": "own"},
}


def tidy(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """The frame of ratings from what rows say beyond the usual; a prompt is `parallel_id` in its language."""
    whole = []
    for row in rows:
        one = USUAL | {"label": row["run"]} | dict(row)
        whole.append({"id": f"{one['parallel_id']}.{one['language']}"} | one)
    return pl.DataFrame(whole, schema=SCHEMA)


def run_rows(run: str, values: Iterable[float | None], **facts: Any) -> list[dict[str, Any]]:
    """One row a value, of prompts p0, p1, …"""
    return [{"run": run, "parallel_id": f"p{i}", "value": value, **facts} for i, value in enumerate(values)]


@pytest.mark.parametrize(("right", "count"), [(0, 16), (16, 16), (7, 16), (1, 3)])
def test_wilson_equals_scipy(right: int, count: int) -> None:
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((theirs.low, theirs.high))


def test_missing_is_not_zero() -> None:
    found = estimate([1.0, None, 1.0], ["a", "b", "c"], top=1.0)
    assert (found.mean, found.rated, found.missing) == (1.0, 2, 1)
    assert found.low is not None
    assert found.low < 1
    assert estimate([None], ["a"]).mean is None


def test_cluster_bootstrap_covers_and_is_wider_than_ignoring_clusters() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        centres = generator.normal(0, 1, 30)
        values = [float(c + generator.normal(0, 0.2)) for c in centres for _ in range(4)]
        clusters = [str(i) for i in range(30) for _ in range(4)]
        found = estimate(values, clusters, resamples=400, seed=trial)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered >= 0.91 * 200


def test_same_seed_same_interval() -> None:
    values, clusters = [0.0, 1.0, 2.0, 1.0], ["a", "a", "b", "c"]
    assert estimate(values, clusters, seed=1) == estimate(values, clusters, seed=1)


def test_the_bootstrap_is_scipys_but_for_the_correction_of_small_samples() -> None:
    values = np.random.default_rng(0).exponential(3, 25)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    longer = np.sqrt(25 / 24) * t.ppf(0.975, 24) / norm.ppf(0.975)
    found = estimate(values.tolist(), [str(i) for i in range(25)], resamples=20_000)
    assert found.low == pytest.approx(values.mean() - (values.mean() - theirs.low) * longer, abs=0.04)
    assert found.high == pytest.approx(values.mean() + (theirs.high - values.mean()) * longer, abs=0.04)


def test_copies_of_a_prompt_add_nothing() -> None:
    values = [1.0] * 20 + [0.0] * 8
    clusters = [str(i) for i in range(28)]
    once, four_times = estimate(values, clusters, 1.0), estimate(values * 4, clusters * 4, 1.0)
    assert four_times.low == pytest.approx(once.low, abs=0.02)
    assert four_times.high == pytest.approx(once.high, abs=0.02)


def test_values_all_equal_have_no_sure_mean() -> None:
    found = summary(tidy(run_rows("a", [2.0] * 16)), by=["run"]).row(0, named=True)
    low, _ = wilson(1.0, 16)
    assert (found["mean"], found["high"], found["share_best"], found["share_best_high"]) == (2.0, 2.0, 1.0, 1.0)
    assert found["low"] == pytest.approx(2 * low)
    assert found["share_best_low"] == pytest.approx(low)
    ones = summary(tidy(run_rows("a", [1.0] * 16)), by=["run"]).row(0, named=True)
    assert (ones["low"], ones["high"]) == pytest.approx((low, 2 - low))
    assert ones["share_best_high"] == pytest.approx(1 - low)


def test_summary_counts_and_averages_by_hand() -> None:
    frame = tidy(
        [
            *run_rows("a", [2.0, 1.0, None, 0.0], reason=None),
            *run_rows("a", [2.0, 2.0, None, None], language="fr", reason="too short"),
        ]
    )
    by_language = summary(frame, by=["language"])
    assert by_language["language"].to_list() == ["en", "fr"]
    assert by_language.select("mean", "share_best", "rated", "missing", "n_prompts", "n_seeds").rows() == [
        (1.0, pytest.approx(1 / 3), 3, 1, 3, 1),
        (2.0, 1.0, 2, 2, 2, 1),
    ]
    together = summary(frame, by=["run"]).row(0, named=True)
    assert (together["mean"], together["rated"], together["missing"], together["n_prompts"]) == (1.4, 5, 3, 3)


def test_the_share_of_one_rating_a_prompt_has_wilsons_interval() -> None:
    found = summary(tidy(run_rows("a", [2.0] * 7 + [1.0] * 4 + [0.0] * 5)), by=["run"]).row(0, named=True)
    assert (found["share_best_low"], found["share_best_high"]) == pytest.approx(wilson(7 / 16, 16))


def test_what_has_no_number_has_a_reason() -> None:
    missing = run_rows("a", [None] * 3, reason="reply empty") + run_rows("b", [None] * 2)
    found = summary(tidy(missing), by=["run"])
    assert found["mean"].null_count() == 2
    assert found["reason"].to_list() == ["none of 3 could be rated: reply empty", "none of 2 could be rated"]
    one, equal = run_rows("a", [0.7], facet="length"), run_rows("b", [0.7, 0.7], facet="length")
    found = summary(tidy(one + equal), by=["run"])
    assert found.select("mean", "low", "share_best").rows() == [(0.7, None, None)] * 2
    assert found["reason"].to_list() == ["a single prompt: no interval", "all values are equal: no interval"]
    assert summary(tidy([]), by=["run"]).is_empty()
    assert summary(tidy([]), by=["run"]).schema == summary(tidy(one), by=["run"]).schema


def test_no_result_is_nan_or_outside_the_scale() -> None:
    generator = np.random.default_rng(4)
    rows = []
    for run in range(60):
        values = generator.choice([0.0, 1.0, 2.0, np.nan], int(generator.integers(1, 6)), p=[0.2, 0.1, 0.5, 0.2])
        known = [None if np.isnan(value) else value for value in values]
        rows += run_rows(f"r{run}", known) + run_rows(f"r{run}", known[:2], language="fr")
    found = summary(tidy(rows), by=["run"])
    for name, top in (("mean", 2), ("low", 2), ("high", 2), ("share_best_low", 1), ("share_best_high", 1)):
        assert not found[name].is_nan().any()
        assert found[name].drop_nulls().is_between(0, top).all()
    assert ((found["low"] <= found["mean"]) & (found["mean"] <= found["high"])).drop_nulls().all()
    assert (found["mean"].is_null() == found["rated"].eq(0)).all()


def seeds_frame(seeds: int, effect: float, prompts: int = 40) -> pl.DataFrame:
    generator = np.random.default_rng([seeds, 9])
    hard = generator.normal(0, 0.5, prompts)
    rows = []
    for seed in range(seeds):
        shift = effect * (seed - (seeds - 1) / 2)
        values = np.clip(np.rint(1 + hard + shift + generator.normal(0, 0.4, prompts)), 0, 2)
        rows += run_rows(f"s{seed}", values.tolist(), seed=seed)
    return tidy(rows)


def test_seeds_are_one_condition_and_make_the_interval_honest_about_them() -> None:
    widths = {}
    for effect in (0.0, 0.8):
        found = summary(seeds_frame(3, effect), by=["condition"]).row(0, named=True)
        assert (found["condition"], found["n_seeds"], found["n_prompts"]) == ("s0", 3, 40)
        assert found["covers"] == "prompts and seeds"
        widths[effect] = found["high"] - found["low"]
    assert widths[0.8] > 2 * widths[0.0]
    assert summary(seeds_frame(1, 0.0), by=["condition"])["covers"].to_list() == ["prompts"]
    assert summary(seeds_frame(3, 0.0), by=["run"])["covers"].to_list() == ["prompts"] * 3


def test_two_seeds_that_differ_leave_much_open() -> None:
    """The mean of two values with one degree of freedom is uncertain far beyond both."""
    first, second = ([centre + 0.1 * (i % 3) for i in range(30)] for centre in (0.3, 0.6))
    rows = run_rows("s0", first, seed=0) + run_rows("s1", second, seed=1)
    found = summary(tidy(rows), by=["condition"]).row(0, named=True)
    assert found["mean"] == pytest.approx(0.55)
    assert found["high"] - found["mean"] > 5 * (0.6 - 0.3) / 2


def test_runs_that_differ_in_more_than_the_seed_are_not_one_condition() -> None:
    frame = tidy(
        run_rows("a0", [1.0], seed=0)
        + run_rows("a1", [1.0], seed=1)
        + run_rows("b0", [1.0], seed=0, system="Be brief.")
        + run_rows("b1", [1.0], seed=1, system="Be brief.")
    )
    assert with_conditions(frame)["condition"].to_list() == ["a0", "a0", "b0", "b0"]
    twins = tidy(run_rows("x", [1.0], seed=0) + run_rows("y", [1.0], seed=0) + run_rows("z", [1.0], seed=1))
    assert with_conditions(twins)["condition"].to_list() == ["x", "y", "z"]


def test_neither_the_order_of_rows_nor_other_groups_matter() -> None:
    frame = pl.concat([seeds_frame(3, 0.3), seeds_frame(2, 0.3).with_columns(language=pl.lit("fr"))])
    by = ["condition", "language"]
    found = summary(frame, by)
    assert summary(frame.sample(fraction=1, shuffle=True, seed=1), by).equals(found)
    assert summary(frame.filter(pl.col("language") == "fr"), by).equals(found.filter(pl.col("language") == "fr"))
    assert not summary(frame, by, seed=1).equals(found)


def test_lacking_columns_are_named_all_at_once() -> None:
    with pytest.raises(DataError, match="no column 'seed', 'rank'"):
        summary(seeds_frame(2, 0).drop("seed", "rank"), by=["run"])


@pytest.mark.parametrize(("prompts", "languages", "seeds", "of_seed"), [(25, 4, 1, 0.0), (40, 1, 3, 0.3)])
def test_intervals_cover_the_truth(prompts: int, languages: int, seeds: int, of_seed: float) -> None:
    """Ratings by two thresholds over a normal sum of prompt, language, seed and rest, most of them 2."""
    cuts, trials = np.array([-1.3, -0.9]), 300
    deviation = np.sqrt(0.5 + 0.09 + of_seed**2 + 0.4)
    truth = float((1 - norm.cdf(cuts)).sum())
    covered = 0
    for trial in range(trials):
        draw = np.random.default_rng(trial).normal
        hidden = draw(0, np.sqrt(0.5), (prompts, 1, 1)) + draw(0, 0.3, (prompts, languages, 1))
        hidden = hidden + draw(0, of_seed, (1, 1, seeds)) + draw(0, np.sqrt(0.4), (prompts, languages, seeds))
        values = (hidden[..., None] / deviation > cuts).sum(axis=-1)
        table = Table(
            values.sum(axis=1).astype(float), np.full((prompts, seeds), float(languages)), np.zeros(seeds, dtype=int)
        )
        low, high, _ = interval_of_mean(table, 2.0, 400, 0.95, seed=0)
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    assert covered >= 0.91 * trials


def test_a_hundred_thousand_ratings_take_seconds() -> None:
    generator = np.random.default_rng(0)
    runs, prompts, languages, facets = np.meshgrid(range(20), range(100), range(10), range(5), indexing="ij")
    facts = {"r": runs, "p": prompts, "l": languages, "f": facets}
    frame = pl.DataFrame({name: array.ravel() for name, array in facts.items()}).with_columns(
        **{name: pl.lit(value, dtype=SCHEMA[name]) for name, value in USUAL.items()},
    )
    frame = frame.with_columns(
        value=pl.Series(generator.integers(0, 3, len(frame)).astype(float)),
        run=pl.format("run-{}", "r"),
        label=pl.format("run-{}", "r"),
        parallel_id=pl.format("p{}", "p"),
        id=pl.format("p{}.{}", "p", "l"),
        language=pl.format("l{}", "l"),
        facet=pl.format("f{}", "f"),
        seed=pl.col("r").cast(pl.Int64),
    )
    # Seconds of computing: beside other programs the clock says less.
    started = time.process_time()
    assert len(summary(frame)) == 1000
    assert len(summary(frame, by=["condition", "facet", "language"])) == 50
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", SETTINGS)
def test_runs_alike_but_for_their_seed_are_one_condition_and_those_of_another_setting_are_not(name: str) -> None:
    other = {pl.String: "x", pl.Int64: 3, pl.Float64: 0.3, pl.Boolean: not USUAL[name]}[SCHEMA[name]]
    rows = [
        row
        for number, setting in enumerate([{}, {name: other}])
        for seed in range(3)
        for row in run_rows(f"{number}-{seed}", [1.0, 2.0], seed=seed, **setting)
    ]
    found = with_conditions(tidy(rows)).group_by("condition").agg(pl.col("run").unique().sort()).sort("condition")
    assert found["run"].to_list() == [[f"{number}-{seed}" for seed in range(3)] for number in (0, 1)]


@pytest.mark.parametrize("name", sorted(INDIFFERENT))
def test_how_a_run_is_computed_makes_no_condition(name: str) -> None:
    other = {pl.Int64: 3, pl.Boolean: True}[SCHEMA[name]]
    rows = run_rows("a", [1.0]) + run_rows("b", [1.0], seed=1, **{name: other})
    assert with_conditions(tidy(rows))["condition"].to_list() == ["a", "a"]


def test_the_scale_is_the_facets_whatever_values_were_seen() -> None:
    low, _ = wilson(1.0, 20)
    found = summary(tidy(run_rows("a", [1.0] * 20)), by=["run"]).row(0, named=True)
    assert (found["low"], found["high"]) == pytest.approx((low, 2 - low))
    assert (found["low"], found["high"]) == pytest.approx((0.84, 1.16), abs=0.005)
    judge = calibrated_mean([1.0] * 20, [None] * 20, [str(i) for i in range(20)]).judge_only
    assert (judge.low, judge.high) == pytest.approx((low, 2 - low))
    zeros = summary(tidy(run_rows("a", [0.0, 1.0] * 10)), by=["run"]).row(0, named=True)
    twos = summary(tidy(run_rows("a", [2.0, 1.0] * 10)), by=["run"]).row(0, named=True)
    assert (2 - zeros["high"], 2 - zeros["low"]) == pytest.approx((twos["low"], twos["high"]))
    halves = summary(tidy(run_rows("a", [0.5] * 20)), by=["run"]).row(0, named=True)
    assert (halves["low"], halves["high"]) == pytest.approx((0.5 * low, 0.5 + (1 - low) * 1.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimate([2.0], ["a"], top=1.0)


def test_facets_of_several_scales_and_values_beyond_it_are_on_none() -> None:
    mixed = run_rows("a", [1.0] * 8) + run_rows("a", [1.0] * 8, facet="length")
    beyond = run_rows("a", [3.0] * 8)
    unknown = run_rows("a", [1.0] * 8, facet="length")
    for rows in (mixed, beyond, unknown):
        assert summary(tidy(rows), by=["run"])["reason"].to_list() == ["all values are equal: no interval"]


def test_kept_draws_are_those_made_anew_and_take_bounded_memory() -> None:
    for count in (2, 60, KEPT_DRAWS // 2000, KEPT_DRAWS // 2000 + 1):
        fresh = draw(count, 2000, np.random.default_rng([5, 0, count]))
        assert np.array_equal(prompt_draws(count, 2000, 5), fresh)
    tracemalloc.start()
    for seed in range(12):
        prompt_draws(4000, 2000, seed)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8 * 2 * KEPT_DRAWS + 2**20
