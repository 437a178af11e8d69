"""Whether this process is still a member of its consumer group; one that may not be ends before it writes late (K8)."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

DIED_LATE, DIED_FAILED = 75, 70
"""Exit codes: the group may have given our partitions away; a sink failed."""


def die(code: int, why: str) -> NoReturn:
    """Ends the process now, in the middle of anything: what was not acknowledged is read again."""
    logger.critical("the worker stops: %s", why)
    sys.stderr.flush()
    os._exit(code)


class Membership:
    """When the group last answered us; a paused process finds here that its session has expired."""

    def __init__(self) -> None:
        self.contact_at = time.monotonic()
        self.session_s = 10.0

    def ensure_member(self) -> None:
        """Ends the process when the session may have run out: our partitions may have another owner."""
        age = time.monotonic() - self.contact_at
        if age > self.session_s * 0.8:
            die(DIED_LATE, f"the group has not answered for {age:.1f} s, the session lasts {self.session_s:g} s")


MEMBERSHIP = Membership()
"""Of this process: a worker is one member of one group."""


def record_contact(cls: type, name: str, good: Callable[[Any], bool]) -> None:
    """From now on each answer of that coroutine method of the consumer that is `good` counts as contact with the group."""
    real = getattr(cls, name)

    async def hooked(self: Any, *args: Any) -> Any:
        asked = time.monotonic()
        answer = await real(self, *args)
        if good(answer):
            MEMBERSHIP.contact_at = asked
        return answer

    setattr(cls, name, hooked)
