"""A judge that is loaded here: what a server does for others, with the same ledger, keys and replies.

Where a reply is JSON whose fields have a few values each, its form is filled in: of each value the model chooses the
likeliest first token, and all else is given. So that even a small model's reply can be read, and takes few steps. What
the requests begin with alike, the rubrics, is read once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, takewhile
from typing import Any, NamedTuple

import torch

from xlift.generation.engine import READ_TOKENS, Batch, BatchOf, Reply, answering, decode, rows_that_fit
from xlift.opening import open_model
from xlift.records import Message
from xlift.servers.calls import Asked, ServedAnswer, ServedReply
from xlift.servers.client import RequestGroup
from xlift.servers.ledger import Ledger
from xlift.study.served import Decoding, Judge
from xlift.tuning.limits import limits_of
from xlift.tuning.templates import ChatFormat

AHEAD = 8
"""Batches of groups that are taken together: what they begin with alike is read once for all."""


class Form(NamedTuple):
    """A reply's tokens up to its last choice, the places where the model chooses, and the tokens it chooses among."""

    tokens: list[int]
    places: list[int]
    choices: list[list[int]]


class Call(NamedTuple):
    """One call of a request: its part (2 is the re-ask), its messages as tokens."""

    request: Asked
    part: int
    prompt: list[int]


class _Judge(NamedTuple):
    """A loaded judge and its ledger."""

    model: Any
    chat: ChatFormat
    batch_of: BatchOf
    settings: Judge
    book: Ledger


def answer_here(groups: Iterable[RequestGroup], settings: Judge, book: Ledger) -> str | None:
    """Answer and finish every group, like `client.answer_groups`; the model is loaded when the first one comes.

    Raises UserError where it cannot be found or loaded.
    """
    shared = iter(groups)
    first = next(shared, None)
    if first is None:
        return None
    assert settings.here is not None
    opened, chat = open_model(settings.here, None, offline=False)
    with opened as model, answering(model) as batch_of:
        judge = _Judge(model, chat, batch_of, settings, book)
        waiting = chain([first], shared)
        while some := list(islice(waiting, AHEAD * settings.concurrency)):
            if stopped := _answer(judge, some):
                return stopped
    return None


def _answer(judge: _Judge, groups: Sequence[RequestGroup]) -> str | None:
    """Answer some groups, first calls and then re-asks, and finish those that are answered; why it stopped, if so."""
    requests = {request.key: request for group in groups for request in group.requests}
    failures: dict[str, str] = {}
    stopped = None
    for part in (1, 2):
        calls = list(_calls(judge, requests.values(), part, failures))
        most = judge.settings.max_requests
        room = len(calls) if most is None else max(0, most - judge.book.requests)
        if room < len(calls):
            stopped = f"max_requests {most} reached; what is done is kept"
        _make(judge, calls[:room])
    for group in groups:
        answers = [_answered(judge.book, request, failures) for request in group.requests]
        if not stopped or not any(answer.failure for answer in answers):
            group.finish(answers)
    return stopped


def _calls(judge: _Judge, requests: Iterable[Asked], part: int, failures: dict[str, str]) -> Iterator[Call]:
    """The calls that have no reply yet; those that are too long for the model go to `failures`."""
    limits = limits_of(judge.model)
    most = limits.positions or limits.made_for
    for request in requests:
        replies = judge.book.replies(request.key)
        messages: list[Message] | None = request.messages if not replies else request.follow_up(replies)
        if messages is None or len(replies) != part - 1:
            continue
        prompt = judge.chat.encode_prompt(messages)
        if most is not None and len(prompt) + judge.settings.max_new_tokens > most:
            failures[request.key] = f"too long: {len(prompt)} tokens and the reply, the model reads {most}"
        else:
            yield Call(request, part, prompt)


def _answered(book: Ledger, request: Asked, failures: dict[str, str]) -> ServedAnswer:
    replies = book.replies(request.key)
    if not replies or request.follow_up(replies) is not None:
        return ServedAnswer(replies, failure=failures.get(request.key, "not asked yet"))
    return ServedAnswer(replies)


def _make(judge: _Judge, calls: Sequence[Call]) -> None:
    """Write a reply to each call down; those with the same instructions and form together."""

    def alike(call: Call) -> tuple[str, str]:
        return call.request.messages[0]["content"], json.dumps(call.request.schema)

    for _, some in groupby(sorted(calls, key=alike), key=alike):
        together = list(some)
        form = form_of(together[0].request.schema, judge) if judge.settings.json_schema else None
        prefix = common([call.prompt for call in together])
        if form and not judge.settings.temperature:
            _fill_in(judge, together, form, prefix)
        else:
            _let_write(judge, together, prefix)


def common(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with, short of a whole row."""
    least, most = min(rows), max(rows)
    alike = [one for one, _ in takewhile(lambda two: two[0] == two[1], zip(least, most, strict=False))]
    return alike[: min(map(len, rows)) - 1]


def _let_write(judge: _Judge, calls: Sequence[Call], prefix: list[int]) -> None:
    settings = judge.settings
    decoding = Decoding(
        strategy="sample" if settings.temperature else "greedy",
        temperature=settings.temperature or 1.0,
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=1.0,
        seed=settings.seed,
        batch_size=settings.concurrency,
    )

    def keep(index: int, reply: Reply) -> None:
        made = ServedReply(reply.text, reply.finish_reason)
        judge.book.add(calls[index].request.key, calls[index].part, made, (reply.prompt_tokens, reply.new_tokens))

    prompts, keys = [call.prompt for call in calls], [call.request.key for call in calls]
    of_these: BatchOf = lambda _: judge.batch_of(prefix)  # noqa: E731
    decode(judge.model, judge.chat, prompts, keys, decoding, keep, batch_of=of_these)


# --- forms


def form_of(schema: dict[str, Any] | None, judge: _Judge) -> Form | None:
    """The form of replies with this JSON schema; None where a field is free text, or a value is not told by a token."""
    fields = (schema or {}).get("properties", {})
    values = {name: kind.get("enum", []) for name, kind in fields.items()}
    if not values or not all(values.values()):
        return None
    lowest = {name: some[0] for name, some in values.items()}

    def tokens(name: str, value: Any) -> list[int]:
        text = json.dumps(lowest | {name: value}, separators=(",", ":"))
        found: list[int] = judge.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    return form_in([[tokens(name, value) for value in some] for name, some in values.items()])


# e.g. form_in([[[7, 0, 8, 3], [7, 1, 8, 3]], [[7, 0, 8, 3], [7, 0, 8, 4]]]) → ([7, 0, 8], [1, 3], [[0, 1], [3, 4]])
def form_in(filled: Sequence[Sequence[list[int]]]) -> Form | None:
    """The form by its tokens with each value of each field in turn, the other fields at their first value.

    With one field, what differs first decides; with several, each value must be a token of its own.
    """
    places, choices = [], []
    for rows in filled:
        differ = [place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1]
        if len(filled) > 1 and (len(differ) != 1 or len(set(map(len, rows))) > 1):
            return None
        places += differ[:1]
        choices += [[row[place] for row in rows] for place in differ[:1]]
    if len(places) != len(filled) or any(len(set(some)) < len(some) for some in choices):
        return None
    return Form(filled[0][0][: places[-1]], places, choices)


def _fill_in(judge: _Judge, calls: Sequence[Call], form: Form, prefix: list[int]) -> None:
    schema = calls[0].request.schema or {}
    values = {name: kind["enum"] for name, kind in schema["properties"].items()}
    batch = judge.batch_of(prefix)
    longest = max(len(call.prompt) for call in calls) + len(form.tokens)
    most = min(judge.settings.concurrency, rows_that_fit(judge.model, longest))
    for some in _read_together(calls, len(prefix), most):
        chosen = fill_in(batch, [call.prompt for call in some], form, judge.model.device)
        for call, picks in zip(some, chosen, strict=True):
            text = json.dumps({name: some[pick] for (name, some), pick in zip(values.items(), picks, strict=True)})
            tokens = (len(call.prompt), len(form.tokens) + 1)
            judge.book.add(call.request.key, call.part, ServedReply(text), tokens)
        if batch.can_keep:
            batch.keep([])
        else:
            batch = judge.batch_of(prefix)


def _read_together(calls: Sequence[Call], shared: int, most: int) -> Iterator[list[Call]]:
    """Calls whose prompts are read in one step."""
    some: list[Call] = []
    for call in calls:
        if some and (len(some) >= most or sum(len(one.prompt) - shared for one in [*some, call]) > READ_TOKENS):
            yield some
            some = []
        some.append(call)
    if some:
        yield some


@torch.inference_mode()
def fill_in(batch: Batch, prompts: Sequence[list[int]], form: Form, device: Any) -> list[list[int]]:
    """Which choice the model makes at each place of the form, by prompt."""
    batch.join([[*prompt, *form.tokens[: form.places[0]]] for prompt in prompts])
    made = []
    for number, choices in enumerate(form.choices):
        allowed = torch.tensor(choices, device=device)
        picks = batch.logits()[:, allowed].argmax(dim=1)
        made.append(picks.tolist())
        if number + 1 < len(form.places):
            batch.add(allowed[picks])
            for token in form.tokens[form.places[number] + 1 : form.places[number + 1]]:
                batch.logits()
                batch.add(torch.full_like(picks, token))
    return [list(row) for row in zip(*made, strict=True)]
