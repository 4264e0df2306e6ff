from __future__ import annotations

import datetime
from typing import Any

import pytest
from conftest import build_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_at_hand import REAL, real_tokenizer, sentencepiece_tokenizer

from xlift.errors import TemplateError
from xlift.records import RENDERING, fingerprint
from xlift.tuning.formats import NAMED_FORMATS
from xlift.tuning.templates import ChatFormat, chat_format

SINGLE: Any = [{"role": "user", "content": "Why is it blue?"}, {"role": "assistant", "content": "Light scatters."}]
MULTI: Any = [
    *SINGLE,
    {"role": "user", "content": "Почему?"},
    {"role": "assistant", "content": "Свет рассеивается.\n\nDa."},
]
SYSTEM: Any = [{"role": "system", "content": "Be brief."}, *MULTI]
WORDS = {
    "Latn": "Bien sûr : l'été, voilà.",
    "Cyrl": "Привет, мир!",
    "Grek": "Καλημέρα κόσμε.",
    "Arab": "مرحبا بالعالم.",
    "Hebr": "שלום עולם.",
    "Deva": "नमस्ते दुनिया।",
    "Beng": "ওহে বিশ্ব।",
    "Taml": "வணக்கம் உலகம்.",
    "Thai": "สวัสดีชาวโลก",
    "Hani": "你好，世界。",
    "Jpan": "こんにちは、世界。",
    "Kore": "안녕하세요, 세계.",
    "code": "```py\nprint('</b>')\n```",
    "address": "://x.org/a?b=1",
    "control": "Write </s>, <end_of_turn> or <|im_end|> yourself.",
    "blank lines": "a\n\n\nb",
    "digits": "42",
}


SHUT = "</think>"


@pytest.fixture(scope="module")
def thinking_tokenizer() -> Any:
    """A tokenizer that knows the tags of thoughts as tokens, as most models that think do."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", SHUT])
    return tokenizer


def conversations(thought: str = "") -> Any:
    """Random conversations in many scripts; with `thought`, each reply begins with one of these."""

    words = st.one_of(
        st.sampled_from(sorted(WORDS.values())),
        st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip())),
    )
    plain = words.filter(lambda text: not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text))
    turns = st.lists(st.tuples(plain, plain), min_size=1, max_size=3)
    return turns.map(
        lambda pairs: [
            {"role": role, "content": before + text}
            for pair in pairs
            for role, before, text in zip(("user", "assistant"), ("", thought), pair, strict=True)
        ]
    )


def check_invariant(chat: ChatFormat, messages: Any) -> None:
    """For every reply: what generation asks, then what is learned, then what comes after; no gap and no overlap."""
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    examples = chat.examples(messages)
    pairs = zip(examples * len(replies) if len(examples) == 1 else examples, replies, strict=True)
    for encoded, place in pairs:
        prompt = chat.encode_prompt(messages[:place])
        begin = len(prompt)
        if chat.thinking == "keep":
            begin += encoded.mask[begin:].index(True)
            assert chat.tokenizer.decode(encoded.ids[len(prompt) : begin]).strip().endswith(SHUT)
        end = begin
        while end < len(encoded) and encoded.mask[end]:
            end += 1
        assert encoded.ids[: len(prompt)] == prompt
        assert end > begin
        assert not (begin and encoded.mask[begin - 1])
        assert encoded.ids[end - 1] == chat.end_of_turn_id
        learned = encoded.ids[begin : end - 1]
        assert chat.end_of_turn_id not in learned
        said = chat.tokenizer.decode(learned).strip()
        wanted = messages[place]["content"] if chat.thinking == "learn" else messages[place]["content"].split(SHUT)[-1]
        assert said == wanted.strip() or "�" in said
    last = examples[-1]
    assert sum(last.mask[len(chat.encode_prompt(messages[:-1])) :]) == sum(last.mask) - sum(
        last.mask[: len(chat.encode_prompt(messages[:-1]))]
    )


@pytest.mark.parametrize("template", sorted(NAMED_FORMATS))
@pytest.mark.parametrize("messages", [SINGLE, MULTI, SYSTEM], ids=["single", "multi", "system"])
def test_mask_covers_exactly_the_reply_and_its_end(tokenizer: Any, template: str, messages: Any) -> None:
    chat = chat_format(tokenizer, template)
    encoded = chat.encode(messages)
    learned = [t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m]
    replies = [m["content"] for m in messages if m["role"] == "assistant"]
    pieces = tokenizer.decode(learned).split(chat.end_of_turn)
    assert [piece.strip() for piece in pieces] == [*replies, ""]
    assert learned.count(chat.end_of_turn_id) == len(replies)


@pytest.mark.parametrize("template", sorted(NAMED_FORMATS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations())
def test_prompt_and_learned_ids_make_the_conversation(tokenizer: Any, template: str, messages: Any) -> None:
    check_invariant(chat_format(tokenizer, template), messages)


@pytest.mark.parametrize("template", sorted(NAMED_FORMATS))
@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_the_same_where_a_blank_is_put_before_every_text(template: str, messages: Any) -> None:
    check_invariant(chat_format(sentencepiece_tokenizer(), template), messages)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("template", ["auto", *sorted(NAMED_FORMATS)])
def test_the_same_with_real_tokenizers_in_every_script(name: str, template: str) -> None:
    chat = chat_format(real_tokenizer(name), template)
    texts = sorted(WORDS.values())
    for first, second in zip(texts, [*texts[5:], *texts[:5]], strict=True):
        turns = [("user", second), ("assistant", first), ("user", f"And {first}"), ("assistant", second)]
        check_invariant(chat, [{"role": role, "content": text} for role, text in turns])


def test_what_is_learned_goes_on_where_the_prompt_stops() -> None:
    """The blank that Llama 2's format writes before a reply is the model's to write; before 你 it is a token."""
    chat = chat_format(sentencepiece_tokenizer(), "llama-2")
    messages: Any = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "你好"}]
    encoded = chat.encode(messages)
    learned = [t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m]
    assert chat.tokenizer.convert_ids_to_tokens(learned) == ["▁", "你", "好", "</s>"]
    assert encoded.ids == [*chat.encode_prompt(messages[:1]), *learned]


def test_control_tokens_in_somebodys_words_are_text(tokenizer: Any) -> None:
    control = ["<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]
    ids = set(tokenizer.convert_tokens_to_ids(control))
    hostile = "".join(control)
    for template in NAMED_FORMATS:
        chat = chat_format(tokenizer, template)
        plain = chat.encode_prompt([{"role": "user", "content": "x"}])
        asked = chat.encode_prompt([{"role": "user", "content": hostile}])
        assert sum(token in ids for token in asked) == sum(token in ids for token in plain)
        assert hostile in tokenizer.decode(asked)
        messages: Any = [{"role": "user", "content": hostile}, {"role": "assistant", "content": hostile}]
        encoded = chat.encode(messages)
        learned = [t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m]
        assert [token for token in learned if token in ids] == [chat.end_of_turn_id]


def test_own_template_is_used_and_its_end_found(tokenizer: Any) -> None:
    tokenizer.chat_template = NAMED_FORMATS["chatml"].replace("END", "<|im_end|>").replace("BOS", "")
    chat = chat_format(tokenizer)
    assert (chat.name, chat.end_of_turn) == ("own", "<|im_end|>")


def test_a_base_model_ends_its_turns_with_the_end_of_text_it_knows(tokenizer: Any) -> None:
    chat = chat_format(tokenizer)
    assert (chat.name, chat.end_of_turn) == ("gemma", tokenizer.eos_token)
    borders = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"])
    assert chat.stop_ids == {tokenizer.eos_token_id, *borders}


TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_template_that_counts_turns_gives_each_reply_an_example_of_its_own(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + TURNS.replace("CONTENT", "m['content']") + OPEN
    chat = chat_format(tokenizer)
    assert len(chat.examples(MULTI)) == 2
    check_invariant(chat, MULTI)
    # Letters that the end of a turn holds as well.
    check_invariant(chat, [{"role": one["role"], "content": "d"} for one in MULTI])


THOUGHT = "<think>Hm, the sky.</think>\n\nLight scatters."
# Shows the thoughts of the last reply only, as several reasoning models do.
FORGETFUL = TURNS.replace("CONTENT", "m['content'] if loop.last else m['content'].split('</think>')[-1].strip()") + OPEN


def test_a_template_that_drops_earlier_thoughts_trains_replies_in_the_context_they_are_asked_in(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETFUL
    chat = chat_format(tokenizer, thinking="learn")
    messages: Any = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>Yes.</think>\n\nYes."},
    ]
    first, second = chat.examples(messages)
    learned = [tokenizer.decode([t for t, m in zip(e.ids, e.mask, strict=True) if m]) for e in (first, second)]
    assert learned == [f"{THOUGHT}<|im_end|>", "<think>Yes.</think>\n\nYes.<|im_end|>"]
    assert "Hm, the sky" not in tokenizer.decode(second.ids)
    check_invariant(chat, messages)


@pytest.mark.parametrize("template", [*sorted(NAMED_FORMATS), "own"])
@pytest.mark.parametrize("silent", [0, 1, 2])
def test_of_replies_that_are_context_alone_nothing_is_learned_and_all_of_the_others(
    tokenizer: Any, template: str, silent: int
) -> None:
    tokenizer.chat_template = FORGETFUL if template == "own" else None
    chat = chat_format(tokenizer, template)
    messages: Any = [*MULTI, {"role": "user", "content": "Sûr ?"}, {"role": "assistant", "content": "Oui."}]
    replies = [i for i, one in enumerate(messages) if one["role"] == "assistant"]
    marked = [{**one, "learn": False} if i == replies[silent] else one for i, one in enumerate(messages)]

    def learned(given: Any) -> list[str]:
        texts = [tokenizer.decode([t for t, m in zip(e.ids, e.mask, strict=True) if m]) for e in chat.examples(given)]
        return [piece.strip() for text in texts for piece in text.split(chat.end_of_turn)[:-1]]

    said = [messages[i]["content"] for i in replies]
    assert learned(messages) == said
    assert learned(marked) == [one for i, one in enumerate(said) if i != silent]
    if template != "own":
        assert chat.encode(marked).ids == chat.encode(messages).ids
    assert chat.encode_prompt(marked[:-1]) == chat.encode_prompt(messages[:-1])


THINKING = {
    # Thoughts of the last reply stay, and an empty one is written where there is none or none is wanted; as Qwen 3.
    "writes empty thoughts": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set said = m['content'].split('</think>') %}"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n"
        "{{ said[0].split('<think>')[-1].strip() if said | length > 1 else '' }}\n</think>\n\n"
        "{% endif %}{{ said[-1].strip() }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    # The prompt opens the thought whatever is wanted, and thoughts are lost from conversations; as DeepSeek R1.
    "opens thoughts": TURNS.replace("CONTENT", "m['content'].split('</think>')[-1].strip()")
    + OPEN.replace("{% endif %}", "<think>\n{% endif %}"),
    # Thoughts stay where they are, with blanks of the template's own; as GLM 4.5.
    "sets thoughts off": TURNS.replace("CONTENT", "m['content'] | replace('</think>', '</think>\n')") + OPEN,
    "drops earlier thoughts": FORGETFUL,
}


@pytest.mark.parametrize("template", THINKING)
@pytest.mark.parametrize("thinking", ["keep", "learn"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations("<think>\nHm, 你好.\n</think>\n\n"))
def test_where_thoughts_stay_the_model_is_asked_to_think_and_learns_what_it_should(
    thinking_tokenizer: Any, template: str, thinking: Any, messages: Any
) -> None:
    thinking_tokenizer.chat_template = THINKING[template]
    chat = chat_format(thinking_tokenizer, thinking=thinking)
    asked = chat.render(messages[:1], True)
    assert SHUT not in asked.replace(messages[0]["content"].strip(), "")
    for encoded in chat.examples(messages):
        text = chat.tokenizer.decode(encoded.ids)
        assert text.rfind("<think>", 0, text.rfind("Hm, ")) >= 0
        learned = chat.tokenizer.decode([t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m])
        assert ("Hm, " in learned) == (thinking == "learn")
    *_, last = chat.examples(messages)
    prompt = chat.encode_prompt(messages[:-1])
    assert last.ids[: len(prompt)] == prompt
    assert last.mask[len(prompt)] == (thinking == "learn")


@pytest.mark.parametrize("template", THINKING)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations("<think>\nHm, 你好.\n</think>\n\n"))
def test_where_thoughts_are_taken_out_replies_are_learned_as_they_are_asked_for(
    thinking_tokenizer: Any, template: str, messages: Any
) -> None:
    thinking_tokenizer.chat_template = THINKING[template]
    chat = chat_format(thinking_tokenizer)
    for i, encoded in zip(range(1, len(messages), 2), chat.examples(messages), strict=False):
        learned = chat.tokenizer.decode([t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m])
        assert "Hm, 你好" not in chat.tokenizer.decode(encoded.ids)
        assert learned.startswith(SHUT) == (template == "opens thoughts")
        prompt = chat.encode_prompt(messages[:i])
        assert encoded.ids[: len(prompt)] == prompt


# Thoughts come in a field of their own and are written, of the last reply, as a message of their own; as gpt-oss.
CHANNELS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if m['thinking'] and loop.last %}<|im_start|>assistant thinks\n{{ m['thinking'] }}<|im_start|>{% endif %}"
    "<|im_start|>assistant says\n{{ m['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


@pytest.mark.parametrize("thinking", ["strip", "keep", "learn"])
def test_thoughts_stand_where_a_template_writes_those_of_a_field_of_their_own(tokenizer: Any, thinking: Any) -> None:
    tokenizer.chat_template = CHANNELS
    chat = chat_format(tokenizer, thinking=thinking)
    messages: Any = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>Yes.</think>\n\nYes."},
    ]
    examples = chat.examples(messages)
    learned = [tokenizer.decode([t for t, m in zip(e.ids, e.mask, strict=True) if m]) for e in examples]
    said, sure = " says\nLight scatters.<|im_end|>", " says\nYes.<|im_end|>"
    thinks = {"learn": " thinks\n{}<|im_start|><|im_start|>assistant", "keep": "<|im_start|><|im_start|>assistant"}
    before = thinks.get(thinking, "")
    assert learned == [before.format("Hm, the sky.") + said, before.format("Yes.") + sure]
    assert ["Hm, the sky." in tokenizer.decode(e.ids) for e in examples] == [thinking != "strip", False]
    assert not any("think>" in tokenizer.decode(e.ids) for e in examples)
    for place, encoded in zip((1, 3), examples, strict=True):
        prompt = chat.encode_prompt(messages[:place])
        assert encoded.ids[: len(prompt)] == prompt


def test_a_reply_that_only_thinks_is_refused_where_thoughts_are_taken_out(tokenizer: Any) -> None:
    messages: Any = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>Hm.</think>"}]
    with pytest.raises(TemplateError, match="empty without its thoughts"):
        chat_format(tokenizer, "chatml").examples(messages)
    chat_format(tokenizer, "chatml", thinking="learn").examples(messages)


def test_tags_of_thoughts_are_tokens_around_thoughts_and_text_elsewhere(thinking_tokenizer: Any) -> None:
    opens = thinking_tokenizer.convert_tokens_to_ids("<think>")
    messages: Any = [{"role": "user", "content": "Is <think> a tag?"}, {"role": "assistant", "content": THOUGHT}]
    assert chat_format(thinking_tokenizer, "chatml", thinking="learn").encode(messages).ids.count(opens) == 1
    messages[1]["content"] = "Yes: `<think>…</think>` is."
    encoded = chat_format(thinking_tokenizer, "chatml").encode(messages)
    assert opens not in encoded.ids
    assert "Yes: `<think>…</think>` is." in thinking_tokenizer.decode(encoded.ids)


def test_a_template_is_given_what_it_asks_for_and_nothing_else(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ effort | default('none') }}{{ enable_thinking }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    told = chat_format(tokenizer, arguments={"effort": "low", "enable_thinking": True})
    assert told.render([{"role": "user", "content": "a"}]).startswith("<|im_start|>user lowTrue\n")
    with pytest.raises(TemplateError, match="asks for no 'efort'; did you mean 'effort'"):
        chat_format(tokenizer, arguments={"efort": "low"})
    with pytest.raises(TemplateError, match="chat template 'plain' asks for no 'effort'"):
        chat_format(tokenizer, "plain", arguments={"effort": "low"})


@pytest.mark.parametrize("thinking", ["strip", "keep", "learn"])
def test_real_templates_that_think_do_as_they_are_told(thinking: Any) -> None:
    chat = chat_format(real_tokenizer("qwen3"), thinking=thinking)
    messages: Any = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>\nYes.\n</think>\n\nYes."},
    ]
    learned = [
        chat.tokenizer.decode([t for t, m in zip(e.ids, e.mask, strict=True) if m]).strip()
        for e in chat.examples(messages)
    ]
    answers = ["Light scatters.<|im_end|>", "Yes.<|im_end|>"]
    if thinking == "learn":
        assert learned == [
            "<think>\nHm, the sky.\n</think>\n\n" + answers[0],
            "<think>\nYes.\n</think>\n\n" + answers[1],
        ]
    else:
        assert learned == answers
    assert ("<think>" in chat.render(messages[:1], True)) == (thinking == "strip")


def test_of_a_reply_without_an_end_of_its_own_the_users_turn_is_not_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% else %}</s>{% endif %}"
    )
    chat = chat_format(tokenizer)
    (encoded,) = chat.examples(MULTI)
    learned = tokenizer.decode([t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m])
    assert "Почему" not in learned
    assert learned.count("</s>") == 1
    assert learned.endswith("</s>")


def test_a_template_that_always_opens_the_next_turn_learns_the_end_of_each(tokenizer: Any) -> None:
    tokenizer.chat_template = TURNS.replace("CONTENT", "m['content']") + "<|im_start|>assistant\n"
    check_invariant(chat_format(tokenizer), MULTI)


@pytest.mark.parametrize("refusal", ["{{ raise_exception('no system role') }}", ""])
def test_a_system_prompt_opens_the_first_turn_where_the_template_has_none(tokenizer: Any, refusal: str) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}" + refusal + "{% else %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}" + OPEN
    )
    chat = chat_format(tokenizer, system="Be brief.")
    assert chat.merges_system
    assert chat.render(SINGLE[:1]).count("Be brief.\n\nWhy is it blue?") == 1
    check_invariant(chat, SINGLE)


@pytest.mark.parametrize("form", ["'%d %B %Y'", "['%d', '%B %Y'] | join(' ')"])
def test_a_dated_template_writes_the_same_prompt_every_day(tokenizer: Any, form: str) -> None:
    tokenizer.chat_template = (
        "<|im_start|>system\nToday: {{ strftime_now("
        + form
        + ") }}<|im_end|>\n"
        + TURNS.replace("CONTENT", "m['content']")
    ) + OPEN
    chat = chat_format(tokenizer)
    assert "Today: 26 July 2024<" in chat.render(SINGLE)
    assert f"{datetime.date.today():%d %B %Y}" not in chat.render(SINGLE)
    check_invariant(chat, MULTI)


@pytest.mark.parametrize("name", sorted(NAMED_FORMATS))
def test_named_formats_do_without_a_token_that_opens_texts(tokenizer: Any, name: str) -> None:
    tokenizer.bos_token = None
    chat = chat_format(tokenizer, name)
    assert "None" not in chat.render(MULTI)
    check_invariant(chat, MULTI)


@pytest.mark.parametrize("name", sorted(NAMED_FORMATS))
def test_a_text_is_opened_once_where_the_tokenizer_opens_texts(tokenizer: Any, name: str) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    asked = chat_format(tokenizer, name).encode_prompt(SINGLE[:1])
    assert asked[0] == bos
    assert asked.count(bos) == 1


@pytest.mark.parametrize(
    "template", ["{{ nothing.at.all }}", "{% for m in messages %}", "{{ raise_exception('never') }}"]
)
def test_a_broken_template_is_named(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match="template"):
        chat_format(tokenizer)


def test_of_several_templates_the_default_one_is_used(tokenizer: Any) -> None:
    plain = TURNS.replace("CONTENT", "m['content']") + OPEN
    tokenizer.chat_template = {"default": plain, "tool_use": "tools: " + plain}
    chat = chat_format(tokenizer)
    assert chat.render(SINGLE[:1], True) == "<|im_start|>user\nWhy is it blue?<|im_end|>\n<|im_start|>assistant\n"
    check_invariant(chat, MULTI)
    tokenizer.chat_template = {"rag": plain, "tool_use": plain}
    with pytest.raises(TemplateError, match="are for rag, tool_use; none is the default"):
        chat_format(tokenizer)


def test_channels_are_the_models_to_write_and_each_reply_ends_as_the_last_one_does() -> None:
    """As gpt-oss: the prompt stops before the channel, and a reply ends otherwise once more has come."""
    tokenizer = build_tokenizer()
    names = ("start", "channel", "message", "return", "end")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m['content'] }}"
        "{{ '<|return|>' if m['role'] == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    chat = chat_format(tokenizer)
    for i, encoded in zip((1, 3), chat.examples(MULTI), strict=True):
        learned = tokenizer.decode([t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m])
        assert learned == f"<|channel|>final<|message|>{MULTI[i]['content']}<|return|>"
        prompt = chat.encode_prompt(MULTI[:i])
        assert encoded.ids[: len(prompt)] == prompt


def test_template_without_an_end_of_turn_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(TemplateError, match="no special token"):
        chat_format(tokenizer)


def test_tokens_of_words_and_line_breaks_stay_tokens_in_somebodys_words(tokenizer: Any) -> None:
    """As Gemma's of line breaks and of HTML: they are how its texts are written."""
    tokenizer.add_tokens(["\n\n", "<table>"])
    words = "a\n\nb <table>"
    chat = chat_format(tokenizer, "chatml")
    encoded = chat.encode([{"role": "user", "content": words}, {"role": "assistant", "content": words}])
    wanted = tokenizer.convert_tokens_to_ids(["\n\n", "<table>"])
    assert [token for token in encoded.ids if token in wanted] == wanted * 2


def test_line_breaks_that_are_tokens_end_no_turn(tokenizer: Any) -> None:
    tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n\n{% endfor %}"
    with pytest.raises(TemplateError, match="no special token"):
        chat_format(tokenizer)


def test_reply_that_repeats_the_prompt_is_masked_at_its_own_place(tokenizer: Any) -> None:
    chat = chat_format(tokenizer, "plain")
    echo: Any = [{"role": "user", "content": "same words"}, {"role": "assistant", "content": "same words"}]
    encoded = chat.encode(echo)
    assert encoded.mask.index(True) >= len(chat.encode_prompt(echo[:1]))


def test_messages_are_written_as_those_of_older_responses_were(tokenizer: Any) -> None:
    """Where they are to differ, raise records.RENDERING, so that older responses are made anew, and renew the hash."""
    tokenizer.chat_template = FORGETFUL
    messages: Any = [*SYSTEM[:2], {"role": "assistant", "content": THOUGHT}, {"role": "user", "content": " </s> \n"}]
    formats = [chat_format(tokenizer, thinking=thinking) for thinking in ("strip", "keep", "learn")]
    written = [one.render(messages, True) for one in formats]
    for name in sorted(NAMED_FORMATS):
        named = chat_format(tokenizer, name, system="Be kind.")
        written += [named.render(messages, True), named.render(MULTI)]
    assert (RENDERING, fingerprint(written)) == (1, "c2c5aa1a907c")


def test_a_template_that_leaves_the_last_reply_without_its_end_is_refused_since_no_ending_could_be_learned(
    tokenizer: Any,
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}" + OPEN
    )
    with pytest.raises(TemplateError, match="could not learn to stop"):
        chat_format(tokenizer).examples(SINGLE)
