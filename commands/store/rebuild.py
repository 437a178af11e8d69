"""Rebuilds an event store from the log: `python -m commands.store.rebuild`. For when the store was lost, or restored from too old a copy.

Decided topics are kept for ever, so the log holds every decision that was ever sent. They go into an empty store at their own
positions; then that store opens an generation, naming for each partition the store and position before. What the lost store had
decided and not sent is lost with it. Stop the command API and the relay first, and move the old store away.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from commands.store.event_store import Event, Store, StoreUnavailable, open_store
from commands.store.generation import STORE, decided_partitions
from commands.store.opening import open_generation
from commands.store.stored_record import Opening, StoredRecord
from events.facts.fact import UserId
from events.facts.headers import cloud_event_headers
from events.facts.topics import DECIDED_TOPICS
from events.log.chain import STORE_OPENED, Claim
from events.log.client import LogMismatch, LogUnavailable, Reader
from events.log.decided_records import ChainBroken, DecidedRecords, ends
from events.log.heartbeat import Heartbeat, newest_heartbeats, relay_keys
from events.log.record import Record
from events.log.schemas import open_codec
from events.log.sign_in import LogDenied
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.process.signing_keys import PublicKeys
from events.schema.codec import Codec, Undecodable
from events.schema.registry import RegistryUnavailable

logger = logging.getLogger(__name__)
KIND_OF = {"models": "model", "deployments": "model", "accounts": "tenant", "prices": "prices", "bills": "bills", "producers": "producer"}
"""Topic → the kind of aggregate whose facts it carries; the record key is the aggregate's own."""
KIND_OF_FACT = {
    "RecordWriteOffRequested": "record",
    "RecordWrittenOff": "record",
    "RecordSetDecisionRequested": "record_set",
    "RecordSetDecided": "record_set",
}
"""Facts of another kind of aggregate than their topic's."""
EVENTS_APPENDED_MAX = 1000


class NotRebuilt(Exception):
    """The text says why: the store is not empty, the log is not whole, or something did not answer. Nothing, or only a part, was written:
    remove the new store and try again."""


def rebuild(
    store: Store, codec: Codec, records: Iterable[Record], by: UserId, relay_keys: PublicKeys, newest: Heartbeat | None = None
) -> int:
    """Fills an empty store from all records of the decided topics, per partition in order; the number of facts. Raises NotRebuilt.
    `newest`: the relay's last heartbeat; beyond what it names, a record that nothing proves is somebody else's."""
    if store.last_position():
        raise NotRebuilt(f"the store {store.url} is not empty; move it away first")
    decided = DecidedRecords(relay_keys)
    events = {claim.at.position: _event(claim, codec) for claim in decided.of(records)}
    try:
        decided.require_whole(newest)
    except ChainBroken as e:
        raise NotRebuilt(f"the log is not whole: {e}") from e
    for record in decided.foreign:
        logger.warning("set %s aside: the relay did not send it", record.coordinate)
    ordered = [events[position] for position in sorted(events)]
    for start in range(0, len(ordered), EVENTS_APPENDED_MAX):
        store.append_at(ordered[start : start + EVENTS_APPENDED_MAX])
    if not ordered:
        raise NotRebuilt("the log holds no decision: start the command API on an empty store instead")
    open_generation(store, codec, by, ends(decided.chains, decided_partitions()))
    return len(ordered)


def _event(claim: Claim[Record], codec: Codec) -> Event:
    """Raises NotRebuilt."""
    record, position = claim.record, claim.at.position
    try:
        name, body = codec.decode(record.value)
    except Undecodable as e:
        raise NotRebuilt(f"{record.coordinate} is position {position}, and it cannot be read: {e}") from e
    opening = Opening(str(body["store"]), str(body["previous_store"]), int(body["previous_position"])) if name == STORE_OPENED else None
    assert record.key is not None and record.value is not None
    # Not the record's own headers: the chain proves the key and the value.
    headers = cloud_event_headers(name, str(body["event_id"]), str(body["producer"]), int(body["occurred_at"]))
    stored = StoredRecord(record.topic, record.partition, record.key, headers, record.value, opening)
    originator = STORE if opening else f"{KIND_OF_FACT.get(name, KIND_OF[record.topic])}/{record.key.decode()}"
    return Event(originator, int(body["version"]), name, stored.pack(), position)


def read_decided(reader: Reader) -> Iterable[Record]:
    for topic in DECIDED_TOPICS:
        yield from reader.read(topic)


def rebuild_store(settings: Settings) -> int:
    """Fills this stack's store from its log; the number of facts. Raises NotRebuilt."""
    try:
        reader = Reader(settings, "rebuild")
    except LogDenied as e:
        raise NotRebuilt(str(e)) from e
    try:
        codec, _ = open_codec(settings, reader)
        store = open_store(settings)
        try:
            seen = newest_heartbeats(reader)
            newest = seen[0].heartbeat if seen else None
            return rebuild(store, codec, read_decided(reader), UserId("rebuild"), relay_keys(settings), newest)
        finally:
            store.close()
    except (LogMismatch, LogDenied, LogUnavailable, RegistryUnavailable, StoreUnavailable) as e:
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
