"""The annotation page: who may enter, what they see, and what they save.

Everything but the door (`/enter/TOKEN`, `/welcome`) and the static files wants the cookie of a valid personal link, and
every change a token against cross-site requests as well. Run and model appear nowhere; tasks have random ids. Whatever
is asked, the answer carries the headers of security, and a refusal says in the reader's language what is wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import math
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlift.annotation import database as db
from xlift.annotation.words import FOLDER, TEXTS, direction, guidelines, spoken
from xlift.languages import get_language, known_code

COOKIE = "xlift_annotator"
NAMES_KEPT = 10_000
"""Addresses of which wrong tokens are remembered."""
MAX_BODY = 64 * 1024
MAX_COMMENT = 5_000
MAX_REASON = 500
MAX_SECONDS = 600.0
"""More than this between two clicks is a break, not work."""
WRONG_ALLOWED = 10
WRONG_WINDOW = 60.0

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Handler = Callable[[Request, Any, bytes], Awaitable[Response]]

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


log = logging.getLogger("xlift.annotation")


class Door:
    """Counts wrong tokens by address; after ten in a minute, more of them are told to wait.

    A valid token is never counted and never told to wait, so that no stranger locks anybody out, whatever address they
    share.
    """

    def __init__(self) -> None:
        self.wrong: dict[str, deque[float]] = {}

    def knock(self, address: str) -> bool:
        """Count a wrong token; whether it was one too many."""
        if len(self.wrong) > NAMES_KEPT:
            self.wrong.clear()
        times, now = self.wrong.setdefault(address, deque(maxlen=WRONG_ALLOWED + 1)), time.monotonic()
        times.append(now)
        return len(times) > WRONG_ALLOWED and now - times[0] < WRONG_WINDOW


def build_app(database: db.Database, address: str = "http://127.0.0.1") -> Starlette:
    """The page as an ASGI application, reached under `address`; by https, cookies are for https alone.

    Any other name in a request's Host is refused, addresses in numbers apart: those no foreign site can point here.
    """
    routes = [
        Route("/enter/{token}", _enter),
        Route("/welcome", _welcome),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
        Route("/", _guarded(_start), methods=["GET"]),
        Route("/overview", _guarded(_overview), methods=["GET"]),
        Route("/guidelines", _guarded(_guidelines), methods=["GET"]),
        Route("/interface", _guarded(_interface), methods=["POST"]),
        Route("/task/{task}", _guarded(_task), methods=["GET"]),
        Route("/task/{task}", _guarded(_save), methods=["POST"]),
        Route("/task/{task}/skip", _guarded(_skip), methods=["POST"]),
        Route("/{path:path}", _guarded(_missing), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _no_route, ClientDisconnect: _cut_off, Exception: _failed}
    app = Starlette(routes=routes, middleware=[Middleware(_shielded)], exception_handlers=handlers)
    app.state.database, app.state.secure, app.state.door = database, address.startswith("https:"), Door()
    app.state.names = {"localhost", socket.gethostname().lower(), urlsplit(address).hostname}
    return app


def _shielded(app: ASGIApp) -> ASGIApp:
    """Every answer with the headers of security; requests for other names than ours are refused."""

    async def shielded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http" and not _is_ours(Headers(scope=scope).get("host", ""), scope["app"].state.names):
            await _refusal(Request(scope), "wrong_address", 421)(scope, receive, send_with_headers)
        else:
            await app(scope, receive, send_with_headers)

    return shielded


def _is_ours(host: str, names: set[str | None]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return _refusal(request, "missing", 404)
    answer = _refusal(request, "not_readable", error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _cut_off(request: Request, error: Exception) -> Response:
    log.debug("a request was cut off")
    return _refusal(request, "not_readable", 400)  # which nobody reads


async def _failed(request: Request, error: Exception) -> Response:
    answer = _refusal(request, "failed", 500)
    answer.headers.update(HEADERS)  # this one is made outside of what adds them
    return answer


def _guarded(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A handler that only an annotator reaches; changes only with the annotator's token against forgery."""

    async def guarded(request: Request) -> Response:
        token = request.cookies.get(COOKIE, "")
        annotator, refused = await _admit(request, token)
        if annotator is None:
            return refused
        request.state.interface = _interface_of(annotator)
        body = b""
        if request.method not in {"GET", "HEAD"}:
            read = await _bounded_body(request)
            if read is None:
                return _refusal(request, "too_large", 413)
            form = {} if "x-csrf-token" in request.headers else _form(read)
            if form is None:
                return _refusal(request, "not_readable", 422)
            sent = request.headers.get("x-csrf-token") or form.get("csrf", "")
            if not hmac.compare_digest(sent.encode("utf-8", "replace"), csrf_of(token).encode()):
                return _refusal(request, "forged", 403)
            body = read
        return await handler(request, annotator, body)

    return guarded


async def _admit(request: Request, token: str) -> tuple[Any, Response]:
    """The annotator with this token; None and the same refusal for a missing, a wrong, an ended and a withdrawn one."""
    refused = _message(request, "no_access", "no_access_text", 403)
    if not token:
        return None, refused
    annotator = await run_in_threadpool(_find_annotator, request.app.state.database, token)
    if annotator is None and request.app.state.door.knock(request.client.host if request.client else ""):
        return None, _message(request, "too_many", "", 429)
    return annotator, refused


def _find_annotator(database: db.Database, token: str) -> Any:
    with database.read.begin() as connection:
        return db.annotator_of(connection, token)


async def _bounded_body(request: Request) -> bytes | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return body


def _form(body: bytes) -> dict[str, str] | None:
    """The fields of a form, None where it is none of this page's."""
    if len(body) > 4096:
        return None
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=20)
    except ValueError:
        return None
    return {name: values[0] for name, values in fields.items()}


def csrf_of(token: str) -> str:
    """What a change must carry: derived from the secret token, so that nobody else can make it."""
    return hmac.new(token.encode("utf-8", "replace"), b"csrf", hashlib.sha256).hexdigest()


async def _enter(request: Request) -> Response:
    token = request.path_params["token"]
    annotator, refused = await _admit(request, token)
    if annotator is None:
        return refused
    # Not to "/" at once: a strict cookie is not sent along where the visit began on another site, such as a mailbox.
    response = RedirectResponse("/welcome", 303)
    secure = request.app.state.secure or request.url.scheme == "https"
    age = _seconds_left(annotator)
    response.set_cookie(COOKIE, token, max_age=age, httponly=True, samesite="strict", secure=secure)
    return response


def _seconds_left(annotator: Any) -> int:
    if annotator.expires is None:
        return db.DAYS * 24 * 3600
    left = datetime.fromisoformat(annotator.expires) - datetime.now(timezone.utc)
    return max(0, int(left.total_seconds()))


async def _welcome(request: Request) -> Response:
    return _message(request, "welcome", "", 200, onward=True)


def _message(request: Request, title: str, text: str, code: int, onward: bool = False) -> Response:
    """A page of a few words: in the annotator's language; for strangers in their browser's languages and English."""
    known = getattr(request.state, "interface", None)
    asked = [known] if known else _asked_languages(request)
    languages = asked[:1] if known or onward else dict.fromkeys([*asked, "en"])
    said = [(lang, direction(lang), TEXTS[lang][title], TEXTS[lang].get(text, "")) for lang in languages]
    return HTMLResponse(TEMPLATES.get_template("message.html").render(said=said, onward=onward), code)


# e.g. "de-CH, ar;q=0.8" → ["de", "ar"]
def _asked_languages(request: Request) -> list[str]:
    """Languages of the page that the browser asks for, the first first; English where it speaks none of them."""
    asked = [part.split(";")[0].strip() for part in request.headers.get("accept-language", "en")[:200].split(",")]
    return [code for code in map(known_code, asked) if code in TEXTS] or ["en"]


def _refusal(request: Request, title: str, code: int, detail: str = "") -> Response:
    """What is wrong, in words: a page, or JSON where JSON was sent."""
    if not _is_json(request):
        return _message(request, title, "", code)
    language = getattr(request.state, "interface", None) or _asked_languages(request)[0]
    return JSONResponse({"error": TEXTS[language][title]} | ({"detail": detail} if detail else {}), code)


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/json")


def _interface_of(annotator: Any) -> str:
    return spoken(annotator.interface)


async def _start(request: Request, annotator: Any, body: bytes) -> Response:
    task = await run_in_threadpool(_next_task, request.app.state.database, annotator.id)
    return RedirectResponse(f"/task/{task}" if task else "/overview", 303)


def _next_task(database: db.Database, annotator: int) -> str | None:
    with database.read.begin() as connection:
        return db.next_task(connection, annotator)


async def _task(request: Request, annotator: Any, body: bytes) -> Response:
    found = await run_in_threadpool(_open_task, request.app.state.database, annotator.id, request.path_params["task"])
    if found is None:
        return await _missing(request, annotator, body)
    assignment, rows, own = found
    ids = [one.task for one in own]
    at = ids.index(assignment.task)
    shown = json.loads(assignment.shown)
    context = {
        "task": assignment.task,
        "turns": shown["messages"],
        "response": shown["text"],
        "language": _language(assignment.language),
        "reply_language": _language(assignment.reply_language),
        "values": db.last_values(rows),
        "facets": db.ASKED_FACETS,
        "number": at + 1,
        "previous": ids[at - 1] if at else None,
    }
    return _page(request, "task.html", annotator, own, **context)


def _open_task(database: db.Database, annotator: int, task: str) -> tuple[Any, list[Any], list[Any]] | None:
    with database.write.begin() as connection:
        assignment = db.assigned(connection, annotator, task)
        if assignment is None:
            return None
        db.mark_opened(connection, annotator, task)
        return assignment, db.judged(connection, annotator, task), db.own_tasks(connection, annotator)


def _language(code: str) -> dict[str, str]:
    known = get_language(code)
    return {"code": code.replace("_", "-"), "name": known.native_name, "direction": direction(code)}


async def _overview(request: Request, annotator: Any, body: bytes) -> Response:
    own = await run_in_threadpool(_own_tasks, request.app.state.database, annotator.id)
    return _page(request, "overview.html", annotator, own, task="", states=[(one.task, _state(one)) for one in own])


def _own_tasks(database: db.Database, annotator: int) -> list[Any]:
    with database.read.begin() as connection:
        return db.own_tasks(connection, annotator)


def _state(assignment: Any) -> str:
    if assignment.done:
        return "done"
    return "skipped" if assignment.skips else "begun" if assignment.opened else "open"


async def _guidelines(request: Request, annotator: Any, body: bytes) -> Response:
    own = await run_in_threadpool(_own_tasks, request.app.state.database, annotator.id)
    return _page(request, "guidelines.html", annotator, own, task="")


def _page(request: Request, name: str, annotator: Any, own: list[Any], **context: Any) -> Response:
    interface = _interface_of(annotator)
    known = {
        "texts": TEXTS[interface],
        "reasons": [(TEXTS["en"]["reasons"][code], text) for code, text in TEXTS[interface]["reasons"].items()],
        "interfaces": {code: texts["name"] for code, texts in TEXTS.items()},
        "interface": interface,
        "direction": direction(interface),
        "guidelines": guidelines(interface)[0],
        "annotator": annotator.name,
        "csrf": csrf_of(request.cookies[COOKIE]),
        "done": sum(one.done for one in own),
        "total": len(own),
    }
    return HTMLResponse(_sendable(TEMPLATES.get_template(name).render(**known, **context)))


def _sendable(text: str) -> str:
    """Lone surrogates, which no page can carry, as the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


async def _save(request: Request, annotator: Any, body: bytes) -> Response:
    if not _is_json(request):
        return _refusal(request, "not_readable", 415)
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return _refusal(request, "not_readable", 422)
    wrong = _wrong_judgement(sent)
    if wrong:
        return _refusal(request, "not_a_rating", 422, wrong)
    answer = await run_in_threadpool(
        _save_judgement, request.app.state.database, annotator, request.path_params["task"], sent
    )
    return JSONResponse(answer) if answer else _refusal(request, "missing", 404)


def _wrong_judgement(sent: Any) -> str | None:
    """What is wrong with {"field", "value", "seconds", "click"}; None where nothing is."""
    if not isinstance(sent, dict) or sent.keys() - {"field", "value", "seconds", "click"} or "value" not in sent:
        return "expected field, value, seconds and click"
    field, value, seconds = sent.get("field"), sent["value"], sent.get("seconds", 0)
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        return "seconds must be a number"
    click = sent.get("click", "-")
    if not isinstance(click, str) or not re.fullmatch(r"[\w-]{1,64}", click, re.ASCII):
        return "click must be a name of up to 64 letters, digits and hyphens"
    cannot = isinstance(value, dict) and value.keys() == {"cannot"} and isinstance(value["cannot"], str)
    if cannot and len(value["cannot"]) > MAX_REASON:
        return "the reason is too long"
    fits = {
        **dict.fromkeys(db.ASKED_FACETS, value is None or cannot or (type(value) is int and value in (0, 1, 2))),
        db.WHOLE: value is None or cannot,
        "senseless": isinstance(value, bool),
        "comment": isinstance(value, str) and len(value) <= MAX_COMMENT,
    }
    if not isinstance(field, str) or field not in fits:
        return f"unknown field; choices: {', '.join(fits)}"
    return None if fits[field] else f"not a value of {field}"


def _save_judgement(database: db.Database, annotator: Any, task: str, sent: dict[str, Any]) -> dict[str, Any] | None:
    signed = guidelines(_interface_of(annotator))[1]
    seconds = float(min(sent.get("seconds", 0), MAX_SECONDS))
    with database.write.begin() as connection:
        if db.assigned(connection, annotator.id, task) is None:
            return None
        done = db.save(connection, annotator, task, sent["field"], sent["value"], seconds, signed, sent.get("click"))
        own = db.own_tasks(connection, annotator.id)
    return {"complete": done, "done": sum(one.done for one in own), "total": len(own)}


async def _skip(request: Request, annotator: Any, body: bytes) -> Response:
    task = request.path_params["task"]
    if not await run_in_threadpool(_skip_task, request.app.state.database, annotator.id, task):
        return await _missing(request, annotator, body)
    return RedirectResponse("/", 303)


def _skip_task(database: db.Database, annotator: int, task: str) -> bool:
    with database.write.begin() as connection:
        if db.assigned(connection, annotator, task) is None:
            return False
        db.skip(connection, annotator, task)
        return True


async def _interface(request: Request, annotator: Any, body: bytes) -> Response:
    form = _form(body) or {}
    if form.get("interface") not in TEXTS:
        return _refusal(request, "not_readable", 422, f"choices: {', '.join(TEXTS)}")
    await run_in_threadpool(_set_interface, request.app.state.database, annotator.id, form["interface"])
    task = form.get("task", "")
    return RedirectResponse(f"/task/{task}" if db.is_task(task) else "/overview", 303)


def _set_interface(database: db.Database, annotator: int, interface: str) -> None:
    with database.write.begin() as connection:
        db.set_interface(connection, annotator, interface)


async def _missing(request: Request, annotator: Any, body: bytes) -> Response:
    return _refusal(request, "missing", 404)
