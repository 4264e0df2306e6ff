"""A study's archive: its numbers without its weights, data, paths and names; nothing else is unpacked."""

from __future__ import annotations

import io
import json
import lzma
import random
import tarfile
from pathlib import Path

import pytest
from report_fixtures import GOOD, log_training, rated_study
from warm import run_xlift

from xlift.checkpoint import is_trained
from xlift.disk import write_jsonl
from xlift.errors import ConfigError, DataError, UserError
from xlift.export.archive import read_archive, write_archive
from xlift.report.reading import material_of, share_rows
from xlift.stages import generate_stage
from xlift.verifying import verify
from xlift.workspace import StudyFolder, find_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A rated study on data of a file of its own, that a person has rated, too; with weights."""
    folder = tmp_path_factory.mktemp("archive")
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    write_jsonl(folder / "own.jsonl", [{"messages": said}])
    training = {"instructions": {"sources": [{"path": str(folder / "own.jsonl")}]}, "learning_rate": [1e-4, 1e-3]}
    workspace = rated_study(folder / "made", lambda run, prompt: GOOD[prompt["language"]], training=training)
    for run in workspace.runs[1:]:
        log_training(run, 2.0, {"fr": 0.7})
        (run.checkpoint(40) / "model.safetensors").write_bytes(b"weights")
    rated = json.loads((workspace.runs[1].ratings(40, "language")).read_text(encoding="utf-8").splitlines()[0])
    write_jsonl(workspace.runs[1].ratings(40, "human"), [rated | {"rater": "human:Ana Garcia", "signature": "people"}])
    return workspace


def test_an_archive_gives_the_same_numbers_without_the_weights_the_data_and_the_folder(
    study: StudyFolder, tmp_path: Path
) -> None:
    packed = str(tmp_path / "made.tar.xz")
    made = run_xlift("export", str(study.path), "--archive", "--to", packed, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    read = run_xlift("import", packed, "--as", str(tmp_path / "again"), folder=tmp_path)
    assert read.stdout == f"3 runs\nnext: xlift report {tmp_path / 'again'}\n", read.stderr
    again = find_study(tmp_path / "again")
    assert [run.id for run in again.runs] == [run.id for run in study.runs]
    before, after = (material_of(one) for one in (study, again))
    checks = [row for row in share_rows(before, "test") if row.rater != "people"]
    assert checks == [row for row in share_rows(after, "test") if row.rater != "people"]
    assert before.training.equals(after.training)
    assert verify(again.path)[1] == []


def test_what_an_archive_has_not_answered_wants_its_weights_again(study: StudyFolder, tmp_path: Path) -> None:
    again = read_archive(write_archive(study.path, tmp_path / "made.tar.xz"), tmp_path / "again")
    for run in again.runs[1:]:
        path = run.responses(40)
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="its answers are here, its weights are not") as refused:
        generate_stage(StudyFolder(again.path, again.study, again.runs[1:]))
    assert refused.value.hint == "xlift train makes them anew"


def test_a_run_that_came_answered_is_not_trained_again_until_something_is_asked(
    study: StudyFolder, tmp_path: Path
) -> None:
    for run in study.runs[1:]:
        run.set_stage("train", "done")
    again = read_archive(write_archive(study.path, tmp_path / "made.tar.xz"), tmp_path / "again")
    assert all(is_trained(again, run) for run in again.runs[1:])
    path = again.runs[1].responses(40)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert [is_trained(again, run) for run in again.runs[1:]] == [False, True]
    # Of weights that are removed where they were made, answers do not stand in.
    assert [run.sent_steps() for run in study.runs] == [[], [], []]


def test_an_archive_names_no_person_no_path_of_this_machine_and_holds_no_weights(
    study: StudyFolder, tmp_path: Path
) -> None:
    first, second = (write_archive(study.path, tmp_path / name) for name in ("a.tar.xz", "b.tar.xz"))
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        texts = {one.name: archive.extractfile(one).read().decode() for one in archive}  # type: ignore[union-attr]
    assert not any("checkpoints" in name or ".lock" in name or name == "log.txt" for name in texts)
    everything = "".join(texts.values())
    assert str(study.path.parent) not in everything
    assert "Ana" not in everything
    assert "own.jsonl" in texts["study.yaml"]
    (people,) = (text for name, text in texts.items() if name.endswith("human.jsonl"))
    assert json.loads(people)["rater"] == "human:1"


@pytest.mark.parametrize("name", ["../outside.jsonl", "runs/../x/../run.yaml", "/etc/passwd", "runs/a/weights.bin"])
def test_what_is_no_part_of_a_study_is_not_unpacked(name: str, tmp_path: Path) -> None:
    source = tmp_path / "other.tar.xz"
    with tarfile.open(source, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match="not of a study"):
        read_archive(source, tmp_path / "in" / "made")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "in", source]


def test_a_bomb_is_refused_where_it_is_seen_and_not_unpacked(tmp_path: Path) -> None:
    """One file of 3 GB of which nothing follows: whoever wanted to pass over it would find the archive torn."""
    member = tarfile.TarInfo("runs/a/responses/step-4.jsonl")
    member.size = 3 << 30
    source = tmp_path / "bomb.tar.xz"
    source.write_bytes(lzma.compress(member.tobuf(), preset=0))
    with pytest.raises(DataError, match="more than 2 GB unpacked"):
        read_archive(source, tmp_path / "made")
    assert [*tmp_path.iterdir()] == [source]


def test_an_archive_with_any_bit_flipped_is_refused_and_leaves_nothing(study: StudyFolder, tmp_path: Path) -> None:
    chance, whole = random.Random(0), write_archive(study.path, tmp_path / "whole.tar.xz").read_bytes()
    source, last = tmp_path / "flipped.tar.xz", range(len(whole) - 60, len(whole))
    # The sums stand in the last bytes.
    for place in [*last, *(chance.randrange(len(whole)) for _ in range(60))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        source.write_bytes(flipped)
        with pytest.raises(DataError, match=r"flipped\.tar\.xz"):
            read_archive(source, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flipped.tar.xz", "whole.tar.xz"]


@pytest.mark.parametrize(
    "odd", [{"path": "runs/a\0b/run.yaml"}, {"mtime": "nan"}, {"mtime": "9" * 400}, {"size": "-5"}]
)
def test_odd_facts_of_a_file_in_an_archive_are_refused(odd: dict[str, str], tmp_path: Path) -> None:
    source, member = tmp_path / "odd.tar.xz", tarfile.TarInfo("study.yaml")
    member.pax_headers = odd
    with tarfile.open(source, "w:xz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"odd\.tar\.xz"):
        read_archive(source, tmp_path / "made")
    assert [*tmp_path.iterdir()] == [source]


def test_an_archive_whose_study_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    source, member = tmp_path / "odd.tar.xz", tarfile.TarInfo("study.yaml")
    member.size = 3
    with tarfile.open(source, "w:xz") as archive:
        archive.addfile(member, io.BytesIO(b"[1]"))
    with pytest.raises(DataError, match=r"odd\.tar\.xz/study\.yaml: a study file is a mapping"):
        read_archive(source, tmp_path / "made")
    assert [*tmp_path.iterdir()] == [source]


def test_a_damaged_archive_and_a_taken_name_are_refused_and_leave_nothing(study: StudyFolder, tmp_path: Path) -> None:
    whole = write_archive(study.path, tmp_path / "whole.tar.xz")
    torn = tmp_path / "torn.tar.xz"
    torn.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(DataError, match="no archive of a study"):
        read_archive(torn, tmp_path / "made")
    with pytest.raises(DataError, match="no such file"):
        read_archive(tmp_path / "none.tar.xz", tmp_path / "made")
    for name in ("whole.tar.xz", "answers.zip"):
        with pytest.raises(ConfigError, match=r"ends in \.tar\.xz"):
            write_archive(study.path, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == [torn, whole]
