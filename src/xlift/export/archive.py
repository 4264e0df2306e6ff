"""A study without its weights in one compressed file, and that file a study folder again.

Every number, figure and answer of its report can be made anew from it, without its models and data. A tar file of the
folder's own files, alike for alike studies: prompts, settings, logs, responses, ratings, margins. Paths of this machine
are cut to their last part, and people are numbers.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from xlift.disk import encode_record, put_in_place, temporary_path, whole_folder, writing
from xlift.errors import ConfigError, DataError, shortened
from xlift.records import Rating, read_records
from xlift.study.settings import Settings
from xlift.tuning.card import without_paths
from xlift.workspace import StudyFolder, find_run, find_study

ENDING = ".tar.xz"
_RECORDS = r"(responses|ratings)/step-\d+(\.[\w.+-]+)?\.jsonl|margins/step-\d+\.json"
_OF_RUN = rf"run\.yaml|manifest\.json|train\.jsonl|{_RECORDS}"
_KEPT = re.compile(rf"study\.yaml|(prompts|imported)\.jsonl|runs/[^/]+/({_OF_RUN})")
LARGEST, MOST_FILES, BEHIND = 1 << 31, 100_000, 1 << 20
"""Bytes and files that an archive may hold unpacked, and bytes behind its end; none that we write comes near."""


def write_archive(study: Path, to: Path) -> Path:
    """Write a study's archive to the file `to`, which must not be there yet and ends in ENDING.

    Raises ConfigError where there is no study or nothing has been answered yet.
    """
    if not to.name.endswith(ENDING) or to.exists():
        raise ConfigError(f"{to}: an archive is a new file whose name ends in {ENDING}", f"--to {study.name}{ENDING}")
    workspace = find_study(study)
    names = [name for name in _names(workspace.path) if _KEPT.fullmatch(name)]
    if not any("/responses/" in name for name in names):
        raise ConfigError(f"{study}: no responses yet", f"xlift run {study}")
    to.parent.mkdir(parents=True, exist_ok=True)
    made = temporary_path(to)
    try:
        with writing(to), tarfile.open(made, "w:xz", preset=9) as archive:
            for name, content in _contents(workspace, names):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        put_in_place(made, to)
    finally:
        made.unlink(missing_ok=True)
    return to


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _contents(workspace: StudyFolder, names: list[str]) -> Iterator[tuple[str, bytes]]:
    people = _people(workspace.path, names)
    for name in names:
        path = workspace.path / name
        if name == "study.yaml":
            yield name, _public(workspace.study)
        elif path.name == "run.yaml":
            yield name, _public(find_run(path.parent).config)
        elif name.endswith(".human.jsonl"):
            rows = read_records(path, Rating)
            yield name, b"".join(encode_record({**row, "rater": people[row["rater"]]}) for row in rows)
        elif path.name == "manifest.json":
            # People's ratings are not as they were written: what they were known by goes.
            told = without_paths(json.loads(path.read_bytes())) | {"sent": True}
            told["files"] = {key: one for key, one in told.get("files", {}).items() if not key.endswith(".human.jsonl")}
            yield name, json.dumps(told, indent=2, ensure_ascii=False).encode()
        else:
            yield name, path.read_bytes()


def _people(folder: Path, names: list[str]) -> dict[Any, str]:
    """Each person's rater as a number, in the order of their names."""
    files = [folder / name for name in names if name.endswith(".human.jsonl")]
    found = sorted({row["rater"] for path in files for row in read_records(path, Rating)})
    return {rater: f"human:{number}" for number, rater in enumerate(found, 1)}


def _public(settings: Settings) -> bytes:
    told = without_paths(settings.model_dump(mode="json"))
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=110).encode()


# e.g. [is_archive(Path(name)) for name in ("study.tar.xz", "study")] → [True, False]
def is_archive(source: Path) -> bool:
    """Whether a file is called as an archive is."""
    return source.name.endswith(ENDING)


def read_archive(source: Path, to: Path) -> StudyFolder:
    """Make the study folder `to`, which must not be there yet, of an archive; nothing else is written.

    Raises DataError for a file that is none, or that holds what no archive of ours does.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    with whole_folder(to) as folder:
        folder.mkdir(parents=True)
        try:
            with tarfile.open(source, "r:xz") as archive:
                _unpack(archive, source, folder)
            find_study(folder)
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError) as error:
            raise DataError(f"{source}: no archive of a study: {error}") from None
        except ConfigError as error:
            raise DataError([one.replace(str(folder), str(source)) for one in error.problems]) from None
    return find_study(to)


def _unpack(archive: tarfile.TarFile, source: Path, folder: Path) -> None:
    members, held = list[tarfile.TarInfo](), 0
    for member in archive:
        members.append(member)
        held += member.size
        # A bomb is not even unpacked to be counted.
        if held > LARGEST or len(members) > MOST_FILES:
            raise DataError(f"{source}: holds more than {LARGEST >> 30} GB unpacked, or {MOST_FILES:,} files")
    # The sums are compared at the stream's end, which lies behind the archive's own.
    assert archive.fileobj
    if len(archive.fileobj.read(BEHIND)) == BEHIND:
        raise DataError(f"{source}: goes on behind its end")
    strange = [one.name for one in members if not one.isreg() or not _is_ours(one.name)]
    if strange:
        raise DataError(f"{source}: not of a study: {', '.join(shortened(strange))}", "xlift export writes archives")
    archive.extractall(folder, members, filter="data")


def _is_ours(name: str) -> bool:
    return bool(_KEPT.fullmatch(name)) and ".." not in PurePosixPath(name).parts
