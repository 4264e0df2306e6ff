from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

from xlift.analysis.consistency import consistency, with_requests
from xlift.errors import DataError


def rows(**values: str) -> list[dict[str, Any]]:
    """One character a fact: 2, 1, 0, "?" for missing, " " for not asked."""
    return [
        {"parallel_id": f"fact-{i}", "language": language, "value": None if mark == "?" else float(mark)}
        for language, marks in values.items()
        for i, mark in enumerate(marks)
        if mark != " "
    ]


def test_shares_of_a_pair_are_counted_by_hand() -> None:
    (pair,) = consistency(rows(fr="2200200022", en="2222200000"))
    assert (pair["first"], pair["second"], pair["rated"], pair["missing"]) == ("en", "fr", 10, 0)
    assert (pair["first_right"], pair["second_right"]) == (0.5, 0.5)
    assert (pair["alike"], pair["alike_by_chance"]) == (0.6, 0.5)
    assert (pair["first_only"], pair["second_only"]) == (0.2, 0.2)
    assert (pair["lost"], pair["lost_rated"]) == (0.4, 5)
    assert (pair["gained"], pair["gained_rated"]) == (0.4, 5)


def test_intervals_are_wilsons_of_the_facts_that_went_in() -> None:
    (pair,) = consistency(rows(en="2222200000", fr="2200200022"))
    for name, right, count in (("alike", 6, 10), ("first_only", 2, 10), ("lost", 2, 5)):
        theirs = binomtest(right, count).proportion_ci(method="wilson")
        assert (pair[f"{name}_low"], pair[f"{name}_high"]) == pytest.approx((theirs.low, theirs.high))


def test_missing_is_counted_and_is_neither_right_nor_wrong() -> None:
    (pair,) = consistency(rows(en="22? 02", de="20202 "))
    assert (pair["rated"], pair["missing"]) == (3, 3)
    assert (pair["alike"], pair["lost"], pair["gained"]) == (pytest.approx(1 / 3), 0.5, 1.0)
    (none,) = consistency(rows(en="2?", de="?2"))
    assert (none["rated"], none["missing"], none["alike"], none["alike_by_chance"], none["lost"]) == (
        0,
        2,
        None,
        None,
        None,
    )


def test_pairs_with_the_reference_come_first_and_have_it_first() -> None:
    data = rows(ar="2", en="2", zh="0", de="1")
    pairs = [(row["first"], row["second"]) for row in consistency(data)]
    assert pairs == [("en", "ar"), ("en", "de"), ("en", "zh"), ("ar", "de"), ("ar", "zh"), ("de", "zh")]
    assert [row["second"] for row in consistency(data, reference="zh")][:3] == ["ar", "de", "en"]
    assert consistency(data, reference="xx") == consistency(data, reference="ar")


def test_partly_right_is_wrong() -> None:
    (pair,) = consistency(rows(en="2", de="1"))
    assert (pair["alike"], pair["lost"]) == (0.0, 1.0)


def test_the_order_of_rows_does_not_matter() -> None:
    data = rows(en="220?", fr="2 02", ru="0022")
    assert consistency(data) == consistency(data[::-1])


@pytest.mark.parametrize("data", [[], rows(en="22")])
def test_without_a_second_language_there_is_no_pair(data: list[dict[str, Any]]) -> None:
    assert consistency(data) == []


def test_a_fact_that_occurs_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'fact-0' is twice in 'en'"):
        consistency(rows(en="2") + rows(en="0"))


def test_ratings_are_joined_with_their_requests() -> None:
    prompts = [{"id": "1.en", "parallel_id": "1", "language": "en"}, {"id": "alone", "language": "en"}]
    rating = {"id": "1.en", "language": "en", "facet": "accuracy", "rater": "answers", "value": None}
    other = [rating | {"rater": "judge"}, rating | {"facet": "language"}, rating | {"id": "unknown"}]
    found = with_requests([rating, *other, rating | {"id": "alone", "value": 2}], prompts)
    assert found == [
        {"parallel_id": "1", "language": "en", "value": None},
        {"parallel_id": "alone", "language": "en", "value": 2},
    ]
