"""How good a judge is: responses with known faults, in each language, and how often the judge sees what is planted.

A judge that calls everything bad sees every fault, so what is not planted counts as well: how often the other facets,
and the faultless responses, get a value that fits. Both are shares of the values given; what is missing is told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlift.intervals import wilson
from xlift.judging.current import current_judge_ratings
from xlift.judging.ratings import CallEstimate, JudgingOutcome, estimate_ratings, judge_responses, ledger_path
from xlift.records import FACETS, Rating, read_jsonl
from xlift.servers.client import PACE, Pace
from xlift.study.served import Judge
from xlift.terminal import aligned

PROBE = Path(__file__).parent.parent / "data" / "builtin" / "probe.jsonl"
FAULTS = ("wrong_language", "code_switching", "broken_grammar", "off_topic", "false_fact", "contradiction", "harmful")


@dataclass(frozen=True)
class Hit:
    """One expected value: the facet of a probe response, whether its fault lies there, and whether the judge's value
    is one of those expected (None where the judge gave none)."""

    id: str
    language: str
    fault: str
    facet: str
    planted: bool
    right: bool | None


@dataclass(frozen=True)
class ShareRight:
    """So many of so many values right, and so many missing."""

    right: int
    rated: int
    missing: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval of the share."""
        return wilson(self.right / self.rated, self.rated) if self.rated else None


def probe_cases(languages: Sequence[str] | None = None, path: Path = PROBE) -> list[dict[str, Any]]:
    """The probe's responses, as records a judge can rate."""
    cases = [record for _, record in read_jsonl(path)]
    return [case for case in cases if languages is None or case["language"] in languages]


def probe(
    settings: Judge, folder: Path, cases: Sequence[dict[str, Any]] | None = None, pace: Pace = PACE
) -> tuple[list[Hit], JudgingOutcome]:
    """Let the judge rate the probe; ratings and ledger are kept in `folder`, so that a second run costs nothing."""
    shown = probe_cases() if cases is None else cases
    ratings = _ratings(folder, settings)
    outcome = judge_responses(shown, settings, ratings, ledger_path(folder, settings), pace=pace)
    return hits(shown, current_judge_ratings(ratings, shown, settings)), outcome


def estimate_probe(settings: Judge, folder: Path) -> CallEstimate:
    """What probing a judge would take; nothing is sent or written."""
    return estimate_ratings([(probe_cases(), _ratings(folder, settings))], settings, ledger_path(folder, settings))


def _ratings(folder: Path, settings: Judge) -> Path:
    return folder / f"probe-{settings.label}.jsonl"


def hits(cases: Iterable[dict[str, Any]], ratings: Iterable[Rating]) -> list[Hit]:
    """Each expected value beside the judge's; facets that the judge does not rate are left out."""
    values = {(rating["id"], rating["facet"]): rating["value"] for rating in ratings}
    return [
        _hit(case, facet, expected, values[case["id"], facet])
        for case in cases
        for facet, expected in case["expected"].items()
        if (case["id"], facet) in values
    ]


def _hit(case: dict[str, Any], facet: str, expected: list[int], value: float | None) -> Hit:
    right = None if value is None else value in expected
    return Hit(case["id"], case["language"], case["fault"], facet, facet in case["planted"], right)


def share(found: Iterable[Hit]) -> ShareRight:
    """How many of these the judge has right."""
    kept = list(found)
    rated = [hit.right for hit in kept if hit.right is not None]
    return ShareRight(sum(rated), len(rated), len(kept) - len(rated))


def probe_table(found: Sequence[Hit]) -> str:
    """What is planted and seen by fault, then by facet, then how often the rest is right; a column a language."""
    planted = [hit for hit in found if hit.planted]
    others = [hit for hit in found if not hit.planted]
    facets = [facet for facet in FACETS if any(hit.facet == facet for hit in found)]
    faults = [fault for fault in FAULTS if any(hit.fault == fault for hit in planted)]
    languages = list(dict.fromkeys(hit.language for hit in found))
    faultless = [hit for hit in others if hit.fault == "perfect"]
    return aligned(
        [
            ["", *languages, *(["all"] if len(languages) > 1 else [])],
            *_section("planted fault seen", planted, languages, faults, lambda hit: hit.fault),
            *_section("planted fault seen", planted, languages, facets, lambda hit: hit.facet),
            *_section("the rest right", others, languages, facets, lambda hit: hit.facet),
            *_section("faultless right", faultless, languages, [], lambda hit: hit.facet),
        ]
    )


def _section(
    title: str, found: list[Hit], languages: Sequence[str], names: Sequence[str], name_of: Callable[[Hit], str]
) -> list[list[str]]:
    groups = [(f"  {name}", [hit for hit in found if name_of(hit) == name]) for name in names]
    return [[label, *_cells(group, languages)] for label, group in [(title, found), *groups] if group]


def _cells(found: list[Hit], languages: Sequence[str]) -> list[str]:
    columns = [[hit for hit in found if hit.language == code] for code in languages]
    return [_cell(share(column)) for column in (columns if len(languages) == 1 else [*columns, found])]


def _cell(one: ShareRight) -> str:
    interval = one.interval
    if interval is None:
        return f"– ({one.missing} missing)" if one.missing else "–"
    low, high = interval
    missing = f" ({one.missing} missing)" if one.missing else ""
    return f"{one.right}/{one.rated} [{low:.0%}–{high:.0%}]{missing}"
