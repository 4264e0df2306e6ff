"""Results as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len, set_cell_size


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


def _padded(cell: str, width: int, right: bool) -> str:
    # A wide character takes two places, a combining one none: str.ljust counts each as one.
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def share_text(share: float, low: float, high: float) -> str:
    """A share with its interval: "94% [72–99]"."""
    return f"{share:.0%} [{low * 100:.0f}–{high * 100:.0f}]"


def printable(text: str) -> str:
    """On one line and without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def fitted(text: str, room: int) -> str:
    """As much of a text as `room` places of a terminal hold."""
    text = printable(text)
    return text if cell_len(text) <= room else set_cell_size(text, room - 1).rstrip() + "…"
