"""An admitted request waits until its tenant has a turn, before anything is done for it: no parsing, no thread, no question to a store.

ASGI middleware inside `Admission`. The body is read before, so that no slow sender keeps a turn; the turn ends when the answer is there, so
that no slow reader does.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.exceptions import HTTPException

from events.process.fairness.turns import NoTurn, TurnBounds, Turns
from events.process.http_admission import CALLER, App, Caller, Message, Receive, Send, announces_body, refuse, too_many_requests

BodyBytesMax = Callable[[Message], int | None]
"""Of the body of a request with this scope. 0: it has none that anybody reads. None: the application reads it as it comes, and its turn ends
where it begins to: what is done with such a body needs bounds of its own."""


class InTurn:
    """Around an application."""

    def __init__(self, app: App, bounds: TurnBounds, body_bytes_max: BodyBytesMax) -> None:
        self._app, self._turns, self._body_bytes_max = app, Turns(bounds), body_bytes_max

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if CALLER not in scope:
            await self._app(scope, receive, send)
            return
        caller: Caller = scope[CALLER]
        bytes_max = self._body_bytes_max(scope)
        read = await _read(receive, bytes_max) if bytes_max else receive
        if read is None:
            return
        try:
            await self._turns.take(caller.tenant)
        except NoTurn as e:
            await refuse(send, too_many_requests(str(e)), body_unread=not bytes_max and announces_body(scope))
            return
        has_turn = True

        def give_back() -> None:
            nonlocal has_turn
            if has_turn:
                has_turn = False
                self._turns.give_back(caller.tenant)

        async def receive_after_turn() -> Message:
            give_back()
            return await receive()

        async def send_after_turn(message: Message) -> None:
            give_back()
            await send(message)

        try:
            await self._app(scope, receive_after_turn if bytes_max is None else read, send_after_turn)
        finally:
            give_back()


async def _read(receive: Receive, bytes_max: int) -> Receive | None:
    """The body, or what is wrong with it, to be received by the application; None without a caller who waits for an answer."""
    pieces, size, more = list[bytes](), 0, True
    fault: HTTPException | None = None
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > bytes_max:
                raise HTTPException(413, f"the body is longer than {bytes_max} bytes", {"Connection": "close"})
            more = message.get("more_body", False)
    except HTTPException as e:  # the application has the form of its answer
        fault = e
    whole: list[Message] = [{"type": "http.request", "body": b"".join(pieces), "more_body": False}]

    async def received() -> Message:
        if fault is not None:
            raise fault
        return whole.pop() if whole else await receive()

    return received
