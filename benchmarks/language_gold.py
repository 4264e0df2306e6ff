"""Precision, recall and F1 of "has a language error" on a gold set, beside the Language Confusion Benchmark's rule.

    python benchmarks/language_gold.py FOLDER [--part dev] [--part mixed] [--contested]

FOLDER holds the benchmark's stored responses (llama-2-instruct.csv, llama-3-instruct.csv, command-r-base.csv with the
columns id, completion, task, source, language) and its word list (words). language_gold.jsonl names 540 of them by
model/task/source/language/id with two readers' grades on the language facet and the adjudicated one. Thresholds were
set on the part "dev"; "test" is what counts. language_contested.jsonl names 375 responses of three other models of the
benchmark (command-r-plus, gpt-4-turbo, mistral-large, in its repository's `outputs`) on which the rule and an earlier
version of ours disagreed, or called a word an error, with one reader's verdict on the stretches in question, and the
number of responses that each stands for: the last lines weigh them so, and take the others for what both said. The
part "mixed" holds responses written for this, with the places of what is in another language: F1 of letters is printed.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

from xlift.rating.language.lcb import rate_lcb
from xlift.rating.language.lcb import signature as lcb_signature
from xlift.rating.language.rater import rate_text, signature

MODELS = ("llama-2-instruct", "llama-3-instruct", "command-r-base")
OTHERS = ("command-r-plus", "gpt-4-turbo", "mistral-large")
BOTH_BLAME, NEITHER_BLAMES = 2_584, 15_550
"""Responses of the three other models in the strata of which none was drawn; both verdicts were the same there."""


def responses(folder: Path, models: tuple[str, ...] = MODELS) -> dict[str, dict[str, str]]:
    """Stored responses by model/task/source/language/id."""
    csv.field_size_limit(10**9)
    found = {}
    for model in models:
        with (folder / f"{model}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found[f"{model}/{row['task']}/{row['source']}/{row['language']}/{row['id']}"] = row
    return found


def scores(counts: Counter[tuple[bool, bool]]) -> tuple[float, float, float]:
    """Precision, recall, F1 from counts of (has an error, called an error)."""
    hit, false_alarm, miss = counts[True, True], counts[False, True], counts[True, False]
    precision = hit / (hit + false_alarm) if hit + false_alarm else float("nan")
    recall = hit / (hit + miss) if hit + miss else float("nan")
    return precision, recall, 2 * hit / (2 * hit + false_alarm + miss) if hit + miss else float("nan")


def letter_counts(text: str, code: str, spans: list[list[Any]]) -> Counter[tuple[bool, bool]]:
    """How many letters are in another language by gold and by ours."""
    found = [(span["start"], span["end"]) for span in rate_text(text, code)[1].get("spans", [])]
    meant = [(start, end) for start, end, _ in spans]
    inside = [[any(a <= i < b for a, b in some) for i in range(len(text))] for some in (meant, found)]
    return Counter((a, b) for a, b, letter in zip(*inside, text, strict=True) if letter.isalpha())


def is_error(rated: Any) -> bool:
    return rated[0] is not None and rated[0] < 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=["test", "dev", "mixed"], default="test")
    parser.add_argument("--contested", action="store_true")
    arguments = parser.parse_args()
    stored = responses(arguments.folder, OTHERS if arguments.contested else MODELS)
    verdicts = "language_contested.jsonl" if arguments.contested else "language_gold.jsonl"
    words = arguments.folder / "words"
    ours: dict[str, Counter[tuple[bool, bool]]] = {}
    theirs: dict[str, Counter[tuple[bool, bool]]] = {}
    letters: Counter[tuple[bool, bool]] = Counter()
    weighted = [Counter({(True, True): BOTH_BLAME, (False, False): NEITHER_BLAMES}) for _ in ("xlift", "rule")]
    for line in Path(__file__).with_name(verdicts).read_text(encoding="utf-8").splitlines():
        gold = json.loads(line)
        if not arguments.contested and (gold["part"] != arguments.part or gold["grade"] is None):
            continue
        code, text = gold["language"], gold.get("text") or stored[gold["response"]]["completion"]
        if "spans" in gold:
            letters += letter_counts(text, code, gold["spans"])
        wrong = gold["error"] if arguments.contested else gold["grade"] < 2
        own = is_error(rate_text(text, code))
        rule = is_error(rate_lcb({"text": text, "language": code}, words if words.is_file() else None))
        for name in (code, "all"):
            ours.setdefault(name, Counter())[wrong, own] += 1
            theirs.setdefault(name, Counter())[wrong, rule] += 1
        for counts, verdict in zip(weighted, (own, rule), strict=True):
            counts[wrong, verdict] += gold.get("weight", 0)
    print(f"{signature()}\n{lcb_signature()}\n")
    print(f"{'':4} {'n':>4} {'errors':>6}   xlift: precision recall  F1      benchmark's rule: precision recall  F1")
    for name in [*sorted(set(ours) - {"all"}), "all"]:
        a, b = scores(ours[name]), scores(theirs[name])
        count, errors = sum(ours[name].values()), ours[name][True, True] + ours[name][True, False]
        print(f"{name:4} {count:4} {errors:6}" + "".join(f"{x:12.3f}" if i else f"{x:20.3f}" for i, x in enumerate(a))
              + "".join(f"{x:12.3f}" if i else f"{x:20.3f}" for i, x in enumerate(b)))  # fmt: skip
    if arguments.contested:
        for name, counts in zip(("xlift", "rule"), weighted, strict=True):
            print("weighted, {}: precision {:.3f}, recall {:.3f}, F1 {:.3f}".format(name, *scores(counts)))
    if arguments.part == "mixed":
        print("letters: precision {:.3f}, recall {:.3f}, F1 {:.3f}".format(*scores(letters)))


if __name__ == "__main__":
    main()
