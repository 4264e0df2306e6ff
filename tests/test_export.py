"""What `xlift export` writes is what the run is, for tools that know nothing of xlift."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from hub import serve
from test_hub import DRIVER

from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError, ModelError
from xlift.export import weights
from xlift.export.dataset import export_data, without_names
from xlift.export.gguf import ollama_template, write_modelfile
from xlift.export.licence import card_fields, licence_of
from xlift.export.weights import export_run
from xlift.hub import locate
from xlift.models import Placement, load_model, loaded_checkpoint
from xlift.opening import open_run
from xlift.report.reading import material_of, share_rows
from xlift.results import load
from xlift.stages import generate_stage, prepare, rate_stage, train_stage
from xlift.study.loading import load_study, parse_study
from xlift.tuning.templates import chat_format
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
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
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


def test_the_licence_of_the_base_is_carried_on(study: StudyFolder, tmp_path: Path) -> None:
    run = run_named(study, 1.0)
    base = Path(run.config.model)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-terms\ntags: [x]\n---\nA base.\n")
    (base / "LICENSE.txt").write_text("Do good.")
    try:
        folder = export_run(str(run.path), tmp_path / "model", adapter=True)
    finally:
        (base / "README.md").unlink()
        (base / "LICENSE.txt").unlink()
    head = card_fields(folder / "README.md")
    assert (head["license"], head["license_name"]) == ("other", "tiny-terms")
    assert (folder / "LICENSE.txt").read_text() == "Do good."
    assert licence_of("embedded:gemma-3-270m", None, True).fields["license"] == "gemma"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}{% for m in messages %}<|im_start|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ s if loop.first else '' }}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
WITH_DATE = "{{ bos_token }}You are Tiny.\n" + CHATML


def said_by_ollama(template: str, turns: list[tuple[str, str]], system: str) -> str:
    """What Ollama makes of its template: once a turn, the system prompt in the first, the last without a reply."""
    text = ""
    for i, (asked, reply) in enumerate(turns):
        block = re.fullmatch(r"{{ if .System }}(.*?){{ else }}(.*?){{ end }}(.*)", template, re.DOTALL)
        assert block
        one = (block[1] if system and i == 0 else block[2]) + block[3]
        one = one.replace("{{ .System }}", system).replace("{{ .Prompt }}", asked)
        text += one.replace("{{ .Response }}", reply) if reply else one.split("{{ .Response }}")[0]
    return text


@pytest.mark.parametrize("template", [CHATML, GEMMA])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_ollama_asks_as_the_run_does(template: str, system: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    chat = chat_format(tokenizer, "auto", system or None)
    found = ollama_template(chat)
    assert found
    turns = [("Why?", "So."), ("And then?", "")]
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    shown = chat.render([*messages, {"role": "user", "content": "And then?"}], reply_next=True)
    assert said_by_ollama(found, turns, system) == shown.removeprefix(tokenizer.bos_token)


def test_a_template_that_ollama_cannot_say_is_not_written(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    tokenizer.chat_template = WITH_DATE
    chat = chat_format(tokenizer, "auto", "Be brief.")
    write_modelfile(tmp_path, tmp_path / "model.q8_0.gguf", chat)
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.q8_0.gguf"
    assert 'SYSTEM "Be brief."' in lines
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert not [line for line in lines if line.startswith("TEMPLATE")]
    assert "none that Ollama's can say" in capsys.readouterr().err


def test_without_the_converter_nothing_is_made(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"llama\.cpp's converter: neither convert_hf_to_gguf\.py"):
        export_run(str(run_named(study, 1.0).path), tmp_path / "model", gguf="q8_0")
    converter = tmp_path / "convert-hf-to-gguf"
    converter.write_text("#!/bin/sh\necho 'Model Tiny is not supported' >&2\nexit 1\n")
    converter.chmod(0o755)
    with pytest.raises(ModelError, match="convert-hf-to-gguf: Model Tiny is not supported"):
        export_run(str(run_named(study, 1.0).path), tmp_path / "model", gguf="q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["convert-hf-to-gguf"]


def test_the_data_of_a_study_is_read_by_datasets_without_a_name_of_a_person(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    folder = export_data(study.path, tmp_path / "data")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    read = {
        name: load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("responses", "ratings")
    }
    found = load(study.path)
    assert read["responses"]["text"][:] == [one["text"] for one in found.responses]
    assert read["responses"]["messages"][0] == found.responses[0]["messages"]
    assert read["ratings"]["value"][:] == found.ratings["value"].to_list()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert str(study.path.parent) not in card
    assert card_fields(folder / "README.md")["language"] == ["en", "ru"]
    people = pl.DataFrame({"rater": ["human:Zoe", "language", "human:Ana"], "value": [1, 2, 0]})
    assert without_names(people)["rater"].to_list() == ["human:2", "language", "human:1"]


def test_what_is_pushed_is_what_was_exported(study: StudyFolder, tmp_path: Path) -> None:
    run = str(run_named(study, 1.0).path)
    data = ["export", str(study.path), "--data", "--to"]
    with serve() as hub:
        hub.writer = "hf_writer"
        sent, answers, refused, nameless = commands(
            hub.environment(tmp_path / "home"),
            tmp_path,
            ("hf_writer", ["export", run, "--to", "model", "--adapter", "--push", "me/tuned"]),
            ("hf_writer", [*data, "data", "--push", "me/answers"]),
            ("hf_other", [*data, "more", "--push", "me/x"]),
            ("hf_writer", ["export", run, "--to", "new", "--push", "tuned"]),
        )
        (sha,) = re.findall(rf"pushed: {hub.url}/me/tuned/tree/(\w+)", sent["said"])
        there = hub.repositories["me/tuned"].commits[sha]
        assert there == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        assert answers["code"] in (None, 0), answers["said"]
        (*_, pushed) = hub.repositories["datasets/me/answers"].commits.values()
        assert set(pushed) == {"README.md", "data/responses.parquet", "data/ratings.parquet"}
    assert "error: --push me/x: the hub knows no token that may write there (401)" in refused["said"]
    assert "try: hf auth login, then: hf upload me/x more --repo-type dataset" in refused["said"]
    assert (tmp_path / "more" / "README.md").is_file()
    assert (nameless["code"], (tmp_path / "new").exists()) == (2, False)


def commands(env: dict[str, str], folder: Path, *cases: tuple[str, list[str]]) -> list[dict[str, Any]]:
    """Commands with their tokens in one process, whose library of the hub knows the hub of `env` alone."""
    asked = json.dumps([{"token": token, "arguments": words} for token, words in cases])
    line = [sys.executable, "-c", DRIVER]
    done = subprocess.run(line, input=asked, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


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
    plain = weights._name_ends

    def spoil(model: Any, chat: Any) -> None:
        plain(model, chat)
        save = model.save_pretrained

        def saved(folder: Path) -> None:
            before = model.get_input_embeddings().weight.data.clone()
            model.get_input_embeddings().weight.data += 1
            save(folder)
            model.get_input_embeddings().weight.data = before

        model.save_pretrained = saved

    monkeypatch.setattr(weights, "_name_ends", spoil)
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
