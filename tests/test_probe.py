"""The probe: a judge is measured by what it sees and by what it leaves alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, Script, asked_facets, serving
from test_judging import QUICK, judge_at

from xlift.errors import ConfigError
from xlift.judging.probe import FAULTS, Hit, hits, probe, probe_cases, probe_table, share
from xlift.rating import rate
from xlift.study.data import builtin_languages

CASES = [case for case in probe_cases(["en", "fr", "ru"]) if "-parallel-" not in case["id"]]


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
        return probe(judge_at(server), folder, CASES, QUICK)[0]


def shares(found: list[Hit], **wanted: Any) -> tuple[float, float]:
    """How much of what is planted is seen, and how much of the rest is right."""
    kept = [hit for hit in found if all(getattr(hit, name) == value for name, value in wanted.items())]
    groups = [[hit for hit in kept if hit.planted is planted] for planted in (True, False)]
    return tuple(one.right / one.rated for one in map(share, groups))  # type: ignore[return-value]


def test_the_probe_covers_every_fault_three_times_in_every_built_in_language() -> None:
    cases = probe_cases()
    assert len({case["id"] for case in cases}) == len(cases)
    for code in builtin_languages():
        counts = Counter(case["fault"] for case in cases if case["language"] == code)
        assert set(counts) == {*FAULTS, "perfect"}, code
        assert min(counts.values()) >= 3, code
    for case in cases:
        assert set(case["planted"]) <= set(case["expected"])
        assert bool(case["planted"]) == (case["fault"] != "perfect")


def test_the_same_answers_are_there_once_in_every_language_with_the_same_fault() -> None:
    parallel = [case for case in probe_cases() if "parallel_id" in case]
    assert len({case["parallel_id"] for case in parallel}) == 14
    by_answer: dict[str, list[Any]] = {}
    for case in parallel:
        by_answer.setdefault(case["parallel_id"], []).append(case)
    for same in by_answer.values():
        assert sorted(case["language"] for case in same) == sorted(builtin_languages())
        assert len({(case["fault"], json.dumps(case["expected"])) for case in same}) == 1
        assert len({case["text"] for case in same}) == len(same)


def test_what_is_in_another_language_is_what_says_so() -> None:
    """The raters, which have never seen these texts, beside what is planted in them; some code-switching is small."""
    cases = [one for one in probe_cases() if one["fault"] in ("wrong_language", "perfect") and one["id"][-1] == "1"]
    found = {one["id"]: rate(one, "language")["value"] for one in cases}
    assert found == {one["id"]: one["expected"]["language"][0] for one in cases}


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
    lines = probe_table(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:5]] == ["all", "en", "fr", "ru"]
    count = sum(hit.planted for hit in found if hit.language == "ru")
    assert f" 0/{count} [0–" in lines[4]
    assert " 0/" not in "".join(lines[2:4])


def test_what_the_judge_does_not_rate_is_counted_as_missing(tmp_path: Path) -> None:
    found = measured(lambda body, seen: Act(None, refusal="No."), tmp_path)
    total = share(found)
    assert (total.right, total.rated) == (0, 0)
    assert total.missing == sum(len(case["expected"]) for case in CASES)
    assert total.interval is None
    assert "missing)" in probe_table(found)


def test_the_probe_is_paid_once(tmp_path: Path) -> None:
    with serving(constant(1)) as server:
        first = probe(judge_at(server), tmp_path, CASES, QUICK)[0]
        sent = server.state.requests
        assert probe(judge_at(server), tmp_path, CASES, QUICK)[0] == first
        assert server.state.requests == sent


@pytest.mark.parametrize("language", ["fr", "ru"])
def test_one_language_can_be_probed_alone(language: str) -> None:
    assert {case["language"] for case in probe_cases([language])} == {language}


def test_a_language_that_the_probe_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="the probe has no 'sw'"):
        probe_cases(["fr", "sw"])


def test_facets_that_the_judge_does_not_rate_are_left_out() -> None:
    rating: Any = {"id": CASES[0]["id"], "facet": "language", "value": 0.0}
    assert [(hit.facet, hit.planted, hit.right) for hit in hits(CASES, [rating])] == [("language", True, True)]
