"""Many records go into the table as two parallel inserts: whichever of them fails, in the end each offset is there once (K6, K7)."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from urllib3.exceptions import ProtocolError

from events.facts.usage import InvocationRefused
from events.log.client import Reader
from events.log.record import LogRecord, Record
from events.schema.codec import Codec, SchemaSet
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from projections.ingest.sink import Chunk
from projections.ingest.table_offsets import dense_end
from projections.usage.insert_plans import InsertPlans
from projections.usage.runs import SHARED_ROWS_MIN
from projections.usage.sink import UsageSink
from projections.usage.table import alter_settings
from projections.usage.views import usage_statements
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.todays_codec import todays_schema_set

pytestmark = pytest.mark.engine

EACH = SHARED_ROWS_MIN // 2 + 500
"""Records of each of two partitions: together more than one insert takes."""
Published = list[tuple[int, int]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("halves"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def table(engine: ClickHouseProcess) -> str:
    name = f"usage_{uuid.uuid4().hex}"
    for statement in usage_statements(name)[:2]:
        ClickHouse(engine.settings).command(statement)
    return name


@pytest.fixture(scope="module")
def schemas() -> SchemaSet:
    return todays_schema_set()


@pytest.fixture(scope="module")
def frame(schemas: SchemaSet) -> bytes:
    fields = {k: f.default for k, f in InvocationRefused.model_fields.items() if not f.is_required()}
    who = {"event_id": str(uuid.uuid4()), "occurred_at": 1, "producer": "g", "tenant": "t", "epoch": "e", "sequence": 1}
    published = {"previous_sha256": bytes(32), "key_id": "k", "user": "u", "region": "r", "model": "m", "operation": "infer"}
    return Codec(schemas).encode_dict("InvocationRefused", {**fields, **who, **published, "status": 429, "error_code": "limit", "count": 1})


class BreakingClient(ClickHouse):
    """A client whose connection breaks at one insert: before the server received it, or after."""

    def __init__(self, engine: ClickHouseProcess, breaks_at: str, *, arrives: bool) -> None:
        super().__init__(engine.settings)
        self._breaks_at, self._arrives = breaks_at, arrives

    def insert(self, sql: str, body: Any, settings: Any = None, fence: str = "", token: str = "") -> int:
        if self._breaks_at not in token:
            return super().insert(sql, body, settings, fence, token)
        if self._arrives:
            super().insert(sql, body, settings, fence, token)
        raise ClickHouseUnavailable("the connection broke")


def sink(
    clickhouse: ClickHouse, table: str, schemas: SchemaSet, publish_dead_letters: Callable[[Any], None] = lambda dead_letters: None
) -> UsageSink:
    def resume_at(partition: int, fence: str) -> int:
        return dense_end(clickhouse, table, partition, fence=fence)

    return UsageSink(clickhouse, InsertPlans(cast(Reader, None), schemas), resume_at, publish_dead_letters, lambda: None, table=table)


def chunk(partition: int, first: int, values: Sequence[bytes]) -> Chunk:
    return Chunk("usage", partition, [Record("usage", partition, first + i, 1_700_000_000_000, b"t", v, {}) for i, v in enumerate(values)])


def figures(engine: ClickHouseProcess, table: str) -> tuple[int, int, int]:
    """How many rows the table has, how many different offsets, and how many readable rows."""
    sql = f"SELECT count() AS n, uniqExact(kafka_partition, kafka_offset) AS offsets, countIf(readable = 1) AS good FROM {table}"
    (row,) = ClickHouse(engine.settings).rows(sql)
    return int(row["n"]), int(row["offsets"]), int(row["good"])


@pytest.mark.parametrize("breaks_at", ["/0:", "/1:"])
@pytest.mark.parametrize("arrives", [False, True])
def test_one_half_fails_and_the_next_owner_leaves_no_gap_and_no_duplicate(
    engine: ClickHouseProcess, table: str, schemas: SchemaSet, frame: bytes, breaks_at: str, arrives: bool
) -> None:
    chunks = [chunk(p, 0, [frame] * EACH) for p in (0, 1)]
    first = sink(BreakingClient(engine, breaks_at, arrives=arrives), table, schemas)
    assert [first.resume(p) for p in (0, 1)] == [0, 0]
    prepared = first.prepare(chunks)
    assert [part.partitions for part in prepared.parts] == [(0,), (1,)]
    with pytest.raises(ClickHouseUnavailable):
        first.write(prepared)
    there = EACH * (1 + arrives)
    assert figures(engine, table) == (there, there, there)
    # The log goes on meanwhile: the successor's chunks are others than those that failed.
    successor = sink(ClickHouse(engine.settings), table, schemas)
    due = {p: successor.resume(p) for p in (0, 1)}
    successor.write(successor.prepare([chunk(p, due[p], [frame] * (EACH + 700 - due[p])) for p in (0, 1)]))
    assert figures(engine, table) == (2 * (EACH + 700),) * 3
    assert [dense_end(ClickHouse(engine.settings), table, p) for p in (0, 1)] == [EACH + 700] * 2


class RowLosingClient(ClickHouse):
    """A client of a server that accepted an insert and kept its token, but loses the rows of one partition afterwards."""

    def __init__(self, engine: ClickHouseProcess, table: str, breaks: str) -> None:
        super().__init__(engine.settings)
        self._other, self._table, self._breaks, self._broken = ClickHouse(engine.settings), table, breaks, False

    def _attempt(self, url: str, send: Callable[[], Any]) -> Any:
        done = super()._attempt(url, send)
        if "insert_deduplication_token" in url and not self._broken:
            self._broken = True
            self._other.command(
                f"ALTER TABLE {self._table} DELETE WHERE kafka_partition = 1 AND kafka_offset != 5", settings={"mutations_sync": 2}
            )
            if self._breaks == "connection":
                raise ProtocolError("after the server had it", ConnectionResetError())
            raise ClickHouseError(159, "Timeout exceeded")
        return done


@pytest.mark.parametrize("breaks", ["connection", "time-out"])
@pytest.mark.parametrize("readable", [True, False])
def test_rows_that_a_repeated_insert_left_out_are_inserted(
    engine: ClickHouseProcess, table: str, schemas: SchemaSet, frame: bytes, breaks: str, readable: bool
) -> None:
    forgetful = sink(RowLosingClient(engine, table, breaks), table, schemas)
    forgetful.write(forgetful.prepare([chunk(p, 0, [frame if readable else b"garbage"] * 40) for p in (0, 1)]))
    assert figures(engine, table) == (80, 80, 80 if readable else 0)
    assert [dense_end(ClickHouse(engine.settings), table, p) for p in (0, 1)] == [40, 40]


def test_both_halves_with_damaged_records_set_them_aside_one_half_at_a_time(
    engine: ClickHouseProcess, table: str, schemas: SchemaSet, frame: bytes
) -> None:
    at_once, most, published = 0, 0, Published()
    lock = threading.Lock()

    def publish_dead_letters(dead_letters: Sequence[tuple[LogRecord, str, str]]) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.3)
        published.extend((r.partition, r.offset) for r, _, _ in dead_letters)
        with lock:
            at_once -= 1

    values = [frame] * EACH
    values[77] = frame[:-1]
    halves = sink(ClickHouse(engine.settings), table, schemas, publish_dead_letters)
    halves.write(halves.prepare([chunk(p, 0, values) for p in (0, 1)]))
    assert most == 1, "dead letters are published by one thread at a time"
    assert sorted(published) == [(0, 77), (1, 77)]
    assert figures(engine, table) == (2 * EACH, 2 * EACH, 2 * (EACH - 1))


def test_settings_given_again_lose_no_token(engine: ClickHouseProcess, table: str, schemas: SchemaSet, frame: bytes) -> None:
    """Each start applies the settings again while workers write to the table: a repeated insert must still be recognised."""
    same = sink(ClickHouse(engine.settings), table, schemas)
    for _ in range(2):
        same.write(same.prepare([chunk(0, 0, [frame] * 100)]))
        ClickHouse(engine.settings).command(alter_settings(table))
    assert figures(engine, table) == (100, 100, 100)
