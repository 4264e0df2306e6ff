from __future__ import annotations

import re
from pathlib import Path

import pytest

from xlift.study import RunConfig, Study

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
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("    xlift/\n")[1].split("\n\n")[0]
    for path in (ROOT / "xlift").rglob("*.py"):
        if path.name not in {"__init__.py", "__main__.py"}:
            assert path.name in tree, path
    for name in re.findall(r"\w+\.py", tree):
        assert list((ROOT / "xlift").rglob(name)), name
