"""What a study no longer needs: runs that left the grid, what finished training would continue from, leftovers.

Only what xlift itself has made is touched, by name, in the study's own folder: a file of the user's stays wherever it
lies, and no symbolic link is followed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len

from xlift.disk import leftovers
from xlift.errors import UserError
from xlift.progress import byte_size
from xlift.terminal import aligned, middle, terminal_room
from xlift.workspace import StudyFolder, find_study, unused_runs

_TRAINING_STATE = r"training_state/step-\d+\.safetensors"
_MADE = (
    r"manifest\.json|formats\.json|train\.jsonl|error-\w+\.txt|tracking|checkpoints/step-\d+|responses/step-\d+\.jsonl"
    rf"|ratings/step-\d+\..+\.jsonl|margins/step-\d+\.json|run\.yaml|{_TRAINING_STATE}"
)
"""What is in the folder of a run, as docs/files.md lists it."""
_DATA = r"[0-9a-f]{16}/(examples\.json|tokens-[0-9a-f]{16})"
"""What is in a study's folder `data`."""
_FOLDERS = ("checkpoints", "training_state", "responses", "ratings", "margins")


class Needless(NamedTuple):
    """Something that a study no longer needs, and what of it can be removed: files, and folders that are whole."""

    place: Path
    why: str
    paths: list[Path]
    bytes: int


def open_folder(source: Path) -> StudyFolder:
    """The study of a file or a folder, with its runs as written down and, of a file, as they would be now.

    So neither settings tried for once nor a file edited since can make a run look needless. Raises ConfigError where
    there is no study, or none that has been run.
    """
    given = find_study(source)
    written = find_study(given.path)
    runs = {run.path: run for run in (*written.runs, *given.runs)}
    return replace(written, runs=tuple(runs.values()))


def needless(workspace: StudyFolder) -> list[Needless]:
    """All that the study no longer needs; reads only."""
    root = workspace.path
    found = [_needless(root, path, "left by a process that was killed", [path]) for path in leftovers(root)]
    for folder in unused_runs(workspace):
        paths = _made(folder, _MADE)
        people = ", with ratings by people" if any(path.match("ratings/*.human.jsonl") for path in paths) else ""
        found.append(_needless(root, folder, f"no longer in the study{people}", paths))
    for run in workspace.runs:
        if run.trains and run.stage("train")["state"] == "done":
            paths = _made(run.path, _TRAINING_STATE)
            found.append(_needless(root, run.path / "training_state", "its training is finished", paths))
    if all(run.stage("train")["state"] == "done" for run in workspace.runs if run.trains):
        found.append(_needless(root, root / "data", "all training is finished", _made(root / "data", _DATA)))
    return [one for one in found if one.paths]


def _needless(root: Path, place: Path, why: str, paths: Iterable[Path]) -> Needless:
    own = [path for path in paths if path.resolve() == root.resolve() / path.relative_to(root)]
    return Needless(place, why, own, sum(map(_bytes, own)))


def _made(folder: Path, names: str) -> list[Path]:
    there = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(path for path in there if re.fullmatch(names, path.relative_to(folder).as_posix()))


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def needless_text(found: list[Needless]) -> str:
    """What there is to remove, a line each with its size, and how much it is in all."""
    if not found:
        return "nothing to remove"
    room = terminal_room() and max(20, terminal_room() - 13 - max(cell_len(one.why) for one in found))
    named = [middle(str(one.place), room) if room else str(one.place) for one in found]
    rows = [[byte_size(one.bytes), name, one.why] for one, name in zip(found, named, strict=True)]
    return aligned([*rows, [byte_size(sum(one.bytes for one in found)), "in all", ""]], right={0})


def remove(found: list[Needless]) -> str:
    """Remove it; what is now gone, and what stays because it is not xlift's. Raises UserError for what cannot be."""
    problems = []
    for one in found:
        # A run's folder is known by its run.yaml: it goes last, so that whatever interrupts this can be done again.
        for path in sorted(one.paths, key=lambda path: path.name == "run.yaml"):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                problems.append(f"{path}: cannot be removed: {error.strerror}")
                break
        for folder in (*(one.place / name for name in _FOLDERS), *{path.parent for path in one.paths}, one.place):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()
    if problems:
        raise UserError(problems)
    stays = [f"{one.place} stays: it holds links, or files that are not xlift's" for one in found if one.place.is_dir()]
    return "\n".join([f"removed {byte_size(sum(one.bytes for one in found))}", *stays])
