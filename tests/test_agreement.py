from __future__ import annotations

import itertools
import json
import random
from typing import Any

import krippendorff
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau
from statsmodels.stats.inter_rater import cohens_kappa

from xlift.analysis import measures
from xlift.analysis.agreement import MEASURES, agreement_tables
from xlift.analysis.agreement_text import text_tables
from xlift.analysis.measures import holm, resampled
from xlift.analysis.pairings import EACH, MAJORITY, MEAN, SINGLY
from xlift.errors import DataError
from xlift.records import ends_of, kind_of

Floats = NDArray[np.float64]


def rating(key: str, rater: str, value: Any, facet: str = "fluency", **other: Any) -> dict[str, Any]:
    own = {"id": key, "language": "fr", "run": "r", "step": 4, "facet": facet, "rater": rater, "value": value}
    return {**own, "response": f"text of {key}", "signature": "s", **other}


def ratings(**values: str) -> list[dict[str, Any]]:
    """One character an item: 0, 1, 2, "?" for missing, " " for not asked; `human_ana` is the rater human:ana."""
    return [
        rating(f"p{i}", rater.replace("_", ":"), None if mark == "?" else int(mark))
        for rater, marks in values.items()
        for i, mark in enumerate(marks)
        if mark != " "
    ]


def row(
    records: list[dict[str, Any]], first: str, second: str, language: str = "fr", **settings: Any
) -> dict[str, Any]:
    found = [
        one
        for one in agreement_tables(records, **{"resamples": 200, **settings})["agreement"]
        if (one["first"], one["second"], one["language"]) == (first, second, language)
    ]
    assert len(found) == 1
    return found[0]


def noisy(
    seed: int, raters: list[str], items: int = 60, missing: float = 0.2, noise: float = 0.9
) -> list[dict[str, Any]]:
    """Raters that see the same quality with noise of their own, and leave some out."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(size=items)
    seen = quality[:, None] + noise * generator.normal(size=(items, len(raters)))
    values = np.digitize(seen, [-0.8, 0.4])
    kept = generator.random(values.shape) > missing
    return [rating(f"p{i}", raters[j], int(values[i, j])) for i, j in zip(*np.nonzero(kept), strict=True)]


def matrix(records: list[dict[str, Any]], raters: list[str]) -> Floats:
    """[raters, items], nan where there is no value."""
    items = sorted({record["id"] for record in records})
    found = np.full((len(raters), len(items)), np.nan)
    for record in records:
        if record["value"] is not None:
            found[raters.index(record["rater"]), items.index(record["id"])] = record["value"]
    return found


def table(one: Floats, other: Floats) -> NDArray[np.int64]:
    both = ~np.isnan(one) & ~np.isnan(other)
    counts = np.zeros((3, 3), dtype=np.int64)
    np.add.at(counts, (one[both].astype(int), other[both].astype(int)), 1)
    return counts


PEOPLE = ["human:ana", "human:bo", "human:cy", "human:di"]


def test_a_scale_of_its_own_is_measured_like_the_ordinary_one_and_never_meets_it() -> None:
    records = noisy(1, [*PEOPLE, "judge:big"])
    moved = [{**one, "value": one["value"] + 1, "scale": [1, 3]} for one in records]
    told, again = (agreement_tables(part, resamples=200) for part in (records, moved))
    assert {one["facet"] for one in again["agreement"]} == {"fluency 1–3"}
    for part, name in itertools.product(("agreement", "people"), ("kappa", "leniency", "leniency_low", "tau", "alpha")):
        assert [one.get(name) for one in again[part]] == pytest.approx([one.get(name) for one in told[part]])
    people, judge = ([one for one in part if one["rater"].startswith("human") == human]
                     for part, human in ((moved, True), (records, False)))  # fmt: skip
    assert {one["between"] for one in agreement_tables([*people, *judge], resamples=50)["agreement"]} == {"people"}
    with pytest.raises(DataError, match="gives 4 for fluency; values are 1, 2, 3 or null"):
        agreement_tables([{**moved[0], "value": 4}])


def test_a_table_gives_the_figures_of_its_rows_whatever_its_columns() -> None:
    records = [
        {**one, "run": run, "step": step, "language": language, "parallel_id": one["id"][:2]}
        for seed, (run, step, language) in enumerate(itertools.product("ab", (4, 12), ("fr", "de", "pt")))
        for one in noisy(seed, [*PEOPLE[:2], "judge:big", "language"], items=20)
    ]
    records += [{**one, "facet": "tact", "value": one["value"] + 1, "scale": [1, 3]} for one in records[:200]]
    records += [{**records[0], "value": None}, {**records[1], "rater": "panel:two", "value": 0.5}]
    frame = pl.DataFrame([one | dict(zip(("lowest", "best"), ends_of(one), strict=True)) for one in records])
    told = agreement_tables(records, resamples=50)
    assert told["there"]["missing"] > 0
    assert {one["facet"] for one in told["agreement"]} == {"fluency", "tact 1–3"}
    assert agreement_tables(frame, resamples=50) == told
    narrow = frame.cast({pl.String: pl.Categorical}).select(
        "id", "run", "step", "language", "facet", "rater", "value", "lowest", "best"
    )
    clusters = {one["id"]: one["id"][:2] for one in records}
    assert agreement_tables(narrow, clusters, resamples=50) == told
    wrong = frame.with_columns(value=pl.col("value") + 0.5, language=pl.lit("klingon"))
    with pytest.raises(DataError, match="klingon"):
        agreement_tables(wrong)
    with pytest.raises(DataError, match="no column facet, rater"):
        agreement_tables(frame.drop("facet", "rater"))


def test_drawing_some_clusters_at_a_time_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(1).normal(size=(37, 4))
    whole = resampled(counts, 230, 5)
    monkeypatch.setattr(measures, "DRAWN_AT_ONCE", 37 * 7)
    assert np.allclose(resampled(counts, 230, 5), whole, rtol=1e-12)


# --- against independent implementations


@pytest.mark.parametrize("seed", range(5))
def test_alpha_between_people_equals_krippendorff(seed: int) -> None:
    records = noisy(seed, PEOPLE, missing=0.4)
    theirs = krippendorff.alpha(matrix(records, PEOPLE), value_domain=[0, 1, 2], level_of_measurement="ordinal")
    assert row(records, "all people", "each other")["alpha"] == pytest.approx(theirs)


@pytest.mark.parametrize("seed", range(5))
def test_a_pair_equals_statsmodels_scipy_and_krippendorff(seed: int) -> None:
    raters = ["human:ana", "judge:big"]
    records = noisy(seed, raters)
    human, judge = matrix(records, raters)
    both = ~np.isnan(human) & ~np.isnan(judge)
    found = row(records, "judge:big", "human:ana")
    counts = table(judge, human)
    assert found["confusion"] == counts.tolist()
    assert found["pairs"] == found["items"] == both.sum()
    assert found["kappa"] == pytest.approx(cohens_kappa(counts, wt="linear").kappa)
    assert found["tau"] == pytest.approx(kendalltau(judge[both], human[both]).statistic)
    assert found["agreement"] == pytest.approx((judge[both] == human[both]).mean())
    assert found["leniency"] == pytest.approx((judge[both] - human[both]).mean())
    theirs = krippendorff.alpha(np.stack([human, judge]), value_domain=[0, 1, 2], level_of_measurement="ordinal")
    assert found["alpha"] == pytest.approx(theirs)


def test_several_people_are_the_mean_of_pairs_weighted_by_ratings() -> None:
    raters = [*PEOPLE[:3], "judge:big"]
    records = [record for record in noisy(7, raters) if record["rater"] != PEOPLE[2] or int(record["id"][1:]) < 20]
    *people, judge = matrix(records, raters)
    beside = [table(judge, person) for person in people]
    between = [table(people[i], people[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    for tables, names in ((beside, ("judge:big", EACH)), (between, ("all people", "each other"))):
        kappas = [cohens_kappa(counts, wt="linear").kappa for counts in tables]
        sizes = [counts.sum() for counts in tables]
        found = row(records, *names)
        assert found["kappa"] == pytest.approx(np.average(kappas, weights=sizes))
        assert found["agreement"] == pytest.approx(sum(np.trace(counts) for counts in tables) / sum(sizes))
        assert found["pairs"] == sum(sizes)


def test_figures_do_not_depend_on_how_many_pairs_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    records = noisy(7, [*PEOPLE, "judge:big"])
    whole = agreement_tables(records, resamples=100)
    monkeypatch.setattr("xlift.analysis.pairings.PAIRS_AT_ONCE", 2)
    parts = agreement_tables(records, resamples=100)
    assert len(parts["agreement"]) == len(whole["agreement"]) == 10
    for one, other in zip(parts["agreement"] + parts["people"], whole["agreement"] + whole["people"], strict=True):
        assert one == {key: pytest.approx(value) if isinstance(value, float) else value for key, value in other.items()}


def test_a_crowd_is_measured_together_and_not_two_by_two() -> None:
    crowd = [f"human:{i:02}" for i in range(SINGLY + 1)]
    records = [one for one in noisy(8, crowd, items=80) if (int(one["id"][1:]) + int(one["rater"][6:])) % 5 == 0]
    tables = agreement_tables(records, resamples=100)
    assert [(one["first"], one["second"]) for one in tables["agreement"]] == [("all people", "each other")]
    assert len(tables["people"]) == len(crowd)
    values = matrix(records, crowd)
    expected = krippendorff.alpha(reliability_data=values, level_of_measurement="ordinal", value_domain=[0, 1, 2])
    assert tables["agreement"][0]["alpha"] == pytest.approx(expected)
    assert f"of {len(crowd)} people not every two are shown" in text_tables(tables)


def test_of_very_many_pairs_some_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    records = noisy(9, [f"human:{i:02}" for i in range(25)], items=40)
    exact = row(records, "all people", "each other")
    monkeypatch.setattr("xlift.analysis.pairings.MOST_PAIRS", 150)
    some = row(records, "all people", "each other")
    assert some == row(records, "all people", "each other")
    assert exact["pairs"] > some["pairs"]
    assert some["alpha"] == exact["alpha"]
    assert exact["kappa_low"] < some["kappa"] < exact["kappa_high"]


def test_majority_and_mean_are_per_item() -> None:
    people = {"human_ana": "0012 ", "human_bo": "0022 ", "human_cy": "0102 "}
    records = ratings(**people, judge_big="01222")
    majority, mean = row(records, "judge:big", MAJORITY), row(records, "judge:big", MEAN)
    # 0 0 0 → 0, 0 0 1 → 0, 1 2 0 → no majority, 2 2 2 → 2; nobody rated the last item.
    assert majority["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert (majority["items"], majority["missing"]) == (3, 1)
    assert mean["leniency"] == pytest.approx((0 - 0 + 1 - 1 / 3 + 2 - 1 + 2 - 2) / 4)
    assert mean["tau"] == pytest.approx(kendalltau([0, 1, 2, 2], [0, 1 / 3, 1, 2]).statistic)
    assert mean["kappa"] is None
    assert mean["reasons"]["kappa"] == "a mean is not on the scale"


def test_intervals_equal_those_of_resampled_records() -> None:
    """Counts weighted by how often a prompt was drawn are the same as writing its ratings that often."""
    records = noisy(1, PEOPLE[:3], items=40)
    found = row(records, "all people", "each other", resamples=2000)
    values = matrix(records, PEOPLE[:3])
    generator = np.random.default_rng(4)
    drawn = [values[:, generator.integers(0, 40, 40)] for _ in range(600)]
    alphas = [krippendorff.alpha(one, value_domain=[0, 1, 2], level_of_measurement="ordinal") for one in drawn]
    # With 40 prompts the widened interval of 95 % is the plain percentile interval of 95.6 %.
    low, high = np.quantile(alphas, [0.022, 0.978])
    assert found["alpha_low"] == pytest.approx(low, abs=0.04)
    assert found["alpha_high"] == pytest.approx(high, abs=0.04)


# --- what counts


def test_the_last_record_wins_and_order_does_not_matter_otherwise() -> None:
    records = noisy(2, [*PEOPLE[:3], "judge:big"])
    shuffled = random.Random(0).sample(records, len(records))
    assert agreement_tables(shuffled, resamples=100) == agreement_tables(records, resamples=100)
    before = [rating("p0", "human:ana", 0), rating("p0", "judge:big", 2)]
    after = [record for record in records if record["id"] != "p0"] + [rating("p0", "human:ana", None)]
    assert agreement_tables([*before[:1], *after], resamples=100) == agreement_tables(after, resamples=100)
    assert agreement_tables([*after, *before], resamples=100) != agreement_tables(after, resamples=100)


def test_missing_is_counted_and_is_not_zero() -> None:
    found = row(ratings(human_ana="0122?0", judge_big="012? 0"), "judge:big", "human:ana")
    assert (found["items"], found["missing"], found["agreement"]) == (4, 1, 1.0)


def test_other_texts_runs_and_steps_are_other_items() -> None:
    records = ratings(human_ana="012012", judge_big="012012")
    apart = [{"response": "another"}, {"run": "s"}, {"step": 8}]
    for change in apart:
        moved = [record | (change if record["rater"] == "judge:big" else {}) for record in records]
        assert agreement_tables(moved)["agreement"] == []


def test_checks_meet_people_on_their_own_facet_only() -> None:
    records = [*ratings(human_ana="012012", language="012011"), *[rating("p0", "fluency", 2, facet="other")]]
    rows = agreement_tables(records, resamples=100)["agreement"]
    assert [(one["between"], one["first"], one["second"]) for one in rows] == [
        ("check and people", "language", "human:ana")
    ]


def test_raters_are_grouped_by_kind() -> None:
    assert [kind_of(name) for name in ("human:ana", "judge:a:b", "language", "other:x")] == [
        "human",
        "judge",
        "check",
        "check",
    ]
    found = agreement_tables(ratings(human_ana="01", language="01", judge_big="01"), resamples=100)["raters"]
    assert found == {"human": ["human:ana"], "judge": ["judge:big"], "check": ["language"]}


def test_all_languages_together_only_where_raters_met_in_several() -> None:
    french = ratings(human_ana="012012", judge_big="012011", human_bo="012012")
    russian = [
        record | {"language": "ru", "id": f"{record['id']}.ru", "response": "r"}
        for record in french
        if record["rater"] != "human:bo"
    ]
    rows = agreement_tables(french + russian, resamples=100)["agreement"]
    languages = {(one["first"], one["second"]): [] for one in rows}
    for one in rows:
        languages[one["first"], one["second"]].append((one["language"], one["items"]))
    assert languages["human:ana", "human:bo"] == [("fr", 6)]
    assert languages["judge:big", MAJORITY][-1] == ("all", 12)
    assert ("ru", 6) in languages["judge:big", "human:ana"]


def test_translations_are_resampled_together() -> None:
    """Copies of a prompt in other languages are no new evidence."""
    one = noisy(3, ["human:ana", "judge:big"], items=40)
    copies = [
        record | {"id": f"{record['id']}.{code}", "language": code} for record in one for code in ("fr", "ru", "pt")
    ]
    parallel = {record["id"]: record["id"].split(".")[0] for record in copies}
    alone = row(one, "judge:big", "human:ana", resamples=1000)
    found = row(copies, "judge:big", "human:ana", "all", clusters=parallel, resamples=1000)
    apart = row(copies, "judge:big", "human:ana", "all", resamples=1000)
    assert (found["kappa_low"], found["kappa_high"]) == pytest.approx((alone["kappa_low"], alone["kappa_high"]))
    assert apart["kappa_high"] - apart["kappa_low"] < 0.75 * (found["kappa_high"] - found["kappa_low"])
    framed = [record | {"parallel_id": parallel[record["id"]]} for record in copies]
    assert row(framed, "judge:big", "human:ana", "all", resamples=1000) == found


# --- what is undefined


@pytest.mark.parametrize(
    ("human", "judge", "missing"),
    [
        ("222222", "222222", {"kappa", "alpha", "tau"}),
        ("222222", "012012", {"kappa", "tau"}),
        ("0     ", "0     ", set(MEASURES)),
        ("??????", "012012", set(MEASURES)),
    ],
)
def test_undefined_is_none_with_a_reason(human: str, judge: str, missing: set[str]) -> None:
    found = row(ratings(human_ana=human, judge_big=judge), "judge:big", "human:ana")
    assert {name for name in MEASURES if found[name] is None} == missing
    assert missing <= set(found["reasons"])
    assert all(found[f"{name}_low"] is None for name in missing)
    json.dumps(found, allow_nan=False)


def test_perfect_agreement_has_an_interval_that_is_no_proof() -> None:
    found = row(ratings(human_ana="0120120120", judge_big="0120120120"), "judge:big", "human:ana")
    assert (found["agreement"], found["kappa"], found["alpha"]) == (1, 1, 1)
    assert 0.6 < found["agreement_low"] < 0.8
    assert found["kappa_low"] is None
    assert found["reasons"]["kappa"] == "no interval: the same in every resample"


def test_one_prompt_gives_no_interval() -> None:
    records = [record | {"parallel_id": "one"} for record in ratings(human_ana="012012", judge_big="012011")]
    found = row(records, "judge:big", "human:ana")
    assert found["kappa"] is not None
    assert found["kappa_low"] is None
    assert found["clusters"] == 1


def test_all_problems_of_the_ratings_are_told() -> None:
    records = [rating("p0", "human:ana", 3), rating("p1", "human:ana", 3), rating("p2", "human:bo", "2")]
    with pytest.raises(DataError) as error:
        agreement_tables([*records, rating("p3", "judge:big", 0.5), {"text": "x", "language": "fr"}])
    text = str(error.value)
    assert "human:ana gives 3 for fluency; values are 0, 1, 2 or null (2 times)" in text
    assert "human:bo gives '2'" in text
    assert "judge:big gives 0.5" in text
    assert "record 5 is not a rating: it has no id, facet, rater, value" in text


# --- intervals and deviations, by simulation


def test_intervals_cover() -> None:
    """Kappa and leniency of clustered items, against their values in a very large sample."""

    def sample(generator: np.random.Generator, prompts: int) -> list[dict[str, Any]]:
        quality = np.repeat(generator.normal(size=prompts), 3) + 0.5 * generator.normal(size=3 * prompts)
        human = np.digitize(quality + 0.6 * generator.normal(size=3 * prompts), [-0.8, 0.4])
        judge = np.digitize(quality + 0.6 * generator.normal(size=3 * prompts) + 0.5, [-0.8, 0.4])
        both = (("human:ana", human), ("judge:big", judge))
        return [
            rating(f"p{i // 3}", rater, int(values[i]), run=f"r{i % 3}")
            for rater, values in both
            for i in range(3 * prompts)
        ]

    generator = np.random.default_rng(8)
    truth = row(sample(generator, 40000), "judge:big", "human:ana", resamples=2)
    covered = dict.fromkeys(("kappa", "agreement", "alpha", "tau", "leniency"), 0)
    for _ in range(300):
        found = row(sample(generator, 25), "judge:big", "human:ana", resamples=300)
        for name in covered:
            covered[name] += found[f"{name}_low"] <= truth[name] <= found[f"{name}_high"]
    # 0.91 is three standard errors below 0.95.
    assert min(covered.values()) >= 0.91 * 300, covered


def deviating(generator: np.random.Generator, shift: float, noise: float) -> list[dict[str, Any]]:
    people = [f"human:{i}" for i in range(5)]
    quality = generator.normal(size=40)
    seen = quality[:, None] + 0.6 * generator.normal(size=(40, 5))
    seen[:, 0] += shift + noise * generator.normal(size=40)
    values = np.digitize(seen, [-0.8, 0.4])
    records = [rating(f"p{i}", people[j], int(values[i, j])) for i in range(40) for j in range(5)]
    return agreement_tables(records, resamples=300)["people"]


@pytest.mark.parametrize(("shift", "noise", "mark"), [(0.9, 0, "lenient"), (-0.9, 0, "strict"), (0, 3, "apart")])
def test_who_deviates_is_found(shift: float, noise: float, mark: str) -> None:
    found = [deviating(np.random.default_rng(seed), shift, noise)[0] for seed in range(20)]
    assert sum(mark in one["deviates"] for one in found) >= 17


def test_who_does_not_deviate_is_left_in_peace() -> None:
    """With five alike people somebody is marked in about one of twenty studies and measure."""
    marked = [
        {mark for one in deviating(np.random.default_rng(seed), 0, 0) for mark in one["deviates"]}
        for seed in range(200)
    ]
    # Three standard errors above 0.05.
    assert sum(bool(marks & {"lenient", "strict"}) for marks in marked) <= 0.096 * 200
    assert sum("apart" in marks for marks in marked) <= 0.096 * 200


def test_a_person_is_measured_beside_the_mean_of_the_others() -> None:
    records = ratings(human_ana="2212 ", human_bo="10120", human_cy="00 10")
    ana = next(one for one in agreement_tables(records)["people"] if one["rater"] == "human:ana")
    assert ana["leniency"] == pytest.approx(np.mean([2 - 0.5, 2 - 0, 1 - 1, 2 - 1.5]))
    assert (ana["items"], ana["clusters"]) == (4, 4)
    assert ana["leniency_low"] < ana["leniency"] < ana["leniency_high"]


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    values = [0.03, 0.001, 0.2, 0.04, 0.04]
    corrected = holm([*values[:2], None, *values[2:]])
    assert corrected[2] is None
    assert [p for p in corrected if p is not None] == pytest.approx(multipletests(values, method="holm")[1])


# --- the terminal


def test_the_text_shows_raters_figures_and_reasons() -> None:
    records = noisy(5, [*PEOPLE[:3], "judge:big", "fluency"])
    text = text_tables(agreement_tables(records, resamples=200))
    found = row(records, "judge:big", EACH)
    for part in ("Between people", "Judges and people", "Surface checks and people", "Who deviates", "ana"):
        assert part in text
    line = next(line for line in text.splitlines() if "judge:big" in line and EACH in line)
    assert f"{found['kappa']:.2f} [{found['kappa_low']:.2f}, {found['kappa_high']:.2f}]" in line
    assert " | ".join(" ".join(map(str, counts)) for counts in found["confusion"]) in line
    assert "a mean is not on the scale" in text
    assert "nan" not in text


def test_the_text_says_first_what_there_is_and_leaves_out_rows_without_a_figure() -> None:
    records = [
        {**one, "value": None} if one["rater"] == "human:bo" else one
        for one in ratings(human_ana="012", human_bo="012")
    ]
    text = text_tables(agreement_tables(records, resamples=100))
    assert text.startswith("6 ratings, 3 of them missing; responses: 3, languages: 1")
    assert "Between people" not in text
    assert "left out: " in text


@pytest.mark.parametrize("records", [[], ratings(language="012"), ratings(human_ana="012")])
def test_nothing_to_compare_is_said(records: list[dict[str, Any]]) -> None:
    assert "nothing to compare" in text_tables(agreement_tables(records))


def test_an_unknown_language_of_ratings_is_refused_by_name() -> None:
    rating = {"id": "a", "language": "klingon", "facet": "fluency", "rater": "human:Ana", "value": 2}
    with pytest.raises(DataError, match="klingon"):
        agreement_tables([rating])
