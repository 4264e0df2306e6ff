"""What `xlift export` writes is what the run is, for tools that know nothing of xlift."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from xlift import export
from xlift.chat import open_run
from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError, ModelError
from xlift.export import export_run
from xlift.hub import locate
from xlift.models import Placement, load_model, loaded_checkpoint
from xlift.report.reading import material_of, share_rows
from xlift.stages import generate_stage, prepare, rate_stage, train_stage
from xlift.study.study import load_study, parse_study
from xlift.workspace import StudyFolder

CPU = Placement("cpu", "float32", "test")
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = tmp_path_factory.mktemp("export")
    file = folder / "study.yaml"
    pairs = [f'{{"instruction": "Say {i}.", "output": "It is {i}, and no more."}}' for i in range(12)]
    (folder / "data.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    file.write_text(
        f"""
name: exported
training:
  model: {tiny}
  instructions: {{sources: [{{path: data.jsonl}}], heldout: 2}}
  adaptation: {{rank: 4}}
  learning_rate: 1e-2
  weight: [0.5, 1.0]
  steps: 4
  checkpoint_every: 2
  batch_tokens: 120
  micro_batch_tokens: 120
prompts: {{languages: [en, ru], validation: {{size: 1}}, test: {{size: 2}}}}
decoding: {{max_new_tokens: 6}}
validation: {{margins: false}}
device: cpu
dtype: float32
""",
        encoding="utf-8",
    )
    workspace = prepare(load_study(file), folder / "out")
    train_stage(workspace)
    generate_stage(workspace)
    rate_stage(workspace)
    return workspace


def run_named(study: StudyFolder, weight: float) -> Any:
    return next(run for run in study.runs if not run.config.untuned and run.config.weight == weight)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_plain_transformers_gives_the_scores_and_the_answers_of_the_run(
    study: StudyFolder, weight: float, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = run_named(study, weight)
    folder = export_run(str(run.path), tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with loaded_checkpoint(locate(run.config.model), run.checkpoint(4), CPU, weight) as own:
        torch.testing.assert_close(model(IDS).logits, own(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (answered,) = [one for one in checkpoints(study) if one.run.id == run.id]
    for one in answered.responses:
        asked: Any = tokenizer.apply_chat_template(one["messages"], add_generation_prompt=True, return_tensors="pt")
        ids = asked if isinstance(asked, torch.Tensor) else asked["input_ids"]
        made = model.generate(ids, max_new_tokens=6, do_sample=False, repetition_penalty=1.2)
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip() == one["text"].strip()


def test_an_adapter_is_exported_as_it_is_and_answers_by_its_folder(study: StudyFolder, tmp_path: Path) -> None:
    from peft import PeftModel

    run = run_named(study, 1.0)
    folder = export_run(str(run.path), tmp_path / "adapter", step=2, adapter=True)
    theirs = PeftModel.from_pretrained(load_model(run.config.model, CPU), str(folder)).eval()(IDS).logits
    with loaded_checkpoint(locate(str(folder)), None, CPU) as ours:
        torch.testing.assert_close(ours(IDS).logits, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no adapter alone"):
        export_run(str(run_named(study, 0.5).path), tmp_path / "drawn", adapter=True)


def test_the_card_says_what_the_study_found_and_no_path_of_this_machine(study: StudyFolder, tmp_path: Path) -> None:
    run = run_named(study, 1.0)
    text = (export_run(str(run.path), tmp_path / "model") / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    rows = [row for row in share_rows(material_of(study), "test") if row.id == run.id]
    told = re.findall(r"^\| [^|]+ \| (English|Russian) \| (\d+%|) \| [^|]* \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    share = ["" if row.mean is None else f"{row.mean:.0%}" for row in rows]
    assert [one[1:] for one in told] == [
        (mean, str(row.rated), str(row.missing)) for mean, row in zip(share, rows, strict=True)
    ]
    values = [result["metrics"][0]["value"] for result in head["model-index"][0]["results"]]
    assert values == [row.mean for row in rows if row.mean is not None]
    assert str(study.path.parent) not in text
    assert str(Path(run.config.model).parent) not in text


def test_what_is_there_already_stays_and_a_failure_leaves_nothing(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_named(study, 1.0)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="there is something already"):
        export_run(str(run.path), kept)
    with pytest.raises(ConfigError, match="no checkpoint of step 3; there are: 2, 4"):
        export_run(str(run.path), tmp_path / "new", step=3)
    with pytest.raises(ConfigError, match="the untuned base"):
        export_run(str(study.runs[0].path), tmp_path / "new")

    # Weights that were changed on their way to the disk are noticed.
    plain = export._name_ends

    def spoil(model: Any, chat: Any) -> None:
        plain(model, chat)
        save = model.save_pretrained

        def saved(folder: Path) -> None:
            before = model.get_input_embeddings().weight.data.clone()
            model.get_input_embeddings().weight.data += 1
            save(folder)
            model.get_input_embeddings().weight.data = before

        model.save_pretrained = saved

    monkeypatch.setattr(export, "_name_ends", spoil)
    with pytest.raises(ModelError, match="other scores than the run"):
        export_run(str(run.path), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (kept / "mine.txt").read_text() == "mine"


def test_an_untuned_run_of_an_adapter_is_talked_to_in_the_adapters_format(study: StudyFolder, tmp_path: Path) -> None:
    folder = export_run(str(run_named(study, 1.0).path), tmp_path / "adapter", adapter=True)
    raw = {"name": "untuned", "training": {"model": str(folder), "adaptation": {"method": "none"}}}
    (run,) = prepare(parse_study(raw), tmp_path / "out").runs
    _, chat = open_run(run, offline=True)
    assert chat.tokenizer.name_or_path == str(folder)
