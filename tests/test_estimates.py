from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from xlift.analysis.estimates import estimate, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 16), (16, 16), (7, 16), (1, 3)])
def test_wilson_equals_scipy(right: int, count: int) -> None:
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((theirs.low, theirs.high))


def test_missing_is_not_zero() -> None:
    found = estimate([1.0, None, 1.0], ["a", "b", "c"])
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
    assert covered >= 0.89 * 200


def test_same_seed_same_interval() -> None:
    values, clusters = [0.0, 1.0, 2.0, 1.0], ["a", "a", "b", "c"]
    assert estimate(values, clusters, seed=1) == estimate(values, clusters, seed=1)
