"""Usage from the log into its table: raw Avro bytes, one insert per part, checked; what cannot be read is set aside, never guessed (K6–K9)."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar, cast

from events.log.record import LogRecord
from events.schema.codec import FRAME_BYTES_MAX, Undecodable
from projections.ingest import avro_container as container
from projections.ingest.clickhouse import ClickHouse, ClickHouseError
from projections.ingest.sink import Chunk, DeadLetter, PublishDeadLetters
from projections.ingest.table_offsets import stored_within
from projections.usage.insert_plans import InsertPlan, InsertPlans
from projections.usage.runs import Run, balanced, ranges_of, runs_of, split
from projections.usage.table import GUARD_SETTING, UNREADABLE
from projections.usage.validator import validate

logger = logging.getLogger(__name__)
BAD_DATA = frozenset({6, 27, 33, 117, 128, 131, 190, 376, 395, 748})
"""ClickHouse's codes for what a damaged record provokes while it is parsed or checked. Any other is an error of the server, and no reason
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

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PreparedInsert:
    """Records of one schema, at most one run of each Kafka partition: one insert. It becomes one part per partition of the table, whole
    or not at all (K7); which of them a crash left out, the next owner of each partition sees for itself (K6)."""

    plan: InsertPlan
    records: Sequence[LogRecord]
    wrapped: container.Container
    token: str
    partitions: tuple[int, ...]


@dataclass(slots=True)
class Batch:
    parts: list[PreparedInsert] = field(default_factory=list[PreparedInsert])
    bad: list[DeadLetter] = field(default_factory=list[DeadLetter])
    """Records that are refused before any insert."""


class UsageSink:
    """A `sink.Sink`. `resume_at(partition, fence)`: the first missing offset; `publish_dead_letters` is durable when it returns,
    and is called by one thread at a time; `ensure_member` ends a process that may no longer be the owner. A rebuild uses this
    class on other tables."""

    topic = "usage"

    def __init__(
        self,
        clickhouse: ClickHouse,
        schemas: InsertPlans,
        resume_at: Callable[[int, str], int],
        publish_dead_letters: PublishDeadLetters,
        ensure_member: Callable[[], None],
        *,
        table: str = "usage",
        rows_max: int = 100_000,
        wait_s: float = 0.15,
    ) -> None:
        self._clickhouse, self._schemas, self._resume_at, self._publish_dead_letters, self._ensure_member = (
            clickhouse,
            schemas,
            resume_at,
            publish_dead_letters,
            ensure_member,
        )
        self.table, self.rows_max, self.wait_s = table, rows_max, wait_s
        self._inserters, self._quarantining = ThreadPoolExecutor(INSERTS_AT_ONCE, f"{table}-insert"), Lock()
        self._fences: dict[int, str] = {}
        self._stored_below: dict[int, int] = {}
        """partition → offsets from here on are certainly not stored."""

    # --- the three verbs of a sink

    def resume(self, partition: int) -> int:
        # By take-over time and not by generation: a static member's successor has the same generation.
        fence = f"{self.table}/{partition}:{time.time_ns() // 1_000_000}"
        first = self._resume_at(partition, fence)
        # Only what lies past the gap: the whole of a long partition is not read in the time that a worker has for an answer.
        after = self._clickhouse.value(
            f"""SELECT greatest(coalesce(maxOrNull(toInt64(kafka_offset)) + 1, 0), {{first:Int64}}) AS after
            FROM {self.table} WHERE kafka_partition = {{partition:Int32}} AND kafka_offset >= {{first:Int64}}""",
            {"partition": partition, "first": first},
            fence=fence,
        )
        self._fences[partition], self._stored_below[partition] = fence, int(after)
        return first

    def prepare(self, chunks: list[Chunk]) -> Batch:
        batch, by_head = Batch(), dict[bytes, list[Run]]()
        for chunk in sorted(chunks, key=lambda c: (c.partition, c.records[0].offset)):
            for head, records in self._by_head(self._missing(chunk), batch.bad):
                by_head.setdefault(head, []).append(Run(chunk.partition, records))
        plans = self._schemas.plans(set(by_head))
        for head, runs in by_head.items():
            plan = plans[head]
            if isinstance(plan, Undecodable):
                batch.bad += [DeadLetter(r, plan.code, plan.reason) for run in runs for r in run.records]
            else:
                batch.parts += [_prepared_insert(self.table, plan, some) for within in split(runs) for some in balanced(within)]
        return batch

    def write(self, prepared: Batch) -> None:
        # Two at a time, as the engine takes them: facts of several kinds, and the halves of many. When one fails the others are let end:
        # nothing of a write that raised is still under plan.
        inserting = [self._inserters.submit(self._insert, part) for part in prepared.parts]
        wait(inserting)
        for done in inserting:
            done.result()
        self._quarantine(prepared.bad)

    # --- preparing

    def _missing(self, chunk: Chunk) -> Sequence[LogRecord]:
        """After a crash between the parts of a chunk, what the table has already is left out."""
        first, last = chunk.records[0].offset, chunk.records[-1].offset
        if first >= self._stored_below.get(chunk.partition, 0):
            return chunk.records
        there = stored_within(self._clickhouse, self.table, chunk.partition, first, last)
        return [r for r in chunk.records if r.offset not in there]

    def _by_head(self, records: Sequence[LogRecord], bad: list[DeadLetter]) -> Iterable[tuple[bytes, Sequence[LogRecord]]]:
        """Records by the first five bytes of their value, in order; what has none, or too much, goes to `bad`."""
        if not records:
            return ()
        values = [r.value for r in records]
        if None not in values and max(map(len, cast(list[bytes], values))) <= FRAME_BYTES_MAX:
            heads = {v[:5] for v in cast(list[bytes], values)}
            if len(heads) == 1:  # as nearly always: nothing is looked at one by one
                return ((heads.pop(), records),)
        by_head = dict[bytes, list[LogRecord]]()
        for r in records:
            if r.value is None:
                bad.append(DeadLetter(r, "no_value", "the record has no value"))
            elif len(r.value) > FRAME_BYTES_MAX:
                bad.append(DeadLetter(r, "too_large", f"{len(r.value)} bytes, more than {FRAME_BYTES_MAX}"))
            else:
                by_head.setdefault(r.value[:5], []).append(r)
        return by_head.items()

    # --- writing

    def _insert(self, part: PreparedInsert) -> None:
        try:
            self._send(part)
        except ClickHouseError as e:
            if e.code not in BAD_DATA:
                raise
            self._insert_validated(part, e)

    def _insert_validated(self, part: PreparedInsert, refused: ClickHouseError) -> None:
        """One of these records is damaged: validates each, inserts the valid ones and quarantines the others."""
        good, bad = list[LogRecord](), list[DeadLetter]()
        for r in part.records:
            assert r.value is not None
            try:
                validate(part.plan.schema, r.value)
                good.append(r)
            except Undecodable as e:
                bad.append(DeadLetter(r, e.code, e.reason))
        logger.warning("an insert of %d records was refused (%d), %d are damaged", len(part.records), refused.code, len(bad))
        if bad:
            if good:
                self._insert_all(part.plan, good)
        elif len(good) > 1:
            # The engine refuses something that the validator accepts: halve until it is alone.
            half = len(good) // 2
            self._insert_all(part.plan, good[:half])
            self._insert_all(part.plan, good[half:])
        else:
            bad = [DeadLetter(good[0], "refused_by_table", str(refused)[:500])]
        self._quarantine(bad)

    def _insert_all(self, plan: InsertPlan, records: Sequence[LogRecord]) -> None:
        for within in split(runs_of(records)):
            self._insert(_prepared_insert(self.table, plan, within))

    def _send(self, part: PreparedInsert, again: str = "") -> None:
        c, fence, token = part.wrapped, self._fence(part.partitions), part.token + again
        sql, settings = part.plan.insert.sql(self.table), {**INSERT_SETTINGS, GUARD_SETTING: c.guard.hex()}
        written, tries = self._retry_while_busy(lambda: self._clickhouse.insert(sql, c.pieces, settings, fence, token))
        if written != c.rows:
            raise AssertionError(f"{token}: {c.rows} records became {written} rows")
        if tries > 1:
            for within in self._missing_of(part.records, token, again):
                self._send(_prepared_insert(self.table, part.plan, within), f"/{uuid.uuid4()}")

    def _missing_of(self, records: Sequence[LogRecord], token: str, again: str) -> list[list[Run]]:
        """What the table misses of an insert that was tried more than once: a server that remembers its token, or the tokens of some of its
        parts, says yes to the second try without writing anything. It comes in under a token of its own, once; doubles collapse."""
        absent = list[LogRecord]()
        for run in runs_of(records):
            first, last = run.records[0].offset, run.records[-1].offset
            there, _ = self._retry_while_busy(partial(stored_within, self._clickhouse, self.table, run.partition, first, last))
            absent += [r for r in run.records if r.offset not in there]
        if absent and again:
            raise AssertionError(f"{token}: {len(absent)} rows are not in the table, and it says that it has them")
        if absent:
            logger.error("%s: %d rows of an insert that was tried again are not in the table and are put in", token, len(absent))
        return split(runs_of(absent))

    def _quarantine(self, bad: Sequence[DeadLetter]) -> None:
        """The dead letter first, then the tombstone: after a crash between them the dead letter is published again with the same event_id."""
        if not bad:
            return
        with self._quarantining:
            self._ensure_member()
            self._publish_dead_letters(bad)
            for within in split(runs_of(sorted((r for r, _, _ in bad), key=lambda r: (r.partition, r.offset)))):
                self._insert_tombstones(within)

    def _insert_tombstones(self, runs: Sequence[Run], again: str = "") -> None:
        ranges, partitions = ranges_of(runs)
        sql = f"INSERT INTO {self.table} (fact, readable, kafka_partition, kafka_offset, kafka_time_us, schema_id, sha256) FORMAT RowBinary"
        token, fence = f"{self.table}/{ranges}/unreadable{again}", self._fence(partitions)
        records = [r for run in runs for r in run.records]
        body = b"".join(map(_tombstone, records))
        _, tries = self._retry_while_busy(lambda: self._clickhouse.insert(sql, body, None, fence, token))
        if tries > 1:
            for within in self._missing_of(records, token, again):
                self._insert_tombstones(within, f"/{uuid.uuid4()}")

    def _fence(self, partitions: Sequence[int]) -> str:
        return ",".join(self._fences[p] for p in partitions if p in self._fences)

    def _retry_while_busy(self, ask: Callable[[], T]) -> tuple[T, int]:
        """(answer, tries)"""
        end, tries = time.monotonic() + BUSY_S_MAX, 0
        while True:
            self._ensure_member()
            try:
                answer = ask()
                return answer, tries + self._clickhouse.tries
            except ClickHouseError as e:
                if e.code not in BUSY or time.monotonic() > end:
                    raise
                tries += 1
                logger.warning("ClickHouse is busy, waiting: %s", str(e)[:200])
                time.sleep(0.5)


def _prepared_insert(table: str, plan: InsertPlan, runs: Sequence[Run]) -> PreparedInsert:
    ranges, partitions = ranges_of(runs)
    records = [r for run in runs for r in run.records]
    wrapped = container.wrap(plan.extended, records, os.urandom(16), os.urandom(16))
    return PreparedInsert(plan, records, wrapped, f"{table}/{ranges}/{plan.insert.schema_id}", partitions)


_FIXED = struct.Struct("<BiQqI")


def _tombstone(record: LogRecord) -> bytes:
    """RowBinary of the columns named in `_insert_tombstones`."""
    value = record.value or b""
    schema_id = int.from_bytes(value[1:5], "big") if len(value) >= 5 else 0
    fact = UNREADABLE.encode()
    row = _FIXED.pack(0, record.partition, record.offset, record.timestamp * 1000, schema_id)
    return bytes([len(fact)]) + fact + row + hashlib.sha256(value).digest()
