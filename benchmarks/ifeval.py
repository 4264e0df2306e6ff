"""How far our verdicts agree with M-IFEval's own on stored responses.

    python benchmarks/ifeval.py FOLDER [--languages fr es] [--show KIND]

FOLDER is a clone of M-IFEval with data/LL_input_data.jsonl and, as its evaluation writes them,
evaluations/LL_input_response_data_MODEL/eval_results_strict.jsonl and eval_results_loose.jsonl. --show prints the
responses to an instruction (keywords:existence) on which the two differ, to be read.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlift.data.ifeval import ifeval_prompts
from xlift.rating.constraints import rate_constraint
from xlift.records import read_jsonl


def verdicts(folder: Path, language: str) -> Iterator[tuple[str, dict[str, Any], bool, bool, str]]:
    """Of every instruction of every response: its kind, our verdicts, M-IFEval's strict and loose one, and the text."""
    source = folder / "data" / f"{language}_input_data.jsonl"
    prompts = {prompt["messages"][0]["content"]: prompt for prompt in ifeval_prompts(source, [language], "test")}
    for model in sorted((folder / "evaluations").glob(f"{language}_input_response_data_*")):
        files = [read_jsonl(model / f"eval_results_{name}.jsonl") for name in ("strict", "loose")]
        for (_, strict), (_, loose) in zip(*files, strict=True):
            prompt = prompts.get(strict["prompt"])
            if prompt is None:
                continue
            _, detail, _ = rate_constraint({**prompt, "text": strict["response"] or ""})
            theirs = zip(strict["follow_instruction_list"], loose["follow_instruction_list"], strict=True)
            for ours, (their_strict, their_loose) in zip(detail["instructions"], theirs, strict=True):
                yield ":".join(ours["id"].split(":")[-2:]), ours, their_strict, their_loose, strict["response"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--languages", nargs="+", default=["fr", "es", "ja", "en"])
    parser.add_argument("--show", default="")
    options = parser.parse_args()
    for language in options.languages:
        told: dict[str, Counter[str]] = {"strict": Counter(), "loose": Counter()}
        for kind, ours, *theirs, text in verdicts(options.folder, language):
            for name, their in zip(told, theirs, strict=True):
                told[name]["missing" if ours[name] is None else "alike" if ours[name] == their else "differ"] += 1
            if kind == options.show and ours["strict"] != theirs[0]:
                print(f"\n## {ours}, M-IFEval: {theirs[0]}\n{text}")
        for name, counts in told.items():
            decided = counts["alike"] + counts["differ"]
            print(f"{language} {name}: {counts['alike'] / max(1, decided):.1%} alike of {decided}, {counts}")


if __name__ == "__main__":
    main()
