"""Responses a second of the surface raters, beside a plain loop over the Language Confusion Benchmark's rule.

    python benchmarks/rating.py FOLDER [--repeats 3]

FOLDER holds the benchmark's stored responses (see language_gold.py). All run in turn in one process, repeated, medians
taken; then the file form with all cores. Also prints LPR and WPR of the three models by language, by both definitions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from language_gold import MODELS, responses

from xlift.rating import RATERS
from xlift.rating.files import rate_file


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    records = [
        {"id": key, "model": key.split("/")[0], "text": row["completion"], "language": row["language"]}
        for key, row in responses(arguments.folder).items()
    ]
    suites = {
        "benchmark's rule, plain loop": ["language_lcb"],
        "language": ["language"],
        "fluency": ["fluency"],
        "language and fluency": ["language", "fluency"],
    }
    for record in records:
        RATERS["language"].rate(record), RATERS["fluency"].rate(record)  # loads the word lists
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "responses.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        for i in range(arguments.repeats):
            for name, raters in suites.items():
                times[name].append(seconds(lambda raters=raters: [RATERS[r].rate(x) for x in records for r in raters]))
            for raters in (["language"], ["language", "fluency"]):
                target = Path(folder) / f"{i}-{len(raters)}.jsonl"
                times[f"xlift rate --raters {','.join(raters)}, {os.cpu_count()} cores, start included"].append(
                    seconds(lambda raters=raters, target=target: rate_file(source, target, raters))
                )
    plain = statistics.median(times["benchmark's rule, plain loop"])
    print(f"{len(records)} responses, median of {arguments.repeats}")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:62} {len(records) / middle:8.0f}/s   {plain / middle:5.2f} x the plain rule")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB here, "
          f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.2f} GB in the largest worker\n")  # fmt: skip
    ours, theirs = pass_rates(records, "language"), pass_rates(records, "language_lcb")
    print("LPR / WPR in %, xlift | benchmark's rule")
    print("     " + "".join(f"{model:>32}" for model in MODELS))
    for code in sorted({record["language"] for record in records}):
        print(f"{code:4} " + "".join(f"{shown(ours[m, code])} | {shown(theirs[m, code])}".rjust(32) for m in MODELS))


def shown(rates: tuple[float, float | None]) -> str:
    return f"{rates[0] * 100:5.1f} / " + (f"{rates[1] * 100:5.1f}" if rates[1] is not None else "    –")


if __name__ == "__main__":
    main()
