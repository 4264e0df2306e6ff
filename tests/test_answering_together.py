"""Checkpoints of one base answer in one pass: each says what it says alone, and none is held up by another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from xlift.checkpoint import checkpoints
from xlift.errors import UserError
from xlift.generation import proof, responses
from xlift.stages import generate_stage, prepare, train_stage
from xlift.study.loading import load_study, parse_study
from xlift.workspace import StudyFolder, find_study


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Two LoRA runs, with two checkpoints each, and the base."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"messages": [{"role": "user", "content": f"Why {i}?"}, {"role": "assistant", "content": f"Light {i}."}]}
            for i in range(6)]  # fmt: skip
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    training = {
        "model": str(tiny),
        "instructions": {"sources": [{"path": "data.jsonl"}], "heldout": 2},
        "adaptation": {"rank": 4},
        "learning_rate": 1e-1,
        "seed": [0, 1],
        "steps": 2,
        "checkpoint_every": 1,
        "batch_tokens": 40,
        "micro_batch_tokens": 40,
    }
    prompts = {"languages": ["en", "ru"], "validation": {"size": 1}, "test": {"size": 2}}
    study = {"name": "together", "training": training, "prompts": prompts, "device": "cpu", "dtype": "bfloat16"}
    study |= {"validation": {"margins": False, "grammar": False}}
    study |= {"decoding": {"max_new_tokens": 6, "checkpoints": "all", "batch_size": 8}, "together": "auto"}
    (folder / "study.yaml").write_text(json.dumps(study), encoding="utf-8")
    workspace = prepare(load_study(folder / "study.yaml"), folder / "out")
    train_stage(workspace, offline=True)
    return workspace


@pytest.fixture
def study(trained: StudyFolder, tmp_path: Path) -> StudyFolder:
    shutil.copytree(trained.path, tmp_path / "out")
    return find_study(tmp_path / "out")


def passes(monkeypatch: pytest.MonkeyPatch, faster: bool) -> list[int]:
    """How many checkpoints each pass has, where it is told which way is faster."""
    sizes: list[int] = []
    own = responses._answer
    monkeypatch.setattr(responses, "pays", lambda *given: faster)
    monkeypatch.setattr(
        responses, "_answer", lambda model, group, *more: sizes.append(len(group)) or own(model, group, *more)
    )
    return sizes


def said(study: StudyFolder) -> dict[tuple[str, int, str], str]:
    found = checkpoints(find_study(study.path))
    return {(one.run.id, one.step, record["id"]): record["text"] for one in found for record in one.responses}


def test_what_is_said_is_the_same_in_one_pass_and_one_after_another_also_in_bfloat16(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.path, tmp_path / "again")
    sizes = passes(monkeypatch, faster=True)
    # A checkpoint is proved where it answers: weights are laid out once a base.
    monkeypatch.setattr(proof, "answering", None)
    generate_stage(study, offline=True)
    assert sorted(sizes) == [1, 4]
    sizes = passes(monkeypatch, faster=False)
    generate_stage(find_study(tmp_path / "again"), offline=True)
    assert sizes == [1] * 5
    whole = said(study)
    assert len(whole) == 5 * 6
    assert len({text for (_, _, name), text in whole.items() if name == next(iter(whole))[2]}) > 1
    assert whole == said(find_study(tmp_path / "again"))


def test_a_pass_that_is_killed_goes_on_and_loses_nothing(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(study.path, tmp_path / "again")
    own, made = responses.response_of, list[Any]()

    def record(*given: Any) -> dict[str, Any]:
        made.append(given)
        if len(made) == 7:
            raise KeyboardInterrupt
        return own(*given)

    passes(monkeypatch, faster=True)
    monkeypatch.setattr(responses, "response_of", record)
    with pytest.raises(KeyboardInterrupt):
        generate_stage(study, offline=True)
    there = said(study)
    assert len(there) == 6
    assert {run.stage("generate")["state"] for run in study.runs} >= {"interrupted"}
    generate_stage(study, offline=True)
    assert len(made) == 7 + 5 * 6 - 6
    generate_stage(find_study(tmp_path / "again"), offline=True)
    assert said(study) == said(find_study(tmp_path / "again"))
    assert there.items() <= said(study).items()


def test_a_damaged_adapter_fails_its_run_alone(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    passes(monkeypatch, faster=True)
    broken = next(run for run in study.runs if run.trains)
    file = broken.checkpoint(1) / "adapter_model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError) as caught:
        generate_stage(study, offline=True)
    assert all(broken.label in problem for problem in caught.value.problems)
    found = {one.run.id: len(one.unanswered) for one in checkpoints(find_study(study.path)) if one.run.id != broken.id}
    assert set(found.values()) == {0}
    states = {run.id: run.stage("generate")["state"] for run in study.runs}
    assert states.pop(broken.id) == "failed"
    assert set(states.values()) == {"done"}


def test_adapters_among_the_models_of_a_study_answer_in_one_pass_too(
    trained: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = next(run for run in trained.runs if run.trains)
    models = [{"model": str(run.checkpoint(step)), "name": f"step {step}"} for step in (1, 2)]
    models.append({"model": str(run.config.model), "name": "base"})
    raw = {"name": "models", "models": models, "together": "auto", "device": "cpu", "dtype": "bfloat16"}
    raw |= {"prompts": {"languages": ["en"], "validation": {"source": "none"}, "test": {"size": 2}}}
    raw |= {"decoding": {"max_new_tokens": 6}, "validation": {"margins": False, "grammar": False}}
    workspace = prepare(parse_study(raw), tmp_path / "out")
    sizes = passes(monkeypatch, faster=True)
    generate_stage(workspace, offline=True)
    assert sorted(sizes) == [1, 2]
    texts = {tuple(record["text"] for record in one.responses) for one in checkpoints(workspace)}
    assert len(texts) == 3
