"""Two runs, or two conditions, compared prompt by prompt.

A difference is the second minus the first, so that above zero the second is better. A prompt counts as a pair where
both sides have a rating of it; with several seeds a side's value is the mean over the seeds that were rated. What is
resampled, and what changes its sign in the test, is the request: translations go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import stdtr

from xlift.analysis.estimates import (
    SETTINGS,
    check_columns,
    last_steps,
    span_between,
    why_no_interval,
    with_conditions,
    with_scales,
    with_silence,
)
from xlift.analysis.measures import holm
from xlift.errors import ConfigError, DataError, nearest
from xlift.intervals import (
    NOTHING,
    PROMPTS,
    SEEDS,
    Numbers,
    draw,
    prompt_draws,
    satterthwaite,
    totals,
    variance_part,
    widened,
    wilson,
)
from xlift.terminal import paged

ENUMERATED = 20
"""Of values that are not whole numbers, all sign flips are gone through for up to so many differing requests."""
FLIPS = 20_000
"""Random sign flips where there are more."""
FINEST = 12
"""Differences in whole twelfths or coarser steps are counted exactly, however many there are."""
LONGEST_COUNTED = 1_000_000
"""Steps of the longest distribution that is counted exactly."""

COMPARISON_COLUMNS: dict[str, Any] = {
    **{"first_mean": pl.Float64, "second_mean": pl.Float64, "difference": pl.Float64},
    **{"low": pl.Float64, "high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "standardised": pl.Float64},
    **{"better": pl.Float64, "worse": pl.Float64, "tied": pl.Float64, "superiority": pl.Float64},
    **{"pairs": pl.Int64, "missing": pl.Int64, "n_prompts": pl.Int64, "first_seeds": pl.Int64},
    **{"second_seeds": pl.Int64, "covers": pl.String, "test": pl.String, "reason": pl.String},
}


PairBy = Literal["prompt", "request"]


class Pairs(NamedTuple):
    """Values of the prompts rated on both sides: prompts × runs, and each prompt's cluster, numbered from 0."""

    first: Numbers
    second: Numbers
    cluster: NDArray[np.int64]
    missing: int
    span: float | None

    @property
    def differences(self) -> Numbers:
        """Second minus first, one a prompt."""
        return self.second.mean(axis=1) - self.first.mean(axis=1)


class Variances(NamedTuple):
    """Variances of a difference of means: by the choice of prompts and, if both sides have seeds, of seeds."""

    prompts: float
    seeds: tuple[float, ...]
    freedoms: tuple[int, ...]


def compare(
    frame: pl.DataFrame,
    first: str | Mapping[str, Any],
    second: str | Mapping[str, Any],
    by: Sequence[str] = ("facet", "language"),
    rater: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    top: float | None = None,
    pair: PairBy = "prompt",
) -> pl.DataFrame:
    """One row a facet, language (or what `by` names) and rater: the paired difference, its interval, test and size.

    `first` and `second` are a run's folder name or label, or a condition: {"learning_rate": 1e-4, "size": 64}, also
    written "learning_rate=1e-4,size=64", whose runs may differ in `seed` only. Without a `step` the last checkpoint
    counts. Columns: difference = second_mean - first_mean over the pairs with `low`, `high`; `p` (two-sided) and
    `p_holm`, corrected over all rows returned; `standardised`, the difference over the standard deviation of the
    prompts' differences; `better`, `worse`, `tied`, shares of prompts by the second side; `superiority` = better +
    tied / 2; `pairs`, `missing` prompts without a value on one side or both; `covers` and `test` say what the interval
    and p allow for; `reason` why a number is not there. Raises ConfigError for names that are not there or sides that
    hold several conditions, DataError for lacking columns. Values differ by `top` at
    most, the length of the facet's scale where it is not given. Sides that differ in
    language are paired by `pair="request"`: the translations of one request, `parallel_id`.
    """
    keys = list(dict.fromkeys([*by, "rater"]))
    sides = sides_of(frame, first, second, keys, rater)
    return compare_sides(sides, keys, resamples, confidence, seed, top, pair)


def compare_sides(
    sides: pl.DataFrame,
    keys: Sequence[str],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    top: float | None = None,
    pair: PairBy = "prompt",
) -> pl.DataFrame:
    """`compare` of rows whose column `side` is 0 or 1: one row a group that `keys` make."""
    rows = [
        key | _compared(pairs, seeds, resamples, confidence, seed, pairs.span if top is None else top)
        for key, pairs, seeds in paired(sides, keys, pair)
    ]
    schema: dict[str, Any] = {**{name: sides.schema[name] for name in keys}, **COMPARISON_COLUMNS}
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)


def paired(
    sides: pl.DataFrame, keys: Sequence[str], pair: PairBy = "prompt"
) -> Iterator[tuple[dict[str, Any], Pairs, bool]]:
    """For each group that `keys` make of rows with a column `side`: which it is, its pairs, and whether an interval can
    cover seeds."""
    prompt = ["facet", "parallel_id"] if pair == "request" else ["facet", "language", "id", "parallel_id"]
    scales = with_scales(sides).group_by(keys).agg(pl.struct("lowest", "best").unique())
    spans = {tuple(key): span_between([tuple(one.values()) for one in found]) for *key, found in scales.iter_rows()}
    cells = sides.group_by(list(dict.fromkeys([*keys, *prompt, "side", "run"]))).agg(
        pl.col("value").mean(), pl.col("untuned").first()
    )
    cells = cells.with_columns(place=pl.struct(prompt).rank("dense") - 1).sort("place", "side", "run")
    for key, own in sorted(cells.partition_by(keys, as_dict=True).items(), key=lambda item: repr(item[0])):
        yield dict(zip(keys, key, strict=True)), *_pairs(own, spans[key])


def sides_of(
    frame: pl.DataFrame,
    first: str | Mapping[str, Any],
    second: str | Mapping[str, Any],
    keys: Sequence[str],
    rater: str | None = None,
) -> pl.DataFrame:
    """The ratings of two sides with a column `side`, 0 and 1. Raises as `compare` does."""
    check_columns(
        frame, [*keys, "id", "parallel_id", "language", "value", "label", "untuned", "step", "facet", "rater"]
    )
    if frame.is_empty():
        raise DataError("there are no ratings to compare", "xlift run STUDY.yaml makes them")
    return _sides(_of_rater(with_silence(with_conditions(frame)), rater), first, second)


def _of_rater(frame: pl.DataFrame, rater: str | None) -> pl.DataFrame:
    raters = frame["rater"].unique().to_list()
    if rater is not None and rater not in raters:
        raise ConfigError(f"no ratings by '{rater}'; {nearest(rater, raters)}")
    return frame if rater is None else frame.filter(pl.col("rater") == rater)


def _sides(frame: pl.DataFrame, *names: str | Mapping[str, Any]) -> pl.DataFrame:
    """The rows of both sides with a column `side`, 0 and 1. Raises ConfigError with what is wrong with either."""
    found, problems = [], []
    for side, name in enumerate(names):
        rows = last_steps(chosen(frame, name)) if "step" not in _condition(frame, name) else chosen(frame, name)
        problems += _problems(frame, rows, name)
        found.append(rows.with_columns(side=pl.lit(side)))
    if problems:
        raise ConfigError(problems, "name a run, or a condition such as learning_rate=1e-4,size=64")
    if found[0].drop("side").equals(found[1].drop("side")):
        told = " and ".join(f"'{_written(name)}'" for name in dict.fromkeys(map(_written, names)))
        raise ConfigError(f"both sides are the same, {told}: nothing differs", "xlift ls STUDY shows the runs")
    return pl.concat(found)


def _problems(frame: pl.DataFrame, rows: pl.DataFrame, name: str | Mapping[str, Any]) -> list[str]:
    if rows.is_empty():
        names = {*frame["run"].unique(), *frame["label"].unique()}
        return [f"no ratings of '{_written(name)}'; {nearest(_written(name), names)}"]
    runs = sorted(rows["run"].unique())
    if "label" in _condition(frame, name) and len(runs) > 1:
        return [f"'{_written(name)}' is what {len(runs)} runs are called: {', '.join(runs)}; say which"]
    conditions = sorted(rows["condition"].unique())
    if len(conditions) > 1:
        return [f"'{_written(name)}' holds {len(conditions)} conditions: {', '.join(conditions)}; say which"]
    return []


# e.g. _written({"learning_rate": 1e-4, "size": 64}) → "learning_rate=0.0001,size=64"
def _written(name: str | Mapping[str, Any]) -> str:
    return name if isinstance(name, str) else ",".join(f"{key}={value}" for key, value in name.items())


def chosen(frame: pl.DataFrame, name: str | Mapping[str, Any]) -> pl.DataFrame:
    """The rows of a run (by folder name or label) or of a condition. Raises ConfigError for a column not there."""
    condition = _condition(frame, name)
    for key, value in condition.items():
        column = pl.col(key)
        if value is None:
            frame = frame.filter(column.is_null())
        elif isinstance(value, float):
            # 3e-4 and 3 * 1e-4 are not the same number.
            frame = frame.filter(column.is_close(value, rel_tol=1e-6))
        else:
            frame = frame.filter(column == value)
    return frame


def _condition(frame: pl.DataFrame, name: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns and values that a name stands for."""
    if not isinstance(name, str):
        unknown = [key for key in name if key not in frame.columns]
    elif name in frame["run"]:
        return {"run": name}
    elif name in frame["label"] or "=" not in name:
        return {"label": name}
    else:
        parts = dict(part.strip().partition("=")[::2] for part in name.split(","))
        unknown = [key for key in parts if key not in frame.columns]
        name = {} if unknown else {key: _typed(frame, key, text) for key, text in parts.items()}
    if unknown:
        choices = [*SETTINGS, "run", "label", "step", "seed"]
        raise ConfigError([f"no column '{key}'; {nearest(key, choices)}" for key in unknown])
    return name


def _typed(frame: pl.DataFrame, key: str, text: str) -> Any:
    if text.lower() in {"none", "null", ""}:
        return None
    if frame.schema[key] == pl.Boolean:
        value = {"true": True, "on": True, "false": False, "off": False}.get(text.lower())
    else:
        value = pl.Series([text]).cast(frame.schema[key], strict=False)[0]
    if value is None:
        raise ConfigError(f"'{key}={text}': not a value of this column ({frame.schema[key]})")
    return value


def _pairs(cells: pl.DataFrame, span: float | None) -> tuple[Pairs, bool]:
    """Values of the prompts of one group, and whether an interval can cover seeds.

    It can if each side has two seeds or more, or is an untuned model, which has none, beside one that has. By numpy
    alone: a report looks at many small groups.
    """
    _, at, place = np.unique(cells["place"].to_numpy(), return_index=True, return_inverse=True)
    value, run = cells["value"].to_numpy().astype(float), cells["run"].to_numpy().astype(str)
    sides = [cells["side"].to_numpy() == side for side in (0, 1)]
    values = [_matrix(place[own], run[own], value[own], len(at)) for own in sides]
    kept = np.all([np.isfinite(one).any(axis=1) for one in values], axis=0)
    first, second = (_filled(one[kept]) for one in values)
    _, cluster = np.unique(cells["parallel_id"].to_numpy()[at][kept].astype(str), return_inverse=True)
    untuned = cells["untuned"].to_numpy()
    seeded = [all(untuned[own]) or one.shape[1] > 1 for own, one in zip(sides, (first, second), strict=True)]
    seeds = all(seeded) and max(first.shape[1], second.shape[1]) > 1
    return Pairs(first, second, cluster, len(at) - int(kept.sum()), span), seeds


def _matrix(place: NDArray[Any], run: NDArray[Any], value: Numbers, prompts: int) -> Numbers:
    """Prompts × runs, nan where there is no value; runs without any are left out."""
    rated = np.isfinite(value)
    runs, column = np.unique(run[rated], return_inverse=True)
    found = np.full((prompts, len(runs)), np.nan)
    found[place[rated], column] = value[rated]
    return found


# e.g. _filled(np.array([[1.0, np.nan], [0.0, 2.0]])).tolist() → [[1.0, 1.0], [0.0, 2.0]]
def _filled(values: Numbers) -> Numbers:
    # A gap takes the prompt's mean over the other seeds, so that both sides stay means over the same prompts.
    return np.where(np.isfinite(values), values, np.nanmean(values, axis=1, keepdims=True)) if values.size else values


def _compared(
    pairs: Pairs, seeds: bool, resamples: int, confidence: float, seed: int, top: float | None
) -> dict[str, Any]:
    differences = pairs.differences if pairs.cluster.size else np.zeros(0)
    row: dict[str, Any] = dict.fromkeys(COMPARISON_COLUMNS) | {
        **{"pairs": len(differences), "missing": pairs.missing, "n_prompts": len(np.unique(pairs.cluster))},
        **{"first_seeds": pairs.first.shape[1], "second_seeds": pairs.second.shape[1]},
    }
    if not len(differences):
        return row | {"reason": f"none of {pairs.missing} prompts is rated on both sides"}
    row |= {"first_mean": float(pairs.first.mean()), "second_mean": float(pairs.second.mean())}
    row |= {"difference": float(differences.mean())} | _sizes(differences)
    parts = variances_of(pairs, seeds)
    low, high = _possible(_interval(pairs, parts, resamples, confidence, seed, top), top)
    row |= {"low": low, "high": high, "covers": None if low is None else SEEDS if parts.seeds else PROMPTS}
    p, test = _tested(pairs, parts, seed)
    reasons = [] if low is not None else [why_no_interval(row["n_prompts"], "differences")]
    reasons += [] if row["standardised"] is not None else ["all differences are equal: no standardised difference"]
    return row | {"p": p, "test": test, "reason": "; ".join(reasons) or None}


# e.g. _possible((0.55, 1.02), 1.0) → (0.55, 1.0)
def _possible(bounds: tuple[float | None, float | None], top: float | None) -> tuple[float | None, float | None]:
    low, high = bounds
    return bounds if top is None or low is None or high is None else (max(-top, low), min(top, high))


# e.g. _sizes(np.array([1.0, 0.0, 0.0, -1.0]))["superiority"] → 0.5
def _sizes(differences: Numbers) -> dict[str, Any]:
    better, worse = float((differences > 0).mean()), float((differences < 0).mean())
    tied = float((differences == 0).mean())
    deviation = float(differences.std(ddof=1)) if np.ptp(differences) > 0 else None
    standardised = None if deviation is None else float(differences.mean()) / deviation
    return {"standardised": standardised, "better": better, "worse": worse, "tied": tied} | {
        "superiority": better + tied / 2
    }


def variances_of(pairs: Pairs, seeds: bool) -> Variances:
    """The variances of the mean difference, of whole requests and, if `seeds`, of the runs of either side."""
    differences = pairs.differences
    requests = totals(pairs.cluster, differences - differences.mean()) / len(differences)
    prompts, freedom = variance_part(requests)
    sides = [side.mean(axis=0) / side.shape[1] for side in (pairs.first, pairs.second) if seeds and side.shape[1] > 1]
    parts = [variance_part(side) for side in sides]
    return Variances(float(prompts), tuple(float(v) for v, _ in parts), (freedom, *[f for _, f in parts]))


def _interval(
    pairs: Pairs, parts: Variances, resamples: int, confidence: float, seed: int, top: float | None
) -> tuple[float | None, float | None]:
    differences, clusters = pairs.differences, int(pairs.cluster.max()) + 1
    if clusters == 1:
        return None, None
    if parts.prompts + sum(parts.seeds) < NOTHING:
        return _interval_of_equals(pairs, clusters, confidence, top)
    prompts = prompt_draws(clusters, resamples, seed)
    counts = prompts @ np.bincount(pairs.cluster)
    means = []
    for side, values in enumerate((pairs.first, pairs.second)):
        sums = np.stack([totals(pairs.cluster, run) for run in values.T], axis=1)
        runs = np.ones((1, values.shape[1]))
        if parts.seeds:
            runs = draw(values.shape[1], resamples, np.random.default_rng([seed, 2, side]))
        means.append((prompts @ sums * runs).sum(axis=1) / (counts * runs.sum(axis=1)))
    freedom = satterthwaite([parts.prompts, *parts.seeds], parts.freedoms)
    low, high = widened(means[1] - means[0], differences.mean(), freedom, confidence)
    return float(low), float(high)


def _interval_of_equals(
    pairs: Pairs, clusters: int, confidence: float, top: float | None
) -> tuple[float | None, float | None]:
    # The bound is on the share of requests that would have differed, at worst from one end of the scale to the other.
    if top is None or not all(((side >= 0) & (side <= top)).all() for side in (pairs.first, pairs.second)):
        return None, None
    kept, _ = wilson(1.0, clusters, confidence)
    centre = kept * float(pairs.differences.mean())
    return centre - top * (1 - kept), centre + top * (1 - kept)


def _tested(pairs: Pairs, parts: Variances, seed: int) -> tuple[float, str]:
    variance = parts.prompts + sum(parts.seeds)
    if parts.seeds and variance > NOTHING:
        freedom = satterthwaite([parts.prompts, *parts.seeds], parts.freedoms)
        return float(2 * stdtr(freedom, -abs(pairs.differences.mean()) / np.sqrt(variance))), f"t, {SEEDS}"
    requests = totals(pairs.cluster, pairs.differences)
    return sign_flip_test(requests, np.random.default_rng([seed, 3]))


# e.g. sign_flip_test(np.array([1.0, 1.0, 0.0, 1.0, 1.0]), np.random.default_rng(0)) → (0.125, "exact, prompts")
def sign_flip_test(differences: Numbers, generator: np.random.Generator) -> tuple[float, str]:
    """Two-sided p of the sum of paired differences, whose signs are arbitrary if the sides are alike (Fisher 1935).

    Whole numbers, or multiples of a common fraction, are counted exactly for any number of pairs; other values by going
    through all flips, or random ones (p = (1 + hits) / (1 + flips)) from `generator`. Also says which it was.
    """
    differing = np.sort(np.abs(differences[np.abs(differences) > 1e-12]))
    observed = abs(float(differences.sum()))
    steps = _whole_steps(differing)
    if steps is not None:
        return _exact(steps, round(observed / differing[0] * steps[0]) if len(steps) else 0), f"exact, {PROMPTS}"
    # Sums that are equal but for rounding count as equally far.
    near = observed - 1e-9 * differing.sum()
    if len(differing) <= ENUMERATED:
        sums = np.zeros(1)
        for size in differing:
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= near).mean()), f"exact, {PROMPTS}"
    signs = generator.integers(0, 2, size=(FLIPS, len(differing))) * 2.0 - 1.0
    hits = int((np.abs(signs @ differing) >= near).sum())
    return (1 + hits) / (1 + FLIPS), f"{FLIPS} random flips, {PROMPTS}"


# e.g. _whole_steps(np.array([0.5, 0.25])).tolist() → [2, 1]
# e.g. _whole_steps(np.array([0.1, np.pi])) is None → True
def _whole_steps(sizes: Numbers) -> NDArray[np.int64] | None:
    """The sizes as whole multiples of a common step, None where there is none or too many would be needed."""
    for parts in range(1, FINEST + 1):
        whole = np.rint(sizes * parts)
        if np.abs(sizes * parts - whole).max(initial=0.0) < 1e-9 and whole.sum() * 2 < LONGEST_COUNTED:
            steps = whole.astype(np.int64)
            return steps // max(1, int(np.gcd.reduce(steps)))
    return None


# e.g. _exact(np.array([1, 1, 1]), 3) → 0.25
def _exact(steps: NDArray[np.int64], observed: int) -> float:
    """Share of sign flips whose sum is at least as far from 0, by adding one size after another."""
    chance = np.ones(1)
    for size in steps:
        # `chance[i]` is that of the sum i - n, n being all sizes so far: half of each goes `size` down, half up.
        longer = np.zeros(len(chance) + 2 * int(size))
        longer[: len(chance)] += chance / 2
        longer[2 * int(size) :] += chance / 2
        chance = longer
    sums = np.arange(len(chance)) - len(chance) // 2
    return min(1.0, float(chance[np.abs(sums) >= observed].sum()))


def comparison_text(found: pl.DataFrame, first: str = "first", second: str = "second") -> str:
    """The result of `compare` as lines for the terminal, one a row, under a head that names both sides."""
    keys = found.columns[: found.columns.index("first_mean")]
    heads = ["lang" if key == "language" else key for key in keys]
    head = [*heads, first, second, "difference", "p (Holm)", "better/tied/worse", "pairs", "missing"]
    return paged([head, *[_cells(row, keys) for row in found.iter_rows(named=True)]], keep=len(keys))


def _cells(row: dict[str, Any], keys: Sequence[str]) -> list[str]:
    named, counted = [str(row[key]) for key in keys], [str(row["pairs"]), str(row["missing"])]
    if row["difference"] is None:
        return [*named, "–", "–", "–", "–", "–", *counted]
    bounds = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    shares = "/".join(f"{100 * row[name]:.0f}" for name in ("better", "tied", "worse"))
    p = "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
    means = [f"{row['first_mean']:.2f}", f"{row['second_mean']:.2f}"]
    return [*named, *means, f"{row['difference']:+.2f}{bounds}", p, f"{shares} %", *counted]
