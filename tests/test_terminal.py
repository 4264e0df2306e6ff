from __future__ import annotations

import unicodedata

import pytest
from rich.cells import cell_len

from xlift.terminal import aligned

NAMES = ["Ana", "日本語の実行", "नमस्ते", "e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}", "한국어", "", "ﾊﾛｰ"]


@pytest.mark.parametrize("right", [(), (0,)])
def test_the_second_column_begins_at_the_same_place_in_every_script(right: tuple[int, ...]) -> None:
    lines = aligned([[name, "value"] for name in NAMES], right).splitlines()
    assert len({cell_len(line.removesuffix("value")) for line in lines}) == 1


def test_wide_characters_take_two_places_and_combining_ones_none() -> None:
    accent = unicodedata.normalize("NFD", "é")
    assert aligned([["日", "x"], [accent, "x"], ["ab", "x"]]).splitlines() == ["日  x", f"{accent}   x", "ab  x"]


def test_cells_are_shown_as_they_are_however_long() -> None:
    cell = "[bold]not markup[/bold] " + "long " * 60
    (line,) = aligned([[cell, "end"]]).splitlines()
    assert line == f"{cell}  end"
