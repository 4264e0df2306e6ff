"""The web server around the page: how long, how much and how many, so that no client holds up the others.

From the first byte of a request to the last of its answer there are 30 seconds; what comes later, or is too large, is
cut. Where too many connect, whoever has waited longest without a whole request has to go. Trouble of one kind is told
once a minute.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import time
from collections import Counter
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from xlift.annotation.door import HEADERS
from xlift.errors import ConfigError
from xlift.progress import say

EXCHANGE_SECONDS = 30.0
MAX_HEADERS = 16 * 1024
MAX_REQUEST = 1024 * 1024
"""The page answers that a body is too large long before; here whoever sends on is cut."""
MAX_CONNECTIONS = 400
GRACE_SECONDS = 5
TOLD_EVERY = 60.0
MAX_KINDS = 100

log = logging.getLogger("xlift.annotation")


class Connection(H11Protocol):
    """One client's connection, whose exchanges end in time or are cut."""

    since = 0.0
    received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > _most():
            waiting = [one for one in self.connections if isinstance(one, Connection) and not one.at_work()]
            min(waiting, key=lambda one: one.since).cut("too many connections at once")

    def data_received(self, data: bytes) -> None:
        if self.at_rest():
            self.since, self.received = self.loop.time(), 0
        self.received += len(data)
        if self.received > MAX_REQUEST:
            self.cut("a request is too large")
        else:
            super().data_received(data)

    def at_rest(self) -> bool:
        """Whether a request has been answered to the last byte and no other begun."""
        answered = self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.IDLE
        return answered and not self.conn.trailing_data[0] and not self.transport.get_write_buffer_size()

    def at_work(self) -> bool:
        """Whether a whole request is there whose answer is being made."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def cut(self, reason: str) -> None:
        log.warning("a connection was cut: %s", reason)
        self.connections.discard(self)
        self.transport.abort()

    def shutdown(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.transport.abort()  # half a request would be waited for
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the page still says is not sent after this
            self.cycle.message_event.set()
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # the answer has begun already
            return
        headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        headers += [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (answer, h11.Data(data=msg.encode()), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Looks after its connections once a second, and ends by a signal as after any other work: with exit code 0."""

    def __init__(self, config: uvicorn.Config, quiet: OnceAMinute) -> None:
        super().__init__(config)
        self.quiet = quiet

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for one in list(self.server_state.connections):
                if isinstance(one, Connection) and now - one.since > EXCHANGE_SECONDS and not one.at_rest():
                    one.cut("the client is too slow")
            self.quiet.tell()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit, self.should_exit = self.should_exit, True  # the second time, at once


class OnceAMinute(logging.Filter):
    """Lets each kind of trouble through once a minute; `tell` says how often it came besides."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, float] = {}
        self.held: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        kind = self._kind(record)
        if kind in self.told:
            self.held[kind] += 1
            return False
        self.told[kind] = time.monotonic()
        return True

    def _kind(self, record: logging.LogRecord) -> str:
        error = f" ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else ""
        kind = re.sub(r"\d+", "…", record.getMessage().strip().partition("\n")[0][:200]) + error
        return kind if kind in self.told or len(self.told) < MAX_KINDS else "other trouble"

    def tell(self, at_end: bool = False) -> None:
        """Say what was held back, of every kind whose minute is over, or `at_end` of all."""
        for kind, since in list(self.told.items()):
            if at_end or time.monotonic() - since >= TOLD_EVERY:
                del self.told[kind]
                if count := self.held.pop(kind, 0):
                    say(f"{kind} ({count} times more)")


def run(app: ASGIApp, listener: socket.socket, proxy: str = "") -> None:
    """Serve until a signal ends it; `proxy` names the addresses, or networks, whose word on a client's address counts.

    Raises ConfigError where `proxy` is no address.
    """
    quiet = OnceAMinute()
    handler = logging.StreamHandler()
    handler.addFilter(quiet)
    for name in ("uvicorn", "asyncio", log.name):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # it would hold the secret links
        server_header=False,
        proxy_headers=bool(proxy),
        forwarded_allow_ips=trusted(proxy),
        backlog=100,  # also how many are let in before the first of them is looked at
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config, quiet).run(sockets=[listener])
    quiet.tell(at_end=True)


# e.g. trusted("10.0.0.1, 192.168.0.0/16") → ["10.0.0.1", "192.168.0.0/16"]
def trusted(proxy: str) -> list[str]:
    """The addresses and networks that `--proxy` names. Raises ConfigError with every one that is none."""
    names = [name.strip() for name in proxy.split(",") if name.strip()]
    wrong = [f"--proxy: '{name}' is neither an address nor a network" for name in names if not _is_network(name)]
    if wrong:
        raise ConfigError(wrong, "--proxy 127.0.0.1, or a network such as 10.0.0.0/8; several with commas")
    return names


def _is_network(name: str) -> bool:
    try:
        return bool(ipaddress.ip_network(name))
    except ValueError:
        return False


def _most() -> int:
    """Connections that are held at once: what the system lets a process open must do for the rest as well."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS
    return max(10, min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
