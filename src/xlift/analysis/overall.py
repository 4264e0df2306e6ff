"""One number a run: the mean share of good answers over the languages other than English, each counting alike, and the
share in the language that is served worst; and which runs can be told apart by the mean.

Intervals resample requests with all their translations (and seeds, where a condition has several).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from xlift.analysis.estimates import best_given, check_columns, parted, with_conditions, with_silence
from xlift.analysis.measures import holm
from xlift.intervals import (
    NOTHING,
    PROMPTS,
    SEEDS,
    Numbers,
    prompt_draws,
    satterthwaite,
    score_interval,
    seed_draws,
    variance_part,
    wilson,
)

OVERALL: dict[str, Any] = {
    **{"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64},
    **{"worst_language": pl.String, "worst": pl.Float64, "worst_low": pl.Float64, "worst_high": pl.Float64},
    **{"languages": pl.Int64, "rated": pl.Int64, "missing": pl.Int64, "n_prompts": pl.Int64},
    **{"lowest_seed": pl.Float64, "highest_seed": pl.Float64, "n_seeds": pl.Int64, "covers": pl.String},
    **{"rank_from": pl.Int64, "rank_to": pl.Int64},
}
PSEUDO = np.array([-1.0, 1.0])
"""Two requests that differ as far as can be, one either way, before any is seen: few that all agree prove little."""


_USED = ("run", "parallel_id", "language", "value", "best")


class Group(NamedTuple):
    """Sums and counts of good answers, requests × runs × languages; requests are the same for all groups of a scale."""

    sums: Numbers
    counts: Numbers
    languages: list[str]
    missing: int

    @property
    def shares(self) -> Numbers:
        """By language."""
        return np.asarray(self.sums.sum(axis=(0, 1)) / self.counts.sum(axis=(0, 1)))

    @property
    def runs(self) -> Numbers:
        """The mean over languages of each run; nan where a run lacks a language."""
        counts = self.counts.sum(axis=0)
        return np.asarray((self.sums.sum(axis=0) / np.where(counts > 0, counts, np.nan)).mean(axis=1))

    @property
    def influences(self) -> Numbers:
        """How far each request moves each language's share: requests × runs × languages, in sum 0."""
        return np.asarray((self.sums - self.shares * self.counts) / self.counts.sum(axis=(0, 1)))

    @property
    def influence(self) -> Numbers:
        """The same of the mean: requests × runs."""
        return np.asarray(self.influences.mean(axis=2))

    @property
    def asked(self) -> int:
        return int((self.counts.sum(axis=(1, 2)) > 0).sum())


def overall(
    frame: pl.DataFrame,
    by: Sequence[str] = ("run", "step"),
    reference: str = "en",
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    ranked: bool = True,
) -> pl.DataFrame:
    """One row a facet, rater and group (`by`; `condition`: runs that differ only in `seed`), the best mean first.

    `mean` of the share of the best value over the languages other than `reference` (over all where there are no
    others), and the `worst` of these, with intervals; that of the worst holds whichever it is (Bonferroni).
    `lowest_seed` and `highest_seed` are the means of single runs. A group's place among those of its facet and rater
    lies in `rank_from` to `rank_to`: only groups that are told apart with the confidence over all pairs (Holm) have an
    order; null where nothing is to be `ranked`, which takes all pairs of groups. Languages without a rating are left
    out. Raises DataError where columns are lacking.
    """
    by = list(dict.fromkeys(by))
    frame = with_silence(with_conditions(frame))
    check_columns(frame, [*by, "facet", "rater", "parallel_id", "language", "value"])
    keys = ["facet", "rater", *by]
    rows: list[dict[str, Any]] = []
    used = [name for name in dict.fromkeys([*keys, *_USED]) if name in frame.columns]
    for own in parted(frame.select(used), keys):
        others = own.filter(pl.col("language") != reference)
        numbered = (own if others.is_empty() else others).with_columns(
            place=pl.col("parallel_id").rank("dense") - 1, good=best_given(own)
        )
        requests = numbered["place"].n_unique()
        parts = sorted(numbered.partition_by(keys, as_dict=True).items(), key=lambda item: repr(item[0]))
        groups = {key: _group(part, requests) for key, part in parts if part["good"].count()}
        if not groups:
            continue
        found = [
            dict(zip(keys, key, strict=True)) | _row(group, resamples, confidence, seed)
            for key, group in groups.items()
        ]
        own_groups = list(groups.values())
        unranked: list[dict[str, Any]] = [dict.fromkeys(("rank_from", "rank_to"))] * len(found)
        ranks = _ranks(own_groups, confidence) if ranked else unranked
        told = zip(found, ranks, strict=True)
        rows += sorted((row | own_ranks for row, own_ranks in told), key=lambda row: -row["mean"])
    schema = {name: frame.schema[name] for name in keys} | OVERALL
    return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)


def _group(part: pl.DataFrame, requests: int) -> Group:
    rated = part.filter(pl.col("good").is_not_null())
    runs, run = np.unique(rated["run"].to_numpy().astype(str), return_inverse=True)
    languages, language = np.unique(rated["language"].to_numpy().astype(str), return_inverse=True)
    place = (rated["place"].to_numpy(), run, language)
    sums, counts = np.zeros((2, requests, len(runs), len(languages)))
    np.add.at(sums, place, rated["good"].to_numpy())
    np.add.at(counts, place, 1.0)
    return Group(sums, counts, languages.tolist(), len(part) - len(rated))


def _row(group: Group, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    several = group.sums.shape[1] > 1
    shares, runs = group.shares, group.runs[np.isfinite(group.runs)]
    drawn = _drawn(group, resamples, seed)
    worst = int(shares.argmin())
    bound = (1 + confidence) / 2
    low, high = _interval(float(shares.mean()), drawn.mean(axis=1), _freedom(group.influence), group.asked, bound)
    # e.g. 95 % over 3 languages: each of them 98.3 %, so that the worst lies in its own whichever it is
    careful = 1 - (1 - bound) / len(shares)
    own = group.influences
    ends = [
        _interval(float(one), drawn[:, i], _freedom(own[:, :, i]), group.asked, careful) for i, one in enumerate(shares)
    ]
    return {
        **{"mean": float(shares.mean()), "low": low, "high": high},
        **{"worst_language": group.languages[worst], "worst": float(shares[worst])},
        **{"worst_low": min(low for low, _ in ends), "worst_high": min(high for _, high in ends)},
        **{"languages": len(shares), "rated": int(group.counts.sum()), "missing": group.missing},
        **{"n_prompts": group.asked, "n_seeds": group.sums.shape[1], "covers": SEEDS if several else PROMPTS},
        **{"lowest_seed": float(runs.min()) if several and len(runs) else None},
        **{"highest_seed": float(runs.max()) if several and len(runs) else None},
    }


def _freedom(influence: Numbers) -> float:
    prompts, seeds = _variances(influence)
    return float(satterthwaite([prompts[0], *seeds[:1]], [prompts[1], *seeds[1:]]))


def _variances(influence: Numbers) -> tuple[tuple[Any, int], tuple[Any, ...]]:
    """Variance and degrees of freedom by requests, and by runs where there are several."""
    by_run = influence.sum(axis=0)
    return variance_part(influence.sum(axis=1)), variance_part(by_run) if len(by_run) > 1 else ()


def _drawn(group: Group, resamples: int, seed: int) -> Numbers:
    """Resampled shares, resamples × languages."""
    requests, runs, languages = group.sums.shape
    prompts = prompt_draws(requests, resamples, seed)
    weights = seed_draws(np.zeros(runs, dtype=np.int64), resamples, seed)[:, :, None]
    sums, counts = (
        ((prompts @ part.reshape(requests, -1)).reshape(-1, runs, languages) * weights).sum(axis=1)
        for part in (group.sums, group.counts)
    )
    # A draw without any rating of a language says nothing of it.
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), group.shares)


def _interval(share: float, drawn: Numbers, freedom: float, requests: int, bound: float) -> tuple[float, float]:
    """The score interval of as many independent requests as the resampled variance is worth; see intervals.py."""
    variance = float(drawn.var())
    if variance < NOTHING:
        kept, _ = wilson(1.0, requests, 2 * bound - 1)
        return kept * share, share + (1 - kept) * (1 - share)
    return score_interval(share, share * (1 - share) / variance, float(stdtrit(freedom, bound)))


def _ranks(groups: Sequence[Group], confidence: float) -> list[dict[str, Any]]:
    """Per group, 1 more than are surely better, and as many less than all as are surely worse."""
    means = np.array([group.shares.mean() for group in groups])
    better = _apart(groups, means, confidence) & (means[None, :] > means[:, None])
    return [
        {"rank_from": 1 + int(better[place].sum()), "rank_to": len(groups) - int(better[:, place].sum())}
        for place in range(len(groups))
    ]


def _apart(groups: Sequence[Group], means: Numbers, confidence: float) -> NDArray[np.bool_]:
    """Which pairs differ beyond chance over all pairs: paired t tests with PSEUDO requests (Bonett & Price 2012)."""
    pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
    influence = np.stack([group.influence.sum(axis=1) for group in groups], axis=1)
    scores = influence * len(influence) + means
    seeds = [_variances(group.influence)[1] for group in groups]
    tested = holm([_p(scores[:, i] - scores[:, j], [part for part in (seeds[i], seeds[j]) if part]) for i, j in pairs])
    found = np.zeros((len(groups), len(groups)), dtype=bool)
    for (i, j), p in zip(pairs, tested, strict=True):
        found[i, j] = found[j, i] = p is not None and p < 1 - confidence
    return found


# e.g. round(_p(np.ones(4), []), 2) → 0.1
def _p(differences: Numbers, seeds: Sequence[tuple[Any, ...]]) -> float:
    """`seeds`: variance and degrees of freedom by the runs of either side that has several."""
    moved = np.concatenate([differences, PSEUDO])
    parts = [(float(moved.var(ddof=1)) / len(moved), len(moved) - 1), *seeds]
    freedom = satterthwaite([variance for variance, _ in parts], [own for _, own in parts])
    spread = sum(float(variance) for variance, _ in parts) ** 0.5
    return float(2 * stdtr(freedom, -abs(float(moved.mean())) / spread))
