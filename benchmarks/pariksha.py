"""Agreement of people and of GPT-4 with people on PARIKSHA (Hindi, Bengali), beside the published range.

    python benchmarks/pariksha.py FOLDER

FOLDER holds hi.jsonl and bn.jsonl: a rating a line with prompt_id, model, language, facet, rater and value. Facets are
linguistic_acceptability and task_quality (0, 1, 2) and hallucination (0, 1), which is turned round here (1: none) so
that lenient means more on every facet. Intervals resample the 20 prompts of each language. Prints agreement by language
and facet, the mean of the languages beside the published range, how often each value was given, and who deviates.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from xlift.analysis.agreement import agreement_tables
from xlift.analysis.pairings import EACH, MAJORITY
from xlift.records import kind_of, read_jsonl

PUBLISHED = {"people": "0.32–0.44", "judge": "0.19–0.31"}
"""Linearly weighted kappa over languages and facets, Watts et al. 2024 (arXiv 2406.15053)."""
SHORT = {"linguistic_acceptability": "acceptability", "task_quality": "quality", "hallucination": "no hallucination"}
SIDES = {"people": "people", EACH: "GPT-4, each person", MAJORITY: "GPT-4, majority of people"}


def ratings(folder: Path) -> list[dict[str, Any]]:
    """The files' ratings as rating records; the rated model stands for the run."""
    rows = [row for path in sorted(folder.glob("*.jsonl")) for _, row in read_jsonl(path)]
    return [
        {**row, "id": row["prompt_id"], "run": row["model"], "step": 0, "response": "", "facet": SHORT[row["facet"]]}
        | ({"value": 1 - row["value"]} if row["facet"] == "hallucination" else {})
        for row in rows
    ]


def side(row: dict[str, Any]) -> str | None:
    """Which of SIDES a row is, None for single pairs of people and the people's mean."""
    key = row["second"] if row["between"] != "people" else "people" if row["first"] == "all people" else ""
    return SIDES.get(key)


def cell(row: dict[str, Any], name: str, scale: float = 1.0) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    digits = 0 if scale == 100 else 2
    shown = "–" if value is None else f"{value * scale:.{digits}f}"
    return shown if low is None else f"{shown} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    names = head.split(", ")
    return "\n".join(f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *rows]) + "\n"


def agreement_row(row: dict[str, Any]) -> list[str]:
    shown = [row["language"], row["facet"], str(side(row)), str(row["items"]), cell(row, "kappa")]
    shown += [cell(row, "agreement", 100), cell(row, "alpha")]
    return [*shown, "" if row["between"] == "people" else cell(row, "leniency")]


def mean_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Kappa by facet and side as the plain mean of the languages, beside the published range."""
    found = []
    for facet in SHORT.values():
        for shown in SIDES.values():
            values = [row["kappa"] for row in rows if row["facet"] == facet and side(row) == shown]
            found.append([facet, shown, f"{fmean(values):.2f}", PUBLISHED["people" if shown == "people" else "judge"]])
    return found


def value_rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """In percent, how often people and the judge gave 0, 1 and 2."""
    counts: dict[tuple[str, str, str], Counter[int]] = {}
    for record in records:
        key = (record["language"], record["facet"], kind_of(record["rater"]))
        counts.setdefault(key, Counter())[record["value"]] += 1
    return [
        [*key, *(f"{100 * found[value] / found.total():.0f}" for value in (0, 1, 2))]
        for key, found in sorted(counts.items())
    ]


def deviation_row(row: dict[str, Any]) -> list[str]:
    shown = [row["language"], row["facet"], row["rater"], str(row["items"]), cell(row, "leniency")]
    shown += [f"{row['leniency_p']:.3f}", f"{row['kappa']:.2f}", f"{row['kappa_others']:.2f}"]
    return [*shown, ", ".join(row["deviates"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    records = ratings(arguments.folder)
    began = time.perf_counter()
    tables = agreement_tables(records)
    seconds = time.perf_counter() - began
    rows = [row for row in tables["agreement"] if row["language"] != "all" and side(row)]
    rows.sort(key=lambda row: (row["language"], row["facet"]))
    people = [row for row in tables["people"] if row["language"] != "all"]
    print(table("language, facet, between, items, kappa, agree %, alpha, leniency", list(map(agreement_row, rows))))
    print(table("facet, between, kappa (mean of languages), published", mean_rows(rows)))
    print(table("language, facet, who, 0 %, 1 %, 2 %", value_rows(records)))
    head = "language, facet, person, items, leniency, p, kappa with others, of others, deviates"
    print(table(head, list(map(deviation_row, people))))
    print(f"{len(records)} ratings, 2,000 resamples, {seconds:.1f} s")


if __name__ == "__main__":
    main()
