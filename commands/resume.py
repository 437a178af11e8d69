"""Where a relay goes on: what each partition's newest decided record says, compared with the store (K4).

Nothing is remembered beside the log: the tail of each partition in Kafka is the relay's only position. A tail that is not this
store's record at that position means that store and log do not belong together, and nothing may be sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from commands.envelope import unpack
from commands.epoch import Epoch, decided_partitions
from commands.store import Store
from events.chain import Heartbeat, Place, place_of
from events.log import Reader, Record

TP = tuple[str, int]
WINDOW = 256
"""Records read back at first when looking for the newest decided one; four times as many each time it is not among them."""
REMEDY = (
    "This store is not the one the log was written from: it was restored from an older copy, or the relay is connected to another log. "
    "Start the relay on the right store; if that is lost, make one from the log: `python -m commands.rebuild`"
)


class StoreMismatch(Exception):
    """Store and log do not belong together. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest decided record of a partition."""

    place: Place
    record: Record


def resume(store: Store, epoch: Epoch, tails: Mapping[TP, Tail]) -> dict[TP, int]:
    """The last position of this store on each partition, 0 before its first. Raises StoreMismatch."""
    return {tp: _resume(store, epoch, tp, tails.get(tp)) for tp in decided_partitions()}


def _resume(store: Store, epoch: Epoch, tp: TP, tail: Tail | None) -> int:
    before = epoch.before[tp]
    if tail is None:
        if before != ("", 0):
            raise StoreMismatch(
                f"{tp[0]}/{tp[1]} is empty, but store {epoch.store} began after position {before[1]} of store {before[0]}. {REMEDY}"
            )
        return 0
    place = tail.place
    if (place.store, place.position) == before:
        return 0
    if place.store != epoch.store:
        raise StoreMismatch(
            f"{tail.record.coordinate} is position {place.position} of store {place.store}; this is store {epoch.store}. {REMEDY}"
        )
    found = store.notifications(place.position - 1, 1, until=place.position)
    if not found:
        raise StoreMismatch(f"{tail.record.coordinate} is position {place.position}, which this store does not have. {REMEDY}")
    mine = unpack(found[0].state)
    if (mine.topic, mine.partition, mine.key, mine.frame) != (*tp, tail.record.key, tail.record.value):
        raise StoreMismatch(f"{tail.record.coordinate} is position {place.position}, but this store decided something else there. {REMEDY}")
    return place.position


def read_tails(reader: Reader) -> dict[TP, Tail]:
    """The newest decided record of each decided partition that has one. `deployments` also carries observed facts: looks past them."""
    topics = tuple(dict.fromkeys(topic for topic, _ in decided_partitions()))
    tails: dict[TP, Tail] = {}
    for tp, (low, high) in reader.bounds(*topics).items():
        tail = _newest_decided(reader, tp, low, high)
        if tail is not None:
            tails[tp] = tail
    return tails


def _newest_decided(reader: Reader, tp: TP, low: int, high: int) -> Tail | None:
    window, end = WINDOW, high
    while end > low:
        start = max(low, end - window)
        found = [Tail(place, r) for r in _span(reader, tp, start, end) if (place := place_of(r.headers)) is not None]
        if found:
            return found[-1]
        window, end = window * 4, start
    return None


def _span(reader: Reader, tp: TP, start: int, end: int) -> Iterator[Record]:
    topic, partition = tp
    others = {p: 0 for t, p in decided_partitions() if t == topic and p != partition}
    yield from reader.read(topic, {partition: start}, {**others, partition: end})


def start_after(store: Store, epoch: Epoch, last: Mapping[TP, int], beat: Heartbeat | None) -> int:
    """The position after which the notification log is read: everything up to it has been acknowledged. A heartbeat of this store
    spares reading from the oldest partition's tail; one that says more than the tails do is not believed."""
    believed = (
        beat is not None
        and beat.store == epoch.store
        and beat.position <= store.last_position()
        and all(last[tp] >= beat.sent.get(f"{tp[0]}/{tp[1]}", 0) for tp in last)
    )
    return max(epoch.position - 1, min(last.values()), beat.position if believed and beat is not None else 0)


def newest_heartbeat(reader: Reader) -> Heartbeat | None:
    """The last one on the log, of whatever store."""
    low, high = reader.bounds("heartbeats")["heartbeats", 0]
    end, window = high, WINDOW
    while end > low:
        start = max(low, end - window)
        beats = [b for r in reader.read("heartbeats", {0: start}, {0: end}) if (b := Heartbeat.from_json(r.value)) is not None]
        if beats:
            return beats[-1]
        end, window = start, window * 4
    return None
