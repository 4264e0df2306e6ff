"""What the tables of the report are made with: notes in cells, a column a language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from xlift.languages import language_name
from xlift.report.formats import Column, Value, ValueForm
from xlift.report.reading import Material
from xlift.report.rows import SelectionRow


class _InLanguage(Protocol):
    @property
    def language(self) -> str: ...


InLanguage = TypeVar("InLanguage", bound=_InLanguage)


class Wide:
    """A table with a line a name and a cell a language, of rows with one language each."""

    def __init__(
        self,
        material: Material,
        rows: Sequence[InLanguage],
        name: Callable[[InLanguage], tuple[str, str]],
        cell: Callable[[InLanguage], Value],
        form: ValueForm,
        first: str = "run",
    ) -> None:
        """`name` gives a row's line: what tells it from others, and what people read."""
        codes = [code for code in material.languages if any(row.language == code for row in rows)]
        self.columns = [Column(first), *(Column(language_name(code), form) for code in codes)]
        told: dict[str, tuple[str, dict[str, Value]]] = {}
        for row in rows:
            key, shown = name(row)
            told.setdefault(key, (shown, {}))[1][row.language] = cell(row)
        self.lines = [[Value(shown), *(own.get(code, Value()) for code in codes)] for shown, own in told.values()]


# e.g. counts_note(24, 3) → "of 24, 3 missing"
# e.g. counts_note(0, 0) → ""
def counts_note(rated: int, missing: int) -> str:
    """How many went in and how many are missing, in short."""
    return ", ".join(part for part in (f"of {rated}" if rated else "", missing_note(missing)) if part)


def missing_note(count: int) -> str:
    return f"{count} missing" if count else ""


def picked(material: Material, row: SelectionRow) -> str:
    """What a rule of selection picks: a checkpoint, or how many among which it cannot decide."""
    return f"any of {row.tied}" if row.tied > 1 else material.name(row.run, row.step)


def checkpoint_line(material: Material, run: str, step: int) -> tuple[str, str]:
    return f"{run} {step}", material.name(run, step)
