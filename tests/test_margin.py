from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from xlift.checkpoint import MARGIN_TOKENS
from xlift.errors import DataError
from xlift.generation.margin import FactPair, Margin, fact_pairs, language_margins, summarise
from xlift.intervals import estimate
from xlift.models import Placement, load_model, load_tokenizer
from xlift.records import Prompt
from xlift.tuning.loss import response_loss
from xlift.tuning.packing import pad
from xlift.tuning.templates import ChatFormat, chat_format

CPU = Placement("cpu", "float32", "test")
FACTS = {
    "fr": [
        ("Pourquoi le ciel est-il bleu ?", "La lumière est diffusée."),
        ("Qui ?", "Le ciel."),
        ("Quoi ?", "L'air bleu."),
    ],
    "ru": [("Почему небо голубое?", "Свет рассеивается в воздухе."), ("Кто?", "Небо."), ("Что?", "Голубой воздух.")],
    "en": [
        ("Why is the sky blue?", "Light is scattered by the air."),
        ("Who?", "The sky."),
        ("What?", "Lots of blue air."),
    ],
}


def prompts(split: str = "validation") -> dict[str, list[Prompt]]:
    return {
        language: [
            cast(
                Prompt,
                {
                    "id": f"f{i}.{language}",
                    "parallel_id": f"f{i}",
                    "language": language,
                    "split": split,
                    "messages": [{"role": "user", "content": question}],
                    "reference": reference,
                },
            )
            for i, (question, reference) in enumerate(facts)
        ]
        for language, facts in FACTS.items()
    }


def loaded(tiny: Path, template: str = "plain") -> tuple[Any, ChatFormat]:
    return load_model(str(tiny), CPU), chat_format(load_tokenizer(str(tiny)), template)


def by_hand(model: Any, chat: ChatFormat, pair: FactPair) -> float:
    """Full logits, one conversation at a time, the shared opening of both replies left out by its tokens."""
    replies = []
    prompt = chat.encode_prompt(pair.question)
    for text in (pair.reply, pair.english):
        whole = chat.encode([*pair.question, {"role": "assistant", "content": text}])
        assert whole.ids[: len(prompt)] == prompt
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([whole.ids])).logits[0].log_softmax(dim=-1)
        end = max(i for i, learned in enumerate(whole.mask) if learned) + 1
        told = [(i, whole.ids[i]) for i in range(len(prompt), end)]
        replies.append([(token, float(scores[i - 1, token])) for i, token in told])
    own, english = replies
    while own and english and own[0][0] == english[0][0]:
        own, english = own[1:], english[1:]
    return sum(value for _, value in own[:MARGIN_TOKENS]) - sum(value for _, value in english[:MARGIN_TOKENS])


@pytest.mark.parametrize("template", ["plain", "gemma", "llama-2"])
def test_margins_equal_the_plain_computation(tiny: Path, template: str) -> None:
    model, chat = loaded(tiny, template)
    pairs = fact_pairs(prompts())
    found = language_margins(model, chat, pairs)
    assert [(m.parallel_id, m.language) for m in found] == [(p.parallel_id, p.language) for p in pairs]
    # The pair "L'air" / "Lots" opens with the same token, which must not count.
    assert found[2].nats is not None
    assert [m.nats for m in found] == pytest.approx([by_hand(model, chat, pair) for pair in pairs], abs=1e-4)


def test_a_margin_does_not_depend_on_batch_size_or_order(tiny: Path) -> None:
    model, chat = loaded(tiny)
    pairs = fact_pairs(prompts())
    alone = [m.nats for m in language_margins(model, chat, pairs, batch_tokens=1)]
    assert [m.nats for m in language_margins(model, chat, pairs, batch_tokens=10_000)] == pytest.approx(alone, abs=1e-4)
    turned = [m.nats for m in language_margins(model, chat, pairs[::-1], batch_tokens=90)]
    assert turned[::-1] == pytest.approx(alone, abs=1e-4)


def tuned(tiny: Path, language: str) -> tuple[Any, ChatFormat]:
    """The tiny model, taught to answer French and Russian questions in `language` ("own": as asked)."""
    model, chat = loaded(tiny)
    examples = [
        chat.encode([*p.question, {"role": "assistant", "content": p.english if language == "en" else p.reply}])
        for p in fact_pairs(prompts())
    ]
    batch, optimizer = pad(examples, 0), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(8):
        torch.autograd.backward(response_loss(model, batch))
        optimizer.step()
        optimizer.zero_grad()
    return model, chat


def test_a_model_taught_english_has_lower_margins_than_one_taught_the_users_language(tiny: Path) -> None:
    pairs = fact_pairs(prompts())
    english, own = (language_margins(*tuned(tiny, language), pairs) for language in ("en", "own"))
    for low, high in zip(english, own, strict=True):
        assert cast(float, low.nats) < 0 < cast(float, high.nats)
    for low_row, high_row in zip(summarise(english), summarise(own), strict=True):
        assert (low_row.wins.mean, high_row.wins.mean) == (0.0, 1.0)
        assert cast(float, low_row.probability.mean) < 0.5 < cast(float, high_row.probability.mean)


def test_pairs_join_what_is_parallel_and_leave_english_and_test_prompts_out() -> None:
    mixed = {code: own + test for (code, own), test in zip(prompts().items(), prompts("test").values(), strict=True)}
    pairs = fact_pairs(mixed)
    assert len(pairs) == 6
    assert {pair.language for pair in pairs} == {"fr", "ru"}
    assert pairs[1] == FactPair("f1", "fr", prompts()["fr"][1]["messages"], "Le ciel.", "The sky.")
    with pytest.raises(DataError, match="no validation prompts"):
        fact_pairs(prompts("test"))


def test_empty_and_missing_references_are_refused_together() -> None:
    broken = prompts()
    broken["fr"][0]["reference"] = " "
    del broken["ru"][1]["reference"]
    broken["en"] = broken["en"][:2]
    with pytest.raises(DataError) as caught:
        fact_pairs(broken)
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["f0.fr", "f2.fr", "f1.ru", "f2.ru"]
    with pytest.raises(DataError, match="empty"):
        FactPair("f0", "fr", prompts()["fr"][0]["messages"], "", "The sky.")


def test_replies_that_do_not_differ_are_missing_and_not_zero(tiny: Path) -> None:
    model, chat = loaded(tiny)
    question = prompts()["fr"][0]["messages"]
    found = language_margins(model, chat, [FactPair("a", "fr", question, "42", "42"), fact_pairs(prompts())[0]])
    assert (found[0].nats, found[0].probability, found[0].wins) == (None, None, None)
    assert (summarise(found)[0].probability.rated, summarise(found)[0].probability.missing) == (1, 1)


def test_a_summary_is_the_mean_probability_and_the_share_of_wins_with_intervals() -> None:
    nats = {"fr": [math.log(3), -2.0, 800.0], "ru": [-900.0, -1.0, 0.0]}
    margins = [Margin(f"f{i}", code, value) for code, values in nats.items() for i, value in enumerate(values)]
    french, russian = summarise(margins)
    shares = [0.75, 1 / (1 + math.exp(2.0)), 1.0]
    assert french.probability.mean == pytest.approx(sum(shares) / 3)
    assert french.wins == estimate([1, 0, 1], ["f0", "f1", "f2"], top=1.0)
    assert (russian.language, russian.wins.mean, russian.probability.rated) == ("ru", 0.0, 3)
