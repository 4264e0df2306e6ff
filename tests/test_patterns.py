"""Every regular expression of the package is found by itself, and takes hostile texts in time that grows with them.

Those that functions build are seen while the functions run; one that none of them reaches is named.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import pytest

import xlift
from xlift import cleaning, importing
from xlift.judging.replies import read_values
from xlift.languages import LANGUAGES
from xlift.rating import answers, endings, ifeval_checks, ifeval_counts, negations, text
from xlift.rating.language import masks, mentions
from xlift.servers.completions import Features, adapted, too_long
from xlift.tuning import templates

METHODS = {"match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
USED = {*METHODS, "compile"}
LENGTH = 4_000
QUICK = 0.06
"""Seconds of processor time: a pattern that goes through a text again at each of its characters takes several."""
BOUNDED = {
    r"[^/]*(?P<": "the name of a file, of 255 bytes",
    r"[: -][ \n]{0,9}": "lines of settings, of 80 characters each",
}
"""How patterns begin that meet short texts alone, and what these are."""
NAMES = {"xlift.tuning.adapters": "names of layers, which are those of a model's class"}


class Use(NamedTuple):
    """A pattern, by which method it is used, and where."""

    pattern: re.Pattern[str]
    method: str
    module: str
    line: int


class Call(NamedTuple):
    """A call of a method that patterns have, and its pattern where that depends on no argument of a function."""

    method: str
    lines: range
    pattern: Any
    of_re: bool
    built: bool


@cache
def calls(module: Any) -> list[Call]:
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))))
    functions = [one for one in nodes if isinstance(one, ast.FunctionDef)]
    inside = {line for one in functions for line in range(one.lineno, (one.end_lineno or 0) + 1)}
    found = []
    for call in nodes:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in USED:
            owner, lines = call.func.value, range(call.lineno, (call.end_lineno or 0) + 1)
            of_re = isinstance(owner, ast.Name) and owner.id == "re" and bool(call.args)
            pattern = value_of(compiled(call) if of_re else owner, module)
            found.append(Call(call.func.attr, lines, pattern, of_re, lines[0] in inside))
    return found


def uses(module: Any) -> Iterator[Use]:
    """The uses of `re` in a module whose pattern does not depend on what a function is given."""
    for call in calls(module):
        if call.method in METHODS and isinstance(call.pattern, re.Pattern) and isinstance(call.pattern.pattern, str):
            yield Use(call.pattern, call.method, module.__name__, call.lines[0])


def compiled(call: ast.Call) -> ast.Call:
    """The pattern of a call such as re.sub(pattern, …), compiled alone."""
    flags = [one for one in call.keywords if one.arg == "flags"]
    return ast.Call(ast.Attribute(ast.Name("re", ast.Load()), "compile", ast.Load()), call.args[:1], flags)


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


@cache
def modules() -> list[Any]:
    names = [one.name for one in pkgutil.walk_packages(xlift.__path__, "xlift.")]
    left_out = ("__main__", ".migrations", ".integrations.")
    return [importlib.import_module(name) for name in names if not any(part in name for part in left_out)]


def stored_in(value: Any) -> Iterator[re.Pattern[str]]:
    """The patterns of a value of a module, however deep in tables."""
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from stored_in(one)


def slow_of(found: Iterable[Use]) -> list[str]:
    return [
        f"{use.module}:{use.line} {use.method} {use.pattern.pattern[:60]!r} of {text[:8]!r}"
        for use in found
        for text in hostile(use.pattern)
        if not use.pattern.pattern.startswith(tuple(BOUNDED)) and seconds(use, text) > QUICK < seconds(use, text)
    ]


def test_every_pattern_takes_a_hostile_text_in_time_that_grows_with_it() -> None:
    found = {(use.pattern, use.method): use for module in modules() for use in uses(module)}
    assert len(found) > 150
    for module in modules():
        for pattern in stored_in(dict(vars(module))):
            if not any((pattern, method) in found for method in METHODS):
                found[pattern, "finditer"] = Use(pattern, "finditer", module.__name__, 0)
    assert slow_of(found.values()) == []


FORMS = ("12 000", "1500000", "-5", "3.5", "J. K. Rowling", "São Paulo", "Москва", "İstanbul", "서울특별시", "北京")
WORDS = ("independent", "закон", "走る", "straße", "böcker", "ಮನೆ", "كتاب", "lava-louças")


def build(code: str) -> None:
    """Whatever builds patterns for a language."""
    for form in FORMS:
        answers._pattern((form,), code)
    answers._pattern(FORMS, code)
    for start, end in ((0, 1), (2, 6)):
        answers._is_whole("5 five or six", start, end, code, True)
    for word in WORDS:
        endings.case_forms(word, code)
        endings.other_forms("a b", f"{word} {word}", code)
    endings.other_forms("a b", "走る", code)
    negations.is_negated("not bonn is", 4, 8, code, "")
    text.occurrences("a cats b", "cats", code)
    for mark in ("P.S.", "Nota"):
        ifeval_checks._postscript("a", code, {"id": "", "postscript_marker": mark})
    ifeval_counts._sections("a", code, {"section_spliter": "Section"})
    mentions.without_mentions("They cook it.", code)


def build_more(folder: Path) -> None:
    """Whatever builds patterns of something else."""
    for kind, (check, _, needed) in ifeval_checks.INSTRUCTION_CHECKS.items():
        if not needed:
            check("One 漢字.", "ja", {"id": kind})
    for script in map(masks.scripts_of, ("fr", "ja", "hi")):
        masks.letters_outside(script), masks.all_but_letters_outside(script)
        masks.anything_outside(script), masks.letters_of(script, 40)
    text.cased_words("One two"), text.cased_words("One two", True)
    read_values("a", ["fluency", "politeness"]), too_long("a"), adapted(Features(schema=True), "a")
    templates._beginning(["<s>", "<|im_start|>", "<|im_end|>", "[INST]"])
    (folder / "fr.jsonl").touch()
    cleaning._made(folder, cleaning._MADE)
    importing._matching(folder, "*{language}.jsonl")


def test_every_pattern_that_functions_build_does_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, by_file = re._compile, {module.__file__: module for module in modules()}  # type: ignore[attr-defined]
    found: dict[tuple[str, int], dict[tuple[Any, ...], Use]] = {}

    def seen(pattern: Any, flags: Any) -> Any:
        method, caller = sys._getframe(1), sys._getframe(2)
        made = whole(pattern, flags)
        if caller.f_code.co_filename in by_file and isinstance(made.pattern, str):
            how = "finditer" if method.f_code.co_name == "compile" else method.f_code.co_name
            use = Use(made, how, by_file[caller.f_code.co_filename].__name__, caller.f_lineno)
            found.setdefault((use.module, use.line), {})[made, how] = use
        return made

    def built(module: Any) -> list[Call]:
        return [call for call in calls(module) if call.of_re and call.built and call.pattern is None]

    for module in filter(built, by_file.values()):
        for one in vars(module).values():
            if hasattr(one, "cache_clear"):
                one.cache_clear()
    monkeypatch.setattr(re, "_compile", seen)
    for code in sorted(LANGUAGES)[::2]:
        build(code)
    build_more(tmp_path)
    monkeypatch.undo()
    unseen = [
        f"{module.__name__}:{call.lines[0]}"
        for module in by_file.values()
        for call in built(module)
        if module.__name__ not in NAMES and not any((module.__name__, line) in found for line in call.lines)
    ]
    assert unseen == []
    assert slow_of(use for uses_there in found.values() for use in uses_there.values()) == []
