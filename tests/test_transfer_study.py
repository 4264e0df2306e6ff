"""docs/transfer-study.md and what is behind it belong together: the study file, the stored answers, the tables."""

from __future__ import annotations

import re
from pathlib import Path

from xlift.export.archive import read_archive

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "transfer-study.md").read_text(encoding="utf-8")


def test_the_page_tells_of_every_run_of_the_study_and_names_those_without_answers(tmp_path: Path) -> None:
    study = read_archive(ROOT / "studies" / "transfer-270m.tar.xz", tmp_path / "study")
    (table,) = re.findall(r"(?s)<!-- runs -->\n\n.*?---: \|\n(.*?)\n\n<!-- /runs -->", PAGE)
    told = {line.split(" | ")[0].removeprefix("| "): "not run yet" not in line for line in table.splitlines()}
    assert told == {run.label.replace("_", r"\_"): bool(run.sent_steps()) for run in study.runs}
    done = f"All {len(told)} runs of" if all(told.values()) else f"{sum(told.values())} of"
    assert re.search(rf"{done} the grid", PAGE)


def test_every_mark_and_figure_of_the_page_is_made_by_the_script() -> None:
    script = (ROOT / "benchmarks" / "transfer.py").read_text(encoding="utf-8")
    marks = re.findall(r"<!-- ([\w-]+) -->", PAGE)
    assert marks
    assert len(set(marks)) == len(marks) == len(re.findall(r"<!-- /[\w-]+ -->", PAGE))
    assert [mark for mark in marks if f'"{mark}": lambda' not in script] == []
    figures = re.findall(r"\]\(transfer-study/([\w-]+)\.svg\)", PAGE)
    assert figures
    assert [name for name in figures if f'"{name}"' not in script] == []
