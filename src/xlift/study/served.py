"""The settings of models that answer and of judges, behind servers or here, and of how answers are decoded."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from xlift.errors import nearest
from xlift.records import FACETS, HIGHEST, OWN_FACET, fingerprint
from xlift.study.settings import Settings

Thinking = Literal["strip", "keep", "learn"]
JUDGED_FACETS = tuple(facet for facet in FACETS if facet != "constraint")
"""The facets that have a built-in rubric."""
Ends = tuple[int, int]
"""The lowest and the best value of a scale."""


# e.g. [_bits(value) for value in (True, False, 8, "8")] → [4, 0, 8, "8"]
def _bits(value: Any) -> Any:
    return 4 * value if isinstance(value, bool) else value


# e.g. Decoding(stop=["\n"]).signature == Decoding(stop=["###"]).signature → False
# e.g. Decoding(max_new_tokens=48).signature → "greedy|rp1.2|max48"
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
    too_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of a conversation that is longer, with its reply, than the model's context: refused before anything
    is made, or asked without its oldest turns."""
    allow: bool = False
    """Let only tokens through that an answer in the prompt's reply language can hold: its scripts, its words, names."""
    steer: float = Field(0.0, ge=0)
    """How far hidden states are moved along the reply language's direction from English; 1 is the whole difference."""
    steer_layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Layers at which they are moved, from 0 on; the middle third where none are named."""
    checkpoints: Literal["last", "all"] | list[Annotated[int, Field(ge=1)]] = "last"
    """Which checkpoints of a run answer the prompts: the last, all, or those of these steps."""
    engine: Literal["local", "vllm"] = "local"
    """What lets models answer that are loaded here: xlift itself, or vLLM, installed beside it."""
    quantized: Annotated[Literal[0, 4, 8], BeforeValidator(_bits)] = 0
    """Bits of the weights of all linear layers but the last while a model answers: less memory, other answers. True is
    4; 0 is as they are."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that vLLM shares a model out over."""
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
        text += "|drop" if self.too_long == "drop" else ""
        text += "|vllm" if self.engine == "vllm" else ""
        text += f"|{self.quantized}bit" if self.quantized else ""
        text += "|allow v1" if self.allow else ""
        layers = "" if self.steer_layers is None else ",".join(map(str, self.steer_layers))
        return text + (f"|steer v2 {self.steer:g} {layers}" if self.steer else "")

    @model_validator(mode="after")
    def _of_samples(self) -> Decoding:
        if self.samples > 1 and self.strategy == "greedy":
            raise ValueError(
                "samples: a greedy response is always the same; set strategy: sample, or leave samples out"
            )
        if self.engine == "vllm" and (self.allow or self.steer):
            raise ValueError("allow and steer are of xlift's own decoding: engine: vllm has neither")
        if self.engine == "vllm" and self.quantized:
            raise ValueError("quantized is of xlift's own decoding: engine: vllm takes models that are quantised")
        if self.engine == "local" and self.tensor_parallel > 1:
            raise ValueError("tensor_parallel is for engine: vllm")
        return self


_SECRETS = "a study file is no place for a key: write the name of an environment variable that holds it, api_key_env"


# e.g. checked_address(" http://localhost:8000/v1 ") → "http://localhost:8000/v1"
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


# e.g. _variable("OPENAI_API_KEY ") → "OPENAI_API_KEY"
def _variable(text: str) -> str:
    name = text.strip()
    if not re.fullmatch(r"(?=.{1,64}$)[A-Za-z_][A-Za-z0-9_]*", name) or max(map(len, name.split("_"))) > 20:
        raise ValueError("the name of an environment variable is wanted, such as OPENAI_API_KEY, not the key itself")
    return name


class Served(Settings):
    """A model behind an OpenAI-compatible server."""

    noun: ClassVar[str] = "model"
    role: ClassVar[str] = "the server"
    """What it is called before its name, and in a sentence without it."""
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
        return f"{self.noun} '{self.label}'"

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
TemplateValue = bool | int | float | str | list[str] | None


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
    chat_template_kwargs: dict[str, TemplateValue] = {}
    """As in `training`; a server is sent them, as vLLM, SGLang and llama.cpp take them."""
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
        told = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {**(sampling if sampled else {"temperature": 0.0}), **told, **self.body}

    @property
    def signature(self) -> str:
        """What decides a served reply besides model and prompt: a server has no repetition penalty but in `body`."""
        own = self.chosen
        if self.by == "imported":
            return self.by
        unsent = {"engine": "local", "repetition_penalty": 1.0, "allow": False, "steer": 0.0, "quantized": 0}
        text = own.model_copy(update=unsent).signature.replace("|rp1|", "|")
        sent = [one for one in (self.chat_template_kwargs, self.body) if one]
        return text + "".join(f"|{fingerprint(one, length=6)}" for one in sent)


_TAKEN = ("constraint", "why", "better")
"""Names that cannot be a judged facet: what a surface check rates, and other words of a judge's reply."""
HERE = "local:"
"""Before a judge's model: it is loaded here."""


class Judge(Served):
    """A judge model behind an OpenAI-compatible server, or loaded here: `local:` and a folder, a hub model or a run."""

    noun: ClassVar[str] = "judge"
    role: ClassVar[str] = "the judge"
    calls: Literal["all", "each"] = "all"
    """One call for all facets (cheap), or one for each facet (careful)."""
    facets: Annotated[list[str], Field(min_length=1)] = list(JUDGED_FACETS)
    """Built-in ones, or words of one's own with a rubric of one's own."""
    scales: dict[str, Ends] = {}
    """The lowest and the best value of facets that are not rated 0, 1 or 2, `{politeness: [1, 5]}`; each has a
    rubric of one's own."""
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

    @model_validator(mode="after")
    def _whole_facets(self) -> Judge:
        own = [facet for facet in self.facets if facet not in JUDGED_FACETS]
        problems = [
            f"unknown facet '{facet}'; {nearest(facet, JUDGED_FACETS)}, or one of your own with a folder of rubrics "
            f"(rubrics, --rubrics) that holds {facet}.md"
            for facet in own
            if not self.rubrics
        ]
        problems += [
            f"'{facet}': a facet of your own is a word of small letters, digits and _, not {', '.join(_TAKEN)}"
            for facet in own
            if not re.fullmatch(OWN_FACET, facet) or facet in _TAKEN
        ]
        for facet, (lowest, best) in self.scales.items():
            if facet not in self.facets:
                problems.append(f"scales: '{facet}' is not among the facets: {', '.join(self.facets)}")
            if not 0 <= lowest < best <= HIGHEST:
                problems.append(f"scales: {facet}: expected [lowest, best] of 0 to {HIGHEST}, found [{lowest}, {best}]")
            if not self.rubrics:
                problems.append(f"scales: {facet}: it wants a rubric of its own, {facet}.md in `rubrics`")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def ends(self, facet: str) -> Ends:
        """The lowest and the best value of a facet."""
        return self.scales.get(facet, (0, 2))

    @model_validator(mode="after")
    def _as_it_is_reached(self) -> Judge:
        of_servers = ("base_url", "api_key_env", "timeout", "price_input", "price_output", "max_cost", "batch")
        given = [name for name in of_servers if getattr(self, name) != type(self).model_fields[name].default]
        if self.here is not None and given:
            raise ValueError(f"a judge that is loaded here has no {', '.join(given)}")
        if self.here == "":
            raise ValueError("local: and a folder, a hub model or a run's folder")
        return self

    @property
    def here(self) -> str | None:
        """The model that is loaded here; None where a server answers."""
        return self.model.removeprefix(HERE).strip() if self.model.startswith(HERE) else None

    @property
    def known_as(self) -> str:
        """Its name among raters; where a model lies on this machine is no part of it."""
        return self.name or (self.label if self.here is not None else self.model)

    @property
    def reply_tokens(self) -> int:
        return self.max_new_tokens

    @property
    def parameters(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "seed": self.seed}

    @property
    def json_wanted(self) -> bool:
        return self.json_schema
