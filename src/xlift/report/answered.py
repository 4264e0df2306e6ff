"""A checkpoint's answers as the report keeps them: numbers stand in one table, and records are unpacked when asked for.

A record of Python takes a kilobyte and more, and a study may hold a million answers with six ratings each.
"""

from __future__ import annotations

import json
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


class Compressed(Generic[RecordType]):
    """Records that cannot be changed, read again and again, each time from compressed JSON."""

    def __init__(self, records: Iterable[RecordType]) -> None:
        self._parts: list[tuple[int, bytes]] = []
        rest = iter(records)
        while part := list(islice(rest, PACKED_AT_ONCE)):
            self._parts.append((len(part), zlib.compress(json.dumps(part).encode("ascii"), 1)))

    def __iter__(self) -> Iterator[RecordType]:
        return chain.from_iterable(json.loads(zlib.decompress(part)) for _, part in self._parts)

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


def kept(one: TellsAnswers) -> Answered:
    """What the report needs of a checkpoint, without holding its records."""
    by_rater: dict[str, list[Rating]] = {}
    for rating in one.ratings:
        by_rater.setdefault(rating["rater"], []).append(rating)
    return Answered(
        *(one.run, one.step, Compressed(one.responses)),
        rated={rater: Compressed(own) for rater, own in by_rater.items()},
        made=Counter(response["language"] for response in one.responses),
        signatures=frozenset((rater, rating["signature"]) for rater, own in by_rater.items() for rating in own),
        margins=one.margins,
        grammar=one.grammar,
    )
