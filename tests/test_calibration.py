from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from xlift.analysis.calibration import Calibrated, calibrated_mean, calibration_table
from xlift.errors import DataError
from xlift.intervals import Estimate, estimate

Floats = NDArray[np.float64]
REPETITIONS = 1000
# 0.93 is three standard errors of the share below 0.95 at this number of repetitions.
LEAST = 0.93


def names(values: Any) -> list[str]:
    return [str(value) for value in values]


def optional(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def width(one: Estimate) -> float:
    assert one.low is not None
    assert one.high is not None
    return one.high - one.low


def holds(one: Estimate, truth: float) -> bool:
    assert one.low is not None
    assert one.high is not None
    return one.low <= truth <= one.high


# --- the formula, computed another way


def test_the_point_and_weight_are_those_of_the_published_formula() -> None:
    """lambda = cov(y, f)/n / (var(f_L)/n + var(f_U)/N); the mean is mean(y) + lambda (mean(f_U) - mean(f_L)).

    Both variances are about the mean of all f, as in the authors' own code.
    """
    generator = np.random.default_rng(3)
    f = generator.integers(0, 3, 200).astype(float)
    y = np.clip(f - (generator.random(200) < 0.4), 0, 2)
    found = calibrated_mean(list(f), [*y[:40], *[None] * 160], names(range(200)))
    around = (f - f.mean()) ** 2
    weight = np.cov(y[:40], f[:40], ddof=0)[0, 1] / 40 / (around[:40].mean() / 40 + around[40:].mean() / 160)
    assert 0 < weight < 1
    assert found.weight == pytest.approx(weight)
    assert found.calibrated.mean == pytest.approx(y[:40].mean() + weight * (f[40:].mean() - f[:40].mean()))
    assert found.people_only.mean == pytest.approx(y[:40].mean())
    assert found.judge_only == estimate(list(f), names(range(200)), 2.0)


def test_full_weight_is_classical_prediction_powered_inference() -> None:
    """Where people spread more than the judge, the weight is held at 1: mean(f_U) + mean(y - f)."""
    judge = [0.5, 1.5, 1.5, 0.5, 1.5, 0.5, 1.5, 1.5, 1.5, 1.5]
    human: list[float | None] = [0, 2, 2, 0, 2, 0, *[None] * 4]
    found = calibrated_mean(judge, human, names(range(10)))
    assert found.weight == 1
    # mean(f_U) = 1.5; differences y - f are -0.5, 0.5, 0.5, -0.5, 0.5, -0.5.
    assert found.calibrated.mean == pytest.approx(1.5)


def test_no_weight_leaves_the_people_alone() -> None:
    against = calibrated_mean([2, 0, 2, 0, 2, 2, 0], [0, 2, 0, 2, None, None, None], names(range(7)))
    constant = calibrated_mean([2] * 7, [0, 2, 0, 1, None, None, None], names(range(7)))
    for found, mean in ((against, 1.0), (constant, 0.75)):
        assert found.weight == 0
        assert found.calibrated.mean == found.people_only.mean == mean
        assert (found.calibrated.low, found.calibrated.high) == (found.people_only.low, found.people_only.high)


def test_the_variance_is_that_of_whole_clusters() -> None:
    """Each rating written twice in the same cluster changes nothing; in clusters of its own it narrows the interval."""
    generator = np.random.default_rng(0)
    f = generator.integers(0, 3, 90).astype(float)
    human = [*np.clip(f[:30] - (generator.random(30) < 0.3), 0, 2), *[None] * 60]
    once = calibrated_mean(list(f), human, names(range(90)))
    twice = calibrated_mean([*f, *f], human * 2, names([*range(90), *range(90)]))
    apart = calibrated_mean([*f, *f], human * 2, names(range(180)))
    for one, two in ((once.calibrated, twice.calibrated), (once.people_only, twice.people_only)):
        assert (one.mean, one.low, one.high) == pytest.approx((two.mean, two.low, two.high))
    assert width(apart.calibrated) < 0.8 * width(once.calibrated)


def test_strata_count_by_their_items_not_by_their_human_ratings() -> None:
    """Three quarters of the items are French and give 2, the others are Russian and give 0; people rated 10 of each."""
    human: list[float | None] = [*[2.0] * 10, *[None] * 50, *[0.0] * 10, *[None] * 10]
    strata = ["fr"] * 60 + ["ru"] * 20
    found = calibrated_mean([1.0] * 80, human, names(range(80)), strata)
    assert found.people_only.mean == pytest.approx(1.5)
    assert calibrated_mean([1.0] * 80, human, names(range(80))).people_only.mean == pytest.approx(1.0)


# --- what is missing


def test_a_missing_judge_value_keeps_the_human_rating() -> None:
    judge: list[float | None] = [None, None, 2, 1, 2, 0, 1, 2, 2, None]
    human: list[float | None] = [0, 0, 2, 1, 2, None, None, None, None, None]
    found = calibrated_mean(judge, human, names(range(10)))
    assert found.labelled == found.people_only.rated == 5
    assert found.people_only.mean == pytest.approx(1.0)
    assert (found.judge_only.rated, found.judge_only.missing) == (7, 3)
    assert (found.calibrated.rated, found.calibrated.missing) == (9, 1)


def test_nothing_is_estimated_from_nothing() -> None:
    found = calibrated_mean([2.0, 1.0], [None, None], ["a", "b"])
    assert found.judge_only.mean == 1.5
    assert (found.people_only.mean, found.calibrated.mean, found.weight) == (None, None, None)
    assert found.people_only.missing == 2
    assert found.reason == "no person has rated any of the items"
    half = calibrated_mean([2.0, 1.0], [1.0, None], ["a", "b"], ["fr", "ru"])
    assert half.calibrated.mean is None
    assert half.reason == "no person has rated items of ru"


def test_one_rated_cluster_gives_a_mean_without_an_interval() -> None:
    found = calibrated_mean([2.0, 1.0, 0.0], [1.0, 0.0, None], ["a", "a", "b"])
    assert (found.people_only.mean, found.people_only.low, found.calibrated.low) == (0.5, None, None)
    assert found.reason == "rated items share one cluster: no interval"


def test_all_items_rated_by_people_need_no_judge() -> None:
    found = calibrated_mean([2.0] * 12, [0.0, 1.0, 2.0] * 4, names(range(12)))
    assert found.calibrated == found.people_only
    assert (found.weight, found.people_only.mean, found.people_only.missing) == (0, 1.0, 0)


def test_equal_ratings_are_no_proof() -> None:
    for value in (0.0, 1.0, 2.0):
        found = calibrated_mean([value] * 50, [*[value] * 20, *[None] * 30], names(range(50)))
        assert found.calibrated.mean == value
        assert 0.1 < width(found.calibrated) < 0.5
        assert holds(found.calibrated, value)


def test_values_off_the_scale_are_refused() -> None:
    with pytest.raises(DataError, match="between 0 and 2, found 3, 5"):
        calibrated_mean([5.0, 1.0], [3.0, None], ["a", "b"])


# --- coverage and width, by simulation


def graded(latent: Floats, low: float, middle: float) -> Floats:
    """0, 1, 2 from standard normal values: a share `low` of 0, a share `middle` of 1."""
    return (latent > norm.ppf(low)).astype(float) + (latent > norm.ppf(low + middle))


SCENARIOS: dict[str, dict[str, Any]] = {
    "lenient judge, 20 rated": {"rated": 20},
    "lenient judge, 50 rated": {"rated": 50},
    "strict judge, 30 rated": {"rated": 30, "judge": (0.5, 0.3)},
    "close judge, 30 rated": {"rated": 30, "alike": 0.97, "judge": (0.25, 0.35)},
    "useless judge, 20 rated": {"rated": 20, "alike": 0.0},
    "useless judge, 50 rated": {"rated": 50, "alike": 0.0},
    "judge that nearly always says 2, 30 rated": {"rated": 30, "judge": (0.01, 0.04)},
    "nearly all is good, 50 rated": {"rated": 50, "people": (0.02, 0.08), "judge": (0.01, 0.03)},
    "4 languages a prompt, 40 rated": {"rated": 40, "languages": 4, "items": 400},
    "4 languages a prompt, some of each rated": {"rated": 40, "languages": 4, "items": 400, "strata": True},
    "10 prompts in 20 languages, 100 rated": {"rated": 100, "languages": 20, "items": 200},
    "a tenth without judge value, 30 rated": {"rated": 30, "lost": 0.1},
}


# A judge cannot help who knows nothing, who says one thing, or whose noise is not the trouble: ten prompts are ten.
NO_HELP = {name for name in SCENARIOS if name.startswith(("useless", "judge that", "10 prompts"))}


def simulated(
    generator: np.random.Generator,
    rated: int,
    items: int = 300,
    languages: int = 1,
    alike: float = 0.85,
    people: tuple[float, float] = (0.2, 0.4),
    judge: tuple[float, float] = (0.05, 0.2),
    strata: bool = False,
    lost: float = 0.0,
) -> Calibrated:
    """One study: prompts in `languages`, of which people rated `rated` items at random and the judge all."""
    prompt = np.repeat(np.arange(items // languages), languages)
    language = np.tile(np.arange(languages), items // languages)
    shared = 0.6 if languages > 1 else 0.0
    quality = np.sqrt(shared) * generator.normal(size=items)[prompt] + np.sqrt(1 - shared) * generator.normal(
        size=items
    )
    seen = alike * quality + np.sqrt(1 - alike**2) * generator.normal(size=items)
    human, machine = graded(quality, *people), graded(seen, *judge)
    order = generator.permutation(items)
    if strata:
        order = order[np.argsort(np.argsort(language[order], kind="stable") % (items // languages), kind="stable")]
    human[order[rated:]] = np.nan
    # Missing where the answer is bad, more often than elsewhere.
    machine[generator.random(items) < lost * (1 + (quality < 0))] = np.nan
    groups = names(language) if strata else None
    return calibrated_mean(optional(machine), optional(human), names(prompt), groups, resamples=2)


class Shares(NamedTuple):
    """Coverage of both intervals, and the ratio of their mean widths."""

    people: float
    calibrated: float
    width: float


def simulate(name: str, studies: int) -> Shares:
    low, middle = SCENARIOS[name].get("people", (0.2, 0.4))
    truth = middle + 2 * (1 - low - middle)
    generator = np.random.default_rng(17)
    made = [simulated(generator, **SCENARIOS[name]) for _ in range(studies)]
    people = [holds(study.people_only, truth) for study in made]
    calibrated = [holds(study.calibrated, truth) for study in made]
    widths = np.mean([[width(study.calibrated), width(study.people_only)] for study in made], axis=0)
    return Shares(float(np.mean(people)), float(np.mean(calibrated)), float(widths[0] / widths[1]))


@pytest.mark.parametrize("name", SCENARIOS)
def test_intervals_cover_and_a_judge_helps_or_does_no_harm(name: str) -> None:
    found = simulate(name, REPETITIONS)
    assert found.calibrated >= LEAST
    assert found.people >= LEAST
    assert found.width < (1.05 if name in NO_HELP else 0.97)


def test_the_judge_alone_does_not_cover() -> None:
    """What calibration is for: a lenient judge's own interval misses the people's mean."""
    generator = np.random.default_rng(5)
    studies = [simulated(generator, rated=30) for _ in range(100)]
    means = [study.judge_only.mean for study in studies if study.judge_only.mean is not None]
    assert np.mean(means) > 1.2 + 0.3


# --- the table


def rating(key: str, rater: str, value: float | None, **other: Any) -> dict[str, Any]:
    own = {"id": key, "language": "fr", "run": "r", "step": 4, "facet": "helpfulness", "rater": rater, "value": value}
    return {**own, "response": f"text of {key}", "signature": "s", **other}


def study_ratings() -> list[dict[str, Any]]:
    generator = np.random.default_rng(2)
    records = []
    for language in ("fr", "ru"):
        for i in range(40):
            value = float(generator.integers(0, 3))
            key = f"{i}.{language}"
            records.append(rating(key, "judge:big", min(2.0, value + (generator.random() < 0.3)), language=language))
            if i < 15:
                records.append(rating(key, "human:ana", value, language=language))
            if i < 5:
                records.append(rating(key, "human:bo", max(0.0, value - 1), language=language))
    return records


def test_the_table_has_a_row_a_language_and_one_over_all() -> None:
    records = study_ratings()
    rows = calibration_table(records, {f"{i}.{code}": str(i) for i in range(40) for code in ("fr", "ru")})
    assert [(row["run"], row["step"], row["language"], row["facet"], row["judge"]) for row in rows] == [
        ("r", 4, language, "helpfulness", "judge:big") for language in ("fr", "ru", "all")
    ]
    french = [record for record in records if record["language"] == "fr"]
    judged = [record["value"] for record in french if record["rater"] == "judge:big"]
    people = [
        np.mean([r["value"] for r in french if r["id"] == f"{i}.fr" and r["rater"] != "judge:big"]) for i in range(15)
    ]
    assert rows[0]["judge_mean"] == pytest.approx(np.mean(judged))
    assert rows[0]["people_mean"] == pytest.approx(np.mean(people))
    assert [row["labelled"] for row in rows] == [15, 15, 30]
    assert [row["people_missing"] for row in rows] == [25, 25, 50]
    assert rows[2]["people_mean"] == pytest.approx((rows[0]["people_mean"] + rows[1]["people_mean"]) / 2)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_other_facets_runs_and_checks_do_not_leak_in() -> None:
    records = study_ratings()
    rows = calibration_table(records)
    more = [rating("x.fr", "language", 0.0), rating("0.fr", "human:ana", 0.0, facet="accuracy")]
    more += [rating("0.fr", "human:ana", 0.0, run="other"), rating("0.fr", "human:ana", 0.0, step=8)]
    assert calibration_table(records + more) == rows
    assert calibration_table(more) == []


def test_a_judge_without_people_says_so() -> None:
    records = [record for record in study_ratings() if record["rater"] == "judge:big"]
    for row in calibration_table(records):
        assert row["judge_mean"] is not None
        assert (row["people_mean"], row["calibrated_mean"], row["weight"]) == (None, None, None)
        assert row["reason"] == "no person has rated any of the items"


@pytest.mark.parametrize("said", [0.0, 2.0])
def test_a_single_other_item_hardly_moves_the_mean_of_many_rated_ones(said: float) -> None:
    generator = np.random.default_rng(1)
    human = [float(value) for value in generator.integers(0, 3, 24)]
    judge = [min(2.0, value + 1.0) for value in human]
    items = [str(i) for i in range(25)]
    found = calibrated_mean([*judge, said], [*human, None], items)
    people = found.people_only
    assert people.mean is not None
    assert found.calibrated.mean == pytest.approx(people.mean, abs=0.1)
    assert width(found.calibrated) > 0.8 * width(people)
