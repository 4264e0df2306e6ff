"""Conversations on disk: millions are read in, chosen from, and read again without being held in memory."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Sequence
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

from xlift.records import Conversation, fingerprint

PoolRows = NDArray[np.int64]
"""Numbers of conversations in a pool."""


class Pool:
    """Conversations in a temporary file; in memory, 34 bytes of each: where it stands and what it is chosen by."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._file = tempfile.TemporaryFile(prefix="xlift-")  # noqa: SIM115 - it lives as long as the pool
        self._starts, self.ids, self.ranks, self._parallel = (array("Q") for _ in range(4))
        self._languages, self._codes = array("H"), dict[str, int]()
        self._starts.append(0)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, one: Conversation) -> None:
        written = self._file.write(json.dumps(one, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._starts.append(self._starts[-1] + written)
        self.ids.append(int(one["id"], 16))
        self.ranks.append(rank(self._seed, one["id"]))
        self._parallel.append(int(fingerprint(one["parallel_id"], length=16), 16) if "parallel_id" in one else 0)
        self._languages.append(self._codes.setdefault(one["language"], len(self._codes)))

    def at(self, row: int) -> Conversation:
        start, end = self._starts[row], self._starts[row + 1]
        self._file.flush()
        written = os.pread(self._file.fileno(), end - start, start)
        return cast(Conversation, json.loads(written.decode("utf-8", "surrogatepass")))

    def distinct(self, rows: PoolRows) -> PoolRows:
        """The rows without those whose conversation an earlier one is, order kept."""
        _, first = np.unique(np.frombuffer(self.ids, dtype=np.uint64)[rows], return_index=True)
        first.sort()
        return rows[first]

    def ranked(self, rows: PoolRows) -> PoolRows:
        """The rows in the order of the pool's seed, which does not hang on where a conversation was read."""
        return rows[np.argsort(np.frombuffer(self.ranks, dtype=np.uint64)[rows], kind="stable")]

    def spoken(self, rows: PoolRows, language: str) -> PoolRows:
        """Those of the rows that are in a language."""
        return rows[np.frombuffer(self._languages, dtype=np.uint16)[rows] == self._codes.get(language, -1)]

    def wrong(self, rows: PoolRows) -> NDArray[np.int32] | None:
        """For every row of the pool, the one with the same said in another language, as far as one is among `rows`: in
        English where there is one, else in the first; -1 where none is, None where none has a parallel at all."""
        parallel = np.frombuffer(self._parallel, dtype=np.uint64)[rows]
        rows, parallel = rows[parallel != 0], parallel[parallel != 0]
        order = np.argsort(parallel, kind="stable")
        rows, ends = rows[order], np.flatnonzero(np.diff(parallel[order], append=0))
        if not len(rows):
            return None
        found, english, start = np.full(len(self), -1, dtype=np.int32), self._codes.get("en"), 0
        for end in ends.tolist():
            group, start = rows[start : end + 1].tolist(), end + 1
            by_language = {self._languages[row]: row for row in group}
            for row in group if len(by_language) > 1 else ():
                others = {code: other for code, other in by_language.items() if code != self._languages[row]}
                found[row] = others.get(english, next(iter(others.values())))
        return found


class Chosen(Sequence[Conversation]):
    """Conversations of a pool in an order, each read when it is asked for; those with a parallel bring its reply."""

    def __init__(self, pool: Pool, rows: PoolRows, wrong: NDArray[np.int32] | None = None) -> None:
        self._pool, self._rows, self._wrong = pool, rows, wrong

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Conversation: ...
    @overload
    def __getitem__(self, at: slice) -> list[Conversation]: ...
    def __getitem__(self, at: int | slice) -> Conversation | list[Conversation]:
        if isinstance(at, slice):
            return [self._at(row) for row in self._rows[at].tolist()]
        return self._at(int(self._rows[at]))

    def _at(self, row: int) -> Conversation:
        one, other = self._pool.at(row), -1 if self._wrong is None else int(self._wrong[row])
        return one if other < 0 else {**one, "wrong": self._pool.at(other)["messages"][-1]["content"]}


# e.g. rank(0, "c") < rank(0, "a") < rank(0, "b") → True
def rank(seed: int, identity: str) -> int:
    """Where a conversation stands in the order of a seed: by its content alone."""
    return int(fingerprint(seed, identity, length=16), 16)
