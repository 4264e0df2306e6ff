"""Rows of any file: the same records whatever the format, and every row that cannot be read told with its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from xlift.data.tabular import MAX_LINE, rows
from xlift.errors import DataError

RECORDS = [{"instruction": f"Why {i}?\n„Ну“", "output": 'So, "so"; yes'} for i in range(3)]


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


def table(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(RECORDS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return text.getvalue().encode()


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def feather() -> bytes:
    data = io.BytesIO()
    pl.DataFrame(RECORDS).write_ipc(data)
    return data.getvalue()


def parquet() -> bytes:
    data = io.BytesIO()
    pl.DataFrame([one | {"system": None} for one in RECORDS]).write_parquet(data)
    return data.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: lines(RECORDS),
    "bom.jsonl": lambda: b"\xef\xbb\xbf" + lines(RECORDS),
    "lines.json": lambda: lines(RECORDS),
    "array.json": lambda: json.dumps(RECORDS, indent=1).encode(),
    "object.json": lambda: json.dumps({"version": "1", "tags": ["a"], "data": RECORDS}, indent=1).encode(),
    "a.csv": lambda: table(","),
    "semicolons.csv": lambda: b"\xef\xbb\xbf" + table(";"),
    "a.tsv": lambda: table("\t"),
    "bars.csv": lambda: table("|"),
    "excel.csv": lambda: b"sep=;\r\n" + table(";"),
    "nested.json": lambda: json.dumps({"id": "e", "results": {"version": 3, "results": RECORDS}}).encode(),
    "a.csv.gz": lambda: gzip.compress(table(",")),
    "a.jsonl.gz": lambda: gzip.compress(lines(RECORDS[:1])) + gzip.compress(lines(RECORDS[1:])),
    "a.jsonl.zst": lambda: zstd(lines(RECORDS[:1])) + zstd(lines(RECORDS[1:])),
    "a.jsonl.bz2": lambda: bz2.compress(lines(RECORDS)),
    "a.json.xz": lambda: lzma.compress(json.dumps(RECORDS).encode()),
    "without_an_ending": lambda: gzip.compress(lines(RECORDS)),
    "a.parquet": parquet,
    "a.feather": feather,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    assert [(row.record, row.problem) for row in rows(path)] == [(record, None) for record in RECORDS]


BROKEN: dict[str, tuple[bytes, list[tuple[int, str | None]]]] = {
    "a.jsonl": (
        b'{"a": 1}\n\n{"a": 1 2}\n[1]\n{"a": "\xff"}\n{"a": ' + b"[" * 300 + b"]" * 300 + b'}\n{"a": 2}',
        [(1, None), (3, "not JSON"), (4, "found list"), (5, "not UTF-8"), (6, "nested too deeply"), (7, None)],
    ),
    "deep.jsonl": (b'{"a": ' + b"[" * 9_999 + b"]" * 9_999 + b'}\n{"a": 2}', [(1, "nested too deeply"), (2, None)]),
    "long.jsonl": (b'{"a": "' + b"x" * MAX_LINE * 2 + b'"}\n{"a": 2}', [(1, "more than 32 MiB"), (2, None)]),
    "a.json": (b'[\n{"a": 1},\n\n3,\n{"a": 2}\n]', [(2, None), (4, "expected an object, found int"), (5, None)]),
    "a.csv": (
        b'a;b\n1;"x\ny"\n2\n;\n3;"z"z\n4;5\n5;"y',
        [(2, None), (4, "1 cells, expected 2 (a, b)"), (6, "not CSV"), (7, None), (8, "not CSV")],
    ),
    "json.csv": (b"text,messages\nx,[1\ny,[1]\nz,[1 2]\n", [(2, None), (3, None), (4, "not JSON")]),
}


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a": 2},\n{"a": 3}, 4]', '{"rows": [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]}']
)
def test_records_that_share_a_line_have_numbers_of_their_own(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    found = list(rows(path))
    assert [row.number for row in found] == [1, 2, 3, 4]
    assert [row.where for row in found] == [f"{path}:1", *(f"{path}: record {number}" for number in (2, 3, 4))]


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_that_cannot_be_read_is_told_by_its_line_and_the_rest_is_read(tmp_path: Path, name: str) -> None:
    path, (content, expected) = tmp_path / name, BROKEN[name]
    path.write_bytes(content)
    found = list(rows(path))
    assert [row.number for row in found] == [line for line, _ in expected]
    for row, (line, says) in zip(found, expected, strict=True):
        assert row.where == f"{path}:{line}"
        assert says in row.problem if says else row.problem is None
        assert bool(row.record) == (says is None)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'[\n{"a": 1},\n{"a" 2}]', "a.json:3: not JSON: Expecting ':' delimiter"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "not JSON: the array is cut off"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "not JSON: expected ',', found '{"),
        ("a.json", b'[{"a": 1},]', "not JSON: Expecting value"),
        ("a.json", b'[{"a": 1}]\n[]', "a.json:2: not JSON: more after the end of the array"),
        ("a.json", b'[{"a": ' + b"[" * 300 + b"]" * 300 + b"}]", "nested too deeply"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8 text"),
        ("a.json", b"3", "expected an array of objects, found int"),
        ("a.csv", b"a,b,a\n1,2,3", "a.csv:1: the column a is there twice"),
        ("a.csv", b"a\n\xff", "not UTF-8"),
        ("a.jsonl.gz", gzip.compress(lines(RECORDS), mtime=0)[:-9], "ended before"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd rest", "a.jsonl.zst: cannot be read"),
        ("a.jsonl", "{}".encode("utf-16"), "a.jsonl: UTF-16 text, expected UTF-8"),
        ("a.csv", b"PK\x03\x04 of a spreadsheet", "a.csv: a spreadsheet or a zip archive"),
        ("a", b"\x7fELF\x00", "a: no text, expected records"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: cannot be read"),
        ("a.arrow", b"ARROW1 and no more", "a.arrow: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_on_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(rows(tmp_path / name))
    assert says in str(caught.value)


def test_a_zstd_file_that_is_cut_off_is_no_shorter_file(tmp_path: Path) -> None:
    whole = zstd(lines(RECORDS * 1000))
    for kept in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.jsonl.zst").write_bytes(whole[:kept])
        with pytest.raises(DataError, match="cut off"):
            list(rows(tmp_path / "a.jsonl.zst"))


def test_a_folder_is_the_files_in_it_and_of_one_with_splits_the_split_asked_for(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(RECORDS[2:]))
    (tmp_path / "a.csv").write_bytes(table(","))
    (tmp_path / "README.md").write_text("Why?", encoding="utf-8")
    (tmp_path / ".hidden.jsonl").write_bytes(lines(RECORDS))
    assert [row.record for row in rows(tmp_path, "train")] == [*RECORDS, RECORDS[2]]
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for split, record in zip(("train_sft", "test_sft"), RECORDS, strict=False):
        pl.DataFrame([record]).write_parquet(hub / f"{split}-00000-of-00001.parquet")
    assert [row.record for row in rows(hub.parent, "test_sft")] == [RECORDS[1]]
    with pytest.raises(DataError, match="no split 'train'; there are: test_sft, train_sft"):
        list(rows(hub.parent, "train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file of records in this folder"):
        list(rows(tmp_path / "empty"))


def test_a_data_set_saved_by_the_hubs_library_is_read_split_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'xlift[train]'")
    datasets.disable_progress_bars()
    plain = datasets.Dataset.from_list(RECORDS)
    plain.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(train=plain, test=plain.select([1])).save_to_disk(tmp_path / "splits")
    assert [row.record for row in rows(tmp_path / "plain", "train")] == RECORDS
    assert [row.record for row in rows(tmp_path / "splits", "test")] == RECORDS[1:2]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_an_array_says_the_same_however_much_of_it_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    records = [{"a": 12.5e3, "b": "é\\n]"}, {}, {"c": [[1], {"d": "\U0001f600"}]}]
    (tmp_path / "a.json").write_text(json.dumps([*records, 1234], indent=2, ensure_ascii=False), encoding="utf-8")
    whole = list(rows(tmp_path / "a.json"))
    assert [row.record for row in whole] == [*records, {}]
    assert whole[-1].problem is not None
    monkeypatch.setattr("xlift.data.tabular._BLOCK", block)
    assert list(rows(tmp_path / "a.json")) == whole


def test_of_a_long_array_the_first_records_come_before_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join(json.dumps({"a": "x" * 100}) for _ in range(20_000)) + ", oops", encoding="utf-8")
    read = rows(path)
    assert [next(read).where for _ in range(19_000)][-1] == f"{path}:19000"
    with pytest.raises(DataError, match=r":20000: not JSON"):
        list(read)
