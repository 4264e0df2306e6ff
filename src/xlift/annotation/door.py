"""The door of the annotation page: who may enter, what a change must carry, and how a refusal is told.

Whatever is asked, the answer carries the headers of security; a refusal says what is wrong in the reader's language.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlift.annotation import database as db
from xlift.annotation.words import FOLDER, TEXTS, direction, spoken
from xlift.languages import known_code

ANNOTATOR_COOKIE = "xlift_annotator"
NAMES_KEPT = 10_000
"""Addresses of which wrong tokens are remembered."""
MAX_BODY = 64 * 1024
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

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


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


def shielded_app(app: ASGIApp) -> ASGIApp:
    """Every answer with the headers of security; requests for other names than ours are refused."""

    async def shielded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http" and not _is_ours(Headers(scope=scope).get("host", ""), scope["app"].state.names):
            await refusal(Request(scope), "wrong_address", 421)(scope, receive, send_with_headers)
        else:
            await app(scope, receive, send_with_headers)

    return shielded


def _is_ours(host: str, names: set[str | None]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def guarded_by_link(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A handler that only an annotator reaches; changes only with the annotator's token against forgery."""

    async def guarded(request: Request) -> Response:
        token = request.cookies.get(ANNOTATOR_COOKIE, "")
        annotator, refused = await admit(request, token)
        if annotator is None:
            return refused
        request.state.interface = interface_of(annotator)
        body, wrong = await own_body(request, token)
        if wrong is not None:
            return wrong
        if await run_in_threadpool(_is_paused, request.app.state.database):
            return refusal(request, "paused", 503)
        return await handler(request, annotator, body)

    return guarded


async def own_body(request: Request, token: str) -> tuple[bytes, Response | None]:
    """The body of a change, bounded and made by our own page; or why it is refused. Empty where nothing is changed."""
    if request.method in {"GET", "HEAD"}:
        return b"", None
    read = await _bounded_body(request)
    if read is None:
        return b"", refusal(request, "too_large", 413)
    form = {} if "x-csrf-token" in request.headers else form_of(read)
    if form is None:
        return b"", refusal(request, "not_readable", 422)
    sent = request.headers.get("x-csrf-token") or form.get("csrf", "")
    if not hmac.compare_digest(sent.encode("utf-8", "replace"), csrf_of(token).encode()):
        return b"", refusal(request, "forged", 403)
    return read, None


def _is_paused(database: db.Database) -> bool:
    with database.read.begin() as connection:
        return bool(db.read_setting(connection, "paused"))


async def admit(request: Request, token: str) -> tuple[Any, Response]:
    """The annotator with this token; None and the same refusal for a missing, a wrong, an ended and a withdrawn one."""
    refused = message(request, "no_access", "no_access_text", 403)
    if not token:
        return None, refused
    annotator = await run_in_threadpool(_find_annotator, request.app.state.database, token)
    if annotator is None and request.app.state.door.knock(request.client.host if request.client else ""):
        return None, message(request, "too_many", "", 429)
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


def form_of(body: bytes) -> dict[str, str] | None:
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


def let_in(request: Request, to: str, cookie: str, token: str, expires: str | None) -> Response:
    """Whoever holds a valid link goes on to a page of ours, with the link's token in a cookie that ends with it."""
    # Not to what is protected at once: a strict cookie is not sent along where the visit began on another site, such as
    # a mailbox.
    response = RedirectResponse(to, 303)
    secure = request.app.state.secure or request.url.scheme == "https"
    response.set_cookie(cookie, token, max_age=_left(expires), httponly=True, samesite="strict", secure=secure)
    return response


def _left(expires: str | None) -> int:
    """Seconds until a link ends."""
    if expires is None:
        return db.DAYS * 24 * 3600
    left = datetime.fromisoformat(expires) - datetime.now(timezone.utc)
    return max(0, int(left.total_seconds()))


def message(request: Request, title: str, text: str, code: int, onward: str = "") -> Response:
    """A page of a few words: in the annotator's language; for strangers in their browser's languages and English."""
    known = getattr(request.state, "interface", None)
    asked = [known] if known else asked_languages(request)
    languages = asked[:1] if known or onward else dict.fromkeys([*asked, "en"])
    said = [(lang, direction(lang), TEXTS[lang][title], TEXTS[lang].get(text, "")) for lang in languages]
    return HTMLResponse(PAGES.get_template("message.html").render(said=said, onward=onward), code)


# e.g. "de-CH, ar;q=0.8" → ["de", "ar"]
def asked_languages(request: Request) -> list[str]:
    """Languages of the page that the browser asks for, the first first; English where it speaks none of them."""
    asked = [part.split(";")[0].strip() for part in request.headers.get("accept-language", "en")[:200].split(",")]
    return [code for code in map(known_code, asked) if code in TEXTS] or ["en"]


def refusal(request: Request, title: str, code: int, detail: str = "") -> Response:
    """What is wrong, in words: a page, or JSON where JSON was sent."""
    if not is_json(request):
        return message(request, title, "", code)
    language = getattr(request.state, "interface", None) or asked_languages(request)[0]
    return JSONResponse({"error": TEXTS[language][title]} | ({"detail": detail} if detail else {}), code)


def is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/json")


def interface_of(annotator: Any) -> str:
    return spoken(annotator.interface)
