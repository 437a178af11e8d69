"""Where a relay continues: the newest decided record of each partition, compared with the store (K4).

A relay remembers nothing: the tail of each partition in Kafka is the relay's only position. A tail that a relay may have sent and that is
not this store's record at that position means that store and log do not belong together, and nothing may be sent.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from commands.store.event_store import ANSWER_EVENT, Store
from commands.store.generation import StoreGeneration, decided_partitions
from commands.store.stored_record import StoredRecord, unpack
from events.log.chain import STORE_OPENED, ChainPosition, chain_position_of
from events.log.client import LogUnavailable, Reader
from events.log.headers import CE_TYPE
from events.log.heartbeat import Heartbeat, SeenHeartbeat, sent_since
from events.log.record import Record

logger = logging.getLogger(__name__)
TP = tuple[str, int]
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


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest decided record of a partition."""

    chain_position: ChainPosition
    record: Record


def resume(
    store: Store, generation: StoreGeneration, tails: Mapping[TP, Sequence[Tail]], heartbeats: Sequence[SeenHeartbeat] = ()
) -> dict[TP, int]:
    """The last position of this store on each partition, 0 before its first. `heartbeats`: the newest first. Raises StoreMismatch."""
    return {tp: _resume(store, generation, tp, tails.get(tp, ()), heartbeats) for tp in decided_partitions()}


def _resume(store: Store, generation: StoreGeneration, tp: TP, tails: Sequence[Tail], heartbeats: Sequence[SeenHeartbeat]) -> int:
    before = generation.before.get(tp, ("", 0))  # a partition that became decided after this store was opened
    known = [tail for tail in tails if is_known(store, generation, tail)]
    own = max(known, key=lambda tail: (tail.chain_position.store == generation.store, tail.chain_position.position), default=None)
    if own is None and before != ("", 0) and not tails:
        raise StoreMismatch(
            f"{tp[0]}/{tp[1]} is empty, but store {generation.store} began after position {before[1]} of store {before[0]}. {REMEDY}"
        )
    last = own.chain_position if own is not None else None
    offsets = {tail.record.offset for tail in known}
    foreign = [tail for tail in tails if tail.record.offset not in offsets]
    for tail in foreign:
        if not _is_foreign(tail, last, heartbeats):
            raise StoreMismatch(_difference(store, generation, tail))
    if foreign:
        logger.error("no relay sent %s, nor %d more there: passed over", foreign[0].record.coordinate, len(foreign) - 1)
    if own is None and before != ("", 0):
        raise StoreMismatch(f"{tp[0]}/{tp[1]} has no record of store {before[0]}, which {generation.store} follows. {REMEDY}")
    return 0 if last is None or (last.store, last.position) == before else last.position


def is_known(store: Store, generation: StoreGeneration, tail: Tail) -> bool:
    """Whether this store decided this very record, or began after it."""
    chain_position, tp = tail.chain_position, (tail.record.topic, tail.record.partition)
    is_before = (chain_position.store, chain_position.position) == generation.before.get(tp, ("", 0))
    if chain_position.store != generation.store and not is_before:
        return False
    mine = _decided_at(store, chain_position.position)
    if mine is None:
        return is_before
    return (mine.topic, mine.partition, mine.key, mine.frame) == (*tp, tail.record.key, tail.record.value)


def _decided_at(store: Store, position: int) -> StoredRecord | None:
    found = store.notifications(position - 1, 1, until=position) if position else []
    return unpack(found[0].state) if found and found[0].name != ANSWER_EVENT else None


def _is_foreign(tail: Tail, own: ChainPosition | None, heartbeats: Sequence[SeenHeartbeat]) -> bool:
    """Whether no relay can have sent this record after our last one. What a relay sent follows it, or opens another store; and heartbeats
    name it soon. Raises nothing: whatever is left may be ours, and then store and log do not belong together."""
    at = tail.chain_position
    if own is not None and at.position <= own.position:
        return True
    if heartbeats and tail.record.timestamp < sent_since(heartbeats):
        newest = heartbeats[0].heartbeat
        return newest.store != at.store or newest.sent.get(f"{tail.record.topic}/{tail.record.partition}", 0) < at.position
    if own is None:
        return at.previous != 0
    if at.store == own.store:
        return at.previous != own.position
    return at.previous != 0 or tail.record.headers.get(CE_TYPE) != STORE_OPENED.encode()


def _difference(store: Store, generation: StoreGeneration, tail: Tail) -> str:
    at, where = tail.chain_position, tail.record.coordinate
    if at.store != generation.store:
        return f"{where} is position {at.position} of store {at.store}; this is store {generation.store}. {REMEDY}"
    if _decided_at(store, at.position) is None:
        return f"{where} is position {at.position}, which this store does not have. {REMEDY}"
    return f"{where} is position {at.position}, but this store decided something else there. {REMEDY}"


def is_newest(store: Store, generation: StoreGeneration, heartbeats: Sequence[SeenHeartbeat], tail: Tail) -> bool:
    """Whether nothing of this store that lies before the record in its partition is newer: not so of a copy of an old one."""
    newest = heartbeats[0].heartbeat if heartbeats and heartbeats[0].heartbeat.store == generation.store else None
    sent = newest.sent.get(f"{tail.record.topic}/{tail.record.partition}", 0) if newest else 0
    return tail.chain_position.position >= sent and is_known(store, generation, tail)


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
            chain_position = chain_position_of(record.headers)
            if chain_position is not None:
                within[record.topic, record.partition].append(Tail(chain_position, record))
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


def start_after(store: Store, generation: StoreGeneration, last: Mapping[TP, int], heartbeat: Heartbeat | None) -> int:
    """The position after which the notification log is read: everything up to it has been acknowledged. A heartbeat of this store
    makes it unnecessary to read from the oldest partition's tail; one that is ahead of the tails is not used."""
    usable = (
        heartbeat is not None
        and heartbeat.store == generation.store
        and heartbeat.position <= store.last_position()
        and all(last[tp] >= heartbeat.sent.get(f"{tp[0]}/{tp[1]}", 0) for tp in last)
    )
    return max(generation.position - 1, min(last.values()), heartbeat.position if usable and heartbeat is not None else 0)
