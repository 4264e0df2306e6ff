"""Systems unlike ours: another locale, no home, no cache that can be written, folders with blanks and other scripts."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm import run_xlift

from xlift.annotation import server
from xlift.records import read_records

ROOT = Path(__file__).parent.parent
NAME = "Étude №1 测试 ملف"


def moved(study_file: Path) -> Path:
    """The study in a folder whose name has blanks and three scripts, as has its data."""
    folder = study_file.parent / NAME
    folder.mkdir()
    study: dict[str, Any] = yaml.safe_load(study_file.read_text(encoding="utf-8"))
    shutil.move(study_file.parent / "data.jsonl", folder / "données 数据.jsonl")
    study["training"] |= {
        "instructions": {"sources": [{"path": "données 数据.jsonl"}], "heldout": 2},
        "learning_rate": 1e-3,
    }
    path = folder / "étude.yaml"
    path.write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8")
    return path


def test_a_whole_study_runs_in_a_folder_of_any_name_without_a_home_or_a_cache(study_file: Path) -> None:
    path = moved(study_file)
    bare = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": "/proc/none",
        "XDG_CACHE_HOME": "/proc/none",
    }
    done = run_xlift("run", path.name, folder=path.parent, env=bare)
    assert done.returncode == 0, done.stderr
    assert "tiny" in (path.parent / "results" / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    moved_again = path.parent.rename(path.parent.parent / "somewhere else")
    shown = run_xlift("ls", "results/tiny", folder=moved_again, env=bare)
    assert shown.returncode == 0, shown.stderr
    assert "done" in shown.stdout


@pytest.mark.parametrize("locale", [{"LC_ALL": "tr_TR.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_any_locale_reads_and_writes_the_same_files(locale: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "réponses.csv").write_text(
        "id,language,text\na,tr,IŞIK İstanbul'da ılık ılık yanıyor.\n", encoding="utf-8"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONCOERCECLOCALE": "0", **locale}
    line = [sys.executable, "-m", "xlift", "rate", "réponses.csv", "-o", "ratings.jsonl", "--raters", "language"]
    done = subprocess.run([os.fsencode(one) for one in line], cwd=tmp_path, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert [(one["id"], one["value"]) for one in read_records(tmp_path / "ratings.jsonl")] == [("a", 2)]


def test_no_module_wants_what_windows_has_not_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
    for path in (ROOT / "src").rglob("*.py"):
        at_once = [one for one in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(one, ast.Import)]
        assert not own & {name.name for one in at_once for name in one.names}, path
    monkeypatch.setitem(sys.modules, "resource", None)
    assert server._most() == server.MAX_CONNECTIONS
