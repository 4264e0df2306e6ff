"""A small hub on loopback: the part of the Hugging Face hub's protocol that downloads need, over real HTTP.

It serves repositories held in memory, keeps every commit, refuses like the hub does (`X-Error-Code`) and remembers
what it was asked for. Large-file storage (xet, LFS redirects) is not offered.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """One model or dataset: its commits by sha, its branches, and whether it is gated."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False


class Hub:
    """The served repositories by path ("org/name", "datasets/org/name") and the log of requests.

    Downloads whose path begins with `cut` break off before the answer. `writer` is the token that may write.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.cut = ""
        self.writer = ""

    def publish(self, path: str, files: Files | Path, branch: str = "main", gated: bool = False) -> str:
        """Commit `files` (or a folder of files) to a branch; returns the commit's sha."""
        content = files if isinstance(files, dict) else {one.name: one.read_bytes() for one in files.iterdir()}
        repository = self.repositories.setdefault(path, Repository())
        sha = hashlib.sha1(repr((path, len(repository.commits), sorted(content.items()))).encode()).hexdigest()
        repository.commits[sha] = content
        repository.branches[branch] = sha
        repository.gated = gated
        return sha

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process that knows no other hub and starts with the cache in `home`."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_UPDATE_DOWNLOAD_COUNTS": "false"}
        return ours | {"NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}

    def answer(self, path: str, token: str | None = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a requested path; every token but the writer's is refused."""
        if token and token != f"Bearer {self.writer}":
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        api = path.startswith("api/")
        parts = path.removeprefix("api/").removeprefix("models/").split("/")
        size = 3 if parts[0] == "datasets" else 2
        name, action, rest = "/".join(parts[:size]), parts[size : size + 1], parts[size + 1 :]
        repository = self.repositories.get(name)
        if repository is None:
            return _refusal(404, "RepoNotFound")
        # As on the hub, a gated repository shows its listing to everyone and its files to nobody unknown.
        if repository.gated and not api:
            return _refusal(401, "GatedRepo")
        revision = unquote(rest[0]) if rest else "main"
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return _refusal(404, "RevisionNotFound")
        files = repository.commits[sha]
        if action in ([], ["revision"]):
            return _as_json({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        if action in (["tree"], ["paths-info"]):
            return _as_json([_entry(path, data) for path, data in sorted(files.items())])
        return _file(files.get("/".join(rest[1:])), sha)

    def write(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Makes repositories and commits, as the writer alone may; small files only, none by large-file storage."""
        if path == "api/validate-yaml":
            return _as_json({"errors": [], "warnings": []})
        if not self.writer or token != f"Bearer {self.writer}":
            return 401, {"X-Error-Message": "Invalid username or password."}, b""
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            name = f"datasets/{name}" if asked.get("type") == "dataset" else name
            self.publish(name, {})
            return _as_json({"url": f"{self.url}/{name}"})
        kind, owner, name, action, _ = path.removeprefix("api/").split("/", 4)
        repository = f"{owner}/{name}" if kind == "models" else f"datasets/{owner}/{name}"
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return _as_json({"files": modes})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {one["value"]["path"]: b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
        sha = self.publish(repository, added)
        return _as_json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{owner}/{name}/commit/{sha}"})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _refusal(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b""


def _as_json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _file(data: bytes | None, sha: str) -> tuple[int, dict[str, str], bytes]:
    if data is None:
        return _refusal(404, "EntryNotFound")
    return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha}, data


@contextmanager
def serve() -> Iterator[Hub]:
    """An empty hub, reachable at its `url` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            hub.requests.append(f"{self.command} {path}")
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.cut and path.startswith(hub.cut) and self.command == "GET":
                self.close_connection = True
                return
            token = self.headers.get("Authorization")
            writing = path.startswith("api/repos/") or any(
                f"/{one}" in path for one in ("preupload/", "commit/", "validate-yaml")
            )
            status, headers, body = hub.write(path, token, sent) if writing else hub.answer(path, token)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
