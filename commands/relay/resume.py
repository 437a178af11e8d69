"""Where a relay continues: the newest decided record of each partition that a relay signed, compared with the store (K4).

A relay remembers nothing: the tail of each partition in Kafka is the relay's only position. A signed tail that is not this store's record
at that position means that store and log do not belong together, and nothing may be sent. What no relay signed at the tail is sent once
more when it is this store's: a relay ended within a batch. Else somebody else wrote it.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from commands.store.event_store import QUOTA_EVENT, Store
from commands.store.generation import StoreGeneration, decided_partitions
from commands.store.stored_record import StoredRecord, unpack
from events.log.chain import FIRST, Claim, claim_of, is_proof
from events.log.client import LogUnavailable, Reader
from events.log.heartbeat import Heartbeat
from events.log.record import Record
from events.process.signing_keys import PublicKeys

logger = logging.getLogger(__name__)
TP = tuple[str, int]
Tail = Claim[Record]
TAIL_RECORDS = 256
"""Records read back at first when looking for the newest decided one; four times as many each time it is not among them."""
RECORDS_READ_MAX = 5000
READ_S_MAX = 30.0
"""Longest silence of Kafka while the tails are read."""
REMEDY = (
    "This store is not the one the log was written from: it was restored from an older copy, or the relay is connected to another log. "
    "Start the relay on the right store; if that is lost, make one from the log: `python -m commands.store.rebuild`"
)


class StoreMismatch(Exception):
    """Store and log do not belong together. Nothing was sent."""


class Sent(NamedTuple):
    """The last record of a partition: its position in this store, 0 while it is of the store before or none, and its hash."""

    position: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class OwnRecords:
    """Which records on the log are this store's."""

    store: Store
    generation: StoreGeneration
    relay_keys: PublicKeys
    newest: Heartbeat | None
    """The last heartbeat."""
    key_id: str = ""
    """The key that the relay signs with now."""

    def is_newest(self, tail: Tail) -> bool:
        """Whether no relay sent anything newer that lies before the record in its partition: not so of a copy of an old one."""
        return tail.at.position >= self.oldest((tail.record.topic, tail.record.partition)) and is_proof(tail, self.relay_keys)

    def oldest(self, tp: TP) -> int:
        """What relays sent to the partition goes on at least to this position."""
        heartbeat = self.newest if self.newest is not None and self.newest.store == self.generation.store else None
        return max(self.generation.before.get(tp, ("", 0))[1], heartbeat.sent.get(f"{tp[0]}/{tp[1]}", 0) if heartbeat else 0)

    def is_before(self, tail: Tail) -> bool:
        """Whether this store began after it."""
        return (tail.at.store, tail.at.position) == self.generation.before.get((tail.record.topic, tail.record.partition), ("", 0))

    def is_known(self, tail: Tail) -> bool:
        """Whether this store decided this very record, or began after it."""
        if tail.at.store != self.generation.store and not self.is_before(tail):
            return False
        mine, record = self.decided_at(tail.at.position), tail.record
        if mine is None:
            return self.is_before(tail)
        return (mine.topic, mine.partition, mine.key, mine.frame) == (record.topic, record.partition, record.key, record.value)

    def decided_at(self, position: int) -> StoredRecord | None:
        found = self.store.notifications(position - 1, 1, until=position) if position else []
        return unpack(found[0].state) if found and found[0].name != QUOTA_EVENT else None


def resume(own: OwnRecords, tails: Mapping[TP, Sequence[Tail]]) -> dict[TP, Sent]:
    """Where each decided partition ends for this store. Raises StoreMismatch."""
    return {tp: _resume(own, tp, tails.get(tp, ())) for tp in decided_partitions()}


def _resume(own: OwnRecords, tp: TP, tails: Sequence[Tail]) -> Sent:
    before = own.generation.before.get(tp, ("", 0))  # a partition that became decided after this store was opened has none
    last: Tail | None = None
    foreign: list[Tail] = []
    for tail in sorted(tails, key=lambda tail: tail.at.position, reverse=True):
        if tail.at.position < before[1]:
            break  # a copy of what the store before sent
        known = own.is_known(tail)
        if is_proof(tail, own.relay_keys):
            if not known:
                raise StoreMismatch(_difference(own, tail))
            last = tail
            break
        if not known:
            foreign.append(tail)
    if foreign:
        logger.error("no relay sent %s, nor %d more there: passed over", foreign[0].record.coordinate, len(foreign) - 1)
    if last is None and before != ("", 0):
        raise StoreMismatch(f"{tp[0]}/{tp[1]} has no record of store {before[0]}, which {own.generation.store} follows. {REMEDY}")
    if last is None:
        return Sent(0, FIRST)
    if own.is_before(last):
        return Sent(0, last.sha256)
    if own.key_id and last.signed_by != own.key_id:
        # It is sent once more, with the new signature: the old key need not count for ever.
        return Sent(last.at.position - 1, last.at.previous_sha256)
    return Sent(last.at.position, last.sha256)


def _difference(own: OwnRecords, tail: Tail) -> str:
    at, where = tail.at, tail.record.coordinate
    if at.store != own.generation.store:
        return f"{where} is position {at.position} of store {at.store}; this is store {own.generation.store}. {REMEDY}"
    if own.decided_at(at.position) is None:
        return f"{where} is position {at.position}, which this store does not have. {REMEDY}"
    return f"{where} is position {at.position}, but this store decided something else there. {REMEDY}"


def read_tails(reader: Reader, newest: Callable[[Tail], bool]) -> dict[TP, list[Tail]]:
    """The last records with a chain position of each decided partition that has one, the newest first, back to the first for which
    `newest` holds. `deployments` also carries observed facts, and other programs may write anywhere: those records are skipped."""
    topics = tuple(dict.fromkeys(topic for topic, _ in decided_partitions()))
    tails, done = defaultdict[TP, list[Tail]](list), set[TP]()
    window, left = TAIL_RECORDS, {tp: bounds for tp, bounds in reader.bounds(*topics).items() if bounds[0] < bounds[1]}
    while left:
        spans = {tp: (max(low, high - window), high) for tp, (low, high) in left.items()}
        within = defaultdict[TP, list[Tail]](list)
        for record in _read(reader, spans):
            if (tail := claim_of(record, record.headers)) is not None:
                within[record.topic, record.partition].append(tail)
        for tp, found in within.items():
            for tail in reversed(found):
                tails[tp].append(tail)
                if newest(tail):
                    done.add(tp)
                    break
        left = {tp: (left[tp][0], start) for tp, (start, _) in spans.items() if tp not in done and left[tp][0] < start}
        window *= 4
    return dict(tails)


def _read(reader: Reader, spans: Mapping[TP, tuple[int, int]]) -> Iterator[Record]:
    """All records within first … end of each partition, read together: one by one, eighteen partitions would take seconds."""
    left = {tp: end for tp, (_, end) in spans.items()}
    reader.assign({tp: start for tp, (start, _) in spans.items()})
    heard = time.monotonic()
    while left:
        records = reader.poll(RECORDS_READ_MAX, 0.05)
        if not records and time.monotonic() - heard > READ_S_MAX:
            raise LogUnavailable(f"nothing came for {READ_S_MAX} s, unread: {sorted(left)}")
        for record in records:
            heard, tp = time.monotonic(), (record.topic, record.partition)
            if record.offset < spans[tp][1]:
                yield record
            if record.offset >= spans[tp][1] - 1:
                left.pop(tp, None)


def start_after(own: OwnRecords, last: Mapping[TP, Sent]) -> int:
    """The position after which the notification log is read: everything up to it has been acknowledged. A heartbeat of this store
    makes it unnecessary to read from the oldest partition's tail; one that is ahead of the tails is not used."""
    heartbeat, newest = own.newest, own.store.last_position()
    usable = (
        heartbeat is not None
        and heartbeat.store == own.generation.store
        and heartbeat.position <= newest
        and all(sent.position >= heartbeat.sent.get(f"{tp[0]}/{tp[1]}", 0) for tp, sent in last.items())
    )
    oldest = min(sent.position for sent in last.values())
    return max(own.generation.position - 1, oldest, heartbeat.position if usable and heartbeat is not None else 0)
