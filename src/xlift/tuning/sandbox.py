"""Chat templates, which come with a model from anybody, rendered in bounded time and memory.

Jinja's sandbox keeps a template from the machine, and not from loops without end or texts of gigabytes. Here each turn
of a loop and each call is a step, what any operation is given counts by its size, and no value may grow beyond a bound:
both are far from what templates of published models need, and the same on every machine.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import cache, lru_cache, update_wrapper
from typing import TYPE_CHECKING, Any, cast

from jinja2 import Environment, Template, meta, nodes
from jinja2.compiler import CodeGenerator
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from xlift.errors import ModelError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Work = Callable[..., Any]
_STEPS, _LARGEST = 1_000_000, 100_000
"""Sizes in all and of one value, beside those that a conversation's own size gives. One is an item or 64 characters."""
_LONGEST_TEMPLATE = 1_000_000
_CHARACTERS_A_STEP = 500
"""Each so many characters of a template make a step of it longer by one."""
_MOST_BITS, _WIDEST, _WIDEST_FORM, _DEEPEST = 4096, 200, 5000, 100
_WIDE = frozenset({"center", "indent", "round", "batch", "slice", "tojson"})
_WIDE |= {"ljust", "rjust", "zfill", "expandtabs", "to_bytes"}
"""Filters and methods whose result is as large as a number says."""
_LEFT_OUT = frozenset({"urlize", "striptags", "wordwrap", "pprint", "xmlattr", "random", "lipsum"})
_LEFT_OUT_METHODS = frozenset({"translate", "maketrans", "striptags", "unescape", "format_map"})
"""What takes far more than its input's size, or throws dice: templates of chats have no use for it."""
_GROWING = frozenset({"replace", "indent", "expandtabs", "format"})
"""Filters and methods whose result can be many times the text that they are given."""
_SMALL, _TINY = frozenset({bool, float, type(None)}), 1 << 60
_JINJAS = frozenset({"_loop_vars", "_block_vars"})
"""What Jinja itself hands to all that is called in a loop."""
_WIDTHS = re.compile(r"[5-9]\d{3}|\d{5}|%[^a-zA-Z%]*\*|\{[^{}]+\{")
"""In a format: a width from _WIDEST_FORM on, or one that it takes from what it is given; a year is none."""


class TooMuch(Exception):
    """A template takes more than is allowed."""


class _Gated(NodeTransformer):
    """Sends loops, and what is put together or compared, through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("stepped", node.iter)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through("weighed", node.expr)
        for one in node.ops:
            one.expr = _through("weighed", one.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_through("weighed", one) for one in node.nodes]
        return _through("weighed", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("weighed", node) if node.ctx == "load" else node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("weighed", node)

    visit_Dict = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("weighed", node) if isinstance(node.arg, nodes.Slice) else node


def _through(gate: str, node: Any) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Call(nodes.EnvironmentAttribute(gate), [node], [], None, None, lineno=node.lineno)


class _Direct(CodeGenerator):
    """Calls gates directly, not as functions of the template: there are as many as comparisons and loops."""

    def visit_Call(self, node: nodes.Call, frame: Any, forward_caller: bool = False) -> None:
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            return super().visit_Call(node, frame, forward_caller=forward_caller)
        self.write(f"environment.{node.node.name}(")
        self.visit(node.args[0], frame)
        self.write(")")


class Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the filters and functions of another environment; steps and sizes count for each thread."""

    code_generator_class = _Direct
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, like: Environment) -> None:
        kinds = [type(one) for one in like.extensions.values()]
        # Nothing is worked out while a template is compiled, when nothing is counted.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=kinds, optimized=False)
        self.finalize = self.weighed
        self.globals = {name: one for name, one in like.globals.items() if name not in _LEFT_OUT}
        named = {**like.filters, "tojson": self._as_json}
        self.filters = {
            name: self._gated(name, cast(Work, one)) for name, one in named.items() if name not in _LEFT_OUT
        }
        self.tests = {name: self._gated(name, cast(Work, one)) for name, one in like.tests.items()}
        self._of = threading.local()

    def rendered(self, template: Template, length: int, given: Mapping[str, Any]) -> str:
        """What a template of so many characters makes of `given`. Raises its own errors, TooMuch at the bound."""
        self._of.step, self._of.left, self._of.largest = 1 + length // _CHARACTERS_A_STEP, _STEPS, sys.maxsize
        size = self._size(given)
        self._of.left, self._of.largest = _STEPS + 1000 * size, _LARGEST + 20 * size
        return template.render(given)

    def weighed(self, value: Any) -> Any:
        """The value itself: its size is bounded and counted."""
        of = self._of
        kind = type(value)
        # Nearly all that a template handles is one of these.
        small = kind in _SMALL or (kind is str and len(value) < 64) or (kind is int and -_TINY < value < _TINY)
        of.left -= 1 if small else self._size(value)
        if of.left < 0:
            raise TooMuch
        return value

    def stepped(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, each of them a step."""
        for one in items:
            self._spend(self._of.step)
            yield one

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """Joined texts, as Jinja calls it for a whole conversation, a macro or a block."""
        found, total = [], 0
        for part in parts:
            total += len(part)
            self._fits(total)
            found.append(part)
        return cast(str, self.weighed("".join(found)))

    def call(self, context: Any, called: Any, /, *args: Any, **named: Any) -> Any:
        """A function, macro or method that a template calls."""
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        told = [*args, *(one for key, one in named.items() if key not in _JINJAS)] if named else list(args)
        self._spend(self._of.step)
        if isinstance(owner, str | bytes | int):
            if name == "join" and args:
                args = (_whole(args[0]), *args[1:])
                told = list(args)
            self._admit(name, owner, told)
        elif form := getattr(getattr(called, "__wrapped__", None), "__self__", None):
            self._form(form, self._size(told))
        else:
            self._spend(self._size(told) + (self._size(owner) if type(owner) in (list, dict, tuple) else 0))
            args = (self.stepped(args[0]), *args[1:]) if isinstance(called, LoopContext) else args
        return self.weighed(super().call(context, called, *args, **named))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation of two values: refused before it is done where its result would be too large."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._fits(0 if left.bit_length() * abs(right) <= _MOST_BITS else sys.maxsize)
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(many, int | float):
                    self._fits((self._size(many) * abs(times)) << 6)
        elif operator == "%" and isinstance(left, str | bytes):
            self._form(left, self._size(right))
        return self.weighed(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may take an attribute."""
        return attr not in _LEFT_OUT_METHODS and super().is_safe_attribute(obj, attr, value)

    def _generate(self, source: nodes.Template, *how: Any, **named: Any) -> str:
        return super()._generate(cast(nodes.Template, _Gated().visit(source)), *how, **named)

    def _spend(self, steps: int) -> None:
        self._of.left -= steps
        if self._of.left < 0:
            raise TooMuch

    def _fits(self, characters: int) -> None:
        if characters >> 6 > self._of.largest:
            raise TooMuch

    def _size(self, value: Any) -> int:
        if type(value) is str:
            self._fits(len(value))
            return 1 + (len(value) >> 6)
        if type(value) in _SMALL or (type(value) is int and -_TINY < value < _TINY):
            return 1
        total, level = 0, [value]
        for _ in range(_DEEPEST):
            below: list[Any] = []
            for one in level:
                kind = type(one)
                total += 1 + (len(one) >> 6) if kind is str else 1
                if kind is dict:
                    below += one
                    below += one.values()
                elif kind is list or kind is tuple:
                    below += one
                elif kind is not str and kind not in _SMALL:
                    total += self._size_of_other(one)
                    below += _parts(one)
                if total + len(below) > self._of.largest:
                    raise TooMuch
            if not below:
                return total
            level = below
        raise TooMuch

    def _size_of_other(self, value: Any) -> int:
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise TooMuch
        return len(value) if isinstance(value, range) else len(value) >> 6 if isinstance(value, str | bytes) else 0

    def _gated(self, name: str, work: Work) -> Work:
        """A filter or test whose arguments and result are weighed; some get things of Jinja's own first."""
        skipped = int(hasattr(work, "jinja_pass_arg"))

        def gated(*args: Any, **named: Any) -> Any:
            first, *told = args[skipped:] or (None,)
            if name in ("join", "sum"):
                first = _whole(first)
            elif name in _GROWING and not isinstance(first, str):
                first = str(self.weighed(first))
            self._admit(name, first, [*told, *named.values()])
            return self.weighed(work(*args[:skipped], *([first] if args[skipped:] else []), *told, **named))

        return update_wrapper(gated, work)

    def _admit(self, name: str, subject: Any, told: list[Any]) -> None:
        """Counts what a filter or method is given; refuses what would grow beyond the bound."""
        self._spend(self._size(subject) + sum(map(self._size, told)))
        if name == "sum" and any(isinstance(one, list | tuple) for one in told):
            raise TooMuch
        if name in ("replace", "join"):
            told = [one if isinstance(one, str | bytes | list) else str(one) for one in told]
        texts = [one for one in told if isinstance(one, str | bytes)]
        if name in _WIDE and any(abs(one) > _WIDEST for one in (*_numbers(told), *map(len, texts))):
            raise TooMuch
        if name == "join":
            longest = max([len(one) for one in (subject, *texts) if isinstance(one, str | bytes)], default=0)
            self._fits(longest * max([len(one) for one in (subject, *told) if isinstance(one, list)], default=0))
        elif texts and isinstance(subject, str | bytes):
            # Some methods look for each of their characters at each place.
            self._spend(len(subject) * sum(map(len, texts)) >> 10)
        if name in _GROWING and isinstance(subject, str | bytes):
            self._grows(name, subject, texts, told)

    def _grows(self, name: str, subject: Any, texts: Sequence[Any], told: Sequence[Any]) -> None:
        if name == "replace":
            same = [one for one in texts if isinstance(one, type(subject)) or isinstance(subject, type(one))]
            self._fits(max((subject.count(a) * len(b) for a in same for b in same if a is not b), default=0))
        elif name in ("indent", "expandtabs"):
            widths = [8, *_numbers(told), *map(len, texts)]
            ends = "\n" if name == "indent" else "\t"
            self._fits((subject.count(ends if isinstance(subject, str) else ends.encode()) + 1) * max(widths))
        elif name == "format":
            self._form(subject, self._size(told))

    def _form(self, form: str | bytes, size: int) -> None:
        """Refuses a text whose places, filled with what has such a size, would be too much."""
        text = form if isinstance(form, str) else form.decode("latin-1")
        places = text.count("%") + text.count("{")
        self._fits(sys.maxsize if _WIDTHS.search(text) else places * max(_WIDEST_FORM, size << 6))

    def _as_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as `apply_chat_template` writes it, counted piece by piece: indents grow with the depth."""
        how = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.concat(how.iterencode(value))


def _parts(value: Any) -> Collection[Any]:
    if isinstance(value, Namespace):
        return (value._Namespace__attrs,)  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return [*value] if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView) else ()


def _numbers(told: Iterable[Any]) -> list[int]:
    return [one for one in told if isinstance(one, int)]


def _whole(value: Any) -> Any:
    """A list of what is gone through but once."""
    return list(value) if isinstance(value, Iterable) else value


@cache
def _environment() -> Bounded:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return Bounded(_compile_jinja_template("").environment)


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    if len(template) > _LONGEST_TEMPLATE:
        raise TooMuch
    return _environment().from_string(template)


def names_asked(template: str) -> set[str]:
    """The names that a chat template asks for."""
    return meta.find_undeclared_variables(_environment().parse(template))


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], template: str | None = None, **given: Any
) -> str:
    """The text that a tokenizer's `apply_chat_template` makes of messages, by its own chat template or another.

    Raises TemplateError for what the template does not support, ModelError where it takes too much.
    """
    from transformers.utils.chat_template_utils import _alias_reasoning_fields

    written = template or str(tokenizer.chat_template)
    told = {"messages": _alias_reasoning_fields(list(messages)), "tools": None, "documents": None}
    named = {"add_generation_prompt": False, **tokenizer.special_tokens_map, **given}
    try:
        return _environment().rendered(_compiled(written), len(written), {**told, **named})
    except (TooMuch, MemoryError, RecursionError):
        name = tokenizer.name_or_path
        raise ModelError(
            f"{name}: its chat template was stopped: it takes more steps or memory than a conversation can need",
            "use the model only if you trust it; training.template: chatml (or llama-2, gemma, plain) does without",
        ) from None
    except Exception as error:  # a template may raise any error of its own
        raise TemplateError(_reason(error)) from None


# e.g. _reason(ValueError("no system turn")) → "ValueError: no system turn"
def _reason(error: Exception) -> str:
    """What a template has raised: its own words alone, else the kind of error and where."""
    kind, line = type(error).__name__, getattr(error, "lineno", None)
    return f"{'' if kind == 'TemplateError' else f'{kind}: '}{error}" + (f" (line {line})" if line else "")
