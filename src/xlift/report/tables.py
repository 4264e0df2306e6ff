"""The tables of the report: what stands in which column, made from the rows of findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from xlift.analysis.agreement import HEADINGS, MEASURES
from xlift.report.formats import Column, Form, ReportTable, Value
from xlift.report.numbers import Findings
from xlift.report.overall import REFERENCE
from xlift.report.reading import Material, Scale, language_name, measure_text, rater_name
from xlift.report.rows import (
    AgreementRow,
    CalibrationRow,
    DifferenceRow,
    EffectRow,
    FactRow,
    InstructionRow,
    MarginRow,
    MissingRow,
    PersonRow,
    Range,
    SelectionRow,
    ShareRow,
    VarianceRow,
    record,
)
from xlift.study.labels import learning_rate_text


class _OnScale(Protocol):
    @property
    def facet(self) -> str: ...
    @property
    def rater(self) -> str: ...


class _InLanguage(Protocol):
    @property
    def language(self) -> str: ...


OnScale = TypeVar("OnScale", bound=_OnScale)
InLanguage = TypeVar("InLanguage", bound=_InLanguage)


def rows_of(rows: Sequence[OnScale], scale: Scale) -> list[OnScale]:
    """The rows that belong to a scale."""
    return [row for row in rows if (row.facet, row.rater) == (scale.facet, scale.rater)]


def confidence_text(material: Material) -> str:
    """The confidence of all intervals: 95 %."""
    return f"{material.workspace.study.report.confidence * 100:g} %"


def _value(found: Range, note: str = "") -> Value:
    return Value(*found, note)


def _records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [record(row) for row in rows]


class Wide:
    """A table with a line a name and a cell a language, of rows with one language each."""

    def __init__(
        self,
        material: Material,
        rows: Sequence[InLanguage],
        name: Callable[[InLanguage], tuple[str, str]],
        cell: Callable[[InLanguage], Value],
        form: Form,
        first: str = "run",
    ) -> None:
        """`name` gives a row's line: what tells it from others, and what people read."""
        codes = [code for code in material.languages if any(row.language == code for row in rows)]
        self.columns = [Column(first), *(Column(language_name(code), form) for code in codes)]
        told: dict[str, tuple[str, dict[str, Value]]] = {}
        for row in rows:
            key, shown = name(row)
            told.setdefault(key, (shown, {}))[1][row.language] = cell(row)
        self.names = list(told)
        self.lines = [[Value(shown), *(own.get(code, Value()) for code in codes)] for shown, own in told.values()]

    def insert(self, place: int, column: Column, values: dict[str, Value]) -> None:
        """One more column, by what tells the lines apart."""
        self.columns.insert(place, column)
        for name, line in zip(self.names, self.lines, strict=True):
            line.insert(place, values[name])


def _counted(rated: int, missing: int) -> str:
    """How many went in and how many are missing, in short."""
    return ", ".join(part for part in (f"of {rated}" if rated else "", _missing(missing)) if part)


def _missing(count: int) -> str:
    return f"{count} missing" if count else ""


def share_table_of(material: Material, rows: Sequence[ShareRow], scale: Scale, split: str) -> ReportTable | None:
    """The shares of 2 on one scale: a row a checkpoint, a column a language."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        f"{split.capitalize()} prompts: share of responses with the value 2, {confidence_text(material)} interval. "
        "Responses that could not be rated are left out and counted as missing, never as wrong."
    )
    name = f"shares-{scale.slug}" + ("" if split == "test" else f"-{split}")
    wide = Wide(
        material,
        own,
        lambda row: _checkpoint(material, row.id, row.step),
        lambda row: _value(row.share, _counted(row.rated, row.missing)),
        "share",
    )
    return ReportTable(name, f"{scale.title}: {split} prompts", note, wide.columns, wide.lines, _records(own))


def _checkpoint(material: Material, run: str, step: int) -> tuple[str, str]:
    return f"{run} {step}", material.name(run, step)


def versus_table(material: Material, rows: Sequence[DifferenceRow], scale: Scale) -> ReportTable | None:
    """The difference that tuning makes on one scale."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        "Test prompts: share of 2 less that of the untuned model, in percentage points, paired by prompt, with "
        f"{confidence_text(material)} interval; p by sign flips, corrected over this table (Holm)."
    )
    columns = [
        Column("run"),
        Column("language"),
        Column("difference", "points"),
        Column("p (Holm)", "p"),
        Column("pairs", "count"),
    ]
    lines = [
        [
            Value(row.run),
            Value(language_name(row.language)),
            _value(row.points, (row.reason or "") if row.low is None else ""),
            Value(row.p_holm),
            Value(row.pairs, note=_missing(row.missing)),
        ]
        for row in own
    ]
    title = f"{scale.title}: what tuning changes"
    return ReportTable(f"versus-base-{scale.slug}", title, note, columns, lines, _records(own))


def gap_table(material: Material, rows: Sequence[DifferenceRow], scale: Scale) -> ReportTable | None:
    """The transfer gap on one scale: other languages less English."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        "Test prompts: share of 2 in the language less that in English, in percentage points, over requests rated in "
        f"both, with {confidence_text(material)} interval. Below zero, users of the language are served worse."
    )
    wide = Wide(
        material,
        own,
        lambda row: (row.run, row.run),
        lambda row: _value(row.points, ", ".join(filter(None, (f"{row.pairs} pairs", _missing(row.missing))))),
        "points",
    )
    return ReportTable(
        f"gap-{scale.slug}", f"{scale.title}: beside English", note, wide.columns, wide.lines, _records(own)
    )


def selection_tables(material: Material, rows: Sequence[SelectionRow]) -> list[ReportTable]:
    """What each rule picks, what the pick scores, and what the choice costs."""
    if not rows:
        return []
    seen = f"{confidence_text(material)} interval over requests"
    picks = {
        row.rule: Value(material.name(row.run, row.step), note=f"{row.tied} tied" if row.tied > 1 else "")
        for row in rows
    }
    worst = {rule: Value(max(row.regret or 0 for row in rows if row.rule == rule)) for rule in picks}

    def by_rule(cell: Callable[[SelectionRow], Value], form: Form) -> Wide:
        return Wide(material, rows, lambda row: (row.rule, row.rule), cell, form, "rule")

    score = by_rule(lambda row: _value(row.scored, f"of {row.rated}" if row.rated else ""), "share")
    score.insert(1, Column("picks"), picks)
    cost = by_rule(lambda row: _value(row.costs), "points")
    cost.insert(1, Column("picks"), {rule: pick._replace(note="") for rule, pick in picks.items()})
    cost.insert(len(cost.columns), Column("regret, worst language", "points"), worst)
    chosen = (
        f"Chosen on validation prompts among {rows[0].candidates} checkpoints; share of 2 "
        f"({measure_text(material.measure)}) on test prompts, {seen}."
    )
    costs = (
        "Test prompts: share of 2 of the pick by “mean over languages” less that of this rule's pick, in percentage "
        f"points, paired by prompt, {seen}: above zero, this rule's users are served worse. Regret: the best candidate "
        "on test prompts less the pick (known only afterwards, no interval; below zero where the pick is better)."
    )
    said, records = "What each way of choosing picks, and what the pick is worth", _records(rows)
    return [
        ReportTable("selection", said, chosen, score.columns, score.lines, records),
        ReportTable("selection-cost", "What choosing so costs", costs, cost.columns, cost.lines, records),
    ]


def effects_table(material: Material, rows: Sequence[EffectRow], scale: Scale) -> ReportTable | None:
    """What each training choice contributes on one scale."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        "Test prompts: share of 2 at a level, and its difference from the mean over the levels in percentage points, "
        f"all other choices balanced, with {confidence_text(material)} interval. Beside English: the effect less the "
        "same effect in English."
    )
    columns = [
        Column("choice"),
        Column("level"),
        Column("language"),
        Column("share", "share"),
        Column("effect", "points"),
        Column("beside English", "points"),
    ]
    names = level_names(own)
    lines = [
        [
            Value(factor_name(row.factor)),
            Value(names[row.factor, row.level]),
            Value(language_name(row.language)),
            Value(row.mean),
            Value(row.effect, row.low, row.high, row.reason or ""),
            Value(row.interaction, row.interaction_low, row.interaction_high),
        ]
        for row in own
    ]
    title = f"{scale.title}: effects of the training choices"
    return ReportTable(f"effects-{scale.slug}", title, note, columns, lines, _records(own))


FACTOR_NAMES = {
    "model": "base model", "learning_rate": "learning rate", "size": "conversations", "instructions": "data",
    "weight": "weight of the tuning", "system": "system prompt", "rest": "choices together",
}  # fmt: skip


def factor_name(factor: str) -> str:
    """A factor in words, with those that follow from it."""
    first, *others = (FACTOR_NAMES.get(name, name) for name in factor.split(", "))
    return f"{first} (with {', '.join(others)})" if others else first


def level_names(rows: Sequence[EffectRow]) -> dict[tuple[str, str], str]:
    """By factor and level, the level in words; of factors that go together the first one's, where that tells it."""
    names = {(row.factor, row.level): _level_name(row.factor, row.level) for row in rows}
    times = Counter((factor, name) for (factor, _), name in names.items())
    return {key: key[1] if times[key[0], name] > 1 else name for key, name in names.items()}


def _level_name(factor: str, level: str) -> str:
    first = level.split(", ")[0]
    if factor.startswith("learning_rate"):
        return learning_rate_text(float(first))
    return Path(first.split(":")[-1]).name if factor.startswith("model") else first


def variance_table(material: Material, rows: Sequence[VarianceRow], scale: Scale) -> ReportTable | None:
    """How much of what differs between settings each training choice accounts for."""
    own = [row for row in rows_of(rows, scale) if row.share is not None]
    if not own:
        return None
    note = (
        "Share of the variance between settings that a choice accounts for beyond chance (test prompts), with "
        f"{confidence_text(material)} interval."
    )
    columns = [Column("choice"), Column("language"), Column("share of variance", "share")]
    lines = [
        [Value(factor_name(row.factor)), Value(language_name(row.language)), Value(row.share, row.low, row.high)]
        for row in own
    ]
    title = f"{scale.title}: what makes settings differ"
    return ReportTable(f"variance-{scale.slug}", title, note, columns, lines, _records(own))


def margin_table_of(material: Material, rows: Sequence[MarginRow]) -> ReportTable | None:
    """How far each checkpoint leans to the user's language without generating."""
    if not any(row.rated for row in rows):
        return None
    note = (
        "Mean probability that the model opens its reply to a factual question like the reference in the user's "
        "language rather than like the English one, if these two openings were the only choices; 50 % is even. "
        f"Validation questions, {confidence_text(material)} interval."
    )
    wide = Wide(
        material,
        [row for row in rows if row.language != REFERENCE],
        lambda row: _checkpoint(material, row.id, row.step),
        lambda row: Value(row.mean, row.low, row.high, _counted(row.rated, row.missing)),
        "share",
    )
    title = "Leaning to the user's language, without generating"
    return ReportTable("margins", title, note, wide.columns, wide.lines, _records(rows))


def grammar_table_of(material: Material, rows: Sequence[MarginRow]) -> ReportTable | None:
    """How often each checkpoint finds the right sentence of a pair the likelier one."""
    if not any(row.rated for row in rows):
        return None
    note = (
        "Share of pairs of sentences, alike but for one broken rule of the language, of which the model finds the "
        "right one the likelier; 50 % is chance. Without generating; "
        f"{confidence_text(material)} interval over phenomena."
    )
    wide = Wide(
        material,
        rows,
        lambda row: _checkpoint(material, row.id, row.step),
        lambda row: Value(row.mean, row.low, row.high, _counted(row.rated, row.missing)),
        "share",
    )
    return ReportTable("grammar", "Grammar told right", note, wide.columns, wide.lines, _records(rows))


def instructions_table(material: Material, rows: Sequence[InstructionRow]) -> ReportTable | None:
    """The accuracies of IFEval: prompts and instructions followed, strictly and loosely."""
    if not rows:
        return None
    note = (
        "Test prompts with verifiable instructions (IFEval). Strictly: the reply as it is; loosely: also without its "
        "first line, its last line or its asterisks. A prompt is followed where all its instructions are. What cannot "
        f"be decided is left out and counted as missing. {confidence_text(material)} interval."
    )

    def line(row: InstructionRow) -> tuple[str, str]:
        key, name = _checkpoint(material, row.id, row.step)
        manner = "strictly" if row.criterion == "strict" else "loosely"
        return f"{key} {row.counted} {manner}", f"{name}: {row.counted}, {manner}"

    wide = Wide(
        material,
        rows,
        line,
        lambda row: Value(row.mean, row.low, row.high, _counted(row.rated, row.missing)),
        "share",
    )
    return ReportTable("instructions", "Instructions followed", note, wide.columns, wide.lines, _records(rows))


def facts_table(material: Material, rows: Sequence[FactRow]) -> ReportTable | None:
    """The same facts in English and in the user's language."""
    own = [row for row in rows if row.first == REFERENCE and row.rated]
    if not own:
        return None
    columns = [
        Column("run"),
        Column("language"),
        Column("answered alike", "share"),
        Column("right in English, wrong here", "share"),
        Column("of the facts right in English, wrong here", "share"),
    ]
    lines = [
        [
            Value(material.name(row.id, row.step)),
            Value(language_name(row.second)),
            Value(row.alike, row.alike_low, row.alike_high, _counted(row.rated, row.missing)),
            Value(row.first_only, row.first_only_low, row.first_only_high),
            Value(row.lost, row.lost_low, row.lost_high, f"of {row.lost_rated}" if row.lost_rated else ""),
        ]
        for row in own
    ]
    note = "Test prompts; 95 % intervals. A fact counts where it could be rated in both languages."
    title = "The same facts in English and in the user's language"
    return ReportTable("facts", title, note, columns, lines, _records(rows))


def missing_table(material: Material, rows: Sequence[MissingRow]) -> ReportTable | None:
    """How many ratings are missing, and why."""
    if not rows:
        return None
    codes = material.languages
    groups: dict[tuple[str, str, str], list[MissingRow]] = {}
    for row in rows:
        groups.setdefault((row.facet, row.rater, row.reason), []).append(row)
    lines = []
    for own in groups.values():
        scale = Scale(own[0].facet, own[0].rater, own[0].kind)
        told = {row.language: Value(row.count, note=f"of {row.asked}") for row in own}
        counts = [told.get(code, Value(0)) for code in codes]
        lines.append([Value(scale.short), Value(own[0].reason), *counts, Value(sum(row.count for row in own))])
    columns = [Column("what"), Column("why"), *(Column(language_name(code), "count") for code in codes)]
    columns.append(Column("all", "count"))
    note = "Both splits, all checkpoints. Missing ratings are left out of every number of this report."
    return ReportTable("missing", "Ratings that are missing, and why", note, columns, lines, _records(rows))


def agreement_tables_of(material: Material, found: Findings) -> list[ReportTable]:
    """Agreement between raters, people who deviate, and judges calibrated by people; as far as there is any."""
    tables = []
    columns = [Column("facet"), Column("language"), Column("first"), Column("second"), Column("items", "count")]
    columns += [Column(name, "number") for name in MEASURES]
    for between, heading in HEADINGS.items():
        own = [row for row in found.agreement if row.between == between]
        if own:
            why = sorted({reason for row in own for reason in row.reasons.values()})
            note = f"Brackets: {confidence_text(material)} interval over prompts. Leniency is first minus second."
            note += f" No figure or interval where: {'; '.join(why)}." if why else ""
            name = f"agreement-{between.replace(' ', '-')}"
            lines = [_agreement_line(row) for row in own]
            tables.append(ReportTable(name, heading, note, columns, lines, [_flat(row) for row in own]))
    return [*tables, *_people_table(found.people), *_calibration_table(material, found.calibration)]


def _agreement_line(row: AgreementRow) -> list[Value]:
    named = [row.facet, language_name(row.language), rater_name(row.first), rater_name(row.second)]
    items = Value(row.items, note=_missing(row.missing))
    return [*map(Value, named), items, *(_value(row.measure(name)) for name in MEASURES)]


def _flat(row: AgreementRow) -> dict[str, Any]:
    table = [f"{i}{j}" for i in range(3) for j in range(3)]
    counts = [count for line in row.confusion for count in line] if row.confusion else [None] * 9
    reasons = "; ".join(f"{name}: {reason}" for name, reason in row.reasons.items())
    kept = {key: value for key, value in record(row).items() if key not in ("confusion", "reasons")}
    return kept | {f"count_{pair}": count for pair, count in zip(table, counts, strict=True)} | {"reasons": reasons}


def _people_table(rows: Sequence[PersonRow]) -> list[ReportTable]:
    if not rows:
        return []
    columns = [
        Column("facet"),
        Column("language"),
        Column("person"),
        Column("items", "count"),
        Column("leniency", "signed"),
        Column("kappa with others", "number"),
        Column("of the others", "number"),
        Column("deviates"),
    ]
    lines = [
        [
            Value(row.facet),
            Value(language_name(row.language)),
            Value(rater_name(row.rater)),
            Value(row.items),
            Value(row.leniency, row.leniency_low, row.leniency_high),
            Value(row.kappa),
            Value(row.kappa_others),
            Value(", ".join(row.deviates)),
        ]
        for row in rows
    ]
    records = [record(row) | {"rater": rater_name(row.rater), "deviates": ", ".join(row.deviates)} for row in rows]
    note = "Each person beside the mean of the others who read the same responses; marks are corrected (Holm)."
    return [ReportTable("people", "Who deviates", note, columns, lines, records)]


def _calibration_table(material: Material, rows: Sequence[CalibrationRow]) -> list[ReportTable]:
    if not rows:
        return []
    columns = [Column("run"), Column("language"), Column("facet"), Column("judge")]
    columns += [Column(who, "number") for who in rows[0].estimates]
    columns.append(Column("rated by people", "count"))
    lines = [
        [
            *map(Value, (row.run, language_name(row.language), row.facet, rater_name(row.judge))),
            *map(_value, row.estimates.values()),
            Value(row.labelled, note=row.reason or ""),
        ]
        for row in rows
    ]
    note = (
        f"Test prompts: mean value from 0 to 2, {confidence_text(material)} interval. Calibrated: the people's mean, "
        "corrected by what the judge says of the responses that no person has read (prediction-powered inference); the "
        "responses that people rate must be a random sample."
    )
    return [ReportTable("calibration", "Judges calibrated by people", note, columns, lines, _records(rows))]


def runs_table(material: Material) -> ReportTable:
    """Every run with what it was trained with, and how far it is."""
    rows = []
    for run in material.workspace.runs:
        config, stages = run.config, run.manifest().get("stages", {})
        length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs" if config.epochs else None
        tuned: dict[str, Any] = {} if config.untuned else {
            "adaptation": config.adaptation.label, "learning rate": learning_rate_text(config.learning_rate),
            "data": config.instructions.label, "length": length, "seed": config.seed,
        }  # fmt: skip
        state = ", ".join(f"{stage} {one['state']}" for stage, one in stages.items()) or "not started"
        if run.trained.name in material.stopped:
            state = f"stopped by halving at step {material.stopped[run.trained.name]}"
        rows.append({"run": run.label, "folder": run.id, "model": config.model, **tuned, "state": state})
    headings = ("run", "model", "adaptation", "learning rate", "data", "length", "seed", "state")
    lines = [[Value(row.get(name)) for name in headings] for row in rows]
    note = "What differs between the runs; every setting is below."
    return ReportTable("runs", "Runs", note, [Column(name) for name in headings], lines, rows)
