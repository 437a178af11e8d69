"""Analysts take turns: of each tenant one statement runs at a time, and so many requests wait, so that nobody's slow ones hold another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

REQUESTS_MAX = 16
"""Of one tenant, running and waiting. Those that wait have sent a head and no body yet."""


class TooManyRequests(Exception):
    """Of this tenant, at once or for too long."""


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    requests: int = 0


class TenantTurns:
    """The engine's threads get at most one statement of each tenant, in the order in which they came: a round of all who ask."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def turn(self, tenant: str, wait_s: float) -> AsyncGenerator[None]:
        """Raises TooManyRequests."""
        turn = self._turns.setdefault(tenant, _Turn())
        if turn.requests >= REQUESTS_MAX:
            raise TooManyRequests(f"{REQUESTS_MAX} requests of {tenant} are under way: wait for their answers")
        turn.requests += 1
        try:
            await _acquire(turn.lock, tenant, wait_s)
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.requests -= 1
            if not turn.requests:
                del self._turns[tenant]


async def _acquire(lock: asyncio.Lock, tenant: str, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await lock.acquire()
    except TimeoutError:
        raise TooManyRequests(f"other requests of {tenant} have been running for {wait_s:g} s: one runs at a time") from None
