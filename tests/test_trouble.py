"""What a run does when memory ends or its loss jumps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xlift.errors import UserError, out_of_memory
from xlift.hub import locate
from xlift.memory import kept_memory
from xlift.models import KeptBase, Placement
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.train import train
from xlift.tuning.trouble import is_spike, spike_watch
from xlift.workspace import RunFolder

CPU = Placement("cpu", "float32", "test")


def config(tiny: Path, micro: int, **adaptation: Any) -> RunConfig:
    own = Adaptation(**({"rank": 4} | adaptation))
    settings: dict[str, Any] = {"steps": 2, "batch_tokens": 400, "learning_rate": 1e-2, "template": "gemma"}
    return RunConfig(model=str(tiny), micro_batch_tokens=micro, adaptation=own, **settings)


def trained(
    settings: RunConfig, folder: Path, conversations: list[Any], room: int | None = None
) -> dict[str, torch.Tensor]:
    """The weights of a run on a device whose memory holds forward passes of `room` tokens."""
    run, base, kept = RunFolder(folder, "test", settings, folder), locate(settings.model), KeptBase()
    with kept.lent(base, CPU) as model:
        pass

    def forward(_: Any, given: Any) -> None:
        if room is not None and torch.is_grad_enabled() and given[0].numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.get_input_embeddings().register_forward_pre_hook(forward)
    try:
        train(run, base, CPU, conversations, [], kept=kept)
    finally:
        handle.remove()
    return load_file(run.checkpoint(2) / "adapter_model.safetensors")


def test_memory_that_ends_halves_the_forward_pass_and_leaves_the_weights_as_they_would_be(
    tiny: Path, conversations: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = trained(config(tiny, 400), tmp_path / "roomy", conversations)
    capsys.readouterr()
    found = trained(config(tiny, 400), tmp_path / "tight", conversations, room=120)
    told = capsys.readouterr().err
    assert "test: step 1: memory ended with 400 tokens in a forward pass: going on with 200" in told
    assert told.count("going on with 100, the batch stays as it is") == 1
    assert "step 2: memory ended" not in told
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_memory_that_one_conversation_fills_fails_the_run_with_what_to_do(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"pass of one conversation \(\d+ tokens\)\n.*gradient_checkpointing"):
        trained(config(tiny, 400), tmp_path, conversations, room=8)


def test_with_dropout_the_forward_pass_is_not_made_smaller_unasked(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="makes another run"):
        trained(config(tiny, 400, dropout=0.1), tmp_path, conversations, room=120)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error: BaseException, is_memory: bool) -> None:
    assert out_of_memory(error) is is_memory


@pytest.mark.parametrize(
    ("before", "loss", "spike"),
    [
        ([2.0, 2.1, 1.9, 2.0] * 5, 3.2, True),
        ([2.0, 2.1, 1.9, 2.0] * 5, 2.6, False),
        ([1.0, 3.0] * 10, 3.2, False),
        ([2.0] * 5, 30.0, False),
    ],
)
def test_a_spike_stands_out_of_what_came_before(before: list[float], loss: float, spike: bool) -> None:
    assert is_spike(before, loss) is spike


def test_a_spike_is_told_once_and_marked_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    look = spike_watch("lora-r4")
    found = [look(step, 6.5 if step in (25, 27) else 2.0) for step in range(30)]
    assert [step for step, one in enumerate(found) if one] == [25, 27]
    told = capsys.readouterr().err
    assert told.count("jumped") == 1
    assert "lora-r4: step 26: the loss jumped to 6.500 from about 2.000" in told


def test_a_spike_stands_in_the_log(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlift.tuning.trouble.WINDOW", 1)
    monkeypatch.setattr("xlift.tuning.trouble.is_spike", lambda before, loss: len(before) == 1)
    settings = config(tiny, 400)
    trained(settings, tmp_path, conversations)
    records = [json.loads(line) for line in RunFolder(tmp_path, "test", settings, tmp_path).train_log.open()]
    assert [record.get("spike", False) for record in records] == [False, False, True]


def test_memory_is_kept_while_a_run_trains_and_given_back_behind_it() -> None:
    with kept_memory():
        first = torch.ones(5_000_000)
        del first
    assert torch.ones(5_000_000).sum() == 5_000_000
