"""Named chat formats, for base models that bring none, as Jinja templates.

END stands for the token that ends a turn; it is filled in when the template is put on a tokenizer. Tokens that a
tokenizer may lack are written as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xlift.errors import TemplateError, nearest
from xlift.records import Message
from xlift.study.served import TemplateValue

_SYSTEM_IN_USER = (
    "{%- set ns = namespace(system='') -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set ns.system = messages[0]['content'] -%}{%- set messages = messages[1:] -%}"
    "{%- endif -%}"
)

NAMED_FORMATS: dict[str, str] = {
    "gemma": "{{- bos_token or '' -}}" + _SYSTEM_IN_USER + "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<start_of_turn>user\\n' -}}"
    "{%- if loop.first and ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] + '<end_of_turn>\\n' -}}"
    "{%- else -%}{{- '<start_of_turn>model\\n' + message['content'] + 'END\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}",
    "llama-2": _SYSTEM_IN_USER + "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- (bos_token or '') + '[INST] ' -}}"
    "{%- if loop.first and ns.system -%}{{- '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message['content'] + 'END' -}}{%- endif -%}"
    "{%- endfor -%}",
    # BOS stands for the token that opens a text, where the tokenizer puts one before every text by itself.
    "chatml": "BOS{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- 'END\\n' -}}{%- else -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    "plain": "{{- bos_token or '' -}}"
    + _SYSTEM_IN_USER
    + "{%- if ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- 'User: ' + message['content'] + '\\n\\nAssistant:' -}}"
    "{%- else -%}{{- ' ' + message['content'] + 'END\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}",
}
TURN_ENDS = {"gemma": "<end_of_turn>", "llama-2": "</s>", "chatml": "<|im_end|>", "plain": "\n\nUser:"}
"""What ends a reply of a server that completes text."""
TURN_TOKENS = ("<end_of_turn>", "<start_of_turn>", "<|im_end|>", "<|im_start|>")


def filled(name: str, end: str, bos: str) -> str:
    """The template of a named format with its end of turn; `bos` opens the text, or is empty."""
    return NAMED_FORMATS[name].replace("END", end).replace("BOS", bos)


# e.g. written("plain", [{"role": "user", "content": "Hi"}]) → ("User: Hi\n\nAssistant:", "\n\nUser:")
def written(name: str, messages: Sequence[Message]) -> tuple[str, str]:
    """A prompt in a named format, for a server that completes text, and what ends the reply."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    end = TURN_ENDS[name]
    template = ImmutableSandboxedEnvironment().from_string(filled(name, end if name != "plain" else "", ""))
    return template.render(messages=list(messages), add_generation_prompt=True, bos_token=""), end


# e.g. fitting({"<|im_start|>": 1, "<|im_end|>": 2}) → "chatml"
def fitting(vocabulary: dict[str, int]) -> str:
    """The named format whose tokens a vocabulary holds."""
    if "<start_of_turn>" in vocabulary and "<end_of_turn>" in vocabulary:
        return "gemma"
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return "chatml"
    return "plain"


GIVEN_NAMES = {"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token", "strftime_now"}
"""Names that templates ask by and that are none of a user's arguments."""


def refuse_unasked(written: str, name: str, arguments: Mapping[str, TemplateValue]) -> None:
    """Raises TemplateError for arguments that a template does not ask for."""
    if not arguments:
        return
    from xlift.tuning.sandbox import names_asked

    asked = names_asked(written) - GIVEN_NAMES
    if problems := [
        f"chat_template_kwargs: the chat template '{name}' asks for no '{one}'; {nearest(one, sorted(asked))}"
        for one in arguments
        if one not in asked
    ]:
        raise TemplateError(problems, "leave them out, or take another template")
