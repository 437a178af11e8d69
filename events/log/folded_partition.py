"""One partition of a decided topic as an in-memory fold reads it: decided records in the chain's order, observed facts right after the
decided one before them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from events.facts.topics import FACTS
from events.log.chain import Chain, claim_of
from events.log.record import Record
from events.process.signing_keys import PublicKeys
from events.schema.codec import Codec, Undecodable

logger = logging.getLogger(__name__)

STALLED = "stalled"
"""A rule of alerts, behind the name of the fold: two processes that wait at one partition must not end each other's alert."""
STALL_REMEDY = (
    "see that the relay runs: it sends the rest of its batch, signed; if it does, this process does not know the key that it signs with: "
    "docs/operations.md, 'A record that claims a place among the decisions'"
)

Accepted = tuple[int, int, int, str, int, bytes | None]
"""(position, 0 decided | 1 observed, offset, topic, partition, frame): sorts into the order of application. A start holds a million of
these. They hold plain values only: Python's garbage collector stops tracking such tuples, but visits decoded bodies in every pass."""


class Alarm(Protocol):
    """Where the fold says what needs a person: `events.alerts.Alerts`. Called from the fold's thread, again and again while it lasts. Raises
    LogUnavailable or LogBroken: the fold goes on, and tries again."""

    def raise_(self, subject: str, rule: str, message: str, remedy: str) -> None: ...
    def resolve(self, subject: str, rule: str) -> None: ...


class FoldedPartition:
    """`receive` each record, then `accept` what is certain. One thread."""

    def __init__(self, topic: str, partition: int, codec: Codec, relay_keys: PublicKeys) -> None:
        self.topic, self.partition, self.chain = topic, partition, Chain[Record](relay_keys)
        self.next_offset = 0
        self.unreadable = 0
        """Records passed over: nobody can read them, or they are not what they claim to be."""
        self.stalled_at: float | None = None
        """Since when the first record that waits has been waiting, by the monotonic clock."""
        self._codec = codec
        self._observed: list[tuple[int, bytes | None]] = []
        self._first_waiting: int | None = None

    @property
    def waiting(self) -> list[Record]:
        """Records that nothing proves yet."""
        return [claim.record for claim in self.chain.waiting]

    @property
    def lag(self) -> int:
        """Records received and not yet accepted."""
        return len(self.chain.waiting) + len(self._observed)

    def receive(self, record: Record) -> None:
        self.next_offset = record.offset + 1
        claim = claim_of(record, record.headers)
        if claim is not None:
            self.chain.add(claim)
        elif self._is_observed(record):
            self._observed.append((record.offset, record.value))

    def accept(self, accepted: list[Accepted]) -> list[Record]:
        """Adds what is certain now; returns the records that another program than the relay wrote."""
        position = self.chain.position
        proven, _, foreign = self.chain.prove()
        if self._observed:
            self._accept_observed(accepted, position, {c.record.offset: c.at.position for c in proven})
        accepted.extend((c.at.position, 0, c.record.offset, self.topic, self.partition, c.record.value) for c in proven)
        self._note_waiting()
        self.unreadable += len(foreign)
        return [c.record for c in foreign]

    def set_aside_older(self, at_ms: float) -> list[Record]:
        """As `Chain.set_aside_older`."""
        foreign = self.chain.set_aside_older(at_ms)
        self.unreadable += len(foreign)
        if foreign:
            self._note_waiting()
        return [c.record for c in foreign]

    def head(self) -> list[Any]:
        """What a snapshot keeps. Only while nothing waits."""
        return [self.next_offset, self.chain.store, self.chain.position, self.chain.sha256.hex()]

    def restore(self, head: list[Any]) -> None:
        offset, store, position, sha256 = head
        self.next_offset = int(offset)
        self.chain = Chain[Record](self.chain.relay_keys, str(store), int(position), bytes.fromhex(sha256))

    def _accept_observed(self, accepted: list[Accepted], position: int, proven: Mapping[int, int]) -> None:
        """`proven`: offset → position. What came behind a record that still waits waits with it."""
        first_waiting = min((r.offset for r in self.waiting), default=self.next_offset)
        left: list[tuple[int, bytes | None]] = []
        steps = iter(sorted(proven.items()))
        offset, next_position = next(steps, (self.next_offset, 0))
        for at, value in self._observed:
            while offset < at:
                position = max(position, next_position)
                offset, next_position = next(steps, (self.next_offset, 0))
            if at < first_waiting:
                accepted.append((position, 1, at, self.topic, self.partition, value))
            else:
                left.append((at, value))
        self._observed = left

    def _note_waiting(self) -> None:
        """Accepting later records does not shorten the wait of the first."""
        first = min((r.offset for r in self.waiting), default=None)
        if first != self._first_waiting:
            self._first_waiting, self.stalled_at = first, None if first is None else time.monotonic()

    def _is_observed(self, record: Record) -> bool:
        """A decided fact counts only in its chain: else a copy without headers could undo a revocation."""
        try:
            name, _ = self._codec.decode(record.value)
        except Undecodable as e:
            self.unreadable += 1
            logger.warning("skipped an unreadable record without a chain position at %s: %s", record.coordinate, e)
            return False
        entry = FACTS.get(name)
        if entry is not None and entry.cls.kind == "observed" and entry.topic == record.topic:
            return True
        self.unreadable += 1
        logger.warning("skipped %s at %s: a decided fact without a chain position, or a fact of another topic", name, record.coordinate)
        return False
