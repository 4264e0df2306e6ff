"""Where a language is lost along the learning rate: between two rates, with an interval, or beyond those tried."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import polars as pl
import pytest

from xlift.analysis.flips import flip

RATES = [1e-4, 1e-3, 1e-2]


def answers(shares: Sequence[float], requests: int = 40, seed: int = 0) -> pl.DataFrame:
    """So many requests at each rate, the share of good answers as it is said, in random order."""
    shuffled = random.Random(seed)
    rows = []
    for rate, share in zip(RATES, shares, strict=True):
        values = [1.0] * round(share * requests) + [0.0] * (requests - round(share * requests))
        shuffled.shuffle(values)
        rows += [{"parallel_id": str(i), "learning_rate": rate, "value": one} for i, one in enumerate(values)]
    return pl.DataFrame(rows)


def test_a_language_is_lost_between_the_rates_where_its_share_passes_a_half() -> None:
    found = flip(answers([0.9, 0.7, 0.3]))
    assert found is not None
    assert found.rate == pytest.approx(10**-2.5)
    assert 1e-3 < found.low < found.rate < found.high < 1e-2
    assert found.requests == 40


@pytest.mark.parametrize(("shares", "rate"), [([1, 0.9, 0.8], math.inf), ([0.1, 0.2, 0.1], 0.0)])
def test_a_language_that_every_rate_holds_or_loses_is_beyond_the_rates(shares: list[float], rate: float) -> None:
    found = flip(answers(shares))
    assert found is not None
    assert found[:3] == (rate, rate, rate)


def test_a_dip_between_two_rates_that_hold_is_no_loss() -> None:
    found = flip(answers([0.9, 0.4, 0.9]))
    assert found is not None
    assert math.isinf(found.rate)


def test_missing_ratings_are_left_out_and_one_rate_is_too_few() -> None:
    frame = answers([0.9, 0.7, 0.3])
    lacking = frame.with_columns(value=pl.when(pl.col("parallel_id") == "3").then(None).otherwise("value"))
    found = flip(lacking)
    assert found is not None
    assert found.requests == 39
    assert flip(frame.filter(pl.col("learning_rate") == 1e-3)) is None


def test_more_requests_make_the_interval_narrower_and_the_order_of_rows_does_not_matter() -> None:
    few, many = (flip(answers([0.9, 0.7, 0.3], count)) for count in (20, 400))
    assert few is not None
    assert many is not None
    assert math.log(many.high / many.low) < 0.5 * math.log(few.high / few.low)
    assert flip(answers([0.9, 0.7, 0.3]).sample(fraction=1, shuffle=True, seed=1)) == flip(answers([0.9, 0.7, 0.3]))
