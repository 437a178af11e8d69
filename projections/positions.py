"""The table is the only position: which offset of a partition it misses first, and whether the log is still the one it was filled from (K6).

For any table with the columns kafka_partition, kafka_offset and sha256 (32 raw bytes, or their 64 hex digits).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping

from events.log import LogMismatch, LogUnavailable, Reader
from projections.clickhouse import ClickHouse

logger = logging.getLogger(__name__)
OF_PARTITION = "kafka_partition = {partition:Int32}"
BUCKET = 1_000_000
"""Offsets whose density is judged at once: bounds the memory of an exact count."""
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
    """The first offset at or past `start` that the table misses. Everything below (from `start`) is there."""
    given = {"partition": partition, "start": start, **(params or {})}
    buckets = clickhouse.rows(
        f"""SELECT intDiv(kafka_offset, {BUCKET}) AS bucket, uniqExact(kafka_offset) AS stored, toInt64(max(kafka_offset)) AS last
        FROM {table} WHERE {where} AND kafka_offset >= {{start:Int64}} GROUP BY bucket ORDER BY bucket""",
        given,
        {"select_sequential_consistency": 1},
        fence,
    )
    due = start
    for b in buckets:
        bottom = max(start, int(b["bucket"]) * BUCKET)
        if bottom != due:
            return due
        if int(b["stored"]) != int(b["last"]) - bottom + 1:
            return _first_hole(clickhouse, table, where, {**given, "bottom": bottom, "top": int(b["last"])})
        due = int(b["last"]) + 1
    return due


def _first_hole(clickhouse: ClickHouse, table: str, where: str, params: Mapping[str, object]) -> int:
    stored = f"SELECT kafka_offset FROM {table} WHERE {where} AND kafka_offset BETWEEN {{bottom:Int64}} AND {{top:Int64}}"
    hole = f"SELECT min(o) FROM (SELECT arrayJoin([toInt64({{bottom:Int64}}), toInt64(kafka_offset) + 1]) AS o FROM ({stored})) WHERE o NOT IN ({stored})"
    return int(clickhouse.value(f"SELECT ({hole}) AS hole", params))


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
