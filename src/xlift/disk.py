"""Files that outlive a kill and a loss of power: lines appended whole, files moved into place, locks, leftovers.

A torn last line (the process was killed while writing) is dropped when the file is opened again, so that its record is
made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from xlift.errors import ConfigError, UserError
from xlift.records import fingerprint


def written_part(path: Path) -> dict[str, Any]:
    """How much of a file to which lines are added has been written, and the hash of that."""
    return {"bytes": path.stat().st_size, "sha256": _sha256_of(path, None)}


def is_as_written(path: Path, part: dict[str, Any]) -> bool:
    """Whether a file still begins with what had been written."""
    size = part["bytes"]
    return path.is_file() and path.stat().st_size >= size and _sha256_of(path, size) == part["sha256"]


def _sha256_of(path: Path, size: int | None) -> str:
    found, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            found.update(part)
            left -= len(part)
    return found.hexdigest()


class JsonlWriter:
    """Appends records to a JSONL file, each flushed as one whole line; opening drops a torn last line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._file = self.path.open("ab")

    def write(self, record: Any) -> None:
        self.write_encoded(encode_record(record))

    def write_encoded(self, lines: bytes) -> None:
        """Append whole lines made by `encode_record`. Raises OSError that names the file."""
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise _named(error, self.path) from None

    def close(self) -> None:
        """Raises OSError that names the file, where what a failed write has left cannot be written either."""
        try:
            self._file.close()
        except OSError as error:
            raise _named(error, self.path) from None

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# e.g. encode_record({"text": "é"}.get("text")) → b'"\xc3\xa9"\n'
def encode_record(record: Any) -> bytes:
    """One line of JSONL. Lone surrogates, which UTF-8 cannot hold, are escaped."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        return line.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode("ascii") + b"\n"


def _drop_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        # Backwards, in pieces: a file of many gigabytes is opened as fast as a small one.
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            file.truncate(position)


@contextlib.contextmanager
def exclusive(lock: Path, busy: str, seconds: float = 0) -> Iterator[None]:
    """Hold a lock file, which is left behind, empty.

    Raises ConfigError(`busy`) where another process still holds it after these `seconds`.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        with writing(lock):
            held.acquire(timeout=seconds)
    except Timeout:
        raise ConfigError(busy, "wait for it") from None
    try:
        yield
    finally:
        held.release()


def is_locked(lock: Path) -> bool:
    """Whether another process holds a lock file; that is asked without leaving one behind."""
    if not lock.exists():
        return False
    try:
        with exclusive(lock, ""):
            return False
    except ConfigError:
        return True


# e.g. whole_text("a\ud800") → "a\\ud800"
def whole_text(text: str) -> str:
    """The text; half a character, which JSON can write and UTF-8 and tables cannot, is shown by its code."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a whole file under a temporary name and move it into place; a link stays one, a device is written to."""
    content = whole_text(data).encode() if isinstance(data, str) else data
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(place)
    try:
        if place.exists() and not place.is_file():
            place.write_bytes(content)
            return
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, Path(path)) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Else a loss of power could forget the move, and with it the file.
    sync(place.parent)


def _named(error: OSError, path: Path) -> OSError:
    """The same error about a file that the user knows: a full disk is told without any, or of a temporary one."""
    return OSError(error.errno, error.strerror, str(path))


def sync(*paths: Path) -> None:
    """Make files, and what was moved into folders, survive a loss of power; where the system cannot, nothing."""
    for path in paths:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def put_in_place(made: Path, to: Path) -> None:
    """Move a whole file or folder to its place; a loss of power leaves all of it there, or nothing.

    Raises OSError where a folder is to take the place of one that holds something.
    """
    sync(*made.rglob("*"), made)
    os.replace(made, to)
    sync(to.parent)


def usual_modes(*paths: Path) -> None:
    """Give files the mode that files made here have: safetensors makes them for their owner alone."""
    for path in paths:
        if path.is_file():
            path.chmod(path.parent.stat().st_mode & 0o666)


_TEMPORARY = re.compile(r"\..+\.xlift-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")
_DAY_SECONDS = 86_400


def temporary_path(path: Path) -> Path:
    """A new name beside `path` for what is being written; it says which process of which machine writes."""
    return path.with_name(f".{path.name[:150]}.xlift-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def writing(to: Path) -> Iterator[None]:
    """Says of what the system refuses in this block that it was for `to`, where nothing else is named.

    Raises OSError also for what libraries in Rust say in errors of their own: "… (os error 28)".
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(to)
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d{1,4})\)", str(error))
        if found is None or isinstance(error, UserError):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(to)) from None


@contextlib.contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder to write beside `to`, moved there at the end of the block, and gone where it fails.

    Raises ConfigError where `to` holds something already.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to}: there is something already", "name a new folder")
    folder = temporary_path(to)
    try:
        with writing(to):
            yield folder
        usual_modes(*folder.rglob("*"))
        if to.is_dir():
            to.rmdir()
        put_in_place(folder, to)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """What processes that were killed had under temporary names of ours; nothing else, and of nobody alive."""
    named = [(path, _TEMPORARY.fullmatch(path.name)) for path in sorted(folder.rglob(".*.tmp"))]
    return [path for path, name in named if name and _is_left(path, name[1], int(name[2]))]


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left; see `leftovers`."""
    for path in leftovers(folder):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_left(path: Path, machine: str, process: int) -> bool:
    try:
        # Whether a process of another machine lives nobody here knows, but none writes one file for a day.
        if time.time() - path.stat().st_mtime > _DAY_SECONDS:
            return True
        if machine != _machine() or os.name != "posix" or process == os.getpid():
            return False
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _machine() -> str:
    return fingerprint(platform.node(), length=8)


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write a whole JSONL file at once, atomically."""
    write_atomic(path, b"".join(encode_record(record) for record in records))
