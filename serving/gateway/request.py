"""One HTTP request: its body, read within bounds, and whether its caller is still connected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

from access.principal import Principal
from serving.gateway.served_models import Model
from serving.metering.refusal_counts import UNKNOWN
from serving.refused import Refused, bad

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BODY_S_MAX = 30.0
"""A caller who sends slower keeps a connection, never a thread or a batch."""
DRAINED_BYTES_MAX = 64 << 20
"""Of a body that is too large this much is read and dropped, so that the caller gets the reason instead of a reset connection."""
IDEMPOTENCY_CHARS_MAX = 255


@dataclass(slots=True)
class Request:
    """What arrived, and what the steps of the pipeline found out about it: by that its refusal is counted, or its usage recorded."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive
    began_us: int
    operation: str = UNKNOWN
    caller: Principal | None = None
    model: Model | None = None
    addressed: str = ""
    """The model as the caller named it."""
    idempotency_key: bytes = b""
    body: bytes = b""

    def require_method(self, method: str) -> None:
        """Raises Refused (405)."""
        if self.method != method and not (method == "GET" and self.method == "HEAD"):
            raise Refused(405, "wrong_method", f"this takes {method}", "", f"use {method}", headers=((b"allow", method.encode()),))

    def require_plain_body(self) -> None:
        """Raises Refused (415) when the body is compressed."""
        if encoding := self.headers.get(b"content-encoding"):
            raise Refused(
                415, "encoding", f"bodies come plain, not {encoding.decode('latin-1')[:40]}", "Content-Encoding", "do not compress"
            )

    def read_idempotency_key(self) -> None:
        """Raises Refused (400)."""
        value = self.headers.get(b"idempotency-key")
        if value is None:
            return
        if not 0 < len(value) <= IDEMPOTENCY_CHARS_MAX or not value.isascii() or not value.decode("ascii").isprintable():
            raise bad(
                "invalid_idempotency_key",
                f"an Idempotency-Key is 1 to {IDEMPOTENCY_CHARS_MAX} printable ASCII characters",
                "Idempotency-Key",
                "send a UUID",
            )
        self.idempotency_key = value

    async def read_body(self, announced: int, bytes_max: int) -> None:
        """The whole body, of at most `bytes_max` bytes. Raises Refused: 413 too large, 408 too slow, 400 disconnected."""
        message = receive_nowait(self.receive)
        if message is not None and message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")  # as nearly always: a small body comes with its headers
            if announced <= bytes_max and len(body) <= bytes_max:
                self.body = body
                return
        try:
            async with asyncio.timeout(BODY_S_MAX):
                self.body = await _read_rest(self.receive, message or await self.receive(), bytes_max)
        except TimeoutError:
            raise Refused(408, "body_timeout", f"the body did not come within {BODY_S_MAX:.0f} s", "", "send it faster") from None

    def caller_disconnected(self) -> bool:
        """True when the connection is closed. The body must have been read: ASGI reports it as the next message."""
        message = receive_nowait(self.receive)
        return message is not None and message["type"] == "http.disconnect"

    def require_connected(self) -> None:
        """Raises Refused (499): the call was executed, and nobody is there for its answer."""
        if self.caller_disconnected():
            remedy = "call again with the same Idempotency-Key"
            raise Refused(499, "caller_disconnected", "the caller disconnected before the answer was there", "", remedy)


def receive_nowait(receive: Receive) -> Message | None:
    """The next message if it is there already; None when one would have to wait, and then nothing has been consumed. It makes one step
    of the coroutine by hand: no task and no time-out for what is not waited for."""
    waiting = receive().__await__()
    try:
        next(waiting)
    except StopIteration as ended:
        return cast(Message, ended.value)
    finally:
        close = getattr(waiting, "close", None)
        if close is not None:
            close()
    return None


async def _read_rest(receive: Receive, message: Message, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected", "the caller disconnected before the body was complete")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size <= bytes_max:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body") or size > DRAINED_BYTES_MAX:
            break
        message = await receive()
    if size > bytes_max:
        raise Refused(413, "body_too_large", f"an inference takes at most {bytes_max} bytes", "", "send fewer rows at a time")
    return b"".join(parts)
