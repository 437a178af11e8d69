"""Writes usage: one fact per execution, chained per tenant, acknowledged by the log before anybody has the answer (K11–K13).

One `Meter` is one producer epoch of one process. It lives on one event loop: order of calls is order of sequence numbers is
order on the log, since one tenant's usage is one partition. Kafka's own thread only hands over acknowledgements.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from events.facts.fact import NO_HASH
from events.log.client import LogBroken, LogFull, LogUnavailable, Writer
from events.log.headers import cloud_event_headers
from events.log.record import Coordinate
from events.process.clock import now_us
from events.process.ids import new_id
from events.schema.codec import Codec
from serving.metering.refusal_counts import RefusalKey, Refusals

logger = logging.getLogger(__name__)

AWAY_S = 2.0
"""A fact that waits longer means Kafka is away: nothing is executed that could not be metered."""
WAITING_MAX = 20_000
"""Facts in flight, five seconds of a busy gateway; past it calls are refused. Bounds the memory of an outage."""
SWEEP_S = 0.25
OPEN_S_MAX = 30.0
CLOSE_S_MAX = 5.0


class NotAcknowledged(Exception):
    """The log did not take the fact in time. It stays queued, and a fact that voids it is queued behind it."""


@dataclass(slots=True, eq=False)
class Entry:
    """A fact on its way into the log, and what a receipt says of it."""

    event_id: str
    tenant: str
    sequence: int
    sha256: bytes
    at: float
    future: asyncio.Future[Coordinate]
    model: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose facts these are."""

    producer: str
    epoch: str
    log_id: str
    region: str


class Meter:
    """Raises LogUnavailable, LogFull or LogBroken where a fact cannot be taken; nothing was written then."""

    def __init__(self, writer: Writer, codec: Codec, identity: Identity, *, acknowledge_s_max: float) -> None:
        self._writer, self._codec, self.identity = writer, codec, identity
        self._acknowledge_s_max = acknowledge_s_max
        self._loop = asyncio.get_running_loop()
        self._chains: dict[str, tuple[int, bytes]] = {}
        self._entries: deque[Entry] = deque()
        self._delivered: deque[tuple[Entry, Coordinate | None, Exception | None]] = deque()
        self._refusals = Refusals()
        self._tasks: list[asyncio.Task[None]] = []
        self.opened = False

    # --- the life of an epoch

    async def open(self) -> None:
        """The epoch is on the log when this returns (K13)."""
        self._writer.after_deliveries(self._wake)
        body = {"log_id": self.identity.log_id, "host": socket.gethostname(), "region": self.identity.region}
        await asyncio.wait_for(self.announce("ProducerOpened", body), OPEN_S_MAX)
        self.opened = True
        self._tasks = [self._loop.create_task(work()) for work in (self._sweep_forever, self._flush_forever, self._probe_forever)]

    async def close(self) -> None:
        """Says what the last sequences were, when all of them are on the log; else says nothing: the epoch stays open."""
        for task in self._tasks:
            task.cancel()
        self.flush_refusals()
        end = time.monotonic() + CLOSE_S_MAX
        while self._writer.waiting and time.monotonic() < end:  # noqa: ASYNC110 - Kafka's thread counts down, it has no event
            await asyncio.sleep(0.02)
        if not self.opened or self._writer.waiting:
            return
        self.opened = False  # nothing may follow what is called the last
        last = {tenant: sequence for tenant, (sequence, _) in self._chains.items()}
        try:
            await asyncio.wait_for(self.announce("ProducerClosed", {"last": last, "closed_by": self.identity.producer}), CLOSE_S_MAX)
        except (TimeoutError, LogUnavailable, LogBroken) as e:
            logger.warning("epoch %s stays open: %s", self.identity.epoch, e)

    @property
    def broken(self) -> bool:
        """This epoch cannot go on without a gap: the process must be replaced."""
        return self._writer.fatal is not None or any(t.done() for t in self._tasks)

    @property
    def away(self) -> bool:
        """Kafka does not take facts now."""
        return self._writer.away or self._writer.oldest_wait_s() > AWAY_S or self._writer.waiting >= WAITING_MAX

    # --- facts

    def settle(self, tenant: str, event_id: str, body: dict[str, Any]) -> Entry:
        """One execution ended; `body` is its InvocationSettled without what the chain adds. Taken when this returns."""
        return self._chain("InvocationSettled", tenant, event_id, body)

    async def acknowledged(self, entry: Entry) -> Coordinate:
        """Where the fact stands. Raises NotAcknowledged after the time it may take; the fact is voided then."""
        return await entry.future

    def refuse(self, key: RefusalKey) -> None:
        """One more call refused; told once a second."""
        self._refusals.add(key)

    def announce(self, name: str, body: dict[str, Any], *, topic: str = "producers", key: str | None = None) -> Awaitable[Coordinate]:
        """A fact outside the usage chains: the epoch's own, or a route applied."""
        event_id = new_id()
        at_us = now_us()
        fact: dict[str, Any] = {
            "event_id": event_id,
            "occurred_at": at_us,
            "producer": self.identity.producer,
            "epoch": self.identity.epoch,
            **body,
        }
        frame = self._codec.encode_dict(name, fact)
        future = self._writer.append(
            topic, (key or self.identity.producer).encode(), frame, cloud_event_headers(name, event_id, self.identity.producer, at_us)
        )
        return asyncio.wrap_future(future)

    def flush_refusals(self) -> None:
        if self.away:  # they are counted on, within their bound
            return
        for key, count in self._refusals.drain():
            body: dict[str, Any] = {"region": self.identity.region, "count": count, **key._asdict()}
            tenant = body.pop("tenant")
            try:
                self._chain("InvocationRefused", tenant, new_id(), body)
            except (LogFull, LogBroken) as e:
                logger.warning("%d refusals were not written: %s", count, e)

    def _chain(self, name: str, tenant: str, event_id: str, body: dict[str, Any]) -> Entry:
        if not self.opened:
            raise LogUnavailable("the epoch is not open")
        sequence, previous = self._chains.get(tenant, (0, NO_HASH))
        sequence += 1
        body |= {
            "event_id": event_id,
            "occurred_at": now_us(),
            "producer": self.identity.producer,
            "tenant": tenant,
            "epoch": self.identity.epoch,
            "sequence": sequence,
            "previous_sha256": previous,
        }
        frame = self._codec.encode_dict(name, body)
        digest = hashlib.sha256(frame).digest()
        entry = Entry(
            event_id, tenant, sequence, digest, time.monotonic(), self._loop.create_future(), body["model"], body.get("model_version", "")
        )

        def delivered(at: Coordinate | None, error: Exception | None) -> None:
            self._delivered.append((entry, at, error))

        headers = cloud_event_headers(name, event_id, self.identity.producer, body["occurred_at"])
        self._writer.append_then(delivered, "usage", tenant.encode(), frame, headers)
        self._chains[tenant] = (sequence, digest)  # only now: what was not taken leaves no gap
        self._entries.append(entry)
        return entry

    # --- the background

    def _wake(self) -> None:
        """Called in Kafka's thread."""
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._delivered:
            entry, at, error = self._delivered.popleft()
            if entry.future.done():
                continue
            if at is not None:
                entry.future.set_result(at)
            else:
                entry.future.set_exception(NotAcknowledged(str(error)))
                entry.future.exception()  # facts nobody waits for (refusals, failed attempts) are no unretrieved errors

    def _sweep(self, now: float) -> None:
        """Facts whose time is up: whoever waits is told, and the fact is voided behind itself in the same chain."""
        while self._entries and (self._entries[0].future.done() or now - self._entries[0].at > self._acknowledge_s_max):
            entry = self._entries.popleft()
            if entry.future.done():
                continue
            entry.future.set_exception(NotAcknowledged(f"not acknowledged within {self._acknowledge_s_max} s"))
            entry.future.exception()

    def void(self, entry: Entry, reason: str) -> None:
        """The answer of this fact was never given: it is not billed."""
        body = {"voided": entry.event_id, "model": entry.model, "model_version": entry.model_version, "reason": reason}
        try:
            self._chain("InvocationVoided", entry.tenant, new_id(), body)
        except (LogFull, LogBroken) as e:
            logger.error("fact %s could not be voided: %s", entry.event_id, e)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweep(time.monotonic())

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.flush_refusals()

    async def _probe_forever(self) -> None:
        """While nothing is in flight only asking tells that Kafka is back."""
        while True:
            await asyncio.sleep(0.5)
            if self._writer.away:
                await self._loop.run_in_executor(None, self._writer.probe)
