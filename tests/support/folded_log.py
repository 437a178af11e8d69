"""Records as the relay writes them, folded into rows of the history: without Kafka and without tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from events.facts.headers import CE_TYPE
from events.log.chain import FIRST, Chain, ChainPosition
from events.log.record import LogRecord, Record
from events.log.signature import signed_headers
from projections.catalog.document_cache import DocumentCache, Load
from projections.catalog.rows import PartitionFold
from tests.support.todays_codec import RELAY_KEY, RELAY_KEYS, SETUP_KEY, SETUP_KEYS, todays_codec

CODEC = todays_codec()


def base(number: int) -> dict[str, Any]:
    return {"event_id": f"00000000-0000-0000-0000-{number:012d}", "occurred_at": 1_000_000 + number, "producer": "test"}


At = tuple[str, int, int]
"""The store, the position, and the position of the record before it; of one that the test did not make, nobody knows the hash."""


class Log:
    """Writes records as the relay would and hands them to a fold."""

    def __init__(self, topic: str, load: Load = lambda keys, names: {}) -> None:
        """`load`: what is stored before; nothing, where a test does not say."""
        self.documents = DocumentCache(topic, load)
        self.topic, self.fold = topic, PartitionFold(topic, 0, CODEC, Chain[LogRecord](RELAY_KEYS), self.documents, SETUP_KEYS)
        self.offset, self.hashes = 0, {0: FIRST}
        self.dead: list[str] = []

    def make(self, given_fact: tuple[str, dict[str, Any]] | bytes, at: At | None = None, *, signed: bool = True) -> Record:
        is_opening = not isinstance(given_fact, bytes) and given_fact[0] == "StoreOpened"
        value = given_fact if isinstance(given_fact, bytes) else CODEC.encode_dict(*given_fact, self.topic if is_opening else None)
        headers = {CE_TYPE: b"" if isinstance(given_fact, bytes) else given_fact[0].encode()}
        if at is not None:
            store, position, previous = at
            chained = ChainPosition(store, position, self.hashes.get(previous, b"?" * 32))
            self.hashes.setdefault(position, chained.sha256(b"k", value))
            proof = chained.signed_headers(RELAY_KEY, self.topic, 0, chained.sha256(b"k", value))
            headers |= proof if signed else chained.headers
        if self.topic == "schemas":
            headers |= signed_headers(SETUP_KEY, self.topic, b"k", value)
        return Record(self.topic, 0, -1, 1, b"k", value, headers)

    def feed(self, record: Record) -> list[dict[str, Any]]:
        self.fold.take(replace(record, offset=self.offset), record.headers)
        rows, dead = self.fold.fold()
        self.offset += 1
        self.dead += [d.code for d in dead]
        return rows

    def put(self, given_fact: tuple[str, dict[str, Any]] | bytes, at: At | None = None, *, signed: bool = True) -> list[dict[str, Any]]:
        return self.feed(self.make(given_fact, at, signed=signed))


OPENING = {"version": 1, "previous_store": "", "previous_position": 0, "by": "relay"}


def opened(log: Log, store: str = "s", previous: tuple[str, int] = ("", 0), position: int = 1) -> list[dict[str, Any]]:
    fact = {**base(position), "version": 1, "store": store, "previous_store": previous[0], "previous_position": previous[1], "by": "relay"}
    return log.put(("StoreOpened", fact), (store, position, previous[1]))
