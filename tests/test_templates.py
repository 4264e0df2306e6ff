from __future__ import annotations

from typing import Any

import pytest

from xlift.errors import TemplateError
from xlift.tuning.templates import NAMED, chat_format

SINGLE = [{"role": "user", "content": "Why is it blue?"}, {"role": "assistant", "content": "Light scatters."}]
MULTI = [
    *SINGLE,
    {"role": "user", "content": "Почему?"},
    {"role": "assistant", "content": "Свет рассеивается.\n\nDa."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *MULTI]


@pytest.mark.parametrize("template", sorted(NAMED))
@pytest.mark.parametrize("messages", [SINGLE, MULTI, SYSTEM], ids=["single", "multi", "system"])
def test_mask_covers_exactly_the_reply_and_its_end(tokenizer: Any, template: str, messages: Any) -> None:
    chat = chat_format(tokenizer, template)
    encoded = chat.encode(messages)
    learned = [t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m]
    replies = [m["content"] for m in messages if m["role"] == "assistant"]
    pieces = tokenizer.decode(learned).split(chat.end_of_turn)
    assert [piece.strip() for piece in pieces] == [*replies, ""]
    assert learned.count(chat.end_of_turn_id) == len(replies)


@pytest.mark.parametrize("template", sorted(NAMED))
def test_training_text_begins_with_the_prompt_that_generation_uses(tokenizer: Any, template: str) -> None:
    chat = chat_format(tokenizer, template)
    prompt = chat.encode_prompt(SINGLE[:1])  # type: ignore[arg-type]
    encoded = chat.encode(SINGLE)  # type: ignore[arg-type]
    assert encoded.ids[: len(prompt)] == prompt
    assert not any(encoded.mask[: len(prompt)])
    assert encoded.mask[len(prompt)]


def test_own_template_is_used_and_its_end_found(tokenizer: Any) -> None:
    tokenizer.chat_template = NAMED["chatml"].replace("END", "<|im_end|>")
    chat = chat_format(tokenizer)
    assert (chat.name, chat.end_of_turn) == ("own", "<|im_end|>")


def test_a_base_model_ends_its_turns_with_the_end_of_text_it_knows(tokenizer: Any) -> None:
    chat = chat_format(tokenizer)
    assert (chat.name, chat.end_of_turn) == ("gemma", tokenizer.eos_token)
    borders = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"])
    assert chat.stop_ids == {tokenizer.eos_token_id, *borders}


def test_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.length }}{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(TemplateError, match="does not repeat"):
        chat_format(tokenizer).encode(SINGLE)  # type: ignore[arg-type]


def test_template_without_an_end_of_turn_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(TemplateError, match="no special token"):
        chat_format(tokenizer)


def test_reply_that_repeats_the_prompt_is_masked_at_its_own_place(tokenizer: Any) -> None:
    chat = chat_format(tokenizer, "plain")
    echo: Any = [{"role": "user", "content": "same words"}, {"role": "assistant", "content": "same words"}]
    encoded = chat.encode(echo)
    assert encoded.mask.index(True) >= len(chat.encode_prompt(echo[:1]))
