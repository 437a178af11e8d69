"""What a request's connection has to tell at this moment: a body that is there already, a caller who is not there any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


def at_once(receive: Receive) -> Message | None:
    """The next message if it is there already; None when one would have to wait, and then nothing has happened. One step of the wait
    is made here: without a task, and without a time-out for what is not waited for."""
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


def gone(receive: Receive) -> bool:
    """True when the connection of a request whose body was read whole is closed: ASGI tells it to whoever asks for the next message."""
    message = at_once(receive)
    return message is not None and message["type"] == "http.disconnect"
