"""The properties of device_properties.py, on a GPU (marked `gpu`) where there is one; the benchmark for GPUs runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from device_properties import PROPERTIES

from xlift.hub import Located


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return str(request.param)


@pytest.fixture(scope="module")
def benchmark() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_of_training_and_generation_holds_on_a_device(name: str, tiny: Path, device: str) -> None:
    off, allowed = PROPERTIES[name](Located(str(tiny), None, {}), device)
    assert off <= allowed


def brought_by(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """What an installation of these brings, without what is installed by choice."""
    found, left = dict[str, importlib.metadata.Distribution](), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        with suppress(importlib.metadata.PackageNotFoundError):
            if name not in found:
                found[name] = importlib.metadata.distribution(name)
                wanted = [one for one in found[name].requires or [] if "extra ==" not in one]
                left += [matched[0] for one in wanted if (matched := re.match(r"[\w.-]+", one))]
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of packages that has no others than a machine has that the script asks for."""
    for one in brought_by(["torch", "transformers", "peft", "accelerate", "pydantic"]).values():
        for top in {file.parts[0] for file in one.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            with suppress(FileExistsError):
                (tmp_path / top).symlink_to(Path(str(one.locate_file(top))))
    return tmp_path


ALL_PARTS = """
import gpu, json
from xlift.models import Placement
bench = gpu.bench_of(Placement("cpu", "bfloat16", ""), True)
print(json.dumps({name: part(bench) for name, part in gpu.PARTS.items() if name != "checks"}))
"""


def test_every_part_of_the_benchmark_for_gpus_runs_on_tiny_shapes_where_nothing_else_is_installed(
    benchmark: Any, bare: Path
) -> None:
    root = Path(__file__).parents[1]
    path = os.pathsep.join(str(one) for one in (bare, root / "src", root / "tests", root / "benchmarks"))
    line = [sys.executable, "-S", "-c", "import device_properties" + ALL_PARTS]
    env = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=bare)
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout.splitlines()[-1])
    missing = [row["what"] for found in parts.values() for row in found if not row.get("tokens/s")]
    kernels = ("Liger", "cut cross-entropy")
    assert missing == [f"{name} {shape}: not installed" for shape in ("270m", "7b") for name in kernels]
    assert all(row["off"] < 0.02 for row in parts["loss"] if "off" in row)
    told = [{"part": name, "seconds": 1, "problem": "", "found": found} for name, found in parts.items()]
    text = benchmark.table({"device": "x", "date": "", "versions": {}, "parts": told})
    assert "| xlift lora 7b |" in text


def test_a_part_that_takes_too_long_or_fails_is_a_part_with_a_problem(benchmark: Any) -> None:
    assert benchmark.run_part("checks", ["--smoke"], 0.1)["problem"] == "stopped after 0 s"
