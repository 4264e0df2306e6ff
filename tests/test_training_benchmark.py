from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "training.py"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_benchmark_trains_beside_trl_with_the_same_losses(
    tiny: Path, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    options = ["--model", str(tiny), "--method", method, "--dtype", "float32", "--smoke"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    table = capsys.readouterr().out.split("of ceiling %")[1].splitlines()[1:]
    names, losses = zip(*[(line.split(" | ")[0], float(line.split(" | ")[-1])) for line in table], strict=True)
    assert names == ("xlift", "TRL flattened", "TRL padded")
    assert losses[0] == pytest.approx(losses[2], rel=2e-3)


def test_the_benchmark_tells_how_cost_grows(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model", str(tiny), "--dtype", "float32", "--smoke", "--growth"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        "vocabulary 512",
        "examples of 64 tokens",
    ]
