"""Whether the caller is still there: asked once, when the answer is, without a task that listens during every call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def gone(receive: Receive) -> bool:
    """True when the connection of a request whose body was read whole is closed. ASGI tells it to whoever waits for the next
    message; here one step of that wait is made, and if it does not end at once nothing has happened."""
    waiting = receive().__await__()
    try:
        next(waiting)
    except StopIteration as ended:
        return ended.value["type"] == "http.disconnect"
    finally:
        close = getattr(waiting, "close", None)
        if close is not None:
            close()
    return False
