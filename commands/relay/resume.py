"""Where a relay continues: the newest decided record of each partition, compared with the store (K4).

A relay remembers nothing: the tail of each partition in Kafka is the relay's only position. A tail that is not this
store's record at that position means that store and log do not belong together, and nothing may be sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from commands.store.event_store import Store
from commands.store.generation import StoreGeneration, decided_partitions
from commands.store.stored_record import unpack
from events.log.chain import ChainPosition, chain_position_of
from events.log.client import LogUnavailable, Reader
from events.log.heartbeat import Heartbeat
from events.log.record import Record

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


def resume(store: Store, generation: StoreGeneration, tails: Mapping[TP, Tail]) -> dict[TP, int]:
    """The last position of this store on each partition, 0 before its first. Raises StoreMismatch."""
    return {tp: _resume(store, generation, tp, tails.get(tp)) for tp in decided_partitions()}


def _resume(store: Store, generation: StoreGeneration, tp: TP, tail: Tail | None) -> int:
    before = generation.before.get(tp, ("", 0))  # a partition that became decided after this store was opened
    if tail is None:
        if before != ("", 0):
            raise StoreMismatch(
                f"{tp[0]}/{tp[1]} is empty, but store {generation.store} began after position {before[1]} of store {before[0]}. {REMEDY}"
            )
        return 0
    chain_position = tail.chain_position
    if (chain_position.store, chain_position.position) == before:
        return 0
    if chain_position.store != generation.store:
        raise StoreMismatch(
            f"{tail.record.coordinate} is position {chain_position.position} of store {chain_position.store}; this is store {generation.store}. {REMEDY}"
        )
    found = store.notifications(chain_position.position - 1, 1, until=chain_position.position)
    if not found:
        raise StoreMismatch(f"{tail.record.coordinate} is position {chain_position.position}, which this store does not have. {REMEDY}")
    mine = unpack(found[0].state)
    if (mine.topic, mine.partition, mine.key, mine.frame) != (*tp, tail.record.key, tail.record.value):
        raise StoreMismatch(
            f"{tail.record.coordinate} is position {chain_position.position}, but this store decided something else there. {REMEDY}"
        )
    return chain_position.position


def read_tails(reader: Reader) -> dict[TP, Tail]:
    """The newest decided record of each decided partition that has one. `deployments` also carries observed facts: looks past them."""
    topics = tuple(dict.fromkeys(topic for topic, _ in decided_partitions()))
    tails: dict[TP, Tail] = {}
    window, left = TAIL_RECORDS, {tp: bounds for tp, bounds in reader.bounds(*topics).items() if bounds[0] < bounds[1]}
    while left:
        spans = {tp: (max(low, high - window), high) for tp, (low, high) in left.items()}
        for record in _read(reader, spans):
            chain_position = chain_position_of(record.headers)
            if chain_position is not None:
                tails[record.topic, record.partition] = Tail(chain_position, record)
        left = {tp: (left[tp][0], start) for tp, (start, _) in spans.items() if tp not in tails and left[tp][0] < start}
        window *= 4
    return tails


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


def newest_heartbeat(reader: Reader) -> Heartbeat | None:
    """The last one on the log, of whatever store."""
    low, high = reader.bounds("heartbeats")["heartbeats", 0]
    if low == high:
        return None
    spans = {("heartbeats", 0): (max(low, high - TAIL_RECORDS), high)}
    return next((b for r in reversed(list(_read(reader, spans))) if (b := Heartbeat.from_json(r.value)) is not None), None)
