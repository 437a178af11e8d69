"""How many requests run at a time: of all tenants, and of each. The others wait, and the tenants take turns.

A tenant that is alone may have many running, which is what makes it fast. Beside others it may have few: whatever it sends, at most so
many requests of it are before another tenant's. And never may a tenant have more running than are still free, as in `fair_queue`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from events.process.fairness.fair_queue import UNWEIGHED, FairQueue, QueueFull

ALONE_AFTER_S = 5.0
"""A tenant is alone when no other one asked for so long, and none has anything running."""


class NoTurn(Exception):
    """This tenant has too many requests, at once or for too long. The text is for its caller."""


@dataclass(frozen=True, slots=True)
class TurnBounds:
    """`running_max`: of all tenants. `alone_max`, `shared_max`: of one, while it is alone or not. `waiting_max`: of all, shared as in a
    `FairQueue`. `wait_s_max`: of one request."""

    running_max: int
    alone_max: int
    shared_max: int
    waiting_max: int
    wait_s_max: float

    def __post_init__(self) -> None:
        assert 0 < self.shared_max <= self.alone_max < self.running_max, "one tenant never has all"


class Turns:
    """Of one event loop: `take` before the work, `give_back` after it."""

    def __init__(self, bounds: TurnBounds) -> None:
        self._bounds = bounds
        self._running = Counter[str]()
        self._free = bounds.running_max
        self._waiting = FairQueue[asyncio.Future[None]](bounds.waiting_max, UNWEIGHED)
        self._newest: str | None = None
        """Who asked last."""
        self._shared_until = 0.0

    def running(self, tenant: str) -> int:
        return self._running[tenant]

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, tenant: str) -> None:
        """Waits for a turn of this tenant, which lasts until `give_back`. Raises NoTurn, and then there is nothing to give back."""
        if tenant != self._newest:
            if self._newest is not None:
                self._shared_until = time.monotonic() + ALONE_AFTER_S
            self._newest = tenant
        if self._may_run(tenant):  # then none of its own waits
            self._begin(tenant)
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        try:
            self._waiting.put(tenant, turn, 0)
        except QueueFull as full:
            raise NoTurn(f"{full.items} requests of your tenant wait already") from None
        timer = loop.call_later(self._bounds.wait_s_max, self._expire, tenant, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._waiting.discard(tenant, turn) and not turn.cancelled():
                self.give_back(tenant)  # its turn had come
            raise
        finally:
            timer.cancel()

    def give_back(self, tenant: str) -> None:
        """The work is done; whoever's turn is next begins."""
        self._free += 1
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        while self._waiting and self._free and (following := self._next()) is not None:
            turn = self._waiting.take(following)
            if not turn.done():  # else its task was cancelled in this very turn of the loop
                self._begin(following)
                turn.set_result(None)

    def _expire(self, tenant: str, turn: asyncio.Future[None]) -> None:
        if self._waiting.discard(tenant, turn) and not turn.done():
            turn.set_exception(NoTurn(f"other requests of your tenant came first, for {self._bounds.wait_s_max:g} s"))

    def _next(self) -> str | None:
        """The first tenant that waits and may run. Those passed over have something running: they are few."""
        return next((tenant for tenant in self._waiting.tenants() if self._may_run(tenant)), None)

    def _may_run(self, tenant: str) -> bool:
        running = self._running.get(tenant, 0)
        alone = len(self._running) == (running > 0) and time.monotonic() >= self._shared_until
        return running < min(self._bounds.alone_max if alone else self._bounds.shared_max, self._free)

    def _begin(self, tenant: str) -> None:
        self._free -= 1
        self._running[tenant] += 1
