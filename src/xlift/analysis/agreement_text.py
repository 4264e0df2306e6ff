"""How far raters agree, as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlift.analysis.agreement import HEADINGS, MEASURES
from xlift.analysis.pairings import SINGLY
from xlift.terminal import paged, terminal_room, wrapped


def text_tables(tables: Mapping[str, Any]) -> str:
    """What `agreement_tables` gives, as text for the terminal: what there is, then what was rated by two at least."""
    there = tables["there"]
    counted = "{ratings} ratings, {missing} of them missing; responses: {responses}, languages: {languages}"
    names = [counted.format(**there)] if there["ratings"] else []
    for kind, raters in tables["raters"].items():
        names += [f"{kind}: {', '.join(rater.removeprefix(f'{kind}:') for rater in raters)}"] if raters else []
    people = len(tables["raters"]["human"])
    if people > SINGLY:
        names.append(f"of {people} people not every two are shown: look at who deviates")
    parts = ["\n".join(wrapped(name, terminal_room()) for name in names)]
    for between, heading in HEADINGS.items():
        rows = [row for row in tables["agreement"] if row["between"] == between and row["pairs"]]
        if rows:
            parts.append(f"{heading}\n{paged([AGREEMENT_HEAD, *map(_agreement_cells, rows)], keep=4)}")
    if tables["people"]:
        parts.append(f"Who deviates\n{paged([PEOPLE_HEAD, *map(_people_cells, tables['people'])], keep=3)}")
    empty = sum(not row["pairs"] for row in tables["agreement"])
    if empty:
        parts.append(f"left out: {empty} rows of raters without a value in common")
    if not tables["agreement"]:
        parts.append("nothing to compare: no response has been rated by two raters for the same facet")
    shown = [row for row in tables["agreement"] if row["pairs"]]
    reasons = sorted({reason for row in shown for reason in row["reasons"].values()})
    if reasons:
        told = ["where there is no figure or no interval:", *(f"  {reason}" for reason in reasons)]
        parts.append("\n".join(wrapped(line, terminal_room()) for line in told))
    return "\n\n".join(part for part in parts if part)


AGREEMENT_HEAD = [
    "facet",
    "lang",
    "first",
    "second",
    "items",
    "missing",
    *MEASURES,
    "table (rows: first's)",
]
PEOPLE_HEAD = ["facet", "lang", "person", "items", "leniency", "kappa", "others", "difference", "deviates"]


def _agreement_cells(row: Mapping[str, Any]) -> list[str]:
    table = " | ".join(" ".join(map(str, counts)) for counts in row["confusion"] or [])
    names = [row[key].removeprefix("human:") if row["between"] == "people" else row[key] for key in ("first", "second")]
    own = [row["facet"], row["language"], *names, str(row["items"]), str(row["missing"])]
    return [*own, *(_cell(row, name) for name in MEASURES), table]


def _people_cells(row: Mapping[str, Any]) -> list[str]:
    own = [row["facet"], row["language"], row["rater"].removeprefix("human:"), str(row["items"])]
    kappas = ["–" if row[name] is None else f"{row[name]:.2f}" for name in ("kappa", "kappa_others")]
    return [*own, _cell(row, "leniency"), *kappas, _cell(row, "kappa_difference"), ", ".join(row["deviates"])]


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    shown = "–" if value is None else f"{value:.2f}"
    return shown if low is None else f"{shown} [{low:.2f}, {high:.2f}]"
