"""What the report says of a study's judges: how good and how even they are, how far a panel agrees, which run they
prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xlift.judging.across import Items, across_languages, items_of, shifts
from xlift.judging.pairs import Comparison, summarise_pairs
from xlift.judging.panel import unity
from xlift.judging.probe import ShareRight as Share
from xlift.judging.probe import hits, names_in, parallel_answers, probe_cases, probed_before, shares_of
from xlift.languages import language_name
from xlift.records import PANEL, read_records
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.reading import Material, rater_name
from xlift.report.wide import missing_note
from xlift.study.served import Judge


def judge_tables(material: Material) -> list[ReportTable]:
    """As many tables as there is something to tell; a judge that was not probed has none."""
    folder = material.workspace.path / "probes"
    probed = [(judge, found) for judge in material.workspace.study.judges if (found := probed_before(judge, folder))]
    items = [(judge, items_of(parallel_answers(), found)) for judge, found in probed]
    several = [(judge, own) for judge, own in items if any(len(by) > 1 for by in own.values())]
    made = [
        *(_probe_table(probed), _kappa_table(material, several), _shift_table(material, several)),
        *(_panel_table(material), _pairs_table(material)),
    ]
    return [table for table in made if table and table.lines]


def _probe_table(probed: list[tuple[Judge, Any]]) -> ReportTable:
    lines, records = [], []
    for judge, ratings in probed:
        found = hits(probe_cases(), ratings)
        languages = names_in(found)[0]
        for code in (*languages, *(["all"] if len(languages) > 1 else [])):
            shares = shares_of(hit for hit in found if code in (hit.language, "all"))
            lines.append([Value(judge.label), Value(language_name(code)), *map(_share, shares.values())])
            counts = {f"{name}_{key}": getattr(one, key) for name, one in shares.items() for key in ("right", "rated")}
            records.append({"judge": judge.label, "language": code, **counts})
    columns = [Column("judge"), Column("language")]
    columns += [Column(name, "share") for name in ("planted fault seen", "the rest right", "faultless right")]
    note = (
        "Built-in responses with known faults: how often the judge sees what is planted, and how often it is right on "
        "what is not. A judge that calls everything bad has the first alone. Wilson intervals, 95 %."
    )
    return ReportTable("judge-probe", "Judges on responses with known faults", note, columns, lines, records)


def _share(one: Share) -> Value:
    low, high = one.interval or (None, None)
    return Value(one.right / one.rated if one.rated else None, low, high, missing_note(one.missing))


def _kappa_table(material: Material, judged: list[tuple[Judge, Items]]) -> ReportTable:
    found = [(judge, one) for judge, items in judged for one in across_languages(items, **material.resampling)]
    lines = [
        [
            *map(Value, (judge.label, one.facet)),
            Value(one.kappa, one.low, one.high, one.reason or ""),
            Value(one.items, note=missing_note(one.missing)),
        ]
        for judge, one in found
    ]
    columns = [Column("judge"), Column("facet"), Column("Fleiss' kappa", "number"), Column("answers", "count")]
    note = (
        "The same answers in several languages, judged in each: 1 where a judge gives an answer the same value in "
        f"every language, 0 where no more than chance. {material.confidence} intervals over answers. Judges that "
        "others have measured so reach about 0.3 (Fu & Liu 2025, arXiv 2505.12201)."
    )
    records = [{"judge": judge.label, **one._asdict()} for judge, one in found]
    return ReportTable("judge-consistency", "The same answer in every language", note, columns, lines, records)


def _shift_table(material: Material, judged: list[tuple[Judge, Items]]) -> ReportTable:
    found = [(judge, one) for judge, items in judged for one in shifts(items, **material.resampling)]
    lines = [
        [
            *map(Value, (judge.label, language_name(one.language))),
            Value(one.shift.mean, one.shift.low, one.shift.high, missing_note(one.shift.missing)),
        ]
        for judge, one in found
    ]
    columns = [Column("judge"), Column("language"), Column("above the other languages", "signed")]
    note = (
        "Mean difference of a judge's values, each scale drawn from 0 to 2, to those that it gives the same answers in "
        f"the other languages: above zero it is kinder in this one. {material.confidence} intervals over answers."
    )
    records = [{"judge": judge.label, "language": one.language, **vars(one.shift)} for judge, one in found]
    return ReportTable("judge-shift", "Where a judge is kinder", note, columns, lines, records)


def _panel_table(material: Material) -> ReportTable | None:
    panel = material.workspace.study.panel
    if not panel:
        return None
    found = unity(
        rating
        for one in material.answered
        for rater, ratings in one.rated.items()
        if rater.startswith(PANEL)
        for rating in ratings
    )
    lines = []
    for one in found:
        share = Share(one.alike, one.rated, one.incomplete)
        number = Value(one.spread, note=f"{one.missing} without a value" if one.missing else "")
        lines.append([Value(one.facet), Value(language_name(one.language)), _share(share), number])
    columns = [Column("facet"), Column("language")]
    columns += [Column("all say the same", "share"), Column("mean distance", "number")]
    note = (
        f"The panel “{panel.name}” says the {panel.take} of its judges' values where {panel.least} of them or more "
        "have given one. Distance: the highest value minus the lowest. Missing: a judge gave no value."
    )
    return ReportTable("panel", "How far the judges agree", note, columns, lines, [one._asdict() for one in found])


def _pairs_table(material: Material) -> ReportTable:
    labels = {one.run.id: one.run.label for one in material.answered}
    lines, records = [], []
    for path in sorted((material.workspace.path / "comparisons").glob("*.judge-*.jsonl")):
        for row, first, second, rater in _compared(path):
            if first in labels and second in labels:
                told = [labels[first], labels[second], rater_name(rater), language_name(row.language)]
                lines.append([*map(Value, told), *_preferred(row)])
                shown = {"first": told[0], "second": told[1], "judge": told[2], "language": row.language}
                records.append(shown | vars(row.wins) | {"ties": row.tie, "consistent": row.consistent})
    columns = [
        Column("first"),
        Column("second"),
        Column("judge"),
        Column("language"),
        Column("first preferred", "share"),
    ]
    columns += [Column("ties", "count"), Column("orders agree", "share"), Column("shown first won", "share")]
    note = (
        "A judge reads both answers to a prompt, in both orders; verdicts that disagree are ties, which count half. "
        f"{material.confidence} intervals, translations of a prompt together. Far from 50 % of the response "
        "shown first: the judge looks at the place."
    )
    return ReportTable("judge-pairs", "Runs side by side", note, columns, lines, records)


def _compared(path: Path) -> list[tuple[Comparison, str, str, str]]:
    """The comparisons of one file, of its latest signature: older ones were made with other rubrics."""
    found = read_records(path)
    kept = {record["request"]: record for record in found if record["signature"] == found[-1]["signature"]}
    last = list(kept.values())
    return (
        [(row, last[0]["first"], last[0]["second"], last[0]["rater"]) for row in summarise_pairs(last)] if last else []
    )


def _preferred(row: Comparison) -> list[Value]:
    wins = row.wins
    shares = [Value(row.consistent), Value(row.shown_first)]
    return [Value(wins.mean, wins.low, wins.high, missing_note(wins.missing)), Value(row.tie), *shares]
