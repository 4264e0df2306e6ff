"""The coordinator's page, behind a link of its own: how far everybody is, who deviates, and what can be done about it.

The link is no annotator's: it opens nothing else, and an annotator's opens nothing of this.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from xlift.analysis.agreement import agreement_tables
from xlift.analysis.pairings import graded_facet
from xlift.annotation import database as db
from xlift.annotation import people, transfer
from xlift.annotation.door import PAGES, Handler, asked_languages, csrf_of, form_of, let_in, message, own_body, refusal
from xlift.annotation.rendering import sendable
from xlift.annotation.scheme import Shown, scheme_of, shown_facets
from xlift.annotation.words import TEXTS, direction
from xlift.errors import ConfigError
from xlift.languages import find_language, language_code
from xlift.records import scale_fields
from xlift.workspace import now

COORDINATOR_COOKIE = "xlift_coordinator"
COMMAS = re.compile("[,،、，]")
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
        request.state.interface = known.get("interface") or asked_languages(request)[0]
        body, wrong = await own_body(request, token)
        return wrong if wrong is not None else await handler(request, token, body)

    return guarded


async def _page(request: Request, token: str, body: bytes, problem: str = "") -> Response:
    interface = request.state.interface
    context = await run_in_threadpool(_read, request.app.state.database, interface)
    page = PAGES.get_template("coordination.html").render(
        **context,
        **{"csrf": csrf_of(token), "problem": problem, "interface": interface, "direction": direction(interface)},
        interfaces={code: texts["name"] for code, texts in TEXTS.items()},
        texts=TEXTS[interface],
    )
    return HTMLResponse(sendable(page), 422 if problem else 200)


def _read(database: db.Database, interface: str) -> dict[str, Any]:
    said = TEXTS[interface]["coordination"]
    with database.read.begin() as connection:
        ratings = [one for one in transfer.rating_records(connection) if "other" not in one]
        found = agreement_tables(ratings, resamples=RESAMPLES)
        together = [row for row in found["agreement"] if row["between"] == "people"]
        facets = {name: one.title for one in shown_facets(scheme_of(connection), interface) for name in _names(one)}
        rows = {
            "progress": people.progress_rows(connection, said),
            "pace": people.pace_rows(connection),
            "practice": people.practice_rows(connection, said),
            "controls": [[name, facets.get(facet, facet), *of] for name, facet, *of in people.control_rows(connection)],
            "agreement": _agreement(together, facets),
            "deviations": _deviating(found["people"], facets, said),
        }
        return {
            "paused": bool(db.read_setting(connection, "paused")),
            "names": sorted({row[0] for row in people.pace_rows(connection)}),
            "tables": [
                (said.get(name) or TEXTS[interface][name], [said[key] for key in PAGE_COLUMNS[name]], own)
                for name, own in rows.items()
            ],
        }


PAGE_COLUMNS = {
    "progress": ("annotator", "language", "rated", "skipped", "total", "link"),
    "pace": ("annotator", "seconds", "code"),
    "practice": ("annotator", "done", "met", "goes_on"),
    "controls": ("annotator", "facet", "met", "total"),
    "agreement": ("facet", "language", "first", "second", "items", "alpha"),
    "deviations": ("facet", "language", "annotator", "items", "deviates"),
}
"""Tables of the page and their columns, by the names of their words."""


def _names(facet: Shown) -> list[str]:
    """What a facet is called in controls, and where values are compared."""
    levels = [level for level, _ in facet.levels]
    return [facet.name, graded_facet({"facet": facet.name, **scale_fields(levels)})[0]]


def _agreement(rows: list[dict[str, Any]], facets: dict[str, str]) -> list[list[str]]:
    alphas = ["–" if row["alpha"] is None else f"{row['alpha']:.2f}" for row in rows]
    return [[*_cells(row, facets, "first", "second"), alpha] for row, alpha in zip(rows, alphas, strict=True)]


def _deviating(rows: list[dict[str, Any]], facets: dict[str, str], said: people.PageWords) -> list[list[str]]:
    marks = [" · ".join(said[mark] for mark in row["deviates"]) for row in rows]
    return [[*_cells(row, facets, "rater"), mark] for row, mark in zip(rows, marks, strict=True) if mark]


def _cells(row: dict[str, Any], facets: dict[str, str], *raters: str) -> list[str]:
    return [facets.get(row["facet"], row["facet"]), *(str(row[key]) for key in ("language", *raters, "items"))]


async def _act(request: Request, token: str, body: bytes) -> Response:
    action, form = request.path_params["action"], form_of(body) or {}
    if action not in ACTIONS:
        return refusal(request, "missing", 404)
    said = TEXTS[request.state.interface]["coordination"]
    wrong = await run_in_threadpool(_change, request.app.state.database, action, form, said)
    return await _page(request, token, body, wrong) if wrong else RedirectResponse("/coordination", 303)


def _change(database: db.Database, action: str, form: dict[str, str], said: people.PageWords) -> str:
    """Do what a button says; what is wrong, in words of the page, where it cannot be done."""
    change, refused = ACTIONS[action]
    given = _given(form)
    unknown = [text for text in given if not find_language(text)]
    if action == "languages" and (unknown or not given):
        return said["unknown_language" if unknown else "no_languages"].format(text=" · ".join(unknown))
    try:
        with database.write.begin() as connection:
            change(connection, form)
    except ConfigError:
        return said[refused].format(text=form.get("name", ""))
    return ""


# e.g. _given({"languages": "it، Dutch, "}) → ["it", "Dutch"]
def _given(form: dict[str, str]) -> list[str]:
    return [text.strip() for text in COMMAS.split(form.get("languages", "")) if text.strip()]


def _speak(connection: Connection, form: dict[str, str]) -> None:
    if (code := form.get("interface")) in TEXTS:
        known = db.read_setting(connection, "coordinator")
        db.write_setting(connection, "coordinator", known | {"interface": code})


ACTIONS: dict[str, tuple[Callable[[Connection, dict[str, str]], object], str]] = {
    "pause": (lambda connection, form: people.pause(connection, True), "nobody_yet"),
    "resume": (lambda connection, form: people.pause(connection, False), "nobody_yet"),
    "revoke": (lambda connection, form: people.revoke(connection, form.get("name", "")), "nobody"),
    "admit": (lambda connection, form: people.admit(connection, form.get("name", "")), "nobody"),
    "languages": (
        lambda connection, form: people.extend(
            connection, form.get("name", ""), [language_code(text) for text in _given(form)]
        ),
        "nobody",
    ),
    "interface": (_speak, "nobody"),
}
"""What each button does, and the word for why it could not."""
