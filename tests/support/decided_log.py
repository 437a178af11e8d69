"""What is on the decided topics, read with confluent_kafka alone and checked by the rules of the chain (K4)."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import confluent_kafka as ck

from commands.store.event_store import ANSWER_EVENT, open_store
from events.process.settings import Settings

DECIDED = {"models": 4, "deployments": 4, "accounts": 4, "prices": 1, "bills": 4, "producers": 1}


@dataclass(frozen=True)
class LogEntry:
    topic: str
    partition: int
    offset: int
    headers: dict[str, bytes]
    key: bytes
    value: bytes

    @property
    def position(self) -> int:
        return int(self.headers["position"])


def read_log(settings: Settings, *topics: str) -> list[LogEntry]:
    """Everything on these topics, read with confluent_kafka alone."""
    consumer = ck.Consumer({"bootstrap.servers": settings.kafka, "group.id": "oracle", "enable.auto.commit": False})
    try:
        ends: dict[tuple[str, int], int] = {}
        for topic in topics:
            for p in range(DECIDED.get(topic, 1)):
                _, high = consumer.get_watermark_offsets(ck.TopicPartition(topic, p), timeout=10)  # type: ignore[misc]
                if high:
                    ends[topic, p] = high
        consumer.assign([ck.TopicPartition(t, p, 0) for t, p in ends])
        found: list[LogEntry] = []
        end = time.monotonic() + 60
        while ends:
            assert time.monotonic() < end, f"unread: {ends}"
            for m in consumer.consume(5000, 0.5):
                assert m.error() is None, m.error()
                at = (str(m.topic()), int(m.partition() or 0))
                found.append(LogEntry(*at, m.offset() or 0, dict(m.headers() or []), m.key() or b"", m.value() or b""))  # type: ignore[arg-type]
                if (m.offset() or 0) >= ends.get(at, 1 << 60) - 1:
                    del ends[at]
        return found
    finally:
        consumer.close()


@dataclass
class ChainReport:
    """What the oracle found: first records in position order, and how many copies."""

    records: dict[int, LogEntry]
    copies: int


def check_chain(settings: Settings) -> ChainReport:
    """Every decided partition, by the rule of K4 alone: each record is the next one or an exact copy. Raises AssertionError."""
    records: dict[int, LogEntry] = {}
    copies = 0
    by_partition: defaultdict[tuple[str, int], list[LogEntry]] = defaultdict(list)
    for r in read_log(settings, *DECIDED):
        if r.headers.get("position", b"").isdigit():
            by_partition[r.topic, r.partition].append(r)
    for tp, found in by_partition.items():
        seen = 0
        for r in sorted(found, key=lambda r: r.offset):
            if r.position <= seen:
                first = records[r.position]
                assert (first.key, first.value, first.headers) == (r.key, r.value, r.headers), f"{tp}: another record under {r.position}"
                copies += 1
                continue
            assert int(r.headers["previous"]) == seen, f"{tp}: {r.position} follows {r.headers['previous']!r}, but {seen} was last"
            seen, records[r.position] = r.position, r
    assert len({r.headers["store"] for r in records.values()}) <= 1
    return ChainReport(records, copies)


def check_complete(settings: Settings) -> ChainReport:
    """The chain, and that the log holds exactly what the store decided, byte for byte in the store's order."""
    chained = check_chain(settings)
    store = open_store(settings)
    after, decided = 0, dict[int, bytes]()
    while page := store.notifications(after):
        decided |= {e.position: e.state for e in page if e.name != ANSWER_EVENT}
        after = page[-1].position
    store.close()
    assert set(chained.records) == set(decided)
    for position, record in chained.records.items():
        assert decided[position].endswith(record.value), f"position {position} differs"
    return chained
