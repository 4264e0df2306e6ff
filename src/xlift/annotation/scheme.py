"""What a campaign asks, in one YAML file: facets and their scales, spans to mark, short answers, guidelines.

    facets:                                  # in the order of the page; built in by name, or your own
      - fluency
      - name: politeness
        title: {en: Politeness, fr: Politesse}
        question: {en: "Is it polite?", fr: "Est-ce poli ?"}
        help: A tone that the person could take amiss is 0.
        scale: {2: polite, 1: {en: neutral, fr: neutre}, 0: rude}
    pairs: false                             # true: two blind responses to the same prompt, side by side
    spans: [foreign, wrong]                  # words to mark; each goes into `detail` of a facet's rating
    answers: [{name: better, question: "What would you have written?"}]
    guidelines: {en: guidelines.en.md}       # files beside this one, or Markdown; ours without it

A text is one for all, or one for each language of the page; where one is wanting, English's stands, else the first.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from markupsafe import Markup
from pydantic import Field, field_validator, model_validator
from sqlalchemy import Connection

from xlift.annotation import database as db
from xlift.annotation import words
from xlift.errors import ConfigError, nearest
from xlift.records import HIGHEST, OWN_FACET
from xlift.study.loading import problems_of
from xlift.study.settings import Settings
from xlift.study.yaml_text import read_yaml

Wording = str | dict[str, str]
Name = Annotated[str, Field(pattern=f"^{OWN_FACET}$")]
BUILT_IN = tuple(words.TEXTS["en"]["facets"])
SPANS = {"foreign": "language", "wrong": "accuracy"}
"""What is marked without words of one's own, and the facet that its spans belong to."""
VALUES_SHOWN = (2, 1, 0)


class RatedFacet(Settings):
    """A facet to rate: a built-in one by its name, or one with a title and a scale of its own."""

    name: Name
    title: Wording | None = None
    question: Wording = ""
    help: Wording = ""
    scale: Annotated[dict[int, Wording], Field(min_length=2, max_length=10)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> RatedFacet:
        if self.name in {db.WHOLE, "senseless", "comment", "spans", "answers", "feedback"}:
            raise ValueError(f"'{self.name}' is the page's own word")
        if self.name not in BUILT_IN and (self.title is None or self.scale is None):
            hint = nearest(self.name, BUILT_IN)
            raise ValueError(f"'{self.name}' is not built in ({hint}); a facet of your own needs title and scale")
        if self.scale and not all(0 <= value <= HIGHEST for value in self.scale):
            raise ValueError(f"values of a scale are 0 to {HIGHEST}, one key each")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """The values, the highest first."""
        return tuple(sorted(self.scale or VALUES_SHOWN, reverse=True))


class Marker(Settings):
    """Words to mark in a response, and the facet whose ratings hold them."""

    name: Name
    title: Wording | None = None
    facet: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Marker:
        if self.name not in SPANS and (self.title is None or not self.facet):
            raise ValueError(f"choices: {', '.join(SPANS)}, or a name with title and facet")
        return self

    @property
    def of(self) -> str:
        return self.facet or SPANS[self.name]


class Answer(Settings):
    """A question that is answered in a few words."""

    name: Name
    question: Wording


class Scheme(Settings):
    """What a campaign asks of every response, or of every pair."""

    facets: list[RatedFacet] = Field(
        default_factory=lambda: [RatedFacet(name=name) for name in db.ASKED_FACETS], min_length=1
    )
    pairs: bool = False
    spans: list[Marker] = Field(default_factory=list)
    answers: list[Answer] = Field(default_factory=list)
    guidelines: Wording | None = None

    @field_validator("facets", "spans", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return [{"name": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given

    @model_validator(mode="before")
    @classmethod
    def _comparison(cls, given: Any) -> Any:
        # Two responses are compared, unless something else is asked of both.
        alone = isinstance(given, dict) and given.get("pairs") is True and "facets" not in given
        return {**given, "facets": ["preference"]} if alone else given

    @model_validator(mode="after")
    def _consistent(self) -> Scheme:
        names = [facet.name for facet in self.facets]
        twice = sorted({name for name in names if names.count(name) > 1})
        lost = [f"span '{span.name}' belongs to '{span.of}'" for span in self.spans if span.of not in names]
        if twice or lost:
            raise ValueError("; ".join([*(f"'{name}' stands twice" for name in twice), *lost]) + f"; facets: {names}")
        if self.pairs and self.spans:
            raise ValueError("spans are marked in one response, not in pairs")
        return self

    @property
    def levels(self) -> dict[str, tuple[int, ...]]:
        """The values of each facet, the highest first."""
        return {facet.name: facet.levels for facet in self.facets}


class Shown(NamedTuple):
    """A facet as the page shows it in one language; `levels` are values with their words."""

    name: str
    title: str
    question: str
    help: str
    levels: list[tuple[int, str]]


def read_scheme(path: Path) -> Scheme:
    """The scheme in a YAML file, its guidelines read from the files that it names.

    Raises ConfigError with all that is wrong with it.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", "a scheme is a YAML file: docs/annotation.md")
    raw = read_yaml(_text(path), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected settings, found {raw!r:.60}", f"settings: {', '.join(Scheme.model_fields)}"
        )
    problems = [f"{path}: {problem}" for problem in problems_of(Scheme, raw)]
    if problems:
        raise ConfigError(problems, "the words of a scheme: docs/annotation.md")
    scheme = Scheme.model_validate(raw)
    given = scheme.guidelines
    texts = {"en": given} if isinstance(given, str) else given or {}
    lost = [name for name in texts.values() if _is_file(name) and not (path.parent / name).is_file()]
    strange = [code for code in texts if code not in words.TEXTS]
    if lost or strange:
        told = [f"{path}: guidelines: {name}: no such file" for name in lost]
        told += [f"{path}: guidelines: {code}: {nearest(code, words.INTERFACES)}" for code in strange]
        raise ConfigError(told, "guidelines are files beside the scheme, or Markdown")
    read = {code: _text(path.parent / said) if _is_file(said) else said for code, said in texts.items()}
    return scheme.model_copy(update={"guidelines": read or None})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})", "save it as UTF-8") from None


# e.g. _is_file("guidelines.en.md") → True
# e.g. _is_file("# What to do\nRate.") → False
def _is_file(said: str) -> bool:
    return bool(re.fullmatch(r"[^\n]+\.md", said))


def scheme_of(connection: Connection) -> Scheme:
    """The campaign's scheme; ours where it has none."""
    stored = db.read_setting(connection, "scheme")
    return _parsed(stored) if stored else Scheme()


@cache
def _parsed(stored: str) -> Scheme:
    return Scheme.model_validate_json(stored)


# e.g. worded({"en": "Fluency", "fr": "Fluidité"}, "fr") → "Fluidité"
# e.g. worded({"de": "Flüssigkeit"}, "fr") → "Flüssigkeit"
def worded(text: Wording, interface: str) -> str:
    """A text in a language of the page; else in English, else the first that there is."""
    if isinstance(text, str):
        return text
    return text.get(interface) or text.get("en") or next(iter(text.values()), "")


def shown_facets(scheme: Scheme, interface: str) -> list[Shown]:
    """The facets as the page shows them."""
    built_in = words.TEXTS[interface]["facets"]
    found = []
    for facet in scheme.facets:
        own = built_in.get(facet.name, {"name": facet.name, "question": ""})
        labels: dict[int, Wording] = facet.scale or {value: own[str(value)] for value in VALUES_SHOWN}
        levels = [(value, worded(labels[value], interface)) for value in facet.levels]
        title = worded(facet.title or own["name"], interface)
        question = worded(facet.question or own["question"], interface)
        found.append(Shown(facet.name, title, question, worded(facet.help, interface), levels))
    return found


def shown_spans(scheme: Scheme, interface: str) -> dict[str, str]:
    """What may be marked, with its words."""
    own = words.TEXTS[interface]["spans"]
    return {span.name: worded(span.title or own[span.name], interface) for span in scheme.spans}


def shown_answers(scheme: Scheme, interface: str) -> dict[str, str]:
    """The questions that are answered in words."""
    return {answer.name: worded(answer.question, interface) for answer in scheme.answers}


def guidelines_of(scheme: Scheme, interface: str) -> tuple[Markup, str]:
    """The guidelines as HTML in a language of the page, and the hash that ratings are signed with."""
    own = scheme.guidelines
    return words.rendered_guidelines(worded(own, interface)) if own else words.guidelines(interface)
