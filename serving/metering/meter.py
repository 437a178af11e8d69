"""Writes usage: one fact per execution, chained per tenant, acknowledged by the log before the caller has the answer (K11–K13).

One `Meter` is one producer epoch of one process. It lives on one event loop: calls, sequence numbers and records on the log have
the same order, since one tenant's usage is one partition. Kafka's own thread only hands over acknowledgements.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from events.facts.fact import NO_HASH
from events.facts.headers import cloud_event_headers
from events.log.client import QUEUE_RECORDS_MAX, Delivered, LogBroken, LogFull, LogUnavailable, Writer
from events.log.record import Coordinate, Headers
from events.process.clock import now_us
from events.process.ids import new_id
from events.process.signing_keys import SigningKey
from events.producers.batch_proof import BATCH_MAX, EPOCH_PROOF, batch_proofs
from events.producers.epoch_key import EpochCertificate
from events.schema.codec import Codec
from serving.metering.refusal_counts import RefusalCounter, RefusalKey

logger = logging.getLogger(__name__)

UNAVAILABLE_AFTER_S = 2.0
"""A fact that waits longer means that Kafka is unavailable: nothing is executed that could not be metered."""
WAITING_MAX = 20_000
"""Facts not yet acknowledged, five seconds of a busy gateway; past it calls are refused. Bounds the memory of an outage."""
TIME_OUT_POLL_S = 0.25
FULL_RETRY_S = 0.01
OPEN_S_MAX = 30.0
CLOSE_S_MAX = 5.0


class NotAcknowledged(Exception):
    """The log did not take the fact in time. It stays queued, and a fact that voids it is queued behind it."""


@dataclass(slots=True, eq=False)
class PendingFact:
    """A fact that was handed to the log, and what its receipt says."""

    event_id: str
    tenant: str
    sequence: int
    sha256: bytes
    appended_at: float
    future: asyncio.Future[Coordinate]
    model: str
    model_version: str


@dataclass(frozen=True, slots=True)
class ProducerEpoch:
    """Who writes these facts: one producer, from its opening to its close."""

    producer: str
    epoch_id: str
    log_id: str
    region: str


class _Unsent(NamedTuple):
    delivered: Delivered
    key: bytes
    value: bytes
    sha256: bytes
    headers: Headers


class SignedBatches:
    """Usage on its way to the log: the records of one turn of the event loop are one batch, with one signature (K13). Calls that end together,
    as those of one batch of a model do, share its cost; a record waits for the end of the turn, not for others. The order of `append` is that
    of the log."""

    def __init__(self, writer: Writer, epoch_key: SigningKey, log_id: str, epoch: str, after_failure: Callable[[], None]) -> None:
        """`after_failure` runs once after the records of a batch were told that they cannot be sent."""
        self._after_failure = after_failure
        self._writer, self._epoch_key, self._log_id, self._epoch = writer, epoch_key, log_id, epoch
        self._loop = asyncio.get_running_loop()
        self._unsent: list[_Unsent] = []

    @property
    def waiting(self) -> int:
        """Records not yet handed to the log's client."""
        return len(self._unsent)

    def append(self, delivered: Delivered, key: bytes, value: bytes, sha256: bytes, headers: Headers) -> None:
        """To `usage`. Raises LogFull or LogBroken; nothing was taken then. What was taken is sent, or the epoch ends with an error that
        `delivered` is told."""
        if self._writer.fatal is not None:
            raise LogBroken(str(self._writer.fatal))
        if self._writer.waiting + len(self._unsent) >= QUEUE_RECORDS_MAX:
            raise LogFull(f"{QUEUE_RECORDS_MAX} records wait for Kafka")
        if not self._unsent:
            self._loop.call_soon(self.send)
        self._unsent.append(_Unsent(delivered, key, value, sha256, headers))

    def send(self) -> None:
        """Hands what waits to the log's client."""
        while self._unsent:
            batch = self._unsent[:BATCH_MAX]
            proofs = batch_proofs(self._epoch_key, self._log_id, self._epoch, [record.sha256 for record in batch])
            sent = 0
            try:
                for record, proof in zip(batch, proofs, strict=True):
                    self._writer.append_then(record.delivered, "usage", record.key, record.value, {**record.headers, EPOCH_PROOF: proof})
                    sent += 1
            except LogFull:
                self._loop.call_later(FULL_RETRY_S, self.send)  # its chain goes on with these very records
                return
            except LogBroken as e:
                broken, self._unsent = self._unsent[sent:], []
                sent = 0
                for record in broken:
                    record.delivered(None, e)
                self._after_failure()
            finally:
                del self._unsent[:sent]


class Meter:
    """Raises LogUnavailable, LogFull or LogBroken where a fact cannot be taken; nothing was written then."""

    def __init__(self, writer: Writer, codec: Codec, epoch: ProducerEpoch, epoch_key: SigningKey, *, acknowledge_s_max: float) -> None:
        self._writer, self._codec, self.epoch = writer, codec, epoch
        self._usage = SignedBatches(writer, epoch_key, epoch.log_id, epoch.epoch_id, self._deliver)
        self._acknowledge_s_max = acknowledge_s_max
        self._loop = asyncio.get_running_loop()
        self._chains: dict[str, tuple[int, bytes]] = {}
        self._pending: deque[PendingFact] = deque()
        self._delivered: deque[tuple[PendingFact, Coordinate | None, Exception | None]] = deque()
        self._refusals = RefusalCounter()
        self._tasks: list[asyncio.Task[None]] = []
        self.opened = False

    # --- opening and closing the epoch

    async def open(self, certificate: EpochCertificate) -> None:
        """The epoch is on the log when this returns, with the certificate of its key (K13)."""
        self._writer.after_deliveries(self._on_deliveries)
        body = {
            "log_id": self.epoch.log_id,
            "host": socket.gethostname(),
            "region": self.epoch.region,
            "public_key": certificate.public_key,
            "certified_by": certificate.signed_by,
            "certificate": certificate.signature,
        }
        await asyncio.wait_for(self.publish("ProducerOpened", body), OPEN_S_MAX)
        self.opened = True
        self._tasks = [
            self._loop.create_task(work()) for work in (self._time_out_forever, self._write_refusals_forever, self._probe_forever)
        ]

    async def close(self) -> None:
        """Writes the last sequences, when all of them are on the log; else nothing: the epoch stays open."""
        for task in self._tasks:
            task.cancel()
        self.write_refusals()
        self._usage.send()
        end = time.monotonic() + CLOSE_S_MAX
        while self._unacknowledged and time.monotonic() < end:  # noqa: ASYNC110 - Kafka's thread counts down, it has no event
            await asyncio.sleep(0.02)
        if not self.opened or self._unacknowledged:
            return
        self.opened = False  # no fact may follow the last sequence
        last = {tenant: sequence for tenant, (sequence, _) in self._chains.items()}
        try:
            await asyncio.wait_for(self.publish("ProducerClosed", {"last": last, "closed_by": self.epoch.producer}), CLOSE_S_MAX)
        except (TimeoutError, LogUnavailable, LogBroken) as e:
            logger.warning("epoch %s stays open: %s", self.epoch.epoch_id, e)

    @property
    def _unacknowledged(self) -> int:
        return self._writer.waiting + self._usage.waiting

    @property
    def broken(self) -> bool:
        """This epoch cannot go on without a gap: the process must be replaced."""
        return self._writer.fatal is not None or any(t.done() for t in self._tasks)

    @property
    def log_unavailable(self) -> bool:
        """Kafka does not take facts now."""
        return self._writer.away or self._writer.oldest_wait_s() > UNAVAILABLE_AFTER_S or self._unacknowledged >= WAITING_MAX

    # --- facts

    def record_settled(self, tenant: str, event_id: str, body: dict[str, Any]) -> PendingFact:
        """One execution ended; `body` is its InvocationSettled without what the chain adds. It is sent at the end of this turn of the loop."""
        return self._chain("InvocationSettled", tenant, event_id, body)

    async def acknowledged(self, fact: PendingFact) -> Coordinate:
        """Where the fact stands. Raises NotAcknowledged after the time it may take; the fact is voided then."""
        return await fact.future

    def count_refusal(self, key: RefusalKey) -> None:
        """One more call refused; written once a second."""
        self._refusals.add(key)

    def publish(self, name: str, body: dict[str, Any], *, topic: str = "producers", key: str | None = None) -> Awaitable[Coordinate]:
        """A fact outside the usage chains: the epoch's own, or a route applied."""
        event_id = new_id()
        at_us = now_us()
        fact: dict[str, Any] = {
            "event_id": event_id,
            "occurred_at": at_us,
            "producer": self.epoch.producer,
            "epoch": self.epoch.epoch_id,
            **body,
        }
        frame = self._codec.encode_dict(name, fact)
        future = self._writer.append(
            topic, (key or self.epoch.producer).encode(), frame, cloud_event_headers(name, event_id, self.epoch.producer, at_us)
        )
        return asyncio.wrap_future(future)

    def write_refusals(self) -> None:
        if self.log_unavailable:  # counting goes on, within its bound
            return
        for key, count in self._refusals.drain():
            body: dict[str, Any] = {"region": self.epoch.region, "count": count, **key._asdict()}
            tenant = body.pop("tenant")
            try:
                self._chain("InvocationRefused", tenant, new_id(), body)
            except (LogFull, LogBroken) as e:
                logger.warning("%d refusals were not written: %s", count, e)

    def _chain(self, name: str, tenant: str, event_id: str, body: dict[str, Any]) -> PendingFact:
        if not self.opened:
            raise LogUnavailable("the epoch is not open")
        sequence, previous = self._chains.get(tenant, (0, NO_HASH))
        sequence += 1
        body |= {
            "event_id": event_id,
            "occurred_at": now_us(),
            "producer": self.epoch.producer,
            "tenant": tenant,
            "epoch": self.epoch.epoch_id,
            "sequence": sequence,
            "previous_sha256": previous,
        }
        frame = self._codec.encode_dict(name, body)
        digest = hashlib.sha256(frame).digest()
        fact = PendingFact(
            event_id, tenant, sequence, digest, time.monotonic(), self._loop.create_future(), body["model"], body.get("model_version", "")
        )

        def delivered(at: Coordinate | None, error: Exception | None) -> None:
            self._delivered.append((fact, at, error))

        headers = cloud_event_headers(name, event_id, self.epoch.producer, body["occurred_at"])
        self._usage.append(delivered, tenant.encode(), frame, digest, headers)
        self._chains[tenant] = (sequence, digest)  # only now: a fact that was not taken leaves no gap
        self._pending.append(fact)
        return fact

    # --- the background

    def _on_deliveries(self) -> None:
        """Called in Kafka's thread."""
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._delivered:
            fact, at, error = self._delivered.popleft()
            if fact.future.done():
                continue
            if at is not None:
                fact.future.set_result(at)
            else:
                fact.future.set_exception(NotAcknowledged(str(error)))
                fact.future.exception()  # marks it as retrieved: no caller waits for refusals and failed attempts

    def _time_out(self, now: float) -> None:
        """Facts whose time is up: their callers are refused, and each is voided by a later fact of the same chain."""
        while self._pending and (self._pending[0].future.done() or now - self._pending[0].appended_at > self._acknowledge_s_max):
            fact = self._pending.popleft()
            if fact.future.done():
                continue
            fact.future.set_exception(NotAcknowledged(f"not acknowledged within {self._acknowledge_s_max} s"))
            fact.future.exception()

    def void(self, fact: PendingFact, reason: str) -> None:
        """The answer of this fact was never given, so it must not be billed."""
        body = {"voided": fact.event_id, "model": fact.model, "model_version": fact.model_version, "reason": reason}
        try:
            self._chain("InvocationVoided", fact.tenant, new_id(), body)
        except (LogFull, LogBroken) as e:
            logger.error("fact %s could not be voided: %s", fact.event_id, e)

    async def _time_out_forever(self) -> None:
        while True:
            await asyncio.sleep(TIME_OUT_POLL_S)
            self._time_out(time.monotonic())

    async def _write_refusals_forever(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.write_refusals()

    async def _probe_forever(self) -> None:
        """While no fact waits, only a request shows that Kafka is back."""
        while True:
            await asyncio.sleep(0.5)
            if self._writer.away:
                await self._loop.run_in_executor(None, self._writer.probe)
