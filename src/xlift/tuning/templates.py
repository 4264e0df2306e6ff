"""Chat format and loss mask: one piece of code for training and for generation.

A conversation is rendered by a Jinja chat template and tokenised as one text. The mask marks exactly the tokens of the
assistant's words and of the end-of-turn token that follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from xlift.errors import TemplateError
from xlift.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# END stands for the end-of-turn token; it is filled in when the template is put on a tokenizer.
_SYSTEM_IN_USER = (
    "{%- set ns = namespace(system='') -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set ns.system = messages[0]['content'] -%}{%- set messages = messages[1:] -%}"
    "{%- endif -%}"
)

NAMED: dict[str, str] = {
    "gemma": "{{- bos_token -}}" + _SYSTEM_IN_USER + "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<start_of_turn>user\\n' -}}"
    "{%- if loop.first and ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] + '<end_of_turn>\\n' -}}"
    "{%- else -%}{{- '<start_of_turn>model\\n' + message['content'] + 'END\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}",
    "llama-2": _SYSTEM_IN_USER + "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- bos_token + '[INST] ' -}}"
    "{%- if loop.first and ns.system -%}{{- '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message['content'] + 'END' -}}{%- endif -%}"
    "{%- endfor -%}",
    "chatml": "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- 'END\\n' -}}{%- else -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    "plain": "{{- bos_token -}}" + _SYSTEM_IN_USER + "{%- if ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- 'User: ' + message['content'] + '\\n\\nAssistant:' -}}"
    "{%- else -%}{{- ' ' + message['content'] + 'END\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}",
}

_TURN_TOKENS = ("<end_of_turn>", "<start_of_turn>", "<|im_end|>", "<|im_start|>")
_PROBE = "xliftprobe"


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation: `ids` and, of the same length, `mask`, true on what is learned."""

    ids: list[int]
    mask: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer that carries its chat template, and the token that ends the assistant's turn."""

    tokenizer: PreTrainedTokenizerBase
    name: str
    end_of_turn: str
    end_of_turn_id: int
    system: str | None = None

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the end of turn, the model's own end of text, and whatever borders another turn."""
        vocabulary = self.tokenizer.get_vocab()
        borders = {vocabulary[token] for token in _TURN_TOKENS if token in vocabulary}
        return frozenset({self.end_of_turn_id, self.tokenizer.eos_token_id, *borders} - {None})

    def render(self, messages: Sequence[Message], reply_next: bool = False) -> str:
        """The conversation as the model sees it; `reply_next` opens the assistant's turn."""
        cleaned = [{"role": m["role"], "content": m["content"].strip()} for m in messages]
        if self.system and messages[0]["role"] != "system":
            cleaned.insert(0, {"role": "system", "content": self.system})
        try:
            text = self.tokenizer.apply_chat_template(cleaned, tokenize=False, add_generation_prompt=reply_next)
        except Exception as error:  # a template may raise any error of its own on what it does not support
            raise TemplateError(f"the chat template '{self.name}' refuses this conversation: {error}") from None
        return cast(str, text)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt that ends with the opened assistant's turn."""
        return self._ids(self.render(messages, reply_next=True))

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Token ids and loss mask of a conversation that ends with the assistant's reply.

        Raises TemplateError if the template rewrites earlier turns, so that training and generation would differ.
        """
        text = self.render(messages)
        regions = [
            self._region(messages[:i], message, text) for i, message in enumerate(messages) if _is_reply(message)
        ]
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = cast(list[int], encoding["input_ids"])
        mask = [any(a < end and b > start for start, end in regions) for a, b in encoding["offset_mapping"]]
        if self._opens_as_generation_does(messages, ids, mask):
            return Encoded(ids, mask)
        return self._encode_in_pieces(text, regions)

    def _region(self, before: Sequence[Message], reply: Message, text: str) -> tuple[int, int]:
        """Characters of one reply and its end of turn in the rendered text."""
        prompt = self.render(before, reply_next=True)
        words = reply["content"].strip()
        start = text.find(words, len(prompt)) if text.startswith(prompt) else -1
        if start < 0 or text[len(prompt) : start].strip():
            raise TemplateError(
                f"the chat template '{self.name}' does not repeat a conversation's turns unchanged, "
                "so the model would be trained on another text than it is asked with",
                "set training.template to llama-2, chatml, gemma or plain",
            )
        end = text.find(self.end_of_turn, start + len(words))
        if end < 0:
            raise TemplateError(f"the chat template '{self.name}' leaves a reply without its end '{self.end_of_turn}'")
        return start, end + len(self.end_of_turn)

    def _opens_as_generation_does(self, messages: Sequence[Message], ids: list[int], mask: list[bool]) -> bool:
        """Whether what precedes the first reply is tokenised as it will be when the model is asked."""
        first = next(i for i, message in enumerate(messages) if _is_reply(message))
        prompt = self.encode_prompt(messages[:first])
        return ids[: len(prompt)] == prompt and not any(mask[: len(prompt)])

    def _encode_in_pieces(self, text: str, regions: list[tuple[int, int]]) -> Encoded:
        """Tokenise replies apart from what surrounds them, where a token would straddle the border."""
        ids: list[int] = []
        mask: list[bool] = []
        position = 0
        for start, end in [*regions, (len(text), len(text))]:
            for piece, learned in ((text[position:start], False), (text[start:end], True)):
                tokens = self._ids(piece)
                ids += tokens
                mask += [learned] * len(tokens)
            position = end
        return Encoded(ids, mask)

    def _ids(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_reply(message: Message) -> bool:
    return message["role"] == "assistant"


def chat_format(tokenizer: PreTrainedTokenizerBase, template: str = "auto", system: str | None = None) -> ChatFormat:
    """Put a chat template on a tokenizer and find its end-of-turn token.

    `template` is a name of NAMED, `own` (the model's own), or `auto`: own where there is one, otherwise the named
    format whose tokens the vocabulary holds. Raises TemplateError where replies have no recognisable end.
    """
    if template == "auto":
        template = "own" if tokenizer.chat_template else _fitting(tokenizer)
    if template == "own":
        if not tokenizer.chat_template:
            raise TemplateError("the model has no chat template of its own", f"choices: auto, {', '.join(NAMED)}")
        end = _find_end_of_turn(tokenizer)
    else:
        end = _named_end(tokenizer)
        tokenizer.chat_template = NAMED[template].replace("END", end)
    end_id = cast(int, tokenizer.convert_tokens_to_ids(end))
    return ChatFormat(tokenizer, template, end, end_id, system)


def load_chat_format(tokenizer: PreTrainedTokenizerBase, name: str, system: str | None = None) -> ChatFormat:
    """The chat format that was saved with a checkpoint's tokenizer."""
    end = _find_end_of_turn(tokenizer)
    return ChatFormat(tokenizer, name, end, cast(int, tokenizer.convert_tokens_to_ids(end)), system)


def _fitting(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = tokenizer.get_vocab()
    if "<start_of_turn>" in vocabulary and "<end_of_turn>" in vocabulary:
        return "gemma"
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return "chatml"
    return "plain"


def _named_end(tokenizer: PreTrainedTokenizerBase) -> str:
    # A pretrained model has met its end of text and hardly its turn tokens: gemma-3-270m gives <end_of_turn> 1e-16
    # where it gives <eos> 1e-4, and a frozen output layer under LoRA never learns it.
    if tokenizer.eos_token is None:
        raise TemplateError("the tokenizer has no end-of-text token, so a reply could not end")
    return cast(str, tokenizer.eos_token)


def _find_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first special token that the template writes after a reply."""
    probe: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
    text = cast(str, tokenizer.apply_chat_template(probe, tokenize=False))
    tail = text[text.rfind(_PROBE) + len(_PROBE) :]
    special = {str(token) for token in tokenizer.get_added_vocab()} | set(tokenizer.all_special_tokens)
    found = [(tail.find(token), -len(token), token) for token in special if token and token in tail]
    if not found:
        raise TemplateError(
            "the model's own chat template puts no special token after a reply, so it could not learn to stop",
            "set training.template to llama-2, chatml, gemma or plain",
        )
    return min(found)[2]
