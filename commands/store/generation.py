"""Which store decides: its id is written to every partition of every decided topic before anything else, so that each fold knows which
store to follow (K4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from commands.store.event_store import Store
from commands.store.stored_record import Opening, StoredRecord, unpack
from events.facts.topics import DECIDED_TOPICS, TOPICS

STORE = "store"
"""The originator of a store's own events."""


@dataclass(frozen=True, slots=True)
class StoreGeneration:
    """The store `store` decides from `position` on. `before`: the store and position that each partition ended with until then."""

    store: str
    position: int
    before: Mapping[tuple[str, int], tuple[str, int]]


def decided_partitions() -> Iterator[tuple[str, int]]:
    for topic in DECIDED_TOPICS:
        for partition in range(TOPICS[topic].partitions):
            yield topic, partition


def current_generation(store: Store) -> StoreGeneration | None:
    """None while the store is empty. Needs no schema."""
    openings = [(event, unpack(event.state)) for event in store.events(STORE)]
    if not openings:
        return None
    newest = opening_of(openings[-1][1]).store
    mine = [(event, stored) for event, stored in openings if opening_of(stored).store == newest]
    first = mine[0][0].version
    return StoreGeneration(
        newest,
        store.positions(STORE, first, first)[0],
        {(e.topic, e.partition): (opening_of(e).previous_store, opening_of(e).previous_position) for _, e in mine},
    )


def opening_of(stored: StoredRecord) -> Opening:
    assert stored.opening is not None
    return stored.opening
