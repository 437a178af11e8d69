"""Where a table ends: found in pieces that stay small however long the partition is, and remembered only while it holds (K6)."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from projections.ingest import table_offsets as positions
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.table_offsets import DenseEnds, dense_end
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

BUCKET, AT_ONCE = 10, 3
"""As small as it takes for a few hundred offsets to be many statements."""
PARTITION = 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("positions"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "BUCKET", BUCKET)
    monkeypatch.setattr(positions, "BUCKETS_AT_ONCE", AT_ONCE)


class RangeRecorder(ClickHouse):
    """Keeps the ranges of offsets that were asked for."""

    def __init__(self, engine: ClickHouseProcess) -> None:
        super().__init__(engine.settings)
        self.ranges = list[tuple[int, int]]()

    def rows(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> list[dict[str, Any]]:
        if "kafka_offset" in sql:
            given = {k: int(str(v)) for k, v in (params or {}).items()}
            assert "kafka_offset >= {bottom:Int64} AND kafka_offset < {top:Int64}" in sql, sql
            self.ranges.append((given["bottom"], given["top"]))
        return super().rows(sql, params, settings, fence)


def table_of(clickhouse: ClickHouse, offsets: Sequence[int] = ()) -> str:
    table = f"t_{uuid.uuid4().hex}"
    clickhouse.command(
        f"CREATE TABLE {table} (kafka_partition Int32, kafka_offset UInt64) ENGINE = MergeTree ORDER BY (kafka_partition, kafka_offset)"
    )
    put(clickhouse, table, offsets)
    return table


def put(clickhouse: ClickHouse, table: str, offsets: Sequence[int], partition: int = PARTITION) -> None:
    if offsets:
        clickhouse.insert_rows(table, [{"kafka_partition": partition, "kafka_offset": o} for o in offsets])


def first_missing_of(offsets: Sequence[int], start: int) -> int:
    there = set(offsets)
    while start in there:
        start += 1
    return start


@pytest.mark.parametrize("seed", range(12))
def test_the_first_gap_is_found_whatever_lies_around_it(engine: ClickHouseProcess, seed: int) -> None:
    chance, clickhouse = random.Random(seed), RangeRecorder(engine)
    end = chance.choice([0, 1, BUCKET, BUCKET * AT_ONCE, BUCKET * AT_ONCE + 1, chance.randrange(200), 200])
    gaps = set(chance.sample(range(200), chance.choice([0, 1, 3])))
    once = [o for o in range(end) if o not in gaps]
    offsets = once + chance.sample(once, len(once) // 3)  # rows of a second worker that was paused are there twice (K8)
    table = table_of(clickhouse, offsets)
    put(clickhouse, table, list(range(0, 300, 7)), PARTITION + 1)
    for start in sorted({0, 1, BUCKET - 1, BUCKET, chance.randrange(200), *gaps, *(h + 1 for h in gaps), end, end + 5}):
        assert dense_end(clickhouse, table, PARTITION, start=start) == first_missing_of(offsets, start), (start, gaps, end)


def test_each_statement_is_bounded_and_none_follows_the_first_gap(engine: ClickHouseProcess) -> None:
    clickhouse = RangeRecorder(engine)
    table = table_of(clickhouse, [o for o in range(400) if o != 145])
    assert dense_end(clickhouse, table, PARTITION, start=4) == 145
    assert all(0 < top - bottom <= BUCKET * AT_ONCE for bottom, top in clickhouse.ranges), clickhouse.ranges
    assert max(top for _, top in clickhouse.ranges) <= 150 + BUCKET * AT_ONCE
    assert len(clickhouse.ranges) <= 400 // (BUCKET * AT_ONCE) + 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_dense_is_not_read_again_while_more_comes(engine: ClickHouseProcess) -> None:
    clickhouse = RangeRecorder(engine)
    table = table_of(clickhouse, range(205))
    ends = DenseEnds(clickhouse, table, Clock())
    assert ends.end(PARTITION) == 205
    clickhouse.ranges.clear()
    put(clickhouse, table, range(205, 217))
    assert ends.end(PARTITION) == 217
    assert min(bottom for bottom, _ in clickhouse.ranges) == 200, "no further back than the bucket it ended in"
    assert ends.end(PARTITION + 1) == 0


def test_a_replaced_table_is_read_from_the_beginning(engine: ClickHouseProcess) -> None:
    """As `replay usage --switch` does: the end may be further on, and the rows before it are those of another table."""
    clickhouse = ClickHouse(engine.settings)
    table, beside = table_of(clickhouse, range(205)), table_of(clickhouse, [o for o in range(230) if o != 42])
    ends = DenseEnds(clickhouse, table, Clock())
    assert ends.end(PARTITION) == 205
    clickhouse.command(f"EXCHANGE TABLES {table} AND {beside}")
    assert ends.end(PARTITION) == 42


def test_a_table_whose_end_went_back_is_read_from_the_beginning(engine: ClickHouseProcess) -> None:
    """As after a backup was restored: the same table with less in it, and perhaps with a gap far below."""
    clickhouse = ClickHouse(engine.settings)
    table = table_of(clickhouse, range(205))
    ends = DenseEnds(clickhouse, table, Clock())
    assert ends.end(PARTITION) == 205
    clickhouse.command(f"TRUNCATE TABLE {table}")
    put(clickhouse, table, [o for o in range(203) if o != 42])
    assert ends.end(PARTITION) == 42
    clickhouse.command(f"TRUNCATE TABLE {table}")
    assert ends.end(PARTITION) == 0


def test_a_remembered_end_is_checked_again_from_time_to_time(engine: ClickHouseProcess) -> None:
    """Whoever deletes rows by hand, in the middle, leaves table and end as they were."""
    clickhouse, clock = ClickHouse(engine.settings), Clock()
    table = table_of(clickhouse, range(205))
    ends = DenseEnds(clickhouse, table, clock)
    assert ends.end(PARTITION) == 205
    clickhouse.command(f"ALTER TABLE {table} DELETE WHERE kafka_offset = 42", settings={"mutations_sync": 1})
    clock.now = positions.REMEMBERED_S_MAX - 1
    assert ends.end(PARTITION) == 205
    clock.now = positions.REMEMBERED_S_MAX + 1
    assert ends.end(PARTITION) == 42
