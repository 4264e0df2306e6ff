"""What client.py's calls have cost and what they brought: a JSONL file beside the ratings, one line a request sent.

    {"request", "part": 1|2, "reply", "finish", "refusal", "input", "output", "cost", "estimated"?}   an answered call
    {"request", "part": 1|2, "failed": why}                                                           one without answer

Each ends with `"sum"`, a CRC-32 of what stands before it: without it a flipped bit might turn one rating into another.
Written the moment a reply is there, so that a process killed at any time loses only the calls under way: the next one
finds the replies here and pays for none twice. Costs count over restarts.
"""

from __future__ import annotations

import json
import math
import re
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import crc32

from xlift.disk import JsonlWriter, encode_record, exclusive, sync
from xlift.errors import DataError
from xlift.progress import say
from xlift.records import parse_line
from xlift.servers.calls import ServedReply
from xlift.study.served import Served

SYNC_SECONDS = 1.0
"""How much of what was paid a loss of power may take back."""

# Characters of a token by script, set between the tokenizers of Gemma 3 (262,144 tokens) and SmolLM2 (49,152) on the
# built-in prompts, nearer to the first: letters up to U+024F, Greek to Arabic, other alphabets, East Asia.
_SCRIPTS = ((0x0, 3.8), (0x250, 2.5), (0x700, 2.0), (0x2E80, 1.2))


# e.g. round(estimated_tokens("a" * 38)) → 10
# e.g. round(estimated_tokens("ありがとう")) → 4
def estimated_tokens(text: str) -> float:
    """About how many tokens a text is; within a factor of two for most models, less close for non-Latin scripts."""
    rest = "".join(one for one in text if not one.isascii()) if not text.isascii() else ""
    starts = [start for start, _ in _SCRIPTS]
    counts = Counter(bisect_right(starts, ord(one)) - 1 for one in rest)
    return (len(text) - len(rest)) / _SCRIPTS[0][1] + sum(count / _SCRIPTS[i][1] for i, count in counts.items())


# e.g. most_tokens("é") → 2
def most_tokens(text: str) -> int:
    """An upper bound: byte-level tokenizers make at most a token of a byte."""
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass
class Ledger:
    """An open ledger: totals over all runs of the study, and where each reply is."""

    path: Path
    price_input: float
    price_output: float
    log: JsonlWriter | None
    """None where the ledger is only read."""
    reading: BinaryIO
    requests: int = 0
    answered: int = 0
    input: int = 0
    output: int = 0
    cost: float = 0.0
    damaged: int = 0
    """Lines that say nothing: what they were is asked, and paid, again."""
    end: int = 0
    synced: float = 0.0
    """When the file was last made to survive a loss of power, by the monotonic clock."""
    places: dict[tuple[int, int], int] = field(default_factory=dict)

    def price(self, input_tokens: float, output_tokens: float) -> float:
        return (input_tokens * self.price_input + output_tokens * self.price_output) / 1e6

    def replies(self, key: str) -> tuple[ServedReply, ...]:
        """The replies already paid for: none, one, or two where there was a re-ask."""
        return tuple(reply for part in (1, 2) if (reply := self._reply(key, part)))

    def tokens(self, key: str) -> tuple[int, int]:
        """Tokens read and written by an answered request's first call."""
        line = self._line(key, 1) or {}
        return int(line.get("input", 0)), int(line.get("output", 0))

    def _reply(self, key: str, part: int) -> ServedReply | None:
        line = self._line(key, part)
        return None if line is None else ServedReply(line["reply"], line["finish"], line["refusal"], line.get("engine"))

    def _line(self, key: str, part: int) -> dict[str, Any] | None:
        place = self.places.get((int(key, 16), part))
        if place is None:
            return None
        self.reading.seek(place)
        return cast("dict[str, Any]", json.loads(self.reading.readline()))

    def add(self, key: str, part: int, reply: ServedReply, tokens: tuple[int, int], estimated: bool = False) -> None:
        """Write down an answered call with its (input, output) tokens, `estimated` where the server told none."""
        line: dict[str, Any] = {"request": key, "part": part, **reply._asdict()}
        line |= {} if line.pop("engine") is None else {"engine": reply.engine}
        line = {"reply" if name == "text" else name: value for name, value in line.items()}
        line |= {"input": tokens[0], "output": tokens[1], "cost": round(self.price(*tokens), 9)}
        self._write(line | ({"estimated": True} if estimated else {}))

    def add_failure(self, key: str, part: int, why: str) -> None:
        """Write down a request that brought no reply."""
        self._write({"request": key, "part": part, "failed": why})

    def _write(self, line: dict[str, Any]) -> None:
        assert self.log, "the ledger is open for reading only"
        encoded = _summed(encode_record(line))
        self.log.write_encoded(encoded)
        if time.monotonic() - self.synced > SYNC_SECONDS:
            sync(self.path)
            self.synced = time.monotonic()
        self._count(line, len(encoded))

    def count_line(self, raw: bytes) -> None:
        """Count a line of the file. What cannot be understood counts as sent: it may have been paid."""
        try:
            line = _understood(parse_line(_as_written(raw), str(self.path)))
        except (DataError, ValueError, TypeError, KeyError):
            self.damaged += 1
            line = {}
        self._count(line, len(raw))

    def _count(self, line: dict[str, Any], size: int) -> None:
        self.requests += 1
        if "reply" in line:
            self.answered += 1
            self.input += line["input"]
            self.output += line["output"]
            # Written down without a price, it costs what the price is now: a budget must not overlook it.
            self.cost += line["cost"] or self.price(line["input"], line["output"])
            # Of a request that was answered twice the first reply stays, by which ratings were made.
            self.places.setdefault((int(line["request"], 16), line["part"]), self.end)
        self.end += size


_SUM = re.compile(rb',"sum":"([0-9a-f]{8})"\}\n?\Z')


# e.g. _summed(b'{"a":1}\n') → b'{"a":1,"sum":"a702fc6e"}\n'
def _summed(line: bytes) -> bytes:
    body = line.removesuffix(b"}\n")
    return b'%b,"sum":"%08x"}\n' % (body, crc32(body))


def _as_written(line: bytes) -> bytes:
    """The line. Raises ValueError where its sum is another; those of earlier versions have none."""
    found = _SUM.search(line)
    if found and crc32(line[: found.start()]) != int(found[1], 16):
        raise ValueError("not as it was written")
    return line


def _understood(line: dict[str, Any]) -> dict[str, Any]:
    """A line as it was written. Raises ValueError, TypeError or KeyError for anything else."""
    if "reply" not in line:
        return line
    texts = isinstance(line["reply"], str) and isinstance(line["finish"], str)
    numbers = [line["input"], line["output"], line["cost"]]
    counted = all(type(one) in (int, float) and 0 <= one < math.inf for one in numbers) and line["part"] in (1, 2)
    if not texts or not counted or not isinstance(line["refusal"], str | None) or int(line["request"], 16) < 0:
        raise ValueError("not as it was written")
    return line


@contextmanager
def open_ledger(path: Path, settings: Served) -> Iterator[Ledger]:
    """The ledger at `path`; an empty one leaves no file. Raises ConfigError while another process has it open."""
    busy = f"{path}: another xlift process is asking"
    with exclusive(path.with_name(f".{path.name}.lock"), busy):
        path.touch()
        with path.open("rb") as reading, JsonlWriter(path) as log:
            ledger = _counted(path, settings, log, reading)
            yield ledger
        sync(path)
        if not ledger.requests:
            path.unlink()


@contextmanager
def read_ledger(path: Path, settings: Served) -> Iterator[Ledger]:
    """The ledger at `path` as it is now, to be read only: nothing is made, mended or locked."""
    with path.open("rb") if path.is_file() else BytesIO() as reading:
        yield _counted(path, settings, None, reading)


def _counted(path: Path, settings: Served, log: JsonlWriter | None, reading: BinaryIO) -> Ledger:
    ledger = Ledger(path, settings.price_input or 0.0, settings.price_output or 0.0, log, reading)
    for raw in reading:
        if raw.endswith(b"\n"):  # a last line without its end is being written, or torn
            ledger.count_line(raw)
    if ledger.damaged:
        say(f"{path}: {ledger.damaged} damaged lines; what they answered is asked again")
    return ledger


def mean_tokens(ledger: Ledger, least: int = 20) -> tuple[float, float] | None:
    """Tokens read and written by an average call so far; None where fewer than `least` calls have been answered."""
    if ledger.answered < least:
        return None
    return ledger.input / ledger.answered, ledger.output / ledger.answered
