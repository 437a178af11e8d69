"""Usage from the log into its table: raw Avro bytes, one insert per part, checked; what cannot be read is set aside, never guessed (K6–K9)."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from events.wire import FRAME_BYTES_MAX, Undecodable
from projections import container
from projections.chunks import Chunk, LogRecord
from projections.clickhouse import ClickHouse, ClickHouseError
from projections.positions import stored_within
from projections.usage_judge import judge
from projections.usage_schemas import UsageSchemas, Way
from projections.usage_table import OFFSETS_PER_PARTITION, UNREADABLE

logger = logging.getLogger(__name__)
BAD_DATA = frozenset({6, 27, 33, 117, 128, 131, 190, 376, 395, 748})
"""ClickHouse's codes for what a damaged record provokes while it is parsed or checked. Any other is trouble of the server, and no reason
to give up on a record."""
BUSY = frozenset({159, 202, 252, 425, 999})
"""Codes that pass: time-out, too many queries, too many parts, no coordination service."""
BUSY_S_MAX = 60.0
INSERTS_AT_ONCE = 2
INSERT_SETTINGS = {
    "max_insert_threads": 1,  # one insert is one part of each partition (K7)
    "optimize_on_insert": 0,  # rows of one insert are distinct: collapsing them costs a third of the time
    "min_insert_block_size_rows": 1 << 30,
    "min_insert_block_size_bytes": 1 << 40,
    "max_block_size": 1 << 20,
    "compile_expressions": 0,  # compiling takes longer than an insert
    "input_format_avro_allow_missing_fields": 1,
    "max_partitions_per_insert_block": 0,
}

SayDead = Callable[[Sequence[tuple[LogRecord, str, str]]], None]
Bad = tuple[LogRecord, str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """Records of one schema, at most one run of each Kafka partition: one insert. It becomes one part per partition of the table, whole
    or not at all (K7); which of them a crash left out, the next owner of each partition sees for itself (K6)."""

    way: Way
    records: Sequence[LogRecord]
    wrapped: container.Container
    token: str
    partitions: tuple[int, ...]


@dataclass(slots=True)
class Batch:
    parts: list[Part] = field(default_factory=list[Part])
    bad: list[Bad] = field(default_factory=list[Bad])
    """Records that are refused before any insert."""


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
        rows_max: int = 100_000,
        wait_s: float = 0.15,
    ) -> None:
        self._clickhouse, self._schemas, self._resume_at, self._say_dead, self._late = clickhouse, schemas, resume_at, say_dead, late
        self.table, self.rows_max, self.wait_s = table, rows_max, wait_s
        self._inserters = ThreadPoolExecutor(INSERTS_AT_ONCE, f"{table}-insert")
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
        batch, by_head = Batch(), dict[bytes, list[LogRecord]]()
        for chunk in sorted(chunks, key=lambda c: (c.partition, c.records[0].offset)):
            for r in self._missing(chunk):
                if r.value is None:
                    batch.bad.append((r, "no_value", "the record has no value"))
                elif len(r.value) > FRAME_BYTES_MAX:
                    batch.bad.append((r, "too_large", f"{len(r.value)} bytes, more than {FRAME_BYTES_MAX}"))
                else:
                    by_head.setdefault(r.value[:5], []).append(r)
        ways = self._schemas.ways(set(by_head))
        for head, records in by_head.items():
            way = ways[head]
            if isinstance(way, Undecodable):
                batch.bad += [(r, way.code, way.reason) for r in records]
            else:
                batch.parts += [_part(self.table, way, within) for within in _split(records)]
        return batch

    def write(self, prepared: Batch) -> None:
        # Facts of several kinds are several inserts: two at a time, as the engine takes them.
        for done in [self._inserters.submit(self._insert, part) for part in prepared.parts]:
            done.result()
        self._bury(prepared.bad)

    # --- preparing

    def _missing(self, chunk: Chunk) -> Sequence[LogRecord]:
        """After a crash between the parts of a chunk, what the table has already is left out."""
        first, last = chunk.records[0].offset, chunk.records[-1].offset
        if first >= self._stored_below.get(chunk.partition, 0):
            return chunk.records
        there = stored_within(self._clickhouse, self.table, chunk.partition, first, last)
        return [r for r in chunk.records if r.offset not in there]

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
                self._insert_all(part.way, good)
        elif len(good) > 1:
            # The engine sees something that the judge does not: halve until it is alone.
            half = len(good) // 2
            self._insert_all(part.way, good[:half])
            self._insert_all(part.way, good[half:])
        else:
            bad = [(good[0], "refused_by_table", str(refused)[:500])]
        self._bury(bad)

    def _insert_all(self, way: Way, records: Sequence[LogRecord]) -> None:
        for within in _split(records):
            self._insert(_part(self.table, way, within))

    def _send(self, part: Part) -> None:
        c, fence = part.wrapped, self._fence(part.partitions)
        sql = part.way.insert.sql(self.table, c.guard)
        written = self._patiently(lambda: self._clickhouse.insert(sql, c.pieces, INSERT_SETTINGS, fence, part.token))
        if written != c.rows:
            raise AssertionError(f"{part.token}: {c.rows} records became {written} rows")

    def _bury(self, bad: Sequence[Bad]) -> None:
        """The dead letter first, then the tombstone: a crash between says it twice, which is saying it once."""
        if not bad:
            return
        self._late()
        self._say_dead(bad)
        for within in _split(sorted((r for r, _, _ in bad), key=lambda r: (r.partition, r.offset))):
            self._bury_run(within)

    def _bury_run(self, records: Sequence[LogRecord]) -> None:
        ranges, partitions = _ranges(records)
        sql = f"INSERT INTO {self.table} (fact, readable, kafka_partition, kafka_offset, kafka_time_us, schema_id, sha256) FORMAT RowBinary"
        token, fence = f"{self.table}/{ranges}/unreadable", self._fence(partitions)
        body = b"".join(map(_tombstone, records))
        self._patiently(lambda: self._clickhouse.insert(sql, body, None, fence, token))

    def _fence(self, partitions: Sequence[int]) -> str:
        return ",".join(self._fences[p] for p in partitions if p in self._fences)

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


def _part(table: str, way: Way, records: Sequence[LogRecord]) -> Part:
    ranges, partitions = _ranges(records)
    wrapped = container.wrap(way.extended, records, os.urandom(16), os.urandom(16))
    return Part(way, records, wrapped, f"{table}/{ranges}/{way.insert.schema_id}", partitions)


def _ranges(records: Sequence[LogRecord]) -> tuple[str, tuple[int, ...]]:
    """`partition:first-last#count` of each partition, and the partitions. Records come sorted by partition and offset."""
    runs = [(p, list(run)) for p, run in groupby(records, key=lambda r: r.partition)]
    return ",".join(f"{p}:{run[0].offset}-{run[-1].offset}#{len(run)}" for p, run in runs), tuple(p for p, _ in runs)


def _split(records: Sequence[LogRecord]) -> list[list[LogRecord]]:
    """So that no run holds two partitions of the table that belong to one Kafka partition (K7): at every 10 million offsets."""
    if not records:
        return []
    parts = dict[int, list[LogRecord]]()
    for partition, run in groupby(records, key=lambda r: r.partition):
        of_partition = list(run)
        for nth, (_, within) in enumerate(groupby(of_partition, key=lambda r: r.offset // OFFSETS_PER_PARTITION)):
            parts.setdefault(nth, []).extend(within)
        assert of_partition[0].partition == partition
    return list(parts.values())


_FIXED = struct.Struct("<BiQqI")


def _tombstone(record: LogRecord) -> bytes:
    """RowBinary of the columns named in `_bury_run`."""
    value = record.value or b""
    schema_id = int.from_bytes(value[1:5], "big") if len(value) >= 5 else 0
    fact = UNREADABLE.encode()
    row = _FIXED.pack(0, record.partition, record.offset, record.timestamp * 1000, schema_id)
    return bytes([len(fact)]) + fact + row + hashlib.sha256(value).digest()
