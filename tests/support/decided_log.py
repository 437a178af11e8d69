"""What is on the decided topics, read with confluent_kafka alone and checked by the rules of the chain (K4)."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256

import confluent_kafka as ck

from commands.store.event_store import QUOTA_EVENT, open_store
from events.log.sign_in import client_config
from events.process.settings import Settings
from tests.support.polling import eventually

SIGNATURE_HEADERS = {"signed_by", "signature"}
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


def end_of(consumer: ck.Consumer, topic: str, partition: int) -> int:
    """The next offset to be written. A broker that has just started leads no partition for a moment."""

    def asked() -> tuple[int, int]:
        low, high = consumer.get_watermark_offsets(ck.TopicPartition(topic, partition), timeout=10)  # type: ignore[misc]
        return low, high

    return eventually(asked, f"{topic}/{partition} has a leader")[1]


def read_log(settings: Settings, *topics: str) -> list[LogEntry]:
    """Everything on these topics, read with confluent_kafka alone."""
    consumer = ck.Consumer({**client_config(settings), "group.id": "oracle", "enable.auto.commit": False})
    try:
        ends: dict[tuple[str, int], int] = {}
        for topic in topics:
            for p in range(DECIDED.get(topic, 1)):
                if high := end_of(consumer, topic, p):
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
    ends_signed: bool
    """Every partition ends with a record that carries a signature."""


def check_chain(settings: Settings) -> ChainReport:
    """Every decided partition, by the rule of K4 alone: each record is the next one or an exact copy. Raises AssertionError."""
    records: dict[int, LogEntry] = {}
    copies, ends_signed = 0, True
    by_partition: defaultdict[tuple[str, int], list[LogEntry]] = defaultdict(list)
    for r in read_log(settings, *DECIDED):
        if r.headers.get("position", b"").isdigit():
            by_partition[r.topic, r.partition].append(r)
    for tp, found in by_partition.items():
        seen, seen_sha256, signed = 0, bytes(32), False
        for r in sorted(found, key=lambda r: r.offset):
            if r.position <= seen:
                first = records[r.position]
                same = [(x.key, x.value, {k: v for k, v in x.headers.items() if k not in SIGNATURE_HEADERS}) for x in (first, r)]
                assert same[0] == same[1], f"{tp}: another record under {r.position}"
                copies += 1
                signed = signed or ("signature" in r.headers and r.position == seen)
                continue
            previous = r.headers["previous_sha256"]
            assert previous == seen_sha256, f"{tp}: {r.position} names another record than {seen} as the one before it"
            hashed = b"%s %d %d %d " % (r.headers["store"], r.position, len(r.key), len(r.value))
            seen, seen_sha256, signed = r.position, sha256(previous + hashed + r.key + r.value).digest(), "signature" in r.headers
            records[r.position] = r
        ends_signed = ends_signed and signed
    assert len({r.headers["store"] for r in records.values()}) <= 1
    return ChainReport(records, copies, ends_signed)


def check_complete(settings: Settings) -> ChainReport:
    """The chain, and that the log holds exactly what the store decided, byte for byte in the store's order."""
    chained = check_chain(settings)
    store = open_store(settings)
    after, decided = 0, dict[int, bytes]()
    while page := store.notifications(after):
        decided |= {e.position: e.state for e in page if e.name != QUOTA_EVENT}
        after = page[-1].position
    store.close()
    assert set(chained.records) == set(decided)
    assert chained.ends_signed
    for position, record in chained.records.items():
        assert decided[position].endswith(record.value), f"position {position} differs"
    return chained
