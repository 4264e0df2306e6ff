"""The numbers of the report beyond plain shares, as plain rows: differences, curves, choices, effects, what is missing.

Everything here looks at test prompts and at the last checkpoint of each run, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import polars as pl

from xlift.analysis.agreement import agreement_tables
from xlift.analysis.calibration import calibration_table
from xlift.analysis.comparison import compare, compare_sides
from xlift.analysis.consistency import consistency, with_requests
from xlift.analysis.effects import factor_effects, variance_shares
from xlift.analysis.estimates import SETTINGS, summary
from xlift.analysis.measures import holm
from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.analysis.power import power_table
from xlift.analysis.selection import selection_table
from xlift.intervals import Estimate, estimate
from xlift.report.answered import Answered
from xlift.report.breakdown import KindRow, kind_rows
from xlift.report.overall import REFERENCE, OverallRow, checkpoint_rows, overall_rows
from xlift.report.reading import Condition, Material, Scale, language_place, setting_text, setting_texts, share_rows
from xlift.report.rows import (
    AgreementRow,
    CalibrationRow,
    CurvePoint,
    DifferenceRow,
    EffectRow,
    FactRow,
    InstructionRow,
    MarginRow,
    MeanRow,
    MissingRow,
    PersonRow,
    Range,
    SelectionRow,
    ShareRow,
    VarianceRow,
    read,
    rows_of,
)
from xlift.results import beside, instruction_table
from xlift.study.labels import OF_LORA
from xlift.study.runs import UNTUNED


class Findings(NamedTuple):
    """Rows behind the tables, figures and sentences of a report; a list is empty where there is nothing to say."""

    shares: list[ShareRow]
    validation: list[ShareRow]
    versus: list[DifferenceRow]
    gaps: list[DifferenceRow]
    overall: list[OverallRow]
    kinds: list[KindRow]
    checkpoints: list[OverallRow]
    means: list[MeanRow]
    selection: list[SelectionRow]
    effects: list[EffectRow]
    variance: list[VarianceRow]
    instructions: list[InstructionRow]
    margins: list[MarginRow]
    grammar: list[MarginRow]
    facts: list[FactRow]
    missing: list[MissingRow]
    agreement: list[AgreementRow]
    people: list[PersonRow]
    calibration: list[CalibrationRow]

    def on(self, scale: Scale) -> Findings:
        """The same with what is told by scale for this one alone."""
        names = (
            "shares",
            "validation",
            "versus",
            "gaps",
            "overall",
            "kinds",
            "checkpoints",
            "means",
            "effects",
            "variance",
        )
        return self._replace(**{name: rows_of(getattr(self, name), scale) for name in names})


def findings_of(material: Material) -> Findings:
    """All numbers of a report."""
    agreement, people = _agreement(material)
    return Findings(
        shares=share_rows(material, "test"),
        validation=share_rows(material, "validation"),
        versus=versus_rows(material),
        gaps=gap_rows(material),
        overall=overall_rows(material),
        kinds=kind_rows(material),
        checkpoints=checkpoint_rows(material),
        means=mean_rows(material),
        selection=selection_rows(material),
        effects=_effects(material, partial(factor_effects, top=1.0), EffectRow),
        variance=_effects(material, variance_shares, VarianceRow),
        instructions=instruction_rows(material),
        margins=margin_rows(material),
        grammar=grammar_rows(material),
        facts=consistency_rows(material),
        missing=missing_rows(material),
        agreement=agreement,
        people=people,
        calibration=_calibration(material),
    )


def differences(
    frame: pl.DataFrame, first: Condition, second: Condition, by: Sequence[str], resampling: dict[str, Any]
) -> list[DifferenceRow]:
    """Differences of shares between two conditions (`run`: the second); [] where either has no ratings in `frame`."""
    runs = frame.filter(pl.col("run").is_in([*first.runs, *second.runs]))
    if {row for one in (first, second) for row in one.runs} - set(runs["run"].unique()):
        return []
    found = compare(runs, first.chosen, second.chosen, by, top=1.0, **resampling).to_dicts()
    sides = {"run": second.name, "base": first.name if first.untuned else None, "untuned": None}
    return [read(DifferenceRow, {"language": ALL_LANGUAGES, **row}, **sides) for row in found]


def base_of(material: Material, condition: Condition) -> Condition | None:
    """The untuned model that a tuned condition starts from, where it has answered."""
    return next((one for one in material.conditions if one.untuned and _same_base(one, condition)), None)


def _same_base(one: Condition | MeanRow, other: Condition | MeanRow) -> bool:
    """Whether two conditions agree in all that an untuned model has: model, revision, template, …"""
    return all(one.settings[name] == other.settings[name] for name in UNTUNED if name in SETTINGS)


def versus_rows(material: Material) -> list[DifferenceRow]:
    """One row a tuned condition, scale and language: its share of the best value less the untuned model's, by prompt.

    `p_holm` is corrected over all rows of a scale.
    """
    rows: list[DifferenceRow] = []
    for condition in material.conditions:
        base = None if condition.untuned else base_of(material, condition)
        if base is not None:
            rows += differences(material.test, base, condition, ("facet", "language"), material.resampling)
    return _in_order(material, _corrected(rows))


def gap_rows(material: Material) -> list[DifferenceRow]:
    """One row a condition, scale and language: its share of the best value less that in English, request by request.

    Empty without parallel prompts. `first_mean` is English's share, `second_mean` the language's, both over the
    requests that are rated in both.
    """
    by_name = {condition.name: condition for condition in material.conditions}
    names = {run: condition.name for condition in material.conditions for run in condition.runs}
    named = pl.col("run").cast(pl.String).replace_strict(names, return_dtype=pl.Enum([*by_name]))
    test = material.test.with_columns(named=named)
    rows: list[DifferenceRow] = []
    for code in sorted(set(test["language"].unique()) - {REFERENCE}):
        # All conditions at once: one comparison each would take longer to set up than to make.
        own = [test.filter(language=side) for side in (REFERENCE, code)]
        sides = pl.concat([one.with_columns(side=pl.lit(side)) for side, one in enumerate(own)])
        found = compare_sides(sides, ["named", "facet", "rater"], top=1.0, pair="request", **material.resampling)
        for row in found.filter(pl.col("pairs") > 0).to_dicts():
            told = {"run": row["named"], "base": None, "untuned": by_name[row["named"]].untuned, "language": code}
            rows.append(read(DifferenceRow, row, **told))
    return _in_order(material, _corrected(rows))


def _corrected(rows: list[DifferenceRow]) -> list[DifferenceRow]:
    """The rows with p corrected over all that belong to one scale."""
    scales = list(dict.fromkeys((row.facet, row.rater) for row in rows))
    return [
        replace(row, p_holm=corrected)
        for own in ([row for row in rows if (row.facet, row.rater) == scale] for scale in scales)
        for row, corrected in zip(own, holm([row.p for row in own]), strict=True)
    ]


class _Ranked(Protocol):
    @property
    def run(self) -> str: ...
    @property
    def facet(self) -> str: ...
    @property
    def rater(self) -> str: ...
    @property
    def language(self) -> str: ...


Ranked = TypeVar("Ranked", bound=_Ranked)


def _in_order(material: Material, rows: list[Ranked]) -> list[Ranked]:
    scales = [(scale.facet, scale.rater) for scale in material.scales]
    names = [condition.name for condition in material.conditions]
    return sorted(
        rows,
        key=lambda row: (
            scales.index((row.facet, row.rater)),
            names.index(row.run),
            language_place(material, row.language),
        ),
    )


def mean_rows(material: Material) -> list[MeanRow]:
    """One row a condition, scale and language: share of the best value over its seeds, and how it was trained."""
    if material.tested.is_empty():
        return []
    by_first = {run: condition for condition in material.conditions for run in condition.runs}
    rows = []
    for row in summary(material.tested, ["condition", "facet", "rater", "language"], **material.resampling).to_dicts():
        condition = by_first[row["condition"]]
        share = Range(row["share_best"], row["share_best_low"], row["share_best_high"])
        told = {"run": condition.name, "settings": condition.settings, "untuned": condition.untuned}
        rows.append(read(MeanRow, row, **told, share=share))
    return _in_order(material, rows)


def curve_points(means: list[MeanRow], axis: str) -> list[CurvePoint]:
    """The means on one scale along a training choice: where it takes two values and all else is equal (`panel`).

    Rows of the untuned model, `axis` null, are there once a panel as the reference. Steps that follow from the size
    of the data are not held equal along it.
    """
    own = [row for row in means if not row.untuned]
    told = [row.settings for row in own]
    follows = axis == "size" and len({(one["size"], one["steps"]) for one in told}) == len(
        {one["size"] for one in told}
    )
    texts = {name: setting_texts(name, told) for name in SETTINGS}

    def text_of(name: str, settings: Mapping[str, Any]) -> str | None:
        # How is told with the rank: one method of several ranks has several texts.
        return setting_text(name, settings) if name == "method" else texts[name][settings[name]]

    varied = [
        name
        for name in SETTINGS
        if name != axis
        and len({text_of(name, one) for one in told if one[name] is not None or name not in OF_LORA}) > 1
        and not (name == "steps" and follows)
    ]
    groups: dict[str, list[MeanRow]] = {}
    for row in own:
        said = [text_of(name, row.settings) for name in varied]
        groups.setdefault(" · ".join(dict.fromkeys(text for text in said if text)), []).append(row)
    return [
        CurvePoint(panel, row)
        for panel, rows in groups.items()
        if len({row.settings[axis] for row in rows}) > 1
        for row in [*rows, *(one for one in means if one.untuned and _same_base(one, rows[0]))]
    ]


def selection_rows(material: Material) -> list[SelectionRow]:
    """What each rule of selection picks and what that costs, by `selection_table`; languages in the study's order."""
    if not material.measure:
        return []
    found = selection_table(material.everyone, material.training, material.measure, **material.resampling)
    rules = list(dict.fromkeys(row["rule"] for row in found))
    rows = [read(SelectionRow, row) for row in found]
    return sorted(rows, key=lambda row: (rules.index(row.rule), language_place(material, row.language)))


Contribution = TypeVar("Contribution", EffectRow, VarianceRow)


def _effects(material: Material, function: Any, kind: type[Contribution]) -> list[Contribution]:
    if len([one for one in material.conditions if not one.untuned]) < 2:
        return []
    scales = [(scale.facet, scale.rater) for scale in material.scales]
    tuned = material.axes.filter(~pl.col("untuned"))
    parts = (beside(part, tuned) for part in material.parts(material.test, untuned=False))
    found = [function(part, **material.resampling).to_dicts() for part in parts if len(part)]
    rows = [read(kind, row) for part in found for row in part]
    # Stable: factors and levels keep the order that they come in.
    return sorted(rows, key=lambda row: (scales.index((row.facet, row.rater)), language_place(material, row.language)))


def margin_rows(material: Material) -> list[MarginRow]:
    """One row a checkpoint and language: how likely the model opens in the user's language rather than in English."""
    return _margin_rows(material, lambda one: {code: margin["probability"] for code, margin in one.margins.items()})


def grammar_rows(material: Material) -> list[MarginRow]:
    """One row a checkpoint and language: the share of pairs of sentences of which the right one is the likelier."""
    return _margin_rows(material, lambda one: {code: margin["wins"] for code, margin in one.grammar.items()})


def _margin_rows(material: Material, measured_of: Callable[[Answered], dict[str, Any]]) -> list[MarginRow]:
    rows = []
    for one in material.answered:
        measured = measured_of(one)
        for code in material.languages if measured else []:
            found = Estimate(**measured[code]) if code in measured else Estimate(None, None, None, 0, 0)
            rows.append(MarginRow(one.run.label, one.run.id, one.step, code, *astuple(found)))
    return rows


def instruction_rows(material: Material) -> list[InstructionRow]:
    """Four rows a checkpoint and language: prompts and instructions followed, strictly and loosely."""
    told = instruction_table(((one.run, one.rated_by("constraint")) for one in material.answered), material.prompts)
    rows = []
    for key, own in told.filter(split="test").group_by("label", "run", "step", "language", maintain_order=True):
        for criterion in ("strict", "loose"):
            # A prompt is followed where all its instructions are; null beside false is false.
            prompts = own.group_by("id", maintain_order=True).agg(
                pl.col(criterion).all(ignore_nulls=False), pl.col("parallel_id").first()
            )
            for counted, frame in (("prompts", prompts), ("instructions", own)):
                values = frame[criterion].cast(float).to_list()
                found = estimate(values, frame["parallel_id"].to_list(), top=1.0, **material.resampling)
                rows.append(InstructionRow(*key, counted, criterion, *astuple(found)))  # type: ignore[call-arg, arg-type]
    return rows


def consistency_rows(material: Material) -> list[FactRow]:
    """One row a checkpoint and pair of languages: how alike the same facts are answered; empty without facts."""
    rows = []
    for one in material.answered:
        told = one.rated_by("answers")
        asked = [response for response in one.responses if response["split"] == "test"] if told else []
        facts = {"run": one.run.label, "id": one.run.id, "step": one.step}
        rows += [read(FactRow, pair, **facts) for pair in consistency(with_requests(told, asked))]
    return rows


def missing_rows(material: Material) -> list[MissingRow]:
    """One row a scale, reason and language: how many ratings are missing, of how many (both splits).

    Prompts that a checkpoint has not answered are of the facet and rater "response".
    """
    keys = ["facet", "rater", "kind", "language"]
    asked = {tuple(row[:4]): row[4] for row in material.ratings.group_by(keys).len().iter_rows()}
    lacking = material.ratings.filter(pl.col("value").is_null())
    lacking = lacking.with_columns(pl.col("reason").fill_null("no reason given"))
    rows = [
        read(MissingRow, row, asked=asked[tuple(row[key] for key in keys)])
        for row in lacking.group_by([*keys, "reason"]).len("count").sort([*keys, "reason"]).iter_rows(named=True)
    ]
    for code in material.languages:
        prompts = sum(prompt["language"] == code for prompt in material.prompts) * len(material.answered)
        made = sum(one.made.get(code, 0) for one in material.answered)
        if made < prompts:
            absent = ("response", "response", "response", code, "not answered yet")
            rows.append(MissingRow(*absent, count=prompts - made, asked=prompts))
    return rows


_ON_SCALE = pl.col("value").is_null() | (pl.col("value") == pl.col("value").floor())
_OF_ITEMS = ("run", "step", "id", "parallel_id", "language")
_OF_AGREEMENT = (*_OF_ITEMS, "facet", "rater", "kind", "value", "lowest", "best")


def _agreement(material: Material) -> tuple[list[AgreementRow], list[PersonRow]]:
    """Agreement between raters where a person or a judge has rated; how surface checks agree is not asked."""
    raters, asked = pl.col("rater").n_unique(), (pl.col("kind") != "check").any()
    told = material.everyone.group_by("facet").agg(asked=(raters > 1) & asked).filter("asked")
    # Who alone has rated a response agrees with nobody.
    shared = pl.len().over("facet", "run", "step", "id") > 1
    own = material.everyone.filter(pl.col("facet").is_in(told["facet"].to_list()) & _ON_SCALE).select(_OF_AGREEMENT)
    rows = own.filter((pl.col("rater").n_unique().over("facet") > 1) & shared)
    if rows.is_empty():
        return [], []
    found = agreement_tables(rows, **material.resampling)
    return [read(AgreementRow, row) for row in found["agreement"]], [read(PersonRow, row) for row in found["people"]]


def _calibration(material: Material) -> list[CalibrationRow]:
    # Calibration is of facets that are rated 0, 1 or 2.
    if "judge" not in material.everyone["kind"] or "human" not in material.everyone["kind"]:
        return []
    wanted = (pl.col("kind") != "check") & (pl.col("split") == "test") & (pl.col("lowest") == 0) & (pl.col("best") == 2)
    frame = material.everyone.filter(wanted & _ON_SCALE).select(_OF_AGREEMENT)
    if "human" not in frame["kind"]:
        return []
    judged = frame.filter((pl.col("kind") == "judge").any().over("facet"))
    parts = sorted(judged.partition_by("run", "step", as_dict=True).items(), key=lambda part: tuple(map(str, part[0])))
    found = [row for _, own in parts for row in calibration_table(own, **material.resampling)]
    return [read(CalibrationRow, row, run=material.name(row["run"], row["step"]), id=row["run"]) for row in found]


def smallest_detectable(material: Material, scale: Scale) -> float | None:
    """The median over tuned conditions and languages of the smallest difference to the untuned that would be found."""
    frame = material.test.filter((pl.col("facet") == scale.facet) & (pl.col("rater") == scale.rater))
    found: list[float] = []
    for condition in material.conditions:
        base = None if condition.untuned else base_of(material, condition)
        if base is None:
            continue
        runs = frame.filter(pl.col("run").is_in([*base.runs, *condition.runs]))
        if set(runs["run"].unique()) == {*base.runs, *condition.runs}:
            found += power_table(runs, base.chosen, condition.chosen)["detectable"].drop_nulls().to_list()
    return sorted(found)[len(found) // 2] if found else None
