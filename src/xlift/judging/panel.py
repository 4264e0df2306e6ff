"""Several judges as one rater: the mean or the majority of their values, and how far they disagree.

A judge without a value stays without one: it is told, and never counts as 0. Too few values make none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from xlift.intervals import wilson
from xlift.records import FACETS, PANEL, Rating, fingerprint
from xlift.study.sections import Panel
from xlift.study.served import Judge
from xlift.terminal import paged, share_text

VERSION = "panel v1"


class Unity(NamedTuple):
    """How far a panel agrees on one facet in one language: responses with a value, those on which all who gave one
    said the same, the mean distance between the highest and the lowest value, responses without a value, and those
    that a judge left out."""

    facet: str
    language: str
    rated: int
    alike: int
    spread: float | None
    missing: int
    incomplete: int


def members(panel: Panel, judges: Sequence[Judge]) -> list[str]:
    """The raters that sit on a panel."""
    return [f"judge:{one.known_as}" for one in judges if not panel.judges or one.label in panel.judges]


def panel_ratings(panel: Panel, judges: Sequence[Judge], ratings: Iterable[Rating]) -> list[Rating]:
    """The panel's rating of each facet of each response that a member has rated."""
    raters = members(panel, judges)
    groups: dict[tuple[str, str], dict[str, Rating]] = {}
    for rating in ratings:
        if rating["rater"] in raters:
            groups.setdefault((rating["id"], rating["facet"]), {})[rating["rater"]] = rating
    return [_rating(panel, raters, own) for own in groups.values()]


def _rating(panel: Panel, raters: Sequence[str], own: dict[str, Rating]) -> Rating:
    values = {name: own[name]["value"] if name in own else None for name in raters}
    known = [value for value in values.values() if value is not None]
    value, reason = together(known, panel)
    first = next(iter(own.values()))
    same = ("id", "language", "run", "step", "facet", "response", "scale")
    kept: dict[str, Any] = {key: value for key, value in first.items() if key in same}
    silent = {name: _why(own.get(name)) for name in raters if values[name] is None}
    detail: dict[str, Any] = {"values": {name: one for name, one in values.items() if one is not None}}
    detail |= {"missing": silent} if silent else {}
    signed = fingerprint([one["signature"] for one in own.values()], length=8)
    made = {**kept, "rater": f"{PANEL}{panel.name}", "value": value, "detail": detail}
    made |= {"signature": f"{VERSION}|{panel.take} of {len(raters)}, {panel.least} at least|{signed}"}
    return cast(Rating, made | ({"reason": reason} if reason else {}))


def _why(rating: Rating | None) -> str:
    return rating.get("reason", "no reason told") if rating else "not asked yet"


# e.g. together([2.0, 1.0, 1.0], Panel(take="majority")) → (1.0, None)
# e.g. together([2.0, 1.0], Panel()) → (1.5, None)
# e.g. together([0.0, 2.0], Panel(take="majority")) → (None, "no majority: 0, 2")
# e.g. together([2.0], Panel()) → (None, "1 of the 2 values that a panel needs")
def together(values: Sequence[float], panel: Panel) -> tuple[float | None, str | None]:
    """What a panel says where its judges say this, or why it says nothing."""
    if len(values) < panel.least:
        return None, f"{len(values)} of the {panel.least} values that a panel needs"
    if panel.take == "mean":
        return sum(values) / len(values), None
    value, times = Counter(values).most_common(1)[0]
    if 2 * times > len(values):
        return value, None
    return None, f"no majority: {', '.join(f'{one:g}' for one in sorted(values))}"


def unity(ratings: Iterable[Rating]) -> list[Unity]:
    """How far the panel of these ratings agrees, by facet and language, then over all languages."""
    groups: dict[tuple[str, str], list[Rating]] = {}
    for rating in ratings:
        if rating["rater"].startswith(PANEL):
            for language in (rating["language"], "all"):
                groups.setdefault((rating["facet"], language), []).append(rating)
    order = [*FACETS, *dict.fromkeys(facet for facet, _ in groups if facet not in FACETS)]
    return [_unity(*key, groups[key]) for key in sorted(groups, key=lambda key: order.index(key[0]))]


def _unity(facet: str, language: str, ratings: Sequence[Rating]) -> Unity:
    given = [list(one["detail"]["values"].values()) for one in ratings]
    spreads = [max(values) - min(values) for values in given if len(values) > 1]
    missing = sum(one["value"] is None for one in ratings)
    incomplete = sum("missing" in one["detail"] for one in ratings)
    mean = sum(spreads) / len(spreads) if spreads else None
    return Unity(facet, language, len(spreads), spreads.count(0), mean, missing, incomplete)


def panel_text(panel: Panel, judges: Sequence[Judge], found: Sequence[Unity]) -> str:
    """How far a panel agrees, over all languages."""
    rows = [["", "all say the same", "mean distance", "no value", "a judge missing"]]
    for one in found:
        if one.language == "all":
            alike = "–"
            if one.rated:
                alike = share_text(one.alike / one.rated, *wilson(one.alike / one.rated, one.rated))
            spread = "–" if one.spread is None else f"{one.spread:.2f}"
            rows.append([one.facet, alike, spread, str(one.missing), str(one.incomplete)])
    names = ", ".join(name.partition(":")[2] for name in members(panel, judges))
    return f"{panel.name}: {panel.take} of {names}\n{paged(rows)}"
