"""Who sends a request, before its body is read: on the event loop, and a flood of unknown keys asks the store one question at a time."""

from __future__ import annotations

import asyncio

from starlette.concurrency import run_in_threadpool

from access.codes import KEY_UNKNOWN, Refusal
from access.principal import Principal
from commands.processor.keys_from_store import KeysFromStore
from commands.store.event_store import StoreUnavailable
from events.process.clock import now_us
from events.process.http_admission import NotAdmitted
from events.process.problem import Violation


class Identify:
    """Of one event loop."""

    def __init__(self, keys: KeysFromStore) -> None:
        self._keys, self._reading = keys, asyncio.Lock()
        self._begun = self._read = 0
        """How often the store was asked, and which of these questions was the last that it answered."""

    async def __call__(self, authorization: bytes) -> Principal:
        """Raises NotAdmitted."""
        known = self._keys.recognize(authorization, now_us())
        if known is KEY_UNKNOWN:  # it may be newer than what was read
            await self._catch_up()
            known = self._keys.recognize(authorization, now_us())
        if isinstance(known, Refusal):
            raise NotAdmitted(known.status, known.violation, known.headers)
        return known

    async def _catch_up(self) -> None:
        """The keys are read as of now, or later. Those who come while the store is asked share the next question."""
        begun = self._begun
        async with self._reading:
            if self._read > begun:
                return
            self._begun = asked = self._begun + 1
            try:
                await run_in_threadpool(self._keys.catch_up)
            except StoreUnavailable as e:
                violation = Violation("store_unavailable", "the event store does not answer", "", "try again")
                raise NotAdmitted(503, violation, {"Retry-After": "2"}) from e
            self._read = asked
