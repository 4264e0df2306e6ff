"""Sends requests to an OpenAI-compatible server and brings replies; the ledger keeps each call.

Many at once, retried, within a budget. What goes wrong is one of four kinds: try again (429, 5xx, timeouts, cut
connections, answers that are no completion), send it differently (a parameter that the server does not know), leave
this one out (too long), or stop everything (wrong key, unknown model, budget). Stopping lets the calls under way end,
so that nothing paid for is lost.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from xlift.errors import ConfigError, UserError
from xlift.extras import require
from xlift.progress import say
from xlift.records import Message
from xlift.redaction import redacted
from xlift.servers.calls import Asked, ServedAnswer, ServedReply, text_of
from xlift.servers.completions import (
    Features,
    Trouble,
    adapted,
    model_names,
    read_completion,
    request_body,
    retry_after,
    server_words,
)
from xlift.servers.ledger import Ledger, estimated_tokens, most_tokens
from xlift.servers.where import api_key, server_address
from xlift.study.served import Served

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

LONGEST_RETRY_AFTER = 600.0
"""Seconds; a server that asks for a longer wait is out of quota, and asking stops."""
GIVE_UP_AFTER = 16
"""Requests in a row without an answer after which asking stops, unless a harmless request is answered."""
NONSENSE_TRIES = 4
"""Tries at one request, over some seconds, that bring answers of no chat model before a harmless request decides."""
HARMLESS_TRIES = 4
"""Tries at the harmless request: of a server three in ten of whose answers are faulty, one in a hundred fails."""
_HARMLESS: Message = {"role": "user", "content": "Reply with the word OK."}
_HARMLESS_KEY = f"{0:016x}"
"""Stands in the ledger where a harmless request was paid."""

_TOO_LONG = re.compile(
    r"context.{0,20}(?:length|size|window)|too long|too many tokens|exceeds? the (?:available|max)", re.IGNORECASE
)
_FILTERED = re.compile(r"content[ _-]?(?:filter|management|policy)|moderation|flagged|safety", re.IGNORECASE)
_NO_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing|credit balance", re.IGNORECASE)


class Pace(NamedTuple):
    """How patiently a call is repeated: waits double from the first to the longest, each by 50–100 % by chance.

    `poll` are the seconds between two looks at a batch.
    """

    tries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    seed: int = 0
    poll: float = 30.0


PACE = Pace()


class RequestGroup(NamedTuple):
    """Requests whose answers belong together, and what to do with the answers."""

    requests: Sequence[Asked]
    finish: Callable[[list[ServedAnswer]], None]


class Stopped(Exception):
    """Asking has been stopped; Session.stop says why."""


@dataclass
class Session:
    """One served model at work."""

    settings: Served
    ledger: Ledger
    pace: Pace
    client: AsyncOpenAI
    secret: str
    features: Features
    chance: random.Random
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    returned: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: dict[str, asyncio.Event] = field(default_factory=dict)
    sent: int = 0
    reserved: float = 0.0
    quiet_until: float = 0.0
    failures_in_a_row: int = 0
    vouched: int = 0
    """How many more requests may fail before it is asked again whether all do."""
    all_fail: bool = False
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    budget: str | None = None
    error: UserError | None = None

    def stop(self, error: UserError | None = None, budget: str | None = None) -> None:
        """Send nothing more. The first reason stands."""
        if not self.stopping.is_set():
            self.error, self.budget = error, budget
            self.stopping.set()


def check_budget(settings: Served) -> None:
    """Raises ConfigError where a cost limit is set without prices to count by."""
    if settings.max_cost is not None and settings.price_input is None and settings.price_output is None:
        raise ConfigError(
            f"{settings.title}: max_cost needs price_input and price_output",
            "prices are those of a million tokens",
        )


def answer_groups(groups: Iterable[RequestGroup], settings: Served, ledger: Ledger, pace: Pace = PACE) -> str | None:
    """Answer and finish every group, `settings.concurrency` calls at once; groups are taken as there is room for them.

    Returns why the budget stopped it, None where it did not. Raises UserError where the server makes it impossible to
    go on, after the calls under way have ended. ConfigError without a key, or without the openai package.
    """
    check_budget(settings)
    return asyncio.run(_run(groups, settings, ledger, pace))


async def _run(groups: Iterable[RequestGroup], settings: Served, ledger: Ledger, pace: Pace) -> str | None:
    require("judge")
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    from xlift.servers.bounds import bound

    secret = api_key(settings)
    # Retries are ours: each one is counted, waits for all, and stops with the budget.
    options: dict[str, Any] = {"api_key": secret, "max_retries": 0, "timeout": settings.timeout}
    # Packed, a small answer could fill the memory.
    http = DefaultAsyncHttpxClient(event_hooks={"response": [bound]}, headers={"Accept-Encoding": "identity"})
    async with AsyncOpenAI(base_url=server_address(settings), http_client=http, **options) as client:
        features = Features(schema=settings.json_wanted)
        session = Session(settings, ledger, pace, client, secret, features, random.Random(pace.seed))
        shared = iter(groups)
        await asyncio.gather(*[_work(session, shared) for _ in range(settings.concurrency)])
    if session.error:
        raise session.error
    return session.budget


async def _work(session: Session, groups: Iterator[RequestGroup]) -> None:
    for group in groups:
        try:
            answers = [await ask(session, request) for request in group.requests]
        except Stopped:
            return
        group.finish(answers)
        if session.stopping.is_set():
            return


async def ask(session: Session, request: Asked) -> ServedAnswer:
    """The answer to a request: from the ledger where it is there, else from the server, with one re-ask if need be.

    The same request is never under way twice. Raises Stopped.
    """
    while busy := session.under_way.get(request.key):
        await busy.wait()
    busy = session.under_way[request.key] = asyncio.Event()
    try:
        return await _converse(session, request, session.ledger.replies(request.key))
    finally:
        del session.under_way[request.key]
        busy.set()


async def _converse(session: Session, request: Asked, replies: tuple[ServedReply, ...]) -> ServedAnswer:
    if not replies:
        first = await _call(session, request, 1, request.messages)
        if isinstance(first, Trouble):
            return ServedAnswer(failure=first.why)
        replies = (first,)
    if (more := request.follow_up(replies)) is not None:
        second = await _call(session, request, 2, more)
        if isinstance(second, Trouble):
            return ServedAnswer(replies, failure=second.why)
        replies = (*replies, second)
    return ServedAnswer(replies)


async def _call(session: Session, request: Asked, part: int, messages: list[Message]) -> ServedReply | Trouble:
    """One reply, tried as often as the pace allows. Raises Stopped."""
    base = features = session.features
    trouble = Trouble("again", "not tried")
    tries = 0
    while tries < session.pace.tries:
        result = await _send(session, request, part, messages, features)
        if isinstance(result, ServedReply):
            _adopt(session, base, features)
            session.failures_in_a_row = 0
            return result
        trouble = result
        if trouble.kind == "stop":
            _stop(session, trouble.why, trouble.hint)
        if trouble.all_calls and await _all_fail(session):
            _stop(session, trouble.all_calls, trouble.hint or await _offer(session))
        if trouble.kind == "left out":
            break
        if trouble.kind == "refused":
            if session.features != base:
                base = features = session.features
            elif (changed := adapted(features, trouble.why)) is not None:
                features = changed
            else:
                break
            continue
        tries += 1
        if trouble.nonsense and tries >= min(NONSENSE_TRIES, session.pace.tries):
            if await _all_fail(session):
                where = f"{session.settings.role} at {_address(session)}"
                _stop(session, f"{where} answers as no chat model does: {trouble.why}", await _offer(session))
            break
        if tries < session.pace.tries:
            await _rest(session, tries, trouble.wait)
    await _count_lost(session, trouble)
    return trouble


def _stop(session: Session, why: str, hint: str | None) -> NoReturn:
    session.stop(UserError(why, hint))
    raise Stopped


async def _count_lost(session: Session, trouble: Trouble) -> None:
    """Give this request up, and everything where it looks as if nothing will be answered."""
    session.failures_in_a_row += 1
    if not trouble.unreachable and session.failures_in_a_row < GIVE_UP_AFTER:
        return
    if await _all_fail(session):
        hint = "is the server running at this address? " if trouble.unreachable else ""
        where = f"{session.settings.role} at {_address(session)}"
        _stop(session, f"{where} does not answer: {trouble.why}", f"{hint}what is done is kept; run it again")
    session.failures_in_a_row = 0


def _address(session: Session) -> str:
    return session.settings.base_url or str(session.client.base_url)


async def _all_fail(session: Session) -> bool:
    """Whether a harmless request fails, too: then the fault is not that of the one that has just failed.

    One that is answered vouches for the server during the next failures, so that few are sent.
    """
    async with session.asking:
        if session.vouched:
            session.vouched -= 1
            return False
        if session.all_fail:
            return True
        result, usage = await _harmless_reply(session)
        session.all_fail = isinstance(result, Trouble)
        if isinstance(result, Trouble):
            return True
        session.vouched = GIVE_UP_AFTER
        session.ledger.add(_HARMLESS_KEY, 1, result, usage or (8, 2), estimated=usage is None)
        return False


async def _harmless_reply(session: Session) -> tuple[ServedReply | Trouble, tuple[int, int] | None]:
    """What comes of a harmless request, asked again where it may have met a fault that passes."""
    body = {"model": session.settings.model, "messages": [_HARMLESS]}
    tries = 1
    while True:
        result, usage = await _post(session, body)
        passes = isinstance(result, Trouble) and result.kind == "again" and not result.unreachable
        if not passes or tries >= min(HARMLESS_TRIES, session.pace.tries):
            return result, usage
        await _rest(session, tries, None)
        tries += 1


async def _rest(session: Session, tries: int, asked: float | None) -> None:
    """Wait before the next try: as long as the server asks, else longer each time. Raises Stopped."""
    pace = session.pace
    wait = min(pace.longest_wait, pace.first_wait * 2 ** (tries - 1)) * session.chance.uniform(0.5, 1.0)
    if asked is not None:
        # The server's wish holds for all calls; the part by chance keeps them from coming back all at once.
        session.quiet_until = max(session.quiet_until, time.monotonic() + asked)
        wait = asked + min(wait, max(pace.first_wait, asked))
    await _pause(session, wait)


async def _pause(session: Session, seconds: float) -> None:
    if seconds > 0:
        try:
            await asyncio.wait_for(session.stopping.wait(), seconds)
        except TimeoutError:
            return
    if session.stopping.is_set():
        raise Stopped


async def _send(
    session: Session, request: Asked, part: int, messages: list[Message], features: Features
) -> ServedReply | Trouble:
    """Send one request and write down what came of it. Raises Stopped."""
    await _pause(session, session.quiet_until - time.monotonic())
    reserved = await _reserve(session, messages)
    try:
        result, usage = await _post(session, request_body(session.settings, request, messages, features))
    finally:
        session.sent -= 1
        session.reserved -= reserved
        session.returned.set()
    if isinstance(result, Trouble):
        session.ledger.add_failure(request.key, part, result.why)
        return result
    tokens = usage or (round(estimated_tokens(text_of(messages))), round(estimated_tokens(result.text)))
    session.ledger.add(request.key, part, result, tokens, estimated=usage is None)
    return result


async def _reserve(session: Session, messages: list[Message]) -> float:
    """Wait until the budget has room for the dearest outcome of this request. Raises Stopped where it never will."""
    settings, ledger = session.settings, session.ledger
    need = 0.0
    if settings.max_cost is not None:
        need = ledger.price(most_tokens(text_of(messages)), settings.reply_tokens)
    while not session.stopping.is_set():
        if settings.max_requests is not None and ledger.requests + session.sent >= settings.max_requests:
            session.stop(budget=f"max_requests {settings.max_requests} reached; what is done is kept")
        elif settings.max_cost is None or ledger.cost + session.reserved + need <= settings.max_cost:
            session.sent += 1
            session.reserved += need
            return need
        elif not session.sent:
            spent = f"{ledger.cost:.4f} spent, the next call could cost {need:.4f}"
            session.stop(budget=f"max_cost {settings.max_cost:g} would be exceeded ({spent}); what is done is kept")
        else:
            session.returned.clear()
            await session.returned.wait()
    raise Stopped


async def _post(session: Session, body: dict[str, Any]) -> tuple[ServedReply | Trouble, tuple[int, int] | None]:
    from openai import APIConnectionError, APIStatusError, OpenAIError

    try:
        async with asyncio.timeout(session.settings.timeout):
            # The typed method checks and copies every message, which costs more time than all else here.
            path = "/completions" if "prompt" in body else "/chat/completions"
            data = await session.client.post(path, cast_to=object, body=body)
    except TimeoutError:
        return Trouble("again", f"no answer within {session.settings.timeout:g} s"), None
    except APIStatusError as error:
        return _status_trouble(session, error), None
    except APIConnectionError as error:
        cause = error.__cause__ or error
        why = redacted(f"{type(cause).__name__} {cause}".strip(), session.secret)
        return Trouble("again", f"no connection: {why}", unreachable=True), None
    except EOFError as error:
        return Trouble("left out", str(error)), None
    except (OpenAIError, ValueError, RecursionError) as error:
        return Trouble("again", f"the answer cannot be read: {type(error).__name__}", nonsense=True), None
    return read_completion(data, session.secret)


def _status_trouble(session: Session, error: APIStatusError) -> Trouble:
    """What a refusal means. A 403 or 404 may mean this request (moderation, its parameters) or all (key, model)."""
    status, settings = error.status_code, session.settings
    words = server_words(error.body, error.message, session.secret)
    why = f"{status}: {words}"
    if status == 401:
        return Trouble("stop", f"{settings.role} refuses the key ({why})", hint=f"is {settings.api_key_env} right?")
    if status == 403:
        everything = f"{settings.role} refuses the key ({why})"
        return Trouble("left out", why, hint=f"is {settings.api_key_env} right?", all_calls=everything)
    if status == 402 or (status == 429 and _NO_QUOTA.search(f"{error.code} {words}")):
        hint = "what is done is kept; run it again later"
        return Trouble("stop", f"{settings.role}'s quota is used up ({why})", hint=hint)
    if status == 404:
        everything = f"no model '{settings.model}' at {session.client.base_url} ({why})"
        return Trouble("refused", why, all_calls=everything)
    if status in (400, 413, 422):
        own = status == 413 or _TOO_LONG.search(words) or _FILTERED.search(f"{error.code} {words}")
        return Trouble("left out" if own else "refused", why)
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after(error.response.headers.get("retry-after"), datetime.now(timezone.utc))
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            why = f"{settings.role} asks to come back in {wait:.0f} s ({why})"
            return Trouble("stop", why, hint="run it again then")
        return Trouble("again", why, wait)
    return Trouble("stop", f"{settings.role} refuses ({why})", hint="check base_url and model")


async def _offer(session: Session) -> str:
    from openai import OpenAIError

    try:
        names = model_names(await session.client.get("/models", cast_to=object))
    except (OpenAIError, EOFError, ValueError, RecursionError):
        names = []
    return f"models there: {', '.join(names)}" if names else "is base_url right? it often ends in /v1"


def _adopt(session: Session, base: Features, features: Features) -> None:
    """Keep what has just worked, and tell the user."""
    if session.features is base and features != base:
        session.features = features
        changed = [name for name, old, new in zip(Features._fields, base, features, strict=True) if old != new]
        say(f"{session.settings.title}: the server does not take {', '.join(changed)}; going on without")
