"""Every regular expression of the package is found by itself, and takes hostile texts in time that grows with them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import time
from collections.abc import Iterator
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import xlift

METHODS = {"match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
LENGTH = 6_000
QUICK = 0.12
"""Seconds of processor time: a pattern that goes through a text again at each of its characters takes several."""
BOUNDED = {
    r"\s*\(": "the name of a language",
    r"(?<=\d)(?=(?:\d": "a number of a prompt's answers",
    r"[: -][ \n]{0,9}": "lines of settings, of 80 characters each",
}
"""How patterns begin that meet short texts alone, and what these are."""


class Use(NamedTuple):
    """A pattern, by which method it is used, and where."""

    pattern: re.Pattern[str]
    method: str
    module: str
    line: int


def uses(module: Any) -> Iterator[Use]:
    """The uses of `re` in a module whose pattern does not depend on what a function is given."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
            owner = call.func.value
            if isinstance(owner, ast.Name) and owner.id == "re" and call.args:
                made = ast.Call(ast.Attribute(owner, "compile", ast.Load()), call.args[:1], flags_of(call))
            else:
                made = owner  # type: ignore[assignment]
            found = value_of(made, module)
            if isinstance(found, re.Pattern) and isinstance(found.pattern, str):
                yield Use(found, call.func.attr, module.__name__, call.lineno)


def flags_of(call: ast.Call) -> list[ast.keyword]:
    return [one for one in call.keywords if one.arg == "flags"]


def value_of(expression: ast.expr, module: Any) -> Any:
    """What an expression of names of the module is; None where it is more."""
    if not isinstance(expression, ast.Call | ast.Name | ast.Attribute | ast.Subscript):
        return None
    whole = ast.fix_missing_locations(ast.Expression(expression))
    try:
        return eval(compile(whole, module.__file__, "eval"), dict(vars(module)) | {"re": re})
    except Exception:
        return None


def texts_in(items: Any) -> Iterator[str]:
    """Characters and words that stand in a parsed pattern, one of each class of characters."""
    word = ""
    for code, value in items:
        if code is _constants.LITERAL:
            word += chr(value)
            continue
        yield word
        word = ""
        if code is _constants.IN:
            yield from (chr(one if kind is _constants.LITERAL else one[0]) for kind, one in value if plain(kind))
        elif code in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            yield from texts_in(value[2])
        elif code is _constants.SUBPATTERN:
            yield from texts_in(value[3])
        elif code is _constants.BRANCH:
            for one in value[1][:4]:
                yield from texts_in(one)
        elif code in (_constants.ASSERT, _constants.ASSERT_NOT):
            yield from texts_in(value[1])
    yield word


def plain(kind: Any) -> bool:
    return kind in (_constants.LITERAL, _constants.RANGE)


def hostile(pattern: re.Pattern[str]) -> list[str]:
    """Long texts of what a pattern looks for again and again, and never to its end."""
    own = [one for one in dict.fromkeys(texts_in(_parser.parse(pattern.pattern, pattern.flags))) if one][:6]
    mixed = [*(one + "a" for one in own[:3]), "".join(own[:3]) or "-"]
    pieces = dict.fromkeys([" ", "1", "a", "\n", "a b. ", *own, *mixed])
    return [piece * (LENGTH // len(piece)) + "\0" for piece in pieces]


def seconds(use: Use, text: str) -> float:
    began = time.process_time()
    method = getattr(use.pattern, use.method)
    found = method("", text) if use.method in ("sub", "subn") else method(text)
    if use.method == "finditer":
        list(found)
    return time.process_time() - began


def modules() -> Iterator[Any]:
    for one in pkgutil.walk_packages(xlift.__path__, "xlift."):
        if not one.name.endswith("__main__") and ".migrations" not in one.name and ".integrations." not in one.name:
            yield importlib.import_module(one.name)


def test_every_pattern_takes_a_hostile_text_in_time_that_grows_with_it() -> None:
    found = {(use.pattern, use.method): use for module in modules() for use in uses(module)}
    assert len(found) > 150
    slow = [
        f"{use.module}:{use.line} {use.method} {use.pattern.pattern[:60]!r} of {text[:8]!r}"
        for use in found.values()
        for text in hostile(use.pattern)
        if not use.pattern.pattern.startswith(tuple(BOUNDED)) and seconds(use, text) > QUICK < seconds(use, text)
    ]
    assert slow == []
