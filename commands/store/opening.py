"""Opens a store: its first facts say on every partition of every decided topic that decisions come from this store from now on (K4)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from commands import PRODUCER
from commands.store.event_store import Conflict, Event, Store
from commands.store.generation import STORE, StoreGeneration, current_generation, decided_partitions
from commands.store.stored_record import Opening, StoredRecord
from events.facts.fact import UserId
from events.facts.headers import headers_of
from events.facts.log import StoreOpened
from events.log.chain import STORE_OPENED
from events.process.clock import now_us
from events.process.ids import new_id
from events.schema.codec import Codec


def open_generation(
    store: Store, codec: Codec, by: UserId, before: Mapping[tuple[str, int], tuple[str, int]] | None = None
) -> StoreGeneration:
    """Makes a new store id and writes its opening for each partition. Without `before` it is the store's first; when two processes
    try at once, or it was opened already, all go on with the one that was stored."""
    new = new_id()
    version = 0 if before is None else store.events(STORE)[-1].version
    events = [
        _event(codec, Opening(new, *(before or {}).get((topic, partition), ("", 0))), topic, partition, version + i, by)
        for i, (topic, partition) in enumerate(decided_partitions(), start=1)
    ]
    with suppress(Conflict):
        store.append(events)
    generation = current_generation(store)
    assert generation is not None
    return generation


def open_new_partitions(store: Store, codec: Codec, by: UserId) -> int:
    """A topic that began to carry decisions after this store was opened gets its opening now; how many partitions. Safe to repeat, and
    by several processes at once: one of them writes them, and the store's id stays."""
    version = store.events(STORE)[-1].version  # read before we look what is missing: a process that was faster has taken the next version
    generation = current_generation(store)
    assert generation is not None, "the store is opened first"
    missing = [tp for tp in decided_partitions() if tp not in generation.before]
    events = [
        _event(codec, Opening(generation.store, "", 0), topic, partition, version + i, by)
        for i, (topic, partition) in enumerate(missing, start=1)
    ]
    if events:
        with suppress(Conflict):
            store.append(events)
    return len(events)


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
    stored = StoredRecord(topic, partition, opening.store.encode(), headers_of(fact), codec.encode(fact, topic), opening)
    return Event(STORE, version, STORE_OPENED, stored.pack())
