"""Sends the requests of questions.py to an OpenAI-compatible server and brings replies; the ledger keeps each call.

Many at once, retried, within a budget. What goes wrong is one of four kinds: try again (429, 5xx, timeouts, cut
connections, answers that are no completion), send it differently (a parameter that the server does not know), leave
this one out (too long), or stop everything (wrong key, unknown model, budget). Stopping lets the calls under way end,
so that nothing paid for is lost.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

from xlift.errors import ConfigError, UserError
from xlift.extras import require
from xlift.judging.ledger import Ledger, estimated_tokens, most_tokens, text_of
from xlift.judging.questions import Request, again_messages, needs_again
from xlift.judging.replies import JudgeAnswer, JudgeReply
from xlift.progress import say
from xlift.records import Message
from xlift.study.settings import Judge

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

LONGEST_RETRY_AFTER = 600.0
"""Seconds; a server that asks for a longer wait is out of quota, and judging stops."""
GIVE_UP_AFTER = 16
"""Requests in a row without an answer, retries included, after which judging stops."""

_TOO_LONG = re.compile(
    r"context.{0,20}(?:length|size|window)|too long|too many tokens|exceeds? the (?:available|max)", re.IGNORECASE
)
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

    requests: list[Request]
    finish: Callable[[list[JudgeAnswer]], None]


class Features(NamedTuple):
    """What the server understands; taken back one by one where it says that it does not."""

    schema: bool
    tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    seed: bool = True
    system: bool = True


class Trouble(NamedTuple):
    """What came of a call instead of a reply."""

    kind: Literal["again", "refused", "left out", "stop"]
    why: str
    wait: float | None = None
    hint: str | None = None
    unreachable: bool = False


class Stopped(Exception):
    """Judging has been stopped; Session.stop says why."""


@dataclass
class Session:
    """One judge at work."""

    settings: Judge
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
    answered: int = 0
    budget: str | None = None
    error: UserError | None = None

    def stop(self, error: UserError | None = None, budget: str | None = None) -> None:
        """Send nothing more. The first reason stands."""
        if not self.stopping.is_set():
            self.error, self.budget = error, budget
            self.stopping.set()


def api_key(settings: Judge) -> str:
    """The key from the environment; none is needed for a server without TLS (one of one's own).

    Raises ConfigError where it is missing.
    """
    key = os.environ.get(settings.api_key_env, "")
    if not key and urlsplit(settings.base_url or "https:").scheme != "http":
        raise ConfigError(
            f"judge '{settings.label}': the environment variable {settings.api_key_env} holds no key",
            f"export {settings.api_key_env}=…, or name another variable with api_key_env",
        )
    return key or "none"


def check_budget(settings: Judge) -> None:
    """Raises ConfigError where a cost limit is set without prices to count by."""
    if settings.max_cost is not None and settings.price_input is None and settings.price_output is None:
        raise ConfigError(
            f"judge '{settings.label}': max_cost needs price_input and price_output",
            "prices are those of a million tokens",
        )


def answer_groups(groups: Iterable[RequestGroup], settings: Judge, ledger: Ledger, pace: Pace = PACE) -> str | None:
    """Answer and finish every group, `settings.concurrency` calls at once; groups are taken as there is room for them.

    Returns why the budget stopped it, None where it did not. Raises UserError where the server makes it impossible to
    go on, after the calls under way have ended. ConfigError without a key, or without the openai package.
    """
    check_budget(settings)
    return asyncio.run(_run(groups, settings, ledger, pace))


async def _run(groups: Iterable[RequestGroup], settings: Judge, ledger: Ledger, pace: Pace) -> str | None:
    require("judge")
    from openai import AsyncOpenAI

    secret = api_key(settings)
    # Retries are ours: each one is counted, waits for all, and stops with the budget.
    options: dict[str, Any] = {"api_key": secret, "max_retries": 0, "timeout": settings.timeout}
    async with AsyncOpenAI(base_url=settings.base_url, **options) as client:
        features = Features(schema=settings.json_schema)
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


async def ask(session: Session, request: Request) -> JudgeAnswer:
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


async def _converse(session: Session, request: Request, replies: tuple[JudgeReply, ...]) -> JudgeAnswer:
    if not replies:
        first = await _call(session, request, 1, request.messages)
        if isinstance(first, Trouble):
            return JudgeAnswer(failure=first.why)
        replies = (first,)
    if needs_again(request, replies):
        second = await _call(session, request, 2, again_messages(request, replies[0]))
        if isinstance(second, Trouble):
            return JudgeAnswer(replies, failure=second.why)
        replies = (*replies, second)
    return JudgeAnswer(replies)


async def _call(session: Session, request: Request, part: int, messages: list[Message]) -> JudgeReply | Trouble:
    """One reply, tried as often as the pace allows. Raises Stopped."""
    base = features = session.features
    trouble = Trouble("again", "not tried")
    tries = 0
    while tries < session.pace.tries:
        result = await _send(session, request, part, messages, features)
        if isinstance(result, JudgeReply):
            _adopt(session, base, features)
            session.failures_in_a_row = 0
            return result
        trouble = result
        if trouble.kind == "stop":
            session.stop(UserError(trouble.why, trouble.hint))
            raise Stopped
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
        if tries < session.pace.tries:
            await _rest(session, tries, trouble.wait)
    return _lost(session, trouble)


def _lost(session: Session, trouble: Trouble) -> Trouble:
    """Give this request up, and everything where it looks as if nothing will be answered."""
    session.failures_in_a_row += 1
    nowhere = trouble.unreachable and not session.answered
    if nowhere or session.failures_in_a_row >= GIVE_UP_AFTER:
        where = session.settings.base_url or str(session.client.base_url)
        hint = "is the server running at this address?" if trouble.unreachable else "what is done is kept; run it again"
        session.stop(UserError(f"the judge at {where} does not answer: {trouble.why}", hint))
        raise Stopped
    return trouble


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
    session: Session, request: Request, part: int, messages: list[Message], features: Features
) -> JudgeReply | Trouble:
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
    session.answered += 1
    tokens = usage or (round(estimated_tokens(text_of(messages))), round(estimated_tokens(result.text)))
    session.ledger.add(request.key, part, result, tokens, estimated=usage is None)
    return result


async def _reserve(session: Session, messages: list[Message]) -> float:
    """Wait until the budget has room for the dearest outcome of this request. Raises Stopped where it never will."""
    settings, ledger = session.settings, session.ledger
    need = 0.0
    if settings.max_cost is not None:
        need = ledger.price(most_tokens(text_of(messages)), settings.max_new_tokens)
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


async def _post(session: Session, body: dict[str, Any]) -> tuple[JudgeReply | Trouble, tuple[int, int] | None]:
    from openai import APIConnectionError, APIStatusError, OpenAIError

    try:
        async with asyncio.timeout(session.settings.timeout):
            # The typed method checks and copies every message, which costs more time than all else here.
            data = await session.client.post("/chat/completions", cast_to=object, body=body)
    except TimeoutError:
        return Trouble("again", f"no answer within {session.settings.timeout:g} s"), None
    except APIStatusError as error:
        return await _status_trouble(session, error), None
    except APIConnectionError as error:
        cause = error.__cause__ or error
        return Trouble("again", f"no connection: {type(cause).__name__} {cause}".strip(), unreachable=True), None
    except (OpenAIError, ValueError) as error:
        return Trouble("again", f"the answer cannot be read: {type(error).__name__}"), None
    return read_completion(data)


def request_body(settings: Judge, request: Request, messages: list[Message], features: Features) -> dict[str, Any]:
    """The JSON of one chat completion request, as far as the server understands it."""
    if not features.system:
        messages = [{"role": "user", "content": text_of(messages[:2])}, *messages[2:]]
    body: dict[str, Any] = {"model": settings.model, "messages": messages, features.tokens: settings.max_new_tokens}
    if features.temperature:
        body["temperature"] = settings.temperature
    if features.seed:
        body["seed"] = settings.seed
    if features.schema:
        shape = {"name": "reply", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body


def read_completion(data: Any) -> tuple[JudgeReply | Trouble, tuple[int, int] | None]:
    """The reply in a chat completion and its (input, output) tokens, None where the server does not tell them."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        reply = JudgeReply(message.get("content") or "", choice.get("finish_reason") or "stop", message.get("refusal"))
        usage = data.get("usage") or {}
    except (TypeError, KeyError, IndexError, AttributeError):
        return Trouble("again", "the answer is not a chat completion"), None
    counted = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    known = all(isinstance(one, int) for one in counted)
    return reply, cast(tuple[int, int], counted) if known else None


async def _status_trouble(session: Session, error: APIStatusError) -> Trouble:
    status, settings = error.status_code, session.settings
    said = _said(error, session.secret)
    why = f"{status}: {said}"
    if status in (401, 403):
        return Trouble("stop", f"the judge refuses the key ({why})", hint=f"is {settings.api_key_env} right?")
    if status == 402 or (status == 429 and _NO_QUOTA.search(f"{error.code} {said}")):
        return Trouble("stop", f"the judge's quota is used up ({why})", hint="what is done is kept; run it again later")
    if status == 404:
        missing = f"no model '{settings.model}' at {session.client.base_url} ({why})"
        return Trouble("stop", missing, hint=await _offer(session))
    if status in (400, 413, 422):
        return Trouble("left out" if status == 413 or _TOO_LONG.search(said) else "refused", why)
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after(error.response.headers.get("retry-after"), datetime.now(timezone.utc))
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            return Trouble("stop", f"the judge asks to come back in {wait:.0f} s ({why})", hint="run it again then")
        return Trouble("again", why, wait)
    return Trouble("stop", f"the judge refuses ({why})", hint="check base_url and model")


async def _offer(session: Session) -> str:
    from openai import OpenAIError

    try:
        names = [model.id async for model in session.client.models.list()]
    except OpenAIError:
        return "is base_url right? it often ends in /v1"
    return f"models there: {', '.join(names[:20])}"


def _said(error: APIStatusError, secret: str) -> str:
    """The server's own words, short, and without the key that some servers repeat."""
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or body.get("detail") or error.message)
    return said.replace(secret, "[key]")[:200] if len(secret) > 4 else said[:200]


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, which gives seconds or a date; None without a usable one."""
    if not value:
        return None
    if re.fullmatch(r"\s*\d+(?:\.\d+)?\s*", value):
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or timezone.utc) - now).total_seconds())


def adapted(features: Features, complaint: str) -> Features | None:
    """The features without what a server complains of; None where nothing is left to take back."""
    said = complaint.lower()
    if features.schema and re.search(r"response_format|json|schema|grammar|guided", said):
        return features._replace(schema=False)
    if features.tokens == "max_tokens" and "max_tokens" in said:
        return features._replace(tokens="max_completion_tokens")
    if features.temperature and "temperature" in said:
        return features._replace(temperature=False)
    if features.seed and re.search(r"\bseed\b", said):
        return features._replace(seed=False)
    if features.system and "system" in said:
        return features._replace(system=False)
    return features._replace(schema=False) if features.schema else None


def _adopt(session: Session, base: Features, features: Features) -> None:
    """Keep what has just worked, and tell the user."""
    if session.features is base and features != base:
        session.features = features
        changed = [name for name, old, new in zip(Features._fields, base, features, strict=True) if old != new]
        say(f"judge {session.settings.label}: the server does not take {', '.join(changed)}; going on without")
