"""What every section of a study file is built on: strict settings, numbers as YAML writes them, codes of languages."""

from __future__ import annotations

import re
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from xlift.errors import DataError
from xlift.languages import language_code


def _code(text: Any) -> str:
    try:
        return language_code(text)
    except DataError as error:
        raise ValueError(str(error)) from None


LanguageCode = Annotated[str, BeforeValidator(_code)]
"""Any code or name of a language, as the code by which xlift knows it."""


_SCIENTIFIC = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)[eE][+-]?\d+")


# e.g. with_numbers(float, ["1e-4", "warm", True]) → [0.0001, "warm", "true"]
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


# e.g. as_number("2e-4") → 0.0002
# e.g. as_number("1.0.0") → "1.0.0"
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


# e.g. flat({"judges": [{"model": "m"}]}, numbered=True) → {"judges.0.model": "m"}
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
