"""A tiny real model: a two-layer Llama with its own tokenizer, trained by nobody, built in seconds."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXTS = [
    "Why is the sky blue? Light is scattered by the air.",
    "Pourquoi le ciel est-il bleu ? La lumière est diffusée par l'air.",
    "Почему небо голубое? Свет рассеивается в воздухе.",
    "User: Assistant: <start_of_turn>user model",
]


LONG = ["docs", "workers", "study", "interruption", "scheduling", "sharding", "together", "hub", "models", "recipes"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: two processes that share the files are done at about the same time."""
    last = len(LONG)
    place = {f"test_{name}.py": at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, last))


def build_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    from xlift.models import load_tokenizer

    return load_tokenizer(str(tiny))


@pytest.fixture
def conversations() -> list[Any]:
    return [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"Question number {i} about the sky?" + " Why?" * (i % 3)},
                {"role": "assistant", "content": f"Answer {i}: light is scattered." + " Yes." * (i % 5)},
            ],
        }
        for i in range(12)
    ]


@pytest.fixture
def study_file(tiny: Path, conversations: list[Any], tmp_path: Path) -> Path:
    """A whole study on the tiny model, complete in seconds."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations), encoding="utf-8")
    path = tmp_path / "study.yaml"
    path.write_text(
        f"""
name: tiny
question: Does it run?
training:
  model: {tiny}
  instructions: {{sources: [{{path: data.jsonl}}], heldout: 2}}
  adaptation: {{method: lora, rank: 4}}
  learning_rate: [1e-3, 1e-2]
  steps: 4
  batch_tokens: 120
  micro_batch_tokens: 120
  checkpoint_every: 2
prompts:
  languages: [en, ru]
  validation: {{source: "builtin:open", size: 2}}
  test: {{source: "builtin:open", size: 3}}
decoding: {{max_new_tokens: 6}}
report: {{bootstrap: 100}}
device: cpu
dtype: float32
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; tests that want it skip where it is not installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    from annotation_fixtures import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty annotation database; every test that takes it runs on both."""
    from annotation_fixtures import fresh_database

    from xlift.annotation.database import sqlite_url

    if request.param == "sqlite":
        return sqlite_url(tmp_path / "annotations.sqlite")
    return fresh_database(request.getfixturevalue("postgres"), f"x{uuid.uuid4().hex}")


@pytest.fixture
def two(tmp_path: Path, url: str) -> Iterator[dict[str, Any]]:
    """An annotation campaign of six French responses for each of Ana and Ben, served."""
    from annotation_fixtures import two_annotators

    with two_annotators(tmp_path, url) as campaign:
        yield campaign
