from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from xlift.study.settings import RunConfig
from xlift.study.study import Study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_in_the_docs_exist(page: Path) -> None:
    from xlift.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"^    xlift (\w+)", text, re.MULTILINE)) <= names
    make = set(re.findall(r"^    make (\w+)", text, re.MULTILINE))
    assert make <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        assert (page.parent / target).is_file(), target
    for study in re.findall(r"studies/[\w.-]+\.yaml", text):
        assert (ROOT / study).is_file(), study


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "study-files.md").read_text(encoding="utf-8")
    for model in (Study, RunConfig):
        for name in model.model_fields:
            assert re.search(rf"\b{name}\b", text), name


def test_the_tree_in_the_readme_is_true() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("    src/xlift/\n")[1].split("\n\n")[0]
    for path in (ROOT / "src" / "xlift").rglob("*.py"):
        if path.name not in {"__init__.py", "__main__.py"}:
            assert path.name in tree, path
    for name in re.findall(r"\w+\.py", tree):
        assert list((ROOT / "src" / "xlift").rglob(name)), name


COMMAND = re.compile(r"^    xlift (.+)$", re.MULTILINE)
SENTENCE = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_run(page: Path, study_file: Path, tmp_path: Path) -> None:
    """Every command of a page, in its order, in one folder; the tiny model stands in for the study's."""
    commands = [shlex.split(line) for line in COMMAND.findall(page.read_text(encoding="utf-8"))]
    place = tmp_path / "place"
    (place / "studies").mkdir(parents=True)
    small = study_file.read_text(encoding="utf-8")
    changes = {
        "name: tiny": "name: quickstart",
        "steps: 4": "epochs: 1",
        "data.jsonl": f"{tmp_path}/data.jsonl",
        "[en, ru]": "[en, fr, pt, ru]",
    }
    for old, new in changes.items():
        small = small.replace(old, new)
    (place / "studies" / "quickstart.yaml").write_text(small)
    (place / "responses.jsonl").write_text(json.dumps({"text": SENTENCE, "language": "fr"}) + "\n")
    for command in commands:
        runs = sorted((place / "results" / "quickstart" / "runs").glob("lora-*"))
        words = [word.replace("RUN", runs[0].name) if runs else word for word in command]
        line = [sys.executable, "-m", "xlift", *words]
        done = subprocess.run(line, cwd=place, capture_output=True, text=True, input="Why?\n", timeout=300)
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout, words
