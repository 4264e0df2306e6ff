"""What data of millions of conversations take: to read, to tokenise, to plan, and to start with again.

    python benchmarks/data.py [--records 1000000] [--words 8] [--stored]

Records of words drawn from the built-in conversations, the embedded model's tokenizer, a run of one epoch. Each line is
a process of its own: its seconds of the processor, and how much more memory it held at its peak than at its start, of
its own and with the pages of mapped files, which the system takes back where it is short. With `--stored` tokens are
drawn instead of read, as many as such records have.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xlift.data.instructions import load_source
from xlift.data.kept import kept_examples
from xlift.data.tabular import content_sha256
from xlift.disk import encode_record
from xlift.hub import locate
from xlift.memory import STATUS
from xlift.models import load_tokenizer
from xlift.study.data import Instructions, Source
from xlift.study.runs import EMBEDDED_MODEL, RunConfig
from xlift.tuning.encoding import Data, Tokenised, encode_data, unreadable_examples
from xlift.tuning.limits import Limits
from xlift.tuning.proof import refuse
from xlift.tuning.stored import finish, written
from xlift.tuning.templates import ChatFormat, Encoded, chat_format
from xlift.tuning.train import plan

CONFIG = RunConfig(epochs=1.0)


def records(count: int, length: int) -> Iterator[dict[str, str]]:
    words = sorted({w for one in load_source(Source()) for m in one["messages"] for w in m["content"].split()})
    drawn = random.Random(0)
    for _ in range(count):
        text = drawn.choices(words, k=length)
        yield {"instruction": " ".join(text[: length // 2]), "output": " ".join(text[length // 2 :])}


def held() -> tuple[int, int]:
    """Bytes that this process holds: its own, and with the pages of files."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    anonymous, whole = (1024 * int(lines[name].split()[0]) for name in ("RssAnon", "VmRSS"))
    return anonymous, whole


def measured(name: str, work: Callable[[], Any]) -> None:
    """Prints what a piece of work took."""
    before, most, ended = held(), [0, 0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            most[:] = map(max, most, held())

    watcher = threading.Thread(target=look)
    watcher.start()
    wall, processor = time.perf_counter(), time.process_time()
    try:
        found = work()
    finally:
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        ended.set()
        watcher.join()
    own, whole = (max(0, peak - start) / 1e6 for peak, start in zip(most, before, strict=True))
    print(f"{name}: {processor:.1f} s of the processor, {wall:.1f} by the clock, {own:.0f} MB more, {whole:.0f} with "
          f"pages of files{'; ' + found if isinstance(found, str) else ''}", flush=True)  # fmt: skip


def read(folder: Path, chat: ChatFormat) -> Any:
    path = folder / "data.jsonl"
    # The study file names the hash, which `xlift run` takes once.
    settings = Instructions(sources=[Source(path=str(path), sha256=content_sha256(path))])
    return kept_examples(folder / "data", settings, [])


def tokenise(folder: Path, chat: ChatFormat) -> Data:
    found = read(folder, chat)
    return Tokenised().data(CONFIG, chat, found.train, found.heldout, False)


def start(folder: Path, chat: ChatFormat) -> str:
    """All that a run does with its data before its first step."""
    data = encode_data(CONFIG, chat, [], [], folder=folder / "tokens") if stored(folder) else tokenise(folder, chat)
    steps = plan(CONFIG, data.lengths)
    claims = unreadable_examples(Limits(len(chat.tokenizer), None, None), "conversations", data.train, data.heldout)
    refuse(claims)
    return f"{len(data.train):,} conversations, {sum(data.lengths):,} tokens, {len(steps):,} steps"


def stored(folder: Path) -> bool:
    return (folder / "tokens").exists()


def store(folder: Path, count: int, length: int) -> None:
    """Examples as `encode_data` keeps them, of tokens that are drawn."""
    made, drawn = folder / "made", random.Random(0)
    made.mkdir()

    def examples(count: int) -> Iterator[Encoded]:
        for _ in range(count):
            size = drawn.randint(length // 2, 3 * length // 2)
            ids = [drawn.randrange(4, 262144)] * size
            yield Encoded(ids, [place > size // 2 for place in range(size)])

    written(examples(count), made / "train.arrow")
    written(examples(16), made / "heldout.arrow")
    finish(made, {"too_long": 0, "heldout_too_long": 0, "refused": {}}, folder / "tokens")


PARTS: dict[str, Callable[[Path, ChatFormat], Any]] = {
    "read": read, "tokenised": tokenise, "started with again": start
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=8, help="in each record, half of them in the request")
    parser.add_argument("--stored", action="store_true", help="tokens that are drawn, to start with")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        # A tokenizer of a large vocabulary takes half a gigabyte by itself.
        chat = chat_format(load_tokenizer(locate(EMBEDDED_MODEL).path), "gemma")
        measured(arguments.part, lambda: PARTS[arguments.part](arguments.folder, chat))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.stored:
            # Turns have nine tokens of their own, and a word of these languages about two.
            measured("stored", lambda: store(folder, arguments.records, 9 + 2 * arguments.words))
        else:
            with (folder / "data.jsonl").open("wb") as file:
                file.writelines(encode_record(one) for one in records(arguments.records, arguments.words))
            print(f"{arguments.records:,} records, {(folder / 'data.jsonl').stat().st_size / 1e6:.0f} MB", flush=True)
        for part in ["started with again"] if arguments.stored else PARTS:
            subprocess.run([sys.executable, __file__, "--part", part, "--folder", name], check=True)


if __name__ == "__main__":
    main()
