from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from statsmodels.stats.power import TTestPower
from test_estimates import run_rows, tidy

from xlift.analysis.comparison import compare, sign_flip_test
from xlift.analysis.power import detectable, power_of_t, power_table, prompts_needed


@pytest.mark.parametrize(("prompts", "alpha"), [(5, 0.05), (30, 0.05), (113, 0.05 / 24)])
def test_power_detectable_difference_and_its_inverse_equal_statsmodels(prompts: int, alpha: float) -> None:
    theirs = TTestPower()
    effect = 2.5 / prompts**0.5
    assert power_of_t(effect, prompts**-0.5, prompts - 1, alpha) == pytest.approx(
        theirs.power(effect, prompts, alpha), abs=1e-4
    )
    effect = theirs.solve_power(nobs=prompts, alpha=alpha, power=0.8)
    assert detectable(0.7, prompts, alpha=alpha) == pytest.approx(0.7 * effect, rel=1e-4)
    count = theirs.solve_power(effect_size=0.2 / 0.7, alpha=alpha, power=0.8)
    assert prompts_needed(0.2, 0.7, alpha=alpha) == int(np.ceil(count))


def test_the_prompts_needed_are_the_fewest_that_suffice() -> None:
    for difference in (0.05, 0.2, 0.9):
        count = prompts_needed(difference, 0.8)
        assert count is not None
        enough, short = detectable(0.8, count), detectable(0.8, count - 1)
        assert enough is not None
        assert short is not None
        assert enough <= difference < short


def test_the_sign_flip_test_finds_the_detectable_difference_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    values, chances = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([0.05, 0.08, 0.57, 0.18, 0.12])
    mean = float(values @ chances)
    spread = float(np.sqrt(values**2 @ chances - mean**2))
    count = prompts_needed(mean, spread)
    draws = generator.choice(values, size=(1000, count), p=chances)
    found = np.mean([sign_flip_test(row, generator)[0] <= 0.05 for row in draws])
    assert 0.73 <= found <= 0.85


def test_translations_help_as_far_as_they_are_not_alike_and_seeds_set_a_floor() -> None:
    alone = detectable(0.8, 50)
    assert detectable(0.8, 50, languages=4) == alone
    assert detectable(0.8, 50, languages=4, correlation=0.0) == pytest.approx(detectable(0.4, 50))
    some = detectable(0.8, 50, languages=4, correlation=0.3)
    assert some is not None
    assert alone is not None
    assert alone / 2 < some < alone
    floors = [detectable(0.8, 10**6, seeds=seeds, seed_spread=0.1) for seeds in (2, 3, 5)]
    assert floors == sorted(floors, key=lambda value: -(value or 0))
    assert floors[2] is not None
    assert floors[2] > 0.1
    assert prompts_needed(0.1, 0.8, seeds=3, seed_spread=0.1) is None


def test_fewer_than_two_prompts_detect_nothing() -> None:
    assert detectable(0.8, 1) is None


def frame(prompts: int = 40, seeds: int = 1) -> pl.DataFrame:
    generator = np.random.default_rng(5)
    rows = []
    for rank in (8, 16):
        for seed in range(seeds):
            for language in ("en", "fr"):
                values = generator.integers(0, 3, prompts).astype(float).tolist()
                rows += run_rows(f"r{rank}-{seed}", values, rank=rank, seed=seed, language=language)
    return tidy(rows)


def test_the_table_uses_the_observed_spread_and_shares_alpha_over_its_rows() -> None:
    ratings = frame()
    found = power_table(ratings, "rank=8", "rank=16", difference=0.3)
    sizes = compare(ratings, "rank=8", "rank=16")
    for row, size in zip(found.iter_rows(named=True), sizes.iter_rows(named=True), strict=True):
        assert (row["language"], row["pairs"], row["n_prompts"]) == (size["language"], 40, 40)
        assert row["spread"] == pytest.approx(size["difference"] / size["standardised"])
        assert row["alpha"] == 0.025
        assert row["detectable"] == pytest.approx(detectable(row["spread"], 40, alpha=0.025))
        assert row["prompts_needed"] == prompts_needed(0.3, row["spread"], alpha=0.025)


def test_the_table_counts_the_seeds_and_says_where_prompts_cannot_help() -> None:
    found = power_table(frame(seeds=2), "rank=8", "rank=16", by=["facet"], difference=0.01).row(0, named=True)
    assert (found["pairs"], found["n_prompts"], found["alpha"]) == (80, 40, 0.05)
    assert found["seed_error"] > 0
    assert found["prompts_needed"] is None
    assert found["reason"] == "with so few seeds no number of prompts is enough for this difference"
    alike = tidy(run_rows("a", [1, 1, 1]) + run_rows("b", [2, 2, 2]))
    assert power_table(alike, "a", "b")["reason"].to_list() == ["no difference varies"]
    single = tidy(run_rows("a", [1]) + run_rows("b", [2]))
    assert power_table(single, "a", "b")["reason"].to_list() == ["fewer than two prompts"]
