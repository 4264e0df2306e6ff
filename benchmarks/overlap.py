"""How long reading instruction data, and finding what they share with prompts, takes.

    python benchmarks/overlap.py [--records 100000] [--words 60]

Records of words drawn from the built-in conversations, against the 1,800 built-in open and factual prompts.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from xlift.data.instructions import load_source
from xlift.data.overlap import overlaps
from xlift.data.prompts import load_prompts
from xlift.disk import write_jsonl
from xlift.records import Prompt
from xlift.study.data import Prompts, PromptSet, Source

LANGUAGES = ["ar", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pt", "ru", "tr", "zh"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=60, help="in each record, a quarter of them in the request")
    arguments = parser.parse_args()
    words = [w for one in load_source(Source()) for m in one["messages"] for w in m["content"].split()]
    drawn = random.Random(0)

    def text(share: float) -> str:
        return " ".join(drawn.choices(words, k=int(arguments.words * share)))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        write_jsonl(path, ({"instruction": text(0.25), "output": text(0.75)} for _ in range(arguments.records)))
        started = time.perf_counter()
        found = load_source(Source(path=str(path)))
        print(f"read {len(found):,} records of {arguments.words} words: {time.perf_counter() - started:.1f} s")
    started, prompts = time.perf_counter(), all_prompts()
    shared = overlaps(found, found[:16], prompts)
    print(f"compared with {len(prompts):,} prompts: {time.perf_counter() - started:.1f} s")
    print(shared.facts)


def all_prompts() -> list[Prompt]:
    sets = [PromptSet(source=f"builtin:{name}") for name in ("open", "facts")]
    return [one for own in sets for one in load_prompts(Prompts(languages=LANGUAGES, validation=own, test=own))]


if __name__ == "__main__":
    main()
