"""What a study has read of its instruction data and found in it, kept in its folder so that the next start need not.

data/HASH/              of one set of sources, prompts, and ways to read them
  examples.json         records that were left out, and overlaps
  tokens-HASH/          see tuning/stored.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from xlift.data.instructions import Examples, load_examples
from xlift.data.overlap import Overlaps, Shared
from xlift.data.tabular import content_sha256
from xlift.disk import write_atomic
from xlift.records import RENDERING, Conversation, Prompt, fingerprint
from xlift.study.data import Instructions


class _Reading:
    """Training and held-out conversations, read when they are wanted."""

    def __init__(self, read: Callable[[], Examples]) -> None:
        self._read = read

    @cached_property
    def examples(self) -> Examples:
        return self._read()


class Late(Sequence[Conversation]):
    """Conversations that are read when somebody asks for them; `folder` keeps what is made of them."""

    def __init__(self, reading: _Reading, part: str, folder: Path) -> None:
        self._reading, self._part, self.folder = reading, part, folder

    @property
    def _conversations(self) -> Sequence[Conversation]:
        found: Sequence[Conversation] = getattr(self._reading.examples, self._part)
        return found

    def __len__(self) -> int:
        return len(self._conversations)

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self._conversations)

    @overload
    def __getitem__(self, at: int) -> Conversation: ...
    @overload
    def __getitem__(self, at: slice) -> list[Conversation]: ...
    def __getitem__(self, at: int | slice) -> Conversation | list[Conversation]:
        return list(self._conversations[at]) if isinstance(at, slice) else self._conversations[at]

    def let_go(self) -> None:
        """Forget the conversations; who asks again reads them again."""
        self._reading.__dict__.pop("examples", None)


def kept_examples(
    root: Path, settings: Instructions, prompts: Sequence[Prompt], offline: bool = False, skip_unfit: bool = False
) -> Examples:
    """What `load_examples` gives, and raises; a second time without reading the data, unless it has changed."""
    named = settings.model_dump(mode="json", exclude={"name"})
    folder = root / fingerprint(named, prompts, skip_unfit, RENDERING, length=16)
    reading = _Reading(lambda: load_examples(settings, prompts, offline, skip_unfit))
    told = _told(folder / "examples.json") if _unchanged(settings) else None
    if told is None:
        told = reading.examples.unfit, reading.examples.overlaps
        found = {"unfit": told[0], "overlaps": asdict(told[1])}
        write_atomic(folder / "examples.json", json.dumps(found, ensure_ascii=False))
    return Examples(Late(reading, "train", folder), Late(reading, "heldout", folder), *told)


def _unchanged(settings: Instructions) -> bool:
    """Whether every local file is the one that its hash was taken of; a dataset of the hub has its commit."""
    files = [source for source in settings.sources if not source.path.startswith("hub:")]
    return all(one.sha256 and one.file.exists() and content_sha256(one.file) == one.sha256 for one in files)


def _told(path: Path) -> tuple[dict[str, list[str]], Overlaps] | None:
    """Records that were left out, and overlaps; None where they have not been written, or are damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(path.read_bytes())
        return found["unfit"], _overlaps(found["overlaps"])
    return None


def _overlaps(found: dict[str, Any]) -> Overlaps:
    def shared(rows: list[list[Any]]) -> list[Shared]:
        return [Shared(*row) for row in rows]

    splits = {name: {split: shared(rows) for split, rows in found[name].items()} for name in ("prompts", "parts")}
    lists = shared(found["repeated"]), shared(found["heldout"])
    return Overlaps(*lists, splits["prompts"], splits["parts"], found["near_duplicates"])
