from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from xlift.data.instructions import load_instructions
from xlift.data.prompts import load_prompts
from xlift.disk import write_jsonl
from xlift.errors import ConfigError, UserError
from xlift.hub import locate
from xlift.models import Placement, load_tokenizer
from xlift.planning.check import check_study
from xlift.planning.forecast import (
    Probing,
    Workload,
    answer_bytes,
    answering_bound,
    answering_checkpoints,
    disk_of,
    model_size,
    run_probe,
    training_bound,
    work_of,
)
from xlift.planning.plans import spread
from xlift.records import read_records
from xlift.stages import generate_stage, prepare, rate_stage, train_stage
from xlift.study.loading import load_study
from xlift.study.runs import Adaptation, RunConfig
from xlift.study.study import Study
from xlift.tuning.encoding import encode_data
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.templates import chat_format
from xlift.tuning.train import prepared_model
from xlift.workspace import StudyFolder

CPU = Placement("cpu", "float32", "test")


def planned(config: RunConfig, every: int | None = None) -> Workload:
    chat = chat_format(load_tokenizer(config.model), config.template, config.system)
    return work_of(config, encode_data(config, chat, *load_instructions(config.instructions)), every)


def carried_out(study: Study, folder: Path) -> StudyFolder:
    """The stages that the forecast is about."""
    workspace = prepare(study, folder)
    for stage in (train_stage, generate_stage, rate_stage):
        stage(workspace)
    return workspace


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def giant(tiny: Path, folder: Path, vocabulary: int = 400) -> Path:
    """A model of 2 × 10¹² parameters by its configuration, with the weights of one layer norm."""
    shutil.copytree(tiny, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 32, "num_attention_heads": 512}
    settings |= {"num_key_value_heads": 512, "head_dim": 128, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"model.norm.weight": torch.ones(65536)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def job(
    model: Path, config: RunConfig, widest: list[tuple[list[int], list[bool]]], prompts: list[list[int]]
) -> Probing:
    placement = (CPU.device, CPU.dtype, CPU.why)
    return Probing(
        config.model_dump(mode="json"), (str(model), None), placement, {"max_new_tokens": 8}, [], prompts, widest
    )


def test_a_study_that_fits_passes_and_shows_each_run(study_file: Path, tmp_path: Path, capsys: Any) -> None:
    check_study(load_study(study_file), offline=True, folder=tmp_path / "out")
    shown = capsys.readouterr()
    rows = {line.split()[0]: line for line in shown.out.splitlines() if line.split()}
    assert {"base", "lora-r4-lr1e-3", "lora-r4-lr1e-2", "together"} <= rows.keys()
    assert "memory ≥" not in shown.out
    assert "60" in rows["base"].split()  # 10 prompts of at most 6 tokens
    # Runs that differ in learning rate alone are measured together.
    assert shown.err.count("measuring") == 2
    assert not (tmp_path / "out").exists()


def test_steps_and_tokens_are_those_of_the_run_and_the_disk_is_near(study_file: Path, tmp_path: Path) -> None:
    for method in ("lora", "full"):
        settings = [f"training.adaptation.method={method}", "training.steps=5", "validation.every=2"]
        study = load_study(study_file, [*settings, "decoding.checkpoints=all"])
        workspace = carried_out(study, tmp_path / method)
        prompts = read_records(workspace.prompts)
        run = next(run for run in workspace.runs if run.trains)
        work = planned(run.config, study.validation.every)
        log = read_records(run.train_log)
        assert work.checkpoints == run.checkpoint_steps() == [2, 4, 5]
        assert work.steps == max(record["step"] for record in log)
        assert work.tokens == sum(record.get("tokens", 0) for record in log)
        assert work.measured == sum("heldout_loss" in record for record in log)
        answering = answering_checkpoints(run.config, work, study.decoding)
        assert answering == len(list((run.path / "responses").iterdir()))
        size = model_size(locate(run.config.model), run.config.adaptation)
        disk = disk_of(run.config, size, work, CPU, locate(run.config.model), 0)
        kept = folder_bytes(run.path / "checkpoints") + folder_bytes(run.path / "training_state")
        assert disk.kept == pytest.approx(kept, rel=0.2)
        written = folder_bytes(run.path / "responses") + folder_bytes(run.path / "ratings")
        answers = answering * answer_bytes(prompts, study.decoding, len(study.raters))
        assert written <= answers <= 3 * written


def test_memory_bounds_count_what_training_really_holds(tiny: Path, tmp_path: Path) -> None:
    base = locate(str(tiny))
    for adaptation in (Adaptation(rank=4), Adaptation(method="full")):
        config = RunConfig(model=str(tiny), adaptation=adaptation)
        model = ExitStack().enter_context(prepared_model(config, base, CPU))
        optimizer = make_optimizer(config, model)
        size = model_size(base, adaptation)
        for parameter in (one for one in model.parameters() if one.requires_grad):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        bound = training_bound(config, size, Workload(), CPU)
        assert bound["weights"] == sum(one.nbytes for one in model.parameters())
        assert bound["gradients and AdamW"] == sum(one.nbytes for one in [*gradients, *moments])
    whole = answering_bound(RunConfig(adaptation=Adaptation(method="full")), size, CPU)
    assert sum(whole.values()) == 4 * size.parameters


def test_a_model_that_cannot_fit_is_refused_unloaded_with_every_problem(
    study_file: Path, tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = giant(tiny, tmp_path / "giant")
    settings = [f"training.model={folder}", "training.adaptation.method=full", "prompts.test.size=100000"]
    with pytest.raises(ConfigError) as caught:
        check_study(load_study(study_file, settings), True, folder=tmp_path / "out")
    told = str(caught.value)
    # Runs that need the same are named in one line.
    for labels in ("base", "full-lr1e-3, full-lr1e-2"):
        assert f"{labels}: needs at least" in told
    assert "gradients and AdamW" in told
    assert "of disk" in told
    assert "prompts in 'en', asked: 100000" in told
    hint = caught.value.hint or ""
    assert all(word in hint for word in ("micro_batch_tokens", "gradient_checkpointing", "lora", "checkpoint_every"))
    assert "measuring" not in capsys.readouterr().err


def test_without_a_probe_memory_is_a_lower_bound_and_time_is_left_open(study_file: Path, capsys: Any) -> None:
    check_study(load_study(study_file), offline=True, probe=False)
    shown = capsys.readouterr()
    assert "memory ≥" in shown.out
    assert "measuring" not in shown.err


def test_it_says_how_many_examples_are_short_enough(study_file: Path, capsys: Any) -> None:
    check_study(load_study(study_file), offline=True, probe=False)
    assert "held out; the others" not in capsys.readouterr().out
    chosen = load_study(study_file, ["training.max_length=50"])
    check_study(chosen, offline=True, probe=False)
    said = capsys.readouterr().out
    found = re.search(r"data: (\d+) of (\d+) examples are trained on and (\d+) of 2 held out; .*max_length=50\n", said)
    assert found is not None
    rows = [line.split() for line in said.splitlines() if line.startswith("lora-r4-lr1e-3 ")]
    assert rows[0][1] == found[1]
    assert 0 < int(found[1]) < int(found[2])


def test_heldout_conversations_that_are_all_too_long_are_told_and_by_the_run_too(
    study_file: Path, tmp_path: Path, capsys: Any
) -> None:
    records = [{"instruction": "Why?", "output": f"So {i}."} for i in range(6)]
    long = [{"instruction": "Why?", "output": "Because of it. " * 60, "language": "en"}]
    write_jsonl(tmp_path / "data.jsonl", [*(one | {"language": "fr"} for one in records), *long])
    data = f"training.instructions={{sources: [{{path: {tmp_path / 'data.jsonl'}}}], heldout: 1}}"
    study = load_study(study_file, [data, "training.max_length=96", "training.learning_rate=1e-3", "training.steps=1"])
    check_study(study, offline=True, probe=False)
    told = "no held-out loss: all 1 held-out conversations are longer than max_length=96"
    assert told in capsys.readouterr().out
    train_stage(prepare(study, tmp_path / "study"))
    assert told in capsys.readouterr().err


def test_conversations_that_the_template_refuses_are_left_out_where_that_is_wished(
    study_file: Path, tmp_path: Path, capsys: Any
) -> None:
    records = [{"instruction": f"Why {i}?", "output": "<think>Hm.</think>" + ("So." if i else "")} for i in range(6)]
    write_jsonl(tmp_path / "data.jsonl", records)
    data = f"training.instructions={{sources: [{{path: {tmp_path / 'data.jsonl'}}}], heldout: 0}}"
    settings = [data, "training.learning_rate=1e-3", "training.steps=1"]
    with pytest.raises(UserError, match="a reply is empty without its thoughts"):
        check_study(load_study(study_file, settings), offline=True, probe=False)
    study = load_study(study_file, [*settings, "skip_unfit=true"])
    check_study(study, offline=True, probe=False)
    told = "1 conversations left out: a reply is empty without its thoughts; first "
    assert told in capsys.readouterr().out
    workspace = prepare(study, tmp_path / "study")
    train_stage(workspace)
    assert told in capsys.readouterr().err
    (run,) = (run for run in workspace.runs if run.trains)
    assert (run.stage("train")["examples"], run.stage("train")["refused"]) == (5, 1)


def test_test_prompts_in_the_training_data_are_a_problem_told_once_unless_that_is_allowed(
    study_file: Path, tmp_path: Path, capsys: Any
) -> None:
    study = load_study(study_file)
    prompt = next(one for one in load_prompts(study.prompts) if one["split"] == "test" and one["language"] == "en")
    words = prompt["messages"][0]["content"].upper()
    write_jsonl(tmp_path / "data.jsonl", [*({"instruction": f"{i}?", "output": "x"} for i in range(6)), {"text": "x"}])
    with (tmp_path / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": words, "output": "x"}) + "\n")
    data = f"training.instructions={{sources: [{{path: {tmp_path / 'data.jsonl'}}}], heldout: 1}}"
    with pytest.raises(UserError, match=r"data\.jsonl:7: no known format: found the fields text"):
        check_study(load_study(study_file, [data]), offline=True, probe=False)
    skipping = [data, "skip_unfit=true"]
    with pytest.raises(UserError) as caught:
        check_study(load_study(study_file, skipping), offline=True, probe=False)
    assert [f"test prompt '{prompt['id']}' stands in the training data" in one for one in caught.value.problems] == [
        True
    ]
    assert "prompts.allow_contamination" in (caught.value.hint or "")
    assert "records that cannot be learned from, left out: 1" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"test prompt '{prompt['id']}' stands in the training data"):
        train_stage(prepare(load_study(study_file, skipping), tmp_path / "study"))
    check_study(load_study(study_file, [*skipping, "prompts.allow_contamination=true"]), offline=True, probe=False)
    assert "test prompts that stand in the training data" in capsys.readouterr().out


def test_targets_that_fit_no_layer_are_one_problem_that_names_the_runs(study_file: Path) -> None:
    study = load_study(study_file, ["training.adaptation.targets=[nowhere]"])
    with pytest.raises(ConfigError, match="nowhere") as caught:
        check_study(study, offline=True)
    (problem,) = caught.value.problems
    assert problem.startswith("lora-r4-lr1e-3, lora-r4-lr1e-2: adaptation.targets: ")


def test_a_probe_measures_training_and_answering(tiny: Path) -> None:
    example = (list(range(8, 40)), [False] * 8 + [True] * 24)
    measured = run_probe(job(tiny, RunConfig(model=str(tiny)), [example, example], [[8, 9, 10]] * 4))
    assert measured is not None
    assert measured.memory > measured.overhead > 0
    assert min(measured.load, measured.training, measured.prompt_token, measured.heldout_token) > 0
    assert measured.micro_batch + measured.token > 0
    idle = run_probe(job(tiny, RunConfig(adaptation=Adaptation(method="none")), [], []))
    assert idle is not None
    assert idle.token == idle.new_token == idle.training == 0


def test_memory_that_ends_in_a_probe_is_an_answer_and_anything_else_an_error(tiny: Path, tmp_path: Path) -> None:
    config = RunConfig(adaptation=Adaptation(method="none"))
    assert run_probe(job(giant(tiny, tmp_path / "giant", 10**10), config, [], [])) is None
    shutil.copytree(tiny, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="its weights cannot be read"):
        run_probe(job(tmp_path / "broken", config, [], []))


def test_a_finished_study_is_not_measured_again(study_file: Path, tmp_path: Path, capsys: Any) -> None:
    study = load_study(study_file, ["training.steps=2"])
    carried_out(study, tmp_path / "out")
    capsys.readouterr()
    check_study(study, offline=True, folder=tmp_path / "out")
    assert "measuring" not in capsys.readouterr().err
    check_study(load_study(study_file, ["training.steps=3"]), True, probe=False, folder=tmp_path / "out")
    assert "setting training.steps: 2 → 3" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_runs_side_by_side_take_no_less_than_the_longest_and_their_share(workers: int) -> None:
    seconds = [5.0, 1.0, 4.0, 2.0, 3.0]
    took = spread(seconds, workers)
    assert max(max(seconds), sum(seconds) / workers) <= took <= sum(seconds)
    assert took == sum(seconds) or workers > 1


def test_weights_drawn_back_take_no_training_and_answer_as_often(study_file: Path, tmp_path: Path, capsys: Any) -> None:
    study = load_study(study_file, ["training.weight=[1.0, 0.5]", "training.learning_rate=[1e-3]"])
    check_study(study, offline=True, probe=False, folder=tmp_path / "out")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("lora")]
    assert [row[2] for row in rows] == ["4", "–"]
    assert [row[5] for row in rows] == ["10", "10"]
