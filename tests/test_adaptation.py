"""Kinds of adaptation beyond plain LoRA: each trains what it says, and comes back from its checkpoint as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xlift.errors import ModelError
from xlift.hub import locate
from xlift.models import KeptBase, Placement, load_model, loaded_checkpoint
from xlift.planning.forecast import model_size
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.adapters import choose_layers, with_adapters
from xlift.tuning.train import prepared_model, train
from xlift.workspace import RunFolder

CPU = Placement("cpu", "float32", "test")
HALF = Placement("cpu", "bfloat16", "test")
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "modules_to_save": {"modules_to_save": ["norm"]},
    "layers": {"layers": "last 1"},
    "all": {"rslora": True, "dora": True, "modules_to_save": ["norm"], "layers": [0]},
}


def config(tiny: Path, **adaptation: Any) -> RunConfig:
    settings: dict[str, Any] = {"steps": 3, "batch_tokens": 200, "micro_batch_tokens": 200, "template": "gemma"}
    own = Adaptation(**({"rank": 4} | adaptation))
    return RunConfig(model=str(tiny), learning_rate=1e-2, checkpoint_every=1, adaptation=own, **settings)


def trained(tiny: Path, folder: Path, conversations: list[Any], placement: Placement, **adaptation: Any) -> RunFolder:
    run = RunFolder(folder, "test", config(tiny, **adaptation), folder)
    train(run, locate(str(tiny)), placement, conversations, [], until=2)
    train(run, locate(str(tiny)), placement, conversations, [])
    return run


@pytest.mark.parametrize("placement", [CPU, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_from_its_checkpoint_merged_as_it_was_trained(
    tiny: Path, conversations: list[Any], tmp_path: Path, kind: str, placement: Placement
) -> None:
    from peft import PeftModel

    run = trained(tiny, tmp_path, conversations, placement, **KINDS[kind])
    ids, checkpoint, kept = torch.arange(5, 25)[None], run.checkpoint(3), KeptBase()
    apart = PeftModel.from_pretrained(load_model(str(tiny), placement), str(checkpoint)).eval()(ids).logits.float()
    plain = load_model(str(tiny), placement)(ids).logits.float()
    with loaded_checkpoint(locate(str(tiny)), checkpoint, placement, kept=kept) as model:
        assert not any("lora" in name for name, _ in model.named_modules())
        off = (model(ids).logits.float() - apart).norm()
    assert off <= (1e-4 if placement is CPU else 0.3) * (apart - plain).norm()
    with kept.lent(locate(str(tiny)), placement) as again:
        assert again is model
        assert torch.equal(again(ids).logits.float(), plain)


@pytest.mark.parametrize("kind", ["layers", "all"])
def test_half_way_back_to_the_base_is_half_way_in_every_weight(
    tiny: Path, conversations: list[Any], tmp_path: Path, kind: str
) -> None:
    run, base = trained(tiny, tmp_path, conversations, CPU, **KINDS[kind]), locate(str(tiny))
    found = []
    for weight in (0.5, 1.0):
        with loaded_checkpoint(base, run.checkpoint(3), CPU, weight) as model:
            found.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in load_model(str(tiny), CPU).state_dict().items():
        torch.testing.assert_close(found[0][name], (value + found[1][name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_cut_short_comes_to_the_weights_of_one_that_was_not(
    tiny: Path, conversations: list[Any], tmp_path: Path, kind: str
) -> None:
    cut = trained(tiny, tmp_path / "cut", conversations, CPU, **KINDS[kind])
    whole = RunFolder(tmp_path / "whole", "test", cut.config, tmp_path / "whole")
    train(whole, locate(str(tiny)), CPU, conversations, [])
    found, wanted = (load_file(run.checkpoint(3) / "adapter_model.safetensors") for run in (cut, whole))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_modules_that_are_trained_whole_learn_in_float32(tiny: Path) -> None:
    with prepared_model(config(tiny, modules_to_save=["norm"]), locate(str(tiny)), HALF) as model:
        learned = {name: one.dtype for name, one in model.named_parameters() if one.requires_grad}
        assert set(learned.values()) == {torch.float32}
        assert any(".norm." in name for name in learned)
        assert model(torch.arange(5, 9)[None]).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [("first 1", {0}), ("last 1", {1}), ("all-but-last 1", {0}), ([1], {1}), ("last 2", {0, 1}), (None, {0, 1})],
)
def test_only_the_layers_that_are_named_are_tuned(tiny: Path, layers: Any, chosen: set[int]) -> None:
    adapted = with_adapters(load_model(str(tiny), CPU), config(tiny, layers=layers))
    whole = load_model(str(tiny), CPU)
    choose_layers(whole, layers)
    for model in (adapted, whole):
        names = [name for name, one in model.named_parameters() if one.requires_grad and ".layers." in name]
        assert {int(name.split(".layers.")[1].split(".")[0]) for name in names} == chosen
    outside = [name for name, one in whole.named_parameters() if one.requires_grad and ".layers." not in name]
    assert bool(outside) == (layers is None)


def test_full_fine_tuning_of_the_last_layer_leaves_all_else_as_it_was(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    run = trained(tiny, tmp_path, conversations, CPU, method="full", layers="last 1")
    before, after = load_model(str(tiny), CPU).state_dict(), load_file(run.checkpoint(3) / "model.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)


def test_check_counts_what_is_trained(tiny: Path) -> None:
    for settings in ({"layers": [0]}, {"method": "full", "layers": [0]}, {"dora": True}, {"modules_to_save": ["norm"]}):
        own = config(tiny, **settings)
        with prepared_model(own, locate(str(tiny)), CPU) as model:
            wanted = sum(one.numel() for one in model.parameters() if one.requires_grad)
        assert model_size(locate(str(tiny)), own.adaptation).trainable == wanted


@pytest.mark.parametrize("layers", ["last 3", "all-but-last 2", [2]])
def test_layers_that_are_not_there_are_refused(tiny: Path, layers: Any) -> None:
    with pytest.raises(ModelError, match=r"of a model that has 2 layers\n.*0 to 1"):
        with_adapters(load_model(str(tiny), CPU), config(tiny, layers=layers))


def test_modules_that_are_not_there_or_share_their_weights_are_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match="no layer 'nrm'; did you mean 'norm'"):
        with_adapters(load_model(str(tiny), CPU), config(tiny, modules_to_save=["nrm"]))
    with pytest.raises(ModelError, match="modules_to_save: 'lm_head' shares its weights"):
        with_adapters(load_model(str(tiny), CPU), config(tiny, modules_to_save=["lm_head"]))


def test_settings_say_what_they_take() -> None:
    with pytest.raises(ValueError, match="layers are `first 4`"):
        Adaptation(layers="the last 4")
    full, part = (RunConfig(adaptation=Adaptation(method="full", layers=layers)) for layers in (None, "last 2"))
    assert full.content_hash != part.content_hash
    assert json.loads(part.model_dump_json())["adaptation"]["layers"] == "last 2"
