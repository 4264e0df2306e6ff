"""The study file: strict settings, and the grid of runs that they span.

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
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from xlift.errors import ConfigError, nearest
from xlift.languages import LANGUAGES, base_code
from xlift.records import fingerprint

EMBEDDED_MODEL = "embedded:gemma-3-270m"
BUILTIN = "builtin"
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")

Method = Literal["lora", "full", "none"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused and values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Settings):
    """One file or hub dataset of instruction data."""

    path: str = BUILTIN
    """`builtin`, a JSON or JSONL file, or `hub:OWNER/NAME`."""
    format: Literal["auto", "messages", "alpaca", "dolly", "lima", "sharegpt"] = "auto"
    """Format of the records; `auto` recognises it by their fields."""
    language: str = "en"
    """Language of the conversations."""
    size: int | None = Field(None, ge=1)
    """How many conversations to take; the smaller of two sizes is a subset of the larger."""
    categories: list[str] | None = None
    """Only conversations of these categories (the `category` field)."""
    split: str = "train"
    """Split of a hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of a hub dataset."""
    sha256: str | None = None
    """Hash of the file's content; filled in when the study is loaded."""

    @field_validator("language")
    @classmethod
    def _known_language(cls, code: str) -> str:
        return _checked_language(code)


class Instructions(Settings):
    """Instruction data: one or several sources, mixed."""

    name: str | None = None
    """Name in run names; made from the sources where it is missing."""
    sources: Annotated[list[Source], Field(min_length=1)] = [Source()]
    size: int | None = Field(None, ge=1)
    """Conversations over all sources together (a nested subset by seed), after each source's own size."""
    heldout: int = Field(16, ge=0)
    """Conversations kept out of training, whose loss is measured at every checkpoint."""
    subset_seed: int = 0
    """Seed of the subsets; independent of the training seed, so that seeds see the same data."""

    @property
    def label(self) -> str:
        names = [Path(source.path.removeprefix("hub:")).stem for source in self.sources]
        return self.name or "+".join(names) + (f"-{self.size}" if self.size else "")


class Adaptation(Settings):
    """How the weights are changed: LoRA, full fine-tuning, or `none` (the untuned reference)."""

    method: Method = "lora"
    rank: int = Field(16, ge=1)
    """LoRA rank."""
    alpha: float = Field(32.0, gt=0)
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """LoRA dropout."""
    targets: str | list[str] = "all-linear"
    """LoRA target modules: `all-linear`, or names of layers."""

    @property
    def label(self) -> str:
        return f"lora-r{self.rank}" if self.method == "lora" else "base" if self.method == "none" else "full"


class RunConfig(Settings):
    """One training configuration; the defaults are those of arXiv 2402.14778 where it names them."""

    model: str = EMBEDDED_MODEL
    """Base model: `embedded:NAME`, a local folder, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    template: Literal["auto", "own", "llama-2", "chatml", "gemma", "plain"] = "auto"
    """Chat format; `auto` is the model's own, or a named one that fits its vocabulary."""
    system: str | None = None
    """System prompt put before every conversation and prompt."""
    instructions: Instructions = Instructions()
    adaptation: Adaptation = Adaptation()
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of the highest."""
    warmup_steps: int = Field(0, ge=0)
    steps: int | None = Field(None, ge=1)
    """Optimiser steps. Give either `steps` or `epochs`; neither means 1,000 steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the instruction data."""
    batch_tokens: int = Field(32768, ge=1)
    """Tokens, prompts included, behind one optimiser step."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens in one forward pass; `batch_tokens` is reached by accumulation."""
    max_length: int = Field(2048, ge=8)
    """Longest conversation in tokens; longer ones are left out and counted."""
    packing: bool = True
    """Several conversations in one row, which cannot see each other; otherwise one a row, padded."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(200, ge=1)
    """Optimiser steps between checkpoints; the last step always makes one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    seed: int = Field(0, ge=0)
    """Seed of data order, adapter initialisation and dropout."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> RunConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either 'steps' or 'epochs', not both")
        if self.micro_batch_tokens > self.batch_tokens:
            raise ValueError(
                f"micro_batch_tokens ({self.micro_batch_tokens}) cannot exceed batch_tokens ({self.batch_tokens})"
            )
        return self

    @property
    def untuned(self) -> bool:
        return self.adaptation.method == "none"

    @property
    def content_hash(self) -> str:
        """Eight hex digits over everything that decides the run's weights."""
        settings = self.model_dump(mode="json")
        if self.untuned:
            settings = {key: settings[key] for key in ("model", "revision", "template", "system")}
        return fingerprint(settings, length=8)


class PromptSet(Settings):
    """Where prompts come from and how many are used."""

    source: str = "builtin:open"
    """`builtin:NAME` (open, constraints, facts), a prompts JSONL file, `paper:FOLDER` or `lcb:FOLDER_OR_ZIP`."""
    size: int | None = Field(None, ge=1)
    """Only the first so many prompts in each language."""


class Prompts(Settings):
    """The prompts of a study; validation and test are disjoint by `parallel_id`."""

    languages: Annotated[list[str], Field(min_length=1)] = ["en", "fr", "pt", "ru"]
    validation: PromptSet = PromptSet()
    test: PromptSet = PromptSet()

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, codes: list[str]) -> list[str]:
        return list(dict.fromkeys(_checked_language(code) for code in codes))


class Decoding(Settings):
    """How responses are generated; the defaults are those of arXiv 2402.14778."""

    strategy: Literal["greedy", "sample"] = "greedy"
    max_new_tokens: int = Field(512, ge=1)
    repetition_penalty: float = Field(1.2, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0)
    """Seed of sampling; each response has its own generator, so order and batching do not matter."""
    checkpoints: Literal["last", "all"] = "last"
    """Which checkpoints of a run answer the prompts."""
    batch_size: int = Field(48, ge=1)
    """Prompts decoded together; it does not change responses."""

    @property
    def signature(self) -> str:
        """What decides a response besides the model and the prompt."""
        text = f"{self.strategy}|rp{self.repetition_penalty:g}|max{self.max_new_tokens}"
        if self.strategy == "sample":
            text += f"|t{self.temperature:g}|p{self.top_p:g}|s{self.seed}"
        return text


class Report(Settings):
    """What the report says about itself."""

    title: str | None = None
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind each bootstrap interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)


class Study(Settings):
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    """The question that the study answers; opens the report."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of `RunConfig`, each one value or a list of values (an axis of the grid)."""
    include_base: bool = True
    """Also let each untuned base model answer, as the reference."""
    prompts: Prompts = Prompts()
    decoding: Decoding = Decoding()
    raters: list[Literal["language", "language_lcb", "fluency", "constraint", "answers"]] = [
        "language",
        "fluency",
        "constraint",
        "answers",
    ]
    report: Report = Report()
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def runs(self) -> list[RunConfig]:
        """Every run of the grid, the untuned base models first."""
        tuned = [RunConfig.model_validate(settings) for settings in expand(RunConfig, self.training)]
        keep = {"model", "revision", "template", "system"}
        bases = [RunConfig(adaptation=Adaptation(method="none"), **run.model_dump(include=keep)) for run in tuned]
        found = {run.content_hash: run for run in [*(bases if self.include_base else []), *tuned]}
        return list(found.values())


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
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a study file is a mapping of settings, found {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    for override in overrides:
        _apply_override(raw, override)
    return parse_study(raw, where=str(path), folder=path.parent)


def parse_study(raw: dict[str, Any], where: str = "study", folder: Path | None = None) -> Study:
    """Check a raw mapping and fill in what is left to defaults. Paths are taken relative to `folder`."""
    problems = _problems(Study, raw, ())
    training = raw.get("training") or {}
    if isinstance(training, dict):
        training = _with_numbers(RunConfig, training)
        problems += _training_problems(training)
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in dict.fromkeys(problems)], "xlift check STUDY.yaml")
    completed = _with_defaults(RunConfig, training)
    located = _locate(completed, folder or Path())
    study = Study.model_validate({**raw, "training": located})
    return _locate_prompts(study, folder or Path())


def _training_problems(training: dict[str, Any]) -> list[str]:
    found = [problem for settings in expand(RunConfig, training) for problem in _problems(RunConfig, settings, ())]
    return [f"training.{problem}" for problem in dict.fromkeys(found)]


def _problems(model: type[BaseModel], raw: dict[str, Any], prefix: tuple[str, ...]) -> list[str]:
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


def _locate_prompts(study: Study, folder: Path) -> Study:
    def placed(prompt_set: PromptSet) -> PromptSet:
        kind, colon, where = prompt_set.source.partition(":")
        if kind == "builtin":
            return prompt_set
        located = f"{kind}:{(folder / where).resolve()}" if colon else str((folder / kind).resolve())
        return prompt_set.model_copy(update={"source": located})

    prompts = study.prompts
    update = {"validation": placed(prompts.validation), "test": placed(prompts.test)}
    return study.model_copy(update={"prompts": prompts.model_copy(update=update)})


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
        "learning_rate": f"lr{run.learning_rate:.0e}".replace("e-0", "e-").replace("e+0", "e"),
        "steps": f"{run.steps}steps" if run.steps else "",
        "epochs": f"{run.epochs:g}epochs" if run.epochs else "",
        "seed": f"s{run.seed}",
    }
    if float(f"{run.learning_rate:.0e}") != run.learning_rate:
        named["learning_rate"] = f"lr{run.learning_rate:g}"
    return named | dict(_other_parts(run))


def _other_parts(run: RunConfig) -> Iterator[tuple[str, str]]:
    done = {"model", "instructions", "adaptation", "learning_rate", "steps", "epochs", "seed"}
    for key, value in run.model_dump(mode="json").items():
        if key not in done:
            yield key, f"{key}={fingerprint(value, length=4) if isinstance(value, str) else value}"


def _checked_language(code: str) -> str:
    if base_code(code) not in LANGUAGES:
        raise ValueError(f"unknown language code; {nearest(code, LANGUAGES)}")
    return base_code(code)
