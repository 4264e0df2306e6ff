"""YAML read with care, and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from xlift.errors import ConfigError, shortened
from xlift.records import is_halved

MAX_ENTRIES, MAX_LEVELS = 100_000, 40
"""Of a study file: values with every alias written out, and levels."""


class _Loader(yaml.SafeLoader):
    """Stops at lists in lists in lists while it reads: each token inside takes as long as there are levels."""

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= MAX_LEVELS:
            raise RecursionError
        super().fetch_flow_collection_start(kind)  # type: ignore[no-untyped-call]


# e.g. read_yaml("{steps: 100, rate: 1e-4}", "study.yaml") → {"steps": 100, "rate": "1e-4"}
def read_yaml(text: str, where: str) -> Any:
    """What a YAML text says.

    Raises ConfigError where it is none, gives a setting twice, or makes a few lines endless by aliases.
    """
    try:
        if twice := [f"{where}:{line}: {said}" for line, said in _repeated(yaml.compose(text, _Loader), set())]:
            raise ConfigError(shortened(twice), "leave one of them")
        found = yaml.load(text, _Loader)
        if _size(found, {}) > MAX_ENTRIES:
            raise ConfigError(f"{where}: more than {MAX_ENTRIES:,} entries")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"{line}: not YAML, as a study file is: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # a date or a number that is none
        raise ConfigError(f"{where}: a value is not usable: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    return found


def _repeated(node: yaml.Node | None, seen: set[int]) -> Iterator[tuple[int, str]]:
    """Keys that a mapping holds twice, of which YAML would silently take the last: line, and what is wrong there."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for item in node.value:
        key, value = item if isinstance(item, tuple) else (None, item)
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                yield line, f"'{key.value}' is there already, on line {lines[key.value]}"
            lines.setdefault(key.value, line)
        yield from _repeated(value, seen)


# e.g. _size({"a": [1, 2], "b": {"c": "d"}}, {}) → 6
def _size(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many entries there are with every alias written out. Raises ValueError for a text that no file can hold."""
    if depth > MAX_LEVELS:
        raise RecursionError
    texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else []
    if any(isinstance(one, str) and is_halved(one) for one in texts):
        raise ValueError("a text holds half of a character (a lone surrogate)")
    if any(isinstance(one, str) and "\0" in one for one in texts):
        raise ValueError("a text holds the character NUL, which no path and no name may hold")
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(one, known, depth + 1) for one in inner)
    return known[id(value)]


def dump_yaml(settings: BaseModel) -> str:
    """Settings as YAML that loads back to the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
