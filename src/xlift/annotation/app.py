"""The annotation page: who may enter, what they see, and what they save.

Everything but the door (`/enter/TOKEN`, `/welcome`) and the static files wants the cookie of a valid personal link, and
every change a token against cross-site requests as well. Run and model appear nowhere; tasks have random ids.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from xlift.annotation import database as db
from xlift.languages import get_language, known_code
from xlift.records import fingerprint

FOLDER = Path(__file__).parent
COOKIE = "xlift_annotator"
COOKIE_SECONDS = 90 * 24 * 3600
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

TEXTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Door:
    """Counts wrong tokens by address: after ten in a minute, nobody new gets in from there until the minute is over.

    Whoever has been let in before is let through, so that a stranger cannot lock out a whole office.
    """

    def __init__(self) -> None:
        self.wrong: dict[str, deque[float]] = {}
        self.known: set[str] = set()

    def closed(self, address: str, token: str) -> bool:
        if db.hash_of(token) in self.known:
            return False
        times = self.wrong.get(address, deque())
        while times and time.monotonic() - times[0] > WRONG_WINDOW:
            times.popleft()
        return len(times) >= WRONG_ALLOWED

    def count(self, address: str, token: str, valid: bool) -> None:
        if valid:
            self.known.add(db.hash_of(token))
            return
        if len(self.wrong) > 10_000:
            self.wrong.clear()
        self.wrong.setdefault(address, deque()).append(time.monotonic())


def build_app(database: db.Database, secure: bool = False) -> Starlette:
    """The page as an ASGI application; `secure` where it is reached by https."""
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
    app = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=_with_headers)])
    app.state.database, app.state.secure, app.state.door = database, secure, Door()
    return app


async def _with_headers(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await proceed(request)
    response.headers.update(HEADERS)
    return response


def _guarded(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A handler that only an annotator reaches; changes only with the annotator's token against forgery."""

    async def guarded(request: Request) -> Response:
        token = request.cookies.get(COOKIE, "")
        annotator, refused = await _admit(request, token)
        if annotator is None:
            return refused
        body = b""
        if request.method not in {"GET", "HEAD"}:
            read = await _bounded_body(request)
            if read is None:
                return JSONResponse({"error": "too large"}, 413)
            sent = request.headers.get("x-csrf-token") or _form(read).get("csrf", "")
            if not hmac.compare_digest(sent.encode("utf-8", "replace"), csrf_of(token).encode()):
                return JSONResponse({"error": "this request did not come from the page; reload it"}, 403)
            body = read
        return await handler(request, annotator, body)

    return guarded


async def _admit(request: Request, token: str) -> tuple[Any, Response]:
    """The annotator with this token; None and the same refusal for a missing, a wrong and a withdrawn one."""
    door, address = request.app.state.door, request.client.host if request.client else ""
    if token and door.closed(address, token):
        return None, _message(request, "too_many", "", 429)
    annotator = await run_in_threadpool(_find_annotator, request.app.state.database, token) if token else None
    if token:
        door.count(address, token, annotator is not None)
    return annotator, _message(request, "no_access", "no_access_text", 403)


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


def _form(body: bytes) -> dict[str, str]:
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=20) if len(body) < 4096 else {}
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
    response.set_cookie(
        COOKIE, token, max_age=COOKIE_SECONDS, httponly=True, samesite="strict", secure=request.app.state.secure
    )
    return response


async def _welcome(request: Request) -> Response:
    return _message(request, "welcome", "", 200, onward=True)


def _message(request: Request, title: str, text: str, code: int, onward: bool = False) -> Response:
    """A page for whoever is not known (yet): the same words in every interface language."""
    asked = known_code(request.headers.get("accept-language", "en")[:35].split(",")[0])
    first = [asked] if asked in TEXTS else ["en"]
    said = [(code, TEXTS[code][title], TEXTS[code].get(text, "")) for code in dict.fromkeys([*first, *TEXTS])]
    page = TEMPLATES.get_template("message.html").render(said=said[:1] if onward else said, onward=onward)
    return HTMLResponse(page, code)


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
        "facets": db.FACETS,
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
    direction = "rtl" if known.right_to_left else "ltr"
    return {"code": code.replace("_", "-"), "name": known.native_name, "direction": direction}


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
    interface = annotator.interface if annotator.interface in TEXTS else "en"
    known = {
        "texts": TEXTS[interface],
        "reasons": [(TEXTS["en"]["reasons"][code], text) for code, text in TEXTS[interface]["reasons"].items()],
        "interfaces": {code: texts["name"] for code, texts in TEXTS.items()},
        "interface": interface,
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


@cache
def guidelines(interface: str) -> tuple[Markup, str]:
    """The guidelines in a language of the page, as HTML, and the hash of their text that ratings are signed with."""
    text = (FOLDER / f"guidelines.{interface}.md").read_text(encoding="utf-8")
    markdown = MarkdownIt("commonmark", {"html": False})
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"  # below the page's own title
    return Markup(markdown.renderer.render(tokens, markdown.options, {})), fingerprint(text, length=8)


async def _save(request: Request, annotator: Any, body: bytes) -> Response:
    if not request.headers.get("content-type", "").startswith("application/json"):
        return JSONResponse({"error": "expected JSON"}, 415)
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return JSONResponse({"error": "not JSON"}, 422)
    wrong = _wrong_judgement(sent)
    if wrong:
        return JSONResponse({"error": wrong}, 422)
    answer = await run_in_threadpool(
        _save_judgement, request.app.state.database, annotator, request.path_params["task"], sent
    )
    return JSONResponse(answer) if answer else JSONResponse({"error": "no such response"}, 404)


def _wrong_judgement(sent: Any) -> str | None:
    """What is wrong with {"field", "value", "seconds"}; None where nothing is."""
    if not isinstance(sent, dict) or sent.keys() - {"field", "value", "seconds"} or "value" not in sent:
        return "expected field, value and seconds"
    field, value, seconds = sent.get("field"), sent["value"], sent.get("seconds", 0)
    if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds < 0:
        return "seconds must be a number"
    cannot = isinstance(value, dict) and value.keys() == {"cannot"} and isinstance(value["cannot"], str)
    if cannot and len(value["cannot"]) > MAX_REASON:
        return "the reason is too long"
    fits = {
        **dict.fromkeys(db.FACETS, value is None or cannot or (type(value) is int and value in (0, 1, 2))),
        db.WHOLE: value is None or cannot,
        "senseless": isinstance(value, bool),
        "comment": isinstance(value, str) and len(value) <= MAX_COMMENT,
    }
    if not isinstance(field, str) or field not in fits:
        return f"unknown field; choices: {', '.join(fits)}"
    return None if fits[field] else f"not a value of {field}"


def _save_judgement(database: db.Database, annotator: Any, task: str, sent: dict[str, Any]) -> dict[str, Any] | None:
    signed = guidelines(annotator.interface)[1]
    seconds = min(float(sent.get("seconds", 0)), MAX_SECONDS)
    with database.write.begin() as connection:
        if db.assigned(connection, annotator.id, task) is None:
            return None
        done = db.save(connection, annotator, task, sent["field"], sent["value"], seconds, signed)
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
    form = _form(body)
    if form.get("interface") not in TEXTS:
        return JSONResponse({"error": f"choices: {', '.join(TEXTS)}"}, 422)
    await run_in_threadpool(_set_interface, request.app.state.database, annotator.id, form["interface"])
    task = form.get("task", "")
    return RedirectResponse(f"/task/{task}" if task.isalnum() else "/overview", 303)


def _set_interface(database: db.Database, annotator: int, interface: str) -> None:
    with database.write.begin() as connection:
        db.set_interface(connection, annotator, interface)


async def _missing(request: Request, annotator: Any, body: bytes) -> Response:
    return _message(request, "missing", "", 404)
