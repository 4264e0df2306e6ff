"""Samples of inspect_ai logs: one JSON document, or a zip archive (.eval) with a document for each sample."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlift.data.tabular import Row
from xlift.errors import DataError
from xlift.extras import require

_HEAD = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"')
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
        of = head.get("eval") or {}
        row = {"model": of.get("model"), "task": of.get("task")} | sample
        yield Row(f"{path}: sample {sample.get('id')}", number, row)


def _samples(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    try:
        if path.suffix == ".json":
            log = json.loads(path.read_bytes())
            yield from ((log, sample) for sample in log.get("samples") or [])
            return
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            head = _member(archive, "header.json" if "header.json" in names else "_journal/start.json")
            for name in names:
                if name.startswith("samples/"):
                    yield head, _member(archive, name)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{path}: no whole log of inspect_ai: {error}") from None


def _member(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    info = archive.getinfo(name)
    if info.compress_type != _ZSTANDARD:
        return json.loads(archive.read(name))
    require("zstd")
    import zstandard

    assert archive.fp
    archive.fp.seek(info.header_offset)
    header = archive.fp.read(_LOCAL_HEADER)
    archive.fp.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    packed = archive.fp.read(info.compress_size)
    return json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
