"""One parser of test_fuzz.py, driven by atheris to code that no input has reached; whatever is no UserError ends it.

python tests/guided.py "judge reply" FOLDER -runs=20000     options of libFuzzer; FOLDER keeps what reached new code
"""

from __future__ import annotations

import json
import random
import sys
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["xlift"]):
    from test_fuzz import PARSERS, altered, mutated

from xlift.errors import UserError


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Runs until libFuzzer ends the process: with 0, or with the input that broke the parser in a file of FOLDER."""
    good, look = PARSERS[name]
    seeds = [one.encode() for one in good] if isinstance(good, tuple) else [json.dumps(good).encode() + b"\n"]
    (work := folder / "work").mkdir(parents=True, exist_ok=True)
    (corpus := folder / "corpus").mkdir(exist_ok=True)
    for number, raw in enumerate(seeds):
        (corpus / f"good-{number}").write_bytes(raw)

    def try_one(raw: bytes) -> None:
        with suppress(UserError):
            look(raw, work)

    def changed(raw: bytes, most: int, seed: int) -> bytes:
        """Another value in the record, its bytes broken as test_fuzz breaks them, or as libFuzzer does."""
        chance = random.Random(seed)
        way = chance.random()
        if way < 0.5:
            try:
                return json.dumps(altered(chance, json.loads(raw))).encode()[:most]
            except (ValueError, RecursionError):
                way = 0.6
        return mutated(chance, raw)[:most] if way < 0.75 else atheris.Mutate(raw, most)

    common = [sys.argv[0], "-max_len=8000", "-timeout=20", "-rss_limit_mb=3000", f"-artifact_prefix={folder}/"]
    atheris.Setup([*common, *options, str(corpus)], try_one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
