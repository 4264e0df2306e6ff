"""Responses a second of the surface raters, beside a plain loop over the Language Confusion Benchmark's rule.

    python benchmarks/rating.py FOLDER [--repeats 5] [--lines 1000000]

FOLDER holds the stored responses (see language_gold.py). First the file form on all cores, by the clock and with its
start, and the peak memory of its largest process: one response a language, all, and with --lines so many (the stored
ones again and again, each with an id and three made-up words of its own). Then the raters in turn in one process on one
core, repeated, medians of processor seconds, which other work on the machine changes little. Last, LPR and WPR of the
three models by language, by both definitions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from language_gold import MODELS, responses

from xlift.rating import RATERS


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    began = clock()
    work()
    return clock() - began


def report(source: Path, lines: int, raters: str) -> None:
    """Print seconds by the clock of `xlift rate` on a file, and the largest peak memory of any process so far."""
    command = [sys.executable, "-m", "xlift", "rate", source, "-o", f"{source}.{raters}", "--raters", raters]
    took = seconds(lambda: subprocess.run(command, check=True, capture_output=True), time.perf_counter)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(
        f"xlift rate --raters {raters}, {lines} lines, {os.cpu_count()} cores: {took:.1f} s, {peak:.2f} GB", flush=True
    )


def write(target: Path, records: Iterable[dict[str, str]]) -> None:
    with target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def repeated(records: list[dict[str, str]], lines: int) -> Iterator[dict[str, str]]:
    """The records again and again, each with an id and three made-up words of its own."""
    generator = random.Random(0)
    for i, record in zip(range(lines), itertools.cycle(records), strict=False):
        letters = [c for c in record["text"][:200] if c.isalpha()] or ["x"]
        made_up = " ".join("".join(generator.choices(letters, k=7)) for _ in range(3))
        yield record | {"id": str(i), "text": f"{record['text']} {made_up}"}


def pass_rates(records: list[dict[str, str]], rater: str) -> dict[tuple[str, str], tuple[float, float | None]]:
    """LPR and WPR by (model, language); WPR is None where the definition has none."""
    lines: dict[tuple[str, str], list[bool]] = defaultdict(list)
    words: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for record in records:
        detail = RATERS[rater].rate(record)[1]
        if "line_pass" in detail:
            key = (record["model"], record["language"])
            lines[key].append(detail["line_pass"])
            if detail["line_pass"] and "word_pass" in detail:
                words[key].append(detail["word_pass"])
    return {
        key: (statistics.mean(found), statistics.mean(words[key]) if words[key] else None)
        for key, found in lines.items()
    }


def rate_all(records: list[dict[str, str]], raters: list[str]) -> None:
    for record in records:
        for name in raters:
            RATERS[name].rate(record)


def compare(records: list[dict[str, str]], repeats: int) -> None:
    suites = {
        "benchmark's rule, plain loop": ["language_lcb"],
        "language": ["language"],
        "fluency": ["fluency"],
        "language and fluency": ["language", "fluency"],
    }
    rate_all(records, ["language", "language_lcb", "fluency"])  # loads the word lists
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, raters in suites.items():
            times[name].append(seconds(lambda raters=raters: rate_all(records, raters)))
    plain = statistics.median(times["benchmark's rule, plain loop"])
    print(f"{len(records)} responses, median of {repeats}, one core")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:30} {len(records) / middle:8.0f}/s   {plain / middle:5.2f} x the plain rule")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lines", type=int, default=0)
    arguments = parser.parse_args()
    records = [
        {"id": key, "model": key.split("/")[0], "text": row["completion"], "language": row["language"]}
        for key, row in responses(arguments.folder).items()
    ]
    # Files first: a process that is started counts the memory of this one as its own.
    with tempfile.TemporaryDirectory() as folder:
        one, whole, many = (Path(folder) / f"{name}.jsonl" for name in ("one", "whole", "many"))
        write(one, {record["language"]: record for record in records}.values())
        write(whole, records)
        for raters in ("language", "language,fluency"):
            report(one, 15, raters)
            report(whole, len(records), raters)
        if arguments.lines:
            write(many, repeated(records, arguments.lines))
            report(many, arguments.lines, "language,fluency")
    compare(records, arguments.repeats)
    print()
    ours, theirs = pass_rates(records, "language"), pass_rates(records, "language_lcb")
    print("LPR / WPR in %, xlift | benchmark's rule")
    print("     " + "".join(f"{model:>32}" for model in MODELS))
    for code in sorted({record["language"] for record in records}):
        print(f"{code:4} " + "".join(f"{shown(ours[m, code])} | {shown(theirs[m, code])}".rjust(32) for m in MODELS))


def shown(rates: tuple[float, float | None]) -> str:
    return f"{rates[0] * 100:5.1f} / " + (f"{rates[1] * 100:5.1f}" if rates[1] is not None else "    –")


if __name__ == "__main__":
    main()
