"""The same answers in several languages, judged in each: does a judge say the same, and where is it kinder?

The unit is an item: one answer whose content is the same in every language (`parallel_id`), on one facet. Languages are
what raters are in Fleiss (1971): kappa is 1 where a judge gives an item the same value in every language, 0 where
languages agree no more than chance. An item counts with the languages in which it has a value, two at least.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from xlift.intervals import Estimate, Numbers, estimate, prompt_draws, widened
from xlift.records import from_0_to_2
from xlift.terminal import paged

ALL = "all"


class Across(NamedTuple):
    """Fleiss' kappa of one facet (or all) over languages, with its interval or why it lacks one."""

    facet: str
    kappa: float | None
    low: float | None
    high: float | None
    items: int
    missing: int
    """Values that were not given."""
    reason: str | None = None


class Shift(NamedTuple):
    """How much higher a language's values are than those of the same items in the other languages, on the mean."""

    language: str
    shift: Estimate


Items = dict[tuple[str, str], dict[str, float | None]]
"""By answer and facet: the value in each language, from 0 to 2 whatever the scale."""


def items_of(requests: Mapping[str, str], ratings: Iterable[Mapping[str, Any]]) -> Items:
    """Ratings as items; `requests` says by id which answer it is. Others are left out."""
    items: Items = defaultdict(dict)
    for one in ratings:
        if one["id"] in requests:
            items[requests[one["id"]], one["facet"]][one["language"]] = from_0_to_2(one)
    return dict(items)


# e.g. fleiss(np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])) → 1.0
def fleiss(counts: Numbers) -> float:
    """Fleiss' kappa of how often each item was given each value, [items, values]; nan where all have the same one."""
    return float(_kappa(_sums(counts).sum(axis=0)))


def _sums(counts: Numbers) -> Numbers:
    """What kappa is made of, [items, agreement | 1 | values]: sums of items are those of their resamples."""
    given = counts.sum(axis=1)
    agreement = (counts * (counts - 1)).sum(axis=1) / (given * (given - 1))
    return np.column_stack([agreement, np.ones(len(counts)), counts])


def _kappa(sums: Numbers) -> Numbers:
    shares = sums[..., 2:] / sums[..., 2:].sum(axis=-1, keepdims=True)
    chance = (shares**2).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[..., 0] / sums[..., 1] - chance) / np.where(chance < 1, 1 - chance, np.nan))


def across_languages(items: Items, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> list[Across]:
    """Kappa over all facets and of each; the facets of an answer are resampled together."""
    facets = list(dict.fromkeys(facet for _, facet in items))
    chosen = [(ALL, items), *((one, {key: by for key, by in items.items() if key[1] == one}) for one in facets)]
    return [_across(facet, own, resamples, confidence, seed) for facet, own in chosen if own]


def _across(facet: str, items: Items, resamples: int, confidence: float, seed: int) -> Across:
    missing = sum(value is None for by in items.values() for value in by.values())
    values = sorted({value for by in items.values() for value in by.values() if value is not None})
    rows = {key: [list(by.values()).count(value) for value in values] for key, by in items.items()}
    kept = {key: row for key, row in rows.items() if sum(row) > 1}
    if not kept:
        return Across(facet, None, None, None, 0, missing, "no answer has a value in two languages")
    answers, place = np.unique([answer for answer, _ in kept], return_inverse=True)
    sums = _sums(np.array(list(kept.values()), dtype=np.float64))
    clusters = np.zeros((len(answers), sums.shape[1]))
    np.add.at(clusters, place, sums)
    kappa = float(_kappa(clusters.sum(axis=0)))
    if np.isnan(kappa):
        return Across(facet, None, None, None, len(kept), missing, "every value is the same")
    if len(answers) == 1:
        return Across(facet, kappa, None, None, len(kept), missing, "no interval: a single answer")
    drawn = _kappa(prompt_draws(len(answers), resamples, seed) @ clusters)
    low, high = widened(drawn, kappa, len(answers) - 1, confidence)
    return Across(facet, kappa, float(low), min(1.0, float(high)), len(kept), missing)


def shifts(items: Items, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> list[Shift]:
    """By language, the mean difference to the same items in the other languages, over all facets."""
    languages = list(dict.fromkeys(code for by in items.values() for code in by))
    return [Shift(code, _shift(code, items, resamples, confidence, seed)) for code in languages]


def _shift(code: str, items: Items, resamples: int, confidence: float, seed: int) -> Estimate:
    differences, clusters = [], []
    for (answer, _), by in items.items():
        others = [value for other, value in by.items() if other != code and value is not None]
        if code in by and others:
            own = by[code]
            differences.append(None if own is None else own - float(np.mean(others)))
            clusters.append(answer)
    return estimate(differences, clusters, None, resamples, confidence, seed)


def across_text(items: Items) -> str:
    """Kappa and shifts as tables for the terminal; "" where no answer was judged in two languages."""
    found, moved = across_languages(items), shifts(items)
    if len(moved) < 2:
        return ""
    answers = len({answer for answer, _ in items})
    lines = [["", "Fleiss' kappa", "items", "missing"]]
    lines += [[one.facet, _interval(one.kappa, one.low, one.high), str(one.items), str(one.missing)] for one in found]
    below = [["", "values above (+) or below (−) the other languages'"]]
    below += [[one.language, _interval(one.shift.mean, one.shift.low, one.shift.high, signed=True)] for one in moved]
    return f"{answers} answers, the same in {len(moved)} languages\n{paged(lines)}\n\n{paged(below)}"


def across_records(items: Items) -> dict[str, Any]:
    """The same for other programs."""
    moved = [{"language": one.language, **asdict(one.shift)} for one in shifts(items)]
    return {"kappa": [one._asdict() for one in across_languages(items)], "shift": moved}


# e.g. _interval(0.5, 0.25, 0.75, False) → "0.50 [0.25, 0.75]"
def _interval(value: float | None, low: float | None, high: float | None, signed: bool = False) -> str:
    if value is None:
        return "–"
    form = "{:+.2f}" if signed else "{:.2f}"
    ends = "" if low is None or high is None else f" [{form.format(low)}, {form.format(high)}]"
    return (form.format(value) + ends).replace("-", "−")
