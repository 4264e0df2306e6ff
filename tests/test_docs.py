from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from warm import run_xlift

import xlift
from xlift.data.instructions import load_instructions
from xlift.hub import cache_dir, locate
from xlift.models import load_tokenizer
from xlift.study.data import Instructions, Prompts, PromptSet, Source
from xlift.study.loading import load_study, section_class
from xlift.study.runs import FILLED_IN, Adaptation, RunConfig
from xlift.study.sections import Halving, Panel, Ray, Report, Validation
from xlift.study.served import Decoding, Judge, Model
from xlift.study.settings import Settings
from xlift.study.study import Study
from xlift.tuning.encoding import encode_data
from xlift.tuning.templates import chat_format

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
        assert (page.parent / (target.split("#")[0] or page.name)).is_file(), target
    for study in re.findall(r"studies/[\w.-]+\.yaml", text):
        assert (ROOT / study).is_file(), study


SECTIONS: dict[str, type[Settings]] = {
    "the study file": Study,
    "`training`": RunConfig,
    "`instructions`": Instructions,
    "a source": Source,
    "`adaptation`": Adaptation,
    "`prompts`": Prompts,
    "a prompt set": PromptSet,
    "`decoding`": Decoding,
    "`validation`": Validation,
    "`halving`": Halving,
    "`ray`": Ray,
    "`report`": Report,
    "a judge": Judge,
    "`panel`": Panel,
    "a model": Model,
}
"""What the tables of settings are headed by ("| in `ray` | default | …"), and the settings that each documents."""


def table_in(head: str) -> list[list[str]]:
    """The rows of a table of settings, cell by cell."""
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("study-files.md", "judges.md"))
    (table,) = re.findall(rf"^\| in {head} \| default \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]


def default_text(one: FieldInfo) -> str | None:
    """How a table writes a default; None for what it says in words."""
    default = one.get_default(call_default_factory=True)
    if one.is_required():
        return "required"
    if default is None or default in ("", [], {}) or isinstance(default, Settings):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:,g}"
    if isinstance(default, list) and isinstance(default[0], str):
        return ", ".join(default)
    return default if isinstance(default, str) else None


@pytest.mark.parametrize("head", SECTIONS)
def test_every_setting_has_a_row_of_its_own_with_its_default(head: str) -> None:
    section, rows = SECTIONS[head], table_in(head)
    filled = FILLED_IN if section is RunConfig else ()
    fields = {f"`{name}`": one for name, one in section.model_fields.items() if name not in filled}
    assert [row[0] for row in rows] == list(fields)
    for (name, default, *_), one in zip(rows, fields.values(), strict=True):
        told = "file name" if name == "`name`" and section is Study else default_text(one)
        assert default == told or told is None, name


def test_every_section_of_settings_is_documented() -> None:
    found: set[Any] = {Study, RunConfig}
    for section in SECTIONS.values():
        found |= {nested for one in section.model_fields.values() if (nested := section_class(one.annotation))}
    assert found == set(SECTIONS.values())


def modules_of_tree(tree: str) -> list[str]:
    """Paths of the modules that the tree names. An entry is a folder; `sub/:` opens one in it, `;` or `)` closes it."""
    found: list[str] = []
    for entry in re.split(r"\n(?=      \S)", "\n" + tree)[1:]:
        opening = re.match(r"\s*(\w+/) ", entry)
        folder = opening[1] if opening else ""
        inside = folder
        for opened, module, closed in re.findall(r"(\w+/):|(\w+\.py)|([;)])", entry.replace(folder, "", 1)):
            inside = inside + opened if opened else folder if closed else inside
            found += [inside + module] if module else []
    return found


def test_the_tree_in_the_readme_is_every_module_in_its_folder_and_no_other() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("    src/xlift/\n")[1].split("\n\n")[0]
    package = ROOT / "src" / "xlift"
    there = [path for path in package.rglob("*.py") if path.name not in {"__init__.py", "__main__.py"}]
    assert sorted(modules_of_tree(tree)) == sorted(path.relative_to(package).as_posix() for path in there)


@pytest.mark.parametrize("name", xlift.__all__)
def test_every_public_name_is_there_described_and_shown(name: str) -> None:
    found = getattr(xlift, name)
    assert found.__doc__
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert re.search(rf"xlift\.{name}\b|`{name}`", page)


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(xlift.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        f"{node.module}.{one.asname}" for node in block.body if isinstance(node, ast.ImportFrom) for one in node.names
    }
    assert seen == {f"xlift.{home}.{name}" for name, home in xlift._HOMES.items()}


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, xlift; dir(xlift); print(*(one for one in sys.modules if one.split('.')[0] in sys.argv[1:]))"
    line = [sys.executable, "-c", code, "numpy", "polars", "pydantic", "torch", "scipy"]
    assert not subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs pip install 'xlift[docs]'")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert {"index.html", "cli.html", "python.html", "reference.html"} <= pages.keys()
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)", text)
        assert not loaded, name


STEP = re.compile(r"^    xlift (?P<command>[^\n]+)$|^```python\n(?P<python>.*?)^```$", re.MULTILINE | re.DOTALL)
SENTENCE = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_examples_in_the_docs_run(
    page: Path, tiny: Path, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command and all Python of a page, in its order, in one folder; the tiny model stands in for the study's."""
    steps = list(STEP.finditer(page.read_text(encoding="utf-8")))
    place = tmp_path / "place"
    (place / "studies").mkdir(parents=True)
    small = study_file.read_text(encoding="utf-8")
    changes = {
        "name: tiny": "name: quickstart",
        "steps: 4": "epochs: 1",
        "[1e-3, 1e-2]": "[2e-4, 5e-3]",
        "data.jsonl": f"{tmp_path}/data.jsonl",
        "[en, ru]": "[en, fr, pt, ru]",
    }
    for old, new in changes.items():
        small = small.replace(old, new)
    (place / "studies" / "quickstart.yaml").write_text(small)
    for archive in (ROOT / "studies").glob("*.tar.xz"):
        shutil.copy(archive, place / "studies")
    (place / "responses.jsonl").write_text(json.dumps({"text": SENTENCE, "language": "fr"}) + "\n")
    monkeypatch.chdir(place)
    namespace: dict[str, Any] = {}
    for step in steps:
        if step["python"]:
            exec(step["python"].replace("embedded:gemma-3-270m", str(tiny)), namespace)
            continue
        runs = sorted((place / "results" / "quickstart" / "runs").glob("lora-*"))
        command = step["command"].replace("embedded:gemma-3-270m", str(tiny))
        words = [word.replace("RUN", runs[0].name) if runs else word for word in shlex.split(command)]
        done = run_xlift(*words, folder=place, input="Why?\n")
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout, words


def test_readme_tells_how_many_examples_the_quickstart_learns_from() -> None:
    if not list(cache_dir().glob("models/gemma-3-270m-*/xlift.json")):
        pytest.skip("the embedded model has not been made yet, which takes a minute")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"runs on (\d+) English examples \(of (\d+), those of at most (\d+) tokens\)", text)
    study = load_study(ROOT / "studies" / "quickstart.yaml")
    settings = next(run for run in study.runs() if not run.untuned)
    chat = chat_format(load_tokenizer(locate(settings.model).path), settings.template, settings.system)
    data = encode_data(settings, chat, *load_instructions(settings.instructions))
    assert tuple(map(int, told)) == (len(data.train), settings.instructions.size, settings.max_length)
