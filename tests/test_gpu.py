"""The properties of device_properties.py, on a GPU (marked `gpu`) where there is one; the benchmark for GPUs runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from device_properties import PROPERTIES

from xlift.hub import Located
from xlift.models import Placement


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


def test_every_part_of_the_benchmark_for_gpus_runs_on_tiny_shapes(benchmark: Any) -> None:
    bench = benchmark.bench_of(Placement("cpu", "bfloat16", ""), True)
    parts = {name: part(bench) for name, part in benchmark.PARTS.items() if name != "checks"}
    assert all(row["tokens/s"] > 0 for found in parts.values() for row in found)
    told = [{"part": name, "seconds": 1, "problem": "", "found": found} for name, found in parts.items()]
    text = benchmark.table({"device": "x", "date": "", "versions": {}, "parts": told})
    assert "| xlift lora 7b |" in text


def test_a_part_that_takes_too_long_or_fails_is_a_part_with_a_problem(benchmark: Any) -> None:
    assert benchmark.run_part("checks", ["--smoke"], 0.1)["problem"] == "stopped after 0 s"
