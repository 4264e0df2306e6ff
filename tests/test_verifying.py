"""Damage on purpose: every file of a study is flipped, cut, emptied or replaced; it is named, never used in silence."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import xlift
from xlift.cli.studies import list_
from xlift.errors import ConfigError, DataError, ModelError, UserError
from xlift.hub import locate
from xlift.models import load_model, load_tokenizer, loaded_checkpoint, place
from xlift.records import on_scale, read_records
from xlift.report.page import write_pages
from xlift.report.reading import material_of
from xlift.stages import run_study
from xlift.study.loading import load_study
from xlift.tuning.adapters import with_adapters
from xlift.tuning.checkpoints import restore
from xlift.tuning.optimizer import make_optimizer
from xlift.verifying import verify
from xlift.workspace import StudyFolder, find_study

SMALL = ["prompts.languages=[en,ru]", "training.learning_rate=[1e-3,1e-2]", "raters=[language]", "training.steps=2"]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of three runs."""
    folder = tmp_path_factory.mktemp("whole")
    lines = [
        {"messages": [{"role": "user", "content": f"Why {i}?"}, {"role": "assistant", "content": f"Because {i}."}]}
        for i in range(8)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "study.yaml").write_text(
        f"""
name: whole
training:
  model: {tiny}
  instructions: {{sources: [{{path: data.jsonl}}], heldout: 1}}
  adaptation: {{rank: 2}}
  batch_tokens: 120
  micro_batch_tokens: 120
prompts: {{validation: {{size: 1}}, test: {{size: 2}}}}
decoding: {{max_new_tokens: 4}}
report: {{bootstrap: 100}}
device: cpu
dtype: float32
"""
    )
    run_study(load_study(folder / "study.yaml", SMALL), folder / "out")
    return folder / "out"


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> StudyFolder:
    shutil.copytree(whole, tmp_path / "out")
    return find_study(tmp_path / "out")


def test_a_study_that_nobody_touched_is_whole(study: StudyFolder) -> None:
    count, problems = verify(study.path)
    assert problems == []
    assert count >= 20


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_json(path: Path) -> None:
    path.write_text('{"stages": 5, "languages": 5, "id": 5}\n')


def hashed_files(folder: Path) -> list[Path]:
    """Every file of a study of whose bytes none may change."""
    names: tuple[str, ...] = ("checkpoints/*/*.safetensors", "checkpoints/*/tokenizer*.json", "checkpoints/*/*.jinja")
    names += ("checkpoints/*/adapter_config.json", "training_state/*", "responses/*", "ratings/*", "margins/*")
    return sorted(path for name in names for path in folder.glob(f"runs/*-lr1e-2-*/{name}"))


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_every_changed_file_is_named_with_what_mends_it(study: StudyFolder, damage: Callable[[Path], None]) -> None:
    paths = hashed_files(study.path)
    assert len(paths) >= 8
    for path in paths:
        before = path.read_bytes()
        damage(path)
        if damage is not Path.unlink or "training_state" not in str(path):
            found = verify(study.path)[1]
            assert any(str(path) in one and "mend: " in one for one in found), path
        path.write_bytes(before)
    assert verify(study.path)[1] == []


@pytest.mark.parametrize("name", ["run.yaml", "manifest.json", "margins/*", "responses/*", "ratings/*", "train.jsonl"])
@pytest.mark.parametrize("damage", [cut, other_json])
def test_one_damaged_run_is_named_and_the_others_are_reported(
    study: StudyFolder, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = study.runs[-1]
    (path,) = run.path.glob(name)
    if damage is cut and path.suffix == ".jsonl":
        path.write_bytes(b"{" + path.read_bytes())
    else:
        damage(path)
    assert any(str(path) in one for one in verify(study.path)[1])
    list_(study.path)
    assert study.runs[0].id in capsys.readouterr().out
    ratings = xlift.load(study.path).ratings
    assert {one.id for one in study.runs[:-1]} <= set(ratings["run"])
    page = write_pages(material_of(find_study(study.path)), "md").read_text(encoding="utf-8")
    assert all(one.label in page for one in study.runs[:-1])
    if {"responses", "ratings", "margins"} & set(path.parts):
        assert f"Left out, as files cannot be read: {run.label} step" in page


def test_a_run_goes_on_once_the_damaged_file_is_removed_as_it_is_told(study: StudyFolder) -> None:
    run = study.runs[-1]
    kept = run.responses(2).read_bytes()
    (run.path / "manifest.json").write_text("[]")
    again = load_study(study.path / "study.yaml", resolved=True)
    with pytest.raises(UserError, match=r"manifest\.json"):
        run_study(again, study.path)
    (run.path / "manifest.json").unlink()
    run_study(again, study.path)
    assert run.responses(2).read_bytes() == kept
    assert run.stage("train")["state"] == "done"
    assert [one for one in verify(study.path)[1] if "checkpoints" in one] == []


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "missing": lambda tensors: tensors.pop(next(iter(tensors))),
    "renamed": lambda tensors: tensors.update(other=tensors.pop(next(iter(tensors)))),
    "not a number": lambda tensors: next(iter(tensors.values())).fill_(float("nan")),
    "another shape": lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(1)}),
}


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_damaged_weights_are_never_used(study: StudyFolder, change: str, hashed: bool) -> None:
    """By their hash, and, where a folder has none, by their names, shapes and values."""
    run = study.runs[-1]
    weights = run.checkpoint(2)
    changed(weights / "adapter_model.safetensors", CHANGES[change])
    if not hashed:
        (weights / "xlift.json").unlink()
    base = locate(run.config.model)
    with pytest.raises(ModelError, match="step-2"), loaded_checkpoint(base, weights, place("cpu", "float32")):
        pass


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_training_never_continues_from_a_damaged_state(study: StudyFolder, change: str, hashed: bool) -> None:
    from xlift.models import load_model

    run = study.runs[-1]
    changed(run.training_state(2), CHANGES[change])
    if not hashed:
        (run.checkpoint(2) / "xlift.json").unlink()
    model = with_adapters(load_model(run.config.model, place("cpu", "float32")), run.config)
    with pytest.raises(DataError, match="training_state"):
        restore(run, 2, model, make_optimizer(run.config, model))


def test_another_base_model_is_refused_in_chat_too(study: StudyFolder, tiny: Path, tmp_path: Path) -> None:
    from xlift.chat import talk

    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    changed(other / "model.safetensors", lambda tensors: next(iter(tensors.values())).mul_(2))
    run = study.runs[-1]
    settings = (run.path / "run.yaml").read_text().replace(str(tiny), str(other))
    (run.path / "run.yaml").write_text(settings)
    with pytest.raises(ConfigError, match="no longer the base model"):
        talk([str(run.path)], None, 4, True)


def test_a_copy_of_a_checkpoint_made_by_hand_is_none(study: StudyFolder) -> None:
    run = study.runs[-1]
    shutil.copytree(run.checkpoint(2), run.checkpoint(2).with_name("step-2 (copy)"))
    assert run.checkpoint_steps() == [2]


@pytest.mark.parametrize("value", [7, -1, float("nan"), 10**400], ids=["7", "-1", "nan", "huge"])
def test_a_value_off_the_scale_is_missing_and_counted(study: StudyFolder, value: float) -> None:
    run = study.runs[-1]
    before = xlift.load(study.path).ratings
    path = run.ratings(2, "language")
    records = read_records(path)
    path.write_text("".join(json.dumps(one | {"value": value}) + "\n" for one in records))
    ratings = xlift.load(study.path).ratings
    assert len(ratings) == len(before)
    assert ratings["value"].null_count() == before["value"].null_count() + sum(
        one["value"] is not None for one in records
    )
    assert "is not on the scale" in str(on_scale({"value": value})["reason"])


def test_a_damaged_database_of_people_is_named(study: StudyFolder) -> None:
    path = study.path / "annotations.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x TEXT)")
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 200)
    assert verify(study.path)[1] == []
    data = bytearray(path.read_bytes())
    data[4096:12288] = b"\xff" * 8192
    path.write_bytes(data)
    assert any("annotations.sqlite" in one for one in verify(study.path)[1])


def test_a_manifest_of_a_later_version_is_refused(study: StudyFolder) -> None:
    run = study.runs[-1]
    (run.path / "manifest.json").write_text(json.dumps(run.manifest() | {"version": 99}))
    with pytest.raises(DataError, match="later xlift"):
        run.manifest()


def _odd_config(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")


def _loaded(folder: Path) -> Any:
    load_tokenizer(str(folder))
    return load_model(str(folder), place("cpu", "float32"))


def _sharded(folder: Path) -> list[Path]:
    """The files of a model's weights, now several."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    return sorted(folder.glob("*.safetensors"))


def _shard_elsewhere(folder: Path) -> None:
    """A shard that is there and whole, but beside the folder."""
    shard, index = _sharded(folder)[1], folder / "model.safetensors.index.json"
    shard.rename(folder.parent / shard.name)
    index.write_text(index.read_text().replace(f'"{shard.name}"', f'"../{shard.name}"'))


BROKEN: dict[str, Callable[[Path], Any]] = {
    "a configuration that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "a size that is a text": lambda folder: _odd_config(folder, hidden_size="32"),
    "no size": lambda folder: _odd_config(folder, num_attention_heads=0),
    "a type that is none": lambda folder: _odd_config(folder, dtype="float33"),
    "a family that is none": lambda folder: _odd_config(folder, model_type="lama"),
    "a layer more": lambda folder: _odd_config(folder, num_hidden_layers=3),
    "settings of answers that are a list": lambda folder: (folder / "generation_config.json").write_text("[1]"),
    "an empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "half a tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"model": {"vocab'),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "a shard less": lambda folder: _sharded(folder)[1].unlink(),
    "a shard of another name": lambda folder: _sharded(folder)[1].rename(folder / "model-9-of-9.safetensors"),
    "a shard in another folder": lambda folder: _shard_elsewhere(folder),
    "half a shard": lambda folder: (one := _sharded(folder)[1]).write_bytes(one.read_bytes()[:1000]),
    "no list of shards": lambda folder: (_sharded(folder), (folder / "model.safetensors.index.json").unlink()),
    "an odd list of shards": lambda folder: (
        _sharded(folder),
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 5}'),
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_model_folder_whose_files_are_broken_is_refused_by_its_name(tiny: Path, tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    BROKEN[broken](folder)
    with pytest.raises(ModelError, match=str(folder)):
        _loaded(Path(locate(str(folder)).path))


def test_shards_that_changed_their_names_still_give_each_tensor_its_own_values(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    first, second, *_ = _sharded(folder)
    before = _loaded(folder).state_dict()
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    after = _loaded(folder).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_adapter_of_itself_or_with_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        locate(str(tmp_path))
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"its base .* is an adapter too"):
        locate(str(tmp_path))


def test_a_pickle_is_never_read_whatever_lies_beside_it(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert locate(str(folder)).path == str(folder)
    with pytest.raises(ModelError, match="its weights cannot be read"):
        _loaded(folder)
