"""What a model cannot read is refused before anything is spent, with counts and what to change."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build
from conftest import build_tokenizer
from safetensors.torch import load_file, save_file

from xlift.chat import talk
from xlift.errors import ConfigError, UserError
from xlift.hub import locate
from xlift.models import Placement
from xlift.planning.check import check_study
from xlift.planning.forecast import CheckpointWork
from xlift.planning.proof import notes
from xlift.stages import prepare, train_stage
from xlift.study.loading import load_study
from xlift.study.runs import Adaptation, Method, RunConfig
from xlift.tuning.limits import Limits, beyond, reach
from xlift.tuning.templates import chat_format
from xlift.tuning.train import prepared_model


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with a table of 40 positions."""
    folder = tmp_path_factory.mktemp("short")
    build("gpt2", n_positions=40, max_position_embeddings=40).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def problems(study: Path, *overrides: str) -> str:
    """What `xlift check --no-probe` finds wrong."""
    with pytest.raises(ConfigError) as caught:
        check_study(load_study(study, overrides), offline=True, probe=False)
    return str(caught.value)


def test_the_last_token_of_a_reply_is_never_read() -> None:
    limits = Limits(400, 10, 10)
    assert reach([[5] * 6], 5) == [10]
    assert all(claim.holds for claim in beyond(limits, "prompts", [[5] * 6], 5))
    told = [claim for claim in beyond(limits, "prompts", [[5] * 6, [5] * 2], 6) if not claim.holds]
    assert [claim.problem for claim in told] == [
        "prompts: 1 of 2 with 6 new tokens reach beyond the 10 positions that the model has (to 11)"
    ]
    assert told[0].hint.startswith("set max_new_tokens to 5 or less")
    assert all(claim.holds for claim in beyond(Limits(400, None, 10), "prompts", [[5] * 60], 6))


def test_tokens_without_an_embedding_are_named() -> None:
    told = [claim.problem for claim in beyond(Limits(50, None, None), "prompts", [[5, 50], [70]]) if not claim.holds]
    assert told == ["prompts: tokens 50, 70 have no embedding: the model has 50"]


def test_check_tells_all_that_a_model_cannot_read_without_running_it(study_file: Path, short: Path) -> None:
    told = problems(study_file, f"training.model={short}", "validation.responses=1")
    for what in ("prompts: ", "conversations: ", "held-out conversations: ", "prompts of validation.responses: "):
        assert f"lora-r4-lr1e-3: {what}" in told
    assert "base: prompts: 10 of 10 with 6 new tokens reach beyond the 40 positions" in told
    assert "base: conversations" not in told
    assert "training.max_length to 40 or less" in told


def test_a_run_that_could_not_be_asked_its_prompts_is_not_trained(
    study_file: Path, short: Path, tmp_path: Path
) -> None:
    workspace = prepare(load_study(study_file, [f"training.model={short}", "training.max_length=40"]), tmp_path / "out")
    with pytest.raises(UserError, match=r"prompts: 10 of 10 with 6 new tokens reach beyond the 40 positions"):
        train_stage(workspace, offline=True)
    assert not list(tmp_path.glob("out/runs/*/checkpoints/*"))


def test_a_talk_that_grows_too_long_ends_in_words(short: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n" * 9))
    with pytest.raises(UserError, match="the conversation: 1 of 1 with 8 new tokens reach beyond the 40 positions"):
        talk([str(short)], None, 8, True)


def test_weights_under_other_names_are_found_without_a_probe(study_file: Path, short: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prefixed"
    build("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({f"module.{key}": value for key, value in load_file(file).items()}, file, {"format": "pt"})
    told = problems(study_file, f"training.model={folder}", "prompts.test.size=100000")
    assert "without the prefix 'module.' they would fit" in told
    assert "prompts in 'en', asked: 100000" in told


def test_what_a_template_refuses_is_told_by_record(study_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    build("llama").save_pretrained(folder)
    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'number 3 ' in m['content'] %}{{ raise_exception('no threes') }}{% endif %}"
        "{% if 'number 5 ' in m['content'] %}{{ nothing.at.all }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    told = problems(study_file, f"training.model={folder}")
    refuses = r"data\.jsonl:{} \(Question number {} about the sky\?.*\): the chat template 'own' refuses it: {}"
    assert re.search(refuses.format(4, 3, "no threes"), told)
    assert re.search(refuses.format(6, 5, "UndefinedError: 'nothing' is undefined"), told)


def test_check_says_what_is_good_to_know(study_file: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "dated"
    build("llama", max_position_embeddings=30).save_pretrained(folder)
    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = (
        "{% set form = '%Y-%m-%d' %}{{ strftime_now(form) }}{% for m in messages if m['role'] != 'system' %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    study = load_study(study_file, [f"training.model={folder}", "training.system=Be brief."])
    check_study(study, offline=True, probe=False)
    said = capsys.readouterr().out
    assert "the chat template writes today's date: here it is always 26 July 2024" in said
    assert "no system turn: the system prompt opens the first user's turn" in said
    assert "tokens are read at once; the model was made for 30" in said
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 30


def test_characters_that_the_tokenizer_does_not_know_are_told() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "Why", "?"]
    vocabulary = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "</s>", "additional_special_tokens": words[2:4]}
    chat = chat_format(PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special), "chatml")
    asked = CheckpointWork(
        [chat.encode_prompt([{"role": "user", "content": text}]) for text in ("Why?", "Почему?")], 0, 8
    )
    told = ["1 of 2 prompts hold characters that the tokenizer does not know"]
    assert notes(chat, Limits(8, None, None), None, asked) == told


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_with_dropout_of_its_own_computes_the_same_in_every_forward_pass_of_training(
    short: Path, method: Method
) -> None:
    assert json.loads((short / "config.json").read_text())["resid_pdrop"] > 0
    ids = torch.arange(4, 24)[None]
    settings = RunConfig(model=str(short), adaptation=Adaptation(method=method, rank=2))
    with prepared_model(settings, locate(str(short)), Placement("cpu", "float32", "test")) as model, torch.no_grad():
        assert model.training
        assert torch.equal(model(ids).logits, model(ids).logits)
