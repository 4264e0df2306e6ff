from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from xlift.analysis.selection import (
    MEASURE,
    ValidationFindings,
    picks,
    rules,
    scores,
    selection_table,
    validation_findings,
)
from xlift.errors import ConfigError, DataError
from xlift.results import AXES, RATING_COLUMNS

LANGUAGES = ("en", "fr", "ru")


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=RATING_COLUMNS | AXES)


def ratings(shares: dict[str, dict[str, float]], prompts: int = 40, seed: int = 0) -> pl.DataFrame:
    """Runs whose answers are right with a probability by language, on validation and test prompts alike."""
    generator = np.random.default_rng(seed)
    rows = []
    for run, by_language in shares.items():
        for split in ("validation", "test"):
            for i in range(prompts):
                for language, share in by_language.items():
                    value = 2.0 if generator.random() < share else 0.0
                    rows.append(
                        {
                            "run": run, "label": run.upper(), "step": 10, "id": f"{split}-{i}-{language}",
                            "parallel_id": f"{split}-{i}", "language": language, "split": split, "facet": "language",
                            "rater": "language", "kind": "check", "value": value, "untuned": run == "base",
                        }
                    )  # fmt: skip
    return frame(rows)


def training(losses: dict[str, float]) -> pl.DataFrame:
    return pl.DataFrame([{"run": run, "step": 10, "heldout_loss": loss} for run, loss in losses.items()])


# English is served alike by both, its loss even prefers the run that forgets the others.
SHARES = {
    "base": {"en": 0.5, "fr": 0.5, "ru": 0.5},
    "careful": {"en": 0.95, "fr": 0.95, "ru": 0.9},
    "greedy": {"en": 0.97, "fr": 0.3, "ru": 0.1},
}
LOSSES = {"careful": 2.5, "greedy": 2.2}


def test_choosing_by_english_loss_picks_wrong_and_the_table_says_what_it_costs_whom() -> None:
    table = selection_table(ratings(SHARES), training(LOSSES))
    rows = {(row["rule"], row["language"]): row for row in table}
    assert {row["run"] for row in table if row["rule"] == "English loss"} == {"greedy"}
    assert {row["run"] for row in table if row["rule"] in {"mean over languages", "worst language"}} == {"careful"}
    for language in ("fr", "ru"):
        assert rows["English loss", language]["cost_low"] > 0
        assert rows["English loss", language]["regret"] == pytest.approx(rows["English loss", language]["cost"])
    assert rows["English loss", "en"]["cost_low"] < 0 < rows["English loss", "en"]["cost_high"]
    assert rows["mean over languages", "ru"]["cost"] == rows["mean over languages", "ru"]["regret"] == 0


def test_the_figures_are_the_plain_means_and_differences() -> None:
    found = ratings(SHARES)
    rows = {(row["rule"], row["language"]): row for row in selection_table(found, training(LOSSES))}

    def share(run: str, language: str) -> float:
        own = found.filter((pl.col("run") == run) & (pl.col("language") == language) & (pl.col("split") == "test"))
        return float((own["value"] == 2).mean())  # type: ignore[arg-type]

    for language in LANGUAGES:
        row = rows["English loss", language]
        assert row["score"] == pytest.approx(share("greedy", language))
        assert row["cost"] == pytest.approx(share("careful", language) - share("greedy", language))
        assert row["low"] <= row["score"] <= row["high"]
        assert row["cost_low"] <= row["cost"] <= row["cost_high"]


def test_picks_do_not_depend_on_test_prompts_and_test_prompts_are_refused() -> None:
    found = ratings(SHARES)
    turned = found.with_columns(
        value=pl.when(pl.col("split") == "test").then(2.0 - pl.col("value")).otherwise(pl.col("value"))
    )
    picks = [{(row["rule"], row["run"]) for row in selection_table(one, training(LOSSES))} for one in (found, turned)]
    assert picks[0] == picks[1]
    with pytest.raises(DataError, match="test"):
        ValidationFindings(found, training(LOSSES))
    assert set(validation_findings(found, training(LOSSES)).ratings["split"]) == {"validation"}


def test_intervals_of_the_cost_cover_the_truth() -> None:
    truth, covered = SHARES["careful"]["fr"] - SHARES["greedy"]["fr"], 0
    for seed in range(150):
        table = selection_table(ratings(SHARES, 30, seed), training(LOSSES), resamples=300)
        row = next(row for row in table if row["rule"] == "English loss" and row["language"] == "fr")
        covered += row["cost_low"] <= truth <= row["cost_high"]
    assert covered >= 0.9 * 150


def test_weights_and_who_is_believed() -> None:
    rows = ratings({"one": {"en": 1.0}}, prompts=2).to_dicts()
    judged = [row | {"facet": "helpfulness", "rater": "judge:m", "kind": "judge", "value": 0.0} for row in rows]
    human = [row | {"rater": "human:a", "kind": "human", "value": 0.0} for row in rows]
    both = frame(rows + judged)
    assert set(scores(both, {"helpfulness": 3, "language": 1})["score"]) == {0.25}
    assert set(scores(frame(rows + human))["score"]) == {0.0}
    assert set(scores(frame(rows + human), {"language:check": 1.0})["score"]) == {1.0}
    with pytest.raises(ConfigError, match="nobody has rated 'fluency'"):
        scores(both, {"fluency": 1.0})


def test_a_response_that_lacks_a_facet_has_no_score_and_missing_is_not_zero() -> None:
    rows = ratings({"one": {"en": 1.0}}, prompts=2).to_dicts()
    rows[0]["value"] = None
    assert scores(frame(rows), MEASURE).height == len(rows) - 1


def test_rules_that_cannot_be_applied_are_left_out_and_nothing_to_choose_gives_nothing() -> None:
    found = ratings({name: {"fr": 0.9, "ru": 0.5} for name in ("a", "b")})
    names = rules(validation_findings(found, pl.DataFrame({"run": ["a"], "step": [10]})))
    assert set(names) == {"mean over languages", "worst language"}
    assert selection_table(ratings({"base": {"en": 1.0}}), training({})) == []
    unrated = ratings(SHARES).with_columns(value=pl.lit(None, dtype=pl.Float64))
    assert selection_table(unrated, training(LOSSES)) == []
    assert selection_table(ratings(SHARES), training(LOSSES), {"helpfulness:judge": 1.0}) == []
    assert selection_table(ratings({"only": {"en": 1.0}}), training({"only": 1.0})) == []


def test_of_equal_candidates_the_earlier_step_is_picked_whatever_the_order() -> None:
    from xlift.analysis.selection import Candidate

    given = {Candidate("b", 20): 1.0, Candidate("a", 20): 1.0, Candidate("c", 10): 1.0, Candidate("d", 5): 0.5}
    assert picks(given) == picks(dict(reversed(given.items()))) == [Candidate("c", 10)]


def test_margins_pick_by_what_training_logged() -> None:
    found = ratings(SHARES)
    logged = training(LOSSES).with_columns(pl.Series("margins/fr", [0.9, 0.2]), pl.Series("margins/ru", [0.3, 0.4]))
    table = selection_table(found, logged)
    chosen = {row["rule"]: row["run"] for row in table}
    assert chosen["mean margin"] == "careful"
    assert chosen["worst margin"] == "careful"


@pytest.mark.parametrize("broken", ["careful", "greedy"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), None])
def test_a_run_whose_held_out_loss_is_no_number_never_wins(broken: str, loss: float | None) -> None:
    (whole,) = LOSSES.keys() - {broken}
    start = [{"run": run, "step": 0, "heldout_loss": 3.0} for run in LOSSES]
    end = [{"run": broken, "step": 10, "heldout_loss": loss}, {"run": whole, "step": 10, "heldout_loss": 2.5}]
    rows = [row for row in selection_table(ratings(SHARES), pl.DataFrame(start + end)) if row["rule"] == "English loss"]
    assert {(row["run"], row["candidates"], row["tied"]) for row in rows} == {(whole, 2, 1)}


@pytest.mark.parametrize("broken", ["careful", "greedy"])
@pytest.mark.parametrize("rule", ["mean margin", "worst margin"])
def test_a_run_whose_margins_are_no_numbers_never_wins(broken: str, rule: str) -> None:
    rows = [{"run": run, "step": 10, "margins/fr": float("nan") if run == broken else 0.1} for run in LOSSES]
    given = rules(validation_findings(ratings(SHARES), pl.DataFrame(rows)))[rule]
    assert {one.run for one in picks(given)} == LOSSES.keys() - {broken}


def test_a_loss_that_was_not_measured_for_all_chooses_nothing() -> None:
    log = training({"careful": 2.5}).vstack(
        pl.DataFrame(
            {"run": ["greedy"], "step": [10], "heldout_loss": [None]},
            schema={"run": pl.String, "step": pl.Int64, "heldout_loss": pl.Float64},
        )
    )
    assert "English loss" not in rules(validation_findings(ratings(SHARES), log))


def test_a_run_without_what_a_rule_goes_by_is_not_among_its_candidates_and_the_others_still_are() -> None:
    found = ratings(SHARES | {"drawn back": {"en": 1.0, "fr": 1.0, "ru": 1.0}})
    rows = {row["rule"]: row for row in selection_table(found, training(LOSSES))}
    assert (rows["English loss"]["run"], rows["English loss"]["candidates"]) == ("greedy", 2)
    assert (rows["mean over languages"]["run"], rows["mean over languages"]["candidates"]) == ("drawn back", 3)


def test_a_rule_that_cannot_decide_is_worth_the_mean_of_those_it_is_tied_between() -> None:
    found = ratings({"a": {"en": 1.0, "fr": 0.0}, "b": {"en": 1.0, "fr": 1.0}, "c": {"en": 0.0, "fr": 0.0}})
    rows = {(row["rule"], row["language"]): row for row in selection_table(found, training({}))}
    tied = rows["English quality", "fr"]
    assert (tied["run"], tied["label"], tied["tied"], tied["candidates"]) == ("a, b", "A, B", 2, 3)
    assert (tied["score"], tied["cost"], tied["regret"]) == (0.5, 0.5, 0.5)
    assert rows["mean over languages", "fr"]["run"] == "b"


@pytest.mark.parametrize("silent", ["careful", "greedy"])
@pytest.mark.parametrize("languages", [["en"], ["en", "fr", "ru"]])
def test_a_run_whose_test_answers_in_a_language_could_not_be_rated_has_no_figures_there(
    silent: str, languages: list[str]
) -> None:
    found = ratings(SHARES).filter(
        (pl.col("run") != silent) | (pl.col("split") == "validation") | ~pl.col("language").is_in(languages)
    )
    table = selection_table(found, training(LOSSES))
    assert {row["language"] for row in table if row["run"] == silent} == {"en", "fr", "ru"} - set(languages)
    assert all(np.isfinite(row["regret"]) for row in table)
