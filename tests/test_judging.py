"""Judging against a real loopback server: resume, retries, budgets, and a run in which everything goes wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Script, Serving, faulty, honest, identity, serving

from xlift.disk import write_jsonl
from xlift.errors import ConfigError
from xlift.judging.current import current_judge_ratings
from xlift.judging.judges import judge_file
from xlift.judging.questions import BUILTIN_RUBRICS, load_texts, requests_for
from xlift.judging.ratings import estimate_ratings, estimate_text, judge_parts, judge_responses, outcome_text
from xlift.rating import text_fingerprint
from xlift.records import read_records
from xlift.servers.calls import ServedReply
from xlift.servers.client import Pace
from xlift.servers.ledger import estimated_tokens, most_tokens
from xlift.study.served import Judge

FACETS = ["language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness"]
QUICK = Pace(tries=6, first_wait=0.01, longest_wait=0.05)
ONCE = Pace(tries=1, first_wait=0.01, longest_wait=0.01)


def records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{i}",
            "language": "fr",
            "run": "lora-1",
            "step": 20,
            "messages": [{"role": "user", "content": f"Question {i} ?"}],
            "text": f"Réponse {i}.",
        }
        for i in range(count)
    ]


def judge_at(server: Serving, **settings: Any) -> Judge:
    return Judge(model="m", base_url=server.url, **{"concurrency": 4, "timeout": 2.0, **settings})


def judged(
    tmp_path: Path, settings: Judge, items: list[dict[str, Any]], pace: Pace = QUICK
) -> tuple[Any, list[dict[str, Any]]]:
    """The outcome, and the ratings in the file."""
    outcome = judge_responses(items, settings, tmp_path / "ratings.jsonl", tmp_path / "ledger.jsonl", pace=pace)
    return outcome, read_records(tmp_path / "ratings.jsonl")


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving() as one:
        yield one


def test_every_facet_of_every_response_gets_one_rating(server: Serving, tmp_path: Path) -> None:
    outcome, ratings = judged(tmp_path, judge_at(server), records(5))
    assert outcome.made == 30
    assert outcome.missing == 0
    assert Counter((one["id"], one["facet"]) for one in ratings) == {
        (f"p{i}", facet): 1 for i in range(5) for facet in FACETS
    }
    assert {one["rater"] for one in ratings} == {"judge:m"}
    assert [one["response"] for one in ratings[::6]] == [text_fingerprint(record) for record in _by_id(ratings[::6])]


def _by_id(ratings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {record["id"]: record for record in records(5)}
    return [known[one["id"]] for one in ratings]


def test_one_call_a_facet_asks_each_alone_with_its_own_rubric(server: Serving, tmp_path: Path) -> None:
    _, ratings = judged(tmp_path, judge_at(server, calls="each"), records(2))
    assert server.state.requests == 12
    assert len({one["request"] for one in ratings}) == 12
    systems = {body["messages"][0]["content"] for body in server.state.bodies}
    assert sorted(facet for system in systems for facet in FACETS if f"=== {facet} ===" in system) == sorted(FACETS)


def test_what_is_judged_is_not_sent_again(server: Serving, tmp_path: Path) -> None:
    judged(tmp_path, judge_at(server), records(3))
    sent = server.state.requests
    outcome, ratings = judged(tmp_path, judge_at(server), records(5))
    assert server.state.requests == sent + 2
    assert outcome.responses == 2
    assert len(ratings) == 30


def test_replies_in_the_ledger_are_not_paid_for_twice_when_the_ratings_are_lost(
    server: Serving, tmp_path: Path
) -> None:
    _, before = judged(tmp_path, judge_at(server, calls="each"), records(3))
    (tmp_path / "ratings.jsonl").unlink()
    sent = server.state.requests
    _, after = judged(tmp_path, judge_at(server, calls="each"), records(3))
    assert server.state.requests == sent
    assert after == sorted(before, key=lambda one: one["id"])


def test_ratings_torn_in_the_middle_are_made_whole_without_a_call(server: Serving, tmp_path: Path) -> None:
    judged(tmp_path, judge_at(server), records(2))
    path = tmp_path / "ratings.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 700])
    sent = server.state.requests
    judged(tmp_path, judge_at(server), records(2))
    assert server.state.requests == sent
    assert len(current_judge_ratings(path, records(2), judge_at(server))) == 12


def test_an_edited_rubric_rates_again_and_an_unedited_one_does_not(server: Serving, tmp_path: Path) -> None:
    own = tmp_path / "rubrics"
    own.mkdir()
    (own / "fluency.md").write_text((BUILTIN_RUBRICS / "fluency.md").read_text(encoding="utf-8"))
    settings = judge_at(server, rubrics=str(own), calls="each", facets=["language", "fluency"])
    judged(tmp_path, judge_at(server, calls="each", facets=["language", "fluency"]), records(2))
    sent = server.state.requests
    judged(tmp_path, settings, records(2))
    assert server.state.requests == sent
    (own / "fluency.md").write_text("Is it well written? 2 yes, 1 so-so, 0 no.")
    judged(tmp_path, settings, records(2))
    assert server.state.requests == sent + 2
    current = current_judge_ratings(tmp_path / "ratings.jsonl", records(2), settings)
    shown = {one["facet"]: one["request"] for one in current}
    built_in = current_judge_ratings(tmp_path / "ratings.jsonl", records(2), judge_at(server, calls="each"))
    assert len(current) == 4
    assert shown["fluency"] not in {one["request"] for one in built_in}
    assert shown["language"] in {one["request"] for one in built_in}


def test_a_changed_response_is_rated_again_and_the_old_rating_is_not_current(server: Serving, tmp_path: Path) -> None:
    judged(tmp_path, judge_at(server), records(1))
    changed = [{**records(1)[0], "text": "Autre réponse."}]
    judged(tmp_path, judge_at(server), changed)
    current = current_judge_ratings(tmp_path / "ratings.jsonl", changed, judge_at(server))
    assert server.state.requests == 2
    assert {one["response"] for one in current} == {text_fingerprint(changed[0])}


def test_the_same_response_twice_is_judged_once_and_in_two_runs_paid_once(server: Serving, tmp_path: Path) -> None:
    one, other = records(1)[0], {**records(1)[0], "run": "lora-2"}
    _, ratings = judged(tmp_path, judge_at(server), [one, one, other])
    assert server.state.requests == 1
    assert Counter(rating["run"] for rating in ratings) == {"lora-1": 6, "lora-2": 6}


def test_several_checkpoints_are_one_stream_into_their_own_files(server: Serving, tmp_path: Path) -> None:
    parts = [
        ([{**one, "run": run} for one in records(3)], tmp_path / run / "step-1.judge-m.jsonl") for run in ("a", "b")
    ]
    judge_parts(parts, judge_at(server), tmp_path / "ledger.jsonl", total=6, pace=QUICK)
    for items, path in parts:
        assert len(current_judge_ratings(path, items, judge_at(server))) == 18
        assert {one["run"] for one in read_records(path)} == {items[0]["run"]}


def test_calls_under_way_never_exceed_the_limit(tmp_path: Path) -> None:
    with serving(latency=0.02) as server:
        judged(tmp_path, judge_at(server, concurrency=3), records(12))
        assert server.state.most_at_once == 3


def test_a_file_is_judged_streamed_and_its_bad_lines_are_told(server: Serving, tmp_path: Path) -> None:
    source = tmp_path / "responses.jsonl"
    lines = [json.dumps({"language": "fr", "text": "Bonjour."}), "{oops", json.dumps({"language": "fr"})]
    source.write_text("\n".join(lines) + "\n")
    outcome = judge_file(source, tmp_path / "out.jsonl", judge_at(server), pace=QUICK)
    assert outcome.unreadable == 1
    assert "responses.jsonl:2" in outcome.problems[0]
    ratings = read_records(tmp_path / "out.jsonl")
    assert {one["id"] for one in ratings} == {"1", "3"}
    assert {one["reason"] for one in ratings if one["id"] == "3"} == {"the response has no 'text'"}
    assert "12 ratings of 2 responses added" in outcome_text(outcome)


# --- budgets and plans -----------------------------------------------------------------------------------------------

PRICES = {"price_input": 1.0, "price_output": 2.0}


def test_the_number_of_requests_is_never_exceeded_over_restarts(server: Serving, tmp_path: Path) -> None:
    settings = judge_at(server, max_requests=7)
    outcome, ratings = judged(tmp_path, settings, records(20))
    assert server.state.requests == 7
    assert len({one["id"] for one in ratings}) == 7
    assert "max_requests 7 reached" in (outcome.stopped or "")
    assert judged(tmp_path, settings, records(20))[0].stopped
    assert server.state.requests == 7
    judged(tmp_path, judge_at(server, max_requests=12), records(20))
    assert server.state.requests == 12


def test_the_cost_is_never_exceeded_over_restarts_and_nearly_used(tmp_path: Path) -> None:
    # A tokenizer without merges: calls cost as much as they possibly can.
    dear: Script = lambda body, seen: honest(body, seen)._replace(characters_per_token=1.0)  # noqa: E731
    with serving(dear, latency=0.02) as server:
        limits = {"price_input": 1.0, "price_output": 2.0, "max_new_tokens": 120, "concurrency": 16}
        outcome, _ = judged(tmp_path, judge_at(server, **limits, max_cost=0.1), records(100))
        first = outcome.cost
        assert 0.08 < first <= 0.1
        assert "max_cost" in (outcome.stopped or "")
        more = judge_at(server, **limits, max_cost=0.3)
        outcome, ratings = judged(tmp_path, more, records(100))
        assert 0.28 < outcome.cost <= 0.3
        assert len({one["id"] for one in ratings}) == server.state.requests


def test_a_cost_limit_without_prices_is_refused(server: Serving, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="price_input"):
        judged(tmp_path, judge_at(server, max_cost=1.0), records(1))


def test_spend_is_counted_from_the_servers_tokens(server: Serving, tmp_path: Path) -> None:
    outcome, _ = judged(tmp_path, judge_at(server, **PRICES), records(3))
    lines = read_records(tmp_path / "ledger.jsonl")
    assert outcome.cost == pytest.approx(sum(one["input"] + 2 * one["output"] for one in lines) / 1e6)
    assert outcome.input_tokens == sum(one["input"] for one in lines)


def test_tokens_are_estimated_and_marked_where_the_server_tells_none(tmp_path: Path) -> None:
    with serving(lambda body, seen: honest(body, seen)._replace(characters_per_token=None)) as server:
        judged(tmp_path, judge_at(server), records(1))
    line = read_records(tmp_path / "ledger.jsonl")[0]
    assert line["estimated"]
    assert 1000 < line["input"] < 4000


def test_a_dry_run_sends_and_writes_nothing_and_foresees_the_calls(server: Serving, tmp_path: Path) -> None:
    settings = judge_at(server, calls="each", **PRICES)
    parts = [(records(4), tmp_path / "ratings.jsonl")]
    plan = estimate_ratings(parts, settings, tmp_path / "ledger.jsonl")
    assert server.state.requests == 0
    assert list(tmp_path.iterdir()) == []
    assert (plan.items, plan.calls, plan.measured) == (4, 24, False)
    assert plan.cost == pytest.approx((plan.input_tokens + 2 * plan.output_tokens) / 1e6, rel=1e-3)
    assert "estimated" in estimate_text(plan, settings)
    judged(tmp_path, settings, records(4))
    after = estimate_ratings([(records(6), tmp_path / "ratings.jsonl")], settings, tmp_path / "ledger.jsonl")
    assert (after.items, after.calls, after.measured) == (2, 12, True)
    spent = judged(tmp_path, settings, records(4))[0]
    assert after.input_tokens == round(spent.input_tokens / 24 * 12)
    assert "mean of the calls so far" in estimate_text(after, settings)


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("The sky is blue because air scatters light. " * 9, 3.8),
        ("Небо голубое. " * 9, 2.5),
        ("天空是蓝色的。" * 9, 1.2),
    ],
)
def test_tokens_are_estimated_by_script(text: str, characters: float) -> None:
    assert estimated_tokens(text) == pytest.approx(len(text) / characters, rel=0.15)
    assert estimated_tokens(text) < most_tokens(text)


# --- the fault run ---------------------------------------------------------------------------------------------------

FAULTS, KILLS = 0.3, 5
CALLS = [500, pytest.param(10_000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])]
WORKER = """
import json, sys
from pathlib import Path
from xlift.servers.client import Pace
from xlift.judging.judges import judge_file
from xlift.study.served import Judge
folder, settings = Path(sys.argv[1]), Judge(**json.loads(sys.argv[2]))
pace = Pace(tries=8, first_wait=0.01, longest_wait=0.2)
judge_file(folder / "responses.jsonl", folder / "ratings.jsonl", settings, folder / "ledger.jsonl", pace)
"""


class FaultRun:
    """A judging process that is killed again and again, and what is known afterwards."""

    def __init__(self, folder: Path, settings: Judge, state_url: str) -> None:
        self.folder, self.settings, self.state_url = folder, settings, state_url
        self.finished: list[dict[str, int]] = []

    def start(self) -> subprocess.Popen[bytes]:
        given = json.dumps(self.settings.model_dump(mode="json"))
        command = [sys.executable, "-c", WORKER, str(self.folder), given]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=(self.folder / "stderr").open("ab"))

    def kill_after(self, replies: int, delay: float) -> None:
        """Kill the process once the ledger holds so many replies, and note which calls had ended by then."""
        process = self.start()
        ledger = self.folder / "ledger.jsonl"
        while not (ledger.is_file() and ledger.read_bytes().count(b'"reply"') >= replies):
            assert process.poll() is None, (self.folder / "stderr").read_text()
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL
        paid = self.state()["paid"]
        self.finished.append({mark: paid.get(mark, 0) for mark in self.marks_in_ledger()})

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.state_url) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def marks_in_ledger(self) -> list[str]:
        """The server's names of all calls whose replies the ledger holds."""
        texts = load_texts(self.settings)
        requests = {
            one.key: one
            for record in read_records(self.folder / "responses.jsonl")
            for one in requests_for(record, self.settings, texts)
        }
        lines = [line for line in read_records(self.folder / "ledger.jsonl") if "reply" in line]
        firsts = {
            line["request"]: ServedReply(line["reply"], line["finish"], line["refusal"])
            for line in lines
            if line["part"] == 1
        }
        marks = []
        for line in lines:
            request = requests[line["request"]]
            messages = request.messages if line["part"] == 1 else request.follow_up([firsts[line["request"]]])
            marks.append(identity([dict(one) for one in messages]))
        return marks


@pytest.fixture(scope="module", params=CALLS)
def fault_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultRun]:
    folder = tmp_path_factory.mktemp("faults")
    write_jsonl(folder / "responses.jsonl", records(request.param))
    command = [sys.executable, str(Path(__file__).parent / "judge_server.py"), "--faults", str(FAULTS)]
    command += ["--latency", "0.02", "--slow", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        settings = Judge(model="m", base_url=url, concurrency=16, timeout=1.0)
        run = FaultRun(folder, settings, url.removesuffix("/v1") + "/state")
        chance = random.Random(0)
        for i in range(KILLS):
            run.kill_after(request.param * (12 + 18 * i) // 100, chance.uniform(0, 0.2))
        assert run.start().wait(timeout=3000) == 0, (folder / "stderr").read_text()
        yield run
        server.terminate()


def test_after_faults_and_kills_every_response_is_rated_or_missing_with_a_reason(fault_run: FaultRun) -> None:
    items = read_records(fault_run.folder / "responses.jsonl")
    current = current_judge_ratings(fault_run.folder / "ratings.jsonl", items, fault_run.settings)
    assert Counter((one["id"], one["facet"]) for one in current) == {
        (f"p{i}", facet): 1 for i in range(len(items)) for facet in FACETS
    }
    missing = [one for one in current if one["value"] is None]
    assert all(one.get("reason") for one in missing)
    assert all(one["value"] in (0, 1, 2) for one in current if one["value"] is not None)
    # Refusals come with one call in thirty, unreadable replies twice running with one in ninety.
    assert 0.01 * len(current) < len(missing) < 0.12 * len(current)
    assert any(one["reason"] == "the judge refused to rate" for one in missing)


def test_after_faults_and_kills_no_rating_is_there_twice(fault_run: FaultRun) -> None:
    written = read_records(fault_run.folder / "ratings.jsonl")
    whole = [one for one in written if not one.get("detail", {}).get("incomplete")]
    assert set(Counter((one["id"], one["facet"]) for one in whole).values()) == {1}


def test_after_faults_and_kills_no_finished_call_was_paid_twice(fault_run: FaultRun) -> None:
    lines = [line for line in read_records(fault_run.folder / "ledger.jsonl") if "reply" in line]
    assert set(Counter((line["request"], line["part"]) for line in lines).values()) == {1}
    paid = fault_run.state()["paid"]
    for finished in fault_run.finished:
        assert {mark: paid[mark] for mark in finished} == finished
    # The server may have answered calls that were under way when the process was killed, and no others.
    assert len(lines) <= sum(paid.values()) <= len(lines) + KILLS * fault_run.settings.concurrency


def test_the_fault_run_met_every_fault(fault_run: FaultRun) -> None:
    from judge_server import FAULTS as kinds

    state = fault_run.state()
    assert set(kinds) <= set(state["faults"])
    share = 1 - state["faults"][""] / state["requests"]
    assert share == pytest.approx(FAULTS, abs=0.07)
    assert len(fault_run.finished) == KILLS
    print(f"fault run: {state['requests']} requests, {state['faults']}, paid {sum(state['paid'].values())}")


def test_a_faulty_server_misbehaves_the_same_way_each_time() -> None:
    body = {"messages": [{"role": "user", "content": '"fluency": N'}], "model": "m"}
    assert faulty(0.5)(body, 1) == faulty(0.5)(body, 1)
