"""Tokenised conversations on disk, mapped into memory: a study makes them once, and its runs and processes read them.

tokens/HASH/            of one set of conversations, chat format and longest length
  train.arrow           a row an example: ids, learned
  heldout.arrow
  facts.json            what was left out, and the hashes of the other two
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from xlift.disk import put_in_place, write_atomic
from xlift.integrity import hashes
from xlift.tuning.templates import Encoded

_BATCH, _BATCH_TOKENS = 10_000, 500_000
"""Examples that are written, or looked at, at once, and about the most tokens of them."""
_FACTS = "facts.json"


class Stored(Sequence[Encoded]):
    """The examples of a file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # late: benchmarks/gpu.sh trains where it is not installed

        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        if isinstance(at, slice):
            return [self[i] for i in range(len(self))[at]]
        ids, learned = (column[at].as_py() for column in self._table.columns)
        return Encoded(ids, learned)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The tokens of each, four bytes a number."""
        import pyarrow.compute as pc

        return array("i", np.asarray(pc.list_value_length(self._table["ids"])).astype(np.intc).tobytes())

    def unusual(self, embeddings: int, longest: int | None) -> Iterator[Encoded]:
        """Those with a token that has no embedding, and those that are longer."""
        import pyarrow.compute as pc

        start = 0
        for batch in self._table.to_batches(_BATCH):
            ids = batch["ids"]
            odd = np.asarray(pc.list_parent_indices(ids))[np.asarray(pc.list_flatten(ids)) >= embeddings]
            long: Any = np.flatnonzero(np.asarray(pc.list_value_length(ids)) > longest) if longest is not None else []
            yield from (self[start + place] for place in sorted({*map(int, odd), *map(int, long)}))
            start += len(batch)


def written(examples: Iterable[Encoded], path: Path) -> Stored:
    """Examples written a batch at a time."""
    import pyarrow as pa

    schema = pa.schema({"ids": pa.list_(pa.int32()), "learned": pa.list_(pa.bool_())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for some in _batches(examples):
            file.write(pa.record_batch([[one.ids for one in some], [one.mask for one in some]], schema=schema))
    return Stored(path)


def _batches(examples: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    some, tokens = list[Encoded](), 0
    for one in examples:
        some.append(one)
        tokens += len(one)
        if len(some) == _BATCH or tokens >= _BATCH_TOKENS:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def stored_in(folder: Path) -> tuple[Stored, Stored, dict[str, Any]] | None:
    """What is trained on, what is held out, and the facts; None where they are not there as they were written."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        facts = json.loads((folder / _FACTS).read_bytes())
        if facts["sha256"] == hashes(folder.glob("*.arrow")):
            return Stored(folder / "train.arrow"), Stored(folder / "heldout.arrow"), facts
    return None


def finish(made: Path, facts: dict[str, Any], folder: Path) -> None:
    """Move what was written to `made` into place whole; what another process has put there meanwhile is as good."""
    write_atomic(made / _FACTS, json.dumps(facts | {"sha256": hashes(made.glob("*.arrow"))}, ensure_ascii=False))
    try:
        put_in_place(made, folder)
    except OSError:
        # A folder is there: of a process that was faster, which may be reading it, or a damaged one.
        if stored_in(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            put_in_place(made, folder)
