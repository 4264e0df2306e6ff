"""The probe: a judge is measured by what it sees and by what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, Script, asked_facets, serving
from test_judging import QUICK, judge_at

from xlift.judging.probe import FAULTS, Hit, hits, probe, probe_cases, probe_table, share

CASES = probe_cases()


def knowing(wrong: set[str] = frozenset()) -> Script:  # type: ignore[assignment]
    """A judge that knows the expected values, save in these languages, where it calls everything perfect."""
    texts = {case["text"]: case for case in CASES}

    def script(body: dict[str, Any], seen: int) -> Act:
        case = next(case for text, case in texts.items() if text in body["messages"][1]["content"])
        values = dict.fromkeys(asked_facets(body), 2)
        if case["language"] not in wrong:
            values |= {facet: expected[0] for facet, expected in case["expected"].items()}
        return Act(json.dumps(values))

    return script


def constant(value: int) -> Script:
    return lambda body, seen: Act(json.dumps(dict.fromkeys(asked_facets(body), value)))


def measured(script: Script, folder: Path) -> list[Hit]:
    with serving(script) as server:
        return probe(judge_at(server), folder, pace=QUICK)[0]


def shares(found: list[Hit], **wanted: Any) -> tuple[float, float]:
    """How much of what is planted is seen, and how much of the rest is right."""
    kept = [hit for hit in found if all(getattr(hit, name) == value for name, value in wanted.items())]
    groups = [[hit for hit in kept if hit.planted is planted] for planted in (True, False)]
    return tuple(one.right / one.rated for one in map(share, groups))  # type: ignore[return-value]


def test_the_probe_covers_every_fault_in_every_language() -> None:
    assert len(CASES) >= 60
    assert {(case["language"], case["fault"]) for case in CASES} == {
        (code, fault) for code in ("en", "fr", "pt", "ru") for fault in (*FAULTS, "perfect")
    }
    for case in CASES:
        assert set(case["planted"]) <= set(case["expected"])
        assert bool(case["planted"]) == (case["fault"] != "perfect")


def test_a_judge_that_knows_the_answers_is_right_throughout(tmp_path: Path) -> None:
    assert shares(measured(knowing(), tmp_path)) == (1.0, 1.0)


def test_a_judge_that_calls_everything_bad_sees_every_fault_and_is_wrong_elsewhere(tmp_path: Path) -> None:
    seen, right = shares(measured(constant(0), tmp_path))
    assert seen > 0.6
    assert right < 0.1


def test_a_judge_that_calls_everything_good_sees_nothing(tmp_path: Path) -> None:
    seen, right = shares(measured(constant(2), tmp_path))
    assert seen == 0
    assert right > 0.8


def test_a_judge_that_is_blind_in_one_language_shows_there(tmp_path: Path) -> None:
    found = measured(knowing({"ru"}), tmp_path)
    assert shares(found, language="ru")[0] == 0
    assert shares(found, language="fr") == (1.0, 1.0)
    header, planted, *_ = probe_table(found).splitlines()
    assert header.split() == ["en", "fr", "pt", "ru", "all"]
    count = sum(hit.planted for hit in found if hit.language == "ru")
    assert f" 0/{count} [0%" in planted
    assert planted.count(" 0/") == 1


def test_what_the_judge_does_not_rate_is_counted_as_missing(tmp_path: Path) -> None:
    found = measured(lambda body, seen: Act(None, refusal="No."), tmp_path)
    total = share(found)
    assert (total.right, total.rated) == (0, 0)
    assert total.missing == sum(len(case["expected"]) for case in CASES)
    assert total.interval is None
    assert "missing)" in probe_table(found)


def test_the_probe_is_paid_once(tmp_path: Path) -> None:
    with serving(constant(1)) as server:
        first = probe(judge_at(server), tmp_path, pace=QUICK)[0]
        sent = server.state.requests
        assert probe(judge_at(server), tmp_path, pace=QUICK)[0] == first
        assert server.state.requests == sent


@pytest.mark.parametrize("language", ["fr", "ru"])
def test_one_language_can_be_probed_alone(language: str) -> None:
    assert {case["language"] for case in probe_cases([language])} == {language}


def test_facets_that_the_judge_does_not_rate_are_left_out() -> None:
    rating: Any = {"id": CASES[0]["id"], "facet": "language", "value": 0.0}
    assert [(hit.facet, hit.planted, hit.right) for hit in hits(CASES, [rating])] == [("language", True, True)]
