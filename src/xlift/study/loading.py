"""A study file read, checked, and completed: every problem told at once, every path absolute."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from xlift.data.tabular import content_sha256
from xlift.errors import ConfigError, nearest, shortened
from xlift.hub import folder_sha256
from xlift.redaction import HIDDEN, redacted
from xlift.study.data import BUILTIN, NO_PROMPTS, PromptSet, Source
from xlift.study.grid import collapsed, expand, merged, range_problems, read_rules, shape_of, unmatched, with_ranges
from xlift.study.runs import FILLED_IN, RunConfig
from xlift.study.served import Decoding, Model
from xlift.study.settings import with_numbers
from xlift.study.study import Study
from xlift.study.yaml_text import read_yaml


def load_study(path: str | Path, overrides: Sequence[str] = (), resolved: bool = False) -> Study:
    """Read a study file and apply `key=value` overrides (dots reach into sections).

    A `resolved` file, one of a study folder, is believed: nothing outside is looked at, so that a study can be read
    where its data and models are not, or have changed since.

    Raises ConfigError that lists every problem at once.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such study file", "xlift ls shows what is there; studies/ has examples")
    named = path.suffix in {".yaml", ".yml"}
    responses = f"xlift import {shlex.quote(str(path))} --as results/NAME makes a study of a file of responses"
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except ConfigError as error:
        raise ConfigError(error.problems, error.hint if named else responses) from None
    if not isinstance(raw, dict):
        problem = f"{path}: a study file is a mapping of settings, found {type(raw).__name__}"
        raise ConfigError(problem, None if named else responses)
    raw.setdefault("name", path.stem)
    for override in overrides:
        _apply_override(raw, override)
    return parse_study(raw, str(path), path.parent, resolved)


def read_overridden(raw: dict[str, Any], overrides: Sequence[str]) -> Study:
    """A study from raw settings, to which the overrides are applied; paths are relative to the working directory."""
    for override in overrides:
        _apply_override(raw, override)
    return parse_study(raw, folder=Path.cwd())


def parse_study(raw: dict[str, Any], where: str = "study", folder: Path | None = None, resolved: bool = False) -> Study:
    """Check a raw mapping and fill in what is left to defaults. Paths are taken relative to `folder`."""
    if isinstance(raw.get("models"), dict):  # a resolved file of before models could be named
        raw = {**raw, "model_hashes": raw["models"], "models": []}
    problems = problems_of(Study, raw)
    training = raw.get("training") or {}
    # Without settings of training, a study of models trains nothing.
    changes = [*([] if raw.get("models") and not training else [{}]), *_mappings(raw, "include")]
    grids = [merged(training, change) for change in changes] if isinstance(training, dict) else []
    problems += [problem for grid in grids for problem in range_problems(grid, "training")]
    grids = [with_ranges(with_numbers(RunConfig, grid)) for grid in grids]
    problems += [problem for grid in grids for problem in _training_problems(grid)]
    exclude, wrong = read_rules(_mappings(raw, "exclude"))
    _refuse([*problems, *wrong], where)
    filled = [_with_defaults(RunConfig, grid) for grid in grids]
    located = filled if resolved else [_locate(grid, folder or Path()) for grid in filled]
    placed = exclude if resolved else [_locate_rule(rule, folder or Path()) for rule in exclude]
    models = [_locate_given(one, None if resolved else folder or Path()) for one in raw.get("models") or []]
    hashes = raw.get("model_hashes", {}) if resolved else _model_hashes(located, models)
    if len(located) == len(_mappings(raw, "include")):
        located.insert(0, {})
    filled_in = {"exclude": placed, "models": models, "model_hashes": hashes}
    study = Study.model_validate({**raw, "training": located[0], "include": located[1:], **filled_in})
    if resolved:
        return study
    _refuse([*unmatched(study.exclude, study.named_runs()), *_idle_includes(study)], where)
    tuned = study.tuned_runs()
    _refuse([_UNSWAPPABLE] if any(run.unswappable for run in tuned) else [], where)
    _refuse(collapsed(tuned) if tuned or study.models else ["exclude: no run is left"], where)
    _refuse([*_twice(study), *_unservable(study)], where)
    return _locate_files(study, folder or Path())


_UNSWAPPABLE = (
    "training.swap: wants English sources and others, with sizes of their own and none of all together: "
    "[{path: builtin, size: 64}, {path: builtin, language: fr, size: 40}]"
)


def _idle_includes(study: Study) -> list[str]:
    """What to say of entries of `include` all of whose runs are named before them."""
    named: set[str] = set()
    problems = []
    for number, settings in enumerate([study.training, *study.include]):
        hashes = {run.content_hash for run in study.named_by(settings)}
        if number and not hashes - named:
            problems.append(f"include.{number - 1}: adds no run: what it names is in the grid already; leave it out")
        named |= hashes
    return problems


def _refuse(problems: Iterable[str], where: str) -> None:
    said = shortened([f"{where}: {problem}" for problem in dict.fromkeys(problems)])
    if said:
        raise ConfigError(said, f"edit {where}" if where != "study" else None)


def _mappings(raw: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Those of a list of mappings that are; what else is there is refused by type."""
    given = raw.get(key)
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _training_problems(training: dict[str, Any]) -> list[str]:
    try:
        runs = expand(RunConfig, training)
    except ConfigError as error:
        return [f"training: {problem}" for problem in error.problems]
    if not runs:
        return ["training: a list without values names no run"]
    found = [f"{name}: no setting of training; the study has it" for name in FILLED_IN if name in training]
    found += [problem for settings in runs for problem in problems_of(RunConfig, settings)]
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
        owner = _owner(model, item["loc"][:-1]) or model
        choices = [name for name in owner.model_fields if owner is not RunConfig or name not in FILLED_IN]
        hint = _elsewhere(location[-1]) if model in (Study, RunConfig) else ""
        return f"{'.'.join(location)}: unknown setting '{location[-1]}'; {hint}{nearest(location[-1], choices)}"
    message = item["msg"].removeprefix("Value error, ")
    if not location:
        return message
    shown = "" if location[-1] == "api_key_env" else f" (found {redacted(repr(_masked(item['input']))):.100})"
    return f"{'.'.join(location)}: {message}{shown}"


# e.g. _elsewhere("exclude") → "it stands at the top of the file; "
# e.g. _elsewhere("rank") → "it is a setting of training.adaptation; "
def _elsewhere(name: str) -> str:
    """Where a setting stands that was written in a wrong place; "" for what is none."""
    if name in Study.model_fields:
        return "it stands at the top of the file; "
    own = {f"training.{key}": field for key, field in RunConfig.model_fields.items() if key not in FILLED_IN}
    sections = {key: section_class(field.annotation) for key, field in {**own, **Study.model_fields}.items()}
    places = [key for key, kind in {**sections, "training": RunConfig}.items() if kind and name in kind.model_fields]
    return f"it is a setting of {' or '.join(places)}; " if places else ""


# e.g. _masked({"model": "m", "api_key_env": "sk-proj-1234"}) → {"model": "m", "api_key_env": "[hidden]"}
def _masked(value: Any) -> Any:
    """What a message may show: in place of a key's name may stand the key."""
    if isinstance(value, dict):
        return {key: HIDDEN if key == "api_key_env" else _masked(one) for key, one in value.items()}
    return [_masked(one) for one in value] if isinstance(value, list) else value


def _owner(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or owner is None:
            continue
        field = owner.model_fields.get(part)
        owner = section_class(field.annotation) if field else None
    return owner


def section_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := section_class(part))), None)


def _with_defaults(model: type[BaseModel], raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with every setting written out, so that the resolved study file is complete."""
    filled = dict(raw)
    for key, field in model.model_fields.items():
        if model is RunConfig and key in FILLED_IN:
            continue
        default = field.get_default(call_default_factory=True)
        value = filled.get(key, default)
        nested = shape_of(field.annotation)[1]
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


def _locate_rule(rule: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "model" not in rule:
        return rule
    names = rule["model"] if isinstance(rule["model"], list) else [rule["model"]]
    return rule | {"model": [_locate_model(name, folder) for name in names]}


def _locate_given(raw: Any, folder: Path | None) -> Any:
    """A model of the study with its folder as an absolute path; one behind a server is not looked for."""
    model = Model.model_validate({"model": raw} if isinstance(raw, str) else raw)
    place = {} if model.remote or folder is None else {"model": _locate_model(model.model, folder)}
    return model.model_dump(mode="json") | place


def _twice(study: Study) -> list[str]:
    """What to say of models that are in the study already: as a base, or under another name."""
    others = Study.model_copy(study, update={"models": []})
    there = {run.content_hash: "the untuned base model" for run in others.runs()} if others.training else {}
    problems = []
    for number, model in enumerate(study.models):
        key = study.given_run(model).content_hash
        if key in there:
            hint = "; leave it out, or set include_base: false" if "base" in there[key] else ""
            problems.append(f"models.{number}: {model.model} is in the study already, as {there[key]}{hint}")
        there.setdefault(key, f"models.{number}")
    return problems


def _unservable(study: Study) -> list[str]:
    """What to say of decoding that needs the model itself, where a server has it."""
    problems = []
    for number, model in enumerate(study.models):
        own = study.decoding.model_dump() | model.decoding
        names = [name for name in ("allow", "steer") if own[name] and model.by == "openai"]
        if names:
            off = ", ".join(f"{name}: {Decoding.model_fields[name].default}".lower() for name in names)
            problems.append(f"models.{number}: a served model has no {' or '.join(names)}; decoding: {{{off}}}")
    return problems


def _model_hashes(grids: list[dict[str, Any]], models: list[dict[str, Any]]) -> dict[str, str]:
    names = [name for grid in grids for name in (grid["model"] if isinstance(grid["model"], list) else [grid["model"]])]
    names += [one["model"] for one in models if not one["base_url"]]
    return {name: folder_sha256(Path(name)) for name in dict.fromkeys(names) if Path(name).is_dir()}


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
    path = (folder / source.file).resolve()
    # Data that is not here, as of a study that was imported, is what the study was made with.
    digest = content_sha256(path) if path.exists() else source.sha256
    shown = BUILTIN if source.path == BUILTIN else str(path)
    return {**source.model_dump(mode="json"), "path": shown, "sha256": digest}


def _locate_files(study: Study, folder: Path) -> Study:
    def located(source: str) -> str:
        kind, colon, where = source.partition(":")
        if kind in ("builtin", NO_PROMPTS):
            return source
        return f"{kind}:{(folder / where).resolve()}" if colon else str((folder / kind).resolve())

    def placed(prompt_set: PromptSet) -> PromptSet:
        found = [located(source) for source in prompt_set.sources]
        return prompt_set.model_copy(update={"source": found[0] if isinstance(prompt_set.source, str) else found})

    prompts = study.prompts
    update = {"validation": placed(prompts.validation), "test": placed(prompts.test)}
    judges = [
        judge.model_copy(update={"rubrics": str((folder / judge.rubrics).resolve())}) if judge.rubrics else judge
        for judge in study.judges
    ]
    return study.model_copy(update={"prompts": prompts.model_copy(update=update), "judges": judges})


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{override:.60}' is not of the form key=value", "for instance training.steps=50")
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise ConfigError(f"override '{key}=…': '{section}' is not a section of the study file")
    place[last] = read_yaml(text, f"override '{key}=…'")
