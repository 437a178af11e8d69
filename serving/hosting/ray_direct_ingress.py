"""How a request reaches the gateway in its replica: directly from the replica's HTTP server, or through Serve's own proxy.

Directly (`DirectIngress`): past Serve's own handling of each request, which costs as much as the gateway itself: three tasks, an access
log line, metrics. The gateway meters, times and refuses by itself. Kept are Serve's health and route pages, and graceful draining,
since the HTTP server finishes the open requests before the replica ends. RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names `middlewares`.

Through the proxy (`FinishesAlways`): while HAProxy does not know the replica yet. That proxy cancels the call of a caller who
disconnects; but what was sent to a model is executed, and every execution has its fact, so the call goes on without its caller.
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

_gateways: list[Asgi] = []
"""The gateway of this process, if it has one. Serve asks for middleware in every process with an HTTP server, and passes no state."""


def serve_directly(gateway: Asgi) -> None:
    """From now on the HTTP server that this process starts calls `gateway`."""
    _gateways[:] = [gateway]


def middlewares() -> list[Middleware]:
    """Called by Serve before it starts a replica's HTTP server, after the replica was made."""
    return [Middleware(DirectIngress, gateway=_gateways[0])] if _gateways else []


class DirectIngress:
    """ASGI middleware: Serve's own pages go on to Serve, the rest to the gateway."""

    def __init__(self, app: Asgi, gateway: Asgi) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        inner = scope["type"] == "lifespan" or scope["path"].startswith("/-/")
        await (self._app if inner else self._gateway)(scope, receive, send)


class FinishesAlways:
    """ASGI application: a call of the gateway runs to its end, also when the task that awaits it is cancelled."""

    def __init__(self, gateway: Asgi) -> None:
        self._gateway = gateway
        self._detached: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self._gateway(scope, receive, send)
            return
        connected = True

        async def receive_while_connected() -> Message:
            return await receive() if connected else {"type": "http.disconnect"}

        async def send_while_connected(message: Message) -> None:
            if connected:
                await send(message)

        call = asyncio.ensure_future(self._gateway(scope, receive_while_connected, send_while_connected))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            connected = False
            self._detached.add(call)  # asyncio keeps only a weak reference to a task
            call.add_done_callback(self._detached_ended)
            raise

    def _detached_ended(self, call: asyncio.Task[None]) -> None:
        self._detached.discard(call)
        if not call.cancelled() and (error := call.exception()):
            logger.error("a call whose caller had disconnected failed", exc_info=error)
