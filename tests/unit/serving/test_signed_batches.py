"""Usage is sent in order, in batches with one signature, and what cannot be sent is said: a gap in a chain would hold all that follows (K13)."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import pytest

from events.log.client import LogBroken, LogFull
from events.log.record import Coordinate
from events.process.signing_keys import SigningKey
from events.producers.batch_proof import BATCH_MAX, EPOCH_PROOF, EpochVerifier
from serving.metering.meter import SignedBatches

KEY = SigningKey(bytes(range(32)))


class SmallQueue:
    """Takes the place of a `Writer`: takes so many records, then is full or broken until a test changes that."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room, self.fatal, self.waiting = room, None, 0
        self.error: Exception = LogFull("full")
        self.sent: list[tuple[bytes, bytes]] = []

    def append_then(self, delivered: Any, topic: str, key: bytes, value: bytes, headers: dict[str, bytes]) -> None:
        assert (topic, key, headers["ce_type"]) == ("usage", b"t", b"x")
        if self.room == 0:
            raise self.error
        self.room -= 1
        self.sent.append((value, headers[EPOCH_PROOF]))


class Deliveries:
    def __init__(self) -> None:
        self.by_value: dict[bytes, Exception | None] = {}
        self.after = 0

    def of(self, value: bytes) -> Any:
        def delivered(at: Coordinate | None, error: Exception | None) -> None:
            self.by_value[value] = error

        return delivered

    def after_failure(self) -> None:
        self.after += 1


def batches_on(queue: Any, deliveries: Deliveries) -> SignedBatches:
    return SignedBatches(queue, KEY, "log", "epoch", deliveries.after_failure)


def append(batches: SignedBatches, deliveries: Deliveries, *values: bytes) -> None:
    for value in values:
        batches.append(deliveries.of(value), b"t", value, sha256(value).digest(), {"ce_type": b"x"})


def all_proven(queue: SmallQueue) -> bool:
    verifier = EpochVerifier("log", "epoch", KEY.public)
    return all(verifier.proves(proof, sha256(value).digest()) for value, proof in queue.sent)


async def turn() -> None:
    await asyncio.sleep(0)


VALUES = [b"%d" % n for n in range(2 * BATCH_MAX + 3)]


def test_the_records_of_one_turn_have_one_signature_and_each_is_proven() -> None:
    async def scenario() -> None:
        queue, deliveries = SmallQueue(), Deliveries()
        batches = batches_on(queue, deliveries)
        append(batches, deliveries, *VALUES[:5])
        assert (batches.waiting, queue.sent) == (5, [])
        await turn()
        append(batches, deliveries, VALUES[5])
        await turn()
        assert [value for value, _ in queue.sent] == VALUES[:6] and all_proven(queue)
        signatures = [proof[-64:] for _, proof in queue.sent]
        assert len(set(signatures[:5])) == 1 and signatures[5] != signatures[0]

    asyncio.run(scenario())


@pytest.mark.parametrize("room", [0, 1, BATCH_MAX, BATCH_MAX + 2])
def test_a_full_queue_delays_records_and_changes_neither_order_nor_number(room: int) -> None:
    async def scenario() -> None:
        queue, deliveries = SmallQueue(room), Deliveries()
        batches = batches_on(queue, deliveries)
        append(batches, deliveries, *VALUES)
        await turn()
        assert (len(queue.sent), batches.waiting) == (room, len(VALUES) - room)
        append(batches, deliveries, b"behind them")
        queue.room = 1 << 30
        batches.send()
        assert [value for value, _ in queue.sent] == [*VALUES, b"behind them"] and all_proven(queue)
        assert batches.waiting == 0 and not deliveries.by_value

    asyncio.run(scenario())


def test_a_broken_log_is_said_of_each_record_that_was_not_sent_and_to_who_comes_later() -> None:
    async def scenario() -> None:
        queue, deliveries = SmallQueue(3), Deliveries()
        queue.error = LogBroken("gone")
        batches = batches_on(queue, deliveries)
        append(batches, deliveries, *VALUES[:7])
        await turn()
        assert list(deliveries.by_value) == VALUES[3:7] and all(isinstance(e, LogBroken) for e in deliveries.by_value.values())
        assert (deliveries.after, batches.waiting) == (1, 0)
        queue.fatal = LogBroken("gone")  # type: ignore[assignment]
        with pytest.raises(LogBroken):
            append(batches, deliveries, b"later")
        assert batches.waiting == 0

    asyncio.run(scenario())


def test_what_would_not_fit_is_refused_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("serving.metering.meter.QUEUE_RECORDS_MAX", 2)
        queue, deliveries = SmallQueue(), Deliveries()
        batches = batches_on(queue, deliveries)
        append(batches, deliveries, *VALUES[:2])
        with pytest.raises(LogFull):
            append(batches, deliveries, VALUES[2])
        await turn()
        assert [value for value, _ in queue.sent] == VALUES[:2]

    asyncio.run(scenario())
