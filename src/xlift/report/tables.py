"""The tables of the report: what stands in which column, made from the rows of findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xlift.languages import language_name
from xlift.report.formats import Column, ReportTable, Value, ValueForm
from xlift.report.overall import REFERENCE
from xlift.report.reading import Material, Scale, measure_text
from xlift.report.rows import DifferenceRow, FactRow, InstructionRow, MarginRow, MissingRow, SelectionRow, ShareRow
from xlift.report.wide import Wide, checkpoint_line, counts_note, missing_note, picked
from xlift.study.labels import learning_rate_text


def share_table_of(material: Material, rows: Sequence[ShareRow], scale: Scale, split: str) -> ReportTable | None:
    """The shares of the best value on one scale: a row a checkpoint, a column a language."""
    if not rows:
        return None
    note = (
        f"{split.capitalize()} prompts: share of responses with the value {scale.best}, {material.confidence} "
        "interval. Responses that could not be rated are left out and counted as missing, never as wrong."
    )
    name = f"shares-{scale.slug}" + ("" if split == "test" else f"-{split}")
    wide = Wide(
        material,
        rows,
        lambda row: checkpoint_line(material, row.id, row.step),
        lambda row: Value(*row.share, counts_note(row.rated, row.missing)),
        "share",
    )
    return ReportTable(name, f"{scale.title}: {split} prompts", note, wide.columns, wide.lines, rows)


def versus_table(material: Material, rows: Sequence[DifferenceRow], scale: Scale) -> ReportTable | None:
    """The difference that tuning makes on one scale."""
    if not rows:
        return None
    note = (
        f"Test prompts: share of {scale.best} less that of the untuned model, in percentage points, paired by prompt, "
        f"with {material.confidence} interval; p by sign flips, corrected over this table (Holm)."
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
            Value(*row.points, (row.reason or "") if row.low is None else ""),
            Value(row.p_holm),
            Value(row.pairs, note=missing_note(row.missing)),
        ]
        for row in rows
    ]
    title = f"{scale.title}: what tuning changes"
    return ReportTable(f"versus-base-{scale.slug}", title, note, columns, lines, rows)


def gap_table(material: Material, rows: Sequence[DifferenceRow], scale: Scale) -> ReportTable | None:
    """The transfer gap on one scale: other languages less English."""
    if not rows:
        return None
    note = (
        f"Test prompts: share of {scale.best} in the language less that in English, in percentage points, over "
        f"requests rated in both, with {material.confidence} interval. Below zero, users of the language are "
        "served worse."
    )
    wide = Wide(
        material,
        rows,
        lambda row: (row.run, row.run),
        lambda row: Value(*row.points, ", ".join(filter(None, (f"{row.pairs} pairs", missing_note(row.missing))))),
        "points",
    )
    return ReportTable(f"gap-{scale.slug}", f"{scale.title}: beside English", note, wide.columns, wide.lines, rows)


def selection_tables(material: Material, rows: Sequence[SelectionRow]) -> list[ReportTable]:
    """What each rule picks, what the pick scores, and what the choice costs."""
    if not rows:
        return []
    seen = f"{material.confidence} interval over requests"
    most = max(row.candidates for row in rows)
    picks: dict[str, list[SelectionRow]] = {}
    for row in rows:
        picks.setdefault(row.rule, []).append(row)

    def heading(first: SelectionRow) -> str:
        of = f" (of {first.candidates})" if first.candidates < most else ""
        return f"{first.rule}: {picked(material, first)}{of}"

    def by_rule(cell: Callable[[SelectionRow], Value], form: ValueForm) -> tuple[list[Column], list[list[Value]]]:
        # A line a language: a column each would be too narrow for its interval where there are fifteen.
        told = {(row.rule, row.language): cell(row) for row in rows}
        codes = [code for code in material.languages if any(row.language == code for row in rows)]
        lines = [[Value(language_name(code)), *(told.get((rule, code), Value()) for rule in picks)] for code in codes]
        return [Column("language"), *(Column(heading(own[0]), form) for own in picks.values())], lines

    score = by_rule(lambda row: Value(*row.scored, f"of {row.rated}" if row.rated else ""), "share")
    cost = by_rule(lambda row: Value(*row.costs), "points")
    worst = [Value(max(row.regret or 0 for row in own)) for own in picks.values()]
    cost[1].append([Value("regret, worst language"), *worst])
    chosen = (
        f"Below each rule its pick on validation prompts among {most} checkpoints, or so many as have what it goes by; "
        f"share of the best value ({measure_text(material.measure)}) on test prompts, {seen}. “Any of” those among "
        "which a rule cannot decide: the mean of them, which is what a choice by lot is worth."
    )
    costs = (
        "Test prompts: share of the best value of the pick by “mean over languages” less that of this rule's pick, in "
        f"percentage points, paired by prompt, {seen}: above zero, this rule's users are served worse. Regret: the "
        "best candidate on test prompts less the pick (known only afterwards, without interval; below zero where the "
        "pick is better)."
    )
    said = "What each way of choosing picks, and what the pick is worth"
    return [
        ReportTable("selection", said, chosen, *score, rows),
        ReportTable("selection-cost", "What choosing so costs", costs, *cost, rows),
    ]


def margin_table_of(material: Material, rows: Sequence[MarginRow]) -> ReportTable | None:
    """How far each checkpoint leans to the user's language without generating."""
    if not any(row.rated for row in rows):
        return None
    note = (
        "Mean probability that the model opens its reply to a factual question like the reference in the user's "
        "language rather than like the English one, if these two openings were the only choices; 50 % is even. "
        f"Validation questions, {material.confidence} interval."
    )
    wide = Wide(
        material,
        [row for row in rows if row.language != REFERENCE],
        lambda row: checkpoint_line(material, row.id, row.step),
        lambda row: Value(row.mean, row.low, row.high, counts_note(row.rated, row.missing)),
        "share",
    )
    title = "Leaning to the user's language, without generating"
    return ReportTable("margins", title, note, wide.columns, wide.lines, rows)


def grammar_table_of(material: Material, rows: Sequence[MarginRow]) -> ReportTable | None:
    """How often each checkpoint finds the right sentence of a pair the likelier one."""
    if not any(row.rated for row in rows):
        return None
    note = (
        "Share of pairs of sentences, alike but for one broken rule of the language, of which the model finds the "
        "right one the likelier; 50 % is chance. Without generating; "
        f"{material.confidence} interval over phenomena."
    )
    wide = Wide(
        material,
        rows,
        lambda row: checkpoint_line(material, row.id, row.step),
        lambda row: Value(row.mean, row.low, row.high, counts_note(row.rated, row.missing)),
        "share",
    )
    return ReportTable("grammar", "Grammar told right", note, wide.columns, wide.lines, rows)


def instructions_table(material: Material, rows: Sequence[InstructionRow]) -> ReportTable | None:
    """The accuracies of IFEval: prompts and instructions followed, strictly and loosely."""
    if not rows:
        return None
    note = (
        "Test prompts with verifiable instructions (IFEval). Strictly: the reply as it is; loosely: also without its "
        "first line, its last line or its asterisks. A prompt is followed where all its instructions are. What cannot "
        f"be decided is left out and counted as missing. {material.confidence} interval."
    )

    def line(row: InstructionRow) -> tuple[str, str]:
        key, name = checkpoint_line(material, row.id, row.step)
        manner = "strictly" if row.criterion == "strict" else "loosely"
        return f"{key} {row.counted} {manner}", f"{name}: {row.counted}, {manner}"

    wide = Wide(
        material,
        rows,
        line,
        lambda row: Value(row.mean, row.low, row.high, counts_note(row.rated, row.missing)),
        "share",
    )
    return ReportTable("instructions", "Instructions followed", note, wide.columns, wide.lines, rows)


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
            Value(row.alike, row.alike_low, row.alike_high, counts_note(row.rated, row.missing)),
            Value(row.first_only, row.first_only_low, row.first_only_high),
            Value(row.lost, row.lost_low, row.lost_high, f"of {row.lost_rated}" if row.lost_rated else ""),
        ]
        for row in own
    ]
    note = "Test prompts; 95 % intervals. A fact counts where it could be rated in both languages."
    title = "The same facts in English and in the user's language"
    return ReportTable("facts", title, note, columns, lines, rows)


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
    return ReportTable("missing", "Ratings that are missing, and why", note, columns, lines, rows)


def runs_table(material: Material) -> ReportTable:
    """Every run with what it was trained with, and how far it is."""
    rows = []
    for run in material.workspace.runs:
        config, stages = run.config, run.known.get("stages", {})
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
