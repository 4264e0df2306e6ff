"""`xlift serve RUN…`: runs and models behind an OpenAI-compatible endpoint on this machine.

Requests wait in one queue; those for the same model with the same decoding are answered together, also those that come
while others are answered. Bound to 127.0.0.1:
there is no key.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from xlift.data.readers import content_text
from xlift.errors import ConfigError, DataError, UserError
from xlift.generation.engine import Reply, answering, decode
from xlift.opening import Opened, open_model, text_so_far
from xlift.progress import say
from xlift.records import check_messages
from xlift.speakers import short_name
from xlift.study.served import Decoding
from xlift.tuning.limits import beyond, limits_of
from xlift.tuning.proof import refuse

HOST = "127.0.0.1"
LONGEST_BODY = 8_000_000
"""Bytes of a request."""
_DECODING = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty")},
}
"""Parameters of a request by what `decoding` of a study calls them."""
_IGNORED = {"model", "messages", "n", "stream", "stream_options", "user", "metadata", "store", "stop", *_DECODING}
MOST_CHOICES = 128
_OFF: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "logprobs": (False,),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), (0,)),
}
"""What is not done here, with the values that ask for nothing."""


class ReplyPiece(NamedTuple):
    """A piece of one of the replies to a request; the last one has the whole `reply`, or says why there is none."""

    choice: int
    text: str
    reply: Reply | None = None
    failure: str | None = None


@dataclass
class WantedReply:
    """One of the replies that a request asks for, and where its pieces go."""

    name: str
    prompt: list[int]
    decoding: Decoding
    choice: int
    parts: asyncio.Queue[ReplyPiece]
    loop: asyncio.AbstractEventLoop
    told: str = ""
    gone: bool = False
    """Whether nobody waits for it any more."""

    @property
    def kind(self) -> tuple[str, Decoding]:
        """What those have in common that are answered in one batch."""
        return self.name, self.decoding

    @property
    def key(self) -> str:
        """What the reply is drawn by."""
        return f"served {self.choice}"

    def tell(self, text: str, reply: Reply | None = None, failure: str | None = None) -> None:
        """Pass on what has come since last time; called by the thread that answers."""
        new, self.told = text.removeprefix(self.told), text
        self.loop.call_soon_threadsafe(self.parts.put_nowait, ReplyPiece(self.choice, new, reply, failure))


def serve(names: Sequence[str], port: int, offline: bool) -> None:
    """Answer until ended. Raises ConfigError for models that are called alike, UserError where one cannot be loaded."""
    called = [short_name(one) for one in names]
    if len(set(called)) < len(called):
        raise ConfigError(f"several are called {max(called, key=called.count)}: serve them one by one")
    with ExitStack() as stack:
        opened = {}
        for name, one in zip(called, names, strict=True):
            context, chat = open_model(one, None, offline)
            model = stack.enter_context(context)
            opened[name] = Opened(model, chat, stack.enter_context(answering(model)))
        queue: SimpleQueue[WantedReply | None] = SimpleQueue()
        worker = threading.Thread(target=_answer_all, args=(queue, opened), daemon=True)
        worker.start()
        say(f"serving {', '.join(opened)} at http://{HOST}:{port}/v1 (Ctrl-C ends)")
        try:
            uvicorn.run(application(opened, queue), host=HOST, port=port, log_level="warning")
        finally:
            queue.put(None)
            worker.join()


def application(opened: dict[str, Opened], queue: SimpleQueue[WantedReply | None]) -> Starlette:
    """The endpoint; a thread that runs `_answer_all` on the same queue answers."""
    started = int(time.time())

    async def models(request: Request) -> Response:
        rows = [{"id": name, "object": "model", "created": started, "owned_by": "xlift"} for name in opened]
        return JSONResponse({"object": "list", "data": rows})

    async def completions(request: Request) -> Response:
        try:
            body = json.loads(await _body(request))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise HTTPException(400, "the body is not a JSON object")
        wanted = _wanted(body, opened)
        for one in wanted:
            queue.put(one)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body["model"]}
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            told = _streamed(_parts(wanted), len(wanted), head, usage)
            return StreamingResponse(told, media_type="text/event-stream")
        whole, left = asyncio.ensure_future(_whole(_parts(wanted), head)), asyncio.ensure_future(_left(request))
        await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        return JSONResponse(await whole) if whole.done() or not whole.cancel() else Response(status_code=499)

    routes = [Route("/v1/models", models), Route("/v1/chat/completions", completions, methods=["POST"])]
    # Another site that a browser has open may not ask under a name of its own.
    own = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=routes, middleware=[own], exception_handlers={HTTPException: _refused, Exception: _failed})


async def _body(request: Request) -> bytes:
    """What was sent, as far as it may be. Raises HTTPException for more, and for what a web page may send unasked."""
    if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        raise HTTPException(403, "asked by a page of another site")
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > LONGEST_BODY:
            raise HTTPException(413, f"a request has at most {LONGEST_BODY:,} bytes")
    return b"".join(parts)


async def _left(request: Request) -> None:
    """Ends when nobody waits for the answer any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> Response:
    """An error as OpenAI's servers tell it."""
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = "model_not_found" if error.status_code == 404 and "model" in error.detail else None
    told = {"message": error.detail, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": told}, status_code=error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return await _refused(request, HTTPException(500, type(error).__name__))


def _in_words(messages: Any) -> Any:
    """The messages, a content in parts as the text of these. Raises DataError for parts that are no words."""
    if not isinstance(messages, list):
        return messages
    return [
        one | {"content": content_text(one["content"])}
        if isinstance(one, dict) and isinstance(one.get("content"), list)
        else one
        for one in messages
    ]


def _wanted(body: dict[str, Any], opened: dict[str, Opened]) -> list[WantedReply]:
    """The replies that a request asks for. Raises HTTPException that says all that is wrong with it."""
    name = body.get("model")
    if not isinstance(name, str) or name not in opened:
        asked = "the request names no model" if name is None else f"no model {str(name)[:80]!r}"
        raise HTTPException(404, f"{asked}; there are: {', '.join(opened)}")
    messages: Any = body.get("messages")
    try:
        messages = _in_words(messages)
        problems = check_messages(messages, "messages", ends_with="user")
    except DataError as error:
        problems = [f"messages: {error.problems[0]}"]
    problems += [
        f"{key}: not supported here"
        for key, value in body.items()
        if key not in _IGNORED and value is not None and value not in _OFF.get(key, ())
    ]
    if not isinstance(body.get("stream_options") or {}, dict):
        problems.append('stream_options: an object, {"include_usage": true}')
    count = 1 if body.get("n") is None else body["n"]
    if type(count) is not int or not 1 <= count <= MOST_CHOICES:
        problems.append(f"n: a whole number from 1 to {MOST_CHOICES}")
    given = {own: body[key] for key, own in _DECODING.items() if body.get(key) is not None}
    stop = body.get("stop")
    given |= {"stop": [stop] if isinstance(stop, str) else stop} if stop else {}
    if given.get("temperature"):
        given["strategy"] = "sample"
    else:
        given.pop("temperature", None)
    try:
        decoding = Decoding.model_validate(given)
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    if problems:
        raise HTTPException(400, "; ".join(problems))
    model, chat, _ = opened[name]
    try:
        prompt = chat.encode_prompt(messages)
        refuse(beyond(limits_of(model), "messages", [prompt], decoding.max_new_tokens))
    except UserError as error:
        raise HTTPException(400, "; ".join(error.problems)) from None
    told: tuple[Any, ...] = (asyncio.Queue(), asyncio.get_running_loop())
    return [WantedReply(name, prompt, decoding, choice, *told) for choice in range(count)]


async def _parts(wanted: Sequence[WantedReply]) -> AsyncIterator[ReplyPiece]:
    """The pieces of all replies as they come, to the last of each, or to the first that fails."""
    left = len(wanted)
    try:
        while left:
            part = await wanted[0].parts.get()
            yield part
            left = 0 if part.failure else left - bool(part.reply)
    finally:
        for one in wanted:
            one.gone = True


async def _whole(parts: AsyncIterator[ReplyPiece], head: dict[str, Any]) -> dict[str, Any]:
    replies: dict[int, Reply] = {}
    async for part in parts:
        if part.failure:
            raise HTTPException(500, part.failure)
        if part.reply:
            replies[part.choice] = part.reply
    choices = [
        {"index": at, "message": {"role": "assistant", "content": one.text}, "finish_reason": one.finish_reason}
        for at, one in sorted(replies.items())
    ]
    return {**head, "object": "chat.completion", "choices": choices, "usage": _usage(list(replies.values()))}


async def _streamed(
    parts: AsyncIterator[ReplyPiece], count: int, head: dict[str, Any], usage: bool
) -> AsyncIterator[str]:
    """The replies piece by piece, as server-sent events."""
    replies: list[Reply] = []

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def choice(at: int, delta: dict[str, str], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": at, "delta": delta, "finish_reason": finish}]

    for at in range(count):
        yield event(choice(at, {"role": "assistant", "content": ""}))
    async for part in parts:
        if part.text:
            yield event(choice(part.choice, {"content": part.text}))
        if part.failure:
            yield f"data: {json.dumps({'error': {'message': part.failure, 'type': 'server_error'}})}\n\n"
            return
        if part.reply:
            replies.append(part.reply)
            yield event(choice(part.choice, {}, part.reply.finish_reason))
    if usage:
        yield event([], usage=_usage(replies))
    yield "data: [DONE]\n\n"


def _usage(replies: Sequence[Reply]) -> dict[str, int]:
    read, written = replies[0].prompt_tokens, sum(one.new_tokens for one in replies)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Waiting:
    """Requests that wait for their answers, in the order in which they came."""

    def __init__(self, queue: SimpleQueue[WantedReply | None]) -> None:
        self.queue = queue
        self.pending: list[WantedReply] = []
        self.ended = False

    def look(self, wait: bool) -> None:
        """Take what has come, and `wait` for something where nothing has; None among it ends all."""
        while not self.ended and (wait or not self.queue.empty()):
            one = self.queue.get()
            wait, self.ended = False, one is None
            if one is not None:
                self.pending.append(one)
        self.pending = [one for one in self.pending if not one.gone]

    def like(self, first: WantedReply) -> list[WantedReply]:
        """Take out those that can be answered in one batch with the first."""
        found = [one for one in self.pending if one.kind == first.kind]
        self.pending = [one for one in self.pending if one.kind != first.kind]
        return found


def _answer_all(queue: SimpleQueue[WantedReply | None], opened: dict[str, Opened]) -> None:
    """Answer what waits, together what can be, until None comes."""
    waiting = Waiting(queue)
    while not waiting.ended:
        waiting.look(wait=not waiting.pending)
        if waiting.pending:
            first = waiting.pending[0]
            _answer(waiting.like(first), opened[first.name], waiting)


def _answer(asked: list[WantedReply], opened: Opened, waiting: Waiting) -> None:
    """Answer these, and those like them that come meanwhile, as long as nobody else waits."""
    first = asked[0]
    held = max(map(len, first.decoding.stop), default=0)

    def on_tokens(index: int, tokens: list[int]) -> bool:
        # What may yet be the beginning of a stop string is not told.
        text = text_so_far(opened.chat, tokens, held)
        if len(text) > len(asked[index].told):
            asked[index].tell(text)
        return asked[index].gone

    def more() -> list[tuple[list[int], str]]:
        waiting.look(wait=False)
        new = waiting.like(first) if all(one.kind == first.kind for one in waiting.pending) else []
        asked.extend(new)
        return [(one.prompt, one.key) for one in new]

    try:
        decode(
            opened.model,
            opened.chat,
            [one.prompt for one in asked],
            [one.key for one in asked],
            first.decoding,
            lambda index, reply: asked[index].tell(reply.text, reply),
            on_tokens=on_tokens,
            batch_of=opened.batch_of,
            more=more,
        )
    except Exception as error:  # one batch that fails does not end the server
        for one in asked:
            one.tell(one.told, failure=f"{type(error).__name__}: {error}")
