"""Takes requests to the gateway straight from the HTTP server of its replica, past Serve's own bookkeeping of each request.

Serve's direct ingress spends as much on a request as the gateway itself: three tasks, an access log line, metrics. The
gateway meters, times and refuses by itself. What is kept: Serve's health and route pages, and graceful draining, since the HTTP
server finishes what is in flight before the replica ends. Named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

Message = MutableMapping[str, Any]
Asgi = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_here: list[Asgi] = []
"""The gateway of this process, if it has one. Serve asks for middleware in every process with an HTTP server, and passes no state."""


def take_over(gateway: Asgi) -> None:
    """From now on the HTTP server that this process starts calls `gateway`."""
    _here[:] = [gateway]


def middlewares() -> list[Middleware]:
    """Called by Serve before it starts a replica's HTTP server, after the replica was made."""
    return [Middleware(Direct, gateway=_here[0])] if _here else []


class Direct:
    """ASGI middleware: Serve's own pages go on to Serve, the rest to the gateway."""

    def __init__(self, app: Asgi, gateway: Asgi) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        inner = scope["type"] == "lifespan" or scope["path"].startswith("/-/")
        await (self._app if inner else self._gateway)(scope, receive, send)
