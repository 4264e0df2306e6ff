"""Runs of a grid that are trained in one pass: each comes to what it comes to alone."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from warm import run_xlift, start_xlift

from xlift.errors import UserError
from xlift.executors import groups_of
from xlift.stages import prepare, train_stage
from xlift.study.loading import load_study
from xlift.tuning.together import Choice
from xlift.workspace import RunFolder, StudyFolder, open_study

STEPS = 6
GRID = [
    {"adaptation": {"rank": 4}},
    {"adaptation": {"rank": 4, "alpha": 8}, "learning_rate": 1e-2},
    {"adaptation": {"rank": 4, "dropout": 0.3}, "seed": 1},
    {"adaptation": {"rank": 4, "targets": "all-linear"}, "batch_tokens": 90},
]


def study_of(folder: Path, model: Path, conversations: list[Any], grid: Sequence[Any] = GRID, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations), encoding="utf-8")
    same = {"model": str(model), "instructions": {"sources": [{"path": "data.jsonl"}], "heldout": 2}}
    same |= {
        "learning_rate": 1e-3,
        "steps": STEPS,
        "batch_tokens": 150,
        "micro_batch_tokens": 60,
        "checkpoint_every": 3,
    }
    study = {
        "name": "s",
        "training": same,
        "include": list(grid),
        "exclude": [{"learning_rate": 1e-3, "adaptation.rank": 16}],
        "prompts": {"languages": ["en", "ru"], "validation": {"size": 1}, "test": {"size": 1}},
        "validation": {"margins": False},
        "device": "cpu",
        "dtype": "float32",
        **more,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def trained(path: Path, together: Any, out: str) -> StudyFolder:
    study = load_study(path, [f"together={together}"])
    workspace = prepare(study, path.parent / out)
    train_stage(workspace)
    return workspace


def tuned(workspace: StudyFolder) -> list[RunFolder]:
    return [run for run in workspace.runs if run.trains]


def log_of(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.train_log.read_text().splitlines()]


def assert_same(ours: RunFolder, theirs: RunFolder, step: int = STEPS) -> None:
    """The same losses and weights, up to rounding."""
    for mine, other in zip(log_of(ours), log_of(theirs), strict=True):
        for record in (mine, other):
            record.pop("tokens_per_second", None)
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-6)
    found, wanted = (load_file(one.checkpoint(step) / "adapter_model.safetensors") for one in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def data() -> list[Any]:
    def said(i: int) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"Question number {i} about the sky?" + " Why?" * (i % 3)},
            {"role": "assistant", "content": f"Answer {i}: light is scattered." + " Yes." * (i % 5)},
        ]

    return [{"id": str(i), "messages": said(i)} for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def alone(folder: Path, tiny: Path, data: list[Any]) -> StudyFolder:
    return trained(study_of(folder / "study", tiny, data), 1, "alone")


def test_four_runs_in_one_pass_have_the_losses_and_weights_of_each_alone(folder: Path, alone: StudyFolder) -> None:
    together = trained(folder / "study" / "study.yaml", 4, "together")
    assert len(tuned(together)) == 4
    # Rates, scale, dropout, data order, and how many micro-batches a step has: all differ.
    assert len({run.config.micro_batch_tokens for run in tuned(together)}) == 1
    for ours, theirs in zip(tuned(together), tuned(alone), strict=True):
        assert_same(ours, theirs)
        names = {str(path.relative_to(theirs.path)) for path in theirs.path.rglob("*")}
        assert {str(path.relative_to(ours.path)) for path in ours.path.rglob("*")} == names


def test_passes_may_hold_some_of_the_runs_and_auto_measures_both_ways(
    folder: Path, alone: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trained(folder / "study" / "study.yaml", "auto", "auto")
    assert "together is" in capsys.readouterr().err
    some = trained(folder / "study" / "study.yaml", 3, "some")
    for workspace in (found, some):
        for ours, theirs in zip(tuned(workspace), tuned(alone), strict=True):
            assert_same(ours, theirs)


def test_runs_begun_together_are_resumed_alone_and_the_other_way_round(folder: Path, alone: StudyFolder) -> None:
    path = folder / "study" / "study.yaml"
    for begun, ended in ((4, 1), (1, 4)):
        out = f"from {begun} to {ended}"
        workspace = prepare(load_study(path, [f"together={begun}"]), path.parent / out)
        half_way = load_study(path, [f"together={begun}", "halving={first: 3, factor: 2}"])
        train_until(half_way, workspace)
        assert {tuple(run.checkpoint_steps()) for run in tuned(workspace)} == {(3,)}
        for ours, theirs in zip(tuned(trained(path, ended, out)), tuned(alone), strict=True):
            assert_same(ours, theirs)


def train_until(study: Any, workspace: StudyFolder) -> None:
    """The first round of halving alone."""
    import xlift.stages as stages

    kept, most = stages.ProcessWork(), study.together
    work = [run for run in workspace.runs if run.trains]
    if most == 1:
        for run in work:
            stages._train(workspace, run, False, kept, 3)
    else:
        assert not stages._train_together(workspace, work, False, kept, 3, most)


def test_a_run_whose_loss_is_no_number_leaves_the_others_as_they_are(
    tmp_path: Path, tiny: Path, data: list[Any]
) -> None:
    grid = [{"adaptation": {"rank": 4}, "learning_rate": [1e-3, 1e30, 1e-2]}]
    path = study_of(tmp_path / "nan", tiny, data, grid)
    with pytest.raises(UserError, match=r"1e\+30.*loss"):
        trained(path, 3, "together")
    with pytest.raises(UserError):
        trained(path, 1, "alone")
    ours, theirs = (tuned(open_study(load_study(path), path.parent / out)) for out in ("together", "alone"))
    states = [[run.stage("train")["state"] for run in runs] for runs in (ours, theirs)]
    assert states[0] == states[1]
    assert sorted(states[0]) == ["done", "done", "failed"]
    for one, other in zip(ours, theirs, strict=True):
        if one.stage("train")["state"] == "done":
            assert_same(one, other)


def test_runs_killed_together_go_on_to_the_same_weights(tmp_path: Path, folder: Path, alone: StudyFolder) -> None:
    path = Path(shutil.copytree(folder / "study", tmp_path / "copy", ignore=shutil.ignore_patterns("[!sd]*")))
    command = ("train", "study.yaml", "together=4", "--out", "out")
    with (tmp_path / "err").open("w+") as err:
        process = start_xlift(*command, folder=path, streams=[err.fileno()] * 3)
        while process.poll() is None and not list(path.glob("out/runs/*/checkpoints/step-3")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run_xlift(*command, folder=path)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(tuned(open_study(alone.study, path / "out")), tuned(alone), strict=True):
        assert_same(ours, theirs)


def test_only_lora_runs_of_one_base_rank_and_micro_batch_share_a_pass(
    tmp_path: Path, tiny: Path, data: list[Any]
) -> None:
    other = [{"adaptation": {"rank": 8}}, {"packing": False}, {"max_length": 90}]
    path = study_of(tmp_path / "kinds", tiny, data, [*GRID[:2], *({"adaptation": {"rank": 4}} | one for one in other)])
    groups = groups_of(tuned(open_study(load_study(path))))
    assert sorted(map(len, groups)) == [1, 1, 3]


def test_the_faster_way_is_kept_and_no_more_runs_share_a_pass_than_memory_holds() -> None:
    choice = Choice(8)
    made = []
    for seconds in (9.0, 9.0, 2.0, 1.0, 1.0, 1.0):
        made.append(choice.passes())
        choice.seconds[made[-1] > 1].append(seconds)
    # Each way warms up once, is measured once, and together took 1 s a token where one after another took 2.
    assert made == [1, 8, 1, 8, 8, 8]
    choice.seconds[False].append(0.5)
    assert choice.passes() == 1
    choice.row_bytes = 100
    choice.fit(free=500)
    assert choice.most == math.floor(0.7 * 500 / 100)
