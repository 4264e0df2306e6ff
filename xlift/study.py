"""The study file as a whole: the grid of runs that its settings span, and reading it.

Under `training`, every setting takes one value or a list of values; a list is an axis, and the grid is the product of
all axes. `expand` turns the raw mapping into one mapping a run, guided by the types of `RunConfig`: a list given where
one value belongs is an axis, a list given where a list belongs (for instance `sources`) is a value.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from xlift.errors import ConfigError, nearest
from xlift.records import fingerprint
from xlift.settings import (
    BUILTIN,
    Adaptation,
    Decoding,
    Halving,
    Judge,
    Prompts,
    PromptSet,
    Ray,
    Report,
    RunConfig,
    Settings,
    Source,
    Validation,
    flat,
)

_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Study(Settings):
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    """The question that the study answers; opens the report."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of `RunConfig`, each one value or a list of values (an axis of the grid)."""
    include: list[dict[str, Any]] = Field([])
    """More runs: settings that replace those of `training`, each spanning a grid of its own."""
    exclude: list[dict[str, Any]] = Field([])
    """Runs to leave out: those that have every value of one of these rules; a list names alternatives."""
    include_base: bool = True
    """Also let each untuned base model answer, as the reference."""
    prompts: Prompts = Prompts()
    decoding: Decoding = Decoding()
    raters: list[Literal["language", "language_lcb", "fluency", "constraint", "answers"]] = Field(
        ["language", "fluency", "constraint", "answers"]
    )
    judges: list[Judge] = Field([])
    """Judge models that rate the answers, too."""
    validation: Validation = Validation()
    halving: Halving | None = None
    """Stop hopeless runs early; off where it is not given."""
    tracking: list[Literal["wandb", "mlflow", "tensorboard", "trackio"]] = Field([])
    """Where training curves are sent, besides train.jsonl."""
    executor: Literal["local", "ray"] = "local"
    """Where runs are worked on: in this process, or as tasks of a Ray cluster."""
    ray: Ray = Ray()
    report: Report = Report()
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @field_validator("judges")
    @classmethod
    def _named_apart(cls, judges: list[Judge]) -> list[Judge]:
        labels = [judge.label for judge in judges]
        alike = sorted({label for label in labels if labels.count(label) > 1})
        if alike:
            raise ValueError(f"several judges are called {', '.join(alike)}; give each a name of its own")
        return judges

    def runs(self) -> list[RunConfig]:
        """Every run of the grid, the untuned base models first.

        Where weights are drawn back to the base, the fully tuned run is in the grid too.
        """
        grids = [self.training, *self.include]
        named = [RunConfig.model_validate(settings) for grid in grids for settings in expand(RunConfig, grid)]
        tuned = [run for run in named if not any(_matches(run, rule) for rule in self.exclude)]
        keep = {"model", "revision", "template", "system"}
        bases = [RunConfig(adaptation=Adaptation(method="none"), **run.model_dump(include=keep)) for run in tuned]
        drawn = [one for run in tuned for one in (run.trained, run)]
        found = {run.content_hash: run for run in [*(bases if self.include_base else []), *drawn]}
        return list(found.values())


def _matches(run: RunConfig, rule: dict[str, Any]) -> bool:
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
    wants_list, nested = _shape(field.annotation)
    if isinstance(value, list) and (not wants_list or (value and all(isinstance(item, list) for item in value))):
        return [choice for item in value for choice in _choices(model, key, item)]
    if nested is not None and isinstance(value, dict):
        return list(expand(nested, value))
    return [value]


def _shape(annotation: Any) -> tuple[bool, type[BaseModel] | None]:
    """Whether a field takes a list as one value, and the settings class it nests, if any."""
    parts = [annotation, *typing.get_args(annotation)]
    wants_list = any(typing.get_origin(part) is list for part in parts)
    nested = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
    return wants_list, None if wants_list else nested


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply `key=value` overrides (dots reach into sections).

    Raises ConfigError that lists every problem at once.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such study file", "xlift ls shows what is there; studies/ has examples")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        hint = None if path.suffix in {".yaml", ".yml"} else "files of responses or ratings end in .jsonl"
        raise ConfigError(f"{where}: a study file is YAML: {getattr(error, 'problem', error)}", hint) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a study file is a mapping of settings, found {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    for override in overrides:
        _apply_override(raw, override)
    return parse_study(raw, where=str(path), folder=path.parent)


def parse_study(raw: dict[str, Any], where: str = "study", folder: Path | None = None) -> Study:
    """Check a raw mapping and fill in what is left to defaults. Paths are taken relative to `folder`."""
    problems = problems_of(Study, raw)
    training, changes = raw.get("training") or {}, raw.get("include") or []
    changes = [{}, *(change for change in changes if isinstance(change, dict))]
    grids = [_merged(training, change) for change in changes] if isinstance(training, dict) else []
    grids = [_with_numbers(RunConfig, grid) for grid in grids]
    problems += [problem for grid in grids for problem in _range_problems(grid)]
    grids = [_with_ranges(grid) for grid in grids]
    problems += [problem for grid in grids for problem in _training_problems(grid)]
    exclude = [flat(_with_numbers(RunConfig, rule)) for rule in raw.get("exclude") or [] if isinstance(rule, dict)]
    problems += _exclude_problems(exclude)
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in dict.fromkeys(problems)], "xlift check STUDY.yaml")
    located = [_locate(_with_defaults(RunConfig, grid), folder or Path()) for grid in grids]
    study = Study.model_validate({**raw, "training": located[0], "include": located[1:], "exclude": exclude})
    if not study.runs():
        raise ConfigError(f"{where}: exclude: no run is left", "xlift check STUDY.yaml")
    return _locate_files(study, folder or Path())


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `change`, sections setting by setting."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


RANGE = "log_range"


def _range_problems(grid: dict[str, Any]) -> list[str]:
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


def _with_ranges(grid: dict[str, Any]) -> dict[str, Any]:
    """`{log_range: [low, high, count]}` as a list of values at equal ratios, to three digits."""
    found = {key: value for key, value in grid.items() if not (isinstance(value, dict) and RANGE in value)}
    for key, value in grid.items():
        if isinstance(value, dict) and RANGE in value and _is_range(value):
            low, high, count = (float(_number(one)) for one in value[RANGE])
            ratio = (high / low) ** (1 / (count - 1))
            found[key] = [float(f"{low * ratio**i:.3g}") for i in range(int(count))]
    return found


def _exclude_problems(rules: list[dict[str, Any]]) -> list[str]:
    known = RunConfig().model_dump(mode="json")
    choices = set(flat(known))
    return [
        f"exclude: unknown setting '{key}'; {nearest(key, choices)}"
        for rule in rules
        for key in rule
        if key not in choices
    ]


def _training_problems(training: dict[str, Any]) -> list[str]:
    found = [problem for settings in expand(RunConfig, training) for problem in problems_of(RunConfig, settings)]
    return [f"training.{problem}" for problem in dict.fromkeys(found)]


def problems_of(model: type[BaseModel], raw: dict[str, Any]) -> list[str]:
    """What is wrong with raw settings, each with where it stands; an empty list if nothing is."""
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return [_describe(model, dict(item)) for item in error.errors()]
    return []


def _describe(model: type[BaseModel], item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        owner = _owner(model, item["loc"][:-1])
        choices = owner.model_fields if owner else model.model_fields
        return f"{'.'.join(location)}: unknown setting '{location[-1]}'; {nearest(location[-1], choices)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{'.'.join(location)}: {message} (found {item['input']!r})" if location else message


def _owner(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or owner is None:
            continue
        field = owner.model_fields.get(part)
        owner = _settings_class(field.annotation) if field else None
    return owner


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _settings_class(part))), None)


def _with_numbers(model: type[BaseModel], raw: dict[str, Any]) -> dict[str, Any]:
    """YAML reads `2e-4` as text (it wants `2.0e-4`): turn such text back into numbers where a number belongs."""
    return {key: _number(value) if key in model.model_fields else value for key, value in raw.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def _with_defaults(model: type[BaseModel], raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with every setting written out, so that the resolved study file is complete."""
    filled = dict(raw)
    for key, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        value = filled.get(key, default)
        nested = _shape(field.annotation)[1]
        if nested is not None:
            values = value if isinstance(value, list) else [value]
            dumped = [_with_defaults(nested, v if isinstance(v, dict) else v.model_dump(mode="json")) for v in values]
            filled[key] = dumped if isinstance(value, list) else dumped[0]
        elif key not in filled:
            filled[key] = _plain(default)
    return filled


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _locate(training: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Local data files and model folders as absolute paths, data files with the hash of their content."""
    located = dict(training)
    models = training["model"] if isinstance(training["model"], list) else [training["model"]]
    paths = [_locate_model(name, folder) for name in models]
    located["model"] = paths if isinstance(training["model"], list) else paths[0]
    sets = training["instructions"] if isinstance(training["instructions"], list) else [training["instructions"]]
    placed = [{**one, "sources": _locate_sources(one["sources"], folder)} for one in sets]
    located["instructions"] = placed if isinstance(training["instructions"], list) else placed[0]
    return located


def _locate_model(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if (folder / name).is_dir() else name


def _locate_sources(sources: list[Any], folder: Path) -> list[Any]:
    return [
        _locate_sources(item, folder) if isinstance(item, list) else _locate_source(item, folder) for item in sources
    ]


def _locate_source(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    source = Source.model_validate(raw)
    if source.path.startswith("hub:"):
        return source.model_dump(mode="json")
    path = builtin_path("instructions.en.jsonl") if source.path == BUILTIN else (folder / source.path).resolve()
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    shown = BUILTIN if source.path == BUILTIN else str(path)
    return {**source.model_dump(mode="json"), "path": shown, "sha256": digest}


def _locate_files(study: Study, folder: Path) -> Study:
    def placed(prompt_set: PromptSet) -> PromptSet:
        kind, colon, where = prompt_set.source.partition(":")
        if kind == "builtin":
            return prompt_set
        located = f"{kind}:{(folder / where).resolve()}" if colon else str((folder / kind).resolve())
        return prompt_set.model_copy(update={"source": located})

    prompts = study.prompts
    update = {"validation": placed(prompts.validation), "test": placed(prompts.test)}
    judges = [
        judge.model_copy(update={"rubrics": str((folder / judge.rubrics).resolve())}) if judge.rubrics else judge
        for judge in study.judges
    ]
    return study.model_copy(update={"prompts": prompts.model_copy(update=update), "judges": judges})


def builtin_path(name: str) -> Path:
    """A data file that ships with xlift."""
    return Path(__file__).parent / "data" / "builtin" / name


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{override}' is not of the form key=value", "for instance training.steps=50")
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"override '{override}': '{section}' is not a section of the study file")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not YAML") from None


def dump_yaml(settings: BaseModel) -> str:
    """Settings as YAML that loads back to the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def run_labels(runs: Sequence[RunConfig]) -> list[str]:
    """A short readable name for each run: what differs between the runs, and always the adaptation."""
    parts = [_label_parts(run) for run in runs]
    tuned = [part for part, run in zip(parts, runs, strict=True) if not run.untuned]
    varied = [key for key in parts[0] if len({part[key] for part in tuned}) > 1] if parts else []
    return [_join_label(part, run, runs, varied) for part, run in zip(parts, runs, strict=True)]


def _join_label(part: dict[str, str], run: RunConfig, runs: Sequence[RunConfig], varied: list[str]) -> str:
    if run.untuned:
        several = len({(other.model, other.revision) for other in runs}) > 1
        return f"base-{part['model']}" if several else "base"
    shown = [part[key] for key in part if key in varied or key in {"adaptation", "learning_rate"}]
    return "-".join(shown)


def _label_parts(run: RunConfig) -> dict[str, str]:
    named = {
        "model": Path(run.model.split(":")[-1]).name,
        "instructions": run.instructions.label,
        "adaptation": run.adaptation.label,
        "learning_rate": f"lr{rate_text(run.learning_rate)}",
        "steps": f"{run.steps}steps" if run.steps else "",
        "epochs": f"{run.epochs:g}epochs" if run.epochs else "",
        "seed": f"s{run.seed}",
    }
    return named | dict(_other_parts(run))


def rate_text(value: float) -> str:
    """A learning rate as people write it: 2e-4."""
    text = f"{value:.6g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value < 1 else text


def _other_parts(run: RunConfig) -> Iterator[tuple[str, str]]:
    done = {"model", "instructions", "adaptation", "learning_rate", "steps", "epochs", "seed"}
    for key, value in run.model_dump(mode="json").items():
        if key not in done:
            yield key, f"{key}={fingerprint(value, length=4) if isinstance(value, str) else value}"
