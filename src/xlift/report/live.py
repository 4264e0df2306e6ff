"""The report while a study runs: a page on this machine alone, read-only, written anew when there is something new."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from xlift.errors import ConfigError, UserError
from xlift.progress import say
from xlift.redaction import redacted
from xlift.report.page import page_text
from xlift.report.reading import material_of
from xlift.workspace import StudyFolder

HOST = "127.0.0.1"
"""Nobody else can reach it: responses may be private."""
SLOWEST = 30.0
"""Seconds that a browser may be silent in the middle of a request."""
WAITING = 100
"""Browsers that may knock at once; of more, some are turned away by the system."""
SCRIPT = """(() => {
  const seen = "STATE";
  setInterval(async () => {
    const found = await fetch("/state").then(answer => answer.ok ? answer.text() : seen).catch(() => seen);
    if (found !== seen && !document.getElementById("news")) {
      const news = document.createElement("button");
      news.id = "news"; news.textContent = "New results: show them";
      news.addEventListener("click", () => location.reload());
      document.body.append(news);
      if (scrollY < 200) location.reload();
    }
  }, 5000);
})();"""
"""STATE is that of the files when the page was begun: what comes while it is made is news, too."""


def state_of(folder: Path) -> str:
    """What changes whenever a file of a study that its report is made from does."""
    kinds = ("*.jsonl", "runs/*/*.json*", "runs/*/responses/*.jsonl", "runs/*/ratings/*.jsonl", "study.yaml")
    files = sorted(path for kind in kinds for path in folder.glob(kind))
    told = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files if path.is_file()]
    return hashlib.sha256("|".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def page_of(open_study: Callable[[], StudyFolder], folder: Path) -> Callable[[], bytes]:
    """A function that gives the page of a study as it is now; it is made again only where a file has changed.

    All who ask are given the same bytes: of a large study a copy for each would fill the memory.
    """
    kept: dict[str, bytes] = {}
    lock = threading.Lock()

    def page() -> bytes:
        with lock:
            state = state_of(folder)
            if state not in kept:
                text = page_text(material_of(open_study()), SCRIPT.replace("STATE", state))
                kept.clear()
                kept[state] = text.encode("utf-8", "backslashreplace")
            return kept[state]

    return page


def server_of(open_study: Callable[[], StudyFolder], port: int) -> ThreadingHTTPServer:
    """A server of the page, bound to this machine. Raises ConfigError where the port is taken."""
    folder = open_study().path
    page = page_of(open_study, folder)

    class Handler(BaseHTTPRequestHandler):
        timeout = SLOWEST

        def handle(self) -> None:
            # Who is gone, be it in the middle of a request, is owed no answer.
            with suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            # Another site that a browser has open may not read along under a name of its own.
            if self.headers.get("Host", "").partition(":")[0] not in {HOST, "localhost"}:
                return self.send_error(403, "only 127.0.0.1 and localhost")
            if self.path not in {"/", "/state"}:
                return self.send_error(404, "the report is at /")
            try:
                body = state_of(folder).encode("ascii") if self.path == "/state" else page()
            except (UserError, OSError) as error:
                return self.send_error(500, "the study cannot be read now", redacted(str(error)))
            self.send_response(200)
            kind = "text/plain" if self.path == "/state" else "text/html"
            for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            for name, value in (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = WAITING

    try:
        return Server((HOST, port), Handler)
    except OSError:
        raise ConfigError(f"port {port} is taken", "choose another: --port 0 takes any that is free") from None


def view(open_study: Callable[[], StudyFolder], port: int) -> None:
    """Serve the page until Ctrl-C."""
    with server_of(open_study, port) as server:
        say(f"report: http://{HOST}:{server.server_address[1]}/  (as the study goes on; Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
