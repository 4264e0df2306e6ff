"""Progress on stderr: a bar in a terminal, a line now and then where there is none; what is said is also logged."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Protocol

from xlift.errors import UserError, os_problem
from xlift.redaction import redacted
from xlift.terminal import middle

LINE_EVERY_SECONDS = 15.0
LONG_ENOUGH_SECONDS = 60.0
"""After this the speed is known, however small a share is done: a step may take half a minute."""
WHOLE_EVERY_SECONDS = 2.0
TITLE_ROOM = 28
TOO_EARLY = 0.04
"""Share of the work before which nobody can say how long the rest takes: replies, for one, end in batches."""


class Progress(Protocol):
    """Tells how far a stage is."""

    def advance(self, amount: int = 1, note: str = "") -> None: ...


QUIET = "XLIFT_QUIET"
"""Environment variable that keeps progress and messages off the terminal, those of workers too (`xlift -q`)."""
VERBOSE = "XLIFT_VERBOSE"
"""The one that shows what libraries say, and where an error arose (`xlift -v`)."""
EARLY_LINES = 10_000


def say(text: str) -> None:
    """A line for the person at the terminal and for the study's log, apart from results; without any secret."""
    _log(text)
    if not os.environ.get(QUIET):
        print(redacted(text), file=sys.stderr, flush=True)


def _log(text: str) -> None:
    # Half a character, as a file name may hold one, can be written nowhere: its code is.
    logging.getLogger("xlift").info(redacted(text).encode("utf-8", "backslashreplace").decode("utf-8"))


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        # A full disk ends the work with its own message, not with that of the log.
        pass

    def close(self) -> None:
        # What the stream still holds cannot be written either.
        with suppress(OSError):
            super().close()


@contextmanager
def kept_for_a_log(first: str) -> Iterator[None]:
    """What is said before a study is open, and a first line, is kept for the log of the first that is."""
    logger, kept = logging.getLogger("xlift"), MemoryHandler(EARLY_LINES, flushLevel=logging.CRITICAL + 1)
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    _log(first)
    try:
        yield
    finally:
        logger.removeHandler(kept)


@contextmanager
def logged_in(path: Path) -> Iterator[None]:
    """What is said until the block ends goes to the end of a file, each line with its time (UTC), and how it ends.

    Where nothing is said, nothing is written.
    """
    logger, file = logging.getLogger("xlift"), _LogFile(path, encoding="utf-8", delay=True)
    form = logging.Formatter("%(asctime)sZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    file.setFormatter(form)
    before = logger.level
    logger.setLevel(logging.INFO)
    for one in [one for one in logger.handlers if isinstance(one, MemoryHandler)]:
        one.setTarget(file)
        one.flush()
        # What comes now reaches the file by itself.
        logger.removeHandler(one)
    logger.addHandler(file)
    try:
        yield
        if file.stream:
            _log("done")
    except BaseException as error:
        said = error.problems if isinstance(error, UserError) else [f"{type(error).__name__}: {error}".rstrip(": ")]
        for line in said:
            _log(f"ended: {line}")
        raise
    finally:
        logger.removeHandler(file)
        file.close()
        logger.setLevel(before)


def or_told(look: Callable[[], Any], otherwise: Any) -> Any:
    """What is found; where that raises UserError or OSError, what is wrong is said and `otherwise` stands for it."""
    try:
        return look()
    except (UserError, OSError) as error:
        found = os_problem(error) if isinstance(error, OSError) else error
        for line in (*found.problems, *([found.hint] if found.hint else [])):
            say(line)
        return otherwise


_AROUND: ContextVar[Callable[[float, float], str]] = ContextVar("around")


@contextmanager
def around(told: Callable[[float, float], str]) -> Iterator[None]:
    """What is told of the whole beside the progress inside: made from the seconds of a unit (0: unknown) and the units
    left."""
    token = _AROUND.set(told)
    try:
        yield
    finally:
        _AROUND.reset(token)


def _of_the_whole(elapsed: float, made: float, total: float) -> str:
    known = time_left(elapsed, made, total) < float("inf")
    told = _AROUND.get(None)
    return told(elapsed / made if known and made else 0.0, total - made) if told else ""


class _Lines:
    def __init__(self, title: str, total: float, done: float) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.started = self.said = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said >= LINE_EVERY_SECONDS or self.done >= self.total:
            self.said = now
            so_far = (now - self.started, self.done - self.first, self.total - self.first)
            whole = _of_the_whole(*so_far)
            eta = f"ETA {duration(time_left(*so_far))}" + (f"  ({whole})" if whole else "")
            say(f"{self.title}: {self.done:g}/{self.total:g}  {note}  {eta}")


# e.g. time_left(80, 48, 96) → 80.0
# e.g. duration(time_left(5, 1, 96)) → "unknown"
def time_left(elapsed: float, done: float, total: float) -> float:
    """Seconds that the rest takes at the speed so far; infinite where it is too early to tell."""
    share = done / max(total, 1e-9)
    early = share <= TOO_EARLY and elapsed < LONG_ENOUGH_SECONDS
    return float("inf") if early or not share else elapsed * (1 / share - 1)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Progress]:
    """A progress display for `total` units, `done` of them already made; `advance` adds units and a note."""
    if not sys.stderr.isatty() or os.environ.get(QUIET):
        yield _Lines(title, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class _TwoLines(RichProgress):
        # The note has a line of its own: it never takes the room of bar, count and time left.
        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            below = [task.fields[name] for task in self.tasks for name in ("note", "whole")]
            yield from (Text(f"  {text}", no_wrap=True, overflow="ellipsis") for text in below if text)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA {task.fields[left]}"),
    )
    with _TwoLines(*columns, console=Console(stderr=True)) as bar:
        whole = _of_the_whole(0.0, 0, total - done)
        task = bar.add_task(
            middle(title, TITLE_ROOM), total=total, completed=done, note="", left="unknown", whole=whole
        )
        started, made, told = time.monotonic(), 0, 0.0

        class _Bar:
            def advance(self, amount: int = 1, note: str = "") -> None:
                nonlocal made, whole, told
                made += amount
                so_far = (time.monotonic() - started, made, total - done)
                if so_far[0] - told >= WHOLE_EVERY_SECONDS:
                    whole, told = _of_the_whole(*so_far), so_far[0]
                left = duration(time_left(*so_far))
                bar.update(task, advance=amount, note=note, left=left, whole=whole)

        yield _Bar()


# e.g. [duration(seconds) for seconds in (45, 185, 7800)] → ["45 s", "3 min 5 s", "2 h 10 min"]
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


# e.g. byte_size(1_234_567_890) → "1.2 GB"
def byte_size(count: int) -> str:
    """Bytes as people say them: "1.2 GB"."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
