"""Cleaning a study: what it no longer needs goes, all else stays, and nothing that is not xlift's is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_pending import carried_out, tuned
from test_study import xlift
from test_workspace import left_by_a_killed_process
from warm import run_xlift

from xlift.cleaning import needless, open_folder, remove
from xlift.planning.pending import pending
from xlift.study.loading import load_study
from xlift.workspace import RunFolder, StudyFolder, locked

NARROWED = ["training.learning_rate=[1e-3]"]


def narrowed(study_file: Path, folder: Path) -> tuple[StudyFolder, RunFolder]:
    """A study that has been run with two learning rates and then with one; the run that has left it."""
    left = tuned(carried_out(load_study(study_file), folder))[1]
    return carried_out(load_study(study_file, NARROWED), folder), left


def contents(folder: Path) -> dict[str, bytes]:
    there = [path for path in folder.rglob("*") if path.is_file() and path.name not in {".lock", "log.txt"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in there}


def test_what_is_needed_stays_as_it_is_and_nothing_is_made_again(study_file: Path, tmp_path: Path) -> None:
    workspace, left = narrowed(study_file, tmp_path / "out")
    half = left_by_a_killed_process(workspace.runs[0].path / "responses")
    kept = tuned(workspace)[0]
    before = contents(workspace.path)
    cleaned = xlift("clean", "out", "--yes", folder=tmp_path)
    assert cleaned.returncode == 0, cleaned.stderr
    for place in (left.path, half, kept.path / "training_state", workspace.path / "data"):
        assert not place.exists()
        assert f" {place.relative_to(tmp_path)} " in cleaned.stdout
    needed = {
        name: data
        for name, data in before.items()
        if not any(gone in name for gone in (left.id, "training_state", half.name, "data/"))
    }
    assert contents(workspace.path) == needed
    assert pending(workspace) == []
    carried_out(load_study(study_file, NARROWED), tmp_path / "out")
    assert contents(workspace.path) == needed
    assert xlift("clean", "out", folder=tmp_path).stdout == "nothing to remove\n"


def test_links_and_files_of_others_stay(study_file: Path, tmp_path: Path) -> None:
    workspace, left = narrowed(study_file, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    kept = tuned(workspace)[0]
    # Moved to a larger disk by the user, and linked: the states of one run, the checkpoints of another.
    for folder in (kept.path / "training_state", left.path / "checkpoints"):
        shutil.move(folder, elsewhere / folder.name)
        folder.symlink_to(elsewhere / folder.name)
    (left.path / "notes.txt").write_text("the user's")
    (left.path / "responses" / "step-4.best.txt").write_text("the user's")
    linked = left.path.with_name("lora-r4-0123abcd")
    shutil.copytree(left.path, elsewhere / "run", symlinks=True)
    linked.symlink_to(elsewhere / "run")
    (workspace.path / "runs" / "mine").mkdir()
    (workspace.path / "runs" / "mine" / "run.yaml").write_text("the user's")
    shutil.copytree(kept.path, kept.path.with_name(f"copy of {kept.id}"), symlinks=True)
    outside, copied = contents(elsewhere), contents(kept.path.with_name(f"copy of {kept.id}"))

    said = remove(needless(open_folder(workspace.path)))
    assert contents(elsewhere) == outside
    assert contents(kept.path.with_name(f"copy of {kept.id}")) == copied
    assert (workspace.path / "runs" / "mine" / "run.yaml").is_file()
    assert linked.is_symlink()
    assert {path.name for path in left.path.rglob("*")} == {"checkpoints", "notes.txt", "responses", "step-4.best.txt"}
    assert f"{left.path} stays: it holds links, or files that are not xlift's" in said


def test_a_link_to_all_runs_is_not_followed(study_file: Path, tmp_path: Path) -> None:
    workspace, _ = narrowed(study_file, tmp_path / "out")
    shutil.move(workspace.path / "runs", tmp_path / "elsewhere")
    (workspace.path / "runs").symlink_to(tmp_path / "elsewhere")
    assert [one.place for one in needless(open_folder(workspace.path))] == [workspace.path / "data"]
    # The study's own folder may well be a link: it was named.
    (workspace.path / "runs").unlink()
    shutil.move(tmp_path / "elsewhere", workspace.path / "runs")
    (tmp_path / "link").symlink_to(workspace.path)
    assert [one.place.parts[-1] for one in needless(open_folder(tmp_path / "link"))] != []


def test_it_asks_and_without_a_terminal_removes_nothing_unasked(study_file: Path, tmp_path: Path) -> None:
    workspace, left = narrowed(study_file, tmp_path / "out")
    before = contents(workspace.path)
    refused = xlift("clean", "out", folder=tmp_path, stdin=subprocess.DEVNULL)
    assert (refused.returncode, "try: xlift clean out --yes" in refused.stderr) == (2, True)
    assert contents(workspace.path) == before
    for answer, goes in (("", False), ("n", False), ("y", True)):
        ours, theirs = os.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = run_xlift("clean", "out", folder=tmp_path, stdin=theirs)
        os.close(ours)
        os.close(theirs)
        assert done.returncode == 0, done.stderr
        assert left.path.exists() is not goes
        assert goes or contents(workspace.path) == before


def test_a_dry_run_says_the_same_and_leaves_all_even_while_another_process_works(
    study_file: Path, tmp_path: Path
) -> None:
    workspace, _ = narrowed(study_file, tmp_path / "out")
    (workspace.path / ".lock").unlink()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    told = xlift("clean", "out", "--dry-run", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    before = contents(workspace.path)
    with locked(workspace.path):
        assert xlift("clean", "out", "--dry-run", folder=tmp_path).stdout == told.stdout
        refused = xlift("clean", "out", "--yes", folder=tmp_path)
    assert (refused.returncode, "another xlift process is working" in refused.stderr) == (2, True)
    assert contents(workspace.path) == before
    assert xlift("clean", "out", "--yes", folder=tmp_path).stdout.startswith(told.stdout)


def test_what_either_the_file_or_the_folder_still_has_is_kept(study_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    workspace, left = narrowed(study_file, place / "results" / "tiny")
    # Narrowed by an override: the file still has the run.
    told = xlift("clean", str(study_file), "--dry-run", folder=place).stdout
    assert (f"{left.id}/training_state" in told, "no longer in the study" in told) == (True, False)
    # Narrowed in the file, to another run than the folder's; not run since.
    study_file.write_text(study_file.read_text().replace("[1e-3, 1e-2]", "[1e-1]"))
    told = xlift("clean", str(study_file), "--dry-run", folder=place).stdout
    assert (f"{left.id} " in told, f"{tuned(workspace)[0].id} " in told) == (True, False)
    missing = xlift("clean", str(study_file), "--dry-run", folder=tmp_path)
    assert (missing.returncode, "results/tiny" in missing.stderr) == (2, True)


@pytest.mark.parametrize("state", ["running", "failed"])
def test_what_training_would_continue_from_is_kept(state: str, study_file: Path, tmp_path: Path) -> None:
    run = tuned(carried_out(load_study(study_file, NARROWED), tmp_path / "out"))[0]
    run.set_stage("train", state, problems=["memory"])
    assert needless(open_folder(tmp_path / "out")) == []


def test_runs_that_left_the_study_are_listed_as_such(study_file: Path, tmp_path: Path) -> None:
    workspace, left = narrowed(study_file, tmp_path / "out")
    shown = xlift("ls", "out", folder=tmp_path).stdout.splitlines()
    assert [left.id in line for line in shown] == ["no longer in the study" in line for line in shown]
    states = json.loads(xlift("ls", "out", "--json", folder=tmp_path).stdout)[0]["runs"]
    assert {one["run"]: one["in_study"] for one in states} == {run.id: True for run in workspace.runs} | {
        left.id: False
    }
