"""Unreadable records: published to topic `dead-letters` with coordinate, reason and bytes, and kept in a table of their own (K9)."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from events.facts.fact import INT64_MAX
from events.facts.headers import headers_of
from events.facts.log import DeadLettered
from events.facts.topics import TOPICS
from events.log.client import Writer
from events.log.record import Headers, LogRecord
from events.process.clock import now_us
from events.schema.codec import Codec, FrameTooLarge, Undecodable
from projections.dead_letters.forged_alerts import forged_alert
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk, DeadLetter

logger = logging.getLogger(__name__)
TOPIC = "dead-letters"
ACKNOWLEDGED_S_MAX = 30.0
CLUE_BYTES = 1024
"""What is kept of a value too large to be kept whole; the record itself stays at its coordinate."""
SHA256_BYTES = 32
_NAMESPACE = uuid.UUID("5f0c1c9e-2f0c-4c1c-9d7e-1f6f2a3b4c5d")

DEAD_LETTERS_TABLE = """
CREATE TABLE IF NOT EXISTS dead_letters_rows (
    kafka_partition Int32,
    kafka_offset Int64 COMMENT 'of the dead letter itself',
    kafka_time_us Int64,
    sha256 FixedString(64),
    event_id String,
    topic LowCardinality(String) COMMENT 'topic of the record that could not be read',
    partition Int32,
    offset Int64,
    code LowCardinality(String),
    reason String,
    reader LowCardinality(String) COMMENT 'which projection could not read it',
    key String,
    value_sha256 FixedString(64),
    value_bytes UInt64,
    appended DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(kafka_time_us, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Dead letters as the log has them; read the view dead_letters'
"""
DEAD_LETTERS_VIEW = """
CREATE OR REPLACE VIEW dead_letters AS
SELECT topic, partition, offset, any(code) AS code, any(reason) AS reason, reader, any(key) AS key, value_sha256,
    any(value_bytes) AS value_bytes, min(kafka_time_us) AS first_us
FROM dead_letters_rows FINAL WHERE event_id != '' GROUP BY topic, partition, offset, reader, value_sha256
"""


@dataclass(frozen=True, slots=True)
class DeadLetterPublisher:
    """Publishes dead letters, durably, before the projection goes on. A repeated one has the same event_id."""

    writer: Writer
    codec: Codec
    reader: str

    def publish(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Returns when Kafka has them all; raises TimeoutError."""
        futures = [
            self.writer.append(TOPIC, f"{r.topic}/{r.partition}/{r.offset}".encode(), *self._frame_and_headers(r, code, reason))
            for r, code, reason in dead_letters
        ]
        for future in futures:
            future.result(ACKNOWLEDGED_S_MAX)
        alert = forged_alert(dead_letters, self.reader)
        if alert is not None:
            self.writer.append("alerts", alert.subject.encode(), self.codec.encode(alert), headers_of(alert)).result(ACKNOWLEDGED_S_MAX)
        if dead_letters:
            r, code, reason = dead_letters[0]
            logger.warning(
                "%d records could not be read, the first at %s/%s/%s: %s: %s",
                len(dead_letters),
                r.topic,
                r.partition,
                r.offset,
                code,
                reason,
            )

    def _frame_and_headers(self, record: LogRecord, code: str, reason: str) -> tuple[bytes, Headers]:
        value = record.value or b""
        coordinate = f"{record.topic}/{record.partition}/{record.offset}"

        def encoded(key: bytes, kept: bytes, why: str) -> tuple[bytes, Headers]:
            fact = DeadLettered(
                event_id=_event_id(coordinate, self.reader),
                occurred_at=now_us(),
                producer=self.reader,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                code=code,
                reason=why,
                reader=self.reader,
                key=key,
                value=kept,
                value_sha256=hashlib.sha256(value).digest(),
            )
            return self.codec.encode(fact), headers_of(fact)

        try:
            return encoded(record.key or b"", value, reason[:1000])
        except FrameTooLarge:
            return encoded(
                (record.key or b"")[:CLUE_BYTES], value[:CLUE_BYTES], f"{reason[:800]} (only {CLUE_BYTES} of {len(value)} bytes kept here)"
            )


def _event_id(coordinate: str, reader: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{coordinate}@{reader}"))


class DeadLetterSink:
    """Topic `dead-letters` as a table. A record that no `DeadLetterPublisher` wrote gets an empty row, so that every offset has one."""

    topic = TOPIC
    rows_max, wait_s = 5_000, 0.05

    def __init__(
        self, clickhouse: ClickHouse, codec: Codec, first_missing: Callable[[str, int, str], int], ensure_member: Callable[[], None]
    ) -> None:
        """`first_missing(table, partition, fence)` as in `positions`."""
        self._clickhouse, self._codec, self._first_missing, self._ensure_member = clickhouse, codec, first_missing, ensure_member
        self._fences: dict[int, str] = {}

    def resume(self, partition: int) -> int:
        self._fences[partition] = f"dead_letters_rows/{partition}:{now_us() // 1000}"
        return self._first_missing("dead_letters_rows", partition, self._fences[partition])

    def prepare(self, chunks: list[Chunk]) -> list[tuple[Chunk, list[dict[str, Any]]]]:
        return [(c, [self._row(c.partition, r) for r in c.records]) for c in chunks]

    def write(self, prepared: list[tuple[Chunk, list[dict[str, Any]]]]) -> None:
        for chunk, rows in prepared:
            self._ensure_member()
            token = f"dead_letters_rows/{chunk.partition}:{chunk.records[0].offset}-{chunk.records[-1].offset}"
            self._clickhouse.insert_rows("dead_letters_rows", rows, self._fences[chunk.partition], token)

    def _row(self, partition: int, record: LogRecord) -> dict[str, Any]:
        value = record.value or b""
        row: dict[str, Any] = {
            "kafka_partition": partition,
            "kafka_offset": record.offset,
            "kafka_time_us": record.timestamp * 1000,
            "sha256": hashlib.sha256(value).hexdigest(),
        }
        try:
            name, body = self._codec.decode(record.value)
        except Undecodable as e:
            logger.warning("the record at offset %s of dead-letters cannot be read: %s", record.offset, e)
            return row
        if name != "DeadLettered" or not _plausible(body):
            logger.warning("the record at offset %s of dead-letters is no dead letter of this market: %s", record.offset, name)
            return row
        words = {k: body[k] for k in ("event_id", "topic", "partition", "offset", "code", "reason", "reader")}
        key = bytes(body["key"]).decode("utf-8", "backslashreplace")
        return row | words | {"key": key, "value_sha256": bytes(body["value_sha256"]).hex(), "value_bytes": len(body["value"])}


def _plausible(body: Mapping[str, Any]) -> bool:
    """What every dead letter of ours fulfils; also the bounds of the table's columns. That the record it names was met is in other tables,
    and is asked when dead letters are listed."""
    topic = TOPICS.get(str(body["topic"]))
    if topic is None or not (0 <= body["partition"] < topic.partitions and 0 <= body["offset"] <= INT64_MAX):
        return False
    coordinate = f"{topic.name}/{body['partition']}/{body['offset']}"
    return body["event_id"] == _event_id(coordinate, str(body["reader"])) and len(body["value_sha256"]) == SHA256_BYTES
