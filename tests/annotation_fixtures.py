"""Real parts for the annotation tests: responses, a server process, a visitor over HTTP, a throw-away PostgreSQL."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from xlift.annotation import campaign as campaigns
from xlift.annotation import database as db
from xlift.annotation import transfer
from xlift.annotation.campaign import Plan
from xlift.disk import write_jsonl

HOSTILE = (
    "</div><script>document.title='owned'</script><img src=x onerror=\"alert(1)\"> {{ 7*7 }} \x00\ud800\n\nlast line"
)
RUNS = ("lora-r16-lr2e-4-1a2b3c4d", "base-5e6f7a8b")
TEXTS = {
    "en": ("Why do leaves turn yellow?", "Because the days become shorter.\n\n- less light\n- less green"),
    "fr": ("Pourquoi les feuilles jaunissent-elles ?", "Parce que les jours raccourcissent."),
    "ar": ("لماذا تصفرّ الأوراق؟", "لأن الأيام تقصر.\nThis line is English."),
    "ja": ("なぜ葉は黄色くなるのですか。", "日が短くなるからです。"),
    "ru": ("Почему листья желтеют?", "Потому что дни становятся короче."),
}
SERVE = """
import json, sys
from pathlib import Path
from xlift.annotation import campaign, server
options = json.loads(sys.argv[4])
for name, value in options.pop("limits", {}).items():
    setattr(server, name, value)
campaign.serve(campaign.open_campaign(Path(sys.argv[1]), sys.argv[2] or None), port=int(sys.argv[3]), **options)
"""


def responses(languages: Sequence[str], prompts: int, runs: Sequence[str] = RUNS) -> list[dict[str, Any]]:
    """Responses of some runs to the same prompts in some languages."""
    return [
        {
            "id": f"{language}-{number}",
            "parallel_id": f"p{number}",
            "language": language,
            "run": run,
            "step": 5,
            "messages": [{"role": "user", "content": TEXTS[language][0]}],
            "text": f"{TEXTS[language][1]} ({number})",
        }
        for run in runs
        for language in languages
        for number in range(prompts)
    ]


def response_file(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "responses.jsonl"
    write_jsonl(path, records)
    return path


def link_in(text: str) -> str:
    """The path of the personal link that a command prints."""
    found = re.search(r"https?://[^/]+(/enter/\S+)", text)
    assert found is not None, text
    return found[1]


@contextmanager
def serving(
    source: Path, database: str = "", port: int = 0, log: Path | None = None, **options: Any
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The annotation server as a process of its own; its port, and the process. What it says goes to `log`.

    `options` are those of campaign.serve, and `limits` such as {"EXCHANGE_SECONDS": 2} in place of the server's own.
    """
    line = [sys.executable, "-c", SERVE, str(source), database, str(port), json.dumps(options)]
    with log.open("w") if log else nullcontext() as errors:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        found = re.search(r"annotation page: https?://[\w.-]+:(\d+)", told)
        assert found is not None, told
        yield int(found[1]), process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


class Visitor:
    """Somebody who talks to the server: keeps the cookie and, once a page is open, the token against forgery."""

    def __init__(self, port: int, link: str | None = None) -> None:
        self.port, self.cookie, self.csrf = port, "", ""
        if link:
            entered = self.ask("GET", link)
            assert entered[0] == 303, entered
            self.cookie = entered[1]["set-cookie"].split(";")[0]

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers (lower case) and text of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, ({"Cookie": self.cookie} if self.cookie else {}) | (headers or {}))
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text
        finally:
            connection.close()

    def open(self, path: str = "/") -> tuple[str, str]:
        """Follow to a page as a browser does; its address and its text."""
        status, headers, text = self.ask("GET", path)
        while status == 303:
            path = headers["location"]
            status, headers, text = self.ask("GET", path)
        assert status == 200, (status, path)
        token = re.search(r'data-csrf="(\w+)"', text)
        self.csrf = token[1] if token else self.csrf
        if 'action="/begin"' in text:  # the first visit shows the guidelines
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            assert self.ask("POST", "/begin", f"csrf={self.csrf}".encode(), form)[0] == 303
            return self.open("/")
        return path, text

    def save(self, task: str, field: str, value: Any, **headers: str) -> tuple[int, str]:
        body = json.dumps({"field": field, "value": value, "seconds": 1.5}).encode()
        sent = {"Content-Type": "application/json", "X-CSRF-Token": self.csrf} | headers
        status, _, text = self.ask("POST", f"/task/{task}", body, sent)
        return status, text

    def rate(self, task: str, values: dict[str, Any]) -> None:
        for field, value in values.items():
            status, text = self.save(task, field, value)
            assert status == 200, text

    def tasks(self) -> list[str]:
        """The ids of the visitor's tasks, from the overview."""
        return re.findall(r'href="/task/(\w+)"', self.open("/overview")[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL cluster of its own, gone afterwards; its URL without a database. Skips where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    named = shutil.which("initdb")
    if not found and not named:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    programs = found[-1].parent if found else Path(str(named)).parent
    folder = Path(tempfile.mkdtemp(prefix="xlift-postgres-"))
    # PostgreSQL refuses to run as root.
    who: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    data = folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **who)
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", folder]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], stderr=log, cwd=folder, **who)
    try:
        _wait_for(port, server)
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()
        shutil.rmtree(folder)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    for _ in range(300):
        assert server.poll() is None
        try:
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError("PostgreSQL does not answer")


def fresh_database(server: str, name: str) -> str:
    """The URL of a new, empty database."""
    import psycopg

    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server}/{name}"


def open_campaign(source: Path, database: str = "") -> campaigns.Campaign:
    return campaigns.open_campaign(source, database or None)


def all_have_read(campaign: campaigns.Campaign) -> None:
    """Nobody's first page is the guidelines any more."""
    with campaign.database.write.begin() as connection:
        for person in connection.execute(sa.select(db.annotators)).all():
            db.mark_read(connection, person.id)


def records_of(campaign: campaigns.Campaign) -> list[Any]:
    """The ratings that the campaign would export."""
    with campaign.database.read.begin() as connection:
        return list(transfer.rating_records(connection))


@contextmanager
def two_annotators(folder: Path, database: str) -> Iterator[dict[str, Any]]:
    """A campaign of six French responses for each of Ana and Ben, served."""
    source = response_file(folder, responses(["fr"], 3))
    campaign = open_campaign(source, database)
    links = [link_in(campaigns.add(campaign, name, ["fr"], Plan(per_response=2))) for name in ("Ana", "Ben")]
    with serving(source, database) as (port, process):
        visitors = [Visitor(port, link) for link in links]
        yield {"campaign": campaign, "port": port, "visitors": visitors, "links": links, "process": process}
