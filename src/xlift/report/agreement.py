"""The tables of the report that say how far raters can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from xlift.analysis.agreement import HEADINGS, MEASURES
from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.languages import language_name
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.numbers import Findings
from xlift.report.reading import Material, rater_name
from xlift.report.rows import AgreementRow, CalibrationRow, PersonRow, record
from xlift.report.wide import missing_note

LONG_TABLE = 40
"""A longer table of all languages is two: what holds over all of them, and each one, closed at first."""
BY_LANGUAGE = "-languages"
"""How the name of such a second table ends."""
TrustRow = TypeVar("TrustRow", AgreementRow, PersonRow, CalibrationRow)


def agreement_tables_of(material: Material, found: Findings) -> list[ReportTable]:
    """Agreement between raters, people who deviate, and judges calibrated by people; as far as there is any."""
    tables = []
    columns = [Column("facet"), Column("language"), Column("first"), Column("second"), Column("items", "count")]
    columns += [Column(name, "number") for name in MEASURES]
    for between, heading in HEADINGS.items():
        own = [row for row in found.agreement if row.between == between]
        if own:
            why = sorted({reason for row in own for reason in row.reasons.values()})
            note = f"Brackets: {material.confidence} interval over prompts. Leniency is first minus second."
            note += f" No figure or interval where: {'; '.join(why)}." if why else ""
            name = f"agreement-{between.replace(' ', '-')}"
            table = ReportTable(name, heading, note, columns, [], [_flat(row) for row in own])
            tables += _in_parts(material, table, own, _agreement_line)
    return [*tables, *_people_table(material, found.people), *_calibration_table(material, found.calibration)]


def _in_parts(
    material: Material, table: ReportTable, rows: Sequence[TrustRow], line: Callable[[TrustRow], list[Value]]
) -> list[ReportTable]:
    """The table with a line a row, facets one after another, languages in the study's order; where long, in two."""
    codes, facets = [ALL_LANGUAGES, *material.languages], list(dict.fromkeys(row.facet for row in rows))
    rows = sorted(rows, key=lambda row: (facets.index(row.facet), codes.index(row.language)))
    whole = [line(row) for row in rows if row.language == ALL_LANGUAGES]
    single = [line(row) for row in rows if row.language != ALL_LANGUAGES]
    if len(rows) <= LONG_TABLE or not whole:
        return [table._replace(lines=[line(row) for row in rows])]
    title = f"{table.title}, by language"
    return [table._replace(lines=whole), table._replace(name=table.name + BY_LANGUAGE, title=title, lines=single)]


def _agreement_line(row: AgreementRow) -> list[Value]:
    named = [row.facet, language_name(row.language), rater_name(row.first), rater_name(row.second)]
    items = Value(row.items, note=missing_note(row.missing))
    return [*map(Value, named), items, *(Value(*row.measure(name)) for name in MEASURES)]


def _flat(row: AgreementRow) -> dict[str, Any]:
    table = " | ".join(" ".join(map(str, counts)) for counts in row.confusion or [])
    reasons = "; ".join(f"{name}: {reason}" for name, reason in row.reasons.items())
    kept = {key: value for key, value in record(row).items() if key not in ("confusion", "reasons")}
    return kept | {"table": table, "reasons": reasons}


def _people_table(material: Material, rows: Sequence[PersonRow]) -> list[ReportTable]:
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

    def line(row: PersonRow) -> list[Value]:
        return [
            Value(row.facet),
            Value(language_name(row.language)),
            Value(rater_name(row.rater)),
            Value(row.items),
            Value(row.leniency, row.leniency_low, row.leniency_high),
            Value(row.kappa),
            Value(row.kappa_others),
            Value(", ".join(row.deviates)),
        ]

    records = [record(row) | {"rater": rater_name(row.rater), "deviates": ", ".join(row.deviates)} for row in rows]
    note = "Each person beside the mean of the others who read the same responses; marks are corrected (Holm)."
    return _in_parts(material, ReportTable("people", "Who deviates", note, columns, [], records), rows, line)


def _calibration_table(material: Material, rows: Sequence[CalibrationRow]) -> list[ReportTable]:
    if not rows:
        return []
    columns = [Column("run"), Column("language"), Column("facet"), Column("judge")]
    columns += [Column(who, "number") for who in rows[0].estimates]
    columns.append(Column("rated by people", "count"))

    def line(row: CalibrationRow) -> list[Value]:
        return [
            *map(Value, (row.run, language_name(row.language), row.facet, rater_name(row.judge))),
            *(Value(*one) for one in row.estimates.values()),
            Value(row.labelled, note=row.reason or ""),
        ]

    note = (
        f"Test prompts: mean value from 0 to 2, {material.confidence} interval. Calibrated: the people's mean, "
        "corrected by what the judge says of the responses that no person has read (prediction-powered inference); the "
        "responses that people rate must be a random sample."
    )
    table = ReportTable("calibration", "Judges calibrated by people", note, columns, [], rows)
    return _in_parts(material, table, rows, line)
