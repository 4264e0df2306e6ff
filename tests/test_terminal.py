from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import unicodedata

import pytest
from rich.cells import cell_len

from xlift.progress import time_left
from xlift.terminal import aligned, middle, paged, wrapped

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


ROWS = [["run", "en", "fr", "日本語"], ["a-run-with-a-long-name-lr1e-4", "100% [81–100]", "0% [0–19]", "日本 50%"]]


@pytest.mark.parametrize("room", [40, 60, 80, 200])
def test_no_line_of_a_table_is_wider_than_the_terminal_and_no_column_is_lost(room: int) -> None:
    text = paged(ROWS, room=room)
    assert max(map(cell_len, text.splitlines())) <= room
    assert all(cell in text for cell in (*ROWS[0], *ROWS[1][1:]))
    assert all("lr1e-4" in part for part in text.split("\n\n"))


@pytest.mark.parametrize("name", ["label-" * 50, "名前" * 150, "اسم طويل " * 34])
@pytest.mark.parametrize(("keep", "room"), [(1, 40), (1, 80), (4, 80), (4, 200)])
def test_labels_of_300_characters_in_any_script_and_column_leave_a_table_that_fits(
    name: str, keep: int, room: int
) -> None:
    rows = [["facet", "lang", "first", "second", name, "kappa"], ["fluency", "fr", name, f"{name}2", "9", "0.41"]]
    text = paged(rows, keep=keep, room=room)
    assert max(map(cell_len, text.splitlines())) <= room
    assert all(cell in text for cell in ("fluency"[:3], "fr", "kappa", "0.41"))


@pytest.mark.parametrize("keys", [["facet"], ["helpfulness", "fr", "human:Ana Silva"]])
@pytest.mark.parametrize("room", [40, 60, 80])
def test_figures_stay_whole_as_long_as_names_can_give_way(keys: list[str], room: int) -> None:
    figures = ["+0.00 [-0.98, +0.98]", "0.667", "12/76/12 %"]
    head = [*("facet", "lang", "rater")[: len(keys)], "a-long-name-of-a-run" * 5, "p (Holm)", "better/tied/worse"]
    text = paged([head, [*keys, *figures]], keep=len(keys), room=room)
    assert all(figure in text for figure in figures)
    assert max(map(cell_len, text.splitlines())) <= room


def test_a_table_for_another_program_is_one_table_however_wide() -> None:
    wide = [["run", *(f"column {number}" for number in range(40))]] * 2
    assert len(paged(wide).splitlines()) == 2


@pytest.mark.parametrize("room", [20, 40, 80])
def test_a_long_line_is_broken_between_words_and_keeps_them_all_and_its_indent(room: int) -> None:
    line = "  could not be rated: " + ", ".join(f"実行-{number} ru {number}" for number in range(12))
    lines = wrapped(line, room).splitlines()
    assert max(map(cell_len, lines)) <= room
    assert wrapped(line, room).split() == line.split()
    assert all(one.startswith("  ") for one in lines)
    assert wrapped(line, 0) == line


def test_what_is_left_out_of_a_name_is_its_middle() -> None:
    assert middle("builtin-128-lora-r16-lr1e-4-s1", 15) == "builtin…1e-4-s1"
    assert cell_len(middle("日本語の実行の名前", 9)) <= 9


def test_what_is_left_is_told_by_the_speed_so_far_also_where_replies_come_at_once() -> None:
    assert time_left(80.0, 48, 96) == 80.0
    assert time_left(5.0, 1, 1000) == float("inf")
    assert time_left(90.0, 3, 1000) == 90.0 * (1000 / 3 - 1)
    assert time_left(90.0, 0, 1000) == float("inf")


def test_a_bar_keeps_count_and_time_left_in_80_columns_whatever_the_note() -> None:
    code = "from xlift.progress import progress\nwith progress('train ' + 'a-long-name-of-a-run-' * 3, 500) as bar:\n"
    code += "    for _ in range(250): bar.advance(1, 'loss 1.234  2345 tokens/s' + '  fr 98%' * 15)\n"
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    done = subprocess.run([sys.executable, "-c", code], stderr=child, timeout=60, env=os.environ | {"TERM": "xterm"})
    os.close(child)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(parent, 1 << 16).decode())
    os.close(parent)
    last = next(line for line in reversed(shown.splitlines()) if "250/500" in line)
    assert done.returncode == 0
    assert re.search(r"250/500 \d:\d\d:\d\d ETA \d+ s", last)
    assert cell_len(last) <= 80
