"""Several workers, as torchrun starts them: they train together, and one of them does the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from xlift.errors import ConfigError
from xlift.stages import generate_stage, prepare, rate_stage, report_stage
from xlift.study.loading import load_study
from xlift.workspace import locked

MICRO_BATCH = 60
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def write_study(folder: Path, model: Path) -> Path:
    pairs = [
        {"instruction": f"Tell me {i} things." + " Please." * (i % 3), "output": f"Thing {i}." + " Yes." * (i % 5)}
        for i in range(16)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    training = {
        "model": str(model),
        "instructions": {"sources": [{"path": "data.jsonl"}], "heldout": 2},
        "adaptation": [{"method": "full"}, {"rank": 4, "dropout": 0.1}],
        "learning_rate": 1e-3,
        "steps": 12,
        "batch_tokens": 4 * MICRO_BATCH,
        "micro_batch_tokens": MICRO_BATCH,
        "checkpoint_every": 2,
    }
    prompts = {"languages": ["en", "ru"], "validation": {"size": 1}, "test": {"size": 2}}
    study = {"name": "workers", "training": training, "prompts": prompts, "decoding": {"max_new_tokens": 6}}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"raters": ["language"], "device": "cpu", "dtype": "float32"}))
    return path


def start(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stdout=out, stderr=err)


def finish(folder: Path, *command: str) -> None:
    process = start(folder, *command)
    assert process.wait(timeout=300) == 0, (folder / "stderr").read_text()


def worker(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    workers = psutil.Process(launcher.pid).children()
    return next(one for one in workers if one.environ().get("RANK") == str(rank))


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), tiny)


@pytest.fixture(scope="module")
def one(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study made by one process; the folder that it was started in."""
    folder = tmp_path_factory.mktemp("one")
    finish(folder, "-m", "xlift", "run", str(study))
    return folder


@pytest.fixture(scope="module")
def two(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study made by two workers, of whom the first was killed in training and both started again."""
    folder = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, "-m", "xlift", "run", str(study)]
    launcher = start(folder, *command)
    while launcher.poll() is None and not list(folder.glob("results/workers/runs/*/checkpoints/step-*")):
        time.sleep(0.005)
    assert launcher.poll() is None, (folder / "stderr").read_text()
    worker(launcher, 0).kill()
    assert launcher.wait(timeout=300) != 0
    finish(folder, *command)
    return folder


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "workers" / "runs").iterdir())


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_workers_train_to_the_weights_of_one(one: Path, two: Path) -> None:
    compared = 0
    for ours, theirs in zip(runs(two), runs(one), strict=True):
        for path in theirs.glob("checkpoints/step-12/*model.safetensors"):
            expected = load_file(path)
            torch.testing.assert_close(load_file(ours / path.relative_to(theirs)), expected, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared == 2


def test_two_workers_log_the_losses_of_one_and_every_step_once(one: Path, two: Path) -> None:
    for ours, theirs in zip(runs(two), runs(one), strict=True):
        if not (theirs / "train.jsonl").exists():
            continue
        ours_log, theirs_log = records(ours / "train.jsonl"), records(theirs / "train.jsonl")
        # The comparison says something only where a step has work for both.
        assert any(record.get("tokens", 0) > MICRO_BATCH for record in theirs_log)
        assert [record["step"] for record in ours_log] == list(range(13))
        for mine, other in zip(ours_log, theirs_log, strict=True):
            for record in (mine, other):
                record.pop("tokens_per_second", None)
                record |= record.pop("validation", {"margins": {}})["margins"]
            assert mine == pytest.approx(other, rel=1e-3)


def test_two_workers_leave_the_files_of_one_and_answer_every_prompt_once(one: Path, two: Path) -> None:
    def listing(folder: Path) -> set[str]:
        study = folder / "results" / "workers"
        return {str(path.relative_to(study)) for path in study.rglob("*") if path.is_file()}

    assert listing(two) == listing(one)
    for ours, theirs in zip(runs(two), runs(one), strict=True):
        for path in [*theirs.glob("responses/*"), *theirs.glob("ratings/*")]:
            found = [(record["id"], record["language"]) for record in records(ours / path.relative_to(theirs))]
            assert len(found) == len(set(found))
            assert found == [(record["id"], record["language"]) for record in records(path)]


def test_two_workers_tell_the_result_once(one: Path, two: Path) -> None:
    assert (two / "stdout").read_text() == (one / "stdout").read_text()
    told = (two / "stderr").read_text()
    assert len([line for line in told.splitlines() if line.startswith("train lora")]) == 1


def test_a_later_worker_writes_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write_study(tmp_path, tiny))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    out = tmp_path / "out"
    workspace = prepare(study, out)
    for stage in (generate_stage, rate_stage, report_stage):
        stage(workspace)
    workspace.runs[0].set_stage("train", "done")
    with pytest.raises(SystemExit) as ended, locked(out):
        pass
    assert ended.value.code == 0
    assert not out.exists()


def test_a_study_in_use_is_not_changed_by_a_second_process(tiny: Path, tmp_path: Path) -> None:
    file = write_study(tmp_path, tiny)
    study, other = load_study(file), load_study(file, ["prompts.test.size=1"])
    out = tmp_path / "out"
    prepare(study, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with locked(out):
        # As it is, the study can be looked at while another process works on it.
        prepare(study, out)
        with pytest.raises(ConfigError, match="another xlift process"):
            prepare(other, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    prepare(other, out)
    assert (out / "study.yaml").read_bytes() != before[out / "study.yaml"]


LATE = """
import os, sys, time
from pathlib import Path

# What the first worker writes comes half a second late.
if os.environ["RANK"] == "0":
    import xlift.stages, xlift.tuning.checkpoints, xlift.tuning.train, xlift.workspace

    def late(function):
        def slow(*arguments, **options):
            time.sleep(0.5)
            return function(*arguments, **options)
        return slow

    xlift.tuning.checkpoints._write = late(xlift.tuning.checkpoints._write)
    xlift.stages.write_jsonl = late(xlift.stages.write_jsonl)
    xlift.workspace.RunFolder.set_stage = late(xlift.workspace.RunFolder.set_stage)
from xlift.cli import main
sys.argv = ["xlift", *sys.argv[1:]]
main()
"""


FILLING = """
import os, sys, time
import xlift.stages

# Every call that fills a cache tells when it begins and ends; the first worker's take half a second.
def told(name):
    function = getattr(xlift.stages, name)
    def slow(*arguments, **options):
        begun = time.time()
        if os.environ["RANK"] == "0":
            time.sleep(0.5)
        found = function(*arguments, **options)
        line = f"filling {name} {os.environ['RANK']} {begun} {time.time()}"
        os.write(2, (line + chr(10)).encode())
        return found
    setattr(xlift.stages, name, slow)

told("kept_examples")
told("locate")
from xlift.cli import main
sys.argv = ["xlift", *sys.argv[1:]]
main()
"""


def test_workers_prepare_data_and_models_after_the_first_one_has(tiny: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, tiny)
    (tmp_path / "filling.py").write_text(FILLING)
    changes = ["training.steps=1", "training.adaptation={rank: 4}"]
    finish(tmp_path, *TORCHRUN, str(tmp_path / "filling.py"), "train", str(study), *changes)
    told = re.findall(r"filling (\w+) (\d) (\S+) (\S+)", (tmp_path / "stderr").read_text())
    assert {(name, rank) for name, rank, *_ in told} == {(n, r) for n in ("kept_examples", "locate") for r in "01"}
    for name in ("kept_examples", "locate"):
        ended = [float(end) for one, rank, _, end in told if (one, rank) == (name, "0")]
        begun = [float(begin) for one, rank, begin, _ in told if (one, rank) == (name, "1")]
        assert len(ended) == len(begun)
        assert all(first <= later for first, later in zip(ended, begun, strict=True))


def halved(folder: Path, model: Path) -> Path:
    path = write_study(folder, model)
    study = yaml.safe_load(path.read_text())
    study["training"] |= {"adaptation": {"rank": 4}, "learning_rate": [1e-4, 1e-3, 1e-2], "checkpoint_every": 4}
    study |= {"halving": {"first": 4, "factor": 2}, "validation": {"every": 4}}
    path.write_text(yaml.safe_dump(study))
    return path


def test_workers_train_the_same_runs_however_late_the_first_one_writes(tiny: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("study", "one", "two")}
    for folder in folders.values():
        folder.mkdir()
    study = halved(folders["study"], tiny)
    (folders["study"] / "late.py").write_text(LATE)
    finish(folders["one"], "-m", "xlift", "train", str(study))
    late = [*TORCHRUN, str(folders["study"] / "late.py"), "train", str(study)]
    launcher = start(folders["two"], *late)
    while launcher.poll() is None and not list(folders["two"].glob("results/workers/runs/*/checkpoints/step-*")):
        time.sleep(0.02)
    worker(launcher, 1).kill()
    assert launcher.wait(timeout=300) != 0
    finish(folders["two"], *late)
    compared = 0
    for ours, theirs in zip(runs(folders["two"]), runs(folders["one"]), strict=True):
        steps = sorted(path.name for path in theirs.glob("checkpoints/*"))
        assert sorted(path.name for path in ours.glob("checkpoints/*")) == steps
        for path in theirs.glob("checkpoints/*/adapter_model.safetensors"):
            expected = load_file(path)
            torch.testing.assert_close(load_file(ours / path.relative_to(theirs)), expected, rtol=1e-3, atol=1e-4)
            compared += 1
    assert compared == 3 + 2 + 1


def test_a_worker_that_breaks_ends_the_others_too(tiny: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, tiny)
    broken = LATE.replace('os.environ["RANK"] == "0"', 'os.environ["RANK"] == "1"').replace(
        "time.sleep(0.5)", 'raise RuntimeError("no memory is left")'
    )
    broken = broken.replace("xlift.tuning.checkpoints._write = late(xlift.tuning.checkpoints._write)", "")
    (tmp_path / "broken.py").write_text(
        broken.replace(
            "xlift.stages.write_jsonl = late(xlift.stages.write_jsonl)",
            "xlift.tuning.train.train_step = late(xlift.tuning.train.train_step)",
        )
    )
    launcher = start(tmp_path, *TORCHRUN, str(tmp_path / "broken.py"), "train", str(study))
    assert launcher.wait(timeout=120) != 0
    assert "no memory is left" in (tmp_path / "stderr").read_text()


WRONG = {
    "known when its data is read": ("training.warmup_steps=50", r"warmup_steps \(50\) reach beyond the run"),
    "a model that is not there": ("training.model=nobody/never", "model 'nobody/never' is not in the local cache"),
    "data that is none": ("training.instructions.sources=[{path: study.yaml, format: messages}]", "study.yaml:1: not"),
    "a tracker that is not installed": ("tracking=[mlflow]", "tracking: not installed: mlflow"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_trained_is_told_and_leaves_no_worker_waiting(tiny: Path, tmp_path: Path, wrong: str) -> None:
    override, told = WRONG[wrong]
    launcher = start(tmp_path, *TORCHRUN, "-m", "xlift", "train", str(write_study(tmp_path, tiny)), override)
    try:
        assert launcher.wait(timeout=150) != 0
    finally:
        launcher.terminate()
    assert re.search(told, (tmp_path / "stderr").read_text())
