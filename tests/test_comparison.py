from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest, bootstrap, permutation_test
from statsmodels.stats.multitest import multipletests
from test_estimates import run_rows, tidy

from xlift.analysis.comparison import compare, comparison_text, sign_flip_test
from xlift.analysis.measures import holm
from xlift.errors import ConfigError, DataError


def two_runs(prompts: int = 30, shift: float = 0.4, seed: int = 0, **facts: Any) -> pl.DataFrame:
    """Runs a and b, the second better by about `shift`, in two languages."""
    generator = np.random.default_rng(seed)
    rows = []
    for language in ("en", "fr"):
        hard = generator.normal(0, 0.6, prompts)
        for name, better in (("a", 0.0), ("b", shift)):
            values = np.clip(np.rint(1 + hard + better + generator.normal(0, 0.5, prompts)), 0, 2)
            rows += run_rows(name, values.tolist(), language=language, **facts)
    return tidy(rows)


def flips(differences: Any, seed: int = 0) -> float:
    return sign_flip_test(np.asarray(differences, dtype=float), np.random.default_rng(seed))[0]


@pytest.mark.parametrize("whole", [True, False])
def test_the_test_equals_scipys_exact_permutation_test(whole: bool) -> None:
    generator = np.random.default_rng(1)
    for count in (3, 8, 12):
        first, second = (
            generator.integers(0, 3, count) if whole else generator.normal(0.3 * i, 1, count) for i in (0, 1)
        )
        theirs = permutation_test(
            (second, first),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            n_resamples=10_000,
        )
        assert flips(second - first) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_with_equal_sizes_the_test_is_the_sign_test_for_any_number_of_prompts() -> None:
    for better, worse in ((5, 0), (180, 140), (400, 300)):
        expected = binomtest(better, better + worse).pvalue
        assert flips([1] * better + [-1] * worse + [0] * 50) == pytest.approx(expected, rel=1e-9)
        assert flips([0.25] * better + [-0.25] * worse) == pytest.approx(expected, rel=1e-9)


def test_random_flips_come_close_to_the_count_of_all() -> None:
    differences = np.random.default_rng(2).normal(0.4, 1, 20)
    exact, how = sign_flip_test(differences, np.random.default_rng(0))
    near, random_how = sign_flip_test(np.append(differences, 1e-7), np.random.default_rng(0))
    assert (how, random_how) == ("exact, prompts", "20000 random flips, prompts")
    assert 0.01 < exact < 0.5
    assert near == pytest.approx(exact, abs=0.01)


def test_the_test_keeps_its_level_where_both_sides_are_alike() -> None:
    generator = np.random.default_rng(3)
    differences = generator.integers(0, 3, (1500, 25)) - generator.integers(0, 3, (1500, 25))
    rejected = np.mean([flips(row) <= 0.05 for row in differences])
    assert 0.025 <= rejected <= 0.062


def test_holm_equals_statsmodels_and_passes_over_what_has_no_p() -> None:
    values = [0.01, 0.04, 0.03, 0.2, 0.01]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    found = compare(two_runs(), "a", "b")
    assert found["p_holm"].to_list() == pytest.approx(multipletests(found["p"], method="holm")[1])


def test_shares_means_and_missing_are_counted_by_hand() -> None:
    frame = tidy(run_rows("a", [0, 1, 2, 2, None, 1]) + run_rows("b", [2, 1, 1, None, 2, 2, 0]))
    row = compare(frame, "a", "b").row(0, named=True)
    assert (row["pairs"], row["missing"], row["n_prompts"]) == (4, 3, 4)
    assert (row["first_mean"], row["second_mean"], row["difference"]) == (1.0, 1.5, 0.5)
    assert (row["better"], row["worse"], row["tied"], row["superiority"]) == (0.5, 0.25, 0.25, 0.625)
    assert row["standardised"] == pytest.approx(0.5 / np.std([2, 0, -1, 1], ddof=1))
    assert row["p"] == pytest.approx(flips([2, 0, -1, 1]))


def test_the_interval_is_that_of_the_paired_bootstrap() -> None:
    frame = two_runs(60).filter(pl.col("language") == "en")
    row = compare(frame, "a", "b", resamples=20_000).row(0, named=True)
    first, second = (frame.filter(pl.col("run") == run)["value"].to_numpy() for run in ("a", "b"))
    theirs = bootstrap((second - first,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert (row["low"], row["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    unpaired = np.sqrt(first.var() / 60 + second.var() / 60) * 2 * 1.96
    assert row["high"] - row["low"] < unpaired


def test_translations_of_a_prompt_are_one_cluster() -> None:
    frame = two_runs().filter(pl.col("language") == "en")
    copy = frame.with_columns(language=pl.lit("fr"), id=pl.col("parallel_id") + ".fr")
    once = compare(frame, "a", "b", by=["facet"]).row(0, named=True)
    twice = compare(pl.concat([frame, copy]), "a", "b", by=["facet"]).row(0, named=True)
    assert (twice["pairs"], twice["n_prompts"]) == (2 * once["pairs"], once["n_prompts"])
    for name in ("difference", "low", "high", "p"):
        assert twice[name] == pytest.approx(once[name])


def test_sides_swapped_turn_the_sign_and_nothing_else() -> None:
    frame = two_runs()
    forth, back = compare(frame, "a", "b"), compare(frame, "b", "a")
    assert forth["p"].equals(back["p"])
    assert forth["better"].equals(back["worse"])
    assert forth["difference"].to_list() == pytest.approx((-back["difference"]).to_list())
    assert forth["low"].to_list() == pytest.approx((-back["high"]).to_list(), abs=0.03)


def test_neither_the_order_of_rows_nor_a_second_call_changes_anything() -> None:
    frame = two_runs()
    found = compare(frame, "a", "b")
    assert compare(frame.sample(fraction=1, shuffle=True, seed=5), "a", "b").equals(found)
    assert not compare(frame, "a", "b", seed=1).equals(found)


def seeded(generator: np.random.Generator, of_seed: float, seeds: int = 3, prompts: int = 30) -> pl.DataFrame:
    """Two alike conditions, of rank 8 and 16, whose runs differ by their seeds."""
    hard = generator.normal(0, 0.5, prompts)
    rows = []
    for rank in (8, 16):
        for seed in range(seeds):
            values = 1 + hard + generator.normal(0, of_seed) + generator.normal(0, 0.4, prompts)
            rows += run_rows(f"r{rank}-s{seed}", np.clip(np.rint(values), 0, 2).tolist(), rank=rank, seed=seed)
    return tidy(rows)


def test_conditions_with_seeds_are_not_told_apart_by_luck_of_the_seeds() -> None:
    """Two runs that differ by luck alone are told apart by prompts; the conditions must not be."""
    conditions = runs = covered = 0
    trials = 100
    for trial in range(trials):
        frame = seeded(np.random.default_rng(trial), of_seed=0.3)
        row = compare(frame, "rank=8", "rank=16", resamples=300).row(0, named=True)
        assert (row["covers"], row["test"]) == ("prompts and seeds", "t, prompts and seeds")
        assert (row["first_seeds"], row["second_seeds"]) == (3, 3)
        conditions += row["p"] <= 0.05
        covered += row["low"] <= 0 <= row["high"]
        runs += compare(frame, "r8-s0", "r16-s0", resamples=100)["p"][0] <= 0.05
    assert conditions <= 0.1 * trials
    assert covered >= 0.9 * trials
    assert runs >= 0.3 * trials


def test_the_untuned_model_has_no_seeds_and_needs_none() -> None:
    frame = seeded(np.random.default_rng(0), of_seed=0.2)
    base = tidy(run_rows("base", [1.0] * 30, untuned=True, method="none", learning_rate=None, rank=None, step=0))
    row = compare(pl.concat([frame, base]), "base", "rank=16").row(0, named=True)
    assert (row["first_seeds"], row["second_seeds"], row["covers"]) == (1, 3, "prompts and seeds")
    alone = compare(pl.concat([frame, base]), "base", "r16-s0").row(0, named=True)
    assert alone["covers"] == "prompts"
    one_sided = compare(frame.filter(pl.col("run") != "r8-s1", pl.col("run") != "r8-s2"), "rank=8", "rank=16")
    assert one_sided["covers"].to_list() == ["prompts"]


def test_a_gap_in_one_seed_leaves_the_prompt_in() -> None:
    rows = run_rows("a", [0, 0, 0]) + run_rows("b0", [1, 2, None], size=9) + run_rows("b1", [1, 0, 2], size=9, seed=1)
    row = compare(tidy(rows), "a", "size=9").row(0, named=True)
    assert (row["pairs"], row["missing"], row["difference"]) == (3, 0, pytest.approx((1 + 1 + 2) / 3))


def test_sides_are_found_by_folder_label_condition_and_step() -> None:
    early = two_runs(shift=0.0, step=4, steps=8)
    frame = pl.concat([early, two_runs(step=8, seed=1)]).with_columns(label="label-" + pl.col("run"))
    frame = frame.with_columns(learning_rate=pl.when(pl.col("run") == "a").then(1e-4).otherwise(3 * 1e-4))
    last = compare(frame.filter(pl.col("step") == 8), "a", "b")
    assert compare(frame, "a", "b").equals(last)
    assert compare(frame, "label-a", "learning_rate=3e-4").equals(last)
    assert compare(frame, {"run": "a"}, {"learning_rate": 3e-4}).equals(last)
    growth = compare(frame, "run=b,step=4", "b").row(0, named=True)
    assert growth["second_mean"] == last["second_mean"][0]
    assert growth["first_mean"] != growth["second_mean"]


def test_all_that_is_wrong_with_both_sides_is_said_at_once() -> None:
    frame = two_runs().with_columns(rank=pl.when(pl.col("run") == "a").then(8).otherwise(16).cast(pl.Int64))
    with pytest.raises(ConfigError) as caught:
        compare(frame, "c", "size=64")
    assert caught.value.problems == [
        "no ratings of 'c'; choices: a, b",
        "'size=64' holds 2 conditions: a, b; say which",
    ]
    with pytest.raises(ConfigError, match="both sides are the same"):
        compare(frame, "a", "label=a")
    with pytest.raises(ConfigError, match="no column 'rnak'; did you mean 'rank'"):
        compare(frame, "a", "rnak=8")
    with pytest.raises(ConfigError, match="'rank=high': not a value of this column"):
        compare(frame, "a", "rank=high")
    with pytest.raises(ConfigError, match=r"no ratings by 'judge'; did you mean 'judge:m'"):
        compare(frame, "a", "b", rater="judge")
    with pytest.raises(DataError, match="no column 'value'"):
        compare(frame.drop("value"), "a", "b")
    with pytest.raises(DataError, match="there are no ratings to compare"):
        compare(frame.clear(), "a", "b")


def test_raters_are_compared_apart_and_all_rows_are_one_family() -> None:
    frame = two_runs()
    both = pl.concat([frame, frame.with_columns(rater=pl.lit("human:ann"))])
    found = compare(both, "a", "b")
    assert found["rater"].to_list() == ["human:ann", "judge:m"] * 2
    one = compare(both, "a", "b", rater="judge:m")
    assert one["p"].to_list() == found.filter(pl.col("rater") == "judge:m")["p"].to_list()
    assert found["p_holm"].min() == pytest.approx(min(1.0, 2 * one["p_holm"].min()))  # type: ignore[operator]


def test_what_has_no_number_has_a_reason() -> None:
    def only(first: list[float | None], second: list[float | None]) -> dict[str, Any]:
        return compare(tidy(run_rows("a", first) + run_rows("b", second)), "a", "b").row(0, named=True)

    nothing = only([None, 1], [2, None])
    assert (nothing["difference"], nothing["p"], nothing["missing"]) == (None, None, 2)
    assert nothing["reason"] == "none of 2 prompts is rated on both sides"
    one = only([1], [2])
    assert (one["difference"], one["low"], one["p"]) == (1.0, None, 1.0)
    assert one["reason"].startswith("a single prompt: no interval")
    alike = only([1, 2, 0], [1, 2, 0])
    assert (alike["difference"], alike["p"], alike["tied"], alike["standardised"]) == (0.0, 1.0, 1.0, None)
    assert alike["low"] < 0 < alike["high"]
    on_scale = only([0.1] * 5, [0.2] * 5)
    assert on_scale["low"] < 0.1 < on_scale["high"]
    shifted = only([2.1] * 5, [2.2] * 5)
    assert (shifted["low"], shifted["p"]) == (None, 0.0625)
    assert "all differences are equal: no interval" in shifted["reason"]
    absent = tidy(run_rows("a", [1]) + run_rows("b", [1]) + run_rows("b", [1], facet="fluency"))
    assert compare(absent, "a", "b")["pairs"].to_list() == [0, 1]


def test_the_text_table_shows_each_row_and_what_is_missing() -> None:
    frame = tidy(
        run_rows("a", [0, 0, 1, 1, 0, 0, None])
        + run_rows("b", [2, 2, 2, 1, 2, 2, 1])
        + run_rows("a", [1], facet="fluency")
    )
    head, fluency, helpful = comparison_text(compare(frame, "a", "b"), "base", "tuned").splitlines()
    assert head.split()[:5] == ["facet", "lang", "rater", "base", "tuned"]
    assert fluency.split() == ["fluency", "en", "judge:m", "–", "–", "–", "–", "–", "0", "1"]
    assert helpful.startswith("helpfulness  en    judge:m  0.33  1.83   +1.50 [")
    assert helpful.split()[-5:] == ["0.062", "83/17/0", "%", "6", "1"]


def test_translations_of_a_request_are_paired_and_a_scale_of_shares_is_kept() -> None:
    rows = [
        row | {"language": language, "id": f"{place}-{language}", "parallel_id": str(place), "value": float(value)}
        for language, values in (("en", [1, 1, 0, 1]), ("fr", [1, 0, 0, 0]))
        for place, (row, value) in enumerate(zip(run_rows("a", [0] * 4), values, strict=True))
    ]
    sides = {"language": "en"}, {"language": "fr"}
    found = compare(tidy(rows), *sides, ("facet",), top=1.0, pair="request").row(0, named=True)
    assert (found["pairs"], found["difference"]) == (4, -0.5)
    equal = [row | {"value": 1.0} for row in rows]
    alike = compare(tidy(equal), *sides, ("facet",), top=1.0, pair="request").row(0, named=True)
    twice = compare(tidy([row | {"value": 2.0} for row in rows]), *sides, ("facet",), pair="request").row(0, named=True)
    assert (alike["low"], alike["high"]) == (pytest.approx(twice["low"] / 2), pytest.approx(twice["high"] / 2))


def test_a_label_of_several_runs_is_refused_and_their_ids_tell_them_apart() -> None:
    rows = run_rows("one/a", [0, 1, 2]) + run_rows("two/a", [2, 2, 2]) + run_rows("two/b", [1, 1, 1], seed=1)
    frame = tidy(rows).with_columns(label=pl.col("run").str.split("/").list.last())
    for other in (frame, frame.with_columns(seed=pl.col("run").rank("dense").cast(pl.Int64))):
        with pytest.raises(ConfigError, match="'a' is what 2 runs are called: one/a, two/a; say which"):
            compare(other, "a", "b")
        assert compare(other, "one/a", "two/a")["difference"].to_list() == [1.0]


def test_a_switch_is_a_setting_like_any_other() -> None:
    frame = tidy(run_rows("a", [0, 1]) + run_rows("b", [1, 1], packing=False))
    assert compare(frame, "packing=true", "packing=off")["difference"].to_list() == [0.5]
    assert compare(frame, {"packing": True}, "b")["difference"].to_list() == [0.5]
    with pytest.raises(ConfigError, match="'packing=7': not a value of this column"):
        compare(frame, "packing=7", "b")
