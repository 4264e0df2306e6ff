from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import xlift
from xlift import models, stages
from xlift.checkpoint import checkpoints, checkpoints_of
from xlift.errors import UserError
from xlift.executors import each_run
from xlift.halving import stopped, surviving
from xlift.hub import locate
from xlift.models import Placement, load_model, loaded_checkpoint
from xlift.records import read_records
from xlift.results import ratings_of_runs
from xlift.stages import generate_stage, prepare, run_study, train_stage
from xlift.study.loading import load_study
from xlift.tuning import encoding
from xlift.tuning.encoding import encode_data
from xlift.workspace import RunFolder, StudyFolder, find_study, open_study

CPU = Placement("cpu", "float32", "test")


_SECONDS = re.compile(rb'"seconds": [0-9.e-]+')


def content(folder: Path) -> dict[str, str]:
    """Hash of every file that does not say when it was made, by its path without the run's hash."""
    timed = {"manifest.json", "train.jsonl", "index.html", "log.txt", "costs.csv", "costs.tex"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(_SECONDS.sub(b"", path.read_bytes())).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in timed and "tracking" not in path.parts
    }


def trained(workspace: StudyFolder) -> list[RunFolder]:
    return [run for run in workspace.runs if run.trains]


def begun_again_by_ray(study_file: Path, out: Path) -> None:
    """A task whose process is killed is begun again."""

    def dies_once(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
        died = run.path / "died"
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (run.path / "ended").touch()

    workspace = prepare(load_study(study_file, ["executor=ray"]), out)
    each_run(workspace, trained(workspace), "train", True, dies_once)
    assert all((run.path / name).exists() for run in trained(workspace) for name in ("died", "ended"))


def test_ray_on_two_nodes_gives_the_files_of_one_process(study_file: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    run_study(load_study(study_file), tmp_path / "here")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, include_dashboard=False)
        begun_again_by_ray(study_file, tmp_path / "died")
        spread = run_study(load_study(study_file, ["executor=ray"]), tmp_path / "ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    ours, theirs = content(tmp_path / "ray"), content(tmp_path / "here")
    for found in (ours, theirs):
        found.pop("study.yaml")
    assert ours == theirs
    assert all(run.stage("generate")["state"] == "done" for run in spread.runs)


def test_a_run_that_breaks_does_not_stop_the_others_and_is_made_again(study_file: Path, tmp_path: Path) -> None:
    study = load_study(study_file)
    workspace = prepare(study, tmp_path / "out")
    broken, whole = trained(workspace)
    # A file where the folder of checkpoints belongs: writing one raises an error that is nobody's setting.
    (broken.path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError) as caught:
        run_study(study, tmp_path / "out")
    assert broken.label in str(caught.value)
    assert whole.stage("generate")["state"] == "done"
    assert "Traceback" in (broken.path / "error-train.txt").read_text()
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    (broken.path / "checkpoints").unlink()
    run_study(study, tmp_path / "out")
    assert broken.stage("generate")["state"] == "done"
    assert not (broken.path / "error-train.txt").exists()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_weights_drawn_back_lie_between_the_base_and_the_tuned_ones(study_file: Path, tmp_path: Path) -> None:
    for method in ("lora", "full"):
        settings = [f"training.adaptation.method={method}", "training.learning_rate=0.01", "training.weight=0.25"]
        workspace = prepare(load_study(study_file, settings), tmp_path / method)
        train_stage(workspace)
        run = next(run for run in workspace.runs if run.config.weight == 0.25)
        assert not (run.path / "checkpoints").exists()
        base, checkpoint = locate(run.config.model), run.checkpoint(4)
        start = weights(load_model(base.path, CPU))
        with loaded_checkpoint(base, checkpoint, CPU) as model:
            end = weights(model)
        with loaded_checkpoint(base, checkpoint, CPU, weight=0.25) as model:
            between = weights(model)
        moved = 0
        for name, value in between.items():
            torch.testing.assert_close(value, start[name] + 0.25 * (end[name] - start[name]), rtol=1e-5, atol=1e-6)
            moved += int(not torch.equal(start[name], end[name]))
        assert moved
        generate_stage(workspace)
        assert run.stage("generate")["state"] == "done"


def test_a_run_goes_on_in_the_dtype_that_it_was_begun_with(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = prepare(load_study(study_file, ["dtype=auto"]), tmp_path / "out")
    run = trained(workspace)[0]
    for fast, expected in ((False, "float32"), (True, "float32")):
        monkeypatch.setattr(models, "_fast_bfloat16", lambda device, fast=fast: (fast, "as told"))
        _, placement = stages._base(workspace, run, True)
        assert placement.dtype == expected
        run.update_manifest(dtype=placement.dtype)
    assert stages._base(workspace, trained(workspace)[1], True)[1].dtype == "bfloat16"


def test_data_is_tokenised_once_for_the_runs_that_share_it(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[int] = []

    def counted(config: Any, *arguments: Any) -> Any:
        tokenised.append(config.max_length)
        return encode_data(config, *arguments)

    monkeypatch.setattr(encoding, "encode_data", counted)
    grid = ["training.max_length=[100, 200]", "training.learning_rate=[1e-3, 1e-2]", "training.steps=1"]
    workspace = prepare(load_study(study_file, [*grid, "validation={margins: False}"]), tmp_path / "out")
    train_stage(workspace)
    assert len(trained(workspace)) == 4
    assert sorted(tokenised) == [100, 200]


def test_the_base_model_is_loaded_once_in_a_process(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counted(path: str, *arguments: Any, **options: Any) -> Any:
        loaded.append(path)
        return load_model(path, *arguments, **options)

    monkeypatch.setattr(models, "load_model", counted)
    grid = ["training.learning_rate=[1e-3, 1e-2]", "training.weight=[0.5, 1.0]", "decoding.checkpoints=all"]
    study = load_study(study_file, grid)
    run_study(study, tmp_path / "out")
    workspace = open_study(study, tmp_path / "out")
    assert len(workspace.runs) == 5
    assert loaded == [workspace.runs[0].config.model]


def test_halving_stops_the_worse_runs_and_goes_on_alike_after_a_break(study_file: Path, tmp_path: Path) -> None:
    rates = "training.learning_rate=[1e-3, 1e-2, 1e-1, 1.0]"
    study = load_study(study_file, [rates, "training.steps=8", "halving={first: 2, factor: 2}"])
    workspace = prepare(study, tmp_path / "out")
    train_stage(workspace)
    reached = {run.id: max(run.checkpoint_steps()) for run in trained(workspace)}
    assert sorted(reached.values()) == [2, 2, 4, 8]
    left = surviving(workspace, workspace.runs)
    assert [run.config.untuned for run in left] == [True, False]
    assert max(left[1].checkpoint_steps()) == 8

    def score(run: RunFolder) -> float:
        record = next(record for record in read_records(run.train_log) if record["step"] == 2)
        return float(record["validation"]["margins"]["ru"])

    out = [run for run in trained(workspace) if reached[run.id] == 2]
    assert max(map(score, out)) <= min(score(run) for run in trained(workspace) if run not in out)
    assert {run.id: step for run in trained(workspace) if (step := reached[run.id]) < 8} == stopped(workspace)
    again = open_study(study, tmp_path / "out")
    assert [run.id for run in surviving(again, again.runs)] == [run.id for run in left]


def test_a_run_that_failed_is_tried_again_with_halving_too(study_file: Path, tmp_path: Path) -> None:
    rates = "training.learning_rate=[1e-3, 1e-2, 1e-1, 1.0]"
    study = load_study(study_file, [rates, "training.steps=8", "halving={first: 2, factor: 2}"])
    workspace = prepare(study, tmp_path / "out")
    broken = trained(workspace)[1]
    (broken.path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match=broken.label):
        train_stage(workspace)
    assert broken.stage("train")["state"] == "failed"
    assert broken.id not in stopped(workspace)
    assert max(max(run.checkpoint_steps()) for run in trained(workspace) if run != broken) == 8
    (broken.path / "checkpoints").unlink()
    train_stage(workspace)
    assert broken.checkpoint_steps()[0] == 2
    assert broken.stage("train")["state"] != "failed"


def test_a_run_whose_loss_is_no_number_never_wins(study_file: Path, tmp_path: Path) -> None:
    rates = "training.learning_rate=[1e-3, 1e-2, 1e-1]"
    study = load_study(study_file, [rates, "training.steps=8", "halving={first: 2, factor: 3}"])
    workspace = prepare(study, tmp_path / "out")
    losses = [None, float("nan"), 9.0]
    for run, loss in zip(trained(workspace), losses, strict=True):
        shares = {"language": {"en": 1.0 if loss != 9.0 else 0.0}}
        run.path.mkdir(exist_ok=True)
        line = json.dumps({"step": 2, "loss": 1.0, "heldout_loss": loss, "validation": shares})
        run.train_log.write_text(line + "\n")
    lost = trained(workspace)[:2]
    assert stopped(workspace) == {run.id: 2 for run in lost}
    assert surviving(workspace, lost) == []


def test_runs_are_compared_by_what_all_of_them_have(study_file: Path, tmp_path: Path) -> None:
    """One whose replies nobody could rate does not win by its margins over the others' shares."""
    grid = ["training.learning_rate=[1e-3, 1e-2, 1e-1]", "training.steps=8", "halving={first: 2, factor: 3}"]
    workspace = prepare(load_study(study_file, grid), tmp_path / "out")
    shares: list[dict[str, Any]] = [{"ru": 0.55}, {"ru": 0.5}, {}]
    for run, own, margin in zip(trained(workspace), shares, [0.8, 0.6, 0.7], strict=True):
        line = {"step": 2, "loss": 1.0, "validation": {"language": own, "margins": {"ru": margin}}}
        run.train_log.write_text(json.dumps(line) + "\n")
    assert stopped(workspace) == {run.id: 2 for run in trained(workspace)[1:]}


def test_a_run_that_is_tried_again_brings_no_stopped_run_back(study_file: Path, tmp_path: Path) -> None:
    grid = ["training.learning_rate=[1e-3, 1e-2, 1e-1]", "training.steps=8", "halving={first: 2, factor: 3}"]
    workspace = prepare(load_study(study_file, grid), tmp_path / "out")
    first, second, broken = trained(workspace)
    for run, margin in ((first, 0.8), (second, 0.6)):
        line = {"step": 2, "loss": 1.0, "validation": {"margins": {"ru": margin}}}
        run.train_log.write_text(json.dumps(line) + "\n")
    broken.set_stage("train", "failed")
    assert stopped(workspace) == {second.id: 2}
    broken.set_stage("train", "running")
    assert stopped(workspace) == {second.id: 2}
    broken.set_stage("train", "done")
    assert stopped(workspace) == {second.id: 2}


def test_a_run_that_halving_stopped_has_no_answers_to_count(study_file: Path, tmp_path: Path) -> None:
    rates = "training.learning_rate=[1e-3, 1e-2]"
    study = load_study(study_file, [rates, "training.steps=6", "halving={first: 2, factor: 2}"])
    workspace = run_study(study, tmp_path / "out")
    (out,) = stopped(workspace)
    runs = {one.run.id for one in checkpoints(workspace)}
    assert runs == {run.id for run in workspace.runs} - {out}
    assert set(xlift.load(workspace.path).ratings["run"]) == runs


def test_validation_is_logged_where_asked_and_changes_no_weight(study_file: Path, tmp_path: Path) -> None:
    one = "training.learning_rate=[1e-3]"
    watched = ["validation={every: 1, responses: 1, max_new_tokens: 4}", one]
    plain = ["validation={margins: false}", one]
    found = {}
    for name, overrides in (("watched", watched), ("plain", plain)):
        workspace = prepare(load_study(study_file, overrides), tmp_path / name)
        train_stage(workspace)
        found[name] = trained(workspace)[0]
    logs = {name: read_records(run.train_log) for name, run in found.items()}
    assert [record["step"] for record in logs["watched"] if "validation" in record] == [0, 1, 2, 3, 4]
    assert set(logs["watched"][1]["validation"]) == {"margins", "language"}
    assert not [record for record in logs["plain"] if "validation" in record]
    assert [r.get("loss") for r in logs["watched"]] == [r.get("loss") for r in logs["plain"]]
    weights = [(run.checkpoint(4) / "adapter_model.safetensors").read_bytes() for run in found.values()]
    assert weights[0] == weights[1]


def test_named_steps_answer_and_curves_reach_the_tracker(study_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["decoding.checkpoints=[2]", "tracking=[tensorboard]", "training.learning_rate=[1e-3]"]
    workspace = run_study(load_study(study_file, overrides), tmp_path / "out")
    run = trained(workspace)[0]
    assert [one.step for one in checkpoints_of(workspace, run)] == [2]
    assert run.responses(2).is_file()
    assert not run.responses(4).exists()
    events = EventAccumulator(str(run.path / "tracking" / run.id))
    events.Reload()
    logged = [round(event.value, 4) for event in events.Scalars("loss")]
    assert logged == [round(record["loss"], 4) for record in read_records(run.train_log) if "loss" in record]


def test_the_tidy_table_holds_every_rating_once_with_how_its_run_was_trained(study_file: Path, tmp_path: Path) -> None:
    workspace = run_study(load_study(study_file), tmp_path / "out")
    ratings = xlift.load(tmp_path / "out").ratings
    prompts = [json.loads(line) for line in workspace.prompts.read_text().splitlines()]
    assert ratings.height == len(prompts) * len(workspace.runs) * 2
    assert not ratings.select(["run", "step", "id", "rater"]).is_duplicated().any()
    assert set(ratings["kind"]) == {"check"}
    rates = ratings.filter(~ratings["untuned"])["learning_rate"].unique().sort().to_list()
    assert rates == [1e-3, 1e-2]
    assert ratings.filter(ratings["untuned"])["learning_rate"].null_count() == ratings["untuned"].sum()
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    runs = [folder / "runs" / workspace.runs[1].id for folder in (tmp_path / "out", tmp_path / "other")]
    both, (first, second) = ratings_of_runs(runs)
    assert first != second
    assert both.height == 2 * ratings.height
    for name in (first, second):
        alone = ratings.filter(ratings["run"] == workspace.runs[1].id)
        assert both.filter(pl.col("run") == name).drop("run").equals(alone.drop("run"))
    assert ratings_of_runs(runs[:1] * 2)[1] == [workspace.runs[1].id] * 2
    curve = xlift.load(tmp_path / "out").training.filter(pl.col("margins/ru").is_not_null())
    assert curve["step"].to_list() == [0, 2, 4] * 2


def test_a_half_trained_run_never_goes_on_with_another_base(study_file: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    study_file.write_text(study_file.read_text().replace(str(tiny), "model"))
    study = load_study(study_file, ["training.learning_rate=1e-3"])
    workspace = prepare(study, tmp_path / "out")
    (run,) = trained(workspace)
    train_run(workspace, run, 2)
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="no longer the base model that this run was begun with"):
        train_stage(workspace)
    assert max(run.checkpoint_steps()) == 2
    # Looked at anew, it is another base and so another run.
    assert {one.id for one in open_study(load_study(study_file), tmp_path / "out").runs}.isdisjoint({run.id})


@pytest.mark.parametrize("changed", ["model/model.safetensors", "model/tokenizer.json", "data.jsonl"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_study_folder_works_on_only_with_what_it_was_made_with(
    changed: str, begun: bool, study_file: Path, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    study_file.write_text(study_file.read_text().replace(str(tiny), "model"))
    workspace = prepare(load_study(study_file, ["training.learning_rate=1e-3"]), tmp_path / "out")
    if begun:
        train_run(workspace, trained(workspace)[0], 2)
    old = (tmp_path / changed).read_bytes()
    other = old[:-4] + b"\0\0\0\0" if changed.endswith("safetensors") else old + b"\n"
    (tmp_path / changed).write_bytes(other)
    again = find_study(tmp_path / "out")
    assert [run.id for run in again.runs] == [run.id for run in workspace.runs]
    with pytest.raises(UserError, match="no longer the"):
        train_stage(again)
    if changed != "data.jsonl":
        # Nor does the untuned base answer with other weights.
        with pytest.raises(UserError, match="no longer the base model"):
            generate_stage(again)
    (tmp_path / changed).write_bytes(old)
    train_stage(again)
    assert again.runs[-1].stage("train")["state"] == "done"


def train_run(workspace: StudyFolder, run: RunFolder, until: int) -> None:
    stages._train(workspace, run, True, stages.ProcessWork(), until)
