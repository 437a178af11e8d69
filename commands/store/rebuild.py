"""Rebuilds an event store from the log: `python -m commands.store.rebuild`. For when the store was lost, or restored from too old a copy.

Decided topics are kept for ever, so the log holds every decision that was ever sent. They go into an empty store at their own
positions; then that store opens an generation, naming for each partition the store and position before. What the lost store had
decided and not sent is lost with it. Stop the command API and the relay first, and move the old store away.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from commands.store.event_store import Event, Store, StoreUnavailable, open_store
from commands.store.generation import STORE, decided_partitions
from commands.store.opening import open_generation
from commands.store.stored_record import Opening, StoredRecord
from events.facts.fact import UserId
from events.facts.topics import DECIDED_TOPICS
from events.log.chain import POSITION, PREVIOUS, STORE_OPENED, Chain, ChainCheck, chain_position_of
from events.log.chain import STORE as STORE_HEADER
from events.log.chain_check import check_chain
from events.log.client import LogMismatch, LogUnavailable, Reader
from events.log.heartbeat import Heartbeat, is_covered, newest_heartbeats
from events.log.record import Record
from events.log.schemas import open_codec
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.schema.codec import Codec, Undecodable
from events.schema.registry import RegistryUnavailable

logger = logging.getLogger(__name__)
KIND_OF = {"models": "model", "deployments": "model", "accounts": "tenant", "prices": "prices", "bills": "bills", "producers": "producer"}
"""Topic → the kind of aggregate whose facts it carries; the record key is the aggregate's own."""
KIND_OF_FACT = {"RecordWriteOffRequested": "record", "RecordWrittenOff": "record"}
"""Facts of another kind of aggregate than their topic's."""
EVENTS_APPENDED_MAX = 1000
TP = tuple[str, int]


class NotRebuilt(Exception):
    """The text says why: the store is not empty, the log is not whole, or something did not answer. Nothing, or only a part, was written:
    remove the new store and try again."""


def rebuild(store: Store, codec: Codec, records: Iterable[Record], by: UserId, newest: Heartbeat | None = None) -> int:
    """Fills an empty store from all records of the decided topics, per partition in order; the number of facts. Raises NotRebuilt.
    `newest`: the relay's last heartbeat; beyond what it names, a record without its predecessor is somebody else's."""
    if store.last_position():
        raise NotRebuilt(f"the store {store.url} is not empty; move it away first")
    chains = {tp: Chain() for tp in decided_partitions()}
    events: dict[int, Event] = {}
    waiting = defaultdict[TP, list[Record]](list)
    for record in records:
        queue, chain = waiting[record.topic, record.partition], chains[record.topic, record.partition]
        if not add_record(record, codec, chain, events):
            queue.append(record)
            continue
        while (taken := next((r for r in queue if add_record(r, codec, chain, events)), None)) is not None:
            queue.remove(taken)
    for tp, queue in waiting.items():
        _require_foreign(tp, queue, chains[tp], newest)
    ordered = [events[position] for position in sorted(events)]
    for start in range(0, len(ordered), EVENTS_APPENDED_MAX):
        store.append_at(ordered[start : start + EVENTS_APPENDED_MAX])
    if not ordered:
        raise NotRebuilt("the log holds no decision: start the command API on an empty store instead")
    before: Mapping[TP, tuple[str, int]] = {tp: (chain.store, chain.position) for tp, chain in chains.items()}
    open_generation(store, codec, by, before)
    return len(ordered)


def _require_foreign(tp: TP, queue: Sequence[Record], chain: Chain, newest: Heartbeat | None) -> None:
    """Raises NotRebuilt when a record whose predecessor is missing may be the relay's."""
    if queue and not (newest and is_covered(newest, *tp, chain)):
        first = chain_position_of(queue[0].headers)
        raise NotRebuilt(f"{queue[0].coordinate} is {first}, but {chain.position} is the last before it: the log is not whole")
    for record in queue:
        logger.warning("set %s aside: the relay did not send it", record.coordinate)


def add_record(record: Record, codec: Codec, chain: Chain, events: dict[int, Event]) -> bool:
    """One record of a partition into `events` by position; False when it has to wait for its predecessor. Raises NotRebuilt."""
    chain_position = chain_position_of(record.headers)
    if chain_position is None:
        return True  # an observed fact, or no fact at all: no decision
    match check_chain(chain, codec, chain_position, record.headers, record.value):
        case ChainCheck.COPY:
            return True
        case ChainCheck.UNREADABLE:
            logger.warning("set %s aside: it claims to open store %s and cannot be read", record.coordinate, chain_position.store)
            return True
        case ChainCheck.WAIT:
            return False
        case ChainCheck.NEXT:
            chain.advance(chain_position)
    try:
        name, body = codec.decode(record.value)
    except Undecodable as e:
        raise NotRebuilt(f"{record.coordinate} is position {chain_position.position}, and it cannot be read: {e}") from e
    opening = Opening(str(body["store"]), str(body["previous_store"]), int(body["previous_position"])) if name == STORE_OPENED else None
    headers = {k: v for k, v in record.headers.items() if k not in (STORE_HEADER, POSITION, PREVIOUS)}
    assert record.key is not None and record.value is not None
    stored = StoredRecord(record.topic, record.partition, record.key, headers, record.value, opening)
    originator = STORE if opening else f"{KIND_OF_FACT.get(name, KIND_OF[record.topic])}/{record.key.decode()}"
    events[chain_position.position] = Event(originator, int(body["version"]), name, stored.pack(), chain_position.position)
    return True


def read_decided(reader: Reader) -> Iterable[Record]:
    for topic in DECIDED_TOPICS:
        yield from reader.read(topic)


def rebuild_store(settings: Settings) -> int:
    """Fills this stack's store from its log; the number of facts. Raises NotRebuilt."""
    reader = Reader(settings, "rebuild")
    try:
        codec, _ = open_codec(settings, reader)
        store = open_store(settings)
        try:
            seen = newest_heartbeats(reader)
            return rebuild(store, codec, read_decided(reader), UserId("rebuild"), seen[0].heartbeat if seen else None)
        finally:
            store.close()
    except (LogMismatch, LogUnavailable, RegistryUnavailable, StoreUnavailable) as e:
        raise NotRebuilt(str(e)) from e
    finally:
        reader.close()


def main() -> int:
    start_logging("rebuild")
    settings = Settings()
    try:
        count = rebuild_store(settings)
    except NotRebuilt as e:
        logger.error("the store was not rebuilt: %s", e)
        return 1
    logger.info("rebuilt %d facts into %s; start the command API and the relay again", count, settings.store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
