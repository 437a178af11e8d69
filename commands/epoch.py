"""A store's epoch: its id, said on every partition of every decided topic before anything else, so that each fold knows whom to follow (K4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from commands.envelope import Envelope, Opening, cloud_headers, unpack
from commands.origin import PRODUCER
from commands.store import Conflict, Event, Store
from events.catalogue import DECIDED_TOPICS, TOPICS
from events.chain import STORE_OPENED
from events.fact import UserId, new_id, now_us
from events.facts.log import StoreOpened
from events.wire import Codec

STORE = "store"
"""The originator of a store's own events."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The store `store` speaks from `position` on. `before`: the store and position that each partition ended with until then."""

    store: str
    position: int
    before: Mapping[tuple[str, int], tuple[str, int]]


def decided_partitions() -> Iterator[tuple[str, int]]:
    for topic in DECIDED_TOPICS:
        for partition in range(TOPICS[topic].partitions):
            yield topic, partition


def current_epoch(store: Store) -> Epoch | None:
    """None while the store is empty. Needs no schema."""
    openings = [(event, unpack(event.state)) for event in store.events(STORE)]
    if not openings:
        return None
    newest = _opening(openings[-1][1]).store
    mine = [(event, envelope) for event, envelope in openings if _opening(envelope).store == newest]
    first = mine[0][0].version
    return Epoch(
        newest,
        store.positions(STORE, first, first)[0],
        {(e.topic, e.partition): (_opening(e).previous_store, _opening(e).previous_position) for _, e in mine},
    )


def open_epoch(store: Store, codec: Codec, by: UserId, before: Mapping[tuple[str, int], tuple[str, int]] | None = None) -> Epoch:
    """Mints a new store id and writes its opening for each partition. When two processes try at once, one wins and both go on with it."""
    new, after = new_id(), store.events(STORE)
    version = after[-1].version if after else 0
    events = [
        _event(codec, Opening(new, *(before or {}).get((topic, partition), ("", 0))), topic, partition, version + i, by)
        for i, (topic, partition) in enumerate(decided_partitions(), start=1)
    ]
    with suppress(Conflict):
        store.append(events)
    epoch = current_epoch(store)
    assert epoch is not None
    return epoch


def _event(codec: Codec, opening: Opening, topic: str, partition: int, version: int, by: UserId) -> Event:
    fact = StoreOpened(
        event_id=new_id(),
        occurred_at=now_us(),
        producer=PRODUCER,
        version=version,
        store=opening.store,
        previous_store=opening.previous_store,
        previous_position=opening.previous_position,
        by=by,
    )
    envelope = Envelope(topic, partition, opening.store.encode(), cloud_headers(fact), codec.encode(fact, topic), opening)
    return Event(STORE, version, STORE_OPENED, envelope.pack())


def _opening(envelope: Envelope) -> Opening:
    assert envelope.opening is not None
    return envelope.opening
