"""Rate any JSONL file of responses: streamed, on all cores, in order, continued after interruption.

Memory does not grow with the file. A line that cannot be read is reported with its number and the rest is rated.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from xlift.errors import MAX_PROBLEMS, DataError
from xlift.progress import progress
from xlift.rating import (
    checked_raters,
    default_raters,
    identity,
    in_scope,
    rate,
    signature_of,
    text_fingerprint,
)
from xlift.rating.language.wordlists import prepare
from xlift.records import JsonlWriter, encode_record, exclusive, parse_line, parse_response, read_jsonl

CHUNK = 128 * 1024
"""Bytes, to the end of the line, handed to a worker at once."""
MIN_FOR_WORKERS = 2_000
"""Lines below which starting workers costs more than it saves."""


@dataclass
class RatingCounts:
    """What came of rating a file: ratings made, how many of them are missing, and lines that could not be read."""

    made: int = 0
    missing: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: RatingCounts) -> None:
        self.made += other.made
        self.missing += other.missing
        self.unreadable += other.unreadable
        self.problems += other.problems[: MAX_PROBLEMS - len(self.problems)]


def rate_file(
    source: str | Path, target: str | Path, raters: Sequence[str] | None = None, workers: int | None = None
) -> RatingCounts:
    """Append the ratings of every response in `source` to `target`, by the default raters where none is named.

    Responses that the same run has given at the same step, and that are rated by the same signature, are left out.
    Raises DataError as `check_files` does; ConfigError for an unknown rater, or while another process writes `target`.
    """
    source, target = Path(source), Path(target)
    names = default_raters() if raters is None else checked_raters(raters)
    check_files(source, target)
    total = _count_lines(source)
    workers = (os.cpu_count() or 1) if workers is None else workers
    counts = RatingCounts()
    with (
        exclusive(target.with_name(f".{target.name}.lock"), f"{target}: another xlift process is writing this file"),
        JsonlWriter(target) as log,
        progress(f"rate {source.name}", total) as bar,
    ):
        done = _already_rated(target)
        used = workers if total >= MIN_FOR_WORKERS else 1
        for lines, encoded, one in _rated_chunks(source, names, done, used):
            log.write_encoded(encoded)
            counts.add(one)
            bar.advance(lines)
    return counts


def check_files(source: Path, target: Path) -> None:
    """Raises DataError if responses are not there, or would go where something else than ratings is."""
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    if not target.exists():
        return
    if not target.is_file():
        raise DataError(f"{target}: not a file", "choose another -o")
    if source.samefile(target):
        raise DataError(f"{source}: responses and ratings cannot be the same file", "choose another -o")
    with target.open("rb") as lines:
        first = lines.readline()
    if first and not _is_rating(first):
        raise DataError(f"{target}: holds something else than ratings", "choose another -o")


def _is_rating(line: bytes) -> bool:
    """Whether a line is a rating, or the beginning of one that was cut off when its process was killed."""
    try:
        return "rater" in parse_line(line, "")
    except DataError:
        return not line.endswith(b"\n") and line.startswith(b'{"id": '[: len(line)])


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def _already_rated(target: Path) -> array[int]:
    """Sorted 64-bit keys of the ratings in a file: eight bytes each, since every worker gets them."""
    rated = (record for _, record in read_jsonl(target))
    keys = array("Q", (_key(r, r.get("response"), r.get("rater"), r.get("signature")) for r in rated))
    return array("Q", sorted(keys))


def _key(record: dict[str, Any], *parts: object) -> int:
    """A number for one rater's word on one response: whose it is, and what `parts` say of its text and the rater."""
    text = repr((identity(record), *parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _holds(keys: array[int], key: int) -> bool:
    place = bisect_left(keys, key)
    return place < len(keys) and keys[place] == key


def _rated_chunks(
    source: Path, raters: list[str], done: array[int], workers: int
) -> Iterator[tuple[int, bytes, RatingCounts]]:
    if workers == 1:
        for first, lines in _chunks(source):
            yield len(lines), *_rate_lines(first, lines, str(source), raters, done)
        return
    prepare()
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(done,)) as pool:
        waiting: deque[tuple[int, Future[tuple[bytes, RatingCounts]]]] = deque()
        for first, lines in _chunks(source):
            waiting.append((len(lines), pool.submit(_rate_lines, first, lines, str(source), raters, None)))
            # A bounded queue: the file is never read far ahead of what is rated.
            if len(waiting) > 4 * workers:
                count, future = waiting.popleft()
                yield count, *future.result()
        for count, future in waiting:
            yield count, *future.result()


_done_in_worker: array[int] = array("Q")


def _start_worker(done: array[int]) -> None:
    _done_in_worker.extend(done)


def _chunks(source: Path) -> Iterator[tuple[int, list[bytes]]]:
    with source.open("rb") as file:
        first = 1
        while lines := file.readlines(CHUNK):
            yield first, lines
            first += len(lines)


def _rate_lines(
    first: int, lines: Iterable[bytes], name: str, raters: list[str], done: array[int] | None
) -> tuple[bytes, RatingCounts]:
    known = _done_in_worker if done is None else done
    counts = RatingCounts()
    encoded = []
    for number, raw in enumerate(lines, start=first):
        if not raw.strip():
            continue
        try:
            record = parse_response(raw, Path(name), number)
        except DataError as error:
            counts.unreadable += 1
            counts.problems += error.problems
            continue
        mark = text_fingerprint(record)
        for rater in raters:
            if not in_scope(record, rater) or _holds(known, _key(record, mark, rater, signature_of(rater))):
                continue
            rating = rate(record, rater)
            encoded.append(encode_record(rating))
            counts.made += 1
            counts.missing += rating["value"] is None
    return b"".join(encoded), counts
