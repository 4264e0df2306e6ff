"""Judging by the Batch API: the same ratings under the same keys, and a batch that survives its process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, honest, serving
from test_judging import judge_at, judged, records

from xlift.disk import write_jsonl
from xlift.errors import DataError, UserError
from xlift.judging.current import current_judge_ratings
from xlift.judging.judges import judge_file
from xlift.judging.ratings import JudgingOutcome, judge_responses
from xlift.records import read_records
from xlift.servers.client import Pace
from xlift.study.served import Judge


def by_batch(folder: Path, settings: Judge, items: list[dict[str, Any]]) -> JudgingOutcome:
    own = settings.model_copy(update={"batch": True})
    return judge_responses(items, own, folder / "ratings.jsonl", folder / "ledger.jsonl", pace=Pace(poll=0.01))


def test_a_batch_brings_the_same_ratings_as_single_calls(tmp_path: Path) -> None:
    with serving() as server:
        settings = judge_at(server, calls="each")
        _, single = judged(tmp_path / "single", settings, records(4))
        outcome = by_batch(tmp_path / "batch", settings, records(4))
        assert outcome.made == 24
        assert len(server.state.batches) == 1
        assert sorted(read_records(tmp_path / "batch" / "ratings.jsonl"), key=str) == sorted(single, key=str)
        line = json.loads(server.state.files["file-0"].splitlines()[0])
        assert line["body"] in server.state.bodies
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")


def test_what_is_answered_is_in_no_later_batch(tmp_path: Path) -> None:
    with serving() as server:
        by_batch(tmp_path, judge_at(server), records(3))
        by_batch(tmp_path, judge_at(server), records(3))
        assert len(server.state.batches) == 1
        by_batch(tmp_path, judge_at(server), records(5))
        assert len(server.state.files["file-2"].splitlines()) == 2
        assert max(server.state.paid.values()) == 1


def test_unreadable_replies_are_asked_again_and_failed_lines_tried_again_by_the_next_batch(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        text = body["messages"][1]["content"]
        if "Question 0" in text and len(body["messages"]) == 2:
            return Act("Well…")
        return Act("overloaded", status=500) if "Question 1" in text and seen == 0 else honest(body, seen)

    with serving(script) as server:
        outcome = by_batch(tmp_path, judge_at(server), records(3))
        assert len(server.state.batches) == 2
        assert (outcome.made, outcome.missing) == (18, 0)


def test_a_line_that_always_fails_is_missing_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    fails = True

    def script(body: dict[str, Any], seen: int) -> Act:
        return Act("no", status=500) if fails and "Question 1" in str(body) else honest(body, seen)

    with serving(script) as server:
        outcome = by_batch(tmp_path, judge_at(server), records(3))
        assert (outcome.made, outcome.missing, outcome.unanswered) == (18, 6, 1)
        fails = False
        assert by_batch(tmp_path, judge_at(server), records(3)).missing == 0
        current = current_judge_ratings(tmp_path / "ratings.jsonl", records(3), judge_at(server))
        assert all(one["value"] is not None for one in current)


def test_the_budget_bounds_a_batch(tmp_path: Path) -> None:
    with serving() as server:
        outcome = by_batch(tmp_path, judge_at(server, max_requests=2), records(5))
        assert sum(server.state.paid.values()) == 2
        assert "max_requests 2" in (outcome.stopped or "")
        assert len(read_records(tmp_path / "ratings.jsonl")) == 12


def test_a_server_without_batches_is_named(tmp_path: Path) -> None:
    settings = Judge(model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="no batch could be made"):
        by_batch(tmp_path, settings, records(1))


WORKER = """
import json, sys
from pathlib import Path
from xlift.judging.ratings import judge_responses
from xlift.disk import write_jsonl
from xlift.records import read_records
from xlift.study.served import Judge
folder, settings = Path(sys.argv[1]), Judge(**json.loads(sys.argv[2]))
judge_responses(read_records(folder / "responses.jsonl"), settings, folder / "ratings.jsonl", folder / "ledger.jsonl")
"""


def test_a_batch_is_found_again_by_the_next_process_and_paid_once(tmp_path: Path) -> None:
    with serving() as server:
        settings = judge_at(server, batch=True)
        (tmp_path / "responses.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records(3)))
        command = [sys.executable, "-c", WORKER, str(tmp_path), json.dumps(settings.model_dump(mode="json"))]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while not any(batch.get("polls") for batch in server.state.batches.values()):
                assert process.poll() is None
                time.sleep(0.02)
            process.kill()
        assert (tmp_path / "ledger.batch.json").is_file()
        assert by_batch(tmp_path, settings, records(3)).made == 18
        assert len(server.state.batches) == 1
        assert not (tmp_path / "ledger.batch.json").exists()


@pytest.mark.parametrize("made", [True, False])
def test_a_process_killed_before_it_knew_its_batch_neither_loses_it_nor_pays_it_twice(
    tmp_path: Path, made: bool
) -> None:
    with serving() as server:
        settings = judge_at(server)
        by_batch(tmp_path / "first", settings, records(3))
        # The state as it is between the upload and the answer that names the batch.
        batch = server.state.batches["batch-0"]
        (tmp_path / "second").mkdir()
        mark = batch["metadata"]["xlift"] if made else "another"
        (tmp_path / "second" / "ledger.batch.json").write_text(json.dumps({"mark": mark, "file": "file-0"}))
        assert by_batch(tmp_path / "second", settings, records(3)).made == 18
        assert len(server.state.batches) == (1 if made else 2)


@pytest.mark.parametrize("batch", [False, True])
def test_a_file_is_looked_at_before_anything_is_sent(tmp_path: Path, batch: bool) -> None:
    with serving() as server:
        settings = judge_at(server, batch=batch)
        with pytest.raises(DataError, match="no such file"):
            judge_file(tmp_path / "absent.jsonl", tmp_path / "ratings.jsonl", settings)
        write_jsonl(tmp_path / "responses.jsonl", records(2))
        with pytest.raises(DataError, match="cannot be the same file"):
            judge_file(tmp_path / "responses.jsonl", tmp_path / "responses.jsonl", settings)
        assert server.state.requests == len(server.state.batches) == 0
