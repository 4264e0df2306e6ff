"""Whether all that a study holds is whole and as xlift wrote it: what is damaged, and the command that mends it."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from xlift.checkpoint import Margins
from xlift.disk import leftovers
from xlift.errors import UserError
from xlift.integrity import changed_files, damaged_files, refuse_other_state
from xlift.records import Logged, Prompt, Rating, Response, read_json, read_records
from xlift.workspace import StudyFolder, find_run, find_study, manifest_of


class Look(NamedTuple):
    """Something to check: what raises UserError, or says what is wrong, and how that is mended."""

    path: Path
    look: Callable[[], Any]
    mend: str


def verify(source: Path) -> tuple[int, list[str]]:
    """How many files and checkpoints of a study there are, and what is wrong with them, each with what mends it.

    Raises ConfigError where there is no study, or its study.yaml cannot be read.
    """
    workspace = find_study(source)
    study = shlex.quote(str(workspace.path))
    again = f"xlift run {study}"
    count, problems = 0, list[str]()
    for one in _looks(workspace):
        count += 1
        try:
            found = one.look()
        except UserError as error:
            found = error.problems
        mend = one.mend.format(path=shlex.quote(str(one.path)), again=again, study=study)
        problems += [f"{problem}\n  mend: {mend}" for problem in found or []]
    return count, problems


def _looks(workspace: StudyFolder) -> Iterator[Look]:
    yield Look(workspace.prompts, partial(_asked, read_records, workspace.prompts, Prompt), "rm {path} && {again}")
    for path in sorted((workspace.path / "runs").glob("*/run.yaml")):
        yield from _run_looks(path.parent)
    for path in sorted([*workspace.path.glob("judge-*.jsonl"), *workspace.path.glob("comparisons/*.jsonl")]):
        yield Look(path, partial(_asked, read_records, path, dict), "{again} asks again what these lines answered")
    database = workspace.path / "annotations.sqlite"
    if database.is_file():
        yield Look(database, partial(_check_database, database), "put back a copy: people's ratings are made once")
    for path in leftovers(workspace.path):
        yield Look(path, partial(list, [f"{path}: left by a process that was killed"]), "xlift clean {study}")


def _run_looks(folder: Path) -> Iterator[Look]:
    yield Look(folder / "run.yaml", partial(_asked, find_run, folder), "rm {path} && {again}")
    yield Look(folder / "manifest.json", partial(_asked, manifest_of, folder), "rm {path} && {again}")
    try:
        run = find_run(folder)
        run.manifest()
    except UserError:
        return
    for path in sorted(folder.glob("checkpoints/step-*")):
        yield Look(path, partial(damaged_files, path), "rm -r {path} && {again}")
    for path in sorted(folder.glob("training_state/*.safetensors")):
        checkpoint = folder / "checkpoints" / path.stem
        yield Look(path, partial(refuse_other_state, checkpoint, path), "rm {path} && {again}")
    logs = [(run.train_log, Logged)] + [(path, Response) for path in sorted(folder.glob("responses/*.jsonl"))]
    for path, kind in logs + [(path, Rating) for path in sorted(folder.glob("ratings/*.jsonl"))]:
        mend = "take these lines out, or rm {path}; then {again} makes them anew"
        people = "take these lines out; xlift annotate {study} --export FILE writes people's ratings anew"
        yield Look(path, partial(_asked, read_records, path, kind), people if path.match("*.human.jsonl") else mend)
    for path in sorted(folder.glob("margins/*.json")):
        yield Look(path, partial(_asked, read_json, path, Margins), "rm {path} && {again}")
    yield Look(
        folder / "manifest.json", partial(changed_files, run), "put it back, or rm it; then {again} makes it anew"
    )


def _asked(look: Callable[..., Any], *arguments: Any) -> None:
    look(*arguments)


def _check_database(path: Path) -> list[str]:
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as database:
            found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(20)")]
    except sqlite3.Error as error:
        found = [str(error)]
    return [] if found == ["ok"] else [f"{path}: {one}" for one in found]
