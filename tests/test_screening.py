"""The likeliest tokens that are found by bounds are those of all scores."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import build
from conftest import build_tokenizer
from torch import Tensor

import xlift.generation.engine as engine
import xlift.generation.screening as screening
from xlift.generation.choosing import Held, choose_greedily
from xlift.generation.screening import MOST_ALONE, Screen, likeliest, screen_of
from xlift.study.served import Decoding
from xlift.tuning.templates import chat_format

pytestmark = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no products of whole numbers here")
TOKENS, INPUTS, ROWS = 2**15, 64, 5


def screen(weight: Tensor) -> tuple[Screen, Callable[[Tensor], Tensor]]:
    head = torch.nn.Linear(INPUTS, TOKENS, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    head.weight.copy_(weight)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    found = screen_of(SimpleNamespace(get_output_embeddings=lambda: head, config=config))
    assert found
    return found, head


def made(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Weights and states in which a few entries stand out, as in real models."""
    torch.manual_seed(seed)
    loud = torch.ones(INPUTS).index_fill_(0, torch.tensor([3, 40]), 12.0)
    return torch.randn(TOKENS, INPUTS) * torch.rand(TOKENS, 1), torch.randn(rows, INPUTS) * loud


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_choice_by_bounds_is_that_of_all_scores(seed: int, penalty: float) -> None:
    weight, states = made(seed)
    found, head = screen(weight)
    asked = states.bfloat16()
    # The likeliest few of each row, one of them twice, and tokens with scores below zero were held.
    high = head(asked).float().topk(3).indices.tolist()
    held = Held(penalty, frozenset([7]))
    held.join([[5, 7, 9, *own, own[0]] for own in high], torch.device("cpu"))
    assert likeliest(found, head, asked, held).tolist() == choose_greedily(head(asked), held).tolist()
    # And a row's is its own alone.
    for row in range(ROWS):
        own = torch.tensor([row])
        assert likeliest(found, head, asked[own], held.of(own)) == choose_greedily(head(asked), held)[row]


@pytest.mark.parametrize("rows", [64, 65, 100])
def test_many_rows_choose_as_each_would_alone(rows: int) -> None:
    weight, states = made(4, rows)
    found, head = screen(weight)
    asked, held = states.bfloat16(), Held(1.3, frozenset())
    held.join([[3, own] for own in head(asked).argmax(1).tolist()], torch.device("cpu"))
    chosen = likeliest(found, head, asked, held).tolist()
    assert chosen == choose_greedily(head(asked), held).tolist()
    assert chosen[-1:] == likeliest(found, head, asked[-1:], held.of(torch.tensor([rows - 1]))).tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_where_scores_are_below_zero_the_choice_is_that_of_all_scores(penalty: float) -> None:
    weight, states = made(5)
    weight, states = weight.abs() + 0.01, -states.abs()
    weight[7] = -weight[7] / 20  # one score above zero
    found, head = screen(weight)
    asked, held = states.bfloat16(), Held(penalty, frozenset())
    held.join([[9, 7 + row % 2] for row in range(ROWS)], torch.device("cpu"))
    assert likeliest(found, head, asked, held).tolist() == choose_greedily(head(asked), held).tolist()
    assert likeliest(found, head, -asked, held).tolist() == choose_greedily(head(-asked), held).tolist()


def test_of_tokens_that_are_equally_likely_the_first_is_taken_and_rows_without_a_likeliest_are_told_apart() -> None:
    weight, states = made(1)
    weight[20_000:] = weight[100]  # more than are looked at one by one
    weight[101] = weight[100]
    states[0], states[1], states[2] = weight[100], 0.0, weight[300] * 4
    assert TOKENS - 20_000 > MOST_ALONE
    found, head = screen(weight)
    asked, held = states.bfloat16(), Held(1.0, frozenset())
    chosen = likeliest(found, head, asked, held)
    assert chosen.tolist() == choose_greedily(head(asked), held).tolist()
    assert chosen[:2].tolist() == [100, 0]


def test_a_model_with_a_large_vocabulary_says_what_it_says_by_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = chat_format(build_tokenizer(), "plain")
    model = build("llama", attn_implementation="sdpa", vocab_size=TOKENS, hidden_size=64).to(torch.bfloat16)
    asked = [chat.encode_prompt([{"role": "user", "content": text}]) for text in ("Why?", "Почему?", "b")]
    used: list[Any] = []
    monkeypatch.setattr(engine, "likeliest", lambda *given: used.append(given) or likeliest(*given))
    said: list[dict[int, str]] = []
    for worth in (1, 10**9):
        monkeypatch.setattr(screening, "WORTH_SCREENING", worth)
        said.append({})
        keep = lambda at, reply: said[-1].update({at: reply.text})  # noqa: E731
        engine.decode(model.requires_grad_(False), chat, asked, ["", "", ""], Decoding(max_new_tokens=8), keep)
    assert used
    assert said[0] == said[1]
