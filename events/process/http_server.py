"""The HTTP server of an API: a silent or slow client keeps a connection for seconds only, and only while nobody else wants it; one address keeps
a part of them.

The only file of the rooms that imports uvicorn. Time-outs and shares are ours: uvicorn waits for ever for the first header of a request.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from events.process.problem import Violation, problem

HEADERS_S_MAX = 10.0
"""From the connection, or the first byte of a later request, to the end of its headers."""
HEADERS_BYTES_MAX = 64 << 10
"""The parser has no bound of its own."""
KEEP_ALIVE_S, GRACE_S = 30, 10
"""A silent connection after an answer; requests under way at the end, so that a slow sender keeps no failed process alive."""
LINGER_S = 3.0
"""How long a server that leaves answers on connections that are open, and asks each caller to take a new one."""
CONNECTIONS_MAX, ADDRESS_CONNECTIONS_MAX = 1024, 256
SWITCH_S = 0.001
"""After so long a thread at work lets the event loop run, if that wants to: Python's own 5 ms, of each of eight threads in turn, are 40 ms at
each step of a request. In pure Python it costs a fiftieth of the work at most."""
WARNED_S = 60.0
_REFUSED = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
Server = uvicorn.Server
_TOO_MANY = orjson.dumps(
    problem(429, [Violation("too_many_connections", "this address has too many connections", "", "reuse connections")])
)


def make_server(app: Any, host: str, port: int, **options: Any) -> uvicorn.Server:
    """`options` as of `server_config`."""
    return uvicorn.Server(server_config(app, host, port, **options))


def server_config(
    app: Any,
    host: str,
    port: int,
    *,
    connections_max: int = CONNECTIONS_MAX,
    address_max: int = ADDRESS_CONNECTIONS_MAX,
    headers_s_max: float = HEADERS_S_MAX,
    **more: Any,
) -> uvicorn.Config:
    """`more` are settings of uvicorn. Behind a proxy every caller has its address: raise `address_max` there."""
    sys.setswitchinterval(SWITCH_S)

    class Connection(BoundedConnection):
        connections_of, silent, idle = Counter[str](), dict[BoundedConnection, None](), dict[BoundedConnection, None]()
        address_connections_max, headers_wait_s = address_max, headers_s_max

    return uvicorn.Config(
        app,
        host,
        port,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        limit_concurrency=connections_max,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        **more,
    )


class LeavingServer(uvicorn.Server):
    """A server on a socket that others accept on, too. It refuses no call when it ends: it stops accepting, asks the caller of each further call
    to take a new connection, and closes a connection only when it is silent. Signals are left to its owner."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        connections = self.server_state.connections
        BoundedConnection.leave(self.config.http_protocol_class, connections)
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_S
        while connections and loop.time() < until:  # noqa: ASYNC110 - uvicorn keeps a set of them, without an event
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


class PausingServer:
    """Accepts on a socket that others accept on, too, whenever it is told to."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        self._listening, self._accepting = listening, False
        self._server = uvicorn.Server(config)
        config.load()
        self._server.lifespan = config.lifespan_class(config)

    async def accept(self, wanted: bool) -> None:
        """Connections that are open when it stops are answered all the same."""
        if wanted and not self._accepting:
            await self._server.startup(sockets=[self._listening.dup()])
        elif self._accepting and not wanted:
            for server in self._server.servers:
                server.close()
        self._accepting = wanted
        await self._server.on_tick(0)  # the Date of its answers


class _OncePerMinute(logging.Filter):
    """The library warns of each malformed request and of each connection past its bound: a flood of them is a line a minute, with their number."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: dict[str, tuple[float, int]] = {}
        """Text → when it was last written, and how often it was not since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        at, left_out = self._warned.get(record.msg, (-WARNED_S, 0))
        if record.created - at < WARNED_S:
            self._warned[record.msg] = at, left_out + 1
            return False
        self._warned[record.msg] = record.created, 0
        if left_out:
            record.msg = f"{record.msg} (and {left_out} more times)"
        return True


logging.getLogger("uvicorn.error").addFilter(_OncePerMinute())


class BoundedConnection(HttpToolsProtocol):
    """One connection. Each server has a class of its own, which holds its bounds and counts.

    Where an address or the server has no connection left, a new one takes the place of the oldest whose headers are not complete, or else of the
    longest idle: all callers behind a proxy have one address, and sockets that say nothing must not refuse those who do.
    """

    connections_of: Counter[str]
    silent: dict[BoundedConnection, None]
    """Without complete headers, the oldest first."""
    idle: dict[BoundedConnection, None]
    """After an answer, the longest idle first."""
    address_connections_max: int
    headers_wait_s: float
    leaving = False
    """Of the whole server: each further answer ends its connection."""
    _waiting: asyncio.TimerHandle | None = None
    _address: str | None = None
    """None before the connection is made, and again when it is no longer counted."""
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._address = address = self.client[0] if self.client else ""
        self.connections_of[address] += 1
        if self.connections_of[address] > self.address_connections_max and not self._takes_place(address):
            transport.write(_REFUSED % (len(_TOO_MANY), _TOO_MANY))
            transport.close()
            return
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._takes_place(None)  # if there is none, the library answers 503
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._uncount()
        super().connection_lost(exc)

    def _takes_place(self, address: str | None) -> bool:
        """Whether another connection, of this address unless it is None, was closed for this one."""
        for other in (*self.silent, *self.idle):
            if address in (None, other._address) and not other.transport.get_write_buffer_size():
                other._uncount()
                other.transport.abort()
                return True
        return False

    def _uncount(self) -> None:
        self._stop_waiting()
        self.idle.pop(self, None)
        self.connections.discard(self)
        if self._address is not None:
            self.connections_of[self._address] -= 1
            if not self.connections_of[self._address]:
                del self.connections_of[self._address]
            self._address = None

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison] (None before the first request)
            self._wait_for_headers()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._waiting is not None and self._head_bytes > HEADERS_BYTES_MAX:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._head_bytes = 0
        super().on_headers_complete()
        if self.leaving:
            self.cycle.keep_alive = False

    @staticmethod
    def leave(kind: Any, connections: Iterable[Any]) -> None:
        """From now on every answer on a connection of this kind is its last."""
        kind.leaving = True
        for connection in connections:
            if connection.cycle is not None:
                connection.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.idle[self] = None

    def _wait_for_headers(self) -> None:
        if self._waiting is None:
            self.idle.pop(self, None)
            self.silent[self] = None
            self._waiting = self.loop.call_later(self.headers_wait_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        self.silent.pop(self, None)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
