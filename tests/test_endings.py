"""How a command ends that cannot go on: a full disk, a signal, a terminal of another time. Nothing done is lost."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlift.cli import main
from xlift.disk import JsonlWriter, whole_folder, write_atomic, write_jsonl
from xlift.errors import ConfigError, UserError, os_problem
from xlift.executors import each_run
from xlift.progress import logged_in, say
from xlift.records import read_records
from xlift.report.formats import to_csv
from xlift.study.loading import parse_study
from xlift.workspace import RunFolder, StudyFolder, create_study, locked, open_study

LINE = [sys.executable, "-m", "xlift"]


def responses(path: Path, count: int) -> Path:
    write_jsonl(path, [{"id": f"r{i}", "language": "fr", "text": f"Le chat numéro {i} dort."} for i in range(count)])
    return path


def rated(source: Path, target: Path) -> list[str]:
    return [*LINE, "rate", str(source), "-o", str(target), "--raters", "language", "--workers", "1"]


def test_a_full_disk_is_told_with_its_file_and_what_to_do() -> None:
    # What failed to be written is tried once more when the file is closed.
    with pytest.raises(OSError, match="No space left on device") as raised, JsonlWriter("/dev/full") as writer:
        writer.write({"a": 1})
    found = os_problem(raised.value)
    assert found.problems == ["/dev/full: No space left on device"]
    assert "make room" in (found.hint or "")


def test_a_log_that_cannot_be_written_leaves_the_work_its_own_message(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="the work's own"), logged_in(tmp_path / "log.txt"):
        raise ConfigError("the work's own")
    with logged_in(tmp_path / "log.txt"):
        say("a line")


def test_what_was_written_before_the_disk_was_full_is_kept_and_the_rest_is_made_when_there_is_room(
    tmp_path: Path,
) -> None:
    source, target = responses(tmp_path / "r.jsonl", 40), tmp_path / "out.jsonl"

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        rated(source, target), preexec_fn=small_disk, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert f"error: {target}: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run(rated(source, target), check=True, capture_output=True, timeout=120)
    assert sorted(one["id"] for one in read_records(target)) == sorted(f"r{i}" for i in range(40))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO,
                                    errno.EFBIG, errno.ENOLCK])  # fmt: skip
def test_every_refusal_of_the_system_says_where_and_what_to_do(number: int) -> None:
    found = os_problem(OSError(number, os.strerror(number), "some/file"))
    assert found.problems == [f"some/file: {os.strerror(number)}"]
    assert found.hint


def test_a_file_that_grows_beyond_what_the_system_allows_is_named_and_the_rest_is_made_afterwards(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "r.jsonl", tmp_path / "o.jsonl"
    write_jsonl(
        source,
        [{"id": f"r{i}", "language": "fr", "text": "La lumière du soleil est diffusée par l'air."} for i in range(400)],
    )
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *rated(source, target)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"error: {target}: File too large" in done.stderr
    assert "ulimit -f" in done.stderr
    subprocess.run(rated(source, target), check=True, capture_output=True, timeout=120)
    assert sorted(one["id"] for one in read_records(target)) == sorted(f"r{i}" for i in range(400))


def test_a_refusal_that_a_library_tells_in_words_of_its_own_is_one_of_the_system(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "made") as folder:
            folder.mkdir()
            raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as raised:
        write()
    assert os_problem(raised.value).problems == [f"{tmp_path / 'made'}: No space left on device"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(OSError, match="No locks") as raised, locked(tmp_path):
        pass
    assert os_problem(raised.value).problems == [f"{tmp_path / '.lock'}: No locks available"]


def test_a_file_that_cannot_be_written_is_named_by_the_name_that_the_user_knows(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder" / "report.md", "x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_it_goes_on_and_goes_on_from_there(number: int, tmp_path: Path) -> None:
    source, target, whole = responses(tmp_path / "r.jsonl", 30_000), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    with subprocess.Popen(rated(source, target), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (target.is_file() and target.stat().st_size > 10_000):
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert (
        said.splitlines()[-1]
        == f"stopped; what is done is kept. To go on: xlift rate {' '.join(rated(source, target)[4:])}"
    )
    kept = target.read_bytes()
    assert len(kept) > 10_000
    if number == signal.SIGINT:
        write_jsonl(source, [json.loads(line) for line in source.read_bytes().splitlines()[:3000]])
        target.write_bytes(b"".join(kept.splitlines(keepends=True)[:1000]))
        for path in (target, whole):
            subprocess.run(rated(source, path), check=True, capture_output=True, timeout=120)
        assert target.read_bytes() == whole.read_bytes()


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    made = open_study(parse_study({"name": "s", "training": {"learning_rate": [1e-3, 1e-2]}}), tmp_path / "s")
    create_study(made)
    return made


def test_a_run_that_is_interrupted_says_so(study: StudyFolder) -> None:
    def work(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each_run(study, study.runs, "train", True, work)
    assert study.runs[0].stage("train")["state"] == "interrupted"


def test_a_run_that_the_system_refuses_is_a_users_error_and_the_others_go_on(study: StudyFolder) -> None:
    done = []

    def work(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
        if run is study.runs[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")
        done.append(run.id)

    with pytest.raises(UserError, match="weights: No space left") as raised:
        each_run(study, study.runs, "train", True, work)
    assert "make room" in (raised.value.hint or "")
    assert done == [run.id for run in study.runs[1:]]


def test_a_terminal_that_cannot_show_a_character_shows_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["xlift", "ls", "étude-\udcff.yaml"])
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(SystemExit):
        main()
    signal.signal(signal.SIGTERM, before)
    sys.stderr.flush()
    assert rb"\xe9tude-\udcff.yaml" in raw.getvalue()


def test_no_cell_of_a_csv_file_is_a_formula() -> None:
    rows = [{"a": "=1+1", "b": "@x", "c": -1.5, "d": "-1", "e": "+1", "f": "x=1"}]
    assert to_csv(rows).splitlines()[1] == "'=1+1,'@x,-1.5,'-1,'+1,x=1"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "page.html")
    write_atomic(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "page.html").read_text() == "x"
    ours, theirs = os.openpty()
    write_atomic(os.ttyname(theirs), "shown\n")
    assert os.read(ours, 100) == b"shown\r\n"
    assert Path(os.ttyname(theirs)).is_char_device()


def test_half_a_character_breaks_no_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "half \ud800")
    assert (tmp_path / "a").read_bytes() == rb"half \ud800"
