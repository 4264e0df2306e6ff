"""Chat templates come from anybody: what never ends, or fills memory, is stopped; what is good is rendered as ever."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from test_study import xlift

from xlift.errors import ModelError, TemplateError
from xlift.tuning.formats import NAMED_FORMATS, filled
from xlift.tuning.sandbox import rendered
from xlift.tuning.templates import chat_format

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because <b>\nof it."}]
LONG = "'a' * 100000"


def repeated(start: str, step: str, shown: str = "{{ ns.x }}") -> str:
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(90000) %}}{step}{{% endfor %}}{shown}"


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops of its own": "{% for x in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a tree of macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "powers": repeated("10", "{% set ns.x = ns.x ** 2 %}"),
    "a branch that is not taken": "{% if false %}{{ 10 ** 10 ** 10 ** 10 }}{% endif %}{{ 'a' * 10 ** 9 }}",
    "doubled by +": repeated("'ab'", "{% set ns.x = ns.x + ns.x %}"),
    "doubled by ~": repeated("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
    "doubled by a block": repeated("'ab'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "doubled lists": repeated("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
    "lists compared": repeated("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x == [ns.x] }}"),
    "deep tuples": repeated("(1,)", "{% set ns.x = (ns.x,) %}", "{{ {ns.x: 1} }}"),
    "itself": "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
    "join": f"{{{{ range(99999) | join({LONG}) }}}}",
    "join of a text": f"{{{{ ({LONG}).join({LONG}) }}}}",
    "replace": f"{{{{ ({LONG}) | replace('a', {LONG}) }}}}",
    "replace of each": f"{{{{ [{LONG}] | map('replace', 'a', {LONG}) | list }}}}",
    "a width": "{{ 'a' | center(10 ** 10) }}",
    "a width in a format": "{{ '%10000000000d' % 1 }}",
    "a width that is given": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "many places": f"{{{{ ('{{0}}' * 100000).format({LONG}) }}}}",
    "indents": "{{ ('\n' * 100000) | indent(10 ** 6) }}",
    "indents of JSON": f"{{{{ [[[1]]] | tojson(indent={LONG}) }}}}",
    "digits": "{{ 1.5 | round(10 ** 10, 'ceil') }}",
    "sums": "{{ ([[1]] * 90000) | sum(start=[]) }}",
    "blanks": "{{ ('a' * 3000000).strip('b' * 3000000 + 'a') }}",
    "output": f"{{% for i in range(99999) %}}{{{{ {LONG} }}}}{{% endfor %}}",
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "its own length": "a" * 2_000_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped_within_seconds_and_little_memory(tokenizer: Any, name: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tokenizer.chat_template = ENDLESS[name]
    with pytest.raises(ModelError, match="more steps or memory than a conversation can need"):
        chat_format(tokenizer)
    assert time.process_time() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize(
    "reached",
    ["''.__class__.__mro__", "'{0.__class__.__mro__}'.format(1)", "cycler.__init__.__globals__",
     "self.__init__.__globals__", "(range(3) | map('string')).gi_frame.f_globals",
     "joiner.__init__.__globals__.os", "[].append(1)"],
)  # fmt: skip
def test_a_template_reaches_nothing_of_the_machine(tokenizer: Any, reached: str) -> None:
    tokenizer.chat_template = "{{ " + reached + " }}"
    with pytest.raises(TemplateError, match="unsafe"):
        chat_format(tokenizer)


def test_templates_are_rendered_as_transformers_renders_them(tokenizer: Any) -> None:
    plain = "{{ messages | tojson(indent=2) }}{% for m in messages %}{{ loop.index ~ '/' ~ loop.length }}" + (
        "{% if not loop.last and m.role in ['user'] %}{{ m['content'].replace('W', 'w') | trim | upper }}{% endif %}"
        "{% generation %}{{ ['a', 1] | join(', ') }}{{ '%s of %d' | format(m.role, 2023) }}{% endgeneration %}"
        "{% endfor %}{{ messages[1:][0].content | indent(2) | escape }}{{ eos_token }}{{ 3 * 4 + 2 ** 3 }}"
    )
    for template in [plain, *(filled(name, "</s>", "") for name in NAMED_FORMATS)]:
        tokenizer.chat_template = template
        for reply_next in (True, False):
            theirs = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=reply_next)
            assert rendered(tokenizer, MESSAGES, add_generation_prompt=reply_next) == theirs


def test_long_conversations_are_not_stopped(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% set rest = messages[loop.index0:] %}{{ rest | length }}"
        "{{ m.content | replace('\n', '<0x0A>') }}{% if m in messages %}<|im_end|>{% endif %}{% endfor %}"
    )
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"{i}\n" * 500} for i in range(300)]
    assert rendered(tokenizer, turns).count("<|im_end|>") == 300
    assert "<0x0A>" * 3 in rendered(tokenizer, [{"role": "user", "content": "\n" * 1_000_000}])


def test_a_model_whose_template_never_ends_is_a_users_error(tiny: Path, tokenizer: Any, tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    for one in tiny.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    tokenizer.chat_template = ENDLESS["loops"]
    tokenizer.save_pretrained(folder)
    said = xlift("chat", str(folder), folder=tmp_path, input="Hi\n")
    assert said.returncode == 2
    assert f"{folder}: its chat template was stopped" in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr
