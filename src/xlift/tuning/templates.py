"""Chat format and loss mask: one piece of code for training and for generation.

A conversation is rendered by a Jinja chat template. What is learned of each reply is all that the model must write
once it has been asked: from the end of the prompt, as generation asks it, through the token that ends the turn. Text is
tokenised in segments that part at these borders, so that for every reply

    ids of the prompt as generation asks it + learned ids = ids of the conversation so far,

with no gap and no overlap; of thoughts that are kept and not learned, the ids stand between the two. Where a template
rewrites earlier turns (drops their thoughts, say), every reply becomes an example of its own, in the context that
generation would show it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from xlift.errors import TemplateError, shortened
from xlift.records import Message
from xlift.study.served import TemplateValue, Thinking
from xlift.tuning.formats import NAMED_FORMATS, TURN_TOKENS, filled, fitting, refuse_unasked
from xlift.tuning.sandbox import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Made = TypeVar("Made")
CHOICES_HINT = "set training.template to llama-2, chatml, gemma or plain"
TODAY = datetime.date(2024, 7, 26)
"""The date of templates that write one: always the same, so that a prompt is the same tomorrow."""
_PROBE = "xliftprobe"
_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
_OPENS, _CLOSES = "<think>", "</think>"
_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Fields of a message in which templates ask for its thoughts, those of DeepSeek, gpt-oss and others."""
_THOUGHT = re.compile(r"\A(?:\s*<think>)?.*?(?<!`)</think>(?!`)\s*", re.DOTALL)
_THOUGHTS = re.compile(r"(?<!`)<think>.*?</think>(?!`)", re.DOTALL)
_END_OF_THOUGHT = re.compile(r"</think>(?!`)")
_PART = "\ufdd0"
"""Stands where a text is parted for tokenising: a code point that no text has."""
_CONTEXT = 16
"""Characters before a segment that can change how it is tokenised."""


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation: `ids` and, of the same length, `mask`, true on what is learned."""

    ids: list[int]
    mask: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


class Region(NamedTuple):
    """Characters of a rendered reply, from the end of its prompt to its own end; learned from `learned` on."""

    start: int
    end: int
    learned: int


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer that carries its chat template, and the token that ends the assistant's turn."""

    tokenizer: PreTrainedTokenizerBase
    name: str
    end_of_turn: str
    end_of_turn_id: int
    system: str | None = None
    thinking: Thinking = "strip"
    """What becomes of thoughts before a reply: taken out, kept and not learned, or learned."""
    arguments: Mapping[str, TemplateValue] = field(default_factory=dict)
    """What else the template is given, by name."""
    dated: bool = False
    """Whether the model's own template writes the date of the day."""

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the end of turn, the model's own end of text, and whatever borders another turn."""
        vocabulary = self.tokenizer.get_vocab()
        borders = {vocabulary[token] for token in TURN_TOKENS if token in vocabulary}
        return frozenset({self.end_of_turn_id, self.tokenizer.eos_token_id, *borders} - {None})

    @cached_property
    def merges_system(self) -> bool:
        """Whether the template has no system turn, so that the system prompt opens the first user's turn instead."""
        try:
            shown = self._rendered([{"role": "system", "content": _PROBE}, {"role": "user", "content": "a"}], True)
        except TemplateError:
            return True
        return _PROBE not in shown

    def render(self, messages: Sequence[Message], reply_next: bool = False) -> str:
        """The conversation as the model sees it; `reply_next` opens the assistant's turn."""
        return self._rendered(self._spoken(messages), reply_next).replace(_PART, "")

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt that ends with the opened assistant's turn."""
        return self._prompt_ids(self._spoken(messages))

    def examples(self, messages: Sequence[Message]) -> list[Encoded]:
        """A conversation that ends with the assistant's reply as training examples: one, or one for each reply where
        the template shows earlier turns otherwise once more have come.

        Raises TemplateError if the template refuses the conversation, or gives its last reply no end, and for a reply
        that is nothing but thoughts where they are taken out.
        """
        spoken = self._spoken(messages)
        if any(one["role"] == "assistant" and not one["content"] for one in spoken):
            raise TemplateError("a reply is empty without its thoughts", "leave it out, or set training.thinking")
        text = self._rendered(spoken)
        if (regions := self._regions(spoken, text)) is not None:
            return [self._encoded(text, regions)]
        learned = [i for i, one in enumerate(spoken) if one["role"] == "assistant" and one.get("learn", True)]
        return [self._apart(spoken[: i + 1]) for i in learned]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """The training example that ends with a conversation's last reply."""
        return self.examples(messages)[-1]

    def _spoken(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as they are rendered: without outer blanks, the system prompt where the template wants it."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        given = [*(system if messages[0]["role"] != "system" else []), *messages]
        spoken = [cast(Message, {**message, "content": self._words(message)}) for message in given]
        if len(spoken) > 1 and spoken[0]["role"] == "system" and self.merges_system:
            first = f"{spoken[0]['content']}\n\n{spoken[1]['content']}"
            spoken[:2] = [{"role": spoken[1]["role"], "content": first}]
        return spoken

    def _words(self, message: Message) -> str:
        """What a message says, parted inside what reads like a control token so that no template takes it for one."""
        said, quoted = message["content"], self._quoted
        if message["role"] == "assistant":
            quoted = self._quoted_in_replies
            said = _without_thoughts(said) if self.thinking == "strip" else said
        # By a function: a pattern of thousands of tokens is hashed anew for each use of a template.
        return quoted.sub(lambda found: found[0] + _PART, said.strip())

    def _rendered(self, spoken: Sequence[Message], reply_next: bool = False) -> str:
        # Names that templates ask by: Qwen's, and DeepSeek's and Granite's.
        thinks = dict.fromkeys(("enable_thinking", "thinking"), self.thinking != "strip")
        given: dict[str, Any] = {"add_generation_prompt": reply_next, **thinks, **self.arguments}
        try:
            return rendered(self.tokenizer, [self._told(one) for one in spoken], **given)
        except TemplateError as error:
            raise TemplateError(
                f"the chat template '{self.name}' refuses it: {error.problems[0]}", CHOICES_HINT
            ) from None

    def _told(self, message: Message) -> dict[str, str]:
        """A message as the template takes it: its thoughts apart where it asks for them in a field of their own."""
        said = message["content"]
        thought = _thought(said) if self._thoughts_in and message["role"] == "assistant" else ""
        apart = {self._thoughts_in: thought, "content": _answer(said)} if self._thoughts_in and thought else {}
        return {"role": message["role"], "content": said, **apart}

    @cached_property
    def _thoughts_in(self) -> str | None:
        """The field of a message from which the template writes thoughts; None where it takes them from the content."""
        template = str(self.tokenizer.chat_template)
        if _CLOSES in template:
            return None
        return next((field for field in _FIELDS if self._writes(field)), None)

    def _writes(self, field: str) -> bool:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", field: _PROBE}]
        try:
            return _PROBE in rendered(self.tokenizer, turns)
        except TemplateError:
            return False

    def _regions(self, spoken: Sequence[Message], text: str) -> list[Region] | None:
        """What is learned of a rendered conversation; None where a reply's prompt is no beginning of it."""
        regions: list[Region] = []
        for i, message in enumerate(spoken):
            if message["role"] != "assistant":
                continue
            prompt = self._rendered(spoken[:i], True)
            start = len(prompt)
            words = _place(text, prompt, message["content"]) if text.startswith(prompt) else None
            if words is None or (regions and start < regions[-1].end):
                return None
            following = spoken[i + 1]["content"] if i + 1 < len(spoken) else None
            region = self._region(text, start, self._end(text, words, following))
            regions.append(region if message.get("learn", True) else region._replace(learned=region.end))
        return regions

    def _region(self, text: str, start: int, end: int) -> Region:
        shut = text.find(_CLOSES, start, end) if self.thinking == "keep" else -1
        return Region(start, end, start if shut < 0 else shut + len(_CLOSES))

    def _region_apart(self, text: str, start: int, reply: str) -> Region:
        """The region of a reply that goes to the end of a text; its thoughts may be in no tags."""
        thought, found = _thought(reply) if self._thoughts_in else "", self._region(text, start, len(text))
        place = text.find(thought, start) if thought and self.thinking == "keep" else -1
        return found if place < 0 else found._replace(learned=place + len(thought))

    def _end(self, text: str, after: int, following: str | None) -> int:
        """Where the turn of a reply ends whose words end at `after`; `following` are the words of the next turn."""
        if text[after:].lstrip().startswith(self.end_of_turn):
            return text.index(self.end_of_turn, after) + len(self.end_of_turn)
        limit = len(text) if following is None else text.find(following, after)
        found = text.find(self.end_of_turn, after, limit)
        if found < 0 and following is None:
            raise TemplateError(f"the chat template '{self.name}' leaves a reply without its end '{self.end_of_turn}'")
        # The next turn is the user's: of a reply that has no end of its own, the words alone are learned.
        return found + len(self.end_of_turn) if found >= 0 else after

    def _segments(self, text: str, regions: Sequence[Region]) -> list[tuple[int, list[int]]]:
        """A text tokenised in segments that part at the regions' borders: where each begins, and its ids."""
        borders = sorted({0, len(text), *(place for region in regions for place in region)})
        return [(start, self._pieces(text[:start], text[start:end])) for start, end in pairwise(borders)]

    def _pieces(self, before: str, segment: str) -> list[int]:
        """Token ids of a segment, parted inside what reads like a control token in somebody's words."""
        ids: list[int] = []
        for piece in segment.split(_PART):
            ids += self._continued(before[-_CONTEXT:].replace(_PART, ""), piece)
            before += piece
        return ids

    def _encoded(self, text: str, regions: Sequence[Region]) -> Encoded:
        """Ids and mask of a text."""
        segments = self._segments(text, regions)
        learned = [any(one.learned <= place < one.end for one in regions) for place, _ in segments]
        mask = [learns for (_, ids), learns in zip(segments, learned, strict=True) for _ in ids]
        return Encoded([token for _, ids in segments for token in ids], mask)

    def _prompt_ids(self, spoken: Sequence[Message]) -> list[int]:
        text = self._rendered(spoken, True)
        return self._encoded(text, self._regions(spoken, text) or []).ids

    def _apart(self, spoken: Sequence[Message]) -> Encoded:
        """The last reply alone, in the context that generation shows it."""
        before, reply = spoken[:-1], spoken[-1]["content"]
        asked, prompt = self._rendered(before, True), self._prompt_ids(before)
        text = asked + self._piece(self._rendered(spoken), asked, reply)
        region = self._region_apart(text, len(asked), reply)
        tail = [(place, ids) for place, ids in self._segments(text, [region]) if place >= len(asked)]
        mask = [place >= region.learned for place, ids in tail for _ in ids]
        return Encoded([*prompt, *(token for _, ids in tail for token in ids)], [False] * len(prompt) + mask)

    def _piece(self, text: str, asked: str, reply: str) -> str:
        """What a reply adds to its prompt: as the template writes it, unless that loses its thoughts."""
        answer, last = _answer(reply), text.rfind(self.end_of_turn)
        words = text.rfind(answer, len(asked), last if last >= 0 else None)
        if text.startswith(asked) and words >= 0:
            written = text[len(asked) : self._end(text, words + len(answer), None)]
            wanted = _thought(reply) if self._thoughts_in else reply[: -len(answer)]
            if _squeezed(wanted).removeprefix(_OPENS) in _squeezed(written):
                return written
        if asked.rstrip().endswith(_OPENS):
            reply = reply.removeprefix(_OPENS).lstrip() if _CLOSES in reply else f"{_CLOSES}\n\n{reply}"
        return reply + self.end_of_turn

    @cached_property
    def _control_tokens(self) -> set[str]:
        """Tokens that are no words: special ones, and those of its own that the template writes; no line breaks."""
        added = [*self.tokenizer.added_tokens_decoder.values(), *self.tokenizer.all_special_tokens]
        marks = (*TURN_TOKENS, _OPENS, _CLOSES, str(self.tokenizer.chat_template))
        wanted = {str(one) for one in added if getattr(one, "special", True) or any(str(one) in mark for mark in marks)}
        return {token for token in wanted if len(token) > 1 and token.strip()}

    @cached_property
    def _quoted(self) -> re.Pattern[str]:
        return _beginning(self._control_tokens)

    @cached_property
    def _quoted_in_replies(self) -> re.Pattern[str]:
        return _beginning(self._control_tokens - ({_OPENS, _CLOSES} if self.thinking != "strip" else set()))

    @cached_property
    def _starts_alike(self) -> bool:
        """Whether a text is tokenised as it is in the middle of another: no blank is put before it."""
        alone = self._ids("a")
        return self._ids("\na")[-len(alone) :] == alone

    def _continued(self, before: str, piece: str) -> list[int]:
        """Token ids of `piece` as it goes on after `before`, not as at the beginning of a text."""
        if not before or self._starts_alike:
            return self._ids(piece)
        for context in (before, "]", ".", "\n"):
            encoding = self.tokenizer(context + piece, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = cast(list[int], encoding["input_ids"]), encoding["offset_mapping"]
            first = next((i for i, (start, _) in enumerate(offsets) if start >= len(context)), len(ids))
            if all(end <= len(context) for _, end in offsets[:first]):
                return ids[first:]
        return self._ids(piece)

    def _ids(self, text: str) -> list[int]:
        backend = self.tokenizer.backend_tokenizer
        # As the tokenizer's own call does, which takes four times as long: that counts with millions of short texts.
        backend.no_truncation(), backend.no_padding()
        return cast(list[int], backend.encode(text, add_special_tokens=False).ids)


# e.g. _without_thoughts("<think>Hm.</think>Oui.") → "Oui."
# e.g. _without_thoughts("So 4.</think> It is <think> 4.") → " It is <think> 4."
def _without_thoughts(said: str) -> str:
    # Nothing is looked for behind the last end: of thousands that begin there, each would be to the text's end.
    end = max((found.end() for found in _END_OF_THOUGHT.finditer(said)), default=0)
    return _THOUGHTS.sub("", _THOUGHT.sub("", said[:end], count=1)) + said[end:]


def each_by_name(
    encode: Callable[[Sequence[Message]], Made],
    named: Iterable[tuple[str, Sequence[Message]]],
    refused: dict[str, list[str]] | None = None,
) -> Iterator[Made]:
    """What `encode` makes of each conversation.

    Names of those that the template refuses go to `refused`, by the reason; where it is not given, TemplateError with
    all of them is raised at the end.
    """
    problems: list[str] = []
    hint = None
    for name, messages in named:
        try:
            yield encode(messages)
        except TemplateError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
            hint = hint or error.hint
            if refused is not None:
                refused.setdefault(error.problems[0], []).append(name)
    if problems and refused is None:
        raise TemplateError(shortened(problems), hint)


def chat_format(
    tokenizer: PreTrainedTokenizerBase,
    template: str = "auto",
    system: str | None = None,
    thinking: Thinking = "strip",
    arguments: Mapping[str, TemplateValue] | None = None,
) -> ChatFormat:
    """Put a chat template on a tokenizer and find its end-of-turn token.

    `template` is a name of NAMED, `own` (the model's own), or `auto`: own where there is one, otherwise the named
    format whose tokens the vocabulary holds; `arguments` are what else it is given. Raises TemplateError where replies
    have no recognisable end, and for arguments that the template does not ask for.
    """
    if template == "auto":
        template = "own" if tokenizer.chat_template else fitting(tokenizer.get_vocab())
    if template == "own":
        if not tokenizer.chat_template:
            raise TemplateError(
                "the model has no chat template of its own", f"choices: auto, {', '.join(NAMED_FORMATS)}"
            )
        tokenizer.chat_template = own = _for_talk(tokenizer.chat_template)
        end, dated = _find_end_of_turn(tokenizer), _writes_date(tokenizer, own)
        tokenizer.chat_template = _at(own, TODAY)
    else:
        end, dated = _named_end(tokenizer), False
        tokenizer.chat_template = filled(template, end, _opening(tokenizer))
    end_id = cast(int, tokenizer.convert_tokens_to_ids(end))
    refuse_unasked(str(tokenizer.chat_template), template, arguments or {})
    return ChatFormat(tokenizer, template, end, end_id, system, thinking, arguments or {}, dated)


def load_chat_format(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    system: str | None = None,
    thinking: Thinking = "strip",
    arguments: Mapping[str, TemplateValue] | None = None,
) -> ChatFormat:
    """The chat format that was saved with a checkpoint's tokenizer."""
    end = _find_end_of_turn(tokenizer)
    end_id = cast(int, tokenizer.convert_tokens_to_ids(end))
    return ChatFormat(tokenizer, name, end, end_id, system, thinking, arguments or {})


def _for_talk(template: str | dict[str, str]) -> str:
    """The template of conversations, of a model that has others for tools or documents."""
    if isinstance(template, str):
        return template
    if "default" not in template:
        names = ", ".join(template)
        raise TemplateError(f"the model's own chat templates are for {names}; none is the default", CHOICES_HINT)
    return template["default"]


def _writes_date(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a template writes another text on another day."""
    days = (TODAY, TODAY + datetime.timedelta(days=400))
    texts = [rendered(tokenizer, _TURNS, _at(template, day)) for day in days]
    return texts[0] != texts[1]


def _at(template: str, day: datetime.date) -> str:
    """A template whose clock stands still: one of its own, in Jinja, instead of the one that it asks for the time."""
    if "strftime_now" not in template:
        return template
    codes = [f"%{code}" for code in ("-d", "-m", *"aAbBcdeHIjmMpSTUwWxXyY")]
    written = "".join(f" | replace('{code}', '{day.strftime(code)}')" for code in codes)
    # What follows keeps the line break that it may begin with.
    return f"{{% macro strftime_now(form) %}}{{{{ form{written} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def _named_end(tokenizer: PreTrainedTokenizerBase) -> str:
    # A pretrained model has met its end of text and hardly its turn tokens: gemma-3-270m gives <end_of_turn> 1e-16
    # where it gives <eos> 1e-4, and a frozen output layer under LoRA never learns it.
    if tokenizer.eos_token is None:
        raise TemplateError("the tokenizer has no end-of-text token, so a reply could not end")
    return cast(str, tokenizer.eos_token)


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the tokenizer puts before every text by itself; empty where it puts none."""
    ids = cast(list[int], tokenizer("a")["input_ids"])
    return str(tokenizer.bos_token) if tokenizer.bos_token and ids[0] == tokenizer.bos_token_id else ""


def _find_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first control token that the template writes after a reply; Gemma's tokens of line breaks are none."""
    try:
        text = rendered(tokenizer, _TURNS)
    except TemplateError as error:
        raise TemplateError(f"the model's own chat template fails: {error.problems[0]}", CHOICES_HINT) from None
    tail = text[text.rfind(_PROBE) + len(_PROBE) :]
    added = list(tokenizer.added_tokens_decoder.values())
    for tokens in ([*(str(one) for one in added if one.special), *tokenizer.all_special_tokens], map(str, added)):
        if end := _first_of(tokens, tail):
            return end
    raise TemplateError(
        "the model's own chat template puts no special token after a reply, so it could not learn to stop", CHOICES_HINT
    )


# e.g. _answer("<think>Hm.</think>\n\nYes") → "Yes"
# e.g. _answer("Hm.</think>\n\nYes") → "Yes"
# e.g. _answer("<think>Hm.</think>") → "<think>Hm.</think>"
# e.g. _answer("Write `</think>` at the end.") → "Write `</think>` at the end."
def _answer(reply: str) -> str:
    """A reply without the thought that it begins with; all of it where nothing else is left."""
    return _THOUGHT.sub("", reply, count=1) or reply


# e.g. _thought("<think>\nHm.\n</think>\n\nYes") → "Hm."
def _thought(reply: str) -> str:
    """The words of the thought that a reply begins with."""
    return reply[: len(reply) - len(_answer(reply))].strip().removeprefix(_OPENS).removesuffix(_CLOSES).strip()


# e.g. _squeezed("<think>\n\n</think>") → "<think></think>"
def _squeezed(text: str) -> str:
    return "".join(text.split())


# e.g. _place("U: Hi A: <think>\n\n</think>\n\nYes", "U: Hi A:", "Yes") → 31
# e.g. _place("U: Hi A: No. Yes", "U: Hi A:", "Yes") → None
def _place(text: str, prompt: str, reply: str) -> int | None:
    """Where the words of a reply end in a text that begins with its prompt: behind nothing but blanks and its thought.

    A template may write the thought with other blanks, leave out its opening where the prompt has it, and write an
    empty one where there is none.
    """
    answer = _answer(reply)
    thought = _squeezed(reply[: len(reply) - len(answer)])
    opened = _OPENS if _squeezed(prompt[-_CONTEXT:]).endswith(_OPENS) else ""
    heads = {one.removeprefix(opened) for one in ((thought,) if thought else ("", _OPENS + _CLOSES))}
    found = text.find(answer, len(prompt))
    while found >= 0:
        if _squeezed(text[len(prompt) : found]) in heads:
            return found + len(answer)
        found = text.find(answer, found + 1)
    return None


def _beginning(tokens: Iterable[str]) -> re.Pattern[str]:
    """The first character of each of these tokens in a text, of those that overlap too.

    Of "<s>", "<b>" and "[x]" it is <(?=b>|s>)|\\[(?=x\\]): so a text is searched for the first characters alone.
    """
    rests: dict[str, list[str]] = {}
    for token in sorted(tokens):
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    found = [f"{re.escape(first)}(?={'|'.join(others)})" for first, others in rests.items()]
    return re.compile("|".join(found) or r"(?!)")


# e.g. _first_of(["<eos>", "<end>"], "<end><eos>") → "<end>"
def _first_of(tokens: Iterable[str], text: str) -> str | None:
    found = [(text.find(token), -len(token), token) for token in tokens if token.strip() and token in text]
    return min(found)[2] if found else None
