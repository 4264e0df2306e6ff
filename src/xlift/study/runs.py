"""The settings of one run: how a model is tuned, and what makes two runs the same."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xlift.records import fingerprint
from xlift.study.data import Instructions
from xlift.study.served import Model, Template, TemplateValue, Thinking
from xlift.study.settings import Settings

EMBEDDED_MODEL = "embedded:gemma-3-270m"
DEFAULT_STEPS = 1000
"""Optimiser steps of a run that names neither `steps` nor `epochs`, as in arXiv 2402.14778."""

Method = Literal["lora", "full", "none"]


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
    quantized: bool = False
    """Keep the frozen base in 4 bits (NF4) while LoRA learns beside it (QLoRA)."""
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

    @model_validator(mode="after")
    def _quantized_beside_adapters(self) -> Adaptation:
        if self.quantized and (self.method != "lora" or self.dora):
            what = "dora" if self.dora else f"method: {self.method}"
            raise ValueError(f"quantized keeps a frozen base in 4 bits, for plain LoRA; it does not go with {what}")
        return self

    @property
    def label(self) -> str:
        return f"lora-r{self.rank}" if self.method == "lora" else "base" if self.method == "none" else "full"


FILLED_IN = frozenset({"dtype", "model_sha256", "given"})
"""Settings of a run that are no setting of `training`: the study fills them in."""
INDIFFERENT = frozenset({"checkpoint_every", "micro_batch_tokens", "gradient_checkpointing", "offload"})
"""Settings that change how a run is computed and kept, and not what it comes to; see `content_hash` on dropout."""
ANSWERING = ("weight", "remind", "allow", "steer")
"""Settings of how a run answers; those that differ in them alone share one training."""
SPOKEN = ("template", "system", "thinking", "chat_template_kwargs")
"""Settings of the chat format."""
UNTUNED = ("model", "revision", *SPOKEN, "dtype", "model_sha256", "remind", "allow", "steer")
"""Settings that an untuned base model has."""


# e.g. _named(Instructions(name="mix"), "en") → "mix-en"
def _named(data: Instructions, part: str) -> str | None:
    return f"{data.name}-{part}" if data.name else part


# e.g. RunConfig(seed=1).content_hash == RunConfig(seed=1, checkpoint_every=50).content_hash → True
# e.g. RunConfig(weight=0.5).trained == RunConfig() → True
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
    chat_template_kwargs: dict[str, TemplateValue] = {}
    """What else the model's own template is given, by the names that it asks by: `{reasoning_effort: low}`."""
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
    """Tokens in one forward pass, or all of a step's where these are fewer; `batch_tokens` is reached by accumulation.
    With dropout it also decides what is left out, and so the weights."""
    max_length: int = Field(2048, ge=8)
    """Longest conversation in tokens; longer ones are left out and counted."""
    packing: bool = True
    """Several conversations in one row, which cannot see each other; otherwise one a row, padded."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW with its moments in float32, or in 8 bits: a quarter of the memory, another result."""
    fp8: bool = False
    """Multiply with the weights of linear layers in floats of 8 bits, a scale for each row, on a GPU from Ada or Hopper
    on: less exact, another result."""
    max_gradient_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(200, ge=1)
    """Optimiser steps between checkpoints; the last step always makes one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    offload: bool = False
    """In full fine-tuning, keep weights, gradients and AdamW's moments in main memory, and give a GPU those of a layer
    when it computes with them: the last resort, slow."""
    seed: int = Field(0, ge=0)
    """Seed of data order, adapter initialisation and dropout."""
    preference: float = Field(0.0, ge=0)
    """Weight of a preference for the right language: replies are made likelier than their parallels in another one; 0
    is off."""
    preference_loss: Literal["orpo", "dpo"] = "orpo"
    """By the odds ratio of ORPO, or by DPO, with the base under the adapter as reference: LoRA alone has that."""
    preference_beta: float = Field(0.1, gt=0)
    """How close DPO stays to the base: higher is closer."""
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
        if self.preference and self.preference_loss == "dpo" and self.adaptation.method == "full":
            raise ValueError("'preference_loss: dpo' needs adaptation.method lora: the base under it is the reference")
        if self.fp8 and (self.adaptation.quantized or self.adaptation.dora):
            raise ValueError(f"'fp8' does not go with adaptation.{'dora' if self.adaptation.dora else 'quantized'}")
        if self.offloads and (self.preference or self.optimizer != "adamw"):
            what = "preference" if self.preference else f"optimizer: {self.optimizer}"
            raise ValueError(f"'offload' does not go with '{what}'")
        return self

    @property
    def offloads(self) -> bool:
        """Whether what is trained lies in main memory; of LoRA it is too little to be worth it."""
        return self.offload and self.adaptation.method == "full"

    @property
    def can_offload(self) -> bool:
        """Whether `offload` would save memory, and goes with the other settings."""
        return self.adaptation.method == "full" and not (self.offload or self.preference or self.optimizer != "adamw")

    @property
    def pass_tokens(self) -> int:
        """The most tokens of one forward pass."""
        return min(self.micro_batch_tokens, self.batch_tokens)

    @property
    def untuned(self) -> bool:
        return self.adaptation.method == "none"

    @property
    def remote(self) -> bool:
        """Whether it answers, or has answered, somewhere else."""
        return self.given is not None and self.given.remote

    @property
    def spoken(self) -> tuple[str, str | None, Thinking, dict[str, TemplateValue]]:
        """The settings of its chat format, as `chat_format` takes them."""
        return self.template, self.system, self.thinking, self.chat_template_kwargs

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
