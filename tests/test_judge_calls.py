"""Calls to a judge: what is tried again, what stops everything, what the server understands."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, Script, Serving, asked_facets, honest, misbehaving, serving
from test_judging import judge_at, judged, records

from xlift.errors import ConfigError, UserError
from xlift.judging.current import current_judge_ratings
from xlift.judging.questions import load_texts, requests_for
from xlift.judging.ratings import outcome_text
from xlift.records import read_records
from xlift.servers.calls import text_of
from xlift.servers.client import GIVE_UP_AFTER, Pace
from xlift.servers.completions import Features, adapted, request_body, retry_after
from xlift.servers.ledger import open_ledger
from xlift.study.served import Judge

FACETS = ["language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness"]
ONCE = Pace(tries=1, first_wait=0.01, longest_wait=0.01)


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving() as one:
        yield one


# --- retries ---------------------------------------------------------------------------------------------------------


def first_times(times: int, act: Act) -> Script:
    return lambda body, seen: act if seen < times else honest(body, seen)


@pytest.mark.parametrize("fault", ["429", "500", "cut", "garbage"])
def test_passing_faults_are_tried_again(fault: str, tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        return misbehaving(fault, body) if seen < 2 else honest(body, seen)

    with serving(script) as server:
        outcome, ratings = judged(tmp_path, judge_at(server), records(2))
        assert server.state.requests == 6
        assert outcome.missing == 0
        assert len(ratings) == 12


def test_a_slow_answer_counts_as_lost_and_is_asked_again(tmp_path: Path) -> None:
    with serving(first_times(1, Act("{}", delay=30))) as server:
        outcome, _ = judged(tmp_path, judge_at(server, timeout=0.3), records(1))
        assert outcome.missing == 0
        assert server.state.requests == 2


def test_retry_after_is_honoured_and_holds_for_all_calls(tmp_path: Path) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], seen: int) -> Act:
        times.append(time.monotonic())
        return Act(status=429, headers=(("Retry-After", "1"),)) if len(times) == 1 else honest(body, seen)

    with serving(script, latency=0.1) as server:
        judged(tmp_path, judge_at(server, concurrency=2), records(4))
    # The first two were sent before the server asked for silence; no call breaks it.
    assert len(times) == 5
    assert times[1] - times[0] < 0.5
    assert min(times[2:]) - times[0] >= 1.0


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    now = datetime(2026, 5, 4, 12, 0, 0, tzinfo=timezone.utc)
    assert retry_after("7", now) == 7
    assert retry_after("0.5", now) == 0.5
    assert retry_after("\x1d7 ", now) == 7
    assert retry_after("Mon, 04 May 2026 12:01:30 GMT", now) == 90
    assert retry_after("Mon, 04 May 2026 11:00:00 GMT", now) == 0
    assert retry_after("soon", now) is None
    assert retry_after(None, now) is None


def test_waits_come_from_the_seeded_generator_and_grow(tmp_path: Path) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], seen: int) -> Act:
        times.append(time.monotonic())
        return Act(status=500)

    with serving(script) as server:
        judged(tmp_path, judge_at(server), records(1), Pace(tries=4, first_wait=0.1, longest_wait=10, seed=3))
    chance = random.Random(3)
    expected = [0.1 * 2**i * chance.uniform(0.5, 1.0) for i in range(3)]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) == 3
    for wait, least in zip(waits, expected, strict=True):
        assert least <= wait < least + 0.3


def test_exhausted_retries_are_missing_with_a_reason_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    with serving(first_times(2, Act("overloaded", status=503))) as server:
        settings = judge_at(server)
        outcome, ratings = judged(tmp_path, settings, records(3), Pace(tries=2, first_wait=0.01, longest_wait=0.01))
        assert {one["value"] for one in ratings} == {None}
        assert {one["reason"] for one in ratings} == {"503: overloaded"}
        assert outcome.unanswered == 3
        assert "tried again by the next run\nthe first: 503: overloaded" in outcome_text(outcome)
        outcome, _ = judged(tmp_path, settings, records(3))
        assert outcome.responses == 3
        current = current_judge_ratings(tmp_path / "ratings.jsonl", records(3), settings)
        assert len(current) == 18
        assert all(one["value"] is not None for one in current)
        assert judged(tmp_path, settings, records(3))[0].responses == 0


def test_one_lost_call_of_six_is_the_only_one_sent_again(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        lost = "=== fluency ===" in body["messages"][0]["content"] and seen == 0
        return Act(status=500) if lost else Act(json.dumps(dict.fromkeys(asked_facets(body), 2) | _zero_fluency(body)))

    with serving(script) as server:
        settings = judge_at(server, calls="each")
        judged(tmp_path, settings, records(1), ONCE)
        assert server.state.requests == 6
        judged(tmp_path, settings, records(1), ONCE)
        assert server.state.requests == 7
        current = {one["facet"]: one for one in current_judge_ratings(tmp_path / "ratings.jsonl", records(1), settings)}
    # The late fluency 0 still lowers what was rated before it.
    assert current["fluency"]["value"] == 0
    assert current["accuracy"]["value"] == 0
    assert current["accuracy"]["detail"] == {"raw": 2, "rule": "fluency 0"}


def _zero_fluency(body: dict[str, Any]) -> dict[str, int]:
    return {"fluency": 0} if "fluency" in asked_facets(body) else {}


def test_a_server_that_answers_nothing_stops_the_run_early(tmp_path: Path) -> None:
    with serving(lambda body, seen: Act(status=500)) as server:
        with pytest.raises(UserError, match="does not answer: 500"):
            judged(tmp_path, judge_at(server), records(200), ONCE)
        assert GIVE_UP_AFTER <= server.state.requests <= GIVE_UP_AFTER + 4


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = Judge(model="m", base_url="http://127.0.0.1:9/v1", concurrency=2)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*does not answer") as raised:
        judged(tmp_path, settings, records(2), ONCE)
    assert "is the server running" in (raised.value.hint or "")


# --- what stops everything -------------------------------------------------------------------------------------------


def test_a_wrong_key_stops_at_once_and_is_never_shown_or_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-very-secret-1234567890"
    monkeypatch.setenv("JUDGE_KEY", secret)
    script: Script = lambda body, seen: Act(f"Incorrect API key provided: {secret}", status=401)  # noqa: E731
    with serving(script) as server:
        with pytest.raises(UserError, match="refuses the key") as raised:
            judged(tmp_path, judge_at(server, api_key_env="JUDGE_KEY"), records(50))
        assert server.state.requests <= 4
        assert server.state.headers[0]["authorization"] == f"Bearer {secret}"
    assert "JUDGE_KEY" in (raised.value.hint or "")
    assert secret not in str(raised.value)
    assert secret not in "".join(capfd.readouterr())
    for path in tmp_path.rglob("*.jsonl"):
        assert secret not in path.read_text()


def test_an_unknown_model_stops_at_once(tmp_path: Path) -> None:
    with serving(lambda body, seen: Act("The model `m` does not exist", status=404)) as server:
        with pytest.raises(UserError, match="no model 'm'"):
            judged(tmp_path, judge_at(server), records(50))
        assert server.state.requests <= 4 + 1


def test_an_empty_quota_stops_at_once_and_keeps_what_is_done(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        quota = Act("You exceeded your current quota, please check your plan", status=429)
        return quota if "Question 7" in body["messages"][1]["content"] else honest(body, seen)

    with serving(script) as server, pytest.raises(UserError, match="quota is used up"):
        judged(tmp_path, judge_at(server, concurrency=1), records(20))
    assert len({one["id"] for one in read_records(tmp_path / "ratings.jsonl")}) == 7


def test_a_hosted_judge_without_a_key_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        judged(tmp_path, Judge(model="m", base_url="https://judge.invalid/v1"), records(1))


def test_two_processes_cannot_judge_into_one_ledger(server: Serving, tmp_path: Path) -> None:
    busy = pytest.raises(ConfigError, match="another xlift process is asking")
    with open_ledger(tmp_path / "ledger.jsonl", judge_at(server)), busy:
        judged(tmp_path, judge_at(server), records(1))
    assert not (tmp_path / "ledger.jsonl").exists()


# --- what the server understands -------------------------------------------------------------------------------------


def picky(*minds: str) -> Script:
    """Refuses requests with these fields, naming the field, as servers do."""

    def script(body: dict[str, Any], seen: int) -> Act:
        roles = {message["role"] for message in body["messages"]}
        bad = [field for field in minds if field in body or field in roles]
        return Act(f"Unsupported parameter: '{bad[0]}'", status=400) if bad else honest(body, seen)

    return script


@pytest.mark.parametrize("minds", [["response_format"], ["max_tokens", "temperature", "seed"], ["system"]])
def test_a_parameter_that_the_server_refuses_is_left_out_by_itself(minds: list[str], tmp_path: Path) -> None:
    with serving(picky(*minds)) as server:
        outcome, _ = judged(tmp_path, judge_at(server, concurrency=2), records(8))
        assert outcome.missing == 0
        # Only the calls under way learn it; later ones are sent the right way at once.
        assert server.state.requests <= 8 + 2 * len(minds)
        last = server.state.bodies[-1]
        assert "Question" in last["messages"][-1]["content"]
        assert "=== fluency ===" in text_of(last["messages"])


def test_a_server_that_cannot_say_what_it_minds_is_asked_without_a_schema(tmp_path: Path) -> None:
    script: Script = lambda body, seen: Act("bad request", 400) if "response_format" in body else honest(body, seen)  # noqa: E731
    with serving(script) as server:
        assert judged(tmp_path, judge_at(server), records(2))[0].missing == 0


def test_a_response_too_long_for_the_model_is_missing_alone(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        long = "Question 1 " in body["messages"][1]["content"]
        return Act("This model's maximum context length is 2048 tokens", 400) if long else honest(body, seen)

    with serving(script) as server:
        outcome, ratings = judged(tmp_path, judge_at(server), records(4))
        assert {one["id"] for one in ratings if one["value"] is None} == {"p1"}
        assert outcome.missing == 6
        assert {body.get("response_format", {}).get("type") for body in server.state.bodies} == {"json_schema"}


def test_the_schema_allows_the_scale_alone(server: Serving, tmp_path: Path) -> None:
    settings = judge_at(server, temperature=0.25, seed=5, max_new_tokens=99)
    judged(tmp_path, settings, records(1))
    body = server.state.bodies[0]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.25, 5, 99)
    shape = body["response_format"]["json_schema"]["schema"]
    assert shape["properties"]["fluency"] == {"type": "integer", "enum": [0, 1, 2]}
    assert shape["required"] == FACETS


def test_features_are_taken_back_until_none_is_left() -> None:
    features: Features | None = Features(schema=True)
    seen = []
    while features is not None:
        seen.append(features)
        features = adapted(features, "response_format max_tokens temperature seed 'system'")
    assert len(seen) == 6
    request = requests_for(records(1)[0], Judge(model="m"), load_texts(Judge(model="m")))[0]
    body = request_body(Judge(model="m"), request, request.messages, seen[-1])
    assert set(body) == {"model", "messages", "max_completion_tokens"}
    assert [message["role"] for message in body["messages"]] == ["user"]
