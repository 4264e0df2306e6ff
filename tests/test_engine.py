"""Continuous batching: what a row says is its prompt's alone, whatever comes and goes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build
from conftest import build_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model

from xlift.data.prompts import load_prompts
from xlift.generation.adapters import Adapter, part_of
from xlift.generation.allowed import left_out
from xlift.generation.choosing import Held, choose
from xlift.generation.engine import BatchOf, Reply, answering, closed_up, decode
from xlift.models import adapter_layers, unwrapped
from xlift.study.data import Prompts
from xlift.study.served import Decoding
from xlift.tuning.templates import ChatFormat, chat_format

FAMILIES = ["llama", "qwen3", "mistral", "gemma3_text", "gpt2", "mixtral"]
TEXTS = ["Why?", "Why is the sky blue, light? " * 2, "light", "Почему небо голубое? Свет " * 2, "a", "b c d"]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format(build_tokenizer(), "plain")


@pytest.fixture(scope="module")
def model_of() -> Any:
    made: dict[tuple[str, torch.dtype], Any] = {}

    def model(name: str, dtype: torch.dtype = torch.float32) -> Any:
        if (name, dtype) not in made:
            how = {"attn_implementation": "sdpa"} if name in FAMILIES else {}
            made[name, dtype] = build(name, **how).to(dtype).requires_grad_(False)
        return made[name, dtype]

    return model


def answers(
    model: Any,
    chat: ChatFormat,
    which: Sequence[int] = range(len(TEXTS)),
    languages: Sequence[str] = ("ru", "fr"),
    batch_of: BatchOf | None = None,
    **settings: Any,
) -> dict[int, Reply]:
    prompts = [chat.encode_prompt([{"role": "user", "content": TEXTS[i]}]) for i in which]
    found: dict[int, Reply] = {}
    decoding = Decoding(**({"max_new_tokens": 12} | settings))
    keys, said = [TEXTS[i] for i in which], [languages[i % len(languages)] for i in which]
    take = partial(decode, model, chat, prompts, keys, decoding, lambda at, reply: found.update({which[at]: reply}))
    take(said, batch_of=batch_of)
    return found


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_replies_in_places_that_are_filled_again_are_those_of_generate(
    name: str, penalty: float, model_of: Any, chat: ChatFormat
) -> None:
    model = model_of(name)
    for at, ours in answers(model, chat, batch_size=2, repetition_penalty=penalty).items():
        ids = torch.tensor([chat.encode_prompt([{"role": "user", "content": TEXTS[at]}])])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=0,
        )
        assert ours.text == chat.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("name", "strategy"), [*((name, "greedy") for name in FAMILIES), ("llama", "sample")])
def test_in_bfloat16_a_response_depends_on_its_prompt_alone(
    name: str, strategy: str, model_of: Any, chat: ChatFormat
) -> None:
    model = model_of(name, torch.bfloat16)
    alone = answers(model, chat, batch_size=1, strategy=strategy)
    assert answers(model, chat, batch_size=4, strategy=strategy) == alone
    # As when a study goes on with what was not answered yet.
    left = [5, 1]
    assert answers(model, chat, left, batch_size=2, strategy=strategy) == {i: alone[i] for i in left}


def adapter_folders(model: Any, folder: Path) -> list[Path]:
    """Two adapters of a model that move its scores: LoRA, and DoRA."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        wrapped = get_peft_model(
            model,
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=seed == 2),
        )
        for name, one in wrapped.named_parameters():
            if "lora_B" in name:
                one.data.normal_(std=0.1)
        made.append(folder / str(seed))
        wrapped.save_pretrained(made[-1], save_embedding_layers=False)
        unwrapped(wrapped)
    return made


def parts_of(model: Any, folder: Path) -> Adapter:
    found = {name: part_of(one, 1.0) for name, one in (adapter_layers(model, folder) or {}).items()}
    assert found
    assert all(found.values())
    return found  # type: ignore[return-value]


def replies_with(
    model: Any, chat: ChatFormat, asked: Sequence[list[int]], adapters: list[Adapter], kinds: Sequence[int]
) -> list[Reply]:
    found: dict[int, Reply] = {}
    keys, decoding = [str(prompt) for prompt in asked], Decoding(max_new_tokens=8, batch_size=4)
    how: dict[str, Any] = {"adapters": adapters, "kinds": kinds}
    decode(model, chat, asked, keys, decoding, lambda at, reply: found.update({at: reply}), **how)
    return [found[at] for at in range(len(asked))]


@pytest.mark.parametrize("name", FAMILIES[:5])
def test_checkpoints_in_one_pass_answer_as_each_answers_alone_and_by_generate(
    name: str, model_of: Any, chat: ChatFormat, tmp_path: Path
) -> None:
    folders = adapter_folders(model_of(name), tmp_path)
    asked = [chat.encode_prompt([{"role": "user", "content": TEXTS[i]}]) for i in (0, 3, 1, 1, 0, 3)]
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(name, dtype)
        adapters = [parts_of(model, folder) for folder in folders]
        together = replies_with(model, chat, asked, adapters, [0, 0, 1, 0, 1, 1])
        assert together[2].text != together[3].text
        for number, own in enumerate(([0, 1, 3], [2, 4, 5])):
            alone = replies_with(model, chat, [asked[at] for at in own], [adapters[number]], [0] * 3)
            assert alone == [together[at] for at in own]
            if dtype == torch.float32:
                assert generated_with(model, folders[number], chat, asked[own[0]]) == alone[0].text


def generated_with(model: Any, folder: Path, chat: ChatFormat, prompt: list[int]) -> str:
    wrapped: Any = PeftModel.from_pretrained(model, str(folder))
    ids = torch.tensor([prompt])
    how = {"do_sample": False, "repetition_penalty": 1.2, "eos_token_id": sorted(chat.stop_ids), "pad_token_id": 0}
    made = wrapped.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, **how)
    unwrapped(wrapped)
    return str(chat.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)).strip()


def test_adapters_read_what_all_prompts_begin_with_each_in_its_own_way(model_of: Any, tmp_path: Path) -> None:
    model, chat = model_of("llama"), chat_format(build_tokenizer(), "plain", "Light is scattered by the air. " * 4)
    adapters = [parts_of(model, folder) for folder in adapter_folders(model, tmp_path)]
    asked = [chat.encode_prompt([{"role": "user", "content": "Why?"}])] * 2
    first, second = replies_with(model, chat, asked, adapters, [0, 1])
    assert [second, first] == replies_with(model, chat, asked, adapters, [1, 0])
    assert [first] == replies_with(model, chat, asked[:1], adapters[:1], [0])
    assert first.text != second.text


def test_what_does_not_fit_into_memory_is_answered_in_smaller_batches(
    model_of: Any, chat: ChatFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of("llama")
    whole = answers(model, chat)

    def full(_: Any, inputs: Any) -> None:
        if inputs[0].shape[-2] > 5:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.lm_head.register_forward_pre_hook(full)
    assert answers(model, chat) == whole
    hook.remove()
    assert "going on with 3 prompts at a time" in capsys.readouterr().err


def test_the_model_is_given_back_as_it_was(model_of: Any, chat: ChatFormat) -> None:
    model = model_of("gpt2", torch.bfloat16)
    answers(model, chat, [0])
    assert model.config._attn_implementation == "sdpa"
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_last_rows_take_the_places_of_those_that_ended() -> None:
    assert closed_up([True, False, True, False, True, True]) == [0, 5, 2, 4]
    assert closed_up([False, False]) == []


@pytest.mark.parametrize("size", [1024, 1000])
def test_the_choice_in_bfloat16_is_that_in_float32_where_scores_are_equal_too(size: int) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(8, size, generator=generator) * 2).round().bfloat16()
    held = Held(1.2, frozenset())
    held.join([torch.randint(0, size, (20,), generator=generator).tolist() for _ in range(8)], logits.device)
    wanted = logits.float().scatter(1, held.ids, held.penalised(logits)).argmax(dim=1)
    assert torch.equal(choose(logits.clone(), held, Decoding(), [None] * 8), wanted)


def test_a_text_to_stop_at_ends_a_reply_and_is_no_part_of_it(model_of: Any, chat: ChatFormat) -> None:
    model = model_of("llama")
    whole = answers(model, chat)
    stop = next(reply.text[3:5] for reply in whole.values() if len(reply.text) > 6 and reply.text[3:5].isascii())
    cut = answers(model, chat, stop=[stop])
    assert any(stop in reply.text for reply in whole.values())
    for at, reply in cut.items():
        assert reply.text == whole[at].text.split(stop)[0].strip()
        assert reply.finish_reason == ("stop" if stop in whole[at].text else whole[at].finish_reason)


def test_the_likeliest_token_alone_is_drawn_where_no_other_may_be(model_of: Any, chat: ChatFormat) -> None:
    model = model_of("llama")
    greedy = answers(model, chat)
    assert answers(model, chat, strategy="sample", top_k=1) == greedy
    assert answers(model, chat, strategy="sample", min_p=0.999) == greedy
    assert answers(model, chat, strategy="sample", top_k=20) != greedy


def test_each_sample_is_a_prompt_of_its_own_in_the_cluster_of_the_first() -> None:
    settings = Prompts.model_validate({"languages": ["fr"], "validation": {"size": 2}, "test": {"size": 2}})
    one, three = load_prompts(settings), load_prompts(settings, samples=3)
    assert three[: len(one)] == one
    assert len({prompt["id"] for prompt in three}) == len(three) == 3 * len(one)
    assert {prompt["parallel_id"] for prompt in three} == {prompt["parallel_id"] for prompt in one}
    with pytest.raises(ValueError, match="a greedy response is always the same"):
        Decoding(samples=3)


def test_tokens_that_no_answer_in_the_language_can_hold_are_left_out(model_of: Any, chat: ChatFormat) -> None:
    def passes(text: str, language: str) -> bool:
        made = left_out(chat.tokenizer, language, len(chat.tokenizer))
        return not any(made[token] for token in chat.tokenizer(text, add_special_tokens=False)["input_ids"])

    assert passes("Почему небо голубое? 12 %", "ru")
    assert not passes("Почему", "fr")
    assert not passes(" the sky", "fr")
    assert passes(" the sky", "en")
    replies = answers(model_of("llama"), chat, languages=["fr"], allow=True)
    assert not any("а" <= letter <= "я" for reply in replies.values() for letter in reply.text)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo"])
def test_each_row_is_moved_towards_its_own_language(name: str, model_of: Any, chat: ChatFormat) -> None:
    model = model_of(name)
    plain = answers(model, chat)
    moved = answers(model, chat, steer=4.0)
    assert moved != plain
    assert answers(model, chat, [3], steer=4.0) == {3: moved[3]}
    assert answers(model, chat, languages=["en"], steer=4.0) == plain
    # As checkpoints of a study answer: the model is set up once for all of them.
    with answering(model) as batch_of:
        assert answers(model, chat, batch_of=batch_of, steer=4.0) == moved
    assert not [one for one in model.modules() if one._forward_hooks]
