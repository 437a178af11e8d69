"""Usage from the log into its table: raw Avro bytes, one insert per part, checked; what cannot be read is set aside, never guessed (K6–K9)."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from events.wire import Undecodable
from projections import container
from projections.chunks import Chunk, LogRecord
from projections.clickhouse import ClickHouse, ClickHouseError
from projections.positions import dense_end, stored_within
from projections.usage_judge import judge
from projections.usage_schemas import UsageSchemas, Way, too_large
from projections.usage_table import OFFSETS_PER_PARTITION, UNREADABLE

logger = logging.getLogger(__name__)
BAD_DATA = frozenset({6, 27, 33, 117, 128, 131, 190, 376, 395, 748})
"""ClickHouse's codes for what a damaged record provokes while it is parsed or checked. Any other is trouble of the server, and no reason
to give up on a record."""
BUSY = frozenset({159, 202, 252, 425, 999})
"""Codes that pass: time-out, too many queries, too many parts, no coordination service."""
BUSY_S_MAX = 60.0
INSERT_SETTINGS = {
    "max_insert_threads": 1,  # one insert is one part (K7)
    "optimize_on_insert": 0,  # rows of one insert are distinct: collapsing them costs a third of the time
    "min_insert_block_size_rows": 1 << 30,
    "min_insert_block_size_bytes": 1 << 40,
    "max_block_size": 1 << 20,
    "input_format_avro_allow_missing_fields": 1,
    "max_partitions_per_insert_block": 1,
}

SayDead = Callable[[Sequence[tuple[LogRecord, str, str]]], None]
Bad = tuple[LogRecord, str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """Records of one schema and one ClickHouse partition: one insert. `wrapped` is None when it must be judged record by record."""

    partition: int
    way: Way
    records: Sequence[LogRecord]
    wrapped: container.Container


@dataclass(slots=True)
class Batch:
    parts: list[Part] = field(default_factory=list[Part])
    bad: dict[int, list[Bad]] = field(default_factory=dict[int, list[Bad]])
    """partition → records that are refused before any insert."""


class UsageSink:
    """A `chunks.Sink`. `resume_at(partition, fence)`: the first missing offset; `say_dead` is durable when it returns; `late` ends an
    owner that may be none any more. A rebuild uses the same class on other tables."""

    topic = "usage"

    def __init__(
        self,
        clickhouse: ClickHouse,
        schemas: UsageSchemas,
        resume_at: Callable[[int, str], int],
        say_dead: SayDead,
        late: Callable[[], None],
        *,
        table: str = "usage",
        rows_max: int = 50_000,
        wait_s: float = 0.15,
    ) -> None:
        self._clickhouse, self._schemas, self._resume_at, self._say_dead, self._late = clickhouse, schemas, resume_at, say_dead, late
        self.table, self.rows_max, self.wait_s = table, rows_max, wait_s
        self._fences: dict[int, str] = {}
        self._stored_below: dict[int, int] = {}
        """partition → offsets from here on are certainly not stored."""

    # --- the three verbs of a sink

    def resume(self, partition: int) -> int:
        # By take-over time and not by generation: a static member's successor has the same generation.
        fence = f"{self.table}/{partition}:{time.time_ns() // 1_000_000}"
        first = self._resume_at(partition, fence)
        last = self._clickhouse.value(
            f"SELECT coalesce(maxOrNull(toInt64(kafka_offset)), -1) AS last FROM {self.table} WHERE kafka_partition = {{partition:Int32}}",
            {"partition": partition},
            fence=fence,
        )
        self._fences[partition], self._stored_below[partition] = fence, int(last) + 1
        return first

    def prepare(self, chunks: list[Chunk]) -> Batch:
        batch, by_partition = Batch(), dict[int, list[LogRecord]]()
        for chunk in chunks:
            by_partition.setdefault(chunk.partition, []).extend(self._missing(chunk))
        for partition, records in by_partition.items():
            for within in _split(records):
                self._prepare(batch, partition, within)
        return batch

    def write(self, prepared: Batch) -> None:
        for part in prepared.parts:
            self._insert(part)
        for partition, bad in prepared.bad.items():
            self._bury(partition, bad)

    # --- preparing

    def _missing(self, chunk: Chunk) -> Sequence[LogRecord]:
        """After a crash between the parts of a chunk, what the table has already is left out."""
        first, last = chunk.records[0].offset, chunk.records[-1].offset
        if first >= self._stored_below.get(chunk.partition, 0):
            return chunk.records
        there = stored_within(self._clickhouse, self.table, chunk.partition, first, last)
        return [r for r in chunk.records if r.offset not in there]

    def _prepare(self, batch: Batch, partition: int, records: Sequence[LogRecord]) -> None:
        by_head = dict[bytes, list[LogRecord]]()
        bad = list[Bad]()
        for r in records:
            if r.value is None:
                bad.append((r, "no_value", "the record has no value"))
            elif (large := too_large(r.value)) is not None:
                bad.append((r, large.code, large.reason))
            else:
                by_head.setdefault(r.value[:5], []).append(r)
        ways = self._schemas.ways(set(by_head))
        for head, group in by_head.items():
            way = ways[head]
            if isinstance(way, Undecodable):
                bad += [(r, way.code, way.reason) for r in group]
            else:
                batch.parts.append(_part(partition, way, group))
        if bad:
            batch.bad.setdefault(partition, []).extend(bad)

    # --- writing

    def _insert(self, part: Part) -> None:
        try:
            self._send(part)
        except ClickHouseError as e:
            if e.code not in BAD_DATA:
                raise
            self._insert_judged(part, e)

    def _insert_judged(self, part: Part, refused: ClickHouseError) -> None:
        """One of these records is damaged: judge each, insert the good ones, bury the others."""
        good, bad = list[LogRecord](), list[Bad]()
        for r in part.records:
            assert r.value is not None
            try:
                judge(part.way.schema, r.value)
                good.append(r)
            except Undecodable as e:
                bad.append((r, e.code, e.reason))
        logger.warning("an insert of %d records was refused (%d), %d are damaged", len(part.records), refused.code, len(bad))
        if bad:
            if good:
                self._insert(_part(part.partition, part.way, good))
        elif len(good) > 1:
            # The engine sees something that the judge does not: halve until it is alone.
            half = len(good) // 2
            self._insert(_part(part.partition, part.way, good[:half]))
            self._insert(_part(part.partition, part.way, good[half:]))
        else:
            bad = [(good[0], "refused_by_table", str(refused)[:500])]
        if bad:
            self._bury(part.partition, bad)

    def _send(self, part: Part) -> None:
        c = part.wrapped
        token = f"{self.table}/{part.partition}:{c.first}-{c.last}#{c.rows}/{part.way.insert.schema_id}"
        sql = part.way.insert.sql(self.table, part.partition, c.guard)
        written = self._patiently(
            lambda: self._clickhouse.insert(sql, c.pieces, INSERT_SETTINGS, self._fences.get(part.partition, ""), token)
        )
        if written != c.rows:
            raise AssertionError(f"{token}: {c.rows} records became {written} rows")

    def _bury(self, partition: int, bad: list[Bad]) -> None:
        """The dead letter first, then the tombstone: a crash between says it twice, which is saying it once."""
        self._late()
        self._say_dead(bad)
        for within in _split([r for r, _, _ in bad]):
            body = b"".join(_tombstone(partition, r) for r in within)
            columns = "fact, readable, kafka_partition, kafka_offset, kafka_time_us, schema_id, sha256"
            token = f"{self.table}/{partition}:{within[0].offset}-{within[-1].offset}#{len(within)}/unreadable"
            sql = f"INSERT INTO {self.table} ({columns}) FORMAT RowBinary"
            self._patiently(lambda: self._clickhouse.insert(sql, body, None, self._fences.get(partition, ""), token))  # noqa: B023 - called at once

    def _patiently(self, insert: Callable[[], int]) -> int:
        end = time.monotonic() + BUSY_S_MAX
        while True:
            self._late()
            try:
                return insert()
            except ClickHouseError as e:
                if e.code not in BUSY or time.monotonic() > end:
                    raise
                logger.warning("ClickHouse is busy, waiting: %s", str(e)[:200])
                time.sleep(0.5)


def dense(clickhouse: ClickHouse, table: str, partitions: Sequence[int]) -> dict[int, int]:
    return {p: dense_end(clickhouse, table, p) for p in partitions}


def _part(partition: int, way: Way, records: Sequence[LogRecord]) -> Part:
    return Part(partition, way, records, container.wrap(way.extended, records, os.urandom(16), os.urandom(16)))


def _split(records: Sequence[LogRecord]) -> list[Sequence[LogRecord]]:
    """At the borders of the table's partitions (K7)."""
    if not records or records[0].offset // OFFSETS_PER_PARTITION == records[-1].offset // OFFSETS_PER_PARTITION:
        return [records] if records else []
    parts = dict[int, list[LogRecord]]()
    for r in records:
        parts.setdefault(r.offset // OFFSETS_PER_PARTITION, []).append(r)
    return list(parts.values())


_FIXED = struct.Struct("<BiQqI")


def _tombstone(partition: int, record: LogRecord) -> bytes:
    """RowBinary of the columns named in `_bury`."""
    value = record.value or b""
    schema_id = int.from_bytes(value[1:5], "big") if len(value) >= 5 else 0
    fact = UNREADABLE.encode()
    row = _FIXED.pack(0, partition, record.offset, record.timestamp * 1000, schema_id)
    return bytes([len(fact)]) + fact + row + hashlib.sha256(value).digest()
