"""The house in order: what holds of every module at once, read from the source alone."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import xlift

ROOT = Path(xlift.__file__).parent
FLOW = ("data", "tuning", "generation", "rating", "judging", "analysis", "annotation", "report")
BACK = {
    ("xlift.generation.allowed", "rating"),  # the words of a language tell which tokens an answer can hold
    ("xlift.rating.overview", "report"),  # rate --html writes the report's browser
}
SAME = {
    "HOST": "a server that answers this machine alone",
    "Made": "a type variable: what somebody makes",
    "READ": "characters of a text that are read",
    "VERSION": "of a rater; its signature tells it",
}
"""Names that several modules have for one and the same thing."""


@cache
def trees() -> dict[str, ast.Module]:
    """The source of every module by its name."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if "migrations" not in path.parts]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
    }


@cache
def imported(name: str) -> list[str]:
    """The modules of ours that a module imports, inside of its functions too."""
    found = []
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xlift"):
            parent = str(node.module).removeprefix("xlift").removeprefix(".")
            for one in node.names:
                named = [f"{parent}.{one.name}".strip("."), parent, f"{parent}.__init__".strip(".")]
                found.append(next(place for place in named if place in trees()))
    return found


def defined(tree: ast.Module) -> Iterator[str]:
    """The public classes, types and constants of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        alone = [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in node.targets if isinstance(node, ast.Assign) else alone:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (one.id for one in names if isinstance(one, ast.Name) and one.id[0].isupper())


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({name: {*imported(name)} - {name} for name in trees()}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_imports_follow_the_flow_of_data() -> None:
    back = {
        (f"xlift.{name}", package)
        for name in trees()
        for other in imported(name)
        if (package := other.partition(".")[0]) in FLOW and (own := name.partition(".")[0]) in FLOW
        if FLOW.index(package) > FLOW.index(own)
    }
    assert back == BACK


def test_no_function_changes_the_state_of_a_module() -> None:
    assert not [path.name for path in ROOT.rglob("*.py") if re.search(r"^ +global ", path.read_text("utf-8"), re.M)]


def test_one_word_names_one_thing() -> None:
    places = defaultdict(list)
    for name, tree in trees().items():
        for word in dict.fromkeys(defined(tree)):
            if not word.startswith("_") and word not in SAME:
                places[word].append(name)
    assert {word: found for word, found in places.items() if len(found) > 1} == {}


def test_nothing_is_written_for_nobody() -> None:
    written = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*") if path.suffix in {".py", ".html"}]
    used = Counter(word for text in written for word in re.findall(r"\w+", text))
    for name, tree in trees().items():
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and not node.decorator_list
                and node.name[:2] != "__"
            ):
                assert used[node.name] > 1, f"{name}.{node.name}"


def test_a_module_is_read_in_one_sitting() -> None:
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in ROOT.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 500} == {}
