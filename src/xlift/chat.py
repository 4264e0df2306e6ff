"""`xlift chat`: talk to runs and models in the terminal, one or several side by side.

A line is a turn, or begins with / and changes how it goes on. Replies go to stdout as they come, all else to stderr.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from xlift.data.prompts import with_reminder
from xlift.errors import TooLongError, UserError
from xlift.languages import get_language, language_code
from xlift.progress import say
from xlift.rating import default_raters, in_scope, rate
from xlift.records import Message, Prompt, shorter
from xlift.speakers import Speaker, opened_speaker
from xlift.terminal import printable

BESIDE = 90
"""Columns of a terminal from which on two replies stand beside each other."""
HELP = """\
/lang CODE     answers are to be in this language, and are rated for it; without CODE, in that of each message
/system TEXT   system prompt; without TEXT, none
/ratings on    rate every answer; /ratings off
/reset         begin a new conversation
/help          this
An empty line or Ctrl-D ends; Ctrl-C ends an answer. A message that begins with / has a blank before it."""


@dataclass
class Talk:
    """A conversation with each of the speakers, and how it goes on; `system` None is each speaker's own."""

    speakers: Sequence[Speaker]
    system: str | None = None
    language: str | None = None
    rated: bool = False
    said: dict[int, list[Message]] = field(default_factory=dict)

    def seen(self, speaker: int) -> list[Message]:
        """What a speaker is shown."""
        system = self.speakers[speaker].system if self.system is None else self.system
        if self.language:
            return with_reminder(self._prompt(speaker), system)
        return [*([Message(role="system", content=system)] if system else []), *self.said[speaker]]

    def _prompt(self, speaker: int) -> Prompt:
        return {"id": "chat", "split": "test", "language": self.language or "", "messages": self.said[speaker]}


def talk(
    names: Sequence[str],
    system: str | None,
    max_new_tokens: int,
    offline: bool,
    server: tuple[str | None, str | None] = (None, None),
    language: str | None = None,
    rated: bool = False,
) -> None:
    """Let each of the models answer the lines of stdin; each conversation so far is part of every prompt.

    `server` are, of models given as an address, the name that the server knows and the variable with its key. Raises
    UserError for models that cannot be opened, and where no person is there to read it, for turns that fail.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(opened_speaker(name, server, max_new_tokens, offline)) for name in names]
        told = Talk(opened, system, language and language_code(language), rated)
        if sys.stdin.isatty():
            say("/help says what can be changed; an empty line ends")
        for line in _lines():
            try:
                if line.startswith("/"):
                    say(_changed(told, line))
                else:
                    _turn(told, line.strip())
            except UserError as error:
                if not sys.stdin.isatty():
                    raise
                hint = [f"try: {error.hint}"] if error.hint else []
                say("\n".join([*(f"error: {one}" for one in error.problems), *hint]))


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline().rstrip()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            line = ""
        if not line:
            return
        yield line


def _changed(told: Talk, line: str) -> str:
    """Do what a line with / says; what has become of it. Raises UserError for one that says nothing."""
    command, _, text = line.partition(" ")
    text = text.strip()
    if command == "/lang":
        told.language = language_code(text) if text else None
        where = get_language(told.language).name if told.language else "the language of each message"
        return f"answers are asked for and rated in {where}" if told.language else f"answers are rated in {where}"
    if command == "/system":
        told.system = text
        return "system prompt set" if text else "no system prompt"
    if command == "/ratings" and text in ("on", "off", ""):
        told.rated = text == "on" if text else not told.rated
        return f"ratings {'on' if told.rated else 'off'}"
    if command == "/reset":
        told.said.clear()
        return "a new conversation"
    if command == "/help":
        return HELP
    raise UserError(f"{line}: not known", "/lang CODE, /system TEXT, /ratings on|off, /reset, /help")


def _turn(told: Talk, line: str) -> None:
    """One message, answered by each of the speakers; a turn that fails leaves no trace in the conversations."""
    before = {place: list(told.said.get(place, [])) for place in range(len(told.speakers))}
    told.said = {place: [*said, Message(role="user", content=line)] for place, said in before.items()}
    try:
        with _shown(told) as pieces:
            replies = [_answer(told, place, on_piece) for place, on_piece in enumerate(pieces)]
    except UserError:
        told.said = before
        raise
    for place, reply in enumerate(replies):
        told.said[place].append(Message(role="assistant", content=reply or "…"))
        if told.rated:
            print(_ratings(told, place, line, reply), flush=True)


def _answer(told: Talk, place: int, on_piece: Callable[[str], None]) -> str:
    """A speaker's reply; a person's Ctrl-C ends it there."""
    parts: list[str] = []

    def keep(piece: str) -> None:
        parts.append(piece)
        on_piece(piece)

    try:
        return _fitting(told, place, keep)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        return "".join(parts)


def _fitting(told: Talk, place: int, on_piece: Callable[[str], None]) -> str:
    """A speaker's reply to a conversation that loses its oldest turns where it is too long for the model."""
    dropped = 0
    while True:
        try:
            reply = told.speakers[place].reply(told.seen(place), on_piece)
            break
        except TooLongError:
            if not (less := shorter(told.said[place])):
                raise
            told.said[place], dropped = less[0], dropped + 1
    if dropped:
        turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
        say(f"{told.speakers[place].name}: the conversation is too long for the model: {turns} dropped")
    return reply


@contextmanager
def _shown(told: Talk) -> Iterator[list[Callable[[str], None]]]:
    """Where the pieces of each speaker's reply go: below each other, or beside each other where there is room."""
    names = [one.name for one in told.speakers]
    if len(names) > 1 and sys.stdout.isatty() and shutil.get_terminal_size().columns >= BESIDE:
        with _beside(names) as pieces:
            yield pieces
        return
    last = -1

    def tell(place: int, piece: str) -> None:
        nonlocal last
        if place != last and len(names) > 1:
            print(f"{'' if last < 0 else chr(10)}[{names[place]}]")
        last = place
        print(_clean(piece) if sys.stdout.isatty() else piece, end="", flush=True)

    try:
        yield [lambda piece, place=place: tell(place, piece) for place in range(len(names))]  # type: ignore[misc]
    finally:
        print(flush=True)


@contextmanager
def _beside(names: Sequence[str]) -> Iterator[list[Callable[[str], None]]]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = [""] * len(names)

    def table() -> Any:
        made = Table(*map(printable, names), box=None, expand=True, padding=(0, 2, 0, 0))
        made.add_row(*(Text(_clean(text)) for text in texts))
        return made

    def tell(place: int, piece: str) -> None:
        texts[place] += piece

    with Live(get_renderable=table, console=Console(), refresh_per_second=8, vertical_overflow="visible"):
        yield [lambda piece, place=place: tell(place, piece) for place in range(len(names))]  # type: ignore[misc]


# e.g. _clean("a\x1b[31mb\x07") → "a [31mb "
def _clean(text: str) -> str:
    """A reply without what would steer the terminal."""
    return "".join(one if one.isprintable() or one == "\n" else " " for one in text)


def _ratings(told: Talk, place: int, line: str, reply: str) -> str:
    """What the surface raters say of a reply, e.g. "[language 0: English · fluency 2]"."""
    from xlift.diagnosis.data import language_of

    code = told.language or language_of(line)
    if not code:
        return "[not rated: the language of the message cannot be told; /lang CODE says it]"
    record = {"text": reply, "language": code, "messages": told.said[place][:-1]}
    found = {name: rate(record, name) for name in default_raters() if in_scope(record, name)}
    who = f"{told.speakers[place].name}: " if len(told.speakers) > 1 else ""
    return f"[{who}{' · '.join(_rating(name, one) for name, one in found.items())}]"


def _rating(name: str, rating: Any) -> str:
    detail = rating.get("detail") or {}
    spans = dict.fromkeys(get_language(one["language"]).name for one in detail.get("spans", []))
    why = rating.get("reason") or ", ".join([*spans, *detail.get("signals", [])])
    return f"{name} {'-' if rating['value'] is None else rating['value']}" + (f": {why}" if why else "")
