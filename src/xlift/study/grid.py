"""The grid of runs that a study file spans: axes, ranges, included and excluded runs.

Under `training`, every setting takes one value or a list of values; a list is an axis, and the grid is the product of
all axes. `expand` turns the raw mapping into one mapping a run, guided by the types of `RunConfig`: a list given where
one value belongs is an axis, a list given where a list belongs (for instance `sources`) is a value.
"""

from __future__ import annotations

import itertools
import re
import typing
from typing import Any

from pydantic import BaseModel

from xlift.errors import nearest
from xlift.study.settings import RunConfig, flat

_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def matches(run: RunConfig, rule: dict[str, Any]) -> bool:
    """Whether a run has every value that a rule names; a list names alternatives."""
    settings = run.model_dump(mode="json")
    return all(
        _setting(settings, key) in (value if isinstance(value, list) else [value]) for key, value in rule.items()
    )


def _setting(settings: dict[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found[part]
    return found


def expand(model: type[BaseModel], raw: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the axes in `raw`, nested settings included, in the order they are written."""
    options = [[(key, value) for value in _choices(model, key, raw[key])] for key in raw]
    return [dict(combination) for combination in itertools.product(*options)]


def _choices(model: type[BaseModel], key: str, value: Any) -> list[Any]:
    field = model.model_fields.get(key)
    if field is None:
        return [value]
    wants_list, nested = shape_of(field.annotation)
    if isinstance(value, list) and (not wants_list or (value and all(isinstance(item, list) for item in value))):
        return [choice for item in value for choice in _choices(model, key, item)]
    if nested is not None and isinstance(value, dict):
        return list(expand(nested, value))
    return [value]


def shape_of(annotation: Any) -> tuple[bool, type[BaseModel] | None]:
    """Whether a field takes a list as one value, and the settings class it nests, if any."""
    parts = [annotation, *typing.get_args(annotation)]
    wants_list = any(typing.get_origin(part) is list for part in parts)
    nested = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
    return wants_list, None if wants_list else nested


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `change`, sections setting by setting."""
    found = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


RANGE = "log_range"


def range_problems(grid: dict[str, Any]) -> list[str]:
    return [
        f"training.{key}: {RANGE} takes the lowest value, the highest and how many, for instance "
        f"{{{RANGE}: [1e-5, 1e-3, 5]}} (found {value!r})"
        for key, value in grid.items()
        if isinstance(value, dict) and RANGE in value and not _is_range(value)
    ]


def _is_range(value: dict[str, Any]) -> bool:
    numbers = [_number(one) for one in value[RANGE]] if isinstance(value[RANGE], list) else []
    if set(value) != {RANGE} or len(numbers) != 3 or not all(isinstance(one, int | float) for one in numbers):
        return False
    low, high, count = numbers
    return 0 < low < high and count == int(count) and count >= 2


def with_ranges(grid: dict[str, Any]) -> dict[str, Any]:
    """`{log_range: [low, high, count]}` as a list of values at equal ratios, to three digits."""
    found = {key: value for key, value in grid.items() if not (isinstance(value, dict) and RANGE in value)}
    for key, value in grid.items():
        if isinstance(value, dict) and RANGE in value and _is_range(value):
            low, high, count = (float(_number(one)) for one in value[RANGE])
            ratio = (high / low) ** (1 / (count - 1))
            found[key] = [float(f"{low * ratio**i:.3g}") for i in range(int(count))]
    return found


def exclude_problems(rules: list[dict[str, Any]]) -> list[str]:
    known = RunConfig().model_dump(mode="json")
    choices = set(flat(known))
    return [
        f"exclude: unknown setting '{key}'; {nearest(key, choices)}"
        for rule in rules
        for key in rule
        if key not in choices
    ]


def with_numbers(model: type[BaseModel], raw: dict[str, Any]) -> dict[str, Any]:
    """YAML reads `2e-4` as text (it wants `2.0e-4`): turn such text back into numbers where a number belongs."""
    return {key: _number(value) if key in model.model_fields else value for key, value in raw.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
