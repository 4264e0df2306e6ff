"""Study folders: what is ours in them, who may write, and that they are complete by themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import xlift
from xlift.checkpoint import checkpoints, checkpoints_of
from xlift.disk import remove_leftovers, temporary_path, write_atomic
from xlift.errors import ConfigError
from xlift.stages import prepare, run_study
from xlift.study.loading import load_study
from xlift.workspace import StudyFolder, find_run, find_study, is_created, locked


@pytest.fixture
def done(study_file: Path, tmp_path: Path) -> StudyFolder:
    return run_study(load_study(study_file), tmp_path / "out")


def left_by_a_killed_process(folder: Path) -> Path:
    """The temporary file of a process that is no longer there."""
    code = (
        "import sys; from pathlib import Path; from xlift.disk import temporary_path\n"
        "path = temporary_path(Path(sys.argv[1]) / 'x.json'); path.write_text('half'); print(path)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return Path(told.stdout.strip())


def test_only_what_a_dead_process_of_ours_left_is_removed(tmp_path: Path) -> None:
    users = [tmp_path / ".notes.tmp", tmp_path / ".mail.20261128.tmp", tmp_path / ".vim" / ".swap.tmp"]
    for path in users:
        path.parent.mkdir(exist_ok=True)
        path.write_text("the user's")
    (tmp_path / "sub").mkdir()
    dead, alive = left_by_a_killed_process(tmp_path / "sub"), temporary_path(tmp_path / "index.html")
    alive.write_text("being written")
    remove_leftovers(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert all(path.read_text() == "the user's" for path in users)


def test_a_file_is_whole_under_its_name_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", "one")
    write_atomic(tmp_path / "a.json", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "two"
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "a.json", None)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_reaches_the_disk_before_its_name_and_its_name_before_the_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        calls.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        fsync(handle)

    def moved(source: Path, target: Path) -> None:
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    write_atomic(tmp_path / "a.json", "one")
    assert calls == ["file", "name", "folder"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("there", ["photo.jpg", ".profile", "folder/file"])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    study_file: Path, tmp_path: Path, there: str
) -> None:
    home = tmp_path / "home"
    (home / there).parent.mkdir(parents=True)
    (home / there).write_text("mine")
    before = sorted(home.rglob("*"))
    with pytest.raises(ConfigError, match="no study folder"):
        prepare(load_study(study_file), home)
    assert sorted(home.rglob("*")) == before


def test_a_folder_of_another_study_is_refused_where_runs_of_it_would_be_nobodys(
    study_file: Path, tmp_path: Path
) -> None:
    def prepared(**changed: str) -> StudyFolder:
        return prepare(load_study(study_file, [f"{name}={value}" for name, value in changed.items()]), tmp_path / "out")

    first = prepared()
    before = (first.path / "study.yaml").read_bytes()
    with pytest.raises(ConfigError, match=f"'{first.study.name}': 2 of its runs are none of 'other'"):
        prepared(name="other", **{"training.seed": "7"})
    assert (first.path / "study.yaml").read_bytes() == before
    # An edit, a new name for all that is there, and what another program has damaged are the study itself.
    prepared(**{"training.seed": "7"})
    prepared(name="other", **{"training.seed": "7"})
    (first.path / "study.yaml").write_text("[")
    prepared()


def test_one_process_at_a_time_works_on_a_study(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another xlift process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        refused: list[ConfigError] = []

        def other() -> None:
            try:
                with locked(tmp_path):
                    pass
            except ConfigError as error:
                refused.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert refused
    with locked(tmp_path):
        pass


def test_a_run_folder_that_was_deleted_gets_its_files_back(done: StudyFolder, study_file: Path, tmp_path: Path) -> None:
    run = done.runs[1]
    shutil.rmtree(run.path)
    assert not is_created(done, list(checkpoints(done)[0].prompts))
    run_study(load_study(study_file), tmp_path / "out")
    assert find_run(run.path).config == run.config
    assert len(checkpoints_of(done, run)[0].responses) == 10


def test_a_study_folder_is_read_without_its_data_and_its_model(done: StudyFolder, tmp_path: Path, tiny: Path) -> None:
    expected = xlift.load(done.path).ratings
    assert len(expected)
    (tmp_path / "data.jsonl").write_text("changed since\n")
    elsewhere = tmp_path / "colleague" / "study"
    shutil.copytree(done.path, elsewhere)
    assert xlift.load(elsewhere).ratings.equals(expected)
    (tmp_path / "data.jsonl").unlink()
    assert xlift.load(elsewhere).ratings.equals(expected)
    assert all((run.path / "run.yaml").is_file() for run in find_study(elsewhere).runs)


def test_margins_by_another_definition_are_measured_again(done: StudyFolder) -> None:
    checkpoint = checkpoints(done)[0]
    path = checkpoint.run.margins(checkpoint.step)
    assert checkpoint.unmeasured == []
    path.write_text(path.read_text().replace("language margin v1", "language margin v0"))
    again = checkpoints(done)[0]
    assert again.margins == {}
    assert again.unmeasured == ["ru"]


def test_no_margin_is_measured_where_that_is_turned_off(study_file: Path, tmp_path: Path) -> None:
    overrides = ["validation={margins: false, grammar: false}", "training.learning_rate=1e-3"]
    workspace = run_study(load_study(study_file, overrides), tmp_path / "out")
    assert not list(workspace.path.rglob("margins"))
    assert all(one.unmeasured == [] for one in checkpoints(workspace))
