"""The worked examples beside the rules: `# e.g. function("text") → value`, and of raters `# e.g. ru: "text" → 2`."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import xlift
from xlift.rating.answers import rate_answers
from xlift.rating.constraints import rate_constraint
from xlift.rating.fluency import rate_fluency
from xlift.rating.language import rate_text
from xlift.rating.language.wordlists import vocabulary

ROOT = Path(xlift.__file__).parent
RATERS = sorted((ROOT / "rating").rglob("*.py"))
FILES = [*RATERS, *(path for path in sorted(ROOT.rglob("*.py")) if path not in RATERS)]
# A language, what the prompt asks for where it asks for something, the response, and the verdict.
VERDICT = re.compile(r"(?P<language>[a-z]{2,3}) ?(?P<asked>[\[{].*?[\]}])?: (?P<text>(?P<quote>[\"']).*(?P=quote))")


def examples() -> Iterator[Any]:
    for path in FILES:
        module, text = (
            ".".join(["xlift", *path.relative_to(ROOT).with_suffix("").parts]),
            path.read_text(encoding="utf-8"),
        )
        for token in tokenize.generate_tokens(io.StringIO(text).readline) if "# e.g." in text else ():
            if token.type == tokenize.COMMENT and token.string.startswith("# e.g."):
                shown, _, value = token.string.removeprefix("# e.g.").strip().rpartition(" → ")
                if path in RATERS or is_call(shown):
                    yield pytest.param(module, shown, value, id=f"{module[6:]}:{token.start[0]}")


def is_call(shown: str) -> bool:
    """Whether an example calls something; outside of the raters others tell of a case in words."""
    try:
        return any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(shown, mode="eval")))
    except SyntaxError:
        return False


def verdict(module: str, language: str, asked: Any, text: str) -> float | None:
    record = {"text": text, "language": language}
    if module == "xlift.rating.answers":
        return rate_answers(record | {"answers": asked})[0]
    if module == "xlift.rating.constraints":
        return rate_constraint(record | {"constraint": asked})[0]
    return rate_fluency(record)[0] if module == "xlift.rating.fluency" else rate_text(text, language)[0]


@pytest.mark.parametrize(("module", "shown", "value"), examples())
def test_a_worked_example_is_true(module: str, shown: str, value: str) -> None:
    expected = ast.literal_eval(value)
    if found := VERDICT.fullmatch(shown):
        asked = ast.literal_eval(found["asked"] or "None")
        assert verdict(module, found["language"], asked, ast.literal_eval(found["text"])) == expected
    else:
        assert eval(shown, {"vocabulary": vocabulary, **vars(importlib.import_module(module))}) == expected


def test_every_module_of_the_raters_has_worked_examples() -> None:
    # What reads files and draws tables has no rule of thumb.
    exempt = {"__init__", "files", "lcb", "overview", "tally", "inspect_logs"}
    told = {parameters.values[0].rpartition(".")[2] for parameters in examples()}
    assert {path.stem for path in RATERS} - exempt <= told
