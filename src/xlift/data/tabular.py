"""The rows of any file: JSON Lines, JSON, CSV, TSV, Parquet, Arrow; plain or compressed; or a folder of such files.

A row that cannot be read is told with its place and what is wrong with it, and the rest is read on. Text is read as a
stream, a record at a time; a JSON object around the list of records alone is held as a whole.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from xlift.errors import DataError
from xlift.extras import require
from xlift.hub import file_sha256
from xlift.records import MAX_DEPTH, fingerprint, parse_json, parse_line

if TYPE_CHECKING:
    import polars as pl

FILE_KINDS = {
    "jsonl": ".jsonl .ndjson .jsonlines",
    "json": ".json",
    "csv": ".csv .tsv",
    "parquet": ".parquet",
    "arrow": ".arrow .feather .ipc",
}
"""What a file's name says of its content, after the ending of a compression is taken off."""
PACKED = (".gz", ".bz2", ".xz", ".zst")
STRUCTURED = ("messages", "conversations", "history", "prompt", "constraint", "answers", "answers_any", "wrong")
"""Columns of CSV files whose cells may hold JSON."""
MAX_DOCUMENT = 2**30
"""Bytes of a JSON document, which is held as a whole."""
MAX_LINE = 2**25
"""Bytes of a record: of more, something else than records was given."""
_BATCH = 1_000
_BLOCK = 2**16
"""Characters of an array that are read at once."""
_OF_NO_RECORD = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")
_SHARD = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}")


class Row(NamedTuple):
    """A record and where it stands; or, with an empty record, what is wrong there."""

    where: str
    """The file and the line on which the record begins, or its number where several stand on one line."""
    number: int
    """That line or number, from 1; no two records of a file have the same."""
    record: dict[str, Any]
    problem: str | None = None


def rows(path: str | Path, split: str | None = None) -> Iterator[Row]:
    """Every record of a file, or of all files in a folder in the order of their names.

    Of a folder whose files are named by splits only those of `split` are read. Raises DataError for a file that is not
    there, or that cannot be read on.
    """
    for file in files(Path(path), split):
        yield from map(_unquoted, _rows(file))


_TURNS = ("messages", "conversations", "conversation")


# e.g. _unquoted(Row("a:1", 1, {"messages": '[{"role": "user"}]'})).record → {"messages": [{"role": "user"}]}
# e.g. _unquoted(Row("a:1", 1, {"messages": "[1"})).record → {"messages": "[1"}
def _unquoted(row: Row) -> Row:
    """A record whose turns are a text of JSON, as data frames and databases keep them, with the turns themselves."""
    texts = {name: text for name in _TURNS if isinstance(text := row.record.get(name), str) and text[:1] == "["}
    for name, text in texts.items():
        try:
            turns = parse_json(text.encode("utf-8", "surrogatepass"), row.where)
        except DataError:
            continue
        row = row._replace(record=row.record | {name: turns})
    return row


def files(path: Path, split: str | None = None) -> list[Path]:
    """The file itself, or the files in a folder that hold records. Raises DataError where there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file")
    inner = (one for one in sorted(path.rglob("*")) if not any(p.startswith(".") for p in one.relative_to(path).parts))
    found = [one for one in inner if one.is_file() and kind_of_name(one) and one.name not in _OF_NO_RECORD]
    if not found:
        endings = ", ".join(" ".join(FILE_KINDS.values()).split())
        raise DataError(f"{path}: no file of records in this folder", f"its files end in {endings}, or also in .gz …")
    splits = {one: _split_of(one, path) for one in found}
    there = sorted({name for name in splits.values() if name})
    if split is None or not there:
        return found
    chosen = [one for one in found if splits[one] == split]
    if not chosen:
        raise DataError(f"{path}: no split '{split}'; there are: {', '.join(there)}", f"set split: {there[0]}")
    return chosen


def content_sha256(path: Path) -> str:
    """One hash over the records of a file or a folder, whatever it is called."""
    if path.is_file():
        return file_sha256(path)
    return fingerprint({str(one.relative_to(path)): file_sha256(one) for one in files(path)}, length=64)


# e.g. _split_of(Path("d/train-00000-of-00002.parquet"), Path("d")) → "train"
def _split_of(file: Path, folder: Path) -> str | None:
    """The split that the name of a file in a data set's folder says: of train-00000-of-00001.parquet "train"."""
    shard = _SHARD.match(file.name)
    if shard and shard["split"] != "data":
        return shard["split"]
    # datasets.save_to_disk writes each split of several into a folder of its own.
    return file.parent.name if shard and (file.parent.parent / "dataset_dict.json").is_file() else None


# e.g. kind_of_name(Path("replies.CSV.gz")) → "csv"
# e.g. kind_of_name(Path("replies.txt")) → None
def kind_of_name(path: Path) -> str | None:
    """What the name of a file says that it holds: a key of KINDS, or None."""
    ending = (path.with_suffix("") if path.suffix.lower() in PACKED else path).suffix.lower()
    return next((kind for kind, endings in FILE_KINDS.items() if ending and ending in endings.split()), None)


def _rows(path: Path) -> Iterator[Row]:
    kind = kind_of_name(path)
    if kind in {"parquet", "arrow"}:
        yield from _columns(path)
        return
    with _opened(path) as file:
        yield from {"jsonl": _jsonl, "json": _json, "csv": _csv}[kind or _kind_of_content(file)](file, path)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The content of a file, unpacked. Raises DataError where it cannot be read, or ends too early."""
    with path.open("rb") as raw:
        try:
            file = _unpacked(raw, raw.peek(8))
            _refuse_no_text(file.peek(64)[:64], path)
            yield file
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: cannot be read: {error}", "write the file again") from None


def _refuse_no_text(start: bytes, path: Path) -> None:
    """Raises DataError where the first bytes are not those of UTF-8 text."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: UTF-16 text, expected UTF-8", "save it as UTF-8")
    if start.startswith(b"PK\x03\x04"):
        raise DataError(
            f"{path}: a spreadsheet or a zip archive, expected records", "save the sheet as CSV, or unpack it"
        )
    if b"\x00" in start:
        raise DataError(
            f"{path}: no text, expected records", f"formats: {', '.join(' '.join(FILE_KINDS.values()).split())}"
        )


def _unpacked(raw: io.BufferedReader, start: bytes) -> io.BufferedReader:
    """What is in a file by its first bytes, whatever it is called."""
    if start.startswith(b"\x1f\x8b"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)))
    if start.startswith(b"BZh"):
        return io.BufferedReader(cast(io.RawIOBase, bz2.BZ2File(raw)))
    if start.startswith(b"\xfd7zXZ\x00"):
        return io.BufferedReader(cast(io.RawIOBase, lzma.LZMAFile(raw)))
    return io.BufferedReader(_Zstandard(raw)) if start.startswith(b"\x28\xb5\x2f\xfd") else raw


class _Zstandard(io.RawIOBase):
    """The content of a zstd file. The package's own reader takes a file that is cut off for a whole one."""

    def __init__(self, raw: io.BufferedReader) -> None:
        require("zstd")
        import zstandard

        self._raw, self._unpacker, self._failure = raw, zstandard.ZstdDecompressor(), zstandard.ZstdError
        self._frame, self._left, self._ready = self._unpacker.decompressobj(), b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and (block := self._left or self._raw.read(16_384)):
            self._ready, self._left = self._unpack(block)
        if not self._ready and not self._frame.eof:
            raise EOFError("the compressed file is cut off")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self, block: bytes) -> tuple[bytes, bytes]:
        if self._frame.eof:
            self._frame = self._unpacker.decompressobj()
        try:
            return self._frame.decompress(block), self._frame.unused_data
        except self._failure as error:
            raise OSError(error) from None


def _kind_of_content(file: io.BufferedReader) -> str:
    return "json" if file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") else "jsonl"


def _jsonl(file: io.BufferedReader, path: Path) -> Iterator[Row]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        where = f"{path}:{number}"
        if len(raw) > MAX_LINE:
            yield Row(
                where, number, {}, f"{where}: a line of more than {MAX_LINE >> 20} MiB, expected one record a line"
            )
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE)
        elif raw.strip():
            yield _row(where, number, partial(parse_line, raw, where))


def _row(where: str, number: int, read: Callable[[], dict[str, Any]]) -> Row:
    try:
        return Row(where, number, read())
    except DataError as error:
        return Row(where, number, {}, "; ".join(error.problems))


def _json(file: io.BufferedReader, path: Path) -> Iterator[Row]:
    """The objects of a JSON array; or of the one list in an object; or of a file that is JSON Lines after all."""
    if _kind_of_content(file) == "json":
        with _text(file, path) as text:
            yield from _streamed(text, path)
        return
    raw = file.read(MAX_DOCUMENT + 1)
    if len(raw) > MAX_DOCUMENT:
        raise DataError(
            f"{path}: a JSON document of more than {MAX_DOCUMENT >> 20} MiB", "write one record a line: .jsonl"
        )
    try:
        document = parse_json(raw, str(path))
    except DataError:
        if not _is_jsonl(raw):
            raise
        yield from _jsonl(io.BufferedReader(cast(io.RawIOBase, io.BytesIO(raw))), path)
        return
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected an array of objects, found {type(document).__name__}")
    lists = [name for name, value in document.items() if _is_records(value)]
    inner = document.get("results")
    if isinstance(inner, dict) and _is_records(inner.get("results")):  # as promptfoo writes them
        yield from (Row(f"{path}: record {i}", i, one) for i, one in enumerate(inner["results"], start=1))
        return
    if len(lists) != 1:
        framed = _of_frame(document) or [document]
        for number, record in enumerate(framed, start=1):
            yield Row(f"{path}: record {number}" if len(framed) > 1 else f"{path}:1", number, record)
        return
    del document
    whole = raw.decode("utf-8-sig")
    yield from _elements(whole, _place_of(whole, lists[0]), path)


@contextmanager
def _text(file: io.BufferedReader, path: Path) -> Iterator[io.TextIOWrapper]:
    """A file as text. Raises DataError where it is not UTF-8."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="strict", newline="")
    try:
        yield text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (0x{error.object[error.start]:02x} at {error.start})",
            "save it as UTF-8; in Excel: Save as, CSV UTF-8",
        ) from None
    finally:
        text.detach()


def _streamed(text: io.TextIOWrapper, path: Path) -> Iterator[Row]:
    """The elements of an array, read a block at a time. Raises DataError where it is no JSON from there on."""
    held, line, number, due = "", 1, 0, "["
    while True:
        left = held.lstrip(" \t\r\n")
        line, held = line + held.count("\n", 0, len(held) - len(left)), left or text.read(_BLOCK)
        if left and due == "":
            raise DataError(f"{path}:{line}: not JSON: more after the end of the array")
        if not held and due != "":
            raise DataError(f"{path}:{line}: not JSON: the array is cut off")
        if not held:
            return
        if not left:
            continue
        if due in ("[", ",") and held[0] == due:
            held, due = held[1:], "value" if due == "," else "value or ]"
        elif due in (",", "value or ]") and held[0] == "]":
            held, due = held[1:], ""
        elif due.startswith("value"):
            value, end, held = _decoded(text, held, path, line)
            number = max(line, number + 1)
            yield _element(value, path, line, number)
            line, held, due = line + held.count("\n", 0, end), held[end:], ","
        else:
            raise DataError(f"{path}:{line}: not JSON: expected '{due}', found {held[:20]!r}")


def _decoded(text: io.TextIOWrapper, held: str, path: Path, line: int) -> tuple[Any, int, str]:
    """The value that begins what is held, read on as far as needed; where it ends, and what is held then."""
    while True:
        failure: json.JSONDecodeError | None = None
        end = len(held)
        try:
            value, end = json.JSONDecoder().raw_decode(held)
        except json.JSONDecodeError as error:
            failure = error
        except (RecursionError, ValueError):
            raise DataError(f"{path}:{line}: not usable JSON: nested too deeply, or too long a number") from None
        # A number that ends where the block does may go on in the next one.
        more = text.read(max(_BLOCK, len(held))) if end == len(held) and len(held) <= MAX_LINE else ""
        if failure and len(held) > MAX_LINE:
            raise DataError(f"{path}:{line}: not JSON, or a record of more than {MAX_LINE >> 20} MiB")
        if failure and not more:
            raise DataError(f"{path}:{line + failure.lineno - 1}: not JSON: {failure.msg}") from None
        if not more:
            break
        held += more
    if held.count("[", 0, end) + held.count("{", 0, end) > MAX_DEPTH:
        parse_json(held[:end].encode(), f"{path}:{line}")
    return value, end, held


# e.g. _is_jsonl(b'{"a": 1}\n{"a": 2}\n') → True
# e.g. _is_jsonl(b'{\n "a": 1}\n') → False
def _is_jsonl(raw: bytes) -> bool:
    """Whether more lines than one begin an object at the margin, and the first is one."""
    first, _, rest = raw.lstrip(b"\xef\xbb\xbf \r\n").partition(b"\n")
    try:
        return isinstance(json.loads(first), dict) and rest.lstrip().startswith(b"{")
    except (ValueError, RecursionError):
        return False


# e.g. _of_frame({"text": {"0": "Oui.", "1": "Non."}}) → [{"text": "Oui."}, {"text": "Non."}]
# e.g. _of_frame({"text": ["Oui."], "id": ["q1"]}) → [{"text": "Oui.", "id": "q1"}]
# e.g. _of_frame({"q1": {"text": "Oui."}, "q2": {"text": "Non."}})[1] → {"id": "q2", "text": "Non."}
# e.g. _of_frame({"text": "Oui.", "tags": {"0": "a"}}) → []
def _of_frame(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a data frame: of its columns, each a list or by the number of the row, or of records by their ids;
    [] where a document is none."""
    values = list(document.values())
    if len(values) > 1 and all(isinstance(one, list) and len(one) == len(values[0]) > 0 for one in values):
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    if not values or not all(isinstance(one, dict) and one and one.keys() == values[0].keys() for one in values):
        return []
    if all(map(str.isdecimal, values[0])):
        return [{name: column[row] for name, column in document.items()} for row in values[0]]
    return [{"id": name, **record} for name, record in document.items()] if len(values) > 1 else []


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


# e.g. _after_blanks("[ , 3]", 1, ",") → 4
def _after_blanks(text: str, position: int, marks: str = "") -> int:
    """The next place that is no blank of JSON and none of the marks."""
    while text[position] in f" \t\r\n{marks}":
        position += 1
    return position


# e.g. _place_of('{"n": 1, "rows": [{}]}', "rows") → 18
def _place_of(text: str, wanted: str) -> int:
    """Where the elements of the list begin that an object has under the key `wanted`."""
    decode, found = json.JSONDecoder().raw_decode, 0
    position = _after_blanks(text, text.index("{") + 1)
    while text[position] != "}":
        key, position = decode(text, position)
        position = _after_blanks(text, position, ",:")
        found = position + 1 if key == wanted else found
        position = _after_blanks(text, decode(text, position)[1], ",:")
    return found


def _elements(text: str, position: int, path: Path) -> Iterator[Row]:
    """The elements of a list from `position` on, each with the line where it begins, or its number."""
    decode, line, number, counted = json.JSONDecoder().raw_decode, 1, 0, 0
    position = _after_blanks(text, position)
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        value, position = decode(text, position)
        position, number = _after_blanks(text, position, ",:"), max(line, number + 1)
        yield _element(value, path, line, number)


# e.g. _element({}, Path("a.json"), 1, 3).where → "a.json: record 3"
def _element(value: Any, path: Path, line: int, number: int) -> Row:
    where = f"{path}:{line}" if line == number else f"{path}: record {number}"
    found = f"{where}: expected an object, found {type(value).__name__}"
    return Row(where, number, value) if isinstance(value, dict) else Row(where, number, {}, found)


def _csv(file: io.BufferedReader, path: Path) -> Iterator[Row]:
    """Rows under a header. A cell without text is a field that is not there; one of STRUCTURED may hold JSON."""
    csv.field_size_limit(MAX_LINE)
    with _text(file, path) as text:
        yield from _csv_rows(text, path)


# e.g. delimiter_of("id;value;comment") → ";"
def delimiter_of(header: str) -> str:
    """The delimiter of a table: the one that parts its header into most columns."""
    return max(",;\t|", key=lambda one: len(next(csv.reader([header], delimiter=one), [])))


def _csv_rows(text: io.TextIOWrapper, path: Path) -> Iterator[Row]:
    first = text.readline()
    delimiter = delimiter_of(first)
    # A line before the header may tell Excel.
    told = re.fullmatch(r"sep=([,;\t|])\s*", first)
    if told:
        delimiter, first = told[1], text.readline()
    cells = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = cells.line_num + (2 if told else 1)
        where = f"{path}:{line}"
        try:
            found = next(cells, None)
        except csv.Error as error:
            yield Row(where, line, {}, f"{where}: not CSV: {error}")
            continue
        if found is None:
            return
        if header is None:
            header = _header(found, path)
        elif any(cell.strip() for cell in found):
            yield _row(where, line, partial(_csv_record, header, found, where))


def _header(found: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not any(names):
        problem = f"the column {', '.join(twice)} is there twice" if twice else "expected the names of the columns"
        raise DataError(f"{path}:1: {problem}", "the first line names the columns, each once")
    return names


def _csv_record(header: list[str], found: list[str], where: str) -> dict[str, Any]:
    if len(found) != len(header):
        raise DataError(f"{where}: {len(found)} cells, expected {len(header)} ({', '.join(header)})")
    cells = {name: cell for name, cell in zip(header, found, strict=True) if cell.strip()}
    held = {
        name: parse_json(cell.encode(), f"{where}: {name}") for name, cell in cells.items() if _holds_json(name, cell)
    }
    return cells | held


# e.g. [_holds_json("messages", cell) for cell in ('[{"role": "user"}]', "plain")] → [True, False]
def _holds_json(name: str, cell: str) -> bool:
    start, end = cell.strip()[0], cell.strip()[-1]
    return name in STRUCTURED and start + end in {"[]", "{}"}


def _columns(path: Path) -> Iterator[Row]:
    """Rows of a Parquet or Arrow file; a field without a value is one that is not there."""
    import polars as pl

    number = 0
    try:
        for frame in _frames(path):
            for record in frame.iter_rows(named=True):
                number += 1
                yield Row(f"{path}: row {number}", number, {key: one for key, one in record.items() if one is not None})
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}", "write the file again") from None


def _frames(path: Path) -> Iterator[pl.DataFrame]:
    import polars as pl

    if kind_of_name(path) == "parquet":
        return iter(pl.scan_parquet(path, glob=False).collect_batches(chunk_size=_BATCH))
    with path.open("rb") as file:
        # datasets.save_to_disk writes streams, Feather files have a footer.
        read = pl.read_ipc if file.read(6) == b"ARROW1" else pl.read_ipc_stream
    return read(path).iter_slices(_BATCH)
