"""Rate anybody's files of responses: streamed, on all cores, in order, continued after interruption.

Memory does not grow with a file of lines. A line that cannot be read is reported with its number and the rest is rated.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from xlift.data.tabular import FILE_KINDS, Row, files, kind_of_name, rows
from xlift.disk import JsonlWriter, encode_record, exclusive
from xlift.errors import MAX_PROBLEMS, ConfigError, DataError, UserError, nearest
from xlift.progress import progress, say
from xlift.rating import (
    checked_raters,
    default_raters,
    identity,
    in_scope,
    rate,
    signature_of,
    text_fingerprint,
)
from xlift.rating.foreign import Reading, ReadingOptions, columns_of, look, reading_of, reading_text, responses
from xlift.rating.inspect_logs import is_log, log_rows
from xlift.rating.language.wordlists import warm_up
from xlift.rating.tally import Tally, count, merge, prompt_number
from xlift.records import Rating, parse_line, read_jsonl

CHUNK_BYTES = 128 * 1024
"""Bytes, to the end of the line, handed to a worker at once."""
MIN_FOR_WORKERS = 2_000
"""Lines below which starting workers costs more than it saves."""
ROWS_AT_ONCE = 200
"""Rows handed to a worker at once of a file that is not read by its lines."""
FIRST_ROWS = 20
"""Rows by which it is decided how a file is read."""
ENDINGS = ", ".join([*" ".join(FILE_KINDS.values()).split(), ".eval"]) + ", or also in .gz …"
GROUPS = ("file", "model", "task", "run")
"""What responses can be grouped by, where it is known, besides the columns of their file."""


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


KeptResponse = tuple[str, dict[str, Any], list[Rating]]
"""The name under which a response stands beside those of others, the response, and its ratings."""


@dataclass
class RatedFiles:
    """What came of rating files: counts, figures by language, and the responses with ratings that are kept.

    Of more than a job keeps, they are whole requests from all over; the others are `left_out`.
    """

    counts: RatingCounts = field(default_factory=RatingCounts)
    tally: Tally = field(default_factory=dict)
    kept: list[KeptResponse] = field(default_factory=list)
    left_out: int = 0
    halved: int = 0
    """How often the requests that are kept were halved, by their numbers."""

    def add(self, other: RatedFiles, most: int) -> None:
        self.counts.add(other.counts)
        merge(self.tally, other.tally)
        self.left_out += len(self.kept) + len(other.kept)
        self.kept += self._chosen(other.kept)
        while len(self.kept) > most and (fewer := self._chosen(self.kept, 1)):
            self.halved += 1
            self.kept = fewer
        del self.kept[most:]
        self.left_out -= len(self.kept)

    def _chosen(self, found: list[KeptResponse], further: int = 0) -> list[KeptResponse]:
        return [one for one in found if prompt_number(one[1]["id"]) % (1 << (self.halved + further)) == 0]


class Job(NamedTuple):
    """What is asked of every response: raters whose ratings are written, raters that are counted, a column to group
    by, how many responses are kept at most, and whether several files are read."""

    written: list[str]
    counted: Sequence[str] = ()
    by: str | None = None
    keep: int = 0
    several: bool = False


class Chunk(NamedTuple):
    """Rows of one file, the `place`-th that is read: lines as they are, from line `first` on, or what was read.

    `name` tells the file from the others that are read.
    """

    path: Path
    name: str
    reading: Reading
    place: int
    rows: Sequence[bytes | Row]
    first: int = 1


def rate_file(
    source: str | Path, target: str | Path, raters: Sequence[str] | None = None, workers: int | None = None
) -> RatingCounts:
    """Append the ratings of every response in `source` to `target`, by the default raters where none is named.

    Responses that the same run has given at the same step, and that are rated by the same signature, are left out.
    Raises DataError as `check_files` does; ConfigError for an unknown rater, where nothing says which column holds
    replies or languages, or while another process writes `target`.
    """
    names = default_raters() if raters is None else checked_raters(raters)
    return rate_files([Path(source)], Path(target), Job(names), workers=workers).counts


def rate_files(
    sources: Sequence[Path],
    target: Path | None,
    job: Job,
    asked: ReadingOptions = ReadingOptions(),  # noqa: B008
    workers: int | None = None,
) -> RatedFiles:
    """Rate what is in files and folders. New ratings are appended to `target`, or to nothing where it is None.

    Raises what `rate_file` does, before anything is rated.
    """
    for source in sources:
        check_files(source, target)
    paths = [path for source in sources for path in response_files(source)]
    readings = [open_reading(path, asked, job.by) for path in paths]
    names = told_apart(paths)
    job = job._replace(several=len(paths) > 1)
    total = sum(map(count_rows, paths))
    used = ((os.cpu_count() or 1) if workers is None else workers) if total >= MIN_FOR_WORKERS else 1
    # Of what is not read by lines nobody knows before how many rows there are.
    telling = all(map(_by_lines, paths)) and paths
    found = RatedFiles()
    shown = progress(f"rate {paths[0].name}", total) if telling else nullcontext()
    with _writing(target) as (write, done), shown as bar:
        chunks = (
            one for place, path in enumerate(paths) for one in _chunks(path, names[place], readings[place], place)
        )
        for lines, encoded, one in _rated_chunks(chunks, job, done, used):
            write(encoded)
            found.add(one, job.keep)
            if bar:
                bar.advance(lines)
    return found


@contextmanager
def _writing(target: Path | None) -> Iterator[tuple[Callable[[bytes], None], array[int]]]:
    """What appends to the ratings, and the keys of those that are there."""
    if target is None:
        yield lambda encoded: None, array("Q")
        return
    busy = f"{target}: another xlift process is writing this file"
    with exclusive(target.with_name(f".{target.name}.lock"), busy), JsonlWriter(target) as log:
        yield log.write_encoded, _already_rated(target)


def check_files(source: Path, target: Path | None) -> None:
    """Raises DataError if responses are not there, or would go where something else than ratings is."""
    if not source.exists():
        raise DataError(f"{source}: no such file")
    if target is None or not target.exists():
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


def _by_lines(path: Path) -> bool:
    return path.suffix.lower() in {".jsonl", ".ndjson", ".jsonlines"}


def count_rows(path: Path) -> int:
    """Lines of a file of lines; of any other about as many rows as it may have."""
    if not _by_lines(path):
        return path.stat().st_size // 500
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def response_files(source: Path) -> list[Path]:
    """The file itself, or the files of responses in a folder: logs and samples of other programs, or any records.

    Raises DataError where there are none.
    """
    if source.is_file():
        return [source]
    for pattern in ("*.eval", "samples_*.jsonl"):
        if found := sorted(source.rglob(pattern)):
            return found
    return files(source)


# e.g. told_apart([Path("a/fr.csv"), Path("b/fr.csv"), Path("ru.csv")]) → ["a/fr.csv", "b/fr.csv", "ru.csv"]
# e.g. told_apart([Path("a/fr.csv"), Path("b/ru.csv")]) → ["fr.csv", "ru.csv"]
def told_apart(paths: Sequence[Path]) -> list[str]:
    """What files are called beside each other: by their names or, where some are alike, with the folders before."""
    depth, names = 1, [path.name for path in paths]
    while len(set(names)) < len(set(paths)):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in paths]
    return names


# e.g. _bare("a/fr.jsonl") → "a/fr"
def _bare(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of any format, or the samples of a log."""
    return log_rows(path) if is_log(path) else rows(path)


def open_reading(path: Path, asked: ReadingOptions, by: str | None) -> Reading:
    """How a file is read, which is said. Raises ConfigError where that cannot be told, or there is no column `by`."""
    first = [row.record for row in islice(file_rows(path), FIRST_ROWS) if row.problem is None]
    reading = reading_of(path, first, asked)
    there = [*columns_of(first), *GROUPS]
    if by and first and by not in there:
        raise ConfigError(f"{path}: no column '{by}'; {nearest(by, there)}", f"xlift rate {path} --by COLUMN")
    if text := reading_text(path, reading):
        say(text)
    return reading


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
    chunks: Iterator[Chunk], job: Job, done: array[int], workers: int
) -> Iterator[tuple[int, bytes, RatedFiles]]:
    if workers == 1:
        for chunk in chunks:
            yield len(chunk.rows), *_rate_chunk(chunk, job, done)
        return
    warm_up()
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(workers, context) as pool:
        known = Path(scratch) / "done"
        known.write_bytes(done.tobytes())
        waiting: deque[tuple[int, Future[tuple[bytes, RatedFiles]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((len(chunk.rows), pool.submit(_rate_chunk, chunk, job, known)))
                # A bounded queue: the file is never read far ahead of what is rated.
                if len(waiting) > 4 * workers:
                    number, future = waiting.popleft()
                    yield number, *future.result()
            for number, future in waiting:
                yield number, *future.result()
        except BrokenProcessPool:
            problem = "a process that rates was ended from outside, most often because memory ran out"
            raise UserError(problem, "what is rated is kept: give the command again with --workers 1") from None


@lru_cache(maxsize=1)
def _keys_in(path: Path) -> array[int]:
    """Kept for this process: every task of a worker asks for the same keys."""
    return array("Q", path.read_bytes())


def _chunks(path: Path, name: str, reading: Reading, place: int) -> Iterator[Chunk]:
    if not _by_lines(path):
        read = file_rows(path)
        while some := list(islice(read, ROWS_AT_ONCE)):
            yield Chunk(path, name, reading, place, some)
        return
    with path.open("rb") as file:
        first = 1
        while lines := file.readlines(CHUNK_BYTES):
            yield Chunk(path, name, reading, place, lines, first)
            first += len(lines)


def _rate_chunk(chunk: Chunk, job: Job, done: array[int] | Path) -> tuple[bytes, RatedFiles]:
    known = _keys_in(done) if isinstance(done, Path) else done
    found, encoded = RatedFiles(), list[bytes]()
    for row in _rows_in(chunk):
        try:
            if row.problem:
                raise DataError(row.problem)
            made = responses(row.record, chunk.reading, row.where, _name(chunk, row, job))
        except DataError as error:
            found.counts.unreadable += 1
            found.counts.problems += error.problems
            continue
        for record in made:
            ratings = _ratings(record, job, known, found.counts, encoded)
            group = _group(record, row, job.by, chunk.name)
            if job.counted:
                count(found.tally, record, ratings, group, chunk.place << 40 | row.number)
            if job.keep:
                found.kept.append((group or str(record.get("model") or _bare(chunk.name)), record, ratings))
    return b"".join(encoded), found


def _rows_in(chunk: Chunk) -> Iterator[Row]:
    for number, row in enumerate(chunk.rows, start=chunk.first):
        where = f"{chunk.path}:{number}"
        if isinstance(row, Row):
            yield row
        elif row.strip():
            try:
                yield Row(where, number, parse_line(row, where))
            except DataError as error:
                yield Row(where, number, {}, error.problems[0])


def _name(chunk: Chunk, row: Row, job: Job) -> int | str:
    """What a response without an id is called: by its line, and its file where there are several."""
    return f"{_bare(chunk.name)}:{row.number}" if job.several else row.number


def _group(record: dict[str, Any], row: Row, by: str | None, name: str) -> str:
    if by is None:
        return ""
    value = name if by == "file" else look(row.record, by)
    return str(record.get(by, "–") if value is None else value)


def _ratings(
    record: dict[str, Any], job: Job, done: array[int], counts: RatingCounts, encoded: list[bytes]
) -> list[Rating]:
    """What is said of one response; what is new and to be written is encoded, what nobody counts is left out."""
    mark, ratings = text_fingerprint(record), []
    for rater in dict.fromkeys((*job.written, *job.counted)):
        new = rater in job.written and not _holds(done, _key(record, mark, rater, signature_of(rater)))
        if not in_scope(record, rater) or not (new or rater in job.counted):
            continue
        rating = rate(record, rater)
        ratings.append(rating)
        if new:
            encoded.append(encode_record(rating))
            counts.made += 1
            counts.missing += rating["value"] is None
    return ratings


def is_study(path: Path) -> bool:
    """Whether a path is meant as a study: a study file, a study's folder, or a name that is none of a file.

    Raises DataError for a file that is neither that nor responses.
    """
    if path.suffix in {".yaml", ".yml"} or (path / "study.yaml").is_file():
        return True
    known = path.suffix == ".eval" or kind_of_name(path) is not None
    if path.is_file() and not known:
        sheet = "save the sheet as CSV UTF-8; " if path.suffix.lower() in {".xlsx", ".xls", ".ods"} else ""
        hint = f"{sheet}files of responses end in {ENDINGS}"
        raise DataError(f"{path}: neither a study file (.yaml) nor responses", hint)
    return not known and not path.is_dir()


def read_responses(
    source: Path, unreadable: list[str], asked: ReadingOptions | None = None
) -> Iterator[dict[str, Any]]:
    """The responses in a file of any kind, read as `xlift rate` reads it; problems are added to `unreadable`.

    Raises ConfigError where nothing says which column holds replies or languages.
    """
    reading = open_reading(source, asked or ReadingOptions(), None)
    for row in file_rows(source):
        try:
            if row.problem:
                raise DataError(row.problem)
            yield from responses(row.record, reading, row.where, row.number)
        except DataError as error:
            unreadable += error.problems
