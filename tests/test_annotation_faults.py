"""What may go wrong around the annotation page, and what people or programs may do to it on purpose."""

from __future__ import annotations

import http.client
import json
import random
import re
import secrets
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from annotation_fixtures import (
    Visitor,
    all_have_read,
    link_in,
    open_campaign,
    records_of,
    response_file,
    responses,
    serving,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from xlift.annotation import campaign as campaigns
from xlift.annotation import database as db
from xlift.annotation.app import build_app
from xlift.annotation.campaign import Plan
from xlift.annotation.door import ANNOTATOR_COOKIE, HEADERS, csrf_of
from xlift.annotation.server import OnceAMinute, trusted
from xlift.annotation.words import TEXTS
from xlift.errors import ConfigError

HALF_HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


def stored(campaign: campaigns.Campaign) -> list[Any]:
    with campaign.database.read.begin() as connection:
        return list(connection.execute(sa.select(db.judgements).order_by(db.judgements.c.id)))


def end_link(campaign: campaigns.Campaign, name: str) -> None:
    """Let a link end as if its days were over."""
    with campaign.database.write.begin() as connection:
        mine = db.annotators.c.name == name
        connection.execute(db.annotators.update().where(mine).values(expires="2020-01-01T00:00:00+00:00"))


def one_annotator(folder: Path, url: str = "", prompts: int = 2) -> tuple[campaigns.Campaign, Path, str]:
    """A campaign of French responses for Ana; its source and her link."""
    source = response_file(folder, responses(["fr"], prompts))
    campaign = open_campaign(source, url)
    return campaign, source, link_in(campaigns.add(campaign, "Ana", ["fr"]))


def connect(port: int, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(sent)
    return client


def half_body(visitor: Visitor, task: str) -> bytes:
    head = f"POST /task/{task} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {visitor.cookie}\r\nContent-Length: 50\r\n\r\n"
    return head.encode() + b'{"field":'


def is_cut(client: socket.socket, within: float) -> bool:
    """Whether the server ends the connection in so many seconds."""
    client.settimeout(within)
    try:
        while client.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


# Links: who is let in, for how long


def test_wrong_tokens_lock_nobody_with_a_valid_link_out(tmp_path: Path) -> None:
    """Behind a proxy that is not named all clients have one address: newcomers and annotators at work still enter."""
    _, source, link = one_annotator(tmp_path)
    with serving(source) as (port, _):
        answers = Counter(Visitor(port).ask("GET", f"/enter/guess{n}")[0] for n in range(40))
        assert answers == {403: 10, 429: 30}
        newcomer = Visitor(port, link)
        assert newcomer.open()[0].startswith("/task/")


def test_what_a_proxy_says_of_addresses_counts_where_the_operator_names_it(tmp_path: Path) -> None:
    _, source, link = one_annotator(tmp_path)

    def wrong(port: int, told: str) -> int:
        return Visitor(port).ask("GET", "/enter/guess", headers={"X-Forwarded-For": told})[0]

    with serving(source, proxy="127.0.0.1, 10.0.0.0/8") as (port, _):
        assert [wrong(port, "192.0.2.1") for _ in range(12)] == [403] * 10 + [429] * 2
        assert wrong(port, "192.0.2.2") == 403
        assert wrong(port, "192.0.2.99, 192.0.2.1, 10.2.3.4") == 429, (
            "what a client says before its proxy is no address"
        )
        secure = {"X-Forwarded-Proto": "https"}
        assert "secure" in Visitor(port).ask("GET", link, headers=secure)[1]["set-cookie"].lower()
    with serving(source) as (port, _):
        assert [wrong(port, f"192.0.2.{n}") for n in range(12)] == [403] * 10 + [429] * 2


def test_every_wrong_proxy_is_named_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        campaigns.serve(one_annotator(tmp_path)[0], proxy="*, 127.0.0.1, proxy.example")
    assert [problem.split("'")[1] for problem in refused.value.problems] == ["*", "proxy.example"]
    assert trusted(" ::1 ,10.0.0.0/8,") == ["::1", "10.0.0.0/8"]


def test_an_ended_link_opens_nothing_is_shown_and_can_be_renewed(tmp_path: Path, url: str) -> None:
    campaign, source, link = one_annotator(tmp_path, url)
    with serving(source, url) as (port, _):
        visitor = Visitor(port, link)
        task = visitor.open()[0].rsplit("/")[-1]
        visitor.rate(task, {"fluency": 2})
        nobody = Visitor(port).ask("GET", "/")
        end_link(campaign, "Ana")
        ended = visitor.ask("GET", "/")
        assert (ended[0], ended[2]) == (nobody[0], nobody[2])
        assert visitor.save(task, "fluency", 0)[0] == 403
        assert Visitor(port).ask("GET", link)[0] == 403
        assert "ended 2020-01-01" in campaigns.status(campaign)
        again = Visitor(port, link_in(campaigns.renew(campaign, "Ana", days=3)))
        assert task in again.tasks()
    assert "open until" in campaigns.status(campaign)
    assert [record["value"] for record in records_of(campaign)] == [2]


def test_the_cookie_lives_as_long_as_the_link_and_the_end_is_told(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 1)))
    said = campaigns.add(campaign, "Ana", ["fr"], days=3)
    assert db.end_in(3)[:10] in said
    cookie = client_of(build_app(campaign.database)).get(link_in(said), follow_redirects=False).headers["set-cookie"]
    age = int(re.findall(r"Max-Age=(\d+)", cookie)[0])
    assert 3 * 86_400 - 60 < age <= 3 * 86_400
    for days in (0, -1, 36_501, 10**12):
        with pytest.raises(ConfigError, match="a link works for"):
            campaigns.renew(campaign, "Ana", days=days)


def test_what_an_ended_link_s_owner_has_not_opened_goes_to_the_others(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 3)))
    campaigns.add(campaign, "Ana", ["fr"], Plan(per_response=1))
    end_link(campaign, "Ana")
    assert "6 responses for Ben" in campaigns.add(campaign, "Ben", ["fr"])


def test_a_database_of_before_is_brought_up_to_date_without_losing_anything(tmp_path: Path, url: str) -> None:
    from alembic import command
    from alembic.config import Config

    database = db.Database(engine := db._engine(url), engine.execution_options(xlift_write=True))
    token, judged = secrets.token_urlsafe(32), 250
    with database.write.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "first_tables")
        for name, hashed in (("Ana", db.hash_of(token)), ("Ben", None)):
            row = {"name": name, "token": hashed, "languages": "fr", "interface": "fr", "created": "2026-01-01"}
            insert_old(connection, "annotators", row)
        shown = json.dumps({"messages": [{"role": "user", "content": "Pourquoi ?"}], "text": "Parce que."})
        task = {"id": "ab" * 8, "prompt": "fr-0", "language": "fr", "reply_language": "fr", "run": "base", "step": 5}
        insert_old(connection, "tasks", {**task, "response": "r", "shown": shown})
        assignment = {"annotator": 1, "task": "ab" * 8, "position": 0, "done": False, "skips": 0}
        insert_old(connection, "assignments", assignment)
        for number in range(judged):
            row = {"annotator": 1, "task": "ab" * 8, "field": db.ASKED_FACETS[number % 6], "value": str(number % 3)}
            made = {"guidelines": "0" * 8, "interface": "fr", "time": f"2026-01-01T00:00:{number:03}"}
            insert_old(connection, "judgements", {**row, "seconds": 1.5, **made})
        before = list(connection.exec_driver_sql("SELECT * FROM judgements ORDER BY id"))
    source = response_file(tmp_path, responses(["fr"], 1))
    campaign = open_campaign(source, url)
    assert [tuple(row)[: len(before[0])] for row in stored(campaign)] == [tuple(row) for row in before]
    assert {row.click for row in stored(campaign)} == {None}
    with campaign.database.read.begin() as connection:
        ends = dict(connection.execute(sa.select(db.annotators.c.name, db.annotators.c.expires)).tuples().all())
    assert ends["Ben"] is None
    assert ends["Ana"][:10] == db.end_in(90)[:10]
    client = client_of(build_app(campaign.database), token)
    page = client.get("/task/" + "ab" * 8)
    assert page.status_code == 200, "the link of before still opens the page"
    saved = client.post("/task/" + "ab" * 8, json={"field": "comment", "value": "après"}, headers=csrf(token))
    assert saved.status_code == 200
    assert len(stored(campaign)) == judged + 1


def insert_old(connection: sa.Connection, table: str, row: dict[str, Any]) -> None:
    connection.execute(sa.table(table, *[sa.column(name) for name in row]).insert().values(row))


# Every route × method × visitor


def client_of(app: Starlette, token: str = "", **options: Any) -> TestClient:
    client = TestClient(app, "http://127.0.0.1", follow_redirects=False, **options)
    if token:
        client.cookies.set(ANNOTATOR_COOKIE, token)
    return client


def csrf(token: str) -> dict[str, str]:
    return {"X-CSRF-Token": csrf_of(token)}


def is_shielded(answer: Any) -> bool:
    """Whether an answer carries every header of security, once."""
    return all(answer.headers.get_list(name) == [value] for name, value in HEADERS.items())


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")
STRANGERS = ("nobody", "wrong", "revoked", "ended")
ASKED = {
    "/enter/{token}": "/enter/{token}",
    "/welcome": "/welcome",
    "/static": "/static/page.css",
    "/": "/",
    "/overview": "/overview",
    "/guidelines": "/guidelines",
    "/interface": "/interface",
    "/task/{task}": "/task/{task}",
    "/task/{task}/skip": "/task/{task}/skip",
    "/task/{task}/feedback": "/task/{task}/feedback",
    "/begin": "/begin",
    "/coordinate/{token}": "/coordinate/{token}",
    "/coordination/welcome": "/coordination/welcome",
    "/coordination": "/coordination",
    "/coordination/{action}": "/coordination/revoke",
    "/{path:path}": "/no/such/page",
}
OWN_PAGES = {"/": 303, "/overview": 200, "/guidelines": 200}
"""What somebody with a valid link may GET without anything of their own being named."""


@pytest.fixture
def crowd(tmp_path: Path) -> dict[str, Any]:
    """A campaign in which a task is Ana's, and everybody else a stranger to it in a way of their own."""
    source = response_file(tmp_path, responses(["fr"], 4) + responses(["ru"], 4))
    campaign = open_campaign(source)
    plan = Plan(per_response=1)
    people = {"Ana": "fr", "foreign": "fr", "other language": "ru", "revoked": "fr", "ended": "fr"}
    links = {name: link_in(campaigns.add(campaign, name, [code], plan)) for name, code in people.items()}
    tokens = {name: link.rsplit("/", 1)[1] for name, link in links.items()} | {"nobody": "", "wrong": "wrong"}
    campaigns.revoke(campaign, "revoked")
    end_link(campaign, "ended")
    app = build_app(campaign.database)
    (task, *_) = re.findall(r'href="/task/(\w+)"', client_of(app, tokens["Ana"]).get("/overview").text)
    assert client_of(app, tokens["Ana"]).get(f"/task/{task}").status_code == 200
    all_have_read(campaign)
    return {"campaign": campaign, "app": app, "tokens": tokens, "task": task}


def expected_of(path: str, method: str, who: str, with_csrf: bool) -> set[int]:
    """The statuses with which a request may be answered that names a task of somebody else."""
    if method not in METHODS[:6]:
        return {405}
    reads = method in {"GET", "HEAD"}
    if path == "/static":
        return {200} if reads else {405}
    if path in {"/welcome", "/coordination/welcome"} and reads:
        return {200}
    if path.startswith("/coordinate/") and reads:
        return {403, 429}  # an annotator's link is none of the coordinator's
    if (path == "/coordination" and reads) or (path.startswith("/coordination/") and method == "POST"):
        return {403, 429}
    if who in STRANGERS:
        return {403, 429}
    if path.startswith("/enter") and reads:
        return {303}
    if reads:
        return {OWN_PAGES.get(path, 404)}
    if not with_csrf:
        return {403}
    if method == "POST" and path == "/interface":
        return {422}
    if method == "POST" and path == "/begin":
        return {303}
    return {404}


@pytest.mark.parametrize("who", [*STRANGERS, "foreign", "other language"])
def test_every_route_and_method_refuses_whoever_it_is_not_for(crowd: dict[str, Any], who: str) -> None:
    paths = [route.path for route in crowd["app"].routes]
    assert set(paths) == set(ASKED), "a new route needs its case here"
    token = crowd["tokens"][who]
    with crowd["campaign"].database.read.begin() as connection:
        before = [list(connection.execute(sa.select(table))) for table in db.metadata.sorted_tables]
    for path in dict.fromkeys(paths):
        for method in METHODS:
            for with_csrf in (False, True):
                asked = ASKED[path].format(token=token or "none", task=crowd["task"])
                headers = {**(csrf(token) if with_csrf else {}), "Content-Type": "application/json"}
                body = json.dumps({"field": "fluency", "value": 2}).encode()
                answer = client_of(crowd["app"], token).request(method, asked, headers=headers, content=body)
                case = (method, path, who, with_csrf)
                assert answer.status_code in expected_of(path, method, who, with_csrf), (case, answer.status_code)
                assert is_shielded(answer), case
                if path != "/static":
                    assert "jaunissent" not in answer.text, case
    with crowd["campaign"].database.read.begin() as connection:
        after = [list(connection.execute(sa.select(table))) for table in db.metadata.sorted_tables]
    assert after == before


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("rate.example.org", True),
        ("RATE.example.org:443", True),
        ("localhost:8765", True),
        ("127.0.0.1", True),
        ("[::1]:8765", True),
        ("192.168.0.7:8765", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("rate.example.org.evil.example", False),
        ("rate.example.org@evil.example", False),
        ("", False),
        ("[::1", False),
        ("a b", False),
    ],
)
def test_only_names_that_are_ours_are_answered(crowd: dict[str, Any], host: str, ours: bool) -> None:
    """A foreign name in Host is a foreign site that was pointed at this server (DNS rebinding)."""
    app, token = build_app(crowd["campaign"].database, "https://rate.example.org"), crowd["tokens"]["Ana"]
    for path in ("/overview", "/static/page.css", "/welcome", f"/enter/{token}", f"/task/{crowd['task']}"):
        answer = client_of(app, token).get(path, headers={"Host": host, "Accept-Language": "ru"})
        assert (answer.status_code != 421) is ours, path
        assert is_shielded(answer)
        assert ours or TEXTS["ru"]["wrong_address"] in answer.text


def test_a_refusal_speaks_the_language_of_the_page(crowd: dict[str, Any]) -> None:
    token = crowd["tokens"]["Ana"]
    client, task = client_of(crowd["app"], token), crowd["task"]
    for language in TEXTS:
        changed = client.post("/interface", data={"csrf": csrf_of(token), "interface": language})
        assert changed.status_code == 303
        texts = TEXTS[language]
        sent = csrf(token) | {"Content-Type": "application/json"}
        for body, code, said in (
            (b'{"field":"fluency","value":7}', 422, "not_a_rating"),
            (b"{", 422, "not_readable"),
            (b"x" * 70_000, 413, "too_large"),
        ):
            answer = client.post(f"/task/{task}", content=body, headers=sent)
            assert (answer.status_code, answer.json()["error"]) == (code, texts[said])
        forged = client.post(f"/task/{task}/skip", data={"csrf": "forged"})
        assert (forged.status_code, texts["forged"] in forged.text) == (403, True)
        missing = client.get("/nothing")
        assert (missing.status_code, f'lang="{language}"' in missing.text) == (404, True)
        assert texts["missing"] in missing.text


@pytest.mark.parametrize("seconds", ["1" * 400, "1" * 5000, "1e400", "-1", "-" + "9" * 400, "true", '"1"', "[]"])
def test_no_number_of_seconds_breaks_saving(crowd: dict[str, Any], seconds: str) -> None:
    token = crowd["tokens"]["Ana"]
    body = f'{{"field":"comment","value":"","seconds":{seconds}}}'.encode()
    sent = csrf(token) | {"Content-Type": "application/json"}
    answer = client_of(crowd["app"], token).post(f"/task/{crowd['task']}", content=body, headers=sent)
    assert answer.status_code == (200 if seconds == "1" * 400 else 422)
    assert [row.seconds for row in stored(crowd["campaign"])] == ([600.0] if answer.status_code == 200 else [])


@pytest.mark.parametrize(("fields", "code"), [(30, 422), (5_000, 422), (1, 403)])
def test_a_form_of_many_fields_is_refused_in_words(crowd: dict[str, Any], fields: int, code: int) -> None:
    client = client_of(crowd["app"], crowd["tokens"]["Ana"])
    for path in ("/interface", f"/task/{crowd['task']}/skip"):
        answer = client.post(path, data={f"field{n}": "x" for n in range(fields)})
        assert answer.status_code == code
        assert TEXTS["fr"]["not_readable" if code == 422 else "forged"] in answer.text


def test_an_error_of_the_server_has_the_headers_and_words_too(crowd: dict[str, Any]) -> None:
    with crowd["campaign"].database.write.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE assignments RENAME TO gone")
    client = client_of(crowd["app"], crowd["tokens"]["Ana"], raise_server_exceptions=False)
    answer = client.get("/overview", headers={"Accept-Language": "fr-CA,fr;q=0.9"})
    assert answer.status_code == 500
    assert TEXTS["fr"]["failed"] in answer.text
    assert is_shielded(answer)


# Whatever is sent

ANY_TEXT = st.text(max_size=60) | st.sampled_from(["\x00", "\ud800", "é" * 50, "'; DROP TABLE tasks; --", "{{7*7}}"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*db.ASKED_FACETS, db.WHOLE, "senseless", "comment", "run"]) | ANY_TEXT
VALUES = st.sampled_from([0, 1, 2, None, True, {"cannot": "why"}, {"cannot": "\x00\ud800"}, 3, 2.0, "2"]) | ANY_JSON
JUDGEMENT = st.fixed_dictionaries(
    {"field": FIELDS, "value": VALUES}, optional={"seconds": ANY_JSON, "click": ANY_JSON | st.just("abc-1")}
)


def seldom(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture
def open_door(tmp_path: Path, url: str) -> Iterator[dict[str, Any]]:
    """Ana in front of the page, in this process: an error in the app is an error of the test."""
    campaign, _, link = one_annotator(tmp_path, url)
    all_have_read(campaign)
    token = link.rsplit("/", 1)[1]
    app = build_app(campaign.database)
    client = client_of(app, token)
    task = client.get("/").headers["location"].rsplit("/")[-1]
    yield {"campaign": campaign, "client": client, "token": token, "task": task}
    campaign.database.read.dispose()


def test_no_judgement_breaks_the_page_or_the_export(open_door: dict[str, Any]) -> None:
    client, task, token = open_door["client"], open_door["task"], open_door["token"]
    sent = csrf(token) | {"Content-Type": "application/json"}

    @seldom(150)
    @given(JUDGEMENT | ANY_JSON)
    def save(body: Any) -> None:
        answer = client.post(f"/task/{task}", content=json.dumps(body).encode(), headers=sent)
        assert answer.status_code in {200, 422}

    save()
    assert client.get(f"/task/{task}").status_code == 200
    records = records_of(open_door["campaign"])
    assert records
    assert all(record["value"] in (0, 1, 2) or record["reason"] for record in records)


def test_no_form_query_path_or_header_breaks_the_page(open_door: dict[str, Any]) -> None:
    client, task, token = open_door["client"], open_door["task"], open_door["token"]
    names = st.sampled_from(["interface", "task", "csrf"]) | ANY_TEXT

    @seldom(150)
    @given(
        st.sampled_from(["/", "/interface", "/overview", f"/task/{task}/skip", f"/task/{task}", "/task/", "/static/"]),
        st.binary(max_size=20) | st.just(b""),
        st.dictionaries(names, ANY_TEXT, max_size=4),
        st.binary(max_size=60),
        st.sampled_from(["GET", "POST"]),
        st.binary(max_size=30),
    )
    def ask(path: str, tail: bytes, fields: dict[str, str], query: bytes, method: str, header: bytes) -> None:
        from urllib.parse import quote_from_bytes, urlencode

        body = urlencode(fields | {"csrf": csrf_of(token)}, errors="replace").encode()
        target = f"{path}{quote_from_bytes(tail)}?{quote_from_bytes(query)}"
        headers = {b"Accept-Language": header, b"Content-Type": b"application/x-www-form-urlencoded"}
        if method == "POST":
            headers[b"X-Other"] = header
        answer = client.request(method, target, content=body, headers=headers)
        assert answer.status_code < 500
        answer = client.get("/", headers={b"Cookie": f"{ANNOTATOR_COOKIE}=".encode() + header})
        assert answer.status_code in {303, 403, 429}

    ask()
    assert client.get(f"/task/{task}").status_code == 200


def test_what_is_no_http_is_answered_in_kind_or_cut(tmp_path: Path) -> None:
    _, source, link = one_annotator(tmp_path)
    log = tmp_path / "log"
    with serving(source, log=log) as (port, _):
        host = b"Host: 127.0.0.1\r\n"
        both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        for raw in (
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + host + host + b"\r\n",
            b"GET / HTTP/1.1\r\n" + host + b"X: " + b"x" * 40_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 1, 2\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            f"POST / HTTP/1.1\r\nHost: localhost\r\nCookie: {ANNOTATOR_COOKIE}={link.rsplit('/', 1)[1]}\r\n".encode()
            + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nzz\r\n",
            b"POST / HTTP/1.1\r\n" + host + both,
            b"OPTIONS * HTTP/1.1\r\n" + host + b"\r\n",
            b"CONNECT evil.example:443 HTTP/1.1\r\n" + host + b"\r\n",
            b"GET http://evil.example/ HTTP/1.1\r\n" + host + b"\r\n",
            b"GET / HTTP/1.1\r\n" + host + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            b"\x00" * 100_000,
        ):
            client = connect(port, raw)
            client.shutdown(socket.SHUT_WR)
            try:
                answer = client.recv(65_536)
            except OSError:
                answer = b""
            client.close()
            assert not answer or re.match(rb"HTTP/1.1 4\d\d ", answer), (raw[:60], answer[:60])
            assert not answer or b"frame-ancestors 'none'" in answer, raw[:60]
        assert Visitor(port, link).open()[0].startswith("/task/")
    assert "Traceback" not in log.read_text()


# Slow, many, cut off


def test_slow_clients_are_cut_and_everybody_else_is_served(tmp_path: Path) -> None:
    _, source, link = one_annotator(tmp_path)
    log = tmp_path / "log"
    with serving(source, log=log, limits={"EXCHANGE_SECONDS": 2.0}) as (port, _):
        visitor = Visitor(port, link)
        task = visitor.open()[0].rsplit("/")[-1]
        silent = [connect(port, b"") for _ in range(20)]
        slow = [connect(port, HALF_HEAD) for _ in range(20)]
        slow += [connect(port, half_body(visitor, task)) for _ in range(20)]
        read_nothing = connect(port, b"GET /static/page.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2_000)
        began = time.monotonic()
        while time.monotonic() - began < 4.5:
            assert visitor.save(task, "fluency", 2)[0] == 200
            for client in slow[:5]:
                with suppress(OSError):
                    client.sendall(b"x")  # a byte now and then gives nobody more time
        assert all(is_cut(client, 1.0) for client in [*silent, *slow, read_nothing])
    assert len(log.read_text().splitlines()) <= 3, log.read_text()


def crowd_of_half_requests(folder: Path, count: int, limits: dict[str, int]) -> str:
    """So many clients begin a request and never end it, while Ana works: what came of it."""
    _, source, link = one_annotator(folder)
    log, waited = folder / "log", 0.0
    with serving(source, log=log, limits=limits) as (port, process):
        visitor = Visitor(port, link)
        held = []
        for _ in range(count // 50):
            held += [connect(port, HALF_HEAD) for _ in range(50)]
            began = time.monotonic()
            assert visitor.open()[0].startswith("/task/")
            waited = max(waited, time.monotonic() - began)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        for client in held:
            client.close()
    said = log.read_text()
    assert len(said) < 2_000, said
    assert re.search(r"too many connections at once \(\d{3,} times more\)", said), said
    return f"{count} half requests: served throughout, within {waited * 1000:.0f} ms, {len(said)} bytes of log"


def test_a_crowd_of_half_requests_keeps_nobody_out_and_fills_no_log(tmp_path: Path) -> None:
    crowd_of_half_requests(tmp_path, 600, {"MAX_CONNECTIONS": 60})


@pytest.mark.torture
def test_a_crowd_of_thousands_keeps_nobody_out_either(tmp_path: Path) -> None:
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most[1], most[1]))
    try:
        print(crowd_of_half_requests(tmp_path, min(3_000, most[1] // 2), {}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


def test_cut_requests_are_no_trouble_to_be_told(tmp_path: Path) -> None:
    _, source, link = one_annotator(tmp_path)
    log = tmp_path / "log"
    with serving(source, log=log) as (port, _):
        visitor = Visitor(port, link)
        task = visitor.open()[0].rsplit("/")[-1]
        for number in range(100):
            client = connect(port, half_body(visitor, task) if number % 2 else HALF_HEAD)
            # Some are cut with a reset, not with a farewell.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", number % 3 == 0, 0))
            client.close()
        assert visitor.save(task, "fluency", 2)[0] == 200
    assert log.read_text() == ""


def test_a_body_without_end_is_cut(tmp_path: Path) -> None:
    _, source, link = one_annotator(tmp_path)
    with serving(source) as (port, _):
        visitor = Visitor(port, link)
        for cookie in ("", visitor.cookie):
            head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\nContent-Length: {10**10}\r\n\r\n"
            client, sent = connect(port, head.encode()), 0
            with suppress(OSError):
                while sent < 200_000_000:
                    sent += client.send(b"x" * 65_536)
            assert sent < 50_000_000
        assert visitor.open()[0].startswith("/task/")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_seconds_and_says_how_to_go_on(tmp_path: Path, sent: signal.Signals) -> None:
    campaign, source, link = one_annotator(tmp_path)
    log = tmp_path / "log"
    with serving(source, log=log) as (port, process):
        visitor = Visitor(port, link)
        task = visitor.open()[0].rsplit("/")[-1]
        visitor.rate(task, {"fluency": 2})
        waiting = [connect(port, begun) for begun in (b"", HALF_HEAD, half_body(visitor, task))]
        visitor.open()  # connections are taken in order: theirs are, too
        began = time.monotonic()
        process.send_signal(sent)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - began < 6
        for client in waiting:
            client.close()
    said = log.read_text()
    assert f"xlift annotate {source}" in said
    assert "Traceback" not in said
    with serving(source) as (port, _):
        assert len(Visitor(port, link).tasks()) == 4
    assert [record["value"] for record in records_of(campaign)] == [2]


def test_the_same_trouble_is_told_once_a_minute_with_its_count(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    quiet = OnceAMinute()
    made = [logging.makeLogRecord({"msg": "cut after %d bytes", "args": (n,)}) for n in range(1_000)]
    made += [logging.makeLogRecord({"msg": f"trouble {chr(97 + n % 26) * (1 + n // 26)}"}) for n in range(1_000)]
    assert sum(map(quiet.filter, made)) <= 101
    quiet.tell()
    assert capsys.readouterr().err == ""
    quiet.tell(at_end=True)
    told = capsys.readouterr().err
    assert "cut after … bytes (999 times more)" in told
    assert sum(int(count) for count in re.findall(r"\((\d+) times more", told)) + len(quiet.told) >= 1_899


# Many at once, with connections that are cut


def test_a_click_that_comes_again_counts_once_and_never_over_a_later_one(tmp_path: Path, url: str) -> None:
    campaign, source, link = one_annotator(tmp_path, url)
    with serving(source, url) as (port, _):
        visitor = Visitor(port, link)
        task = visitor.open()[0].rsplit("/")[-1]
        send = Clicker(visitor).send
        for field, value, click in (
            ("fluency", 1, "a"),
            ("fluency", 1, "a"),
            ("fluency", 2, "b"),
            ("fluency", 1, "a"),
        ):
            assert send(task, field, value, click) == 200
        for wrong in ("", "x" * 65, "é", 1, None):
            assert send(task, "fluency", 0, wrong) == 422
    (record,) = records_of(campaign)
    assert (record["value"], record["detail"]["seconds"]) == (2, 3.0)
    assert [row.click for row in stored(campaign)] == ["a", "b"]


class Clicker:
    """Saves over one connection that is kept, as a browser does, and cuts it on purpose now and then."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.connection = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=60)

    def _request(self, task: str, field: str, value: Any, click: Any) -> tuple[str, bytes, dict[str, str]]:
        body = json.dumps({"field": field, "value": value, "seconds": 1.5, "click": click}).encode()
        headers = {"Content-Type": "application/json", "X-CSRF-Token": self.visitor.csrf, "Cookie": self.visitor.cookie}
        return f"/task/{task}", body, headers

    def send(self, task: str, field: str, value: Any, click: Any) -> int:
        path, body, headers = self._request(task, field, value, click)
        self.connection.request("POST", path, body, headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    def cut(self, task: str, field: str, value: Any, click: Any, share: float) -> None:
        """Send a share of the request, or with 1 all of it, and go without having read an answer."""
        path, body, headers = self._request(task, field, value, click)
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {text}" for name, text in headers.items()]
        raw = "\r\n".join([*lines, "", ""]).encode() + body
        connect(self.visitor.port, raw[: int(len(raw) * share)]).close()
        self.connection.close()

    def save(self, task: str, field: str, value: Any, cut: float) -> float:
        """Save until it is acknowledged; how long the request took that was."""
        click = secrets.token_hex(8)
        if cut:
            self.cut(task, field, value, click, cut)
        while True:
            began = time.monotonic()
            try:
                status = self.send(task, field, value, click)
            except (OSError, http.client.HTTPException):
                self.connection.close()
                continue
            assert status == 200
            return time.monotonic() - began


def torture(folder: Path, url: str, people: int, ratings: int) -> str:
    """So many people save so many ratings each, one in ten of them over a connection that is cut; what came of it."""
    source = response_file(folder, responses(["fr"], -(-ratings // 12)))
    campaign = open_campaign(source, url)
    names = [f"person {number}" for number in range(people)]
    plan = Plan(per_response=people, per_cell=1_000)
    links = [link_in(campaigns.add(campaign, name, ["fr"], plan)) for name in names]

    def annotate(number: int) -> tuple[dict[tuple[str, str, str], int], list[float], int]:
        visitor, draw = Visitor(port, links[number]), random.Random(number)
        clicker = Clicker(visitor)
        acknowledged: dict[tuple[str, str, str], int] = {}
        times, cuts = [], 0
        wanted = [(task, facet) for task in visitor.tasks() for facet in db.ASKED_FACETS][:ratings]
        for task, facet in wanted:
            cut = draw.choice([0.3, 0.95, 1.0]) if draw.random() < 0.1 else 0.0
            value = draw.choice([1, 2])
            times.append(clicker.save(task, facet, value, cut))
            acknowledged[names[number], task, facet] = value
            cuts += bool(cut)
        return acknowledged, times, cuts

    began = time.monotonic()
    with serving(source, url) as (port, _), ThreadPoolExecutor(people) as pool:
        outcomes = list(pool.map(annotate, range(people)))
    took = time.monotonic() - began
    expected = {key: value for acknowledged, _, _ in outcomes for key, value in acknowledged.items()}
    with campaign.database.read.begin() as connection:
        who = dict(connection.execute(sa.select(db.annotators.c.id, db.annotators.c.name)).tuples().all())
    rows = stored(campaign)
    found = {(who[row.annotator], row.task, row.field): json.loads(row.value) for row in rows}
    assert found == expected
    assert len(rows) == len(expected) == people * ratings
    assert len(records_of(campaign)) == people * ratings
    times = sorted(one for _, all_times, _ in outcomes for one in all_times)
    cuts = sum(cuts for _, _, cuts in outcomes)
    p99 = times[int(len(times) * 0.99)]
    return (
        f"{len(rows)} ratings of {people} people in {took:.0f} s, {cuts} cut, 0 lost, 0 twice, p99 {p99 * 1000:.0f} ms"
    )


def test_every_acknowledged_rating_is_there_once_though_connections_are_cut(tmp_path: Path, url: str) -> None:
    print(torture(tmp_path, url, people=8, ratings=24))


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_fifty_people_lose_nothing_though_one_connection_in_ten_is_cut(tmp_path: Path, url: str) -> None:
    print(torture(tmp_path, url, people=50, ratings=200))
