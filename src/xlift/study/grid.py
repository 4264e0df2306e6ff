"""The grid of runs that a study file spans: axes, ranges, included and excluded runs.

Under `training`, every setting takes one value or a list of values; a list is an axis, and the grid is the product of
all axes. `expand` turns the raw mapping into one mapping a run, guided by the types of `RunConfig`: a list given where
one value belongs is an axis, a list given where a list belongs (for instance `sources`) is a value.
"""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from xlift.errors import ConfigError, nearest
from xlift.study.labels import run_settings
from xlift.study.runs import RunConfig
from xlift.study.settings import as_number, flat, with_numbers


# e.g. matches(RunConfig(seed=3), {"seed": [1, 3], "adaptation.method": "lora"}) → True
def matches(run: RunConfig, rule: dict[str, Any]) -> bool:
    """Whether a run has every value that a rule names; a list names alternatives."""
    settings = run.model_dump(mode="json")
    return all(
        (found := _setting(settings, key)) == value or (isinstance(value, list) and found in value)
        for key, value in rule.items()
    )


# e.g. _setting({"adaptation": {"rank": 4}}, "adaptation.rank") → 4
def _setting(settings: dict[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found[part]
    return found


# e.g. len(expand(RunConfig, {"seed": [1, 2], "steps": [10, 20, 30]})) → 6
def expand(model: type[BaseModel], raw: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the axes in `raw`, nested settings included, in the order they are written."""
    options = [[(key, value) for value in _choices(model, key, raw[key])] for key in raw]
    if (count := math.prod(map(len, options))) > MAX_RUNS:
        raise ConfigError(f"{count:,} combinations; a study has at most {MAX_RUNS:,} runs", "name fewer values")
    return [dict(combination) for combination in itertools.product(*options)]


# e.g. _choices(RunConfig, "seed", [1, 2]) → [1, 2]
# e.g. _choices(RunConfig, "adaptation", {"targets": ["q_proj", "v_proj"]}) → [{"targets": ["q_proj", "v_proj"]}]
# e.g. _choices(RunConfig, "adaptation", {"rank": [4, 8]}) → [{"rank": 4}, {"rank": 8}]
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


# e.g. merged({"a": {"rank": 4, "alpha": 8}}, {"a": {"rank": 16}}) → {"a": {"rank": 16, "alpha": 8}}
def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `change`, sections setting by setting."""
    found = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


RANGE = "log_range"
MAX_VALUES = 1_000
MAX_RUNS = 10_000


def range_problems(value: Any, where: str) -> list[str]:
    """What is wrong with the ranges in raw settings, at any depth."""
    if isinstance(value, list):
        return [problem for item in value for problem in range_problems(item, where)]
    if not isinstance(value, dict):
        return []
    if RANGE not in value:
        return [problem for key, item in value.items() for problem in range_problems(item, f"{where}.{key}")]
    if _is_range(value):
        return []
    return [
        f"{where}: {RANGE} takes the lowest value, the highest and how many (2 to {MAX_VALUES:,}), for instance "
        f"{{{RANGE}: [1e-5, 1e-3, 5]}} (found {value!r:.100})"
    ]


# e.g. _is_range({"log_range": [1e-5, 1e-3, 3]}) → True
# e.g. _is_range({"log_range": [1e-3, 1e-5, 3]}) → False
def _is_range(value: dict[str, Any]) -> bool:
    numbers = [as_number(one) for one in value[RANGE]] if isinstance(value[RANGE], list) else []
    if set(value) != {RANGE} or len(numbers) != 3 or not all(type(one) in (int, float) for one in numbers):
        return False
    low, high, count = numbers
    return bool(0 < low < high < 1e300 and 2 <= count <= MAX_VALUES and count == int(count))


# e.g. with_ranges({"learning_rate": {"log_range": [1e-5, 1e-3, 3]}}) → {"learning_rate": [1e-05, 0.0001, 0.001]}
# e.g. with_ranges([{"log_range": ["1e-4", "1e-3", 4]}, 0.5]) → [[0.0001, 0.000215, 0.000464, 0.001], 0.5]
def with_ranges(value: Any) -> Any:
    """`{log_range: [low, high, count]}`, at any depth, as a list of values at equal ratios, to three digits.

    A setting whose range is wrong is left out: `range_problems` says so.
    """
    if isinstance(value, list):
        return [with_ranges(item) for item in value]
    if not isinstance(value, dict):
        return value
    if RANGE not in value:
        wrong = [key for key, item in value.items() if isinstance(item, dict) and RANGE in item and not _is_range(item)]
        return {key: with_ranges(item) for key, item in value.items() if key not in wrong}
    if not _is_range(value):
        return value
    low, high, count = (float(as_number(one)) for one in value[RANGE])
    ratio = (high / low) ** (1 / (count - 1))
    return [float(f"{low * ratio**i:.3g}") for i in range(int(count))]


# e.g. read_rules([{"adaptation": {"rank": [4, 8]}, "steps": 9}])[0] → [{"adaptation.rank": [4, 8], "steps": 9}]
def read_rules(rules: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rules of `exclude` with one key a setting and each value as a run has it, and what is wrong with them."""
    choices = set(flat(RunConfig().model_dump(mode="json", exclude={"given"})))
    found: list[dict[str, Any]] = []
    problems = []
    for number, rule in enumerate(rules):
        named = flat(with_numbers(RunConfig, rule))
        problems += [
            f"exclude.{number}: unknown setting '{key}'; {nearest(str(key), choices)}" for key in named.keys() - choices
        ]
        if not rule:
            problems.append(f"exclude.{number}: a rule names at least one setting")
        found.append({})
        for key in [key for key in named if key in choices]:
            try:
                found[-1][key] = _as_in_runs(key, named[key])
            except ValidationError as error:
                said = error.errors()[0]
                problems.append(f"exclude.{number}.{key}: {said['msg']} (found {said['input']!r:.60})")
    return found, problems


# e.g. _as_in_runs("adaptation.alpha", [16, "3.2e1"]) → [16.0, 32.0]
def _as_in_runs(key: str, value: Any) -> Any:
    """The value, or the list of alternatives, as a run's settings write it. Raises ValidationError."""
    model: type[BaseModel] = RunConfig
    *sections, last = key.split(".")
    for section in sections:
        model = cast(type[BaseModel], shape_of(model.model_fields[section].annotation)[1])
    field = model.model_fields[last]
    kind: Any = Annotated[field.annotation, field]
    one = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    value = with_numbers(field.annotation, value)
    if isinstance(value, list) and not shape_of(field.annotation)[0]:
        return [one.dump_python(one.validate_python(item), mode="json") for item in value]
    return one.dump_python(one.validate_python(value), mode="json")


def collapsed(runs: Sequence[RunConfig]) -> list[str]:
    """What to say of settings that differ where the run is one and the same, so that no point of a grid is lost unsaid.

    `checkpoint_every: [100, 200]` asks for two runs and gives one; `rank: [4, 8]` with full fine-tuning is no such
    case, since a rank is no setting of it.
    """
    paths = {path.rpartition(".")[2]: path for path in flat(RunConfig().model_dump(mode="json", exclude={"given"}))}
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run.content_hash, []).append(run_settings(run) | {"name": run.instructions.name})
    found: dict[str, dict[str, None]] = {}
    for name, alike in itertools.product(paths, groups.values()):
        values = dict.fromkeys(str(settings[name]) for settings in alike)
        if len(values) > 1:
            found.setdefault(paths[name], {}).update(values)
    return [
        f"training.{path}: {' and '.join(values)} give one and the same run, since its weights are the same; name one"
        for path, values in found.items()
    ]


def unmatched(rules: Sequence[dict[str, Any]], runs: Sequence[RunConfig]) -> list[str]:
    """What to say of rules that match no run: which values there are."""
    problems = []
    for number, rule in enumerate(rules):
        if any(matches(run, rule) for run in runs):
            continue
        absent = [key for key, value in rule.items() if not any(matches(run, {key: value}) for run in runs)]
        for key in absent:
            there = list(dict.fromkeys(str(_setting(run.model_dump(mode="json"), key)) for run in runs))
            shown = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
            problems.append(f"exclude.{number}: no run has {key} {rule[key]}; there are: {shown}")
        if not absent:
            problems.append(f"exclude.{number}: no run has all of {rule} together")
    return problems
