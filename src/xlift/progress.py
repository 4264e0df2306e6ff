"""Progress on stderr: a bar in a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from xlift.errors import UserError, os_problem
from xlift.redaction import redacted

LINE_EVERY_SECONDS = 15.0
TOO_EARLY = 0.04
"""Share of the work before which nobody can say how long the rest takes: replies, for one, end in batches."""


class Progress(Protocol):
    """Tells how far a stage is."""

    def advance(self, amount: int = 1, note: str = "") -> None: ...


def say(text: str) -> None:
    """A line for the person at the terminal, apart from results; without any secret."""
    print(redacted(text), file=sys.stderr, flush=True)


def or_told(look: Callable[[], Any], otherwise: Any) -> Any:
    """What is found; where that raises UserError or OSError, what is wrong is said and `otherwise` stands for it."""
    try:
        return look()
    except (UserError, OSError) as error:
        found = os_problem(error) if isinstance(error, OSError) else error
        for line in (*found.problems, *([found.hint] if found.hint else [])):
            say(line)
        return otherwise


class _Lines:
    def __init__(self, title: str, total: float, done: float) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.started = self.said = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said >= LINE_EVERY_SECONDS or self.done >= self.total:
            self.said = now
            share = (self.done - self.first) / max(self.total - self.first, 1e-9)
            eta = (now - self.started) * (1 / share - 1) if share > TOO_EARLY else float("inf")
            say(f"{self.title}: {self.done:g}/{self.total:g}  {note}  ETA {duration(eta)}")


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Progress]:
    """A progress display for `total` units, `done` of them already made; `advance` adds units and a note."""
    if not sys.stderr.isatty():
        yield _Lines(title, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        class _Bar:
            def advance(self, amount: int = 1, note: str = "") -> None:
                bar.update(task, advance=amount, note=note)

        yield _Bar()


def duration(seconds: float) -> str:
    """Seconds as people say them: "45 s", "3 min 5 s", "2 h 10 min"."""
    if seconds == float("inf"):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def byte_size(count: int) -> str:
    """Bytes as people say them: "1.2 GB"."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
