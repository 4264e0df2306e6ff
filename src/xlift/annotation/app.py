"""The annotation page: what annotators see, and what they save.

Everything but the door (`/enter/TOKEN`, `/welcome`) and the static files wants the cookie of a valid personal link, and
every change a token against cross-site requests as well (door.py). Run and model appear nowhere; tasks have random ids.
"""

from __future__ import annotations

import json
import logging
import socket
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from xlift.annotation import coordination, practice
from xlift.annotation import database as db
from xlift.annotation.door import (
    ANNOTATOR_COOKIE,
    HEADERS,
    PAGES,
    Door,
    admit,
    csrf_of,
    form_of,
    guarded_by_link,
    interface_of,
    is_json,
    let_in,
    message,
    refusal,
    shielded_app,
)
from xlift.annotation.judgement import misfit, wrong_judgement
from xlift.annotation.rendering import formatted, sendable
from xlift.annotation.scheme import Scheme, guidelines_of, scheme_of, shown_answers, shown_facets, shown_spans
from xlift.annotation.words import FOLDER, TEXTS, direction
from xlift.languages import get_language

MAX_SECONDS = 600.0
"""More than this between two clicks is a break, not work."""

log = logging.getLogger("xlift.annotation")


def build_app(database: db.Database, address: str = "http://127.0.0.1") -> Starlette:
    """The page as an ASGI application, reached under `address`; by https, cookies are for https alone.

    Any other name in a request's Host is refused, addresses in numbers apart: those no foreign site can point here.
    """
    routes = [
        Route("/enter/{token}", _enter),
        Route("/welcome", _welcome),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
        Route("/", guarded_by_link(_start), methods=["GET"]),
        Route("/overview", guarded_by_link(_overview), methods=["GET"]),
        Route("/guidelines", guarded_by_link(_guidelines), methods=["GET"]),
        Route("/interface", guarded_by_link(_interface), methods=["POST"]),
        Route("/begin", guarded_by_link(_begin), methods=["POST"]),
        Route("/task/{task}", guarded_by_link(_task), methods=["GET"]),
        Route("/task/{task}", guarded_by_link(_save), methods=["POST"]),
        Route("/task/{task}/skip", guarded_by_link(_skip), methods=["POST"]),
        Route("/task/{task}/feedback", guarded_by_link(_feedback), methods=["GET"]),
        *coordination.routes(),
        Route("/{path:path}", guarded_by_link(_missing), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _no_route, ClientDisconnect: _cut_off, Exception: _failed}
    app = Starlette(routes=routes, middleware=[Middleware(shielded_app)], exception_handlers=handlers)
    app.state.database, app.state.secure, app.state.door = database, address.startswith("https:"), Door()
    app.state.names = {"localhost", socket.gethostname().lower(), urlsplit(address).hostname}
    return app


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return refusal(request, "missing", 404)
    answer = refusal(request, "not_readable", error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _cut_off(request: Request, error: Exception) -> Response:
    log.debug("a request was cut off")
    return refusal(request, "not_readable", 400)  # which nobody reads


async def _failed(request: Request, error: Exception) -> Response:
    answer = refusal(request, "failed", 500)
    answer.headers.update(HEADERS)  # this one is made outside of what adds them
    return answer


async def _enter(request: Request) -> Response:
    token = request.path_params["token"]
    annotator, refused = await admit(request, token)
    if annotator is None:
        return refused
    return let_in(request, "/welcome", ANNOTATOR_COOKIE, token, annotator.expires)


async def _welcome(request: Request) -> Response:
    return message(request, "welcome", "", 200, onward="/")


async def _start(request: Request, annotator: Any, body: bytes) -> Response:
    if annotator.read is None:
        return RedirectResponse("/guidelines", 303)
    found, task = await run_in_threadpool(_next_task, request.app.state.database, annotator)
    if found.over and not found.qualified:
        return message(request, "not_admitted", "", 200)
    return RedirectResponse(f"/task/{task}" if task else "/overview", 303)


def _next_task(database: db.Database, annotator: Any) -> tuple[practice.Standing, str | None]:
    with database.read.begin() as connection:
        found = practice.standing(connection, annotator)
        if found.qualified:
            return found, db.next_task(connection, annotator.id)
        # Practice stands in front, and all else is closed until it is over.
        return found, next((row.task for row in db.own_tasks(connection, annotator.id) if not row.done), None)


async def _begin(request: Request, annotator: Any, body: bytes) -> Response:
    await run_in_threadpool(_mark_read, request.app.state.database, annotator.id)
    return RedirectResponse("/", 303)


def _mark_read(database: db.Database, annotator: int) -> None:
    with database.write.begin() as connection:
        db.mark_read(connection, annotator)


async def _task(request: Request, annotator: Any, body: bytes) -> Response:
    found = await run_in_threadpool(_open_task, request.app.state.database, annotator, request.path_params["task"])
    if found is None:
        return await _missing(request, annotator, body)
    assignment, rows, own, scheme = found
    if assignment is None:
        return RedirectResponse("/", 303)
    ids = [one.task for one in own]
    at = ids.index(assignment.task)
    shown, interface, values = json.loads(assignment.shown), interface_of(annotator), db.last_values(rows)
    replies = [(TEXTS[interface]["response"], shown["text"])]
    if "second" in shown:
        replies = [(TEXTS[interface]["pair_first"], shown["text"]), (TEXTS[interface]["pair_second"], shown["second"])]
    context = {
        "task": assignment.task,
        "turns": shown["messages"],
        "replies": [(title, text, formatted(text)) for title, text in replies],
        "language": _language(assignment.language),
        "reply_language": _language(assignment.reply_language),
        "values": values,
        "facets": shown_facets(scheme, interface),
        "spans": shown_spans(scheme, interface),
        "answers": shown_answers(scheme, interface),
        "number": at + 1,
        "previous": ids[at - 1] if at else None,
        "practice": practice.is_practice(assignment),
        "fixed": practice.FEEDBACK in values,
    }
    return _page(request, "task.html", annotator, own, scheme, **context)


OpenTask = tuple[Any, list[Any], list[Any], Scheme]
"""An assignment with its task, what was judged of it, all assignments of the annotator, and the scheme."""


def _open_task(database: db.Database, annotator: Any, task: str) -> OpenTask | None:
    """No assignment where practice comes first; None where the task is not the annotator's."""
    with database.write.begin() as connection:
        assignment, scheme = db.assigned(connection, annotator.id, task), scheme_of(connection)
        if assignment is None:
            return None
        own = db.own_tasks(connection, annotator.id)
        if not practice.may_open(assignment, practice.standing(connection, annotator)):
            return None, [], own, scheme
        db.mark_opened(connection, annotator.id, task)
        return assignment, db.judged(connection, annotator.id, task), own, scheme


async def _feedback(request: Request, annotator: Any, body: bytes) -> Response:
    found = await run_in_threadpool(_see_feedback, request.app.state.database, annotator, request.path_params["task"])
    if found is None:
        return await _missing(request, annotator, body)
    assignment, rows, own, scheme = found
    verdicts = db.verdicts(db.last_values(rows), tuple(scheme.levels))
    expected = practice.expected_values(assignment)
    facets = [one for one in shown_facets(scheme, interface_of(annotator)) if one.name in expected]
    context = {
        "task": "",
        "compared": [(facet, verdicts[facet.name].value, expected[facet.name]) for facet in facets],
        "explained": json.loads(assignment.shown).get("why", ""),
        "language": _language(assignment.language),
    }
    return _page(request, "feedback.html", annotator, own, scheme, **context)


def _see_feedback(database: db.Database, annotator: Any, task: str) -> OpenTask | None:
    """What to tell of a practice item that is done; from now on its values stand."""
    with database.write.begin() as connection:
        assignment, scheme = db.assigned(connection, annotator.id, task), scheme_of(connection)
        if assignment is None or not assignment.done or not practice.is_practice(assignment):
            return None
        rows = db.judged(connection, annotator.id, task)
        if practice.FEEDBACK not in db.last_values(rows):
            db.save(connection, annotator, task, practice.FEEDBACK, True)
        return assignment, rows, db.own_tasks(connection, annotator.id), scheme


def _language(code: str) -> dict[str, str]:
    known = get_language(code)
    return {"code": code.replace("_", "-"), "name": known.native_name, "direction": direction(code)}


async def _overview(request: Request, annotator: Any, body: bytes) -> Response:
    own, scheme, code = await run_in_threadpool(_own_tasks, request.app.state.database, annotator.id)
    states = [(one.task, _state(one)) for one in own]
    done = bool(own) and all(one.done for one in own)
    return _page(request, "overview.html", annotator, own, scheme, task="", states=states, code=code if done else "")


def _own_tasks(database: db.Database, annotator: int) -> tuple[list[Any], Scheme, str]:
    """The annotator's assignments, the scheme, and the code for whoever has done all of them."""
    with database.read.begin() as connection:
        own, code = db.own_tasks(connection, annotator), db.completion_code(connection, annotator)
        return own, scheme_of(connection), code


def _state(assignment: Any) -> str:
    if assignment.done:
        return "done"
    return "skipped" if assignment.skips else "begun" if assignment.opened else "open"


async def _guidelines(request: Request, annotator: Any, body: bytes) -> Response:
    own, scheme, _ = await run_in_threadpool(_own_tasks, request.app.state.database, annotator.id)
    return _page(request, "guidelines.html", annotator, own, scheme, task="", first=annotator.read is None)


def _page(request: Request, name: str, annotator: Any, own: list[Any], scheme: Scheme, **context: Any) -> Response:
    interface = interface_of(annotator)
    known = {
        "texts": TEXTS[interface],
        "reasons": [(TEXTS["en"]["reasons"][code], text) for code, text in TEXTS[interface]["reasons"].items()],
        "interfaces": {code: texts["name"] for code, texts in TEXTS.items()},
        "interface": interface,
        "direction": direction(interface),
        "guidelines": guidelines_of(scheme, interface)[0],
        "annotator": annotator.name,
        "csrf": csrf_of(request.cookies[ANNOTATOR_COOKIE]),
        "done": sum(one.done for one in own),
        "total": len(own),
    }
    return HTMLResponse(sendable(PAGES.get_template(name).render(**known, **context)))


async def _save(request: Request, annotator: Any, body: bytes) -> Response:
    if not is_json(request):
        return refusal(request, "not_readable", 415)
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return refusal(request, "not_readable", 422)
    wrong = wrong_judgement(sent)
    if wrong:
        return refusal(request, "not_a_rating", 422, wrong)
    answer = await run_in_threadpool(
        _save_judgement, request.app.state.database, annotator, request.path_params["task"], sent
    )
    if isinstance(answer, str):
        return refusal(request, "not_a_rating", 422, answer)
    return JSONResponse(answer) if answer else refusal(request, "missing", 404)


def _save_judgement(
    database: db.Database, annotator: Any, task: str, sent: dict[str, Any]
) -> dict[str, Any] | str | None:
    """How far the annotator is with this judgement; what is wrong with it; None where they may not rate the task."""
    seconds = float(min(sent.get("seconds", 0), MAX_SECONDS))
    field, value = sent.get("field"), sent["value"]
    with database.write.begin() as connection:
        assignment, scheme = db.assigned(connection, annotator.id, task), scheme_of(connection)
        if assignment is None or not practice.may_open(assignment, practice.standing(connection, annotator)):
            return None
        if wrong := misfit(field, value, scheme, len(json.loads(assignment.shown)["text"])):
            return wrong
        if practice.FEEDBACK in db.last_values(db.judged(connection, annotator.id, task)):
            return "the feedback has been shown: this practice item stands as it is"
        signed = guidelines_of(scheme, interface_of(annotator))[1]
        done = db.save(connection, annotator, task, str(field), value, seconds, signed, sent.get("click"))
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
    form = form_of(body) or {}
    if form.get("interface") not in TEXTS:
        return refusal(request, "not_readable", 422, f"choices: {', '.join(TEXTS)}")
    await run_in_threadpool(_set_interface, request.app.state.database, annotator.id, form["interface"])
    task = form.get("task", "")
    elsewhere = "/guidelines" if annotator.read is None else "/overview"
    return RedirectResponse(f"/task/{task}" if db.is_task(task) else elsewhere, 303)


def _set_interface(database: db.Database, annotator: int, interface: str) -> None:
    with database.write.begin() as connection:
        db.set_interface(connection, annotator, interface)


async def _missing(request: Request, annotator: Any, body: bytes) -> Response:
    return refusal(request, "missing", 404)
