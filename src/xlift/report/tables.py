"""The tables of the report: what stands in which column, made from the rows of findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlift.analysis.agreement import HEADINGS, MEASURES
from xlift.report.formats import Column, Table
from xlift.report.numbers import REFERENCE, Findings
from xlift.report.reading import Material, Scale, language_name, measure_text, rater_name
from xlift.study.labels import rate_text


def rows_of(rows: Sequence[dict[str, Any]], scale: Scale) -> list[dict[str, Any]]:
    """The rows that belong to a scale."""
    return [row for row in rows if (row["facet"], row["rater"]) == (scale.facet, scale.rater)]


def confidence_text(material: Material) -> str:
    """The confidence of all intervals: 95 %."""
    return f"{material.workspace.study.report.confidence * 100:g} %"


def share_table_of(material: Material, rows: Sequence[dict[str, Any]], scale: Scale, split: str) -> Table | None:
    """The shares of 2 on one scale: a row a checkpoint, a column a language."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        f"{split.capitalize()} prompts: share of responses with the value 2, {confidence_text(material)} interval. "
        "Responses that could not be rated are left out and counted as missing, never as wrong."
    )
    name = f"shares-{scale.slug}" + ("" if split == "test" else f"-{split}")
    wide = _wide(material, own, lambda row: material.name(row["id"], row["step"]), ("mean", "low", "high"), "share")
    return Table(name, f"{scale.title}: {split} prompts", note, *wide, own)


def _wide(
    material: Material, rows: Sequence[dict[str, Any]], name: Any, keys: Sequence[str], form: Any, first: str = "run"
) -> tuple[list[Column], list[dict[str, Any]]]:
    """Columns and rows with one cell a language, of rows with one language each."""
    languages = [code for code in material.languages if any(row["language"] == code for row in rows)]
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(name(row), {first: name(row)})
        line |= {f"{row['language']} {key}": row[key] for key in keys}
        line[f"{row['language']} note"] = _note(row)
    columns = [
        Column(language_name(code), tuple(f"{code} {key}" for key in keys), form, f"{code} note") for code in languages
    ]
    return [Column(first, (first,)), *columns], list(lines.values())


def _note(row: dict[str, Any]) -> str:
    """How many went in and how many are missing, in short."""
    count = f"of {row['rated']}" if row.get("rated") else f"{row['pairs']} pairs" if row.get("pairs") else ""
    return ", ".join(part for part in (count, _missing(row)) if part)


def versus_table(material: Material, rows: Sequence[dict[str, Any]], scale: Scale) -> Table | None:
    """The difference that tuning makes on one scale."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        "Test prompts: share of 2 less that of the untuned model, in percentage points, paired by prompt, with "
        f"{confidence_text(material)} interval; p by sign flips, corrected over this table (Holm)."
    )
    columns = [
        Column("run", ("run",)),
        Column("language", ("in",)),
        Column("difference", ("difference", "low", "high"), "points", "why"),
        Column("p (Holm)", ("p_holm",), "p"),
        Column("pairs", ("pairs",), "count", "note"),
    ]
    shown = [
        row
        | {"in": language_name(row["language"]), "note": _missing(row)}
        | {"why": row["reason"] if row["low"] is None else None}
        for row in own
    ]
    return Table(f"versus-base-{scale.slug}", f"{scale.title}: what tuning changes", note, columns, shown, own)


def _missing(row: dict[str, Any]) -> str:
    return f"{row['missing']} missing" if row.get("missing") else ""


def gap_table(material: Material, rows: Sequence[dict[str, Any]], scale: Scale) -> Table | None:
    """The transfer gap on one scale: other languages less English."""
    own = rows_of(rows, scale)
    if not own:
        return None
    note = (
        "Test prompts: share of 2 in the language less that in English, in percentage points, over requests rated in "
        f"both, with {confidence_text(material)} interval. Below zero, users of the language are served worse."
    )
    wide = _wide(material, own, lambda row: row["run"], ("difference", "low", "high"), "points")
    return Table(f"gap-{scale.slug}", f"{scale.title}: beside English", note, *wide, own)


def selection_tables(material: Material, rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What each rule picks, what the pick scores, and what the choice costs."""
    if not rows:
        return []
    measure = measure_text(material.measure)
    seen = f"{confidence_text(material)} interval over requests"
    wide = _wide(material, rows, lambda row: row["rule"], ("score", "low", "high"), "share", "rule")
    picked = {row["rule"]: material.name(row["run"], row["step"]) for row in rows}
    tied = {row["rule"]: f"{row['tied']} tied" for row in rows if row["tied"] > 1}
    for line in wide[1]:
        line |= {"pick": picked[line["rule"]], "tied": tied.get(line["rule"], "")}
    wide[0].insert(1, Column("picks", ("pick",), "text", "tied"))
    scores = Table(
        "selection", "What each way of choosing picks, and what the pick is worth",
        f"Chosen on validation prompts among {rows[0]['candidates']} checkpoints; share of 2 ({measure}) on test "
        f"prompts, {seen}.", *wide, list(rows),
    )  # fmt: skip
    costs = _wide(material, rows, lambda row: row["rule"], ("cost", "cost_low", "cost_high"), "points", "rule")
    for line in costs[1]:
        line |= {f"{row['language']} note": "" for row in rows}
        own = [row["regret"] for row in rows if row["rule"] == line["rule"]]
        line |= {"worst": max(own), "pick": picked[line["rule"]]}
    costs[0].insert(1, Column("picks", ("pick",)))
    costs[0].append(Column("regret, worst language", ("worst",), "points"))
    cost = Table(
        "selection-cost", "What choosing so costs",
        "Test prompts: share of 2 of the pick by “mean over languages” less that of this rule's pick, in percentage "
        f"points, paired by prompt, {seen}: above zero, this rule's users are served worse. Regret: the best candidate "
        "on test prompts less the pick (known only afterwards, no interval; below zero where the pick is better).",
        *costs, list(rows),
    )  # fmt: skip
    return [scores, cost]


def effects_table(material: Material, rows: Sequence[dict[str, Any]], scale: Scale) -> Table | None:
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
        Column("choice", ("choice",)),
        Column("level", ("level",)),
        Column("language", ("in",)),
        Column("share", ("mean",), "share"),
        Column("effect", ("effect", "low", "high"), "points", "why"),
        Column("beside English", ("interaction", "interaction_low", "interaction_high"), "points"),
    ]
    shown = [row | {"in": language_name(row["language"]), "why": row["reason"]} | _named(row) for row in own]
    return Table(f"effects-{scale.slug}", f"{scale.title}: effects of the training choices", note, columns, shown, own)


def _named(row: dict[str, Any]) -> dict[str, str]:
    return {"choice": factor_name(row["factor"]), "level": level_name(row["factor"], row["level"])}


FACTORS = {
    "model": "base model", "learning_rate": "learning rate", "size": "conversations", "instructions": "data",
    "weight": "weight of the tuning", "system": "system prompt", "rest": "choices together",
}  # fmt: skip


def factor_name(factor: str) -> str:
    """A factor in words, with those that follow from it."""
    first, *others = (FACTORS.get(name, name) for name in factor.split(", "))
    return f"{first} (with {', '.join(others)})" if others else first


def level_name(factor: str, level: str) -> str:
    """A level of a factor in words; of factors that go together, the first one's."""
    first = level.split(", ")[0]
    if factor.startswith("learning_rate"):
        return rate_text(float(first))
    return Path(first.split(":")[-1]).name if factor.startswith("model") else first


def variance_table(material: Material, rows: Sequence[dict[str, Any]], scale: Scale) -> Table | None:
    """How much of what differs between settings each training choice accounts for."""
    own = [row for row in rows_of(rows, scale) if row["share"] is not None]
    if not own:
        return None
    note = (
        "Share of the variance between settings that a choice accounts for beyond chance (test prompts), with "
        f"{confidence_text(material)} interval."
    )
    columns = [
        Column("choice", ("choice",)),
        Column("language", ("in",)),
        Column("share of variance", ("share", "low", "high"), "share"),
    ]
    shown = [row | {"in": language_name(row["language"]), "choice": factor_name(row["factor"])} for row in own]
    return Table(f"variance-{scale.slug}", f"{scale.title}: what makes settings differ", note, columns, shown, own)


def margin_table_of(material: Material, rows: Sequence[dict[str, Any]]) -> Table | None:
    """How far each checkpoint leans to the user's language without generating."""
    if not any(row["rated"] for row in rows):
        return None
    note = (
        "Mean probability that the model opens its reply to a factual question like the reference in the user's "
        "language rather than like the English one, if these two openings were the only choices; 50 % is even. "
        f"Validation questions, {confidence_text(material)} interval."
    )
    wide = _wide(material, rows, lambda row: material.name(row["id"], row["step"]), ("mean", "low", "high"), "share")
    wide[0][1:] = [column for column in wide[0][1:] if column.heading != language_name(REFERENCE)]
    return Table("margins", "Leaning to the user's language, without generating", note, *wide, list(rows))


def facts_table(material: Material, rows: Sequence[dict[str, Any]]) -> Table | None:
    """The same facts in English and in the user's language."""
    own = [row for row in rows if row["first"] == REFERENCE and row["rated"]]
    if not own:
        return None
    columns = [
        Column("run", ("checkpoint",)),
        Column("language", ("in",)),
        Column("answered alike", ("alike", "alike_low", "alike_high"), "share", "note"),
        Column("right in English, wrong here", ("first_only", "first_only_low", "first_only_high"), "share"),
        Column("of the facts right in English, wrong here", ("lost", "lost_low", "lost_high"), "share", "lost note"),
    ]
    shown = [
        row | {"checkpoint": material.name(row["id"], row["step"]), "in": language_name(row["second"])}
        | {"note": _note(row), "lost note": f"of {row['lost_rated']}" if row["lost_rated"] else ""}
        for row in own
    ]  # fmt: skip
    note = "Test prompts; 95 % intervals. A fact counts where it could be rated in both languages."
    return Table("facts", "The same facts in English and in the user's language", note, columns, shown, list(rows))


def missing_table(material: Material, rows: Sequence[dict[str, Any]]) -> Table | None:
    """How many ratings are missing, and why."""
    if not rows:
        return None
    codes = material.languages
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = row["facet"], row["rater"], row["reason"]
        facts = {"scale": Scale(row["facet"], row["rater"], row["kind"]).short, "reason": row["reason"], "all": 0}
        line = lines.setdefault(key, dict.fromkeys(codes, 0) | facts)
        line[row["language"]], line[f"{row['language']} of"] = row["count"], f"of {row['asked']}"
        line["all"] += row["count"]
    columns = [Column("what", ("scale",)), Column("why", ("reason",))]
    columns += [Column(language_name(code), (code,), "count", f"{code} of") for code in codes]
    columns.append(Column("all", ("all",), "count"))
    note = "Both splits, all checkpoints. Missing ratings are left out of every number of this report."
    return Table("missing", "Ratings that are missing, and why", note, columns, list(lines.values()), list(rows))


def agreement_tables_of(material: Material, found: Findings) -> list[Table]:
    """Agreement between raters, people who deviate, and judges calibrated by people; as far as there is any."""
    tables = []
    measures = [Column(name, (name, f"{name}_low", f"{name}_high"), "number") for name in MEASURES]
    for between, heading in HEADINGS.items():
        own = [row for row in found.agreement if row["between"] == between]
        if own:
            columns = [Column("facet", ("facet",)), Column("language", ("in",)), Column("first", ("first",))]
            columns += [Column("second", ("second",)), Column("items", ("items",), "count", "note"), *measures]
            shown = [_agreement_row(row) for row in own]
            why = sorted({reason for row in own for reason in row["reasons"].values()})
            note = f"Brackets: {confidence_text(material)} interval over prompts. Leniency is first minus second."
            note += f" No figure or interval where: {'; '.join(why)}." if why else ""
            name = f"agreement-{between.replace(' ', '-')}"
            tables.append(Table(name, heading, note, columns, shown, [_flat(row) for row in own]))
    return [*tables, *_people_table(material, found.people), *_calibration_table(material, found.calibration)]


def _agreement_row(row: dict[str, Any]) -> dict[str, Any]:
    names = {side: rater_name(row[side]) for side in ("first", "second")}
    return row | names | {"in": language_name(row["language"]), "note": _missing(row)}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    table = [f"{i}{j}" for i in range(3) for j in range(3)]
    counts = [count for line in row["confusion"] for count in line] if row["confusion"] else [None] * 9
    reasons = "; ".join(f"{name}: {reason}" for name, reason in row["reasons"].items())
    kept = {key: value for key, value in row.items() if key not in ("confusion", "reasons")}
    return kept | {f"count_{pair}": count for pair, count in zip(table, counts, strict=True)} | {"reasons": reasons}


def _people_table(material: Material, rows: Sequence[dict[str, Any]]) -> list[Table]:
    if not rows:
        return []
    columns = [Column("facet", ("facet",)), Column("language", ("in",)), Column("person", ("rater",))]
    columns += [Column("items", ("items",), "count")]
    columns += [
        Column("leniency", ("leniency", "leniency_low", "leniency_high"), "signed"),
        Column("kappa with others", ("kappa",), "number"),
        Column("of the others", ("kappa_others",), "number"),
        Column("deviates", ("marks",)),
    ]
    shown = [
        row
        | {"in": language_name(row["language"]), "marks": ", ".join(row["deviates"]), "rater": rater_name(row["rater"])}
        for row in rows
    ]
    note = "Each person beside the mean of the others who read the same responses; marks are corrected (Holm)."
    return [Table("people", "Who deviates", note, columns, shown, shown)]


def _calibration_table(material: Material, rows: Sequence[dict[str, Any]]) -> list[Table]:
    if not rows:
        return []
    named = [Column(key, (key,)) for key in ("run", "facet", "judge")]
    named.insert(1, Column("language", ("in",)))
    columns = [
        *named,
        *(
            Column(heading, tuple(f"{name}_{part}" for part in ("mean", "low", "high")), "number")
            for name, heading in (("judge", "judge alone"), ("people", "people alone"), ("calibrated", "calibrated"))
        ),
        Column("rated by people", ("labelled",), "count", "reason"),
    ]
    shown = [row | {"in": language_name(row["language"]), "judge": rater_name(row["judge"])} for row in rows]
    note = (
        f"Test prompts: mean value from 0 to 2, {confidence_text(material)} interval. Calibrated: the people's mean, "
        "corrected by what the judge says of the responses that no person has read (prediction-powered inference); the "
        "responses that people rate must be a random sample."
    )
    return [Table("calibration", "Judges calibrated by people", note, columns, shown, list(rows))]


def runs_table(material: Material) -> Table:
    """Every run with what it was trained with, and how far it is."""
    rows = []
    for run in material.workspace.runs:
        config, stages = run.config, run.manifest().get("stages", {})
        length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs" if config.epochs else None
        tuned: dict[str, Any] = {} if config.untuned else {
            "adaptation": config.adaptation.label, "learning rate": rate_text(config.learning_rate),
            "data": config.instructions.label, "length": length, "seed": config.seed,
        }  # fmt: skip
        state = ", ".join(f"{stage} {one['state']}" for stage, one in stages.items()) or "not started"
        if run.trained.name in material.stopped:
            state = f"stopped by halving at step {material.stopped[run.trained.name]}"
        rows.append({"run": run.label, "folder": run.id, "model": config.model, **tuned, "state": state})
    headings = ("run", "model", "adaptation", "learning rate", "data", "length", "seed", "state")
    columns = [Column(name, (name,)) for name in headings]
    return Table("runs", "Runs", "What differs between the runs; every setting is below.", columns, rows, rows)
