"""A served model answers a study while three in ten requests meet a fault and the process is killed again and again."""

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
from pathlib import Path
from typing import Any

import pytest
from test_models import served_study

from xlift.checkpoint import Checkpoint, checkpoints
from xlift.disk import write_jsonl
from xlift.generation.served import LEDGER
from xlift.records import read_records
from xlift.servers.client import _HARMLESS_KEY
from xlift.stages import prepare
from xlift.study.loading import load_study
from xlift.workspace import find_study

CONCURRENCY = 16
WORKER = """
import sys
from xlift.checkpoint import checkpoints
from xlift.generation.served import answer_served
from xlift.servers.client import Pace
from xlift.workspace import find_study
(one,) = checkpoints(find_study(sys.argv[1]))
answer_served(one, Pace(tries=8, first_wait=0.01, longest_wait=0.2))
"""


def asked_study(folder: Path, url: str, prompts: int) -> Path:
    """A prepared study of one served model and so many prompts."""
    rows = [
        {"id": f"p{i}", "language": "fr", "split": "validation" if i == 0 else "test"}
        | {"messages": [{"role": "user", "content": f"Question {i} ?"}]}
        for i in range(prompts)
    ]
    write_jsonl(folder / "own.jsonl", rows)
    source = {part: {"source": str(folder / "own.jsonl")} for part in ("validation", "test")}
    model = {"model": "m", "base_url": url, "concurrency": CONCURRENCY, "timeout": 1.0}
    path = served_study(folder, [model], prompts={"languages": ["fr"], **source})
    return prepare(load_study(path), folder / "out").path


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder.parent / "stderr").open("ab") as errors:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], env=environment, stderr=errors)


def kill_after(folder: Path, path: Path, answers: int, delay: float) -> None:
    """Kill the process once so many answers are written."""
    process = start(folder)
    while not (path.is_file() and path.read_bytes().count(b"\n") >= answers):
        assert process.poll() is None, (folder.parent / "stderr").read_text()
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL


def answered(folder: Path) -> Checkpoint:
    (one,) = checkpoints(find_study(folder))
    return one


@pytest.mark.parametrize(
    ("prompts", "kills"), [(80, 1), pytest.param(10_000, 5, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])]
)
def test_after_faults_and_kills_every_prompt_is_answered_once_and_nothing_is_paid_twice(
    prompts: int, kills: int, tmp_path: Path
) -> None:
    began, chance = time.monotonic(), random.Random(0)
    server = [sys.executable, str(Path(__file__).parent / "judge_server.py"), "--faults", "0.3", "--slow", "3"]
    with subprocess.Popen([*server, "--latency", "0.02"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            folder = asked_study(tmp_path, url, prompts)
            path = answered(folder).run.responses(0)
            for i in range(kills):
                kill_after(folder, path, prompts * (12 + 80 * i // kills) // 100, chance.uniform(0, 0.2))
            while answered(folder).unanswered or answered(folder).lost:
                assert start(folder).wait(timeout=3000) == 0, (tmp_path / "stderr").read_text()
            with urllib.request.urlopen(url.removesuffix("/v1") + "/state") as told:
                state: dict[str, Any] = json.load(told)
        finally:
            process.terminate()
    one = answered(folder)
    assert [record["id"] for record in one.responses] == [f"p{i}" for i in range(prompts)]
    assert all(record["text"] or record.get("missing") for record in one.responses)
    whole = Counter(record["id"] for record in read_records(path) if not record.get("lost"))
    assert set(whole.values()) == {1}
    paid = Counter(line["request"] for line in read_records(one.run.path / LEDGER) if "reply" in line)
    harmless = paid.pop(_HARMLESS_KEY, 0)
    assert set(paid.values()) == {1}
    assert len(paid) + harmless <= sum(state["paid"].values()) <= len(paid) + harmless + kills * CONCURRENCY
    faults = state["requests"] - state["faults"][""]
    print(f"{prompts} answers, {state['requests']} requests, {faults} faults, {time.monotonic() - began:.0f} s")
