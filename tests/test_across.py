"""The same answers judged in several languages: kappa beside an independent implementation, shifts where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import Act, asked_facets, serving
from statsmodels.stats.inter_rater import fleiss_kappa
from test_judging import QUICK, judge_at
from warm import run_xlift

from xlift.judging.across import Items, across_languages, across_text, fleiss, items_of, shifts
from xlift.judging.probe import parallel_answers, probe, probe_cases, probed_before

LANGUAGES = ("en", "fr", "ru", "hi")


def items(values: dict[tuple[str, str], list[float | None]]) -> Items:
    return {key: dict(zip(LANGUAGES, row, strict=True)) for key, row in values.items()}


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_that_of_an_independent_implementation(seed: int) -> None:
    drawn = np.random.default_rng(seed).choice(3, size=(20, 4), p=[0.2, 0.3, 0.5])
    counts = np.stack([(drawn == value).sum(axis=1) for value in range(3)], axis=1).astype(float)
    assert fleiss(counts) == pytest.approx(fleiss_kappa(counts))
    whole = {(str(i), "fluency"): [float(one) for one in row] for i, row in enumerate(drawn)}
    found = across_languages(items(whole), resamples=200)[1]
    assert (found.facet, found.kappa) == ("fluency", pytest.approx(fleiss_kappa(counts)))
    assert found.low is not None
    assert found.high is not None
    assert found.low < float(fleiss_kappa(counts)) < found.high


def test_kappa_of_the_example_of_fleiss_by_hand() -> None:
    # Fleiss 1971: 14 raters, 10 subjects, 5 categories; kappa 0.210. Here with its categories 3 and above joined.
    table = [[0, 0, 14], [0, 2, 12], [0, 0, 14], [0, 3, 11], [2, 2, 10], [7, 7, 0], [3, 2, 9], [2, 5, 7], [6, 5, 3]]
    counts = np.array([*table, [0, 2, 12]], dtype=float)
    given, agreed = counts.sum(), ((counts**2).sum(axis=1) - 14) / (14 * 13)
    chance = ((counts.sum(axis=0) / given) ** 2).sum()
    assert fleiss(counts) == pytest.approx((agreed.mean() - chance) / (1 - chance))


def test_a_language_that_is_judged_more_kindly_shows_by_how_much() -> None:
    # Half of the answers are a point kinder in Hindi.
    rows = {(str(i), "accuracy"): [0.0, 0.0, 0.0, float(i % 2)] for i in range(8)}
    moved = {one.language: one.shift for one in shifts(items(rows), resamples=200)}
    assert moved["hi"].mean == pytest.approx(0.5)
    assert moved["en"].mean == pytest.approx(-0.5 / 3)
    assert moved["hi"].low is not None
    assert moved["hi"].low < 0.5


def test_what_is_not_rated_is_missing_and_the_rest_counts() -> None:
    rows: dict[tuple[str, str], list[float | None]] = {
        ("a", "accuracy"): [0.0, 0.0, None, 0.0],
        ("b", "accuracy"): [2.0, None, None, None],
        ("c", "accuracy"): [2.0, 2.0, 2.0, 2.0],
    }
    found = across_languages(items(rows), resamples=200)[0]
    assert (found.kappa, found.items, found.missing) == (pytest.approx(1.0), 2, 4)
    nothing = across_languages(items({("a", "accuracy"): [None] * 4}))[0]
    assert (nothing.kappa, nothing.reason) == (None, "no answer has a value in two languages")


def test_a_judge_that_always_says_the_same_has_no_kappa() -> None:
    found = across_languages(items({(name, "accuracy"): [2.0] * 4 for name in "abc"}))[0]
    assert (found.kappa, found.reason) == (None, "every value is the same")


def blind_in_hindi(body: dict[str, Any], seen: int) -> Act:
    asked = body["messages"][1]["content"]
    case = next(case for case in probe_cases() if case["text"] in asked)
    values = dict.fromkeys(asked_facets(body), 2)
    if case["language"] != "hi":
        values |= {facet: expected[0] for facet, expected in case["expected"].items()}
    return Act(json.dumps(values))


def test_a_judge_is_asked_over_languages_by_the_probe_at_no_further_cost(tmp_path: Path) -> None:
    cases = [case for case in probe_cases(["en", "fr", "hi"]) if "parallel_id" in case]
    with serving(blind_in_hindi) as server:
        judge = judge_at(server)
        probe(judge, tmp_path, cases, QUICK)
        found = items_of(parallel_answers(), probed_before(judge, tmp_path))
    assert {len(by) for by in found.values()} == {3}
    text = across_text(found)
    assert text.startswith("14 answers, the same in 3 languages")
    assert max(map(len, text.splitlines())) <= 80
    moved = {one.language: one.shift.mean or 0 for one in shifts(found, resamples=200)}
    assert moved["hi"] > 0.3 > 0 > moved["en"]


def test_any_file_is_judged_as_it_is_rated_and_told_as_json(tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text(
        "question,reply,lang\nPourquoi ?,Parce que.,fr\nWhy?,So.,en\n", encoding="utf-8"
    )
    with serving() as server:
        words = ("judge", "answers.csv", "-o", "r.jsonl", "--model", "m", "--base-url", server.url, "--json")
        done = run_xlift(*words, folder=tmp_path)
        asked = [body["messages"][1]["content"] for body in server.state.bodies]
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["judge"], told["responses"], told["made"], told["missing"]) == ("m", 2, 12, 0)
    assert any("Pourquoi ?" in one and "French" in one for one in asked)
    wrong = run_xlift(*words[:-1], "--text", "answer", folder=tmp_path)
    assert wrong.returncode == 2
    assert "no column 'answer'" in wrong.stderr
