"""The numbers of the report beyond plain shares, as plain rows: differences, curves, choices, effects, what is missing.

Everything here looks at test prompts and at the last checkpoint of each run, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from xlift.analysis.agreement import agreement_tables
from xlift.analysis.calibration import calibration_table
from xlift.analysis.comparison import compare
from xlift.analysis.consistency import consistency, with_requests
from xlift.analysis.effects import factor_effects, variance_shares
from xlift.analysis.estimates import SETTINGS, summary, with_conditions
from xlift.analysis.measures import holm
from xlift.analysis.power import power_table
from xlift.analysis.selection import selection_table
from xlift.intervals import Estimate
from xlift.report.reading import (
    Condition,
    Material,
    Scale,
    language_place,
    setting_text,
    share_rows,
)

REFERENCE = "en"
"""The language that the others are compared with."""


class Findings(NamedTuple):
    """Rows behind the tables, figures and sentences of a report; a list is empty where there is nothing to say."""

    shares: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    versus: list[dict[str, Any]]
    gaps: list[dict[str, Any]]
    means: list[dict[str, Any]]
    selection: list[dict[str, Any]]
    effects: list[dict[str, Any]]
    variance: list[dict[str, Any]]
    margins: list[dict[str, Any]]
    facts: list[dict[str, Any]]
    missing: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    people: list[dict[str, Any]]
    calibration: list[dict[str, Any]]


def findings_of(material: Material) -> Findings:
    """All numbers of a report."""
    agreement = _agreement(material)
    return Findings(
        shares=share_rows(material, "test"),
        validation=share_rows(material, "validation"),
        versus=versus_rows(material),
        gaps=gap_rows(material),
        means=mean_rows(material),
        selection=selection_rows(material),
        effects=_effects(material, factor_effects),
        variance=_effects(material, variance_shares),
        margins=margin_rows(material),
        facts=consistency_rows(material),
        missing=missing_rows(material),
        agreement=agreement["agreement"],
        people=agreement["people"],
        calibration=_calibration(material),
    )


def difference_rows(
    frame: pl.DataFrame, first: Condition, second: Condition, by: Sequence[str], resampling: dict[str, Any]
) -> list[dict[str, Any]]:
    """Differences of shares between two conditions as plain rows; empty where either has no ratings in `frame`."""
    runs = frame.filter(pl.col("run").is_in([*first.runs, *second.runs]))
    if {row for one in (first, second) for row in one.runs} - set(runs["run"]):
        return []
    return _compared(runs, first.chosen, second.chosen, by, resampling)


def _compared(
    frame: pl.DataFrame, first: dict[str, Any], second: dict[str, Any], by: Sequence[str], resampling: dict[str, Any]
) -> list[dict[str, Any]]:
    # Compared as 0 and 2, the ends of the scale that `compare` takes for granted, and halved.
    rows = compare(frame.with_columns(pl.col("value") * 2), first, second, by, **resampling).to_dicts()
    halved = ("first_mean", "second_mean", "difference", "low", "high")
    return [row | {name: None if row[name] is None else row[name] / 2 for name in halved} for row in rows]


def base_of(material: Material, condition: Condition) -> Condition | None:
    """The untuned model that a tuned condition starts from, where it has answered."""
    same = ("model", "template", "system")
    for one in material.conditions:
        if one.untuned and all(one.settings[name] == condition.settings[name] for name in same):
            return one
    return None


def versus_rows(material: Material) -> list[dict[str, Any]]:
    """One row a tuned condition, scale and language: its share of 2 less that of the untuned model, prompt by prompt.

    `p_holm` is corrected over all rows of a scale.
    """
    rows = []
    for condition in material.conditions:
        base = None if condition.untuned else base_of(material, condition)
        if base is not None:
            found = difference_rows(material.test, base, condition, ("facet", "language"), material.resampling)
            rows += [{"run": condition.name, "base": base.name, **row} for row in found]
    return _in_order(material, _corrected(rows))


def gap_rows(material: Material) -> list[dict[str, Any]]:
    """One row a condition, scale and language: its share of 2 less that in English, request by request.

    Empty without parallel prompts. `first_mean` is English's share, `second_mean` the language's, both over the
    requests that are rated in both.
    """
    rows = []
    for condition in material.conditions:
        own = material.test.filter(pl.col("run").is_in(condition.runs))
        english = own.filter(pl.col("language") == REFERENCE)
        others = [code for code in own["language"].unique() if code != REFERENCE]
        if english.is_empty() or not others:
            continue
        # Language takes the place of the run, and the request that of the prompt.
        sides = [
            part.with_columns(side=pl.lit(side), id="parallel_id", language=pl.lit(code))
            for code in others
            for side, part in ((REFERENCE, english), ("other", own.filter(pl.col("language") == code)))
        ]
        both = pl.concat(sides).with_columns(run=pl.col("run") + " " + pl.col("side"), template=pl.col("side"))
        chosen = {"template": REFERENCE}, {"template": "other"}
        found = _compared(both, *chosen, ("facet", "language"), material.resampling)
        rows += [{"run": condition.name, "untuned": condition.untuned, **row} for row in found if row["pairs"]]
    return _in_order(material, _corrected(rows))


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p corrected over all that belong to one scale."""
    scales = dict.fromkeys((row["facet"], row["rater"]) for row in rows)
    for scale in scales:
        own = [row for row in rows if (row["facet"], row["rater"]) == scale]
        for row, corrected in zip(own, holm([row["p"] for row in own]), strict=True):
            row["p_holm"] = corrected
    return rows


def _in_order(material: Material, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scales = [(scale.facet, scale.rater) for scale in material.scales]
    names = [condition.name for condition in material.conditions]
    return sorted(
        rows,
        key=lambda row: (
            scales.index((row["facet"], row["rater"])),
            names.index(row["run"]),
            language_place(material, row["language"]),
        ),
    )


def mean_rows(material: Material) -> list[dict[str, Any]]:
    """One row a condition, scale and language: share of 2 over its seeds, and how the condition was trained."""
    if material.tested.is_empty():
        return []
    frame = with_conditions(material.tested)
    by_first = {run: condition for condition in material.conditions for run in condition.runs}
    found = summary(frame, ["condition", "facet", "rater", "language"], **material.resampling).to_dicts()
    rows = []
    for row in found:
        condition = by_first[row.pop("condition")]
        rows.append({"run": condition.name, **condition.settings, **row})
    return _in_order(material, rows)


def curve_rows(material: Material, means: list[dict[str, Any]], scale: Scale, axis: str) -> list[dict[str, Any]]:
    """The rows of `mean_rows` along a training choice: where it takes two values and all else is equal (`panel`).

    Rows of the untuned model, `axis` null, are there once a panel as the reference. Steps that follow from the size
    of the data are not held equal along it.
    """
    own = [row for row in means if (row["facet"], row["rater"]) == (scale.facet, scale.rater) and not row["untuned"]]
    follows = axis == "size" and len({(row["size"], row["steps"]) for row in own}) == len({row["size"] for row in own})
    varied = [
        name
        for name in SETTINGS
        if name != axis and len({setting_text(name, row) for row in own}) > 1 and not (name == "steps" and follows)
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in own:
        said = [setting_text(name, row) for name in varied]
        groups.setdefault(" · ".join(dict.fromkeys(text for text in said if text)), []).append(row)
    return [
        {**row, "panel": panel}
        for panel, rows in groups.items()
        if len({row[axis] for row in rows}) > 1
        for row in [*rows, *_references(means, rows[0], scale)]
    ]


def _references(means: list[dict[str, Any]], tuned: dict[str, Any], scale: Scale) -> list[dict[str, Any]]:
    same = {"model": tuned["model"], "template": tuned["template"], "system": tuned["system"], "untuned": True}
    same |= {"facet": scale.facet, "rater": scale.rater}
    return [row for row in means if all(row[name] == value for name, value in same.items())]


def selection_rows(material: Material) -> list[dict[str, Any]]:
    """What each rule of selection picks and what that costs, by `selection_table`; languages in the study's order."""
    if not material.measure:
        return []
    rows = selection_table(material.everyone, material.training, material.measure, **material.resampling)
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    place = partial(language_place, material)
    return sorted(rows, key=lambda row: (rules.index(row["rule"]), place(row["language"])))


def _effects(material: Material, function: Any) -> list[dict[str, Any]]:
    tuned = material.test.filter(~pl.col("untuned"))
    if len([one for one in material.conditions if not one.untuned]) < 2:
        return []
    rows = function(tuned, **material.resampling).to_dicts()
    scales = [(scale.facet, scale.rater) for scale in material.scales]
    # Stable: factors and levels keep the order that they come in.
    return sorted(
        rows,
        key=lambda row: (scales.index((row["facet"], row["rater"])), language_place(material, row["language"])),
    )


def margin_rows(material: Material) -> list[dict[str, Any]]:
    """One row a checkpoint and language: how likely the model opens in the user's language rather than in English."""
    rows = []
    for one in material.answered:
        measured = {code: margin["probability"] for code, margin in one.margins.items()}
        for code in material.languages if measured else []:
            found = Estimate(**measured[code]) if code in measured else Estimate(None, None, None, 0, 0)
            facts = {"run": one.run.label, "id": one.run.id, "step": one.step, "language": code}
            rows.append(facts | asdict(found))
    return rows


def consistency_rows(material: Material, split: str = "test") -> list[dict[str, Any]]:
    """One row a checkpoint and pair of languages: how alike the same facts are answered; empty without facts."""
    rows = []
    for one in material.answered:
        asked = [response for response in one.responses if response["split"] == split]
        facts = {"run": one.run.label, "id": one.run.id, "step": one.step}
        rows += [facts | pair for pair in consistency(with_requests(one.ratings, asked))]
    return rows


def missing_rows(material: Material) -> list[dict[str, Any]]:
    """One row a scale, reason and language: how many ratings are missing, of how many (both splits).

    Prompts that a checkpoint has not answered are of the facet and rater "response".
    """
    keys = ["facet", "rater", "kind", "language"]
    asked = {tuple(row[:4]): row[4] for row in material.ratings.group_by(keys).len().iter_rows()}
    lacking = material.ratings.filter(pl.col("value").is_null())
    lacking = lacking.with_columns(pl.col("reason").fill_null("no reason given"))
    rows: list[dict[str, Any]] = [
        {**row, "asked": asked[tuple(row[key] for key in keys)]}
        for row in lacking.group_by([*keys, "reason"]).len("count").sort([*keys, "reason"]).iter_rows(named=True)
    ]
    for code in material.languages:
        prompts = sum(prompt["language"] == code for prompt in material.prompts) * len(material.answered)
        made = sum(response["language"] == code for one in material.answered for response in one.responses)
        if made < prompts:
            facts = {"facet": "response", "rater": "response", "kind": "response", "reason": "not answered yet"}
            rows.append(facts | {"language": code, "count": prompts - made, "asked": prompts})
    return rows


def _on_scale(material: Material) -> pl.DataFrame:
    value = pl.col("value")
    return material.everyone.filter(value.is_null() | value.is_in([0.0, 1.0, 2.0]))


def _agreement(material: Material) -> dict[str, list[dict[str, Any]]]:
    """Agreement between raters where a person or a judge has rated; how surface checks agree is not asked."""
    frame = _on_scale(material)
    others = frame.filter(pl.col("kind") != "check")["facet"].unique()
    rows = frame.filter(pl.col("facet").is_in(others.implode())).to_dicts()
    if not rows:
        return {"agreement": [], "people": []}
    return agreement_tables(rows, **material.resampling)


def _calibration(material: Material) -> list[dict[str, Any]]:
    rows = _on_scale(material).filter((pl.col("kind") != "check") & (pl.col("split") == "test")).to_dicts()
    found = calibration_table(rows, **material.resampling) if any(row["kind"] == "human" for row in rows) else []
    return [{**row, "run": material.name(row["run"], row["step"]), "id": row["run"]} for row in found]


def detectable(material: Material, scale: Scale) -> float | None:
    """The median over tuned conditions and languages of the smallest difference to the untuned that would be found."""
    frame = material.test.filter((pl.col("facet") == scale.facet) & (pl.col("rater") == scale.rater))
    found: list[float] = []
    for condition in material.conditions:
        base = None if condition.untuned else base_of(material, condition)
        if base is None:
            continue
        runs = frame.filter(pl.col("run").is_in([*base.runs, *condition.runs]))
        if set(runs["run"]) == {*base.runs, *condition.runs}:
            found += power_table(runs, base.chosen, condition.chosen)["detectable"].drop_nulls().to_list()
    return sorted(found)[len(found) // 2] if found else None
