"""What each training choice contributes: main effects, how they differ between languages, shares of variance.

An additive model over the conditions (runs that differ only in `seed`) of a grid: the mean rating of a condition is
an overall mean plus one number a level of each factor, fitted by least squares, every condition counting once and
every seed within it alike. Numbers of a factor sum to zero over its levels, so a marginal mean is balanced over the
levels of the other factors even where the grid is not. Untuned models have no training choices and are left out.
A factor that another one determines (twice the data is twice the steps) is one factor with it, under both names;
where the grid still cannot tell factors apart, there is a reason instead of a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from xlift.analysis.estimates import SETTINGS, check_columns, last_steps, parted, span_of, with_conditions
from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.errors import ConfigError, nearest
from xlift.intervals import (
    NOTHING,
    PROMPTS,
    SEEDS,
    Numbers,
    covered,
    prompt_draws,
    satterthwaite,
    seed_draws,
    variance_part,
    widened,
    wilson,
)
from xlift.study.labels import FACTOR
from xlift.study.runs import FILLED_IN

_FIRST = ("model", "adaptation", "learning_rate", "instructions", "size", "steps", "template", "system", "weight")
_FOLDED = ("alpha", "dropout", "targets", "rslora", "dora", "quantized", "modules_to_save")
_WITHIN = ("method", "rank", "sources", *FILLED_IN)
FACTORS = (*_FIRST, *(name for name in SETTINGS if name not in _FIRST and name not in _WITHIN))
"""Training choices: every setting. `adaptation` is the method with its rank, and beside full fine-tuning with all that
is LoRA's own; `instructions` are their name without the size."""
REST = "rest"
"""What no factor explains by itself: factors that act together."""

_KEYS: dict[str, Any] = dict.fromkeys(("facet", "rater", "language", "factor"), pl.String)
EFFECTS: dict[str, Any] = {
    **_KEYS,
    **{"level": pl.String, "mean": pl.Float64, "effect": pl.Float64, "low": pl.Float64, "high": pl.Float64},
    **{"against": pl.String, "interaction": pl.Float64, "interaction_low": pl.Float64, "interaction_high": pl.Float64},
    **{"conditions": pl.Int64, "rated": pl.Int64, "missing": pl.Int64, "n_prompts": pl.Int64},
    **{"covers": pl.String, "reason": pl.String},
}
SHARES: dict[str, Any] = {
    **_KEYS,
    **{"share": pl.Float64, "low": pl.Float64, "high": pl.Float64, "covers": pl.String, "reason": pl.String},
}


class Factor(NamedTuple):
    """A factor with its levels in order, and the number of each condition's level."""

    name: str
    levels: list[str]
    codes: NDArray[np.int64]

    @property
    def coding(self) -> Numbers:
        """levels × (levels - 1): the numbers of the levels from those of all but the last, since they sum to zero."""
        return np.vstack([np.eye(len(self.levels) - 1), -np.ones((1, len(self.levels) - 1))])


class Means(NamedTuple):
    """Mean ratings of the conditions, and what chance does to them; `languages` end with the average of several.

    point: languages × conditions; draws: resamples × languages × conditions; requests, what each request adds to the
    error of a mean: clusters × languages × conditions; runs, each run's part in its condition's mean: runs × languages
    × conditions; condition: the number of each run's condition. `top` is the upper end of the scale, None for values
    that are on none; `lacking` are languages in which not every run has a rating; `span` is 2 for differences of two
    languages.
    """

    languages: list[str]
    point: Numbers
    draws: Numbers
    requests: Numbers
    runs: Numbers
    condition: NDArray[np.int64]
    top: float | None
    lacking: list[str]
    span: int = 1


class Contrasts(NamedTuple):
    """What makes effects and marginal means of the means of conditions: levels × conditions; None where it cannot."""

    effects: Numbers | None
    marginal: Numbers | None
    reason: str | None


def factor_effects(
    frame: pl.DataFrame,
    factors: Sequence[str] | None = None,
    reference: Mapping[str, Any] | None = None,
    compared_to: str = "en",
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    top: float | None = None,
) -> pl.DataFrame:
    """One row a facet, rater, language (and "all") and level of each factor that varies; empty if none does.

    `factors` are FACTORS or other columns (`step` to keep all checkpoints; otherwise the last counts). `mean` is the
    marginal mean of a level; `effect`, with `low` and `high`, its difference from the mean over the levels, or from
    the level that `reference` names for the factor, say {"learning_rate": 1e-4} (`against` says which). `interaction`
    is the effect minus the same effect in the language `compared_to`. Values lie on a scale from 0 to `top`, the
    facet's own where it is not given. `covers` says what the intervals allow for. Where a number is not there, `reason`
    says why. Raises ConfigError for factors and levels that are not there, DataError
    for lacking columns.
    """
    rows: list[dict[str, Any]] = []
    for key, group in _groups(frame, factors):
        found = factors_of(group, factors)
        against = _references(found, reference or {})
        if not found:
            continue
        means = _means(group, resamples, seed, span_of(group) if top is None else top)
        counts = _counts(group)
        for factor, name in zip(found, against, strict=True):
            facts = key | {"factor": factor.name, "against": name or "mean", "conditions": len(factor.codes)}
            made = _rows(contrasts(found, factor, name), factor, means, compared_to, confidence)
            rows += [facts | counts[row["language"]] | row for row in made]
    return pl.DataFrame([dict.fromkeys(EFFECTS) | row for row in rows], schema=EFFECTS)


def variance_shares(
    frame: pl.DataFrame,
    factors: Sequence[str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """One row a facet, rater, language (and "all") and factor: its share of the variance between conditions.

    The share is the sum of squares that is lost when the factor is left out of the additive model, over that of the
    conditions' means about their mean, both less what chance alone would make of them (their expectation under the
    resampled covariance). The row "rest" is what the whole model leaves over. In a balanced grid shares sum to 1, but
    for the bounds at 0 and 1.
    """
    rows: list[dict[str, Any]] = []
    for key, group in _groups(frame, factors):
        found = factors_of(group, factors)
        means = _means(group, resamples, seed, None) if found else None
        if means is not None:
            rows += [key | row for row in _share_rows(found, means, confidence)]
    return pl.DataFrame([dict.fromkeys(SHARES) | row for row in rows], schema=SHARES)


def _groups(frame: pl.DataFrame, factors: Sequence[str] | None) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """The tuned runs' ratings by facet and rater, with what the factors need."""
    check_columns(frame, ["facet", "rater", "language", "parallel_id", "value", "untuned", "step"])
    frame = with_conditions(frame).filter(~pl.col("untuned"))
    frame = frame.with_columns(
        adaptation=_adaptation(frame),
        instructions=pl.col("instructions").cast(pl.String).str.strip_suffix(pl.format("-{}", "size")),
    )
    unknown = [name for name in factors or () if name not in frame.columns]
    if unknown:
        raise ConfigError([f"no factor '{name}'; {nearest(name, [*FACTORS, 'step'])}" for name in unknown])
    if "step" in (factors or ()):
        frame = frame.with_columns(
            *[pl.format("{} step {}", name, "step").alias(name) for name in ("condition", "run")]
        )
    else:
        frame = last_steps(frame)
    for group in parted(frame, ("facet", "rater")):
        yield dict(group.select("facet", "rater").row(0, named=True)), group


def _adaptation(frame: pl.DataFrame) -> pl.Expr:
    """The method in words; the settings of LoRA that vary are in it where other methods are there, which lack them."""
    lora = pl.format("lora-r{}", "rank")
    if frame["method"].n_unique() > 1:
        for name in _FOLDED:
            if frame[name].drop_nulls().n_unique() > 1:
                lora = pl.format(f"{{}} {name}={{}}", lora, name)
    return pl.when(pl.col("method") == "lora").then(lora).otherwise(pl.col("method").cast(pl.String))


def factors_of(frame: pl.DataFrame, names: Sequence[str] | None = None) -> list[Factor]:
    """The factors with two levels or more among the conditions of `frame`, those determined by another one merged."""
    conditions = frame.unique("condition").sort("condition")
    folded = _FOLDED if conditions["method"].n_unique() > 1 else ()
    told = [name for name in conditions.columns if name.startswith(FACTOR)]
    # What is told of models stands in place of which model it is, which would determine all of it.
    names = names or [*told, *(name for name in FACTORS if name not in (*folded, *(["model"] if told else [])))]
    found = [_factor(name, conditions[name]) for name in names]
    found = [factor for factor in found if len(factor.levels) > 1]
    merged: list[Factor] = []
    while found:
        # The finest first, since it may determine others.
        finest = max(found, key=lambda factor: len(factor.levels))
        others = [factor for factor in found if factor is not finest]
        merged.append(_merged(finest, [factor for factor in others if _determines(finest, factor)]))
        found = [factor for factor in others if not _determines(finest, factor)]
    order = list(names)
    return sorted(merged, key=lambda factor: order.index(factor.name.split(",")[0]))


# e.g. _factor("rank", pl.Series([16, 4, 16])).codes.tolist() → [1, 0, 1]
def _factor(name: str, values: pl.Series) -> Factor:
    levels = sorted(values.unique().to_list(), key=lambda value: (value is None, value if value is not None else 0))
    return Factor(name, [_level(value) for value in levels], np.array([levels.index(value) for value in values]))


# e.g. [_level(value) for value in (1e-4, None, 16)] → ["0.0001", "none", "16"]
def _level(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else "none" if value is None else str(value)


# e.g. _determines(_factor("size", pl.Series([8, 64])), _factor("steps", pl.Series([1, 8]))) → True
# e.g. _determines(_factor("size", pl.Series([8, 8])), _factor("steps", pl.Series([1, 8]))) → False
def _determines(one: Factor, other: Factor) -> bool:
    return len({*zip(one.codes.tolist(), other.codes.tolist(), strict=True)}) == len(one.levels)


# e.g. _merged(_factor("size", pl.Series([8, 64])), [_factor("steps", pl.Series([1, 8]))]).levels → ["8, 1", "64, 8"]
def _merged(finest: Factor, under: Sequence[Factor]) -> Factor:
    first = [int(np.flatnonzero(finest.codes == code)[0]) for code in range(len(finest.levels))]
    levels = [
        ", ".join([finest.levels[code], *[factor.levels[factor.codes[place]] for factor in under]])
        for code, place in enumerate(first)
    ]
    return Factor(", ".join([finest.name, *[factor.name for factor in under]]), levels, finest.codes)


def _references(found: Sequence[Factor], reference: Mapping[str, Any]) -> list[str | None]:
    """The level that each factor is compared with, None for the mean. Raises ConfigError for levels not there."""
    names: list[str | None] = []
    problems = []
    for factor in found:
        first = factor.name.split(",")[0]
        wanted = _level(reference[first]) if first in reference else None
        # A merged factor's levels go on with those of the factors that it determines.
        level = next((one for one in factor.levels if wanted in (one, one.split(",")[0])), None)
        if wanted is not None and level is None:
            problems.append(f"no level '{wanted}' of {factor.name}; {nearest(wanted, factor.levels)}")
        names.append(level)
    if problems:
        raise ConfigError(problems)
    return names


def _counts(frame: pl.DataFrame) -> dict[str, dict[str, int]]:
    value = pl.col("value")
    requests = pl.col("parallel_id").filter(value.is_not_null()).n_unique()
    asked = [value.count().alias("rated"), value.null_count().alias("missing"), requests.alias("n_prompts")]
    found = {row.pop("language"): row for row in frame.group_by("language").agg(*asked).to_dicts()}
    return found | {ALL_LANGUAGES: frame.select(*asked).to_dicts()[0]}


def _means(frame: pl.DataFrame, resamples: int, seed: int, top: float | None) -> Means:
    sums, counts, languages, condition = _cells(frame)
    whole = (counts.sum(axis=0) > 0).all(axis=1)
    lacking = [name for name, kept in zip(languages, whole, strict=True) if not kept]
    kept = [name for name, kept in zip(languages, whole, strict=True) if kept]
    sums, counts = sums[:, whole], counts[:, whole]
    # Averages the runs of each condition: runs × conditions.
    share = np.eye(condition.max() + 1)[condition]
    share /= share.sum(axis=0)
    run_means = sums.sum(axis=0) / counts.sum(axis=0)
    parts = (
        run_means @ share,
        _drawn(sums, counts, share, condition, resamples, seed),
        (sums - run_means * counts) / counts.sum(axis=0) @ share,
        run_means.T[:, :, None] * share[:, None, :],
    )
    point, draws, requests, runs = (_with_average(part) for part in parts)
    values = frame["value"].drop_nulls().to_numpy()
    if top is not None and len(values) and np.ptp(values) > top:
        top = None
    return Means(
        [*kept, *([ALL_LANGUAGES] if len(kept) > 1 else [])], point, draws, requests, runs, condition, top, lacking
    )


def _with_average(part: Numbers) -> Numbers:
    """The array with the average of the languages (last axis but one) behind them, if there are several."""
    return np.concatenate([part, part.mean(axis=-2, keepdims=True)], axis=-2) if part.shape[-2] > 1 else part


def _cells(frame: pl.DataFrame) -> tuple[Numbers, Numbers, list[str], NDArray[np.int64]]:
    """Sums and counts of values, clusters × languages × runs; the languages; the number of each run's condition."""
    runs = frame.select("condition", "run").unique().sort("condition", "run").with_row_index("column")
    languages = frame["language"].unique().sort()
    rated = frame.filter(pl.col("value").is_not_null()).join(runs, on=["condition", "run"])
    rated = rated.join(pl.DataFrame({"language": languages}).with_row_index("place"), on="language")
    rated = rated.with_columns(cluster=pl.col("parallel_id").rank("dense") - 1)
    keys = ["cluster", "place", "column"]
    cells = rated.sort(*keys, "value").group_by(keys, maintain_order=True).agg(pl.col("value").sum(), count=pl.len())
    where = tuple(cells[key].to_numpy() for key in keys)
    sums, counts = np.zeros((2, rated["cluster"].n_unique(), len(languages), len(runs)))
    sums[where], counts[where] = cells["value"].to_numpy(), cells["count"].to_numpy()
    _, condition = np.unique(runs["condition"].to_numpy().astype(str), return_inverse=True)
    return sums, counts, languages.to_list(), condition


def _drawn(
    sums: Numbers, counts: Numbers, share: Numbers, condition: NDArray[np.int64], resamples: int, seed: int
) -> Numbers:
    """Means of the conditions under resampling: resamples × languages × conditions."""
    clusters, languages, runs = sums.shape
    prompts = prompt_draws(clusters, resamples, seed)
    shape = (resamples, languages, runs)
    total, rated = ((prompts @ part.reshape(clusters, languages * runs)).reshape(shape) for part in (sums, counts))
    # A draw without a rated prompt has no mean and is left out.
    means = np.divide(total, rated, out=np.full_like(total, np.nan), where=rated > 0)
    weights = seed_draws(condition, resamples, seed)
    return (means * weights[:, None, :]) @ share / (weights @ share)[:, None, :]


def contrasts(found: Sequence[Factor], factor: Factor, reference: str | None = None) -> Contrasts:
    """What makes a factor's effects of the conditions' means, by least squares on the levels of all factors `found`."""
    select, design = _selected(found, factor)
    inverse = np.asarray(np.linalg.pinv(design), dtype=np.float64)
    if not _told_apart(select, design):
        return Contrasts(None, None, _confounded(found, factor))
    balanced = select.copy()
    balanced[:, 0] = 1.0
    marginal = balanced @ inverse if _told_apart(balanced, design) else None
    base = 0.0 if reference is None else select[factor.levels.index(reference)]
    return Contrasts((select - base) @ inverse, marginal, None)


def _selected(found: Sequence[Factor], factor: Factor) -> tuple[Numbers, Numbers]:
    """The combination of coefficients that is each level's number, and the design that they belong to."""
    design, own = _design(found, factor)
    select = np.zeros((len(factor.levels), design.shape[1]))
    select[:, own] = factor.coding
    return select, design


def _design(found: Sequence[Factor], factor: Factor | None) -> tuple[Numbers, slice]:
    """Conditions × columns, the first all ones; and which columns are those of `factor`."""
    columns, own, width = [np.ones((len(found[0].codes), 1))], slice(0), 1
    for one in found:
        columns.append(one.coding[one.codes])
        own = slice(width, width + len(one.levels) - 1) if one is factor else own
        width += len(one.levels) - 1
    return np.hstack(columns), own


# e.g. _told_apart(np.array([[1.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])) → True
# e.g. _told_apart(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])) → False
def _told_apart(select: Numbers, design: Numbers) -> bool:
    """Whether the data decide these combinations of coefficients (they lie in the row space of the design)."""
    return bool(np.allclose(select @ np.linalg.pinv(design) @ design, select, atol=1e-8))


def _confounded(found: Sequence[Factor], factor: Factor) -> str:
    others = [
        other.name
        for other in found
        if other is not factor and _told_apart(*_selected([one for one in found if one is not other], factor))
    ]
    return f"the grid cannot tell this from {' or '.join(others) or 'the other factors together'}"


def _rows(
    plan: Contrasts, factor: Factor, means: Means, compared_to: str, confidence: float
) -> Iterator[dict[str, Any]]:
    for language in [*means.lacking, *(means.languages if plan.effects is None else [])]:
        lacks = "not every run has a rating in this language" if language in means.lacking else plan.reason
        yield from ({"language": language, "level": level, "reason": lacks} for level in factor.levels)
    if plan.effects is None or not means.languages:
        return
    found = _effects(means, plan.effects, confidence)
    apart = _effects(_minus(means, compared_to), plan.effects, confidence) if compared_to in means.languages else None
    for i, language in enumerate(means.languages):
        for j, level in enumerate(factor.levels):
            row: dict[str, Any] = {"language": language, "level": level}
            row |= {"mean": None if plan.marginal is None else _number(plan.marginal[j] @ means.point[i])}
            row |= {name: _number(part[i, j]) for name, part in zip(("effect", "low", "high"), found, strict=False)}
            row |= _why(row, found[3][i, j], bool(np.allclose(plan.effects[j], 0)), means)
            if apart is not None and language not in (compared_to, ALL_LANGUAGES):
                names = ("interaction", "interaction_low", "interaction_high")
                row |= {name: _number(part[i, j]) for name, part in zip(names, apart, strict=False)}
            yield row


# e.g. [_number(value) for value in (4e-16, -0.25, float("nan"))] → [0.0, -0.25, None]
def _number(value: Any) -> float | None:
    # Rounded, so that nothing is 0 rather than 4e-16.
    return round(float(value), 12) + 0.0 if np.isfinite(value) else None


def _why(row: Mapping[str, Any], constant: bool, is_reference: bool, means: Means) -> dict[str, Any]:
    if row["low"] is not None:
        return {"covers": PROMPTS if constant else covered(means.condition)}
    if is_reference:
        return {"reason": "the level that the others are compared with"}
    lacks = "nothing varies between prompts" if constant else "too few ratings"
    return {"reason": f"{'a single prompt' if len(means.requests) == 1 else lacks}: no interval"}


def _minus(means: Means, language: str) -> Means:
    """The means less those of one language."""
    place = means.languages.index(language)
    point, draws, requests, runs = (
        part - part[..., place : place + 1, :] for part in (means.point, means.draws, means.requests, means.runs)
    )
    return means._replace(point=point, draws=draws, requests=requests, runs=runs, span=2)


def _effects(means: Means, contrast: Numbers, confidence: float) -> tuple[Numbers, Numbers, Numbers, NDArray[np.bool_]]:
    """Effects, their bounds, and where nothing varies, languages × levels each; bounds are nan where there are none."""
    parts = [variance_part(means.requests @ contrast.T)]
    if covered(means.condition) == SEEDS:
        runs = means.runs @ contrast.T
        parts += [variance_part(runs[means.condition == number]) for number in range(means.condition.max() + 1)]
    variances = [variance for variance, _ in parts]
    freedom = satterthwaite(variances, [count for _, count in parts])
    effects = means.point @ contrast.T
    low, high = widened(means.draws @ contrast.T, effects, freedom, confidence)
    constant = np.sum(variances, axis=0) < NOTHING
    # The weights sum to zero, so that ratings can take a contrast as far as half the sum of their sizes times the top.
    reach = np.abs(contrast).sum(axis=1) * means.span * (means.top or 0.0) / 2
    kept, _ = wilson(1.0, len(means.requests), confidence)
    slack = np.where((reach > 0) & (len(means.requests) > 1), (1 - kept) * reach, np.nan)
    low, high = np.where(constant, kept * effects - slack, low), np.where(constant, kept * effects + slack, high)
    return effects, low, high, constant


def _share_rows(found: Sequence[Factor], means: Means, confidence: float) -> Iterator[dict[str, Any]]:
    forms = _forms(found)
    for factor in [factor.name for factor in found] + [REST] * (REST in forms):
        form = forms.get(factor)
        facts = {"factor": factor, "covers": covered(means.condition)}
        for language in means.lacking:
            yield {"language": language, "factor": factor, "reason": "not every run has a rating in this language"}
        for i, language in enumerate(means.languages):
            if form is None:
                reason = _confounded(found, next(one for one in found if one.name == factor))
                yield {"language": language, "factor": factor, "reason": reason}
            else:
                share = _share(form, means.point[i], means.draws[:, i], confidence)
                yield facts | {"language": language} | share


def _forms(found: Sequence[Factor]) -> dict[str, Numbers]:
    """Per factor that can be told apart, and for the rest, the matrix whose quadratic form is its sum of squares."""
    whole, _ = _design(found, None)
    projection = whole @ np.linalg.pinv(whole)
    forms = {}
    for factor in found:
        if contrasts(found, factor).effects is not None:
            others = _design([one for one in found if one is not factor], None)[0] if len(found) > 1 else whole[:, :1]
            forms[factor.name] = projection - others @ np.linalg.pinv(others)
    rest = np.eye(len(whole)) - projection
    return forms | ({REST: rest} if np.trace(rest) > 0.5 else {})


def _share(form: Numbers, point: Numbers, draws: Numbers, confidence: float) -> dict[str, Any]:
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < 2:
        return {"covers": None, "reason": "too few ratings: no interval"}
    total = np.eye(len(point)) - 1 / len(point)
    noise = np.atleast_2d(np.cov(draws.T))
    forms = [(one, float(np.trace(one @ noise))) for one in (form, total)]
    own, whole = (float(point @ one @ point) - chance for one, chance in forms)
    if whole <= NOTHING:
        return {"covers": None, "reason": "the conditions do not differ by more than chance"}
    if np.trace(noise) < NOTHING:
        return {"share": own / whole, "covers": None, "reason": "nothing varies between prompts: no interval"}
    # A resampled mean has the chance of the sample and that of the resampling.
    parts = [np.einsum("bi,ij,bj->b", draws, one, draws) - 2 * chance for one, chance in forms]
    shares = np.clip(parts[0] / np.maximum(parts[1], NOTHING), 0, 1)
    low, high = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"share": min(1.0, max(0.0, own / whole)), "low": float(low), "high": float(high)}
