"""Results as people read them in a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import TextIO

from rich.cells import cell_len, set_cell_size

WIDTH = 80
"""Columns that text is wrapped for."""
LEAST_PLACES = 5
"""What a kept column of a table takes at least, with the two places that part it from the next."""


# e.g. aligned([["fr", "9"], ["日本", "10"]], right=[1]) → "fr     9\n日本  10"
def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows of cells, all of one length, as lines whose columns stand under one another, in any script.

    Columns `right` end under one another. Nothing is cut or broken: that is left to the terminal.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            _padded(cell, width, place in right) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def paged(rows: Sequence[Sequence[str]], right: Collection[int] = (), keep: int = 1, room: int | None = None) -> str:
    """`aligned` as parts no wider than `room`, each with the first `keep` columns: what does not fit stands below.

    Without `room`, a terminal's own width; where there is no terminal, one table of any width, for other programs.
    A cell that no part has room for loses its middle, first of all those of the kept columns.
    """
    room = terminal_room() if room is None else room
    widths = _widths(rows)
    if not room or sum(widths) - 2 <= room:
        return aligned(rows, right)
    # A figure without its middle would be another one: names give way to what they stand beside, where that is enough.
    least = LEAST_PLACES * keep
    beside = [width for width in _widths(rows[1:] or rows)[keep:] if width <= room - least]
    places = _shared(widths[:keep], max(least, min(max(room // 2, min(room, 24)), room - max(beside, default=0))))
    places += [max(3, room - sum(places) - 2 * keep)] * (len(widths) - keep)
    rows = [[middle(cell, most) for cell, most in zip(row, places, strict=True)] for row in rows]
    parts = _parts(_widths(rows), keep, room)
    return "\n\n".join(
        aligned([[row[i] for i in part] for row in rows], [part.index(i) for i in right if i in part]) for part in parts
    )


# e.g. _widths([["fr", "9"], ["日本", "10"]]) → [6, 4]
def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Places of each column, with the two that part it from the next."""
    return [max(map(cell_len, column)) + 2 for column in zip(*rows, strict=True)]


# e.g. _shared([6, 32, 32], 46) → [4, 18, 18]
def _shared(widths: Sequence[int], room: int) -> list[int]:
    """How many places the text of each column has where the columns share this room: what is narrow stays whole."""
    given = dict[int, int]()
    for left, place in zip(range(len(widths), 0, -1), sorted(range(len(widths)), key=widths.__getitem__), strict=True):
        given[place] = max(LEAST_PLACES, min(widths[place], (room - sum(given.values())) // left))
    return [given[place] - 2 for place in range(len(widths))]


# e.g. _parts([10, 20, 20, 20], 1, 50) → [[0, 1, 2], [0, 3]]
def _parts(widths: Sequence[int], keep: int, room: int) -> list[list[int]]:
    """Places of columns by part; each part has one column beside the kept ones at least."""
    kept, parts = list(range(keep)), [list[int]()]
    for place in range(keep, len(widths)):
        if parts[-1] and sum(widths[i] for i in [*kept, *parts[-1], place]) - 2 > room:
            parts.append([])
        parts[-1].append(place)
    return [[*kept, *part] for part in parts]


def terminal_room(stream: TextIO | None = None) -> int:
    """Columns of the terminal that results, or another stream, are written to; 0 where that is a file or a program."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else 0


# e.g. room 16: "  runs a, b and c: train" → "  runs a, b and", "    c: train"
def wrapped(text: str, room: int) -> str:
    """A line as lines of whole words no wider than `room`, the later ones indented; as it is where there is no room."""
    if not room or cell_len(text) <= room:
        return text
    indent = " " * (len(text) - len(text.lstrip()))
    lines = [indent]
    for word in text.split():
        if lines[-1].strip() and cell_len(lines[-1]) + 1 + cell_len(word) > room:
            lines.append(indent + "  " + word)
        else:
            lines[-1] += (" " if lines[-1].strip() else "") + word
    return "\n".join(lines)


# e.g. middle("lora-r16-lr1e-4-seed1", 12) → "lora-r…seed1"
def middle(text: str, room: int) -> str:
    """A name in at most `room` places, its middle left out: names of runs differ at both ends."""
    if cell_len(text) <= room:
        return text
    end = next(i for i, width in enumerate(accumulate(map(cell_len, reversed(text))), 1) if width >= (room - 1) // 2)
    return set_cell_size(text, room - 1 - cell_len(text[-end:])).rstrip() + "…" + text[-end:]


# e.g. [_padded("94%", 5, True), _padded("fr", 5, False)] → ["  94%", "fr   "]
def _padded(cell: str, width: int, right: bool) -> str:
    # A wide character takes two places, a combining one none: str.ljust counts each as one.
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


# e.g. share_text(0.938, 0.717, 0.989) → "94% [72–99]"
def share_text(share: float, low: float, high: float) -> str:
    """A share with its interval: "94% [72–99]"."""
    return f"{share:.0%} [{low * 100:.0f}–{high * 100:.0f}]"


# e.g. printable("one\n\ttwo\x1b[31m") → "one two [31m"
def printable(text: str) -> str:
    """On one line and without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


# e.g. fitted("Bonjour à tous", 8) → "Bonjour…"
# e.g. fitted("日本語の返事", 8) → "日本語…"
def fitted(text: str, room: int) -> str:
    """As much of a text as `room` places of a terminal hold."""
    text = printable(text)
    return text if cell_len(text) <= room else set_cell_size(text, room - 1).rstrip() + "…"
