"""Which run and step each way of choosing would pick, and what that pick is worth to every language's users.

The paper behind xlift (arXiv 2402.14778) found that hyperparameters chosen by English alone can cost other languages
dearly. Here that is a number: every rule picks by what was measured on validation prompts (or on held-out English
replies), and only then are the picks compared on test prompts.

    cost   = score of the pick by "mean over languages" - score of this rule's pick   (test prompts, paired by request)
    regret = score of the best candidate - score of this rule's pick                  (best by the mean over languages)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from xlift.analysis.estimates import best_given, with_silence
from xlift.errors import ConfigError, DataError, nearest
from xlift.intervals import estimate
from xlift.rating import RATERS

MEASURE = {"language": 1.0}
"""What makes a response good where nothing else is asked: that it is wholly in the language it must be in."""


class Candidate(NamedTuple):
    """A checkpoint that could be chosen."""

    run: str
    step: int


@dataclass(frozen=True)
class ValidationFindings:
    """What may be looked at while choosing: ratings of validation prompts and what was measured during training.

    Raises DataError for ratings of test prompts.
    """

    ratings: pl.DataFrame
    training: pl.DataFrame

    def __post_init__(self) -> None:
        splits = {*self.ratings["split"].unique()} - {"validation"}
        if splits:
            raise DataError(f"selection may see validation prompts only, not: {', '.join(sorted(splits))}")


def validation_findings(ratings: pl.DataFrame, training: pl.DataFrame) -> ValidationFindings:
    """The part of a study's tidy frames that selection may see."""
    return ValidationFindings(ratings.filter(pl.col("split") == "validation"), training)


def scores(ratings: pl.DataFrame, measure: Mapping[str, float] | None = None) -> pl.DataFrame:
    """One row a response: run, step, id, parallel_id, language and `score` between 0 and 1.

    `measure` weighs facets, for instance {"helpfulness": 2, "language": 1}; "facet:judge", "facet:human" and
    "facet:check" name who is believed, and without it people go before judges, and judges before surface checks. The
    score is the weighted mean share of raters that give a 2; a response that lacks one of the facets has none. Raises
    ConfigError for a facet that nobody has rated.
    """
    weights = dict(measure or MEASURE)
    keys = ["run", "step", "id", "parallel_id", "language"]
    parts = [_facet_scores(ratings, name, keys).rename({"score": f"score-{name}"}) for name in weights]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part, on=keys, how="inner")
    total = sum(weights.values())
    weighted = pl.sum_horizontal([pl.col(f"score-{name}") * weight for name, weight in weights.items()]) / total
    return joined.select(*keys, score=weighted).sort(keys)


def _facet_scores(ratings: pl.DataFrame, name: str, keys: Sequence[str]) -> pl.DataFrame:
    found = _ratings_by(with_silence(ratings), name)
    if found.is_empty():
        rated = sorted(f"{facet}:{kind}" for facet, kind in ratings.select("facet", "kind").unique().iter_rows())
        raise ConfigError(f"measure: nobody has rated '{name}'; {nearest(name, rated)}")
    believed = next(one for one in ("human", "judge", "check") if one in found["kind"])
    return found.filter(pl.col("kind") == believed).group_by(keys).agg(score=best_given(found).mean())


def rules(
    validation: ValidationFindings, measure: Mapping[str, float] | None = None
) -> dict[str, dict[Candidate, float]]:
    """For every rule that can be applied, what it gives each candidate; the highest is picked.

    English loss (negative), English quality, mean over languages and worst language of the measure on validation
    prompts, and mean and worst language margin. Candidates are the trained checkpoints that answered; one without what
    a rule goes by (weights drawn back to the base have no loss of their own) is not among that rule's, and a rule that
    is left with one has nothing to choose.
    """
    tuned = validation.ratings.filter(~pl.col("untuned"))
    by_language = _by_language(tuned, measure)
    candidates = list(by_language)
    found: dict[str, dict[Candidate, float]] = {
        "English loss": _logged(validation.training, candidates, ["heldout_loss"], lambda values: -values[0]),
        "English quality": {one: found["en"] for one, found in by_language.items() if "en" in found},
        "mean over languages": {one: float(np.mean(list(found.values()))) for one, found in by_language.items()},
        "worst language": {one: min(found.values()) for one, found in by_language.items()},
    }
    margins = [name for name in validation.training.columns if name.startswith("margins/")]
    found["mean margin"] = _logged(validation.training, candidates, margins, lambda values: float(np.mean(values)))
    found["worst margin"] = _logged(validation.training, candidates, margins, min)
    return {rule: given for rule, given in found.items() if given and len(given) >= min(2, len(candidates))}


def _ratings_by(ratings: pl.DataFrame, name: str) -> pl.DataFrame:
    """The values that a name of a measure can mean: "facet", or "facet:kind"."""
    facet, _, kind = name.partition(":")
    # A second opinion on a facet, such as language_lcb, is shown and does not choose.
    others = [rater for rater, one in RATERS.items() if not one.default]
    meant = (pl.col("facet") == facet) & pl.col("value").is_not_null() & ~pl.col("rater").is_in(others)
    return ratings.filter(meant & (pl.col("kind") == kind if kind else True))


def _by_language(ratings: pl.DataFrame, measure: Mapping[str, float] | None) -> dict[Candidate, dict[str, float]]:
    """Mean score by candidate and language; a candidate that lacks a language that others have is left out."""
    found: dict[Candidate, dict[str, float]] = {}
    if ratings.is_empty():
        return found
    means = scores(ratings, measure).group_by("run", "step", "language").agg(pl.col("score").mean()).sort("run", "step")
    for row in means.iter_rows(named=True):
        found.setdefault(Candidate(row["run"], row["step"]), {})[row["language"]] = row["score"]
    languages = {language for row in found.values() for language in row}
    return {one: row for one, row in found.items() if set(row) == languages}


def _logged(
    training: pl.DataFrame, candidates: Sequence[Candidate], columns: Sequence[str], value: Any
) -> dict[Candidate, float]:
    """A value made of what was logged at the candidates' steps; candidates without it are left out.

    What was measured and is no number (a run that broke down) counts as the worst there is.
    """
    if not columns or any(column not in training.columns for column in columns):
        return {}
    logged = {
        Candidate(row["run"], row["step"]): [row[column] for column in columns]
        for row in training.iter_rows(named=True)
    }
    # A run that has the values at other steps measured them here, too.
    measuring = {one.run for one, values in logged.items() if _all_numbers(values)}
    return {
        one: float(value(logged[one])) if _all_numbers(logged[one]) else -math.inf
        for one in candidates
        if one in logged and (one.run in measuring or None not in logged[one])
    }


# e.g. [_all_numbers(values) for values in ([0.1, 0.2], [0.1, None], [float("nan")])] → [True, False, False]
def _all_numbers(values: Sequence[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


# e.g. picks({Candidate("a", 200): 0.9, Candidate("b", 100): 0.9, Candidate("c", 50): 0.5}) → [("b", 100)]
# e.g. picks({Candidate("b", 100): 1.0, Candidate("a", 100): 1.0, Candidate("c", 100): 0.5}) → [("a", 100), ("b", 100)]
def picks(given: Mapping[Candidate, float]) -> list[Candidate]:
    """The candidates with the highest value; of equal ones those of the earliest step, among which nothing decides."""
    highest = max(given.values())
    best = [one for one in given if given[one] == highest]
    return sorted(one for one in best if one.step == min(other.step for other in best))


def selection_table(
    ratings: pl.DataFrame,
    training: pl.DataFrame,
    measure: Mapping[str, float] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a rule and language: what the rule picks, and what the pick scores on test prompts.

    `score`, `cost` and `regret` as in the module's text, the first two with intervals that resample requests;
    `candidates` that the rule could choose among, and `tied` those among which it could not decide: `run` and `label`
    name all of them, and the figures are their mean, which is what a choice by lot is worth. A language in which the
    pick, or what it is compared with, has no rating on test prompts has no row. Empty where fewer than two checkpoints
    compete, or while nobody has rated what `measure` asks for.
    """
    facets = [name.partition(":")[0] for name in measure or MEASURE]
    ratings = ratings.select(_USED).filter(pl.col("facet").is_in(facets))
    tuned = ratings.filter(~pl.col("untuned"))
    rated = ({*_ratings_by(tuned, name)["split"].unique()} for name in measure or MEASURE)
    if not all({"validation", "test"} <= splits for splits in rated):
        return []
    found = rules(validation_findings(ratings, training), measure)
    candidates = sorted({one for given in found.values() for one in given})
    test = tuned.filter(pl.col("split") == "test")
    if len(candidates) < 2 or test.is_empty():
        return []
    scored = scores(test, measure)
    # The best is best in all languages: what could be rated in a few alone is not put before it.
    best = _together(scored, picks(_means(scored))[:1])
    reference = picks(found["mean over languages"])
    wanted = _together(scored, reference)
    labels = dict(ratings.select("run", "label").unique().iter_rows())
    rows = []
    for rule, given in found.items():
        chosen = picks(given)
        names = {"run": [one.run for one in chosen], "label": [labels[one.run] for one in chosen]}
        facts: dict[str, Any] = {"rule": rule, **{name: ", ".join(said) for name, said in names.items()}}
        facts |= {"step": chosen[0].step, "candidates": len(given), "tied": len(chosen)}
        own = wanted if chosen == reference else _together(scored, chosen)
        rows += [
            facts
            | {"language": language}
            | _priced(own[language], wanted[language], best[language], resamples, confidence, seed)
            for language in own
            if language in wanted and language in best
        ]
    return rows


_USED = (
    *("run", "label", "step", "untuned", "id", "parallel_id", "language", "split"),
    *("facet", "rater", "kind", "value", "reason", "lowest", "best"),
)

PromptScores = dict[str, dict[str, tuple[float, str]]]
"""By language and prompt id: the score and the request (`parallel_id`)."""


def _means(scored: pl.DataFrame) -> dict[Candidate, float]:
    """The mean over languages of the candidates that have a score in as many as any."""
    # In one order, so that equal candidates stay equal to the last digit.
    by_language = scored.group_by("run", "step", "language").agg(pl.col("score").mean()).sort("run", "step", "language")
    told = by_language.group_by("run", "step", maintain_order=True).agg(pl.col("score").mean(), languages=pl.len())
    whole = told.filter(pl.col("languages") == pl.col("languages").max())
    return {Candidate(row["run"], row["step"]): row["score"] for row in whole.iter_rows(named=True)}


def _together(scored: pl.DataFrame, chosen: Sequence[Candidate]) -> PromptScores:
    """What candidates among which nothing decides are worth: at each prompt the mean of those that have a score."""
    own = scored.filter(pl.any_horizontal((pl.col("run") == one.run) & (pl.col("step") == one.step) for one in chosen))
    told = own.group_by("language", "id").agg(pl.col("score").mean(), pl.col("parallel_id").first())
    found: PromptScores = {}
    for language, id, score, request in told.sort("language", "id").iter_rows():
        found.setdefault(language, {})[id] = (score, request)
    return found


def _priced(
    own: dict[str, tuple[float, str]],
    reference: dict[str, tuple[float, str]],
    best: dict[str, tuple[float, str]],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    score = estimate(
        [one for one, _ in own.values()], [request for _, request in own.values()], 1.0, resamples, confidence, seed
    )
    shared = [id for id in own if id in reference]
    regret = np.mean([one for one, _ in best.values()]) - np.mean([one for one, _ in own.values()])
    found = {"score": score.mean, "low": score.low, "high": score.high, "rated": score.rated, "regret": float(regret)}
    if own is reference:
        return found | {"cost": 0.0, "cost_low": 0.0, "cost_high": 0.0, "pairs": len(shared)}
    # Halved and shifted into 0 to 1, where the interval of a share belongs, and back.
    moved = [(reference[id][0] - own[id][0] + 1) / 2 for id in shared]
    cost = estimate(moved, [own[id][1] for id in shared], 1.0, resamples, confidence, seed)
    cells = {"cost": cost.mean, "cost_low": cost.low, "cost_high": cost.high}
    return found | {name: _back(value) for name, value in cells.items()} | {"pairs": len(shared)}


# e.g. [_back(value) for value in (0.5, 0.75, None)] → [0.0, 0.5, None]
def _back(value: float | None) -> float | None:
    return None if value is None else 2 * value - 1
