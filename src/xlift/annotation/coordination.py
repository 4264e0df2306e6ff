"""The coordinator's page, behind a link of its own: how far everybody is, who deviates, and what can be done about it.

The link is no annotator's: it opens nothing else, and an annotator's opens nothing of this.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from xlift.analysis.agreement import agreement_tables
from xlift.annotation import database as db
from xlift.annotation import people, transfer
from xlift.annotation.door import PAGES, Handler, csrf_of, form_of, let_in, message, own_body, refusal
from xlift.annotation.rendering import sendable
from xlift.errors import UserError
from xlift.languages import find_language, language_code, language_problem
from xlift.workspace import now

COORDINATOR_COOKIE = "xlift_coordinator"
RESAMPLES = 200
"""Fewer than in a report: the page is opened often, and its intervals are to show who stands out."""


def routes() -> list[Route]:
    return [
        Route("/coordinate/{token}", _enter),
        Route("/coordination/welcome", _welcome),
        Route("/coordination", _guarded(_page), methods=["GET"]),
        Route("/coordination/{action}", _guarded(_act), methods=["POST"]),
    ]


def _coordinator(database: db.Database, token: str) -> dict[str, str] | None:
    """What is known of the coordinator's link where this is its token, and it has not ended."""
    with database.read.begin() as connection:
        known = db.read_setting(connection, "coordinator")
    if known is None or not hmac.compare_digest(known["token"], db.hash_of(token)) or now() >= known["expires"]:
        return None
    return dict(known)


async def _admit(request: Request, token: str) -> tuple[dict[str, str] | None, Response]:
    """The coordinator; None and the same refusal that annotators without a link are given."""
    refused = message(request, "no_access", "no_access_text", 403)
    if not token:
        return None, refused
    known = await run_in_threadpool(_coordinator, request.app.state.database, token)
    if known is None and request.app.state.door.knock(request.client.host if request.client else ""):
        return None, message(request, "too_many", "", 429)
    return known, refused


async def _enter(request: Request) -> Response:
    token = request.path_params["token"]
    known, refused = await _admit(request, token)
    if known is None:
        return refused
    return let_in(request, "/coordination/welcome", COORDINATOR_COOKIE, token, known["expires"])


async def _welcome(request: Request) -> Response:
    return message(request, "welcome", "", 200, onward="/coordination")


def _guarded(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A handler that only the coordinator reaches; changes only with the token against forgery."""

    async def guarded(request: Request) -> Response:
        token = request.cookies.get(COORDINATOR_COOKIE, "")
        known, refused = await _admit(request, token)
        if known is None:
            return refused
        request.state.interface = "en"
        body, wrong = await own_body(request, token)
        return wrong if wrong is not None else await handler(request, token, body)

    return guarded


async def _page(request: Request, token: str, body: bytes, problem: str = "") -> Response:
    context = await run_in_threadpool(_read, request.app.state.database)
    page = PAGES.get_template("coordination.html").render(**context, csrf=csrf_of(token), problem=problem)
    return HTMLResponse(sendable(page), 422 if problem else 200)


def _read(database: db.Database) -> dict[str, Any]:
    with database.read.begin() as connection:
        ratings = [one for one in transfer.rating_records(connection) if "other" not in one]
        found = agreement_tables([one for one in ratings if one["facet"] in db.ASKED_FACETS], resamples=RESAMPLES)
        together = [row for row in found["agreement"] if row["between"] == "people"]
        names = sorted({row[0] for row in people.pace_rows(connection)})
        return {
            "paused": bool(db.read_setting(connection, "paused")),
            "names": names,
            "tables": [
                (
                    "Progress",
                    ["annotator", "language", "rated", "skipped", "of", "link"],
                    people.progress_rows(connection),
                ),
                ("Pace", ["annotator", "seconds each", "completion code"], people.pace_rows(connection)),
                ("Practice", ["annotator", "done", "as expected", "goes on"], people.practice_rows(connection)),
                ("Controls", ["annotator", "facet", "as expected", "of"], people.control_rows(connection)),
                ("Agreement so far", ["facet", "language", "first", "second", "items", "alpha"], _agreement(together)),
                ("Who deviates", ["facet", "language", "annotator", "items", "deviates"], _deviating(found["people"])),
            ],
        }


def _agreement(rows: list[dict[str, Any]]) -> list[list[str]]:
    keys = ("facet", "language", "first", "second", "items")
    return [[*(str(row[key]) for key in keys), "–" if row["alpha"] is None else f"{row['alpha']:.2f}"] for row in rows]


def _deviating(rows: list[dict[str, Any]]) -> list[list[str]]:
    keys = ("facet", "language", "rater", "items")
    return [[*(str(row[key]) for key in keys), ", ".join(row["deviates"])] for row in rows if row["deviates"]]


async def _act(request: Request, token: str, body: bytes) -> Response:
    action = ACTIONS.get(request.path_params["action"])
    if action is None:
        return refusal(request, "missing", 404)
    try:
        await run_in_threadpool(_change, request.app.state.database, action, form_of(body) or {})
    except UserError as error:
        return await _page(request, token, body, str(error))
    return RedirectResponse("/coordination", 303)


def _change(database: db.Database, action: Callable[[Connection, dict[str, str]], None], form: dict[str, str]) -> None:
    with database.write.begin() as connection:
        action(connection, form)


def _extend(connection: Connection, form: dict[str, str]) -> None:
    given = [text.strip() for text in form.get("languages", "").split(",") if text.strip()]
    problems = [language_problem(text) for text in given if not find_language(text)]
    if problems or not given:
        raise UserError(problems or "which languages? codes or names, separated by commas")
    people.extend(connection, form.get("name", ""), [language_code(text) for text in given])


ACTIONS: dict[str, Callable[[Connection, dict[str, str]], None]] = {
    "pause": lambda connection, form: people.pause(connection, True),
    "resume": lambda connection, form: people.pause(connection, False),
    "revoke": lambda connection, form: people.revoke(connection, form.get("name", "")),
    "admit": lambda connection, form: people.admit(connection, form.get("name", "")),
    "languages": _extend,
}
