"""The table is the only position: which offset of a partition it misses first, and whether the log is still the one it was filled from (K6).

For any table with the columns kafka_partition, kafka_offset and sha256 (32 raw bytes, or their 64 hex digits).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from events.log.client import LogMismatch, LogUnavailable, Reader
from projections.ingest.clickhouse import ClickHouse

logger = logging.getLogger(__name__)
OF_PARTITION = "kafka_partition = {partition:Int32}"
BUCKET = 1_000_000
"""Offsets that are counted together: bounds the search for the gap among them."""
BUCKETS_AT_ONCE = 20
"""Of one statement: a quarter of a second on one core, where a worker waits 3 s for an answer (`worker_session_s`), and 3 MB."""
REMEMBERED_S_MAX = 600.0
_WITHIN = "kafka_offset >= {bottom:Int64} AND kafka_offset < {top:Int64}"
PATIENCE_S = 60.0


class LogGenerationChanged(Exception):
    """`log_generation_changed`: the log is not the one this table was filled from. Nothing may be written; a person must look."""

    code = "log_generation_changed"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{self.code}: {reason}. Connect the worker to the log these tables were filled from; if this log is the right one, give the "
            f"tables a new database: MODELMARKET_CLICKHOUSE_DATABASE=<new name>, then `python -m cli.prepare`"
        )


def dense_end(
    clickhouse: ClickHouse,
    table: str,
    partition: int,
    *,
    where: str = OF_PARTITION,
    params: Mapping[str, object] | None = None,
    start: int = 0,
    fence: str = "",
) -> int:
    """The first offset at or past `start` that the table misses. Everything below (from `start`) is there. A caller that knows
    more to be dense gives a later start; the range of each statement is bounded, and none comes after the first gap."""
    due, given = start, {"partition": partition, **(params or {})}
    while True:
        top = (due // BUCKET + BUCKETS_AT_ONCE) * BUCKET
        due = _dense_within(clickhouse, table, where, {**given, "bottom": due, "top": top}, fence)
        if due < top:
            return due


def _dense_within(clickhouse: ClickHouse, table: str, where: str, given: Mapping[str, object], fence: str) -> int:
    """As `dense_end`, of the offsets of [bottom, top)."""
    due = bottom = int(str(given["bottom"]))
    buckets = clickhouse.rows(
        # A bitmap counts as exactly as a hash set (uniqExact), in a sixth of the time and in 128 KB a bucket instead of 32 MB.
        f"""SELECT intDiv(kafka_offset, {BUCKET}) AS bucket, groupBitmap(toUInt32(kafka_offset % {BUCKET})) AS stored,
            toInt64(max(kafka_offset)) AS last
        FROM {table} WHERE {where} AND {_WITHIN} GROUP BY bucket ORDER BY bucket""",
        given,
        fence=fence,
    )
    for b in buckets:
        first, last = max(bottom, int(b["bucket"]) * BUCKET), int(b["last"])
        if first != due:
            return due
        if int(b["stored"]) != last - first + 1:
            return _first_hole(clickhouse, table, where, {**given, "bottom": first, "top": last + 1})
        due = last + 1
    return due


def _first_hole(clickhouse: ClickHouse, table: str, where: str, params: Mapping[str, object]) -> int:
    stored = f"SELECT kafka_offset FROM {table} WHERE {where} AND {_WITHIN}"
    gap = f"SELECT min(o) FROM (SELECT arrayJoin([toInt64({{bottom:Int64}}), toInt64(kafka_offset) + 1]) AS o FROM ({stored})) WHERE o NOT IN ({stored})"
    return int(clickhouse.value(f"SELECT ({gap}) AS gap", params))


class DenseEnds:
    """The ends of one table, asked again and again: what was found dense is remembered, and only what came since is read.

    Nothing is remembered when another table has taken the name (`replay usage --switch`), when the end went back (a backup was restored),
    and for longer than REMEMBERED_S_MAX: rows deleted by hand leave no other trace. Until then a gap far below goes unseen; a bill is
    safe from it all the same, since its second source is the log.
    """

    def __init__(self, clickhouse: ClickHouse, table: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clickhouse, self._table, self._clock = clickhouse, table, clock
        self._known: dict[int, _Known] = {}

    def end(self, partition: int) -> int:
        """As `dense_end` from 0."""
        identity = self._identity()  # before its rows are read: a table that takes its place meanwhile is noticed next time
        known = self._known.get(partition)
        if known is None or known.identity != identity or self._clock() > known.until:
            known = _Known(identity, self._clock() + REMEMBERED_S_MAX, 0)
        # The bucket it ended in once more: an end that went back shows there.
        end = dense_end(self._clickhouse, self._table, partition, start=max(0, known.end - 1) // BUCKET * BUCKET)
        if end < known.end:
            end = dense_end(self._clickhouse, self._table, partition)
        self._known[partition] = _Known(identity, known.until, end)
        return end

    def _identity(self) -> str:
        # A server distinguishes tables by their uuid, the local engine, whose uuids are all zero, by where they lie.
        sql = "SELECT toString(uuid) AS uuid, data_paths FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"
        return str(self._clickhouse.rows(sql, {"table": self._table}))


@dataclass(frozen=True, slots=True)
class _Known:
    identity: str
    until: float
    end: int


def stored_within(clickhouse: ClickHouse, table: str, partition: int, first: int, last: int, where: str = OF_PARTITION) -> set[int]:
    """Offsets of [first, last] that the table has: a crash between the parts of a chunk leaves some (K6)."""
    rows = clickhouse.rows(
        f"SELECT DISTINCT toInt64(kafka_offset) AS o FROM {table} WHERE {where} AND kafka_offset BETWEEN {{first:Int64}} AND {{last:Int64}}",
        {"partition": partition, "first": first, "last": last},
    )
    return {int(r["o"]) for r in rows}


def first_missing(
    clickhouse: ClickHouse,
    reader: Reader,
    table: str,
    topic: str,
    partition: int,
    *,
    where: str = OF_PARTITION,
    params: Mapping[str, object] | None = None,
    fence: str = "",
) -> int:
    """Where to read on, after making sure that the record before it is the stored row. Waits while Kafka is away. Raises
    LogGenerationChanged. With a `fence` the local engine lets an insert under way finish first and bars older owners (K8)."""
    low, high = _bounds(reader, topic, partition)
    due = dense_end(clickhouse, table, partition, where=where, params=params, start=low, fence=fence)
    if due > high:
        raise LogGenerationChanged(f"{table} has {topic}/{partition} up to {due}, the log ends at {high}")
    if due > low:
        _same_record(clickhouse, reader, table, topic, partition, due - 1, where, params)
    return due


def _same_record(
    clickhouse: ClickHouse,
    reader: Reader,
    table: str,
    topic: str,
    partition: int,
    offset: int,
    where: str,
    params: Mapping[str, object] | None,
) -> None:
    rows = clickhouse.rows(
        f"""SELECT DISTINCT if(length(toString(sha256)) = 64, lower(toString(sha256)), lower(hex(sha256))) AS sha256
        FROM {table} WHERE {where} AND kafka_offset = {{offset:Int64}}""",
        {"partition": partition, "offset": offset, **(params or {})},
    )
    try:
        record = reader.record_at(topic, partition, offset)
    except LogMismatch as e:
        raise LogGenerationChanged(str(e)) from e
    there = hashlib.sha256(record.value or b"").hexdigest()
    if [r["sha256"] for r in rows] != [there]:
        raise LogGenerationChanged(f"{topic}/{partition}/{offset} is another record than the row in {table}")


def _bounds(reader: Reader, topic: str, partition: int) -> tuple[int, int]:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return reader.bounds(topic)[topic, partition]
        except LogUnavailable:
            if time.monotonic() > end:
                raise
            logger.warning("Kafka does not answer, waiting: %s/%s", topic, partition)
            time.sleep(0.5)
