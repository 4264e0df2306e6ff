"""Samples of inspect_ai logs: one JSON document, or a zip archive (.eval) with a document for each sample."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlift.data.tabular import Row
from xlift.errors import DataError
from xlift.extras import require

_HEAD = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"')
LARGEST_SAMPLE = 1 << 28
"""Bytes of one sample, unpacked."""
_ZSTANDARD, _LOCAL_HEADER = 93, 30
"""How zip archives number a way of compression that Python's zipfile does not read, and bytes before a file's name."""


def is_log(path: Path) -> bool:
    """Whether a file is a log, by its name or by how it begins."""
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with path.open("rb") as file:
        return _HEAD.match(file.read(200)) is not None


def log_rows(path: Path) -> Iterator[Row]:
    """The samples, each with the `model` and `task` of the log. Raises DataError for what is no whole log."""
    for number, (head, sample) in enumerate(_samples(path), start=1):
        of = head.get("eval") if isinstance(head, dict) else None
        if not isinstance(sample, dict) or not isinstance(of, dict | None):
            raise DataError(f"{path}: no whole log of inspect_ai: sample {number} or its `eval` is no object")
        row = {name: (of or {}).get(name) for name in ("model", "task")} | sample
        yield Row(f"{path}: sample {sample.get('id')}", number, row)


def _samples(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        if path.suffix == ".json":
            log = json.loads(path.read_bytes())
            samples = (log.get("samples") or []) if isinstance(log, dict) else None
            if not isinstance(samples, list):
                raise ValueError("`samples` is no list")
            yield from ((log, sample) for sample in samples)
            return
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            head = _member(archive, "header.json" if "header.json" in names else "_journal/start.json")
            for name in names:
                if name.startswith("samples/"):
                    yield head, _member(archive, name)
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path}: no whole log of inspect_ai: {error}") from None


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    """A document of an archive, never more than LARGEST_SAMPLE bytes of it, whatever the archive says of its size."""
    info = archive.getinfo(name)
    if info.compress_type != _ZSTANDARD:
        with archive.open(name) as file:
            return _document(file.read(LARGEST_SAMPLE + 1), name)
    require("zstd")
    import zstandard

    assert archive.fp
    archive.fp.seek(info.header_offset)
    header = archive.fp.read(_LOCAL_HEADER)
    archive.fp.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    packed = archive.fp.read(info.compress_size)
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as file:
            return _document(file.read(LARGEST_SAMPLE + 1), name)
    except zstandard.ZstdError as error:
        raise ValueError(f"{name}: {error}") from None


def _document(raw: bytes, name: str) -> Any:
    if len(raw) > LARGEST_SAMPLE:
        raise ValueError(f"{name} holds more than {LARGEST_SAMPLE >> 20} MiB unpacked")
    return json.loads(raw)
