"""The settings of a study file, section by section; every one with its default and what it means.

The study as a whole, its grid of runs, and reading it from a file: study.py.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from xlift.errors import DataError, nearest
from xlift.languages import language_code
from xlift.records import FACETS, fingerprint

EMBEDDED_MODEL = "embedded:gemma-3-270m"
BUILTIN = "builtin"
NO_PROMPTS = "none"
"""The source of a prompt set without prompts."""
DEFAULT_STEPS = 1000
"""Optimiser steps of a run that names neither `steps` nor `epochs`, as in arXiv 2402.14778."""

Method = Literal["lora", "full", "none"]
Thinking = Literal["strip", "keep", "learn"]
JudgedFacet = Literal["language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness"]


def builtin_path(name: str) -> Path:
    """A data file that ships with xlift."""
    return Path(__file__).parents[1] / "data" / "builtin" / name


def builtin_languages(name: str = "instructions") -> list[str]:
    """The languages that have a built-in file of this name: `instructions`, `prompts.open` and others."""
    return sorted(path.name.split(".")[-2] for path in builtin_path("").glob(f"{name}.*.jsonl"))


def _code(text: Any) -> str:
    try:
        return language_code(text)
    except DataError as error:
        raise ValueError(str(error)) from None


LanguageCode = Annotated[str, BeforeValidator(_code)]
"""Any code or name of a language, as the code by which xlift knows it."""


_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def with_numbers(kind: Any, value: Any) -> Any:
    """`value` with the numbers that YAML 1.1 reads as text (`1e2`, `2e-4`) as numbers, wherever `kind` has numbers."""
    kinds = kinds_of(kind)
    if isinstance(value, list):
        return [with_numbers(kind, item) for item in value]
    if isinstance(value, dict):
        fields = next((one.model_fields for one in kinds if issubclass(one, BaseModel)), {})
        return {key: with_numbers(fields[key].annotation, one) if key in fields else one for key, one in value.items()}
    if kinds & {int, float}:
        if isinstance(value, bool) and bool not in kinds:
            return str(value).lower()  # which is refused: without that, pydantic takes true for 1
        return as_number(value)
    return value


def as_number(value: Any) -> Any:
    """The number that a text such as `2e-4` writes; everything else as it is."""
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def kinds_of(annotation: Any) -> set[type]:
    """The classes in an annotation, through unions and lists."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return {annotation}
    inner = [] if typing.get_origin(annotation) is Literal else typing.get_args(annotation)
    return {kind for one in inner for kind in kinds_of(one)}


class Settings(BaseModel):
    """Base of all settings: unknown keys and numbers that are none are refused, values not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, raw: Any) -> Any:
        return with_numbers(cls, raw)


Column = Literal[
    "messages", "conversations", "instruction", "input", "output", "context", "response", "prompt", "completion",
    "system", "history", "language", "category",
]  # fmt: skip
"""Fields of records that a column of other data can stand for."""


class Source(Settings):
    """One file, folder or hub dataset of instruction data."""

    path: str = BUILTIN
    """`builtin` (with `language` in another one), a file (JSON Lines, JSON, CSV, TSV, Parquet or Arrow; plain or
    compressed), a folder of such files, or `hub:OWNER/NAME`."""
    format: Literal[
        "auto", "messages", "alpaca", "dolly", "lima", "ultrachat", "sharegpt", "completion", "aya", "oasst"
    ] = "auto"
    """Format of the records; `auto` recognises it by their fields."""
    columns: dict[Column, str] | None = None
    """For records of no known format, which of their fields stand for those of one: `{prompt: question, completion:
    answer}`."""
    language: LanguageCode = "en"
    """Language of the conversations that do not name their own in a field `language`."""
    size: int | None = Field(None, ge=1)
    """How many conversations to take; the smaller of two sizes is a subset of the larger."""
    categories: list[str] | None = None
    """Only conversations of these categories (the `category` field)."""
    languages: Annotated[list[LanguageCode], Field(min_length=1)] | None = None
    """Only conversations in these languages."""
    split: str = "train"
    """Split of a hub dataset, or of a folder whose files are named by splits."""
    revision: str | None = None
    """Commit, tag or branch of a hub dataset."""
    sha256: str | None = None
    """Hash of the file's content; filled in when the study is loaded."""

    @field_validator("columns", mode="before")
    @classmethod
    def _of_known_fields(cls, columns: Any) -> Any:
        fields = typing.get_args(Column)
        for name in columns if isinstance(columns, dict) else ():
            if name not in fields:
                raise ValueError(
                    f"unknown field '{name}'; {nearest(str(name), fields)}; each is given the data's own name"
                )
        return columns

    @model_validator(mode="after")
    def _of_the_hub(self) -> Source:
        of_a_file = self.path == BUILTIN or bool(Path(self.path).suffix)
        names = () if self.path.startswith("hub:") else ("split", "revision") if of_a_file else ("revision",)
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise ValueError(f"only a dataset of the hub (path: hub:OWNER/NAME) has {' and '.join(given)}")
        if self.sha256 and self.path.startswith("hub:"):
            raise ValueError("a dataset of the hub has no sha256; name a commit as its revision")
        if self.path == BUILTIN and not self.file.is_file():
            raise ValueError(
                f"no built-in instructions in '{self.language}'; there are: {', '.join(builtin_languages())}"
            )
        return self

    @property
    def file(self) -> Path:
        """Where the data is, unless it is a dataset of the hub."""
        return builtin_path(f"instructions.{self.language}.jsonl") if self.path == BUILTIN else Path(self.path)


class Instructions(Settings):
    """Instruction data: one or several sources, mixed."""

    name: str | None = None
    """Name in run names; made from the sources where it is missing."""
    sources: Annotated[list[Source], Field(min_length=1)] = [Source()]
    size: int | None = Field(None, ge=1)
    """Conversations over all sources together (a nested subset by seed), after each source's own size."""
    heldout: int = Field(16, ge=0)
    """Conversations, English ones where there are any, kept out of training; their loss is measured meanwhile."""
    subset_seed: int = 0
    """Seed of the subsets; independent of the training seed, so that seeds see the same data."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and (not name.isprintable() or set(name) & set("/\\") or name.strip(" .") == ""):
            raise ValueError("a name is printable text without / or \\, and more than dots")
        return name

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
    rslora: bool = False
    """Multiply LoRA's update by alpha / √rank instead, so that high ranks learn as fast as low ones (rsLoRA)."""
    dora: bool = False
    """Learn the length of every row of the adapted weights, too (DoRA)."""
    modules_to_save: list[str] = []
    """Names of modules that are trained whole beside LoRA, such as `lm_head`."""
    layers: str | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Which of the model's layers are tuned, by either method; all where it is not given: `first 4`, `last 4`,
    `all-but-last 4`, or a list of their numbers from 0."""

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: str | list[int] | None) -> str | list[int] | None:
        if isinstance(layers, str) and not re.fullmatch(r"(first|last|all-but-last) [1-9]\d*", layers):
            raise ValueError("layers are `first 4`, `last 4`, `all-but-last 4` or the like, or a list of numbers")
        return sorted(set(layers)) if isinstance(layers, list) else layers

    @property
    def label(self) -> str:
        return f"lora-r{self.rank}" if self.method == "lora" else "base" if self.method == "none" else "full"


class Decoding(Settings):
    """How responses are generated; the defaults are those of arXiv 2402.14778."""

    strategy: Literal["greedy", "sample"] = "greedy"
    max_new_tokens: int = Field(512, ge=1)
    repetition_penalty: float = Field(1.2, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    """Only the so many likeliest tokens are drawn from."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Only tokens at least this much as likely as the likeliest one are drawn from."""
    seed: int = Field(0, ge=0)
    """Seed of sampling; each response has its own generator, so that the order of prompts does not matter."""
    samples: int = Field(1, ge=1)
    """Responses to each prompt, where they are sampled: prompts ID, ID#2, ID#3 …, one cluster in every interval."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a response; they are no part of it."""
    allow: bool = False
    """Let only tokens through that an answer in the prompt's reply language can hold: its scripts, its words, names."""
    steer: float = Field(0.0, ge=0)
    """How far hidden states are moved along the reply language's direction from English; 1 is the whole difference."""
    steer_layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Layers at which they are moved, from 0 on; the middle third where none are named."""
    checkpoints: Literal["last", "all"] | list[Annotated[int, Field(ge=1)]] = "last"
    """Which checkpoints of a run answer the prompts: the last, all, or those of these steps."""
    batch_size: int = Field(48, ge=1)
    """Prompts decoded together, fewer where memory is short. On a CPU it does not change responses; on a GPU in half
    precision sums are rounded otherwise in batches of another size, and some responses change."""

    @property
    def signature(self) -> str:
        """What decides a response besides the model and the prompt."""
        text = f"{self.strategy}|rp{self.repetition_penalty:g}|max{self.max_new_tokens}"
        if self.strategy == "sample":
            text += f"|t{self.temperature:g}|p{self.top_p:g}|s{self.seed}"
            text += f"|k{self.top_k}" if self.top_k else ""
            text += f"|min{self.min_p:g}" if self.min_p else ""
        text += f"|stop{fingerprint(self.stop, length=8)}" if self.stop else ""
        text += "|allow v1" if self.allow else ""
        layers = "" if self.steer_layers is None else ",".join(map(str, self.steer_layers))
        return text + (f"|steer v2 {self.steer:g} {layers}" if self.steer else "")

    @model_validator(mode="after")
    def _of_samples(self) -> Decoding:
        if self.samples > 1 and self.strategy == "greedy":
            raise ValueError(
                "samples: a greedy response is always the same; set strategy: sample, or leave samples out"
            )
        return self


_SECRETS = "a study file is no place for a key: write the name of an environment variable that holds it, api_key_env"


def checked_address(text: str) -> str:
    """The address of a server without blanks around it. Raises ValueError, which does not repeat it, for any other."""
    address = text.strip()
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if not host or parts.scheme not in ("http", "https") or not address.isprintable() or " " in address:
        raise ValueError("an address begins with http:// or https:// and holds no blank: http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ValueError(f"the address holds a user or a password; {_SECRETS}")
    if any(re.search("(?i)key|token|secret|password|^sig", name) for name, _ in parse_qsl(parts.query)):
        raise ValueError(f"the address holds a key; {_SECRETS}")
    return address


# e.g. OPENAI_API_KEY is a name; sk-proj-1234 and hf_AbCdEfGhIjKlMnOpQrStUvWxYz are none
def _variable(text: str) -> str:
    name = text.strip()
    if not re.fullmatch(r"(?=.{1,64}$)[A-Za-z_][A-Za-z0-9_]*", name) or max(map(len, name.split("_"))) > 20:
        raise ValueError("the name of an environment variable is wanted, such as OPENAI_API_KEY, not the key itself")
    return name


class Served(Settings):
    """A model behind an OpenAI-compatible server."""

    model: str
    """Name of the model, as the server knows it."""
    name: str | None = None
    """Name in file names and tables; made from the model's where it is not given."""
    base_url: str | None = None
    """Address of the server, for instance http://localhost:8000/v1; the client's own default where it is not given."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server on this machine may want none."""

    @field_validator("base_url")
    @classmethod
    def _reachable(cls, text: str | None) -> str | None:
        return None if text is None else checked_address(text)

    @field_validator("api_key_env")
    @classmethod
    def _named(cls, text: str) -> str:
        return _variable(text)

    concurrency: int = Field(16, ge=1)
    """Requests under way at one time."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request counts as lost."""
    price_input: float | None = Field(None, ge=0)
    price_output: float | None = Field(None, ge=0)
    """Price of a million tokens read and written."""
    max_cost: float | None = Field(None, ge=0)
    """Stop before the model has cost more than this, in the currency of the prices."""
    max_requests: int | None = Field(None, ge=1)
    """Stop before more requests than this have been sent for the study."""

    @property
    def label(self) -> str:
        """Name in file names: letters, digits, dots and dashes only."""
        return (
            re.sub(r"[^A-Za-z0-9.]+", "-", self.name or self.model.split("/")[-1]).strip("-.")
            or type(self).__name__.lower()
        )

    @property
    def title(self) -> str:
        """Who it is, where something is said of it."""
        return f"model '{self.label}'"

    @property
    def role(self) -> str:
        """What it is in a sentence."""
        return "the server"

    @property
    def reply_tokens(self) -> int:
        """Longest reply in tokens."""
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, Any]:
        """What a request says beside messages and the length of a reply."""
        return {}

    @property
    def json_wanted(self) -> bool:
        """Whether replies are to be JSON of a fixed shape."""
        return False


Template = Literal["auto", "own", "llama-2", "chatml", "gemma", "plain"]
FactorValue = bool | int | float | str


class Model(Served):
    """A model that answers beside the trained runs: of the hub, in a folder, an adapter on its base, or served."""

    engine: Literal["auto", "local", "openai", "imported"] = "auto"
    """What lets it answer: xlift itself (`local`) or a server (`openai`); `auto` is a server where `base_url` is.
    `imported`: nothing, its responses were there already."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    template: Template = "auto"
    """Chat format; `auto` is the model's own or, of a served model, the server's. A named one is written by xlift, and
    the server completes the text."""
    system: str | None = None
    """System prompt put before every prompt."""
    thinking: Thinking = "strip"
    """As in `training`; a server thinks as it is set to."""
    factors: dict[str, FactorValue] = {}
    """What is known of it, `{size: 7, tuned: true}`: columns of the results, factors whose effects are estimated."""
    decoding: dict[str, Any] = {}
    """Settings of `decoding` that are its own, in place of the study's."""
    body: dict[str, Any] = {}
    """What else a server is sent with every request: `{repetition_penalty: 1.2}` for vLLM."""

    @field_validator("decoding")
    @classmethod
    def _of_decoding(cls, given: dict[str, Any]) -> dict[str, Any]:
        choices = [name for name in Decoding.model_fields if name not in ("checkpoints", "samples")]
        if wrong := [name for name in given if name not in choices]:
            raise ValueError("; ".join(f"unknown setting '{name}'; {nearest(name, choices)}" for name in wrong))
        Decoding.model_validate(given)
        return given

    @field_validator("factors")
    @classmethod
    def _plainly_named(cls, given: dict[str, FactorValue]) -> dict[str, FactorValue]:
        if wrong := [name for name in given if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_ -]{0,39}", name)]:
            raise ValueError(
                f"'{wrong[0]}': a factor's name begins with a letter and holds letters, digits and _ - only"
            )
        return given

    @model_validator(mode="after")
    def _as_it_answers(self) -> Model:
        of_servers = [*(set(Served.model_fields) - {"model", "name"}), "body"]
        other, why = (
            (["revision"], "a model that is not loaded here")
            if self.remote
            else (of_servers, "a model without base_url")
        )
        given = [name for name in other if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise ValueError(f"{why} has no {', '.join(sorted(given))}")
        if self.remote and self.template == "own":
            raise ValueError("the server's own template is `auto`; `own` is for models that xlift loads")
        return self

    @property
    def by(self) -> Literal["local", "openai", "imported"]:
        """What lets it answer."""
        if self.engine == "auto":
            return "openai" if self.base_url is not None else "local"
        return self.engine

    @property
    def remote(self) -> bool:
        """Whether it is not loaded here."""
        return self.by != "local"

    @property
    def identity(self) -> dict[str, Any]:
        """What a model is known by that is not here: a name of its own, so that its server may move, or the address."""
        return {self.by: self.model, **({"name": self.name} if self.name else {"at": self.base_url})}

    @property
    def chosen(self) -> Decoding:
        """Its decoding, once the study's is filled in."""
        return Decoding.model_validate(self.decoding)

    @property
    def reply_tokens(self) -> int:
        return self.chosen.max_new_tokens

    @property
    def parameters(self) -> dict[str, Any]:
        own = self.chosen
        sampled = own.strategy == "sample"
        sampling = {"temperature": own.temperature, "top_p": own.top_p, "top_k": own.top_k, "min_p": own.min_p or None}
        sampling = {name: value for name, value in sampling.items() if value is not None}
        return {**(sampling if sampled else {"temperature": 0.0}), **self.body}

    @property
    def signature(self) -> str:
        """What decides a served reply besides model and prompt: a server has no repetition penalty but in `body`."""
        own = self.chosen
        if self.by == "imported":
            return self.by
        unsent = {"repetition_penalty": 1.0, "allow": False, "steer": 0.0, "steer_layers": None}
        text = own.model_copy(update=unsent).signature.replace("|rp1|", "|")
        return text + (f"|{fingerprint(self.body, length=6)}" if self.body else "")


FILLED_IN = frozenset({"dtype", "model_sha256", "given"})
"""Settings of a run that are no setting of `training`: the study fills them in."""
INDIFFERENT = frozenset({"checkpoint_every", "micro_batch_tokens", "gradient_checkpointing"})
"""Settings that change how a run is computed and kept, and not what it comes to; see `content_hash` on dropout."""
ANSWERING = ("weight", "remind", "allow", "steer")
"""Settings of how a run answers; those that differ in them alone share one training."""
UNTUNED = ("model", "revision", "template", "system", "thinking", "dtype", "model_sha256", "remind", "allow", "steer")
"""Settings that an untuned base model has."""


def _named(data: Instructions, part: str) -> str | None:
    return f"{data.name}-{part}" if data.name else part


class RunConfig(Settings):
    """One training configuration; the defaults are those of arXiv 2402.14778 where it names them."""

    model: str = EMBEDDED_MODEL
    """Base model: `embedded:NAME`, a local folder, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    template: Template = "auto"
    """Chat format; `auto` is the model's own, or a named one that fits its vocabulary."""
    system: str | None = None
    """System prompt put before every conversation and prompt."""
    thinking: Thinking = "strip"
    """Thoughts (`<think>…</think>`) before replies, and templates that let a model think: `strip` takes them out and
    asks for none, `keep` leaves them in and learns the answers alone, `learn` learns both."""
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
    """Tokens in one forward pass; `batch_tokens` is reached by accumulation. With dropout it also decides what is left
    out, and so the weights."""
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
    preference: float = Field(0.0, ge=0)
    """Weight of a preference for the right language: replies are made likelier than their parallels in another one, by
    the odds ratio of ORPO; 0 is off."""
    swap: int = Field(0, ge=0)
    """Instead of one training on all sources: one on the English ones and one on the others; the first and last so many
    layers of the other in the English one."""
    weight: float = Field(1.0, gt=0, le=1)
    """How far the tuned weights are kept: 1 as trained, 0.5 half-way back to the base model."""
    remind: bool = False
    """Say before every prompt, in the language of the reply, that the answer is wanted in it; not in training."""
    allow: bool = False
    """Answer with the study's `decoding.allow` turned on."""
    steer: float = Field(0.0, ge=0)
    """Answer with this in place of the study's `decoding.steer`, where it is above 0."""

    dtype: str = "auto"
    """The study's `dtype`; filled in by the study."""
    model_sha256: str | None = None
    """Hash of what is in a local model's folder; filled in when the study is loaded."""
    given: Model | None = None
    """Of a model that answers beside the trained runs, what the study says of it; filled in by the study."""

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
    def remote(self) -> bool:
        """Whether it answers, or has answered, somewhere else."""
        return self.given is not None and self.given.remote

    @property
    def reference(self) -> bool:
        """Whether it is what tuned runs are compared to: an untuned base, not one of the study's `models`."""
        return self.untuned and self.given is None

    @property
    def content_hash(self) -> str:
        """Eight hex digits over everything that decides the run's weights: contents, not names and places.

        What is as by default is left out, so that a setting that a later version adds makes no other run of this one.
        """
        # What dropout leaves out is drawn for each micro-batch.
        drops = {"micro_batch_tokens"} if self.adaptation.method == "lora" and self.adaptation.dropout else set()
        settings = self.model_dump(mode="json", exclude_defaults=True, exclude={*(INDIFFERENT - drops), "given"})
        if self.model_sha256:
            settings["model"] = None
        if self.adaptation.method != "lora":
            parts = self.adaptation.model_dump(mode="json", exclude_defaults=True, include={"layers"})
            settings["adaptation"] = {"method": self.adaptation.method, **parts} if parts else self.adaptation.method
        data = {key: value for key, value in settings.pop("instructions", {}).items() if key != "name"}
        if "sources" in data:
            data["sources"] = [{**one, "path": None} if "sha256" in one else one for one in data["sources"]]
        if self.untuned:
            settings = {key: value for key, value in settings.items() if key in (*UNTUNED, "adaptation")}
            if self.given and self.remote:
                settings |= self.given.identity
        elif data:
            settings["instructions"] = data
        return fingerprint(settings, length=8)

    @property
    def trained(self) -> RunConfig:
        """The run whose training this one's weights come from: itself, unless it differs in ANSWERING alone."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in ANSWERING})

    @property
    def unswappable(self) -> bool:
        """Whether its data cannot be parted into English and other sources, each with its own size."""
        languages = {source.language for source in self.instructions.sources}
        return bool(self.swap and (len(languages) < 2 or "en" not in languages or self.instructions.size))

    @property
    def parents(self) -> list[RunConfig]:
        """The runs, on English and on the other sources, whose layers make this one's; [] where none are swapped."""
        if not self.swap:
            return []
        english = [one for one in self.instructions.sources if one.language == "en"]
        others = [one for one in self.instructions.sources if one.language != "en"]
        parts: list[dict[str, Any]] = [
            {"sources": english, "name": _named(self.instructions, "en")},
            {"sources": others, "name": _named(self.instructions, "others"), "heldout": 0},
        ]
        alone = self.trained.model_copy(update={"swap": 0})
        return [alone.model_copy(update={"instructions": self.instructions.model_copy(update=one)}) for one in parts]


class PromptSet(Settings):
    """Where prompts come from and how many are used."""

    source: Annotated[list[str], Field(min_length=1)] | str = "builtin:open"
    """`builtin:NAME` (open, constraints, facts), `paper:FOLDER`, `lcb:PATH`, `ifeval:PATH`, files, or `none`."""
    size: int | None = Field(None, ge=1)
    """Only the first so many prompts of each source in each language."""

    @property
    def sources(self) -> list[str]:
        """The sources, also where it is one."""
        return [self.source] if isinstance(self.source, str) else self.source


class Prompts(Settings):
    """The prompts of a study; validation and test are disjoint by `parallel_id`."""

    languages: Annotated[list[LanguageCode], Field(min_length=1)] = ["en", "fr", "pt", "ru"]
    validation: PromptSet = PromptSet()
    test: PromptSet = PromptSet()
    allow_contamination: bool = False
    """Go on although test prompts stand in the training data."""

    @field_validator("languages")
    @classmethod
    def _each_once(cls, codes: list[str]) -> list[str]:
        return list(dict.fromkeys(codes))


class Validation(Settings):
    """What is measured during training, on validation prompts only: at every checkpoint, and every so many steps."""

    every: int | None = Field(None, ge=1)
    """Optimiser steps between measurements; at checkpoints alone where it is not given."""
    margins: bool = True
    """Measure the language margin in every language of the study."""
    grammar: bool = True
    """Measure the grammar margin of checkpoints that answer, in the languages that have built-in pairs of sentences."""
    responses: int = Field(0, ge=0)
    """Also let the model answer so many validation prompts in each language, and rate the language of the answers."""
    max_new_tokens: int = Field(48, ge=1)
    """Longest of these answers in tokens."""


class Halving(Settings):
    """Stop hopeless runs early: after `first` steps, and then after each `factor` times as many, the best
    1 / `factor` of the runs by the validation measure go on."""

    first: int = Field(ge=1)
    """Optimiser steps before the first comparison."""
    factor: int = Field(3, ge=2)


class Ray(Settings):
    """Resources of one run's task when `executor` is `ray`."""

    address: str | None = None
    """Address of a running cluster, or `auto`; a cluster on this machine is started where it is not given."""
    cpus: float = Field(1, gt=0)
    """CPU cores of a run."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of a run; one where the device is CUDA, else none, where it is not given."""


class Judge(Served):
    """A judge model behind an OpenAI-compatible server."""

    calls: Literal["all", "each"] = "all"
    """One call for all facets (cheap), or one for each facet (careful)."""
    facets: Annotated[list[JudgedFacet], Field(min_length=1)] = [
        "language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness"
    ]  # fmt: skip
    rubrics: str | None = None
    """Folder with rubrics of one's own (FACET.md), each replacing the built-in one."""
    rubric_language: Literal["en", "response"] = "en"
    """Language of the judge's instructions: English, or the response's where it is one of the 15 built-in ones."""
    reference: bool = True
    """Show the judge the prompt's reference answer, where there is one."""
    json_schema: bool = True
    """Ask the server for JSON of a fixed shape; turned off by itself where the server refuses."""
    temperature: float = Field(0.0, ge=0)
    max_new_tokens: int = Field(512, ge=1)
    seed: int = 0
    batch: bool = False
    """Send the requests through the server's Batch API."""

    @property
    def title(self) -> str:
        return f"judge '{self.label}'"

    @property
    def role(self) -> str:
        return "the judge"

    @property
    def reply_tokens(self) -> int:
        return self.max_new_tokens

    @property
    def parameters(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "seed": self.seed}

    @property
    def json_wanted(self) -> bool:
        return self.json_schema


class Report(Settings):
    """What the report says about itself."""

    title: str | None = None
    remedies: bool = False
    """Tell of every other run what it mends, beside the first run of the grid, and what it costs."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind each bootstrap interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    measure: dict[str, float] = Field({"language": 1.0}, min_length=1)
    """What makes a response good when runs are selected: facets with weights; `facet:judge` or `facet:human` says who
    is believed, else people before judges before surface checks."""

    @field_validator("measure")
    @classmethod
    def _known_facets(cls, measure: dict[str, float]) -> dict[str, float]:
        for name, weight in measure.items():
            facet, _, kind = name.partition(":")
            if facet not in FACETS or kind not in {"", "human", "judge", "check"}:
                raise ValueError(
                    f"unknown facet '{name}'; {nearest(facet, FACETS)}, each also as FACET:human and the like"
                )
            if weight <= 0:
                raise ValueError(f"the weight of '{name}' must be above 0")
        return measure


def flat(settings: dict[str, Any], separator: str = ".", numbered: bool = False) -> dict[str, Any]:
    """Nested settings as one level: {"adaptation": {"rank": 4}} as {"adaptation.rank": 4}.

    Lists are kept as they are; `numbered` opens those of settings by number, {"judges.0.model": …}.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if numbered and isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        inner = flat(value, separator, numbered) if isinstance(value, dict) and value else None
        found |= {key: value} if inner is None else {f"{key}{separator}{name}": item for name, item in inner.items()}
    return found
