"""The two ways of a request to the gateway in its replica: straight from the replica's HTTP server, or through Serve's own proxy.

Straight: past Serve's own bookkeeping of each request.

Serve's direct ingress spends as much on a request as the gateway itself: three tasks, an access log line, metrics. The
gateway meters, times and refuses by itself. What is kept: Serve's health and route pages, and graceful draining, since the HTTP
server finishes what is in flight before the replica ends. Named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.

Through the proxy: while HAProxy does not know the replica yet. That proxy cancels the call of a caller who hangs up; but what was
sent to a model is executed, and every execution has its fact, so the call goes on without its caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

logger = logging.getLogger(__name__)

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


class Uncancelled:
    """ASGI application: calls of the gateway that end by themselves, whatever becomes of the task that made them."""

    def __init__(self, gateway: Asgi) -> None:
        self._gateway = gateway
        self._left: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self._gateway(scope, receive, send)
            return
        here = True

        async def hear() -> Message:
            return await receive() if here else {"type": "http.disconnect"}

        async def say(message: Message) -> None:
            if here:
                await send(message)

        call = asyncio.ensure_future(self._gateway(scope, hear, say))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            here = False
            self._left.add(call)  # else nobody holds it
            call.add_done_callback(self._ended)
            raise

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._left.discard(call)
        if not call.cancelled() and (error := call.exception()):
            logger.error("a call whose caller had left failed", exc_info=error)
