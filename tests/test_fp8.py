"""Products in floats of 8 bits: the losses of plain ones within what rounding allows, and all else as it is without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from device_properties import relative, some_examples
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_quantized import same_state, whole_and_cut
from test_sharding import in_processes
from warm import run_xlift

from xlift.errors import ConfigError, ModelError
from xlift.executors import groups_of
from xlift.hub import locate
from xlift.models import KeptBase, Placement, load_model, load_tokenizer
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.fp8 import EIGHT, Linear8, Rounded, back, forth, in_eight_bits, rounded, ways_of
from xlift.tuning.loss import response_loss
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.packing import pack
from xlift.tuning.templates import chat_format
from xlift.tuning.train import lay_out, prepared_model, train, train_step
from xlift.workspace import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(F, "scaled_mm"), reason="torch has no products of scaled floats")
CPU = Placement("cpu", "bfloat16", "test")
METHODS = ("lora", "full")


def config(method: str, fp8: bool, **more: Any) -> RunConfig:
    settings: dict[str, Any] = {"batch_tokens": 64, "micro_batch_tokens": 64, "learning_rate": 3e-3, "fp8": fp8}
    own = {"method": method, "rank": 4}
    return RunConfig.model_validate({"adaptation": own, "template": "gemma"} | settings | more)


@contextmanager
def ready(tiny: Path, settings: RunConfig, kept: KeptBase | None = None) -> Iterator[Any]:
    with prepared_model(settings, locate(str(tiny)), CPU, kept) as model:
        lay_out(model, settings, CPU)
        yield model


def losses(tiny: Path, settings: RunConfig, steps: int = 20) -> torch.Tensor:
    chat = chat_format(load_tokenizer(str(tiny)), "plain")
    with ready(tiny, settings) as model:
        optimizer, told = make_optimizer(settings, model), (some_examples(), settings, chat, CPU)
        return torch.tensor([train_step(model, optimizer, *told, step, steps)["loss"] for step in range(steps)])


def test_rows_are_rounded_by_their_largest_entry_and_products_with_them_are_close() -> None:
    torch.manual_seed(0)
    # Rows and columns of very different sizes, as tokens with outliers are.
    rows = (torch.randn(37, 64) * torch.logspace(-3, 3, 37)[:, None]).bfloat16()
    weight = torch.randn(48, 64)
    found = rounded(rows)
    assert found.values.dtype == EIGHT
    off = (found.values.float() * found.scales - rows.float()).abs()
    # Half a unit in the last of three places, or of the smallest entries that there are.
    assert (off <= torch.maximum(rows.float().abs() / 16, found.scales * 2.0**-10) * 1.001).all()
    wanted = rows.float() @ weight.t()
    assert ((forth(rows, weight).float() - wanted).norm(dim=1) < 0.06 * wanted.norm(dim=1)).all()
    grad = torch.randn(37, 48).bfloat16()
    assert relative(back(grad, weight, None), grad.float() @ weight) < 0.06


def test_what_is_multiplied_lies_as_a_gpu_wants_it() -> None:
    weight = torch.randn(48, 64)
    for one in (rounded(weight), rounded(weight.t())):
        assert one.values.is_contiguous()
        assert one.scales.shape == (len(one.values), 1)


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_have_the_losses_of_plain_ones_but_for_rounding(method: str, tiny: Path) -> None:
    plain, eight = (losses(tiny, config(method, fp8)) for fp8 in (False, True))
    assert plain[-1] < 0.9 * plain[0]
    assert not torch.equal(plain, eight)
    assert ((eight - plain).abs() < 0.1 * plain).all()


def gradients(model: Any, method: str) -> torch.Tensor:
    model.zero_grad()
    for name, one in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(one, 0.02)
    with torch.autocast("cpu", torch.bfloat16, enabled=method == "full"):
        response_loss(model, pack(some_examples())).backward()
    return torch.cat([one.grad.float().flatten() for one in model.parameters() if one.grad is not None])


def by_hand(left: Rounded, right: Rounded, fast: bool = False) -> torch.Tensor:
    rows, columns = (one.values.float() * one.scales for one in (left, right))
    return (rows @ columns.t()).bfloat16()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_what_is_rounded_by_hand_and_near_those_of_plain_products(
    method: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ready(tiny, config(method, False)) as model:
        plain = gradients(model, method)
    with ready(tiny, config(method, True)) as model:
        eight = gradients(model, method)
        monkeypatch.setattr("xlift.tuning.fp8.product", by_hand)
        assert relative(eight, gradients(model, method)) < 0.1
    assert F.cosine_similarity(eight, plain, dim=0) > 0.95


def test_the_own_step_of_an_adapted_layer_is_that_of_peft(tiny: Path) -> None:
    torch.manual_seed(0)
    with ready(tiny, config("lora", True)) as model:
        layers: list[Any] = [one for one in model.modules() if isinstance(one, LoraLayer)]
        for layer in layers:
            learned = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
            torch.nn.init.constant_(learned[1], 0.02)
            rows = torch.randn(2, 7, layer.in_features).bfloat16().requires_grad_()
            found = []
            for forward in (layer.__dict__["forward"], type(layer).forward.__get__(layer)):
                made = forward(rows)
                found.append([made, *torch.autograd.grad(made.float().square().sum(), [rows, *learned])])
            for mine, theirs in zip(*found, strict=True):
                assert relative(mine, theirs) < 0.03


def test_frozen_weights_are_kept_in_eight_bits_alone_and_adapters_begin_as_they_do_without(tiny: Path) -> None:
    plain = load_model(str(tiny), CPU)
    with ready(tiny, config("lora", False)) as model:
        wanted = {name: one.clone() for name, one in model.named_parameters() if one.requires_grad}
    with ready(tiny, config("lora", True)) as model:
        layers = {name: one for name, one in model.get_base_model().named_modules() if isinstance(one, LoraLayer)}
        assert layers
        for name, layer in layers.items():
            held: Any = layer.get_base_layer()
            assert isinstance(held, Linear8)
            assert held.weight.untyped_storage().nbytes() == held.weight.numel()
            off = relative(held.weight.float() * ways_of(held.weight)[0].scales, plain.get_submodule(name).weight)
            assert 0 < off < 0.05
        assert type(model.get_output_embeddings()) is torch.nn.Linear
        for name, one in model.named_parameters():
            if one.requires_grad:
                assert torch.equal(one, wanted.pop(name))
    assert not wanted


def test_the_base_that_runs_share_stays_as_it_was(tiny: Path) -> None:
    kept = KeptBase()
    with ready(tiny, config("lora", True), kept):
        pass
    with kept.lent(locate(str(tiny)), CPU) as model:
        assert all(one.dtype == torch.bfloat16 for one in model.parameters())
        assert not any(isinstance(one, Linear8) for one in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_short_comes_to_the_weights_of_one_that_was_not(
    method: str, tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    settings = config(method, True, steps=4, checkpoint_every=2, model=str(tiny))
    whole, cut = whole_and_cut(settings, CPU, conversations, tmp_path)
    same_state(whole, cut)
    written = load_file(next(whole.checkpoint(4).glob("*model.safetensors")))
    assert not any(value.dtype == EIGHT for value in written.values())


def test_two_processes_that_share_weights_out_have_the_losses_of_one(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    settings = config(
        "full", True, steps=4, batch_tokens=240, micro_batch_tokens=60, learning_rate=1e-3, model=str(tiny)
    )
    found = []
    for count in (1, 2):
        run = RunFolder(tmp_path / str(count), str(count), settings, tmp_path / str(count))
        run.path.mkdir()
        in_processes(count, train, run, locate(str(tiny)), CPU, conversations, [])
        records = [json.loads(line) for line in run.train_log.read_text().splitlines()]
        found.append([record["loss"] for record in records if "loss" in record])
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_what_it_does_not_go_with_is_refused() -> None:
    for other in ({"quantized": True}, {"dora": True}):
        with pytest.raises(ValueError, match="'fp8' does not go with adaptation"):
            RunConfig(fp8=True, adaptation=Adaptation(**other))
    runs = [RunFolder(Path(str(n)), str(n), config("lora", True, seed=n), Path(str(n))) for n in range(2)]
    assert len(groups_of(runs)) == 2


def test_a_device_that_cannot_is_told_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(placement: Placement) -> str:
        with pytest.raises(ConfigError) as error, prepared_model(config("lora", True), locate(str(tiny)), placement):
            pass
        return f"{error.value} {error.value.hint}"

    assert "dtype is float32" in refused(replace(CPU, dtype="float32"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    told = refused(replace(CPU, device="cuda"))
    assert "A100 multiplies no floats of 8 bits" in told
    assert "leave training.fp8 out" in told


def test_check_refuses_it_beside_all_else_that_is_wrong(tiny: Path, tmp_path: Path) -> None:
    training = {"model": str(tiny), "fp8": True, "warmup_steps": 5000}
    study = {"name": "s", "training": training, "device": "cpu", "dtype": "float32"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = run_xlift("check", "study.yaml", "--no-probe", folder=tmp_path)
    assert done.returncode == 2
    assert "training.fp8 computes in bfloat16, and dtype is float32" in done.stderr
    assert "warmup_steps (5000) reach beyond the run" in done.stderr


def test_a_model_without_a_layer_of_such_a_size_is_refused() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(24, 24)

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ModelError, match="no linear layer whose sizes are multiples of 16"):
        in_eight_bits(Odd(), frozen=False)
