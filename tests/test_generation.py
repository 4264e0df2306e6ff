from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xlift.generation.engine import Reply, decode
from xlift.models import Placement, load_model, load_tokenizer
from xlift.study.served import Decoding
from xlift.tuning.templates import chat_format

CPU = Placement("cpu", "float32", "test")
ASKED = ["Why?", "Почему небо голубое?", "Pourquoi le ciel est-il bleu ?", "light", "Why is the sky blue? " * 4]


def answers(tiny: Path, asked: list[str], **settings: Any) -> dict[str, Reply]:
    chat = chat_format(load_tokenizer(str(tiny)), "plain")
    model = load_model(str(tiny), CPU)
    prompts = [chat.encode_prompt([{"role": "user", "content": text}]) for text in asked]
    found: dict[str, Reply] = {}
    decoding = Decoding(**({"max_new_tokens": 12} | settings))
    decode(model, chat, prompts, asked, decoding, lambda index, reply: found.update({asked[index]: reply}))
    return found


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_in_float32_a_response_does_not_depend_on_batch_size_or_order(tiny: Path, strategy: Any) -> None:
    alone = answers(tiny, ASKED, batch_size=1, strategy=strategy)
    assert answers(tiny, ASKED, batch_size=5, strategy=strategy) == alone
    assert answers(tiny, ASKED[::-1], batch_size=2, strategy=strategy) == alone


def test_greedy_decoding_equals_the_librarys_own(tiny: Path) -> None:
    chat = chat_format(load_tokenizer(str(tiny)), "plain")
    model = load_model(str(tiny), CPU)
    for text, ours in answers(tiny, ASKED, repetition_penalty=1.2).items():
        ids = torch.tensor([chat.encode_prompt([{"role": "user", "content": text}])])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=1.2,
            eos_token_id=list(chat.stop_ids),
            pad_token_id=0,
        )
        theirs = chat.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert ours.text == theirs.strip()


def test_sampling_follows_its_seed(tiny: Path) -> None:
    first = answers(tiny, ASKED, strategy="sample", seed=1)
    assert first == answers(tiny, ASKED, strategy="sample", seed=1)
    assert first != answers(tiny, ASKED, strategy="sample", seed=2)


def test_token_limit_is_kept_and_said(tiny: Path) -> None:
    for reply in answers(tiny, ASKED, max_new_tokens=3).values():
        assert reply.new_tokens <= 3
        assert reply.finish_reason == ("length" if reply.new_tokens == 3 else "stop")


def test_the_states_that_reach_the_output_layer_lie_together(tiny: Path) -> None:
    """Of a slice with gaps, torch multiplies a frozen output layer by copying that layer once a row: 16 GB for 48."""
    chat, model = chat_format(load_tokenizer(str(tiny)), "plain"), load_model(str(tiny), CPU)
    gaps: list[tuple[int, bool]] = []
    model.lm_head.register_forward_pre_hook(
        lambda _, inputs: gaps.append((inputs[0].shape[-2], inputs[0].is_contiguous()))
    )
    asked = [chat.encode_prompt([{"role": "user", "content": text}]) for text in ASKED]
    decode(model, chat, asked, ASKED, Decoding(max_new_tokens=3), lambda index, reply: None)
    assert (len(ASKED), True) in gaps
    assert all(together for _, together in gaps)


@pytest.mark.parametrize("ends", [[7, 9, 11], 7, None])
def test_every_token_that_the_model_names_as_its_end_ends_a_reply(tiny: Path, ends: Any) -> None:
    chat, model = chat_format(load_tokenizer(str(tiny)), "plain"), load_model(str(tiny), CPU)
    model.generation_config.eos_token_id = ends
    wanted = ends if isinstance(ends, list) else [ends]
    for token in [chat.end_of_turn_id if one is None else one for one in wanted]:

        def prefer(module: Any, inputs: Any, output: Any, token: int = token) -> None:
            output.logits[..., token] += 1e4

        hook = model.register_forward_hook(prefer)
        replies: list[Reply] = []
        prompts = [chat.encode_prompt([{"role": "user", "content": "Why?"}])]
        decode(model, chat, prompts, ["a"], Decoding(), lambda _, reply, kept=replies: kept.append(reply))
        hook.remove()
        assert [(reply.text, reply.finish_reason, reply.new_tokens) for reply in replies] == [("", "stop", 0)]
