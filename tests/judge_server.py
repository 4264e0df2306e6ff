"""A loopback server that speaks the OpenAI-compatible API and misbehaves on demand.

In a test: `with serving(script) as server: ... server.url ... server.state`. On its own, for processes that are killed
and for benchmarks: `python tests/judge_server.py --latency 0.2 --slots 64 --faults 0.3` prints its address and serves
until it is ended; GET /state tells what it has counted.

A script is a function (request body, how often this very request has come before) -> Act. A call counts as paid when
its answer has been sent whole to a client that was still there.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FAULTS = ("429", "500", "slow", "cut", "invalid", "scale", "empty", "refusal", "garbage")
"""Faults of the fault run; the first four and the last are never paid."""


class Act(NamedTuple):
    """What the server does with one request; `body` replaces the whole answer, `cut` closes before it is whole.

    Without `characters_per_token` it tells no tokens.
    """

    content: str | None = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    cut: bool = False
    refusal: str | None = None
    finish: str = "stop"
    body: bytes | None = None
    characters_per_token: float | None = 4.0
    fault: str = ""


Script = Callable[[dict[str, Any], int], Act]


@dataclass
class State:
    """What the server has seen; `paid` counts whole answers by the request that they answer."""

    requests: int = 0
    at_once: int = 0
    most_at_once: int = 0
    paid: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    """What other addresses answer, by path."""


def identity(messages: Any) -> str:
    """One request, whatever parameters it is sent with."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]


def asked_facets(body: dict[str, Any]) -> list[str]:
    """The names that the reply must give values to, from the format shown at the end of the last message."""
    shown = re.findall(r'"(\w+)": N', body["messages"][-1]["content"]) or re.findall(
        r'"(\w+)": N', body["messages"][0]["content"]
    )
    return list(dict.fromkeys(shown))


def honest(body: dict[str, Any], seen: int) -> Act:
    """Ratings that depend on the request alone."""
    mark = int(identity(body["messages"]), 16)
    return Act(json.dumps({name: (mark >> (3 * i)) % 3 for i, name in enumerate(asked_facets(body))}))


def faulty(share: float, seed: int = 0, slow: float = 5.0) -> Script:
    """Misbehaves on this share of requests, by a chance that depends on the request and how often it has come."""

    def script(body: dict[str, Any], seen: int) -> Act:
        chance = random.Random(f"{seed} {identity(body['messages'])} {seen}")
        if chance.random() >= share:
            return honest(body, seen)
        return misbehaving(chance.choice(FAULTS), body, slow)

    return script


def misbehaving(fault: str, body: dict[str, Any], slow: float = 5.0) -> Act:
    names = asked_facets(body)
    acts = {
        "429": Act(status=429, headers=(("Retry-After", "0.1"),)),
        "500": Act(status=500),
        "slow": honest(body, 0)._replace(delay=slow),
        "cut": honest(body, 0)._replace(cut=True),
        "invalid": Act('{"language": , "flu'),
        "scale": Act(json.dumps(dict.fromkeys(names, 5))),
        "empty": Act(""),
        "refusal": Act(None, refusal="I can't help with that."),
        "garbage": Act(body=b"<html>bad gateway</html>"),
    }
    return acts[fault]._replace(fault=fault)


class _Server:
    def __init__(self, script: Script, latency: float, slots: int, remember: bool) -> None:
        self.script, self.latency, self.remember = script, latency, remember
        self.slots = asyncio.Semaphore(slots)
        self.state = State()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").split("\r\n")
                method, path, _ = line.split(" ")
                headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields if one)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self.respond(method, path, headers, body, reader, writer):
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return
        finally:
            writer.close()

    async def respond(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Whether the connection stays open."""
        if path.endswith("/completions"):
            return await self.chat(json.loads(body), headers, reader, writer)
        status, answer = self.other(method, path, headers, body)
        send(writer, status, answer)
        await writer.drain()
        return True

    async def chat(
        self,
        body: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        state, mark = self.state, identity(body.get("messages", body.get("prompt")))
        act = self.script(body, state.seen[mark])
        state.requests += 1
        state.seen[mark] += 1
        state.faults[act.fault] += 1
        state.statuses[str(act.status)] += 1
        if self.remember:
            state.bodies.append(body)
            state.headers.append(headers)
        state.at_once += 1
        state.most_at_once = max(state.most_at_once, state.at_once)
        try:
            async with self.slots:
                await asyncio.sleep(self.latency + act.delay)
        finally:
            state.at_once -= 1
        if reader.at_eof() or writer.is_closing():
            return False
        answer = act.body if act.body is not None else encoded(act, body)
        if act.cut:
            send(writer, act.status, answer, act.headers, answer[: len(answer) // 2])
            await writer.drain()
            return False
        if act.status == 200 and act.body is None:
            state.paid[mark] += 1
        send(writer, act.status, answer, act.headers)
        await writer.drain()
        return True

    def other(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        state = self.state
        parts = path.split("?")[0].strip("/").split("/")
        if path in state.told:
            return 200, json.dumps(state.told[path]).encode()
        if parts == ["state"]:
            names = ("requests", "most_at_once", "paid", "faults", "statuses")
            return 200, json.dumps({name: getattr(state, name) for name in names}).encode()
        if parts[-1] == "files" and method == "POST":
            name = f"file-{len(state.files)}"
            state.files[name] = uploaded(headers["content-type"], body)
            return 200, json.dumps(file_object(name, len(state.files[name]))).encode()
        if parts[-1] == "content":
            return 200, state.files[parts[-2]]
        if parts[-1] == "batches" and method == "POST":
            return 200, json.dumps(self.new_batch(json.loads(body))).encode()
        if parts[-1] == "batches":
            found = list(state.batches.values())
            return 200, json.dumps({"object": "list", "data": found, "has_more": False}).encode()
        if parts[:-1] and parts[-2] == "batches":
            return 200, json.dumps(self.polled(parts[-1])).encode()
        return 404, b'{"error": {"message": "no such address"}}'

    def new_batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self.state.batches)}"
        batch = {"id": name, "object": "batch", "status": "in_progress", "created_at": 0, "errors": None}
        self.state.batches[name] = {**asked, **batch, "output_file_id": None, "error_file_id": None}
        return self.state.batches[name]

    def polled(self, name: str) -> dict[str, Any]:
        """A batch is done when it is asked for the second time."""
        batch = self.state.batches[name]
        batch["polls"] = batch.get("polls", 0) + 1
        if batch["polls"] == 2:
            lines = [json.loads(line) for line in self.state.files[batch["input_file_id"]].splitlines()]
            results = [self.batch_line(line) for line in lines]
            output = f"file-{len(self.state.files)}"
            self.state.files[output] = b"".join(json.dumps(one).encode() + b"\n" for one in results)
            batch |= {"status": "completed", "output_file_id": output}
        return batch

    def batch_line(self, line: dict[str, Any]) -> dict[str, Any]:
        body, mark = line["body"], identity(line["body"]["messages"])
        act = self.script(body, self.state.seen[mark])
        self.state.seen[mark] += 1
        if act.status == 200:
            self.state.paid[mark] += 1
        response = {"status_code": act.status, "body": json.loads(encoded(act, body))}
        return {"id": mark, "custom_id": line["custom_id"], "response": response, "error": None}


def encoded(act: Act, body: dict[str, Any]) -> bytes:
    if act.status != 200:
        return json.dumps({"error": {"message": act.content or f"status {act.status}", "code": act.fault}}).encode()
    message = {"role": "assistant", "content": act.content, "refusal": act.refusal}
    completion: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": act.finish}],
    }
    if act.characters_per_token:
        shown = sum(len(one["content"]) for one in body["messages"])
        counts = [int(length / act.characters_per_token) + 1 for length in (shown, len(act.content or ""))]
        completion["usage"] = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
    return json.dumps(completion).encode()


def send(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
    part: bytes | None = None,
) -> None:
    """Write an answer; with `part`, only that much of the promised body."""
    kind = "text/html" if body.startswith(b"<") else "application/json"
    lines = [f"HTTP/1.1 {status} -", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body if part is None else part))


def uploaded(content_type: str, body: bytes) -> bytes:
    """The file in a multipart form."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    part = next(one for one in body.split(b"--" + boundary) if b"filename=" in one)
    return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


def file_object(name: str, size: int) -> dict[str, Any]:
    fields = {"object": "file", "bytes": size, "created_at": 0, "filename": "batch.jsonl"}
    return {"id": name, **fields, "purpose": "batch", "status": "processed"}


class Serving(NamedTuple):
    url: str
    state: State


@contextmanager
def serving(
    script: Script = honest, latency: float = 0.0, slots: int = 1000, remember: bool = True
) -> Iterator[Serving]:
    """The server in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[asyncio.Server, _Server]:
        server = _Server(script, latency, slots, remember)
        return await asyncio.start_server(server.connection, "127.0.0.1", 0, limit=2**24), server

    listening, server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield Serving(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", server.state)
    finally:
        asyncio.run_coroutine_threadsafe(_end(listening), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(listening: asyncio.Server) -> None:
    listening.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _serve(arguments: argparse.Namespace) -> None:
    script = faulty(arguments.faults, arguments.seed, arguments.slow) if arguments.faults else honest
    server = _Server(script, arguments.latency, arguments.slots, remember=False)
    listening = await asyncio.start_server(server.connection, "127.0.0.1", 0, limit=2**24, backlog=1024)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    async with listening:
        await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--slots", type=int, default=1000, help="requests worked on at one time")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds of a slow answer")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
