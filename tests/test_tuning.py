from __future__ import annotations

import json
import resource
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from xlift import memory
from xlift.errors import ConfigError, DataError, ModelError, UserError
from xlift.hub import locate
from xlift.integrity import checkpoint_facts
from xlift.memory import peak_memory, reset_peak_memory
from xlift.models import KeptBase, Placement, load_model, load_tokenizer, loaded_checkpoint
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning import checkpoints
from xlift.tuning import train as training
from xlift.tuning.adapters import with_adapters
from xlift.tuning.encoding import encode_data
from xlift.tuning.loss import response_loss, summed_loss
from xlift.tuning.optimizer import learning_rate_at, make_optimizer
from xlift.tuning.packing import pack, pad, plan_steps, split_micro_batches
from xlift.tuning.templates import chat_format
from xlift.tuning.train import plan, prepared_model, train, train_step
from xlift.workspace import RunFolder

CPU = Placement("cpu", "float32", "test")


def config(tiny: Path, **changes: Any) -> RunConfig:
    settings = {
        "model": str(tiny),
        "learning_rate": 1e-2,
        "steps": 6,
        "batch_tokens": 200,
        "micro_batch_tokens": 200,
        "checkpoint_every": 2,
        "template": "gemma",
        "adaptation": Adaptation(rank=4),
    }
    return RunConfig(**(settings | changes))


def prepared(tiny: Path, settings: RunConfig, conversations: list[Any]) -> tuple[Any, Any, Any, Any]:
    base = locate(settings.model)
    chat = chat_format(load_tokenizer(base.path), settings.template)
    data = encode_data(settings, chat, conversations, [])
    torch.manual_seed(0)
    model = ExitStack().enter_context(prepared_model(settings, base, CPU))
    return model, make_optimizer(settings, model), chat, data


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunked_loss_and_gradients_equal_the_plain_computation(chunk: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(11, 5, requires_grad=True)
    hidden = torch.randn(7, 5, requires_grad=True)
    targets = torch.randint(11, (7,))
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / 7
    expected = torch.autograd.grad(plain, [hidden, weight])
    chunked = summed_loss(lambda h: h @ weight.T, hidden, targets, [weight], chunk) / 7
    found = torch.autograd.grad(chunked, [hidden, weight])
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(summed_loss(lambda h: h @ weight.T, hidden, targets, [weight], chunk) / 7, plain)


def test_response_loss_equals_the_models_own_loss(tiny: Path, conversations: list[Any]) -> None:
    settings = config(tiny)
    _, _, _, data = prepared(tiny, settings, conversations)
    model = load_model(str(tiny), CPU)
    batch = pad(data.train, 0)
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    learned = (batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(response_loss(model, batch) / learned, theirs)


def test_packed_equals_unpacked(tiny: Path, conversations: list[Any]) -> None:
    _, _, _, data = prepared(tiny, config(tiny), conversations)
    model = load_model(str(tiny), CPU)
    torch.testing.assert_close(response_loss(model, pack(data.train)), response_loss(model, pad(data.train, 0)))


@pytest.mark.parametrize("packing", [True, False])
def test_one_large_batch_equals_many_small_ones(tiny: Path, conversations: list[Any], packing: bool) -> None:
    found = []
    for micro in (8192, 40):
        settings = config(tiny, batch_tokens=2000, micro_batch_tokens=micro, packing=packing)
        model, optimizer, chat, data = prepared(tiny, settings, conversations)
        record = train_step(model, optimizer, data.train, settings, chat, CPU, 0, 1)
        found.append((record["loss"], record["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_plan_uses_every_example_once_an_epoch_and_respects_the_budget() -> None:
    lengths = [5, 9, 3, 7, 8, 2, 6]
    steps = plan_steps(lengths, seed=3, batch_tokens=12, steps=None, epochs=2)
    used = [i for step in steps for i in step]
    assert sorted(used) == sorted(list(range(7)) * 2)
    assert sorted(used[:7]) == list(range(7))
    assert all(sum(lengths[i] for i in step) <= 12 for step in steps)
    assert steps != plan_steps(lengths, seed=4, batch_tokens=12, steps=None, epochs=2)


@pytest.mark.parametrize("padded", [True, False])
def test_micro_batches_keep_every_example_within_the_budget(padded: bool) -> None:
    lengths = [5, 9, 3, 7, 8, 2, 30]
    groups = split_micro_batches(range(7), lengths, 16, padded)
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        cost = len(group) * max(lengths[i] for i in group) if padded else sum(lengths[i] for i in group)
        assert cost <= 16 or len(group) == 1


def test_packed_micro_batches_are_filled_by_best_fit() -> None:
    assert split_micro_batches(range(4), [3, 4, 6, 7], 10, padded=False) == [[3, 0], [2, 1]]
    lengths = [5, 9, 3, 7, 8, 2, 6, 4, 1, 9] * 4
    groups = split_micro_batches(range(len(lengths)), lengths, 10, padded=False)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert len(groups) <= -(-sum(lengths) // 10) + 1


def test_cosine_ends_at_a_tenth_after_warm_up(tiny: Path) -> None:
    settings = config(tiny, learning_rate=1.0, warmup_steps=2)
    rates = [learning_rate_at(settings, step, 102) for step in range(102)]
    assert rates[:2] == [0.5, 1.0]
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_lora_moves_only_adapters(tiny: Path, conversations: list[Any]) -> None:
    settings = config(tiny)
    model, optimizer, chat, data = prepared(tiny, settings, conversations)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(2):
        train_step(model, optimizer, data.train, settings, chat, CPU, step, 2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def run_folder(path: Path, settings: RunConfig) -> RunFolder:
    return RunFolder(path, "test", settings, path)


def trained_weights(run: RunFolder, settings: RunConfig) -> dict[str, torch.Tensor]:
    base = locate(settings.model)
    with loaded_checkpoint(base, run.checkpoint(run.checkpoint_steps()[-1]), CPU) as model:
        return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_resumed_equals_uninterrupted_bitwise(
    tiny: Path, conversations: list[Any], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny, adaptation=Adaptation(method=method, rank=4, dropout=0.2), learning_rate=3e-3)
    base = locate(settings.model)
    whole, cut = run_folder(tmp_path / "whole", settings), run_folder(tmp_path / "cut", settings)
    train(whole, base, CPU, conversations[2:], conversations[:2])

    from xlift.tuning import train as module

    steps_made = 0
    real = module.train_step

    def killed(*arguments: Any) -> dict[str, Any]:
        nonlocal steps_made
        steps_made += 1
        if steps_made == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cut, base, CPU, conversations[2:], conversations[:2])
    monkeypatch.setattr(module, "train_step", real)
    torch.manual_seed(999)
    train(cut, base, CPU, conversations[2:], conversations[:2])

    ours, theirs = trained_weights(cut, settings), trained_weights(whole, settings)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    drop = {"tokens_per_second"}
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k not in drop}
            for line in run.train_log.read_text().splitlines()
        ]
        for run in (whole, cut)
    ]
    assert logs[0] == logs[1]


def test_merged_equals_unmerged_logits(tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    from peft import PeftModel

    settings = config(tiny)
    run = run_folder(tmp_path, settings)
    base = locate(settings.model)
    train(run, base, CPU, conversations, [])
    checkpoint = run.checkpoint(6)
    ids = torch.arange(5, 25)[None]
    unmerged = PeftModel.from_pretrained(load_model(str(tiny), CPU), str(checkpoint)).eval()(ids).logits
    plain = load_model(str(tiny), CPU)(ids).logits
    with loaded_checkpoint(base, checkpoint, CPU) as model:
        torch.testing.assert_close(model(ids).logits, unmerged, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(ids).logits, plain, atol=1e-3)
    with loaded_checkpoint(base, None, CPU) as model:
        assert torch.equal(model(ids).logits, plain)
    adapter = locate(str(checkpoint))
    assert (adapter.path, adapter.tokenizer) == (str(tiny), str(checkpoint))
    with loaded_checkpoint(adapter, None, CPU) as model:
        torch.testing.assert_close(model(ids).logits, unmerged, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="is an adapter: it answers, but is not tuned further"):
        locate(str(checkpoint), tuned=True)
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        locate(str(checkpoint))


def test_a_merged_weight_is_rounded_once_and_buffers_are_not(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    settings = config(tiny)
    run = run_folder(tmp_path, settings)
    base, half = locate(settings.model), Placement("cpu", "bfloat16", "test")
    train(run, base, half, conversations, [])
    plain = load_model(str(tiny), half)
    expected = PeftModel.from_pretrained(plain.float(), str(run.checkpoint(6))).merge_and_unload()
    buffers = {name: value.dtype for name, value in load_model(str(tiny), half).named_buffers()}
    with loaded_checkpoint(base, run.checkpoint(6), half) as model:
        for name, weights in model.named_parameters():
            assert torch.equal(weights, expected.get_parameter(name).to(torch.bfloat16)), name
        assert {name: value.dtype for name, value in model.named_buffers()} == buffers


def test_a_damaged_adapter_does_no_harm_to_the_kept_base(tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    settings = config(tiny)
    run = run_folder(tmp_path, settings)
    base = locate(settings.model)
    train(run, base, CPU, conversations, [])
    expected = load_model(str(tiny), CPU).state_dict()
    (run.checkpoint(6) / "adapter_model.safetensors").write_text("{}")
    kept = KeptBase()
    with pytest.raises(ModelError, match="has changed"), loaded_checkpoint(base, run.checkpoint(6), CPU, kept=kept):
        pass
    with kept.lent(base, CPU) as model:
        found = model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_global_generator_is_left_alone(tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(run_folder(tmp_path, config(tiny, steps=1)), locate(str(tiny)), CPU, conversations, [])
    assert torch.equal(torch.rand(3), expected)


def test_loss_curve_equals_trl(tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    """Same examples in the same order, same settings, in TRL's SFTTrainer: the same losses."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    settings = config(
        tiny,
        adaptation=Adaptation(method="full"),
        learning_rate=1e-3,
        schedule="constant",
        packing=False,
        batch_tokens=10_000,
        micro_batch_tokens=10_000,
    )
    model, optimizer, chat, data = prepared(tiny, settings, conversations)
    groups = [data.train[i : i + 4] for i in (0, 4, 8)]
    ours = [
        train_step(model, optimizer, group, settings, chat, CPU, step, 3)["loss"] for step, group in enumerate(groups)
    ]

    class InOrder(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    rows = [
        {"input_ids": e.ids, "labels": [t if m else -100 for t, m in zip(e.ids, e.mask, strict=True)]}
        for e in data.train
    ]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_gradient_norm,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
    )
    trainer = InOrder(
        model=load_model(str(tiny), CPU).train(),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours == pytest.approx(theirs, rel=2e-3)


def copy_of(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    return folder


def lora(tiny: Path, targets: Any) -> RunConfig:
    return config(tiny, adaptation=Adaptation(rank=4, targets=targets))


def trained_state(run: RunFolder, kept: KeptBase, settings: RunConfig, conversations: list[Any]) -> Any:
    train(run, locate(settings.model), CPU, conversations, [], kept=kept)
    return load_file(run.checkpoint(6) / "adapter_model.safetensors")


def test_a_run_that_peft_refuses_half_way_leaves_the_next_one_alone(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    kept, base, settings = KeptBase(), locate(str(tiny)), lora(tiny, ["q_proj"])
    with kept.lent(base, CPU):
        pass
    bad = lora(tiny, ["q_proj", "input_layernorm"])
    with pytest.raises(ModelError, match="does not fit"):
        train(run_folder(tmp_path / "bad", bad), base, CPU, conversations, [], kept=kept)
    with prepared_model(settings, base, CPU, kept) as model:
        assert all("lora_" in name for name, one in model.named_parameters() if one.requires_grad)
    after = trained_state(run_folder(tmp_path / "after", settings), kept, settings, conversations)
    fresh = trained_state(run_folder(tmp_path / "fresh", settings), KeptBase(), settings, conversations)
    assert after.keys() == fresh.keys()
    assert all(torch.equal(after[name], value) for name, value in fresh.items())


@pytest.mark.parametrize("harm", ["a layer", "a weight", "a hook", "an interrupt"])
def test_a_kept_model_that_does_not_come_back_as_it_was_is_loaded_anew(tiny: Path, harm: str) -> None:
    kept, base = KeptBase(), locate(str(tiny))
    whole = load_model(str(tiny), CPU).state_dict()
    try:
        with kept.lent(base, CPU) as model:
            layer = model.get_input_embeddings()
            if harm == "a layer":
                model.lm_head = torch.nn.Linear(32, 400)
            elif harm == "a weight":
                layer.weight.data[:] += 1
            elif harm == "a hook":
                layer.register_forward_hook(lambda *_: None)
            else:
                layer.weight.data[:] += 1
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with kept.lent(base, CPU) as again:
        assert not again.get_input_embeddings()._forward_hooks
        found = again.state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_a_kept_model_is_loaded_once_and_lent_in_evaluation_mode(tiny: Path) -> None:
    kept, base = KeptBase(), locate(str(tiny))
    with kept.lent(base, CPU) as first:
        first.train()
    with kept.lent(base, CPU) as second:
        assert second is first
        assert not second.training
        assert not any(parameter.requires_grad for parameter in second.parameters())
    kept.let_go()
    with kept.lent(base, CPU) as third:
        assert third is not first


def test_targets_that_are_not_there_are_refused_and_patterns_are_patterns(tiny: Path) -> None:
    model = load_model(str(tiny), CPU)
    with pytest.raises(ModelError, match="no layer 'q_prj'; did you mean 'q_proj'"):
        with_adapters(model, lora(tiny, ["v_proj", "q_prj"]))
    with pytest.raises(ModelError, match="'lm_head' shares its weights"):
        with_adapters(model, lora(tiny, ["q_proj", "lm_head"]))
    for pattern in (r".*(q_proj|lm_head)", "lm_head", r".*embed.*"):
        with pytest.raises(ModelError, match="shares its weights"):
            with_adapters(model, lora(tiny, pattern))
    adapted = with_adapters(model, lora(tiny, r".*layers\.1\..*(q|v)_proj"))
    names = {name for name, one in adapted.named_parameters() if one.requires_grad}
    assert len(names) == 4
    assert all(".layers.1." in name for name in names)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_the_last_step_has_the_lowest_rate(tiny: Path, schedule: Any, warmup: int) -> None:
    settings = config(tiny, learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
    for total in (3, 4, 50):
        rates = [learning_rate_at(settings, step, total) for step in range(total)]
        assert max(rates) == 1.0
        assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert learning_rate_at(config(tiny, learning_rate=1.0, schedule=schedule), 0, 1) == 1.0


def test_a_warm_up_longer_than_the_run_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps \(6\) reach beyond the run, which has 6 steps"):
        plan(config(tiny, warmup_steps=6), [20] * 30)
    assert plan(config(tiny, warmup_steps=5), [20] * 30)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_loss_that_is_no_number_fails_the_run_with_its_step(
    tiny: Path, conversations: list[Any], tmp_path: Path, method: Any
) -> None:
    settings = config(tiny, adaptation=Adaptation(method=method, rank=4), learning_rate=1e30)
    run = run_folder(tmp_path / "run", settings)
    with pytest.raises(UserError, match=r"step \d: the loss is .*\n.*lower training.learning_rate"):
        train(run, locate(settings.model), CPU, conversations, conversations[:2])
    records = [json.loads(line) for line in run.train_log.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(len(records)))
    assert 1 <= len(records) <= 3
    assert "NaN" not in run.train_log.read_text()
    assert run.stage("train")["state"] != "done"


@pytest.mark.parametrize("heldout", [0, 2])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_last_step_that_breaks_the_model_fails_the_run(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any, heldout: int
) -> None:
    def overflow(self: torch.optim.AdamW) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    settings = config(tiny, adaptation=Adaptation(method=method, rank=4), steps=1)
    run = run_folder(tmp_path / "run", settings)
    with pytest.raises(UserError, match="step 1: the loss after it is no number"):
        train(run, locate(settings.model), CPU, conversations, conversations[:heldout])
    assert not run.checkpoint_steps()
    assert run.stage("train")["state"] != "done"


def test_a_model_whose_weights_are_no_numbers_is_refused(tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    model = copy_of(tiny, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    norm = {"model.norm.weight": weights["model.norm.weight"] * float("nan")}
    save_file(weights | norm, model / "model.safetensors", {"format": "pt"})
    settings = config(model)
    with pytest.raises(ModelError, match=r"no numbers: model\.norm\.weight"):
        train(run_folder(tmp_path / "run", settings), locate(settings.model), CPU, conversations, [])


def test_tied_embeddings_are_stored_once_and_the_checkpoint_says_what_it_is(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    for method in ("full", "lora"):
        settings = config(tiny, adaptation=Adaptation(method=method, rank=4))
        run = run_folder(tmp_path / method, settings)
        train(run, locate(settings.model), Placement("cpu", "bfloat16", "test"), conversations, [])
        folder = run.checkpoint(6)
        assert [path.name for path in folder.glob("*.safetensors")] == [
            "model.safetensors" if method == "full" else "adapter_model.safetensors"
        ]
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nbase_model: ")
        assert str(tiny) in card
        assert "learning_rate: 0.01" in card
        if method == "full":
            assert "lm_head.weight" not in load_file(folder / "model.safetensors")
        else:
            assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)


def test_a_damaged_training_state_is_named(tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    settings = config(tiny)
    run = run_folder(tmp_path, settings)
    train(run, locate(settings.model), CPU, conversations, [], until=2)
    run.training_state(2).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"step-2\.safetensors: not what was written"):
        train(run, locate(settings.model), CPU, conversations, [])


def test_a_training_state_of_before_that_an_end_left_goes_when_training_goes_on(
    tiny: Path, conversations: list[Any], tmp_path: Path
) -> None:
    settings = config(tiny)
    run = run_folder(tmp_path, settings)
    train(run, locate(settings.model), CPU, conversations, [], until=settings.steps)
    shutil.copyfile(run.training_state(settings.steps), run.training_state(2))
    train(run, locate(settings.model), CPU, conversations, [])
    assert list(run.training_state(2).parent.iterdir()) == [run.training_state(settings.steps)]


def test_the_peak_of_memory_is_that_of_the_run(tiny: Path) -> None:
    if not memory.CLEAR_REFS.exists():
        pytest.skip("this system cannot forget a process's peak")
    held = torch.ones(60_000_000)
    high = peak_memory(CPU)
    del held
    reset_peak_memory(CPU)
    assert peak_memory(CPU) < high - 150_000_000


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_without_proc_the_peak_of_memory_is_that_of_the_process_in_bytes(
    platform: str, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    monkeypatch.setattr("sys.platform", platform)
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert told * unit <= peak_memory(CPU) < 1.5 * told * unit


def test_a_peak_of_memory_that_is_not_the_runs_own_is_missing(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    settings = config(tiny, steps=1)
    run = run_folder(tmp_path, settings)
    train(run, locate(settings.model), CPU, conversations, [])
    assert run.stage("train")["peak_memory_bytes"] is None


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny, adaptation=Adaptation(method="full"), steps=4)
    plain, slow = run_folder(tmp_path / "plain", settings), run_folder(tmp_path / "slow", settings)
    train(plain, locate(settings.model), CPU, conversations, [])
    write, waits, seen = checkpoints._write, [], []

    def late(run: RunFolder, step: int, *told: Any) -> None:
        if step == 2:
            # The step behind the checkpoint is made before any of it is written.
            waits.append(go_on.wait(60))
        write(run, step, *told)

    def step(*arguments: Any) -> dict[str, Any]:
        made = real(*arguments)
        seen.append(slow.checkpoint_steps())
        if len(seen) == 3:
            go_on.set()
        return made

    real, go_on = training.train_step, threading.Event()
    monkeypatch.setattr(checkpoints, "_write", late)
    monkeypatch.setattr(training, "train_step", step)
    train(slow, locate(settings.model), CPU, conversations, [])
    assert waits == [True]
    assert seen[2] == []
    for step_ in (2, 4):
        files = [load_file(run.checkpoint(step_) / "model.safetensors") for run in (plain, slow)]
        assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_what_writing_a_checkpoint_raises_ends_the_run(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path, config(tiny))

    def full(*told: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(checkpoints, "file_sha256", full)
    with pytest.raises(OSError, match="No space left"):
        train(run, locate(str(tiny)), CPU, conversations, [])
    assert run.checkpoint_steps() == []
    monkeypatch.undo()
    train(run, locate(str(tiny)), CPU, conversations, [])
    assert run.checkpoint_steps() == [2, 4, 6]


def test_large_weights_are_written_as_several_files_that_are_read_back(
    tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny, adaptation=Adaptation(method="full"), steps=1)
    one, several = run_folder(tmp_path / "one", settings), run_folder(tmp_path / "several", settings)
    train(one, locate(settings.model), CPU, conversations, [])
    monkeypatch.setattr(checkpoints, "SHARD", "20KB")
    train(several, locate(settings.model), CPU, conversations, [])
    folder = several.checkpoint(1)
    weights = sorted(path.name for path in folder.glob("model*.safetensors"))
    assert len(weights) > 1
    assert {*json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()} == {*weights}
    assert {*weights, "model.safetensors.index.json"} <= checkpoint_facts(folder)["sha256"].keys()
    found, plain = (trained_weights(run, settings) for run in (several, one))
    assert all(torch.equal(value, found[name]) for name, value in plain.items())
    (folder / weights[0]).write_bytes(b"")
    with pytest.raises(ModelError, match="has changed"):
        trained_weights(several, settings)
