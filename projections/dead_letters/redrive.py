"""A dead letter, read again from the log with the schemas of today, and where it is a fact, put in at its own coordinate (K9).

The row takes the tombstone's place under the table's own rule (a readable row wins), so that nothing is counted twice, whoever tries
again and however often, while workers go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from events.log.client import LogMismatch, Reader
from events.log.record import Coordinate, LogRecord
from events.log.schemas import read_schemas
from events.process.clock import now_us
from events.process.settings import Settings
from projections.bills.running import RunningBills
from projections.catalog.sink import HISTORY_TOPICS
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk, DeadLetter
from projections.ingest.table_offsets import DenseEnds
from projections.usage.insert_plans import InsertPlans
from projections.usage.sink import UsageSink
from projections.usage.validator import why_unreadable

Kind = Literal["redriven", "readable", "unreadable", "not_stored", "other_record", "not_of_usage"]
NOBODY = ("", "-")


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one attempt. Only `redriven` changed anything."""

    at: Coordinate
    kind: Kind
    message: str


class Redrive:
    """Raises LogUnavailable and ClickHouseUnavailable."""

    def __init__(self, settings: Settings, clickhouse: ClickHouse) -> None:
        self._clickhouse, self._reader = clickhouse, Reader(settings, "redrive")
        self._schemas, _ = read_schemas(self._reader)
        self._refused: list[str] = []
        self._ends = DenseEnds(clickhouse, "usage")
        schemas = InsertPlans(self._reader, self._schemas)
        self._sink = UsageSink(clickhouse, schemas, lambda partition, fence: 0, self._refuse, lambda: None, rows_max=1)

    def close(self) -> None:
        self._reader.close()

    def retry(self, at: Coordinate) -> Tried:
        if at.topic != "usage":
            return Tried(at, "not_of_usage", _elsewhere(at.topic))
        row = self._row(at)
        if row is None:
            return Tried(at, "not_stored", "the table has no row there yet: the workers will come to it")
        readable, sha256, _ = row
        if readable:
            return Tried(at, "readable", "it has been read: its row is in the table")
        try:
            record = self._reader.record_at(at.topic, at.partition, at.offset)
        except LogMismatch as e:
            return Tried(at, "other_record", str(e))
        if hashlib.sha256(record.value or b"").hexdigest() != sha256:
            return Tried(at, "other_record", "the log has other bytes there than the table met: is this the log it was filled from?")
        why = why_unreadable(self._schemas, record.value)
        if why is not None:
            return Tried(at, "unreadable", str(why))
        self._put(record)
        row = self._row(at)
        if row is None or not row[0]:
            return Tried(at, "unreadable", self._refused[-1] if self._refused else "the table kept the tombstone")
        self._recompute(row[2], at.partition)
        return Tried(at, "redriven", f"it is in the table now, as usage of {row[2]}")

    def _put(self, record: LogRecord) -> None:
        self._refused.clear()
        self._sink.write(self._sink.prepare([Chunk("usage", record.partition, [record])]))

    def _refuse(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Its dead letter was published when it was first read: only the reason is kept."""
        self._refused += [f"{code}: {reason}" for _, code, reason in dead_letters]

    def _row(self, at: Coordinate) -> tuple[bool, str, str] | None:
        """(readable, hash, tenant) as the table has it."""
        rows = self._clickhouse.rows(
            """SELECT readable, lower(hex(sha256)) AS hash, tenant FROM usage FINAL
            WHERE kafka_partition = {partition:Int32} AND kafka_offset = {offset:UInt64}""",
            {"partition": at.partition, "offset": at.offset},
        )
        return (bool(rows[0]["readable"]), str(rows[0]["hash"]), str(rows[0]["tenant"])) if rows else None

    def _recompute(self, tenant: str, partition: int) -> None:
        """The biller recomputes a running bill when usage comes at the end of the table; this came in the middle."""
        if tenant in NOBODY:
            return
        running, now = RunningBills(self._clickhouse), now_us()
        running.store([running.compute(tenant, self._ends.end(partition), now)], now)


def _elsewhere(topic: str) -> str:
    if topic in HISTORY_TOPICS:
        return (
            "nothing waits for it: it is no part of the relay's chain, so no decision is missing, and no bill depends on it. If a newer "
            "program observed something there, a fold into a new database reads it (docs/operations.md); else write it off"
        )
    return f"no table is filled from {topic}; nothing waits for it, write it off to close it"
