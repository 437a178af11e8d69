"""The one door for callers: a bare ASGI application that speaks the Open Inference Protocol v2 and lists models as OpenAI does.

It runs as a Ray Serve deployment behind HAProxy, or alone under uvicorn. No framework: this path is taken thousands of times a
second. What it decides is in `invocation.py`; here are only HTTP, and who is asking.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from events.process.clock import now_us
from serving.gateway.body_memory import Held
from serving.gateway.connection import at_once, gone
from serving.gateway.invocation import Answer, Call, invoke, servable
from serving.gateway.routes import Key, Model
from serving.gateway.state import Edge
from serving.metering.refusal_counts import NOBODY, RefusalKey
from serving.model_interface import Tensor
from serving.refused import Headers, Refused, bad, document

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_S_MAX = 30.0
"""A caller who sends slower keeps a connection, never a thread or a batch."""
DRAINED_BYTES_MAX = 64 << 20
"""Of a body that is too large this much is read and dropped, so that the caller hears why instead of a reset."""
IDEMPOTENCY_CHARS_MAX = 255
MODELS_MAX = 10_000
"""As many models as the market is made for; one page."""
JSON: Headers = ((b"content-type", b"application/json"),)


@dataclass(slots=True)
class Request:
    """One HTTP request, and what was found out about it so far: what a refusal is counted by."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive
    began_us: int
    key: Key | None = None
    model: Model | None = None
    operation: str = field(default=NOBODY)


class Gateway:
    """The ASGI application. `edge` is opened at lifespan start and closed at its end."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self._held = Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            request = Request(scope["method"], scope["path"], dict(scope["headers"]), receive, now_us())
            await _send(send, await self._respond(request), request.method == "HEAD")
        else:  # a WebSocket: nothing here speaks it
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.edge.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.edge.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, request: Request) -> Answer:
        try:
            return await self._route(request)
        except Refused as refused:
            self._count(request, refused)
            body, headers = document(refused)
            return Answer(refused.status, headers, body)
        except Exception:
            logger.exception("%s %s", request.method, request.path)
            body, headers = document(Refused(500, "internal_error", "the gateway failed", "", "try again; the operators can see why"))
            return Answer(500, headers, body)

    def _count(self, request: Request, refused: Refused) -> None:
        """A refused call of the API is a fact; a lost health check or a wrong address is not."""
        if request.operation == NOBODY or not self.edge.opened or refused.code in EXECUTED:
            return
        key = request.key
        who = (key.tenant, key.key_id, key.user) if key else (NOBODY, NOBODY, NOBODY)
        model = request.model.model if request.model else NOBODY
        self.edge.meter.refuse(RefusalKey(*who, model, request.operation, refused.status, refused.code))

    async def _route(self, request: Request) -> Answer:
        match request.path.strip("/").split("/"):
            case ["healthz"]:
                state = self.edge.health()
                return Answer(200 if state["status"] == "ready" else 503, JSON, orjson.dumps(state))
            case ["v2"]:
                body = {"name": "modelmarket", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
                return Answer(200, JSON, orjson.dumps(body))
            case ["v2", "health", "live"]:
                return Answer(200, JSON, b"{}")
            case ["v2", "health", "ready"]:
                return Answer(200 if self.edge.ready else 503, JSON, b"{}")
            case ["v1", "models"]:
                return self._list(request)
            case ["v2", "models", name, *rest]:
                return await self._model(request, name, rest)
            case _:
                raise Refused(404, "not_found", f"nothing is at {request.path[:200]}", "", "GET /v2 tells what is spoken here")

    async def _model(self, request: Request, name: str, rest: list[str]) -> Answer:
        pinned = None
        if rest[:1] == ["versions"] and len(rest) > 1:
            pinned, rest = rest[1], rest[2:]
        match rest:
            case []:
                return self._metadata(request, name, pinned)
            case ["ready"]:
                return self._version_ready(request, name, pinned)
            case ["infer"]:
                return await self._infer(request, name, pinned)
            case _:
                raise Refused(404, "not_found", f"nothing is at {request.path[:200]}", "", "a model has infer and ready")

    # --- the operations

    async def _infer(self, request: Request, name: str, pinned: str | None) -> Answer:
        request.operation = "infer"
        _only(request, "POST")
        key = self._caller(request, "invoke")
        request.model, pinned = self._find(name, pinned)
        idempotency = _idempotency(request.headers.get(b"idempotency-key"))
        if encoding := request.headers.get(b"content-encoding"):
            raise Refused(
                415, "encoding", f"bodies come plain, not {encoding.decode('latin-1')[:40]}", "Content-Encoding", "do not compress"
            )
        header_length = _number(request.headers.get(b"inference-header-content-length"), "Inference-Header-Content-Length")
        announced = _number(request.headers.get(b"content-length"), "Content-Length")
        bytes_max = self.edge.settings.infer_bytes_max
        with self._held.body(key.tenant, bytes_max if announced is None else min(announced, bytes_max)):
            body = await _body(request, announced or 0, bytes_max)
            call = Call(
                key, request.model, pinned, name, body, header_length, idempotency, request.began_us, partial(gone, request.receive)
            )
            return await invoke(self.edge, call)

    def _metadata(self, request: Request, name: str, pinned: str | None) -> Answer:
        request.operation = "metadata"
        _only(request, "GET")
        self._caller(request, "invoke")
        request.model, pinned = self._find(name, pinned)
        version = servable(request.model, pinned, canary=False)
        names = [v.version for v in request.model.versions.values() if v.ready]
        body = {
            "name": request.model.model,
            "versions": [version.version] if pinned else names,
            "platform": f"{version.platform}_onnxruntime" if version.platform == "onnx" else version.platform,
            "inputs": [_tensor(t) for t in version.interface.inputs],
            "outputs": [_tensor(t) for t in version.interface.outputs],
        }
        return Answer(200, JSON, orjson.dumps(body))

    def _version_ready(self, request: Request, name: str, pinned: str | None) -> Answer:
        request.operation = "ready"
        _only(request, "GET")
        self._caller(request, "invoke")
        request.model, pinned = self._find(name, pinned)
        version = servable(request.model, pinned, canary=False)
        return Answer(200, JSON, orjson.dumps({"name": request.model.model, "version": version.version, "ready": True}))

    def _list(self, request: Request) -> Answer:
        request.operation = "list"
        _only(request, "GET")
        key = self._caller(request)
        models = self.edge.routes.models.values() if "invoke" in key.scopes else ()
        tariff = self.edge.routes.tariffs.at(key.tenant, request.began_us)
        data = [
            {
                "id": m.model,
                "object": "model",
                "created": m.registered_at // 1_000_000,
                "owned_by": m.provider,
                "pricing": None if tariff is None else tariff.pricing(m.model),
            }
            for m in list(models)[:MODELS_MAX]
            if m.route.weights
        ]
        return Answer(200, JSON, orjson.dumps({"object": "list", "data": data}))

    # --- who asks for what

    def _caller(self, request: Request, scope: str | None = None) -> Key:
        """The key of a request. Raises 503 when too little is known to judge, 401 without a good key, 403 without the scope."""
        self.edge.require_knowledge()
        kind, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        challenge: Headers = ((b"www-authenticate", b'Bearer realm="modelmarket"'),)
        if kind.lower() != b"bearer" or not token:
            raise Refused(401, "no_key", "this needs an API key", "Authorization", "send Authorization: Bearer mk_…", challenge)
        key = self.edge.routes.key(hashlib.sha256(token.strip()).digest(), request.began_us)
        if key is None:
            raise Refused(
                401, "unknown_key", "this API key is unknown, expired or revoked", "Authorization", "ask for a new key", challenge
            )
        request.key = key
        if scope is not None and scope not in key.scopes:
            raise Refused(403, "missing_scope", f"this API key may not {scope}", "Authorization", f"ask for a key with scope {scope}")
        return key

    def _find(self, name: str, pinned: str | None) -> tuple[Model, str | None]:
        found = self.edge.routes.find(name)
        if found is None or (pinned is not None and found[1] not in (None, pinned)):
            raise Refused(404, "unknown_model", f"there is no model {name[:200]!r}", "model", "GET /v1/models lists what you may call")
        return found[0], pinned or found[1]


EXECUTED = frozenset({"inference_failed", "replica_lost", "timed_out", "not_acknowledged", "caller_gone"})
"""Refusals of calls that were executed: each has settled facts of its own."""


def _tensor(t: Tensor) -> dict[str, Any]:
    return {"name": t.name, "datatype": t.datatype, "shape": t.shape}


def _only(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise Refused(405, "wrong_method", f"this takes {method}", "", f"use {method}", ((b"allow", method.encode()),))


def _idempotency(value: bytes | None) -> bytes:
    if value is None:
        return b""
    if not 0 < len(value) <= IDEMPOTENCY_CHARS_MAX or not value.isascii() or not value.decode("ascii").isprintable():
        raise bad(
            "invalid_idempotency_key",
            f"an Idempotency-Key is 1 to {IDEMPOTENCY_CHARS_MAX} printable ASCII characters",
            "Idempotency-Key",
            "send a UUID",
        )
    return value


def _number(value: bytes | None, name: str) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise bad("invalid_header", f"{name} must be a whole number", name)
    return int(value)


async def _body(request: Request, announced: int, bytes_max: int) -> bytes:
    message = at_once(request.receive)
    if message is not None and message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")  # as nearly always: a small body comes with its headers
        if announced <= bytes_max and len(body) <= bytes_max:
            return body
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await _rest(request, message or await request.receive(), bytes_max)
    except TimeoutError:
        raise Refused(408, "slow_body", f"the body did not come within {BODY_S_MAX:.0f} s", "", "send it faster") from None


async def _rest(request: Request, message: MutableMapping[str, Any], bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected", "the caller hung up before the body was complete")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size <= bytes_max:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body") or size > DRAINED_BYTES_MAX:
            break
        message = await request.receive()
    if size > bytes_max:
        raise Refused(413, "body_too_large", f"an inference takes at most {bytes_max} bytes", "", "send fewer rows at a time")
    return b"".join(parts)


async def _send(send: Send, answer: Answer, head_only: bool) -> None:
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else answer.body})
