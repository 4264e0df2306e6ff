"""The settings of data: instructions and prompts."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xlift.errors import nearest
from xlift.study.settings import LanguageCode, Settings

BUILTIN = "builtin"
NO_PROMPTS = "none"
"""The source of a prompt set without prompts."""


def builtin_path(name: str) -> Path:
    """A data file that ships with xlift."""
    return Path(__file__).parents[1] / "data" / "builtin" / name


def builtin_languages(name: str = "instructions") -> list[str]:
    """The languages that have a built-in file of this name: `instructions`, `prompts.open` and others."""
    return sorted(path.name.split(".")[-2] for path in builtin_path("").glob(f"{name}.*.jsonl"))


RecordField = Literal[
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
    columns: dict[RecordField, str] | None = None
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
        fields = typing.get_args(RecordField)
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
