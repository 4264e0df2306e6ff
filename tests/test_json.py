"""`--json`: what a command finds out is one value on stdout and nothing besides; all else goes to stderr."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from xlift.cli import app
from xlift.disk import write_jsonl
from xlift.importing import Wanted, import_study
from xlift.stages import rate_stage

SAID = {"en": "The sky is blue because air scatters light.", "fr": "Le ciel est bleu grâce à la lumière."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with responses and a rated study of them."""
    folder = tmp_path_factory.mktemp("json")
    rows = [
        {"id": i, "language": code, "model": model, "output": SAID["en" if model == "b" else code]}
        for model in ("a", "b")
        for code in SAID
        for i in range(3)
    ]
    write_jsonl(folder / "in.jsonl", rows)
    rate_stage(import_study(folder / "in.jsonl", folder / "study", Wanted(raters=("language",))))
    return folder


def runs_of(study: Path) -> list[str]:
    return sorted(str(path) for path in (study / "runs").iterdir())


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("ls study", {"study", "folder", "runs"}),
        ("rate study", {"study", "folder", "runs"}),
        ("train study", {"study", "folder", "runs"}),
        ("generate study", {"study", "folder", "runs"}),
        ("import in.jsonl --as again", {"study", "folder", "runs"}),
        ("check study", {"study", "folder", "prompts", "runs"}),
        ("clean study --dry-run", {"removed", "needless"}),
        ("clean study --yes", {"removed", "needless"}),
        ("verify study", {"files", "problems"}),
        ("compare A B", {"language", "first_mean", "second_mean", "difference", "p_holm"}),
        ("annotate study --status", {"progress", "controls", "practice", "pace"}),
        ("export study --to data --data", {"exported", "pushed"}),
        ("rate in.jsonl", {"results", "unreadable"}),
        ("agreement study", set()),
    ],
)
def test_with_json_stdout_is_one_value_and_the_exit_code_is_as_without(
    folder: Path, words: str, keys: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    first, second = map(os.path.relpath, runs_of(folder / "study"))
    typed = [{"A": first, "B": second}.get(word, word) for word in words.split()]
    done = CliRunner().invoke(app, [*typed, "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    told: Any = json.loads(done.stdout)
    assert keys <= set(told[0] if isinstance(told, list) else told)
