"""How long judging takes beside the ideal (requests × latency / slots) and beside plain loops without keys or ledger.

    python benchmarks/judging.py [--requests 1000 10000] [--repeats 3] [--latency 0.2] [--slots 64]

A loopback server in its own process answers after the latency, so many requests at a time. Each measurement is a
process of its own, one rating a request; the clock starts when the libraries are loaded. Peak memory is that of the
whole process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xlift.study.served import Judge

ROOT = Path(__file__).parent.parent
TEXT = "Le ciel est bleu parce que les molécules de l'air diffusent surtout la lumière bleue du soleil. " * 12


def responses(count: int) -> Iterator[dict[str, Any]]:
    """Distinct responses of about 1,200 characters, made as they are needed."""
    for i in range(count):
        question = {"role": "user", "content": f"Question {i} : pourquoi le ciel est-il bleu ?"}
        yield {"id": str(i), "language": "fr", "messages": [question], "text": f"{i}. {TEXT}"}


def judge_of(url: str, slots: int) -> Judge:
    return Judge(model="judge", base_url=url, facets=["fluency"], concurrency=slots)


def by_xlift(url: str, count: int, slots: int) -> None:
    from xlift.judging.ratings import judge_responses

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = judge_of(url, slots)
        outcome = judge_responses(responses(count), settings, place / "ratings.jsonl", place / "ledger.jsonl", count)
        assert outcome.made == count, outcome
        assert not outcome.missing, outcome


def _messages(count: int, settings: Judge) -> Iterator[list[Any]]:
    from xlift.judging.questions import load_texts, requests_for

    texts = load_texts(settings)
    return (requests_for(record, settings, texts)[0].messages for record in responses(count))


def by_gather(url: str, count: int, slots: int) -> None:
    from openai import AsyncOpenAI

    async def work() -> None:
        shared = _messages(count, judge_of(url, slots))
        values = []
        async with AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:

            async def one_by_one() -> None:
                for messages in shared:
                    made = await client.chat.completions.create(
                        model="judge", messages=messages, temperature=0, max_tokens=512, seed=0
                    )
                    values.append(json.loads(made.choices[0].message.content or "")["fluency"])

            await asyncio.gather(*[one_by_one() for _ in range(slots)])
        assert len(values) == count

    asyncio.run(work())


def by_threads(url: str, count: int, slots: int) -> None:
    from openai import OpenAI

    with OpenAI(api_key="none", base_url=url, max_retries=0) as client, ThreadPoolExecutor(slots) as pool:

        def one(messages: list[Any]) -> int:
            made = client.chat.completions.create(
                model="judge", messages=messages, temperature=0, max_tokens=512, seed=0
            )
            return int(json.loads(made.choices[0].message.content or "")["fluency"])

        assert len(list(pool.map(one, _messages(count, judge_of(url, slots))))) == count


WAYS = {"xlift": by_xlift, "plain gather loop": by_gather, "thread pool": by_threads}


def measure(way: str, url: str, count: int, slots: int) -> None:
    """Print seconds, CPU seconds and peak memory (MB) of one way, as JSON."""
    import openai.resources.chat  # loaded before the clock starts

    import xlift.judging.ratings  # noqa: F401

    assert openai
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    WAYS[way](url, count, slots)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": after.ru_maxrss / 1024}))


def in_own_process(way: str, url: str, count: int, slots: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", way, "--url", url, "--requests", str(count), "--slots", str(slots)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(arguments: argparse.Namespace, url: str) -> None:
    shown = f"{arguments.latency * 1000:g} ms latency, {arguments.slots} slots, medians of {arguments.repeats}"
    print(f"{shown}; one rating a request; seconds for 1,000 ratings\n")
    print("| way | requests | s / 1,000 | ideal | over ideal | CPU ms / request | peak memory |")
    print("|---|---|---|---|---|---|---|")
    ideal = 1000 * arguments.latency / arguments.slots
    for count in arguments.requests:
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way in WAYS:
                rounds[way].append(in_own_process(way, url, count, arguments.slots))
        for way, found in rounds.items():
            middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
            each = middle["seconds"] / count * 1000
            over = f"{each / ideal - 1:+.1%}"
            cpu = f"{middle['cpu'] / count * 1000:.2f}"
            print(f"| {way} | {count} | {each:.2f} | {ideal:.2f} | {over} | {cpu} | {middle['memory']:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return measure(arguments.one, arguments.url, arguments.requests[0], arguments.slots)
    server = ROOT / "tests" / "judge_server.py"
    command = [sys.executable, str(server), "--latency", str(arguments.latency), "--slots", str(arguments.slots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            table(arguments, process.stdout.readline().strip())
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
