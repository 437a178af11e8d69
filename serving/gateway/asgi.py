"""The gateway as a bare ASGI application: HTTP in, one pipeline for all protocols, HTTP out.

No framework: this path is taken thousands of times a
second. What happens to a call is in `pipeline.py`; what stands at which path, in `serving.protocols`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from events.process.clock import now_us
from serving.gateway.pipeline import Pipeline
from serving.gateway.request import Message, Receive, Request
from serving.gateway.state import GatewayState
from serving.http import JSON, Answer, refusal_answer
from serving.metering.refusal_counts import UNKNOWN, RefusalKey
from serving.protocols.errors import protocol_error
from serving.protocols.open_inference import operations as open_inference
from serving.protocols.openai import operations as openai
from serving.protocols.operations import Operation
from serving.refused import Refused

logger = logging.getLogger(__name__)

Send = Callable[[Message], Awaitable[None]]

PROTOCOLS: dict[str, Callable[[list[str]], Operation | None]] = {"v2": open_inference.operation, "v1": openai.operation}
"""By the first segment of the path: the operation at the rest of it."""
EXECUTED = frozenset({"inference_failed", "replica_lost", "timed_out", "not_acknowledged", "caller_disconnected", "answer_not_written"})
"""Refusals of calls that were executed: each has settled facts of its own."""


class Gateway:
    """The ASGI application. Its owner starts `state` before, and closes the gateway after the last call."""

    def __init__(self, state: GatewayState) -> None:
        self.state = state
        self._pipeline = Pipeline(state)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope["method"], scope["path"], dict(scope["headers"]), receive, now_us())
            await _send(send, await self._respond(request), request.method == "HEAD")
        else:  # a WebSocket: no protocol here uses it
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def close(self) -> None:
        await self._pipeline.close()
        await self.state.stop()

    async def _respond(self, request: Request) -> Answer:
        try:
            segments = request.path.strip("/").split("/")
            if segments == ["healthz"]:
                return self._health()
            protocol = PROTOCOLS.get(segments[0])
            operation = None if protocol is None else protocol(segments[1:])
            if operation is None:
                raise Refused(
                    404,
                    "not_found",
                    f"nothing is at {request.path[:200]}",
                    "",
                    "GET /v2 describes this server; GET /v1/models lists models",
                )
            return await self._pipeline.answer(request, operation)
        except Refused as refused:
            self._count(request, refused)
            return _refusal(request, refused)
        except Exception:
            logger.exception("%s %s", request.method, request.path)
            return _refusal(request, Refused(500, "internal_error", "the gateway failed", "", "try again; the operators can see why"))

    def _health(self) -> Answer:
        health: dict[str, Any] = self.state.health()
        return Answer(200 if health["status"] == "ready" else 503, JSON, orjson.dumps(health))

    def _count(self, request: Request, refused: Refused) -> None:
        """A refused call of an operation becomes a fact; a failed health check or a wrong address does not."""
        if request.operation == UNKNOWN or not self.state.opened or refused.code in EXECUTED:
            return
        caller = request.caller
        who = (caller.tenant, caller.key_id, caller.user) if caller else (UNKNOWN, UNKNOWN, UNKNOWN)
        model = request.model.model if request.model else UNKNOWN
        self.state.meter.count_refusal(RefusalKey(*who, model, request.operation, refused.status, refused.code))


def _refusal(request: Request, refused: Refused) -> Answer:
    return refusal_answer(refused, protocol_error(request.path, refused))


async def _send(send: Send, answer: Answer, head_only: bool) -> None:
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else answer.body})
