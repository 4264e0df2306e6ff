"""A base in 4 bits and an optimiser in 8: less memory, and all else as it is without."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_models import served_study

from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError
from xlift.generation.responses import answer_checkpoints
from xlift.hub import locate
from xlift.models import Placement, load_model
from xlift.planning.forecast import answering_bound, model_size
from xlift.planning.gpus import kept_bytes, training_needs
from xlift.stages import prepare
from xlift.study.loading import load_study
from xlift.study.runs import Adaptation, RunConfig
from xlift.study.served import Decoding
from xlift.tuning.adapters import _dense
from xlift.tuning.loss import response_loss
from xlift.tuning.quantized import In8Bits, loaded_in
from xlift.tuning.train import prepared_model, train
from xlift.workspace import RunFolder

pytest.importorskip("bitsandbytes")
CPU = Placement("cpu", "float32", "test")
IDS = torch.arange(5, 45)[None]
BATCH = {"input_ids": IDS, "labels": IDS}


def config(tiny: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {"steps": 4, "batch_tokens": 200, "micro_batch_tokens": 200, "template": "gemma"}
    settings |= {"adaptation": Adaptation(rank=4, quantized=True), "learning_rate": 1e-2, "checkpoint_every": 2}
    return RunConfig(model=str(tiny), **(settings | changes))


@pytest.fixture
def quantized(tiny: Path) -> Any:
    with ExitStack() as stack:
        yield stack.enter_context(prepared_model(config(tiny), locate(str(tiny)), CPU))


def test_all_linear_layers_but_the_last_are_in_four_bits_and_adapters_alone_are_trained(
    quantized: Any, tiny: Path
) -> None:
    layers = {name: one for name, one in quantized.named_modules() if isinstance(one, LoraLayer)}
    assert layers
    assert all(one.get_base_layer().weight.dtype == torch.uint8 for one in layers.values())
    assert quantized.get_output_embeddings().weight.dtype == torch.float32
    trained = {name: one.dtype for name, one in quantized.named_parameters() if one.requires_grad}
    assert all("lora_" in name and dtype == torch.float32 for name, dtype in trained.items())
    response_loss(quantized, BATCH).backward()
    assert {name for name, one in quantized.named_parameters() if one.grad is not None} == trained.keys()
    size = model_size(locate(str(tiny)), Adaptation(rank=4))
    gpu = [answering_bound(config(tiny), size, replace(CPU, device="cuda"), bits)["weights"] for bits in (4, 8, 0)]
    assert gpu[0] < gpu[1] - 0.4 * size.linear < gpu[2] - 3 * size.linear
    assert size.linear == 2 * sum(one.get_base_layer().weight.numel() for one in layers.values())


def test_the_own_step_through_four_bits_is_that_of_peft(quantized: Any) -> None:
    def made() -> list[torch.Tensor]:
        quantized.zero_grad()
        loss = response_loss(quantized, BATCH)
        loss.backward()
        return [loss.detach(), *(one.grad.clone() for one in quantized.parameters() if one.grad is not None)]

    with torch.no_grad():
        for name, one in quantized.named_parameters():
            if "lora_B" in name:
                one.normal_(std=0.1)
    own = made()
    for layer in quantized.modules():
        if isinstance(layer, LoraLayer):
            assert "forward" in layer.__dict__
            del layer.__dict__["forward"]
    for mine, theirs in zip(own, made(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


# On a CPU bitsandbytes rounds layers of a few hundred weights by 20 to 40 %, larger ones by 9.
def test_weights_in_four_bits_are_those_of_the_base_but_for_rounding(quantized: Any, tiny: Path) -> None:
    plain = load_model(str(tiny), CPU)
    for name, layer in quantized.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            weight = plain.get_submodule(name).weight
            assert 0 < (_dense(layer.get_base_layer().weight) - weight).norm() < 0.5 * weight.norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_in_eight_bits_are_within_half_a_step_and_answer_row_by_row(tiny: Path, dtype: str) -> None:
    placement = replace(CPU, dtype=dtype)
    plain = load_model(str(tiny), placement)
    with loaded_in(8, locate(str(tiny)), None, placement) as model, torch.inference_mode():
        small = {name: one for name, one in model.named_modules() if isinstance(one, In8Bits)}
        layers = {name for name, one in plain.named_modules() if type(one) is torch.nn.Linear} - {"lm_head"}
        assert small.keys() == layers
        for name, one in small.items():
            layer = plain.get_submodule(name)
            step = layer.weight.float().abs().amax(1, keepdim=True) / 127
            # bitsandbytes rounds to float16 first.
            assert (one.weight * step - layer.weight).abs().le(0.6 * step).all()
            states = torch.randn(6, one.in_features, dtype=layer.weight.dtype)
            made = one(states)
            assert (made - layer(states)).norm() < 0.02 * layer(states).norm()
            # In float32 products are added in another order with another number of rows, as those of plain layers are.
            off = 0.0 if dtype == "bfloat16" else 1e-5
            torch.testing.assert_close(one(states[2:4]), made[2:4], rtol=off, atol=off)
        with loaded_in(0, locate(str(tiny)), None, placement) as whole:
            assert not any(isinstance(one, In8Bits) for one in whole.modules())


def test_bits_are_named_by_their_number_or_by_true() -> None:
    assert [Decoding.model_validate({"quantized": value}).quantized for value in (True, False, 4, 8, 0)] == [
        4,
        0,
        4,
        8,
        0,
    ]
    with pytest.raises(ValueError, match="4 or 8"):
        Decoding.model_validate({"quantized": 5})


CHANGES: dict[str, dict[str, Any]] = {
    "quantized": {},
    "adamw8bit": {"adaptation": Adaptation(rank=64), "optimizer": "adamw8bit"},
    "both, full": {"adaptation": Adaptation(method="full"), "optimizer": "adamw8bit"},
}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_in_few_bits_answers_and_its_answers_and_margins_are_its_own(
    tiny: Path, tmp_path: Path, bits: int
) -> None:
    texts, marks, margins = [], [], []
    for number, more in enumerate([{}, {"quantized": bits}, {"quantized": bits, "batch_size": 1}]):
        study = load_study(served_study(tmp_path, [str(tiny)], decoding={"max_new_tokens": 8, "batch_size": 3, **more}))
        (one,) = checkpoints(prepare(study, tmp_path / str(number)))
        assert ("quantize" in study.extras) == bool(more)
        assert not answer_checkpoints([(one, locate(str(tiny)))], replace(CPU, dtype="bfloat16"))
        one = replace(one)
        assert not one.unmeasured
        texts.append({record["id"]: record["text"] for record in one.responses})
        marks.append(one.decoding.signature)
        margins.append({row["signature"].count(f"|{bits}bit") for row in one.margins.values()})
    # However many are answered together.
    assert texts[0] != texts[1] == texts[2]
    assert marks[1] == f"{marks[0]}|{bits}bit"
    assert margins == [{0}, {1}, {1}]


def whole_and_cut(
    settings: RunConfig, placement: Placement, conversations: list[Any], folder: Path
) -> tuple[RunFolder, RunFolder]:
    """A run of four steps, and the same begun again behind its second."""
    whole, cut = (RunFolder(folder / name, name, settings, folder / name) for name in ("whole", "cut"))
    for run, until in ((whole, None), (cut, 2), (cut, None)):
        train(run, locate(settings.model), placement, conversations, [], until=until)
    return whole, cut


def same_state(whole: RunFolder, cut: RunFolder) -> dict[str, torch.Tensor]:
    """The state of training after the fourth step, which is that of both."""
    state, other = (load_file(run.training_state(4)) for run in (whole, cut))
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    return state


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_that_was_cut_short_comes_to_the_weights_of_one_that_was_not(
    tiny: Path, conversations: list[Any], tmp_path: Path, kind: str
) -> None:
    settings = config(tiny, **CHANGES[kind])
    whole, cut = whole_and_cut(settings, CPU, conversations, tmp_path)
    state = same_state(whole, cut)
    assert any(value.dtype == torch.uint8 for value in state.values()) == (settings.optimizer == "adamw8bit")


def test_what_is_kept_small_makes_another_run_and_is_counted(tiny: Path) -> None:
    runs = [config(tiny, adaptation=Adaptation(rank=4)), config(tiny), config(tiny, optimizer="adamw8bit")]
    assert len({run.content_hash for run in runs}) == 3
    base = locate(str(tiny))
    size = model_size(base, runs[0].adaptation)
    needs = [training_needs(run, size, kept_bytes(base.path, None, runs[0].adaptation)) for run in runs]
    assert needs[0].weights - needs[1].weights == pytest.approx((2 - 0.516) * size.linear, rel=1e-3)
    assert needs[2].optimiser < 0.51 * needs[0].optimiser


@pytest.mark.parametrize("other", [{"method": "full"}, {"dora": True}])
def test_four_bits_are_refused_where_nothing_is_frozen_or_adapters_need_the_weights(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="quantized keeps a frozen base in 4 bits"):
        Adaptation(quantized=True, **other)


def test_a_machine_without_the_package_is_told_the_command(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlift.extras.find_spec", lambda name: None)
    for settings in (config(tiny), config(tiny, adaptation=Adaptation(method="full"), optimizer="adamw8bit")):
        run = RunFolder(tmp_path, "test", settings, tmp_path)
        with pytest.raises(ConfigError, match="bitsandbytes: not installed") as refused:
            train(run, locate(str(tiny)), CPU, conversations, [])
        assert "pip install 'xlift[quantize]'" in str(refused.value.hint)
