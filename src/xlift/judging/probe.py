"""How good a judge is: responses with known faults, in each language, and how often the judge sees what is planted.

A judge that calls everything bad sees every fault, so what is not planted counts as well: how often the other facets,
and the faultless responses, get a value that fits. Both are shares of the values given; what is missing is told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xlift.errors import ConfigError, nearest
from xlift.intervals import wilson
from xlift.judging.current import current_judge_ratings
from xlift.judging.ratings import CallEstimate, JudgingOutcome, estimate_ratings, judge_responses, ledger_path
from xlift.records import FACETS, Rating, from_0_to_2, read_jsonl
from xlift.servers.client import PACE, Pace
from xlift.study.served import Judge
from xlift.terminal import paged

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


def probe_cases(languages: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The probe's responses, as records a judge can rate. Raises ConfigError for languages that it does not have."""
    cases = [record for _, record in read_jsonl(PROBE)]
    there = {case["language"] for case in cases}
    if other := [code for code in languages or () if code not in there]:
        problems = [f"the probe has no '{code}'; {nearest(code, sorted(there))}" for code in other]
        raise ConfigError(problems, "--languages of these")
    return [case for case in cases if languages is None or case["language"] in languages]


def probe(
    settings: Judge, folder: Path, cases: Sequence[dict[str, Any]] | None = None, pace: Pace = PACE
) -> tuple[list[Hit], JudgingOutcome]:
    """Let the judge rate the probe; ratings and ledger are kept in `folder`, so that a second run costs nothing."""
    shown = probe_cases() if cases is None else cases
    ratings = probe_file(folder, settings)
    outcome = judge_responses(shown, settings, ratings, ledger_path(folder, settings), pace=pace)
    return hits(shown, current_judge_ratings(ratings, shown, settings)), outcome


def estimate_probe(settings: Judge, folder: Path, languages: Sequence[str] | None = None) -> CallEstimate:
    """What probing a judge would take; nothing is sent or written."""
    part = (probe_cases(languages), probe_file(folder, settings))
    return estimate_ratings([part], settings, ledger_path(folder, settings))


def probed_before(settings: Judge, folder: Path) -> list[Rating]:
    """What a judge, as it is now, has said of the probe's responses."""
    path = probe_file(folder, settings)
    return current_judge_ratings(path, probe_cases(), settings) if path.is_file() else []


def parallel_answers() -> dict[str, str]:
    """By id of a response: the answer that it is, whose content is the same in every language."""
    return {case["id"]: case["parallel_id"] for case in probe_cases() if "parallel_id" in case}


def probe_file(folder: Path, settings: Judge) -> Path:
    return folder / f"probe-{settings.label}.jsonl"


def hits(cases: Iterable[dict[str, Any]], ratings: Iterable[Rating]) -> list[Hit]:
    """Each expected value beside the judge's; facets that the judge does not rate are left out.

    What is expected is 0, 1 or 2; a value of another scale is right within half a step of it once drawn from 0 to 2.
    """
    values = {(rating["id"], rating["facet"]): from_0_to_2(rating) for rating in ratings}
    return [
        _hit(case, facet, expected, values[case["id"], facet])
        for case in cases
        for facet, expected in case["expected"].items()
        if (case["id"], facet) in values
    ]


def _hit(case: dict[str, Any], facet: str, expected: list[int], value: float | None) -> Hit:
    right = None if value is None else any(abs(value - one) <= 0.5 for one in expected)
    return Hit(case["id"], case["language"], case["fault"], facet, facet in case["planted"], right)


def share(found: Iterable[Hit]) -> ShareRight:
    """How many of these the judge has right."""
    kept = list(found)
    rated = [hit.right for hit in kept if hit.right is not None]
    return ShareRight(sum(rated), len(rated), len(kept) - len(rated))


def probe_table(found: Sequence[Hit]) -> str:
    """How often what is planted is seen, the rest is right, and faultless answers are: by language, fault and facet."""
    languages, faults, facets = names_in(found)
    groups = [("all", list(found))] if len(languages) > 1 else []
    groups += [(code, [hit for hit in found if hit.language == code]) for code in languages]
    rows = [["", "planted fault seen", "the rest right", "faultless right"], *(_row(*group) for group in groups)]
    for title, names, name_of in (("fault", faults, _fault), ("facet", facets, _facet)):
        rows += [[""] * 4, [f"by {title}", "", "", ""]]
        rows += [_row(f"  {name}", [hit for hit in found if name_of(hit) == name]) for name in names]
    return paged(rows)


def names_in(found: Sequence[Hit]) -> tuple[list[str], list[str], list[str]]:
    """The languages, faults and facets that there are hits of."""
    return (
        list(dict.fromkeys(hit.language for hit in found)),
        [fault for fault in FAULTS if any(hit.fault == fault for hit in found)],
        [facet for facet in FACETS if any(hit.facet == facet for hit in found)],
    )


def shares_of(found: Iterable[Hit]) -> dict[str, ShareRight]:
    """How much of what is planted is seen, how much of the rest is right, and of what has no fault at all."""
    kept = list(found)
    return {
        "seen": share(hit for hit in kept if hit.planted),
        "right": share(hit for hit in kept if not hit.planted),
        "faultless": share(hit for hit in kept if hit.fault == "perfect"),
    }


def probe_records(found: Sequence[Hit]) -> list[dict[str, Any]]:
    """The shares of every language, fault and facet that are met, for other programs."""
    groups: dict[tuple[str, str, str], list[Hit]] = {}
    for hit in found:
        groups.setdefault((hit.language, hit.fault, hit.facet), []).append(hit)
    return [
        {"language": language, "fault": fault, "facet": facet, "planted": own[0].planted, **asdict(share(own))}
        for (language, fault, facet), own in groups.items()
    ]


def _fault(hit: Hit) -> str:
    return hit.fault


def _facet(hit: Hit) -> str:
    return hit.facet


def _row(name: str, found: Sequence[Hit]) -> list[str]:
    return [name, *map(_cell, shares_of(found).values())]


def _cell(one: ShareRight) -> str:
    interval = one.interval
    missing = f" ({one.missing} missing)" if one.missing else ""
    if interval is None:
        return f"–{missing}"
    return f"{one.right}/{one.rated} [{interval[0] * 100:.0f}–{interval[1] * 100:.0f}%]{missing}"
