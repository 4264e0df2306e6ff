"""Full fine-tuning by several processes that share weights, gradients and moments out among them."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaMLP

from xlift.errors import UserError
from xlift.hub import Located
from xlift.models import Placement, load_model
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.sharding import shard
from xlift.tuning.train import Watching, train
from xlift.workspace import RunFolder

STEPS = 4
CPU = Placement("cpu", "float32", "")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_at(folder: Path, **settings: Any) -> RunFolder:
    same = {"steps": STEPS, "batch_tokens": 200, "micro_batch_tokens": 60, "learning_rate": 1e-3, "checkpoint_every": 2}
    config = RunConfig.model_validate({"adaptation": Adaptation(method="full"), **same, **settings})
    return RunFolder(folder, folder.name, config, folder)


def in_processes(count: int, work: Callable[..., None], *given: Any) -> None:
    """Call `work` in so many processes, forked from this one so that nothing is imported again."""
    port = free_port()

    def begin(rank: int) -> None:
        torch.set_num_threads(1)
        if count > 1:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
            os.environ.update({name: str(value) for name, value in told.items()}, MASTER_PORT=str(port))
            PartialState._reset_state()
        work(*given)
        if count > 1:
            torch.distributed.destroy_process_group()

    started = [multiprocessing.get_context("fork").Process(target=begin, args=(rank,)) for rank in range(count)]
    for one in started:
        one.start()
    for one in started:
        one.join(120)
    assert [one.exitcode for one in started] == [0] * count


def trained(processes: int, model: Path, run: RunFolder, data: list[Any], until: int | None = None) -> RunFolder:
    run.path.mkdir(parents=True, exist_ok=True)
    base = Located(str(model), None, {})
    in_processes(processes, train, run, base, CPU, data[2:], data[:2], Watching(), until)
    return run


def losses(run: RunFolder) -> list[list[float]]:
    records = [json.loads(line) for line in run.train_log.read_text().splitlines()]
    names = ("loss", "heldout_loss", "grad_norm", "tokens")
    return [[record[name] for name in names if name in record] for record in records]


def assert_same(ours: RunFolder, theirs: RunFolder, weights: str = "model") -> None:
    assert len(losses(ours)) == STEPS + 1
    for mine, other in zip(losses(ours), losses(theirs), strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    for name in (f"checkpoints/step-{STEPS}/{weights}.safetensors", f"training_state/step-{STEPS}.safetensors"):
        torch.testing.assert_close(load_file(ours.path / name), load_file(theirs.path / name), rtol=1e-3, atol=1e-5)
    listing = [sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*")) for run in (ours, theirs)]
    assert listing[0] == listing[1]


@pytest.fixture(scope="module")
def data() -> list[Any]:
    def said(i: int) -> list[dict[str, str]]:
        question = f"Question number {i} about the sky?" + " Why?" * (i % 3)
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"Answer {i}." + " Yes." * (i % 5)},
        ]

    return [{"id": str(i), "messages": said(i)} for i in range(14)]


@pytest.fixture(scope="module")
def one(tiny: Path, data: list[Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(1, tiny, run_at(tmp_path_factory.mktemp("one") / "run"), data)


@pytest.mark.parametrize("processes", [2, 4])
def test_so_many_processes_have_the_losses_weights_and_files_of_one(
    processes: int, tiny: Path, data: list[Any], one: RunFolder, tmp_path: Path
) -> None:
    assert_same(trained(processes, tiny, run_at(tmp_path / "run"), data), one)


def test_a_run_begun_by_two_processes_is_ended_by_four_and_by_one(
    tiny: Path, data: list[Any], one: RunFolder, tmp_path: Path
) -> None:
    for processes in (4, 1):
        run = run_at(tmp_path / str(processes))
        trained(2, tiny, run, data, until=2)
        assert_same(trained(processes, tiny, run, data), one)


def test_each_process_holds_its_share_of_every_weight(tiny: Path, tmp_path: Path) -> None:
    def look() -> None:
        PartialState(cpu=True)
        model: Any = load_model(str(tiny), CPU, fp32=True)
        every = sum(one.numel() for one in model.parameters())
        shard(model, "cpu")
        own = sum(one.to_local().numel() for one in model.parameters())
        (tmp_path / os.environ["RANK"]).write_text(json.dumps([own, every]))

    in_processes(2, look)
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first[0] + second[0] == first[1]
    assert first[0] == pytest.approx(first[1] / 2, rel=0.02)


def test_a_run_that_tunes_some_layers_alone_is_shared_out_too(tiny: Path, data: list[Any], tmp_path: Path) -> None:
    last = {"adaptation": {"method": "full", "layers": "last 1"}, "steps": STEPS}
    alone = trained(1, tiny, run_at(tmp_path / "run", **last), data)
    assert_same(trained(2, tiny, run_at(tmp_path / "two" / "run", **last), data), alone)


def test_activations_made_again_change_nothing(tiny: Path, data: list[Any], one: RunFolder, tmp_path: Path) -> None:
    assert_same(trained(2, tiny, run_at(tmp_path / "run", gradient_checkpointing=True), data), one)


PLACES: dict[str, tuple[Any, str]] = {
    "before the layers": (torch.nn.Embedding, ""),
    "between two layers": (LlamaMLP, ""),
    "in the backward pass of a layer": (LlamaMLP, "backward"),
    "behind the layers' backward passes": (torch.nn.Embedding, "backward"),
}


def memory_for(room: int, place: str, rank: int, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets memory end in one process where a place of a training pass sees more than `room` tokens."""
    kind, when = PLACES[place]
    plain = kind.forward

    def fail(*_: Any) -> None:
        ended.touch()
        raise torch.OutOfMemoryError("CUDA out of memory")

    def forward(self: Any, given: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = plain(self, given)
        wide = made.shape[0] * made.shape[1] > room
        if wide and torch.is_grad_enabled() and os.environ.get("RANK", "0") == str(rank):
            made.register_hook(fail) if when else fail()
        return made

    monkeypatch.setattr(kind, "forward", forward)


@pytest.mark.parametrize("place", ["before the layers", "behind the layers' backward passes"])
def test_memory_that_ends_with_weights_in_main_memory_halves_the_forward_pass(
    place: str, tiny: Path, data: list[Any], one: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(80, place, 0, tmp_path / "ended", monkeypatch)
    run = trained(1, tiny, run_at(tmp_path / "run", offload=True, micro_batch_tokens=160), data)
    assert (tmp_path / "ended").exists()
    assert_same(run, one)


@pytest.mark.parametrize(
    ("place", "how"),
    [*((place, "") for place in PLACES), ("in the backward pass of a layer", "gradient_checkpointing"),
     ("between two layers", "offload")],
)  # fmt: skip
def test_memory_that_ends_in_one_of_several_processes_halves_the_forward_passes_of_all(
    place: str,
    how: str,
    tiny: Path,
    data: list[Any],
    one: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    memory_for(80, place, 1, tmp_path / "ended", monkeypatch)
    settings = {"micro_batch_tokens": 120} | ({how: True} if how else {})
    run = trained(2, tiny, run_at(tmp_path / "run", **settings), data)
    assert (tmp_path / "ended").exists()
    assert capfd.readouterr().err.count("memory ended with 120 tokens in a forward pass: going on with 60") == 1
    assert_same(run, one)


@pytest.mark.parametrize(("rank", "processes"), [(0, 2), (3, 4)])
def test_memory_that_ends_in_one_of_several_processes_leaves_adapters_as_they_would_be(
    rank: int, processes: int, tiny: Path, data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"adaptation": {"rank": 4}, "batch_tokens": 600}
    # Few gradients at once, so that they are summed in several goes.
    monkeypatch.setattr("xlift.tuning.passes.BUCKET", 400)
    alone = trained(1, tiny, run_at(tmp_path / "one" / "run", **lora, micro_batch_tokens=160), data)
    memory_for(80, "in the backward pass of a layer", rank, tmp_path / "ended", monkeypatch)
    run = trained(processes, tiny, run_at(tmp_path / "several" / "run", **lora, micro_batch_tokens=160), data)
    assert (tmp_path / "ended").exists()
    assert_same(run, alone, "adapter_model")


def test_memory_that_one_conversation_fills_ends_the_run_in_all_processes(
    tiny: Path, data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(8, "between two layers", 1, tmp_path / "ended", monkeypatch)

    def refused(*given: Any) -> None:
        with pytest.raises(UserError, match="memory ended in a forward pass of one conversation"):
            train(*given)

    run = run_at(tmp_path / "run")
    run.path.mkdir()
    in_processes(2, refused, run, Located(str(tiny), None, {}), CPU, data[2:], data[:2])


@pytest.mark.parametrize("processes", [1, 2])
def test_weights_that_lie_in_main_memory_learn_the_same(
    processes: int, tiny: Path, data: list[Any], one: RunFolder, tmp_path: Path
) -> None:
    run = run_at(tmp_path / "run", offload=True)
    trained(processes, tiny, run, data, until=2)
    assert_same(trained(processes, tiny, run, data), one)
