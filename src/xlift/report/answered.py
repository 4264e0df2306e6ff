"""A checkpoint's answers as the report keeps them: numbers stand in one table, and records are unpacked when asked for.

A record of Python takes a kilobyte and more, and a study may hold a million answers with six ratings each: they are
packed, and those of a large study lie in a temporary file.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, Protocol, TypeVar

from xlift.records import Rating, Response
from xlift.workspace import RunFolder

RecordType = TypeVar("RecordType")
PACKED_AT_ONCE = 500
"""Records that are packed and unpacked together."""
IN_MEMORY = 64 << 20
"""Bytes of packed records from which on they lie in a file."""


class Pile:
    """Bytes that are put down once and read again; gone with the object."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # as long as the pile is there
        self._size = 0

    def put(self, raw: bytes) -> slice:
        """Where they lie. Raises OSError where the disk is full."""
        self._file.seek(self._size)
        self._file.write(raw)
        place = slice(self._size, self._size + len(raw))
        self._size = place.stop
        return place

    def get(self, place: slice) -> bytes:
        self._file.seek(place.start)
        return self._file.read(place.stop - place.start)


class Compressed(Generic[RecordType]):
    """Records that cannot be changed, read again and again, each time from compressed JSON on a pile."""

    def __init__(self, records: Iterable[RecordType], pile: Pile) -> None:
        self._pile = pile
        self._parts: list[tuple[int, slice]] = []
        rest = iter(records)
        while part := list(islice(rest, PACKED_AT_ONCE)):
            self._parts.append((len(part), pile.put(zlib.compress(json.dumps(part).encode("ascii"), 1))))

    def __iter__(self) -> Iterator[RecordType]:
        return chain.from_iterable(json.loads(zlib.decompress(self._pile.get(part))) for _, part in self._parts)

    def __len__(self) -> int:
        return sum(count for count, _ in self._parts)


class TellsAnswers(Protocol):
    """What a checkpoint, or what the report has kept of one, tells."""

    @property
    def run(self) -> RunFolder: ...
    @property
    def step(self) -> int: ...
    @property
    def responses(self) -> Iterable[Response]: ...
    @property
    def ratings(self) -> Iterable[Rating]: ...
    @property
    def margins(self) -> dict[str, dict[str, Any]]: ...
    @property
    def grammar(self) -> dict[str, dict[str, Any]]: ...


@dataclass(frozen=True)
class Answered:
    """A checkpoint with its responses, and its ratings by rater; `made` counts responses by language."""

    run: RunFolder
    step: int
    responses: Compressed[Response]
    rated: Mapping[str, Compressed[Rating]]
    made: Mapping[str, int]
    signatures: frozenset[tuple[str, str]]
    margins: dict[str, dict[str, Any]]
    grammar: dict[str, dict[str, Any]]

    @property
    def ratings(self) -> Iterator[Rating]:
        return chain.from_iterable(self.rated.values())

    def rated_by(self, rater: str) -> Iterable[Rating]:
        """The ratings of one rater."""
        return self.rated.get(rater, ())


def kept(one: TellsAnswers, pile: Pile) -> Answered:
    """What the report needs of a checkpoint, its records put on the pile."""
    by_rater: dict[str, list[Rating]] = {}
    for rating in one.ratings:
        by_rater.setdefault(rating["rater"], []).append(rating)
    return Answered(
        *(one.run, one.step, Compressed(one.responses, pile)),
        rated={rater: Compressed(own, pile) for rater, own in by_rater.items()},
        made=Counter(response["language"] for response in one.responses),
        signatures=frozenset((rater, rating["signature"]) for rater, own in by_rater.items() for rating in own),
        margins=one.margins,
        grammar=one.grammar,
    )
