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
from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError, UserError
from xlift.hub import locate
from xlift.models import Placement
from xlift.planning.check import check_study
from xlift.planning.forecast import CheckpointWork
from xlift.planning.proof import notes
from xlift.stages import generate_stage, prepare, train_stage
from xlift.study.loading import load_study
from xlift.study.runs import Adaptation, Method, RunConfig
from xlift.tuning.encoding import Data
from xlift.tuning.limits import Limits, beyond, fitted, limits_of, reach
from xlift.tuning.templates import Encoded, chat_format
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


def test_tokens_without_an_embedding_are_named() -> None:
    told = [claim.problem for claim in beyond(Limits(50, None, None), "prompts", [[5, 50], [70]]) if not claim.holds]
    assert told == ["prompts: tokens 50, 70 have no embedding: the model has 50"]


def test_check_tells_all_that_a_model_cannot_read_without_running_it(study_file: Path, short: Path) -> None:
    told = problems(study_file, f"training.model={short}", "validation.responses=1")
    for what in ("conversations: ", "held-out conversations: ", "prompts of validation.responses: "):
        assert f"lora-r4-lr1e-3, lora-r4-lr1e-2: {what}" in told
    every = "base, lora-r4-lr1e-3, lora-r4-lr1e-2"
    assert f"{every}: prompts: 10 of 10 with 6 new tokens reach beyond the 40 positions" in told
    assert "training.max_length to 40 or less" in told


def test_a_run_that_could_not_be_asked_its_prompts_is_not_trained(
    study_file: Path, short: Path, tmp_path: Path
) -> None:
    workspace = prepare(load_study(study_file, [f"training.model={short}", "training.max_length=40"]), tmp_path / "out")
    with pytest.raises(UserError, match=r"prompts: 10 of 10 with 6 new tokens reach beyond the 40 positions"):
        train_stage(workspace, offline=True)
    assert not list(tmp_path.glob("out/runs/*/checkpoints/*"))


def test_a_line_that_is_too_long_for_the_model_ends_a_talk_in_words(short: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Why? " * 40 + "\n"))
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
    build("llama").save_pretrained(folder)
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


def test_prompts_end_where_a_models_context_does_and_what_is_learned_may_be_longer() -> None:
    limits = Limits(400, None, 10)
    (_, told) = beyond(limits, "prompts", [[5] * 60, [5] * 2], 6)
    assert told.problem == "prompts: 1 of 2 with 6 new tokens are longer than the model's context of 10 (to 65)"
    assert "decoding.too_long: drop" in told.hint
    assert all(claim.holds for claim in beyond(limits, "conversations", [[5] * 60]))
    data = Data([Encoded([5] * 60, [True] * 60)], [], 0)
    chat = chat_format(build_tokenizer(), "plain")
    assert notes(chat, limits, data, CheckpointWork([], 0, 6)) == [
        "conversations have up to 60 tokens; the model was made for 10"
    ]


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 256),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
          | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}, 64),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, 64),
    ],
)  # fmt: skip
def test_the_context_counts_what_scales_positions_and_no_window(settings: dict[str, Any], context: int) -> None:
    name = "qwen3" if "sliding_window" in settings else "llama"
    assert limits_of(build(name, **{"max_position_embeddings": 64} | settings)).context == context


def test_whole_turns_are_dropped_the_oldest_first_and_the_last_question_stays() -> None:
    chat = chat_format(build_tokenizer(), "plain", "Be brief.")
    turns = [("user", "Why one?"), ("assistant", "One."), ("user", "Why two?"), ("assistant", "Two."), ("user", "Why?")]
    messages: Any = [{"role": role, "content": text} for role, text in turns]
    whole, less, least = (chat.encode_prompt(messages[start:]) for start in (0, 2, 4))
    assert fitted(chat, messages, None) == (whole, 0) == fitted(chat, messages, len(whole))
    assert fitted(chat, messages, len(whole) - 1) == (less, 1)
    assert fitted(chat, messages, len(least)) == (least, 2) == fitted(chat, messages, 1)
    spoken = [{"role": "system", "content": "Say yes."}, *messages]
    assert fitted(chat, spoken, 1) == (chat.encode_prompt([spoken[0], spoken[-1]]), 2)


def test_a_dropped_turn_is_told_in_the_record_and_the_signature(study_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "narrow"
    build("llama", max_position_embeddings=64).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    turns = [("user", "Why is the sky blue? " * 9), ("assistant", "Light."), ("user", "Why?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    prompt = {"language": "en"}
    lines = [
        json.dumps(
            {**prompt, "id": name, "split": name, "messages": [*messages[:-1], {"role": "user", "content": name}]}
        )
        for name in ("validation", "test")
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    asked = [f"prompts.{part}.source={tmp_path / 'prompts.jsonl'}" for part in ("validation", "test")]
    model = [
        f"training.model={folder}",
        "training.template=plain",
        "training.adaptation.method=none",
        "prompts.languages=[en]",
        "prompts.validation.size=1",
        "prompts.test.size=1",
    ]
    told = problems(study_file, *model, *asked)
    assert "2 of 2 with 6 new tokens are longer than the model's context of 64" in told
    workspace = prepare(load_study(study_file, [*model, *asked, "decoding.too_long=drop"]), tmp_path / "out")
    generate_stage(workspace, offline=True)
    (one,) = checkpoints(workspace)
    assert [(r["dropped_turns"], len(r["messages"])) for r in one.responses] == [(1, 3), (1, 3)]
    assert "|drop" in one.responses[0]["signature"]
    assert max(r["prompt_tokens"] for r in one.responses) + 6 <= 65


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
