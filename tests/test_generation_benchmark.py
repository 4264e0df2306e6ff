from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "generation.py"


def test_xlift_and_transformers_make_the_same_tokens_in_turn(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["--model", str(tiny), "--dtype", "float32", "--smoke", "--without", "generate_batch", "llama"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | 4 | " in line]
    assert [row[0] for row in rows] == [f"{name}, {size} rows" for name in ("xlift", "generate") for size in (2, 4)]
    assert len({row[2] for row in rows}) == 1
    # What must be done besides makes the limit lower, so that a share of it is larger.
    assert all(float(row[4][:-1]) <= float(row[5][:-1]) for row in rows)


def test_a_token_is_timed_alone_and_in_one_pass_of_several_checkpoints(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT.with_name("adapters.py")))["main"]
    main(["--model", str(tiny), "--dtype", "float32", "--smoke"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["1", "8"], ["2", "4"]]
    assert all(float(row[4]) > 0 for row in rows)
