"""What callers are told while no gateway process accepts: 503 with Retry-After, as the gateway itself would say it. An ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from serving.http import JSON, Answer, refusal_answer
from serving.protocols.errors import protocol_error
from serving.refused import unavailable

RETRY_AFTER_S = 2
BODY_S_MAX = 10.0
"""For a body, which is read and thrown away: a caller who still sends would not see the answer."""

Message = dict[str, Any]


class Unserved:
    """`detail` says why, for `/healthz`."""

    def __init__(self, detail: Callable[[], str]) -> None:
        self._detail = detail

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        answer = self._health() if scope["path"].strip("/") == "healthz" else _refusal(scope["path"])
        try:
            async with asyncio.timeout(BODY_S_MAX):
                while (message := await receive()).get("more_body") and message["type"] == "http.request":
                    pass
        except TimeoutError:
            pass
        length = (b"content-length", str(len(answer.body)).encode())
        headers = [*answer.headers, length, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def _health(self) -> Answer:
        document = {"status": "starting", "lag": None, "detail": f"no gateway accepts calls yet: {self._detail()}"}
        return Answer(503, ((b"retry-after", str(RETRY_AFTER_S).encode()), *JSON), orjson.dumps(document))


def _refusal(path: str) -> Answer:
    refused = unavailable("gateway_away", "no gateway accepts calls now; one is being started", RETRY_AFTER_S)
    return refusal_answer(refused, protocol_error(path, refused))
