from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm
from test_estimates import run_rows, tidy

from xlift.analysis.comparison import compare
from xlift.analysis.effects import FACTORS, REST, factor_effects, variance_shares
from xlift.analysis.estimates import SETTINGS
from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.errors import ConfigError, DataError
from xlift.study.runs import FILLED_IN

Axes = Mapping[str, Any]


def grid(
    conditions: list[dict[str, Any]],
    value: Callable[[Axes, str], float],
    prompts: int = 20,
    languages: tuple[str, ...] = ("en", "fr"),
    seeds: int = 1,
    noise: float = 0.3,
    of_seed: float = 0.0,
    draw: int = 0,
) -> pl.DataFrame:
    """A run a condition and seed, with values about `value` of its axes and the language, harder and easier prompts."""
    generator = np.random.default_rng(draw)
    hard = generator.normal(0, 0.5, prompts)
    rows = []
    for number, axes in enumerate(conditions):
        for seed in range(seeds):
            luck = generator.normal(0, of_seed)
            for language in languages:
                values = value(axes, language) + hard + luck + generator.normal(0, noise, prompts)
                rows += run_rows(f"r{number:02d}-s{seed}", values.tolist(), language=language, seed=seed, **axes)
    return tidy(rows)


def crossed(**axes: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


RATES_AND_SIZES = crossed(learning_rate=[1e-5, 1e-4, 1e-3], size=[64, 256])


def simple(axes: Axes, language: str) -> float:
    """The highest rate costs 1, in French 2; more data adds 0.5."""
    cost = {"en": 1.0, "fr": 2.0}.get(language, 1.0)
    return 1 - cost * (axes["learning_rate"] == 1e-3) + 0.5 * (axes["size"] == 256)


def one(found: pl.DataFrame, **where: str) -> dict[str, Any]:
    return found.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


def test_marginal_means_of_a_balanced_grid_are_the_means_of_the_ratings() -> None:
    frame = grid(RATES_AND_SIZES, simple)
    found = factor_effects(frame)
    assert found["factor"].unique().sort().to_list() == ["learning_rate", "size"]
    plain = frame.group_by("language", "learning_rate").agg(pl.col("value").mean())
    for row in plain.iter_rows(named=True):
        level = one(found, language=row["language"], factor="learning_rate", level=f"{row['learning_rate']:g}")
        assert level["mean"] == pytest.approx(row["value"])
        overall = frame.filter(pl.col("language") == row["language"])["value"].mean()
        assert level["effect"] == pytest.approx(row["value"] - overall)


def test_effects_of_an_unbalanced_grid_equal_those_of_statsmodels() -> None:
    conditions = [
        axes
        for i, axes in enumerate(crossed(learning_rate=[1e-5, 1e-4, 1e-3], size=[64, 256], rank=[8, 16]))
        if i not in (0, 5, 10)
    ]
    frame = grid(conditions, simple)
    means = (
        frame.filter(pl.col("language") == "fr")
        .group_by("run", "learning_rate", "size", "rank")
        .agg(pl.col("value").mean())
    )
    fit = smf.ols("value ~ C(learning_rate, Sum) + C(size, Sum) + C(rank, Sum)", means.to_pandas()).fit()
    found = factor_effects(frame)
    for level, name in (("1e-05", "S.1e-05"), ("0.0001", "S.0.0001")):
        row = one(found, language="fr", factor="learning_rate", level=level)
        assert row["effect"] == pytest.approx(fit.params[f"C(learning_rate, Sum)[{name}]"])
        assert row["mean"] == pytest.approx(fit.params["Intercept"] + row["effect"])
    assert one(found, language="fr", factor="adaptation", level="lora-r8")["effect"] == pytest.approx(
        fit.params["C(rank, Sum)[S.8]"]
    )


def test_a_language_that_suffers_more_shows_in_its_interaction() -> None:
    found = factor_effects(grid(RATES_AND_SIZES, simple), reference={"learning_rate": 1e-4})
    french = one(found, language="fr", factor="learning_rate", level="0.001")
    assert french["against"] == "0.0001"
    assert french["low"] < -2 < french["high"] < 0
    assert french["interaction_low"] < -1 < french["interaction_high"] < 0
    size = one(found, language="fr", factor="size", level="256")
    assert size["interaction_low"] < 0 < size["interaction_high"]
    english = one(found, language="en", factor="learning_rate", level="0.001")
    assert english["interaction"] is None
    assert one(found, language=ALL_LANGUAGES, factor="learning_rate", level="0.001")["effect"] == pytest.approx(
        (french["effect"] + english["effect"]) / 2
    )


def test_intervals_of_effects_and_interactions_cover_the_truth() -> None:
    covered = {"effect": 0, "interaction": 0, "seeds": 0}
    trials = 120
    for trial in range(trials):
        found = factor_effects(grid(RATES_AND_SIZES, simple, draw=trial), resamples=300)
        row = one(found, language="fr", factor="learning_rate", level="0.001")
        covered["effect"] += row["low"] <= -4 / 3 <= row["high"]
        covered["interaction"] += row["interaction_low"] <= -2 / 3 <= row["interaction_high"]
        seeded = grid(RATES_AND_SIZES[:2], simple, seeds=3, of_seed=0.3, languages=("en",), draw=trial)
        size = one(factor_effects(seeded, resamples=300), language="en", level="256")
        assert size["covers"] == "prompts and seeds"
        covered["seeds"] += size["low"] <= 0.25 <= size["high"]
    assert min(covered.values()) >= 0.88 * trials


def test_factors_that_determine_one_another_are_one_factor_with_both_names() -> None:
    conditions = [
        axes | {"steps": axes["size"] // 8, "instructions": f"dolly-{axes['size']}"} for axes in RATES_AND_SIZES
    ]
    found = factor_effects(grid(conditions, simple))
    assert found["factor"].unique().sort().to_list() == ["learning_rate", "size, steps"]
    assert one(found, language="en", factor="size, steps", level="256, 32")["effect"] == pytest.approx(0.25, abs=0.1)
    nested = crossed(method=["lora"], learning_rate=[1e-4, 1e-3]) + crossed(
        method=["full"], rank=[None], learning_rate=[1e-5, 2e-5]
    )
    found = factor_effects(grid(nested, lambda axes, language: 1.0))
    assert found["factor"].unique().to_list() == ["learning_rate, adaptation"]
    assert found["level"].unique().sort().to_list() == [
        "0.0001, lora-r16",
        "0.001, lora-r16",
        "1e-05, full",
        "2e-05, full",
    ]


def test_what_the_grid_cannot_tell_apart_gets_a_reason_and_the_rest_its_numbers() -> None:
    blocks = crossed(learning_rate=[1e-5, 1e-4], steps=[10, 20]) + crossed(learning_rate=[1e-3, 1e-2], steps=[30, 40])
    conditions = [axes | {"size": size} for axes in blocks for size in (64, 256)]
    frame = grid(conditions, lambda axes, language: 1 + 0.5 * (axes["size"] == 256))
    found, shares = factor_effects(frame), variance_shares(frame)
    for table, number in ((found, "effect"), (shares, "share")):
        told = table.filter(pl.col("factor") == "size")
        untold = table.filter(pl.col("factor").is_in(["learning_rate", "steps"]))
        assert told[number].null_count() == 0
        assert untold[number].null_count() == len(untold) > 0
        assert set(untold["reason"]) == {
            f"the grid cannot tell this from {name}" for name in ("learning_rate", "steps")
        }
    assert one(found, language="en", factor="size", level="256")["effect"] == pytest.approx(0.25, abs=0.05)


def test_shares_of_variance_are_those_of_the_analysis_of_variance() -> None:
    frame = grid(
        RATES_AND_SIZES,
        lambda axes, language: simple(axes, language) + 0.6 * (axes == RATES_AND_SIZES[0]),
        prompts=400,
        noise=0.02,
    )
    found = variance_shares(frame).filter(pl.col("language") == "en")
    means = (
        frame.filter(pl.col("language") == "en").group_by("run", "learning_rate", "size").agg(pl.col("value").mean())
    )
    table = anova_lm(smf.ols("value ~ C(learning_rate) + C(size)", means.to_pandas()).fit(), typ=2)["sum_sq"]
    for name, key in (("learning_rate", "C(learning_rate)"), ("size", "C(size)"), (REST, "Residual")):
        row = one(found, factor=name)
        assert row["share"] == pytest.approx(table[key] / table.sum(), abs=1e-3)
        assert row["low"] <= row["share"] <= row["high"]
    assert found["share"].sum() == pytest.approx(1)


def test_chance_alone_is_not_taken_for_a_share_of_variance() -> None:
    """All true variance is the learning rate's; plain sums of squares would give size a tenth of it and more."""
    conditions = crossed(learning_rate=[1e-4, 1e-3], size=[64, 256])
    found = [
        variance_shares(
            grid(
                conditions, lambda axes, _: 0.6 * (axes["learning_rate"] == 1e-3), languages=("en",), noise=1.0, draw=i
            ),
            resamples=200,
        )
        for i in range(50)
    ]
    sizes, rates = (pl.concat(found).filter(pl.col("factor") == name) for name in ("size", "learning_rate"))
    assert (sizes["share"] == 0).mean() >= 0.5
    assert (sizes["low"] == 0).mean() >= 0.9
    assert (rates["high"] > 0.999).mean() >= 0.9
    nothing = grid(conditions, lambda axes, language: 1.0, noise=0.0)
    assert set(variance_shares(nothing)["reason"]) == {"the conditions do not differ by more than chance"}


def test_untuned_models_early_checkpoints_and_the_order_of_rows_change_nothing() -> None:
    frame = grid(RATES_AND_SIZES, simple)
    found = factor_effects(frame)
    base = tidy(run_rows("base", [2.0] * 20, untuned=True, method="none", learning_rate=None, rank=None, step=0))
    early = frame.with_columns(step=pl.lit(4, dtype=pl.Int64), value=pl.lit(0.0))
    more = pl.concat([base, early, frame]).sample(fraction=1, shuffle=True, seed=2)
    assert factor_effects(more).equals(found)
    assert variance_shares(more).equals(variance_shares(frame))
    steps = factor_effects(pl.concat([early, frame]), factors=["step"])
    assert steps["level"].unique(maintain_order=True).to_list() == ["4", "8"]
    assert one(steps, language="en", level="4")["mean"] == pytest.approx(0)


def test_missing_ratings_are_counted_and_a_language_without_a_run_says_so() -> None:
    frame = grid(RATES_AND_SIZES, simple, languages=("en", "fr", "ru"))
    gone = pl.when((pl.col("run") == "r00-s0") & (pl.col("language") == "ru")).then(None).otherwise("value")
    found = factor_effects(frame.with_columns(value=gone))
    russian = found.filter(pl.col("language") == "ru")
    assert set(russian["reason"]) == {"not every run has a rating in this language"}
    assert russian["effect"].null_count() == len(russian) == 5
    assert set(russian.select("rated", "missing").rows()) == {(100, 20)}
    rest = factor_effects(frame.filter(pl.col("language") != "ru"))
    columns = ["language", "factor", "level", "effect", "low", "high", "interaction"]
    whole = found.filter(pl.col("language").is_in(["en", "fr", ALL_LANGUAGES]))
    assert whole.select(columns).equals(rest.select(columns))


def test_every_setting_can_be_a_factor_and_alpha_of_three_seeds_is_one_with_two_levels() -> None:
    def value(axes: Axes, language: str) -> float:
        return 1.0 + 0.5 * (axes["alpha"] == 32) - 0.5 * (not axes["packing"])

    frame = grid(crossed(alpha=[16.0, 32.0], packing=[True, False]), value, seeds=3, noise=0.1)
    found = factor_effects(frame).filter(pl.col("language") == "en")
    assert set(found["factor"]) == {"alpha", "packing"}
    assert set(found["conditions"]) == {4}
    assert one(found, factor="alpha", level="32")["effect"] == pytest.approx(0.25, abs=0.1)
    assert one(found, factor="packing", level="False")["effect"] == pytest.approx(-0.25, abs=0.1)
    assert set(SETTINGS) | {"given"} == {"method", "rank", "sources", *FILLED_IN} | set(FACTORS) - {"adaptation"}


def test_settings_of_lora_are_part_of_the_adaptation_where_other_methods_lack_them() -> None:
    lora = crossed(rank=[8, 16], alpha=[16.0, 32.0])
    full: dict[str, Any] = {"method": "full", "rank": None, "alpha": None, "dropout": None, "targets": None}
    found = factor_effects(grid([*lora, full], lambda axes, language: 1.0)).filter(pl.col("language") == "en")
    assert set(found["factor"]) == {"adaptation"}
    assert set(found["level"]) == {
        "full",
        *(f"lora-r{rank} alpha={alpha}" for rank in (8, 16) for alpha in (16.0, 32.0)),
    }
    assert found["effect"].null_count() == 0


def test_what_has_no_interval_has_a_reason() -> None:
    single = factor_effects(grid(RATES_AND_SIZES, simple, prompts=1))
    assert single["low"].null_count() == len(single)
    assert set(single["reason"]) == {"a single prompt: no interval"}
    same = grid(RATES_AND_SIZES, simple).with_columns(value=pl.lit(0.7), facet=pl.lit("length"))
    assert set(factor_effects(same)["reason"]) == {"nothing varies between prompts: no interval"}
    assert set(factor_effects(same)["effect"]) == {0.0}
    assert factor_effects(grid(RATES_AND_SIZES[:1], simple)).is_empty()
    assert variance_shares(tidy([])).is_empty()
    none = factor_effects(same.with_columns(value=pl.lit(None, dtype=pl.Float64)))
    assert set(none["reason"]) == {"not every run has a rating in this language"}


def test_an_effect_without_exception_is_still_not_sure() -> None:
    """As between two runs: 20 prompts that all say so leave room for some others that do not."""
    bad = (pl.col("learning_rate") == 1e-3) & (pl.col("language") == "fr")
    frame = grid(crossed(learning_rate=[1e-4, 1e-3]), lambda axes, language: 0.0)
    frame = frame.with_columns(value=pl.when(bad).then(0.0).otherwise(2.0))
    row = one(factor_effects(frame, reference={"learning_rate": 1e-4}), language="fr", level="0.001")
    pair = compare(frame, "learning_rate=1e-4", "learning_rate=1e-3").filter(pl.col("language") == "fr")
    assert (row["effect"], row["interaction"], row["covers"]) == (-2.0, -2.0, "prompts")
    assert (row["low"], row["high"]) == pytest.approx((pair["low"][0], pair["high"][0]))
    assert row["high"] < row["interaction_high"] < 0
    shares = variance_shares(frame).filter(pl.col("language") == "fr").row(0, named=True)
    assert (shares["share"], shares["low"]) == (1.0, None)


def test_unknown_factors_and_levels_are_refused_with_the_choices() -> None:
    frame = grid(RATES_AND_SIZES, simple)
    with pytest.raises(ConfigError, match=r"no factor 'learning_rat'; did you mean 'learning_rate'"):
        factor_effects(frame, factors=["learning_rat"])
    with pytest.raises(ConfigError, match=r"no level '128' of size; .*choices: 256, 64"):
        factor_effects(frame, reference={"size": 128})
    with pytest.raises(DataError, match="no column 'untuned'"):
        factor_effects(frame.drop("untuned"))
