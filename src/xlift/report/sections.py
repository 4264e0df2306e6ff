"""The report's sections as plain data: what is shown in which order, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.languages import language_name
from xlift.report import figures, tables
from xlift.report.agreement import BY_LANGUAGE, agreement_tables_of
from xlift.report.breakdown import breakdown_table
from xlift.report.factors import effects_table, factor_name, level_names, variance_table
from xlift.report.facts import cost_table, data_table
from xlift.report.figures import Figure, Specification
from xlift.report.flips import flips_table
from xlift.report.formats import ReportTable
from xlift.report.judges import judge_tables
from xlift.report.numbers import Findings, curve_points
from xlift.report.outcomes import outcome_rows, outcome_table
from xlift.report.overall import REFERENCE, marks_of, overall_table
from xlift.report.pass_rates import languages_table, means_table
from xlift.report.reading import Material, Scale, rater_name
from xlift.report.remedies import remedies_table
from xlift.report.rows import CurvePoint, record


class Block(NamedTuple):
    """A figure or a table; `scale` is the slug of the only scale that it belongs to; `folded`: closed at first."""

    figure: Figure | None = None
    table: ReportTable | None = None
    scale: str = ""
    folded: bool = False


class Section(NamedTuple):
    """A part of the report: `lead` says how to read it, `short` is its title in the menu."""

    id: str
    short: str
    title: str
    lead: str
    blocks: list[Block]


def sections_of(material: Material, found: Findings) -> list[Section]:
    """All sections that have something to show."""
    made = [
        ("results", "Results", "Results", RESULTS, _results(material, found)),
        ("remedies", "Remedies", "What mends it", REMEDIES, _one(remedies_table(material))),
        ("pass-rates", "Pass rates", "Line and word pass rates", PASS_RATES, _pass_rates(material)),
        ("learning-rate", "Learning rate", "Learning rate", CURVES, _curves(material, found, "learning_rate")),
        ("data-size", "Data size", "Amount of data", CURVES, _curves(material, found, "size")),
        ("transfer", "Transfer", "English beside the other languages", TRANSFER, _transfer(material, found)),
        ("selection", "Selection", "Choosing a checkpoint", SELECTION, _selection(material, found)),
        ("effects", "Effects", "What each training choice contributes", EFFECTS_LEAD, _effects(material, found)),
        ("training", "Training", "Training and multilingual validation", TRAINING, _training(material)),
        ("margins", "Margin", "Language margin", MARGINS, _one(tables.margin_table_of(material, found.margins))),
        ("grammar", "Grammar", "Grammar margin", GRAMMAR, _one(tables.grammar_table_of(material, found.grammar))),
        (
            *("instructions", "Instructions", "Verifiable instructions", INSTRUCTIONS),
            _one(tables.instructions_table(material, found.instructions)),
        ),
        ("facts", "Facts", "Facts over languages", FACTS, _one(tables.facts_table(material, found.facts))),
        ("agreement", "Agreement", "Agreement and calibration", AGREEMENT, _agreement(material, found)),
        ("judges", "Judges", "How good the judges are", JUDGES, _each(judge_tables(material))),
        ("data", "Data", "Data", DATA, _one(data_table(material))),
        ("costs", "Costs", "Costs", COSTS, _one(cost_table(material))),
        ("missing", "Missing", "Missing ratings", MISSING, _one(tables.missing_table(material, found.missing))),
    ]
    sections = [Section(id, short, title, lead, list(blocks)) for id, short, title, lead, blocks in made]
    return [section for section in sections if section.blocks]


RESULTS = (
    "Share of answers that a rater gives the best value. The darker a cell, the more answers; its interval below it "
    "or, where there are many cells, under the pointer."
)
REMEDIES = (
    "Every other run beside the first of the study: what users of each language gain, and what it costs. A gain whose "
    "interval touches zero may be chance."
)
PASS_RATES = (
    "By the rule of the Language Confusion Benchmark: answers in which no line is in another language, and of these, "
    "where the script is not Latin, those without an English word. Published marks stand beside the same models."
)
CURVES = "One point a setting and language; lines through the points are intervals, dashes the untuned model."
TRANSFER = (
    "On the dashed line a language is served as well as English, below it worse. Hollow: the untuned model. Vertical "
    "lines are intervals of the difference to English."
)
SELECTION = (
    "Each rule sees validation prompts or held-out English replies only; test prompts then tell what its pick is worth."
)
EFFECTS_LEAD = (
    "What is left of a choice when all others are balanced. Right of zero: better than the mean over the levels. An "
    "interval that touches zero is no effect that chance could not make."
)
TRAINING = (
    "Loss on held-out English replies is all that English-only validation sees; the panels see the other languages."
)
MARGINS = "A checkpoint can be measured so in seconds, before it has answered anything."
GRAMMAR = "What tuning costs a language shows here before anybody has read an answer."
INSTRUCTIONS = "What a program can check of a reply, and did: no judge is asked."
FACTS = "Which of the facts that a model gives right in English does it lose in the user's language?"
AGREEMENT = "How far raters can be believed. Kappa is agreement beyond chance: 1 perfect, 0 chance."
JUDGES = "What a judge's ratings above are worth: on known faults, over languages, beside other judges."
DATA = "Where the instruction data comes from, and what became of its records."
COSTS = "What it took to train each run and to let it answer."
MISSING = "Missing is not zero: what could not be rated says why, and counts neither as right nor as wrong."


MARKS = "▲ ▼: above or below the untuned model beyond chance (corrected for all cells, Holm)."


def _heat_rows(material: Material, found: Findings) -> list[dict[str, Any]]:
    """The cells of one scale: the overall numbers first, where there are several other languages, then each one."""
    marks = marks_of(material, found.versus)
    shared = {"low", "high", "rated", "missing"}
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in found.shares:
        name = material.name(row.id, row.step)
        cell = {"run": name, "language": language_name(row.language), "mean": row.mean, "mark": ""}
        cell |= {key: getattr(row, key) for key in shared}
        rows.setdefault((row.id, row.step), []).append(cell | {"mark": marks.get((row.id, row.language), "")})
    for one in found.checkpoints if any(row.languages > 1 for row in found.checkpoints) else []:
        told = {"run": one.run, "mark": "", "rated": one.rated, "missing": one.missing}
        mean = told | {"language": "mean of others", "mean": one.mean, "low": one.low, "high": one.high}
        worst = told | {"language": "worst", "mean": one.worst, "low": one.worst_low, "high": one.worst_high}
        rows.get((one.id, one.step), [])[:0] = [mean, worst]
    return [cell for own in rows.values() for cell in own]


def _each(found: list[ReportTable]) -> Iterator[Block]:
    return (Block(table=table) for table in found)


def _one(table: ReportTable | None, folded: bool = False) -> Iterator[Block]:
    if table is not None:
        yield Block(table=table, folded=folded)


def _pass_rates(material: Material) -> Iterator[Block]:
    yield from _one(means_table(material))
    yield from _one(languages_table(material))


def _selection(material: Material, found: Findings) -> Iterator[Block]:
    yield from (Block(table=table) for table in tables.selection_tables(material, found.selection))


def _tables(scale: Scale, *tables: ReportTable | None, folded: bool = True) -> Iterator[Block]:
    yield from (Block(table=table, scale=scale.slug, folded=folded) for table in tables if table is not None)


def _figure(name: str, caption: str, drawn: Specification | None, scale: Scale | None = None) -> Iterator[Block]:
    if drawn is not None:
        slug = scale.slug if scale else ""
        full = f"{name}-{slug}" if slug else name
        yield Block(Figure(full, f"{scale.title}: {caption}" if scale else caption, drawn), scale=slug)


def _results(material: Material, found: Findings) -> Iterator[Block]:
    outcomes = outcome_rows(material)
    for scale in material.scales:
        own = found.on(scale)
        marked = f". {MARKS}" if own.versus else ""
        yield from _figure("heat-map", f"share of answers{marked}", figures.heat_map(_heat_rows(material, own)), scale)
        yield from _tables(scale, overall_table(material, own.overall, own.means, scale), folded=False)
        if scale.rater == "language":
            told = [record(row) | {"language": language_name(row.language), "share": row.share} for row in outcomes]
            placed = [row | {"place": list(figures.OUTCOMES).index(row["outcome"])} for row in told]
            drawn = figures.outcome_figure(placed, _names(material))
            yield from _figure("outcomes", "What became of the answers", drawn)
            yield from _one(outcome_table(outcomes), folded=True)
        yield from _tables(
            scale,
            tables.share_table_of(material, own.shares, scale, "test"),
            breakdown_table(material, own.kinds, scale),
            tables.versus_table(material, own.versus, scale),
            tables.share_table_of(material, own.validation, scale, "validation"),
        )


def _curves(material: Material, found: Findings, axis: str) -> Iterator[Block]:
    said = {
        "learning_rate": ("learning-rate", "by learning rate", "learning rate", "~e"),
        "size": ("data-size", "by amount of data", "training conversations", "~s"),
    }
    name, caption, title, form = said[axis]
    for scale in material.scales:
        own = found.on(scale)
        rows = [_curve_point(point, axis) for point in curve_points(own.means, axis)]
        yield from _figure(name, caption, figures.curve_figure(rows, _names(material), axis, title, form), scale)
        if axis == "learning_rate" and scale.facet == "language":
            yield from _tables(scale, flips_table(material, own.means, scale), folded=False)


def _curve_point(point: CurvePoint, axis: str) -> dict[str, Any]:
    row = point.row
    ends = dict(zip(("share_best", "share_best_low", "share_best_high"), row.share, strict=True))
    named = {"panel": point.panel, "run": row.run, "language": language_name(row.language), "untuned": row.untuned}
    return named | ends | {axis: row.settings[axis], "rated": row.rated, "missing": row.missing}


def _names(material: Material) -> list[str]:
    return [language_name(code) for code in material.languages]


def _transfer(material: Material, found: Findings) -> Iterator[Block]:
    for scale in material.scales:
        gaps = found.on(scale).gaps
        rows = [record(row) | {"language": language_name(row.language)} for row in gaps]
        yield from _figure(
            "transfer", "English beside the others", figures.transfer_figure(rows, _names(material)), scale
        )
        yield from _tables(scale, tables.gap_table(material, gaps, scale))


def _effects(material: Material, found: Findings) -> Iterator[Block]:
    for scale in material.scales:
        own = found.on(scale)
        table = effects_table(material, own.effects, scale)
        if table is None:
            continue
        names = level_names(own.effects)
        rows: list[dict[str, Any]] = [
            {"choice": factor_name(row.factor), "level": names[row.factor, row.level]}
            | {"language": language_name(row.language), "effect": row.effect, "low": row.low, "high": row.high}
            for row in own.effects
            if row.language != ALL_LANGUAGES
        ]
        yield from _figure(
            "effects", "effects of the training choices", figures.effects_figure(rows, _names(material)), scale
        )
        yield from _tables(scale, table, variance_table(material, own.variance, scale))


def _training(material: Material) -> Iterator[Block]:
    rates = {run.id: run.config.learning_rate for run in material.workspace.runs}
    told = material.training.to_dicts()
    rows = [row | {"run": row["label"], "learning_rate": rates.get(row["run"])} for row in told]
    named = {"heldout_loss": "loss on held-out English replies", "loss": "loss on training data"}
    for value, title in named.items():
        if value in material.training.columns:
            name = value.replace("_", "-") if value != "loss" else "training-loss"
            yield from _figure(name, f"{title[0].upper()}{title[1:]}", figures.training_figure(rows, value, title))
    watched = {
        "margins": ("validation-margins", "probability of the user's language", "Leaning to the user's language"),
        "language": ("validation-language", "share of answers", "Answers wholly in the user's language"),
    }
    for key, (name, title, caption) in watched.items():
        values = [
            {"panel": row["label"], "step": row["step"], "language": language_name(code), "value": row[f"{key}/{code}"]}
            for row in rows
            for code in material.languages
            if row.get(f"{key}/{code}") is not None and not (key == "margins" and code == REFERENCE)
        ]
        caption = f"{caption} during training (validation prompts)"
        yield from _figure(name, caption, figures.watched_figure(values, _names(material), title))


def _agreement(material: Material, found: Findings) -> Iterator[Block]:
    # Over all languages where the judge has rated several; single languages are in the table.
    several = {row.judge for row in found.calibration if row.language == ALL_LANGUAGES}
    shown = [
        row for row in found.calibration if row.labelled and (row.language == ALL_LANGUAGES or row.judge not in several)
    ]
    panels = [
        {
            "panel": f"{row.facet}, {rater_name(row.judge)}",
            "run": row.run,
            "who": who,
            **dict(zip(("mean", "low", "high"), estimate, strict=True)),
        }
        for row in shown
        for who, estimate in row.estimates.items()
        if estimate.value is not None
    ]
    who = list(shown[0].estimates) if shown else []
    yield from _figure("calibration", "Judges calibrated by people", figures.calibration_figure(panels, who))
    for table in agreement_tables_of(material, found):
        yield Block(table=table, folded=table.name.endswith(BY_LANGUAGE))
