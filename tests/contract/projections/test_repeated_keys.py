"""A tenant who repeats one call more often than fits in a page is billed all the same, and as the log says (K11, K20)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from events.facts.usage import InvocationSettled
from events.log.partitioner import partition_of
from events.log.record import Record
from events.schema.codec import Codec
from projections.bills.from_tables import statements_from_table
from projections.bills.from_tables.bill_from_tables import UsageTable
from projections.bills.usage_spool import usage_entry
from projections.catalog.tables import STATEMENTS
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk
from projections.usage import held
from projections.usage.insert_plans import InsertPlans
from projections.usage.sink import UsageSink
from projections.usage.views import usage_statements
from rating.book import PriceBook
from rating.statement import Cutoff, StatementBuilder
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

TENANT, DAY_MS, FIRST_MS = "repeats", 86_400_000, 1_700_000_000_000
PARTITION = partition_of(TENANT.encode(), 4)
CALLS = 40


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("repeats"))
    engine.start()
    client = ClickHouse(engine.settings)
    for statement in (*STATEMENTS, *held.STATEMENTS, *usage_statements("usage")):
        client.command(statement)
    yield client
    engine.stop()


def settled(codec: Codec, n: int) -> bytes:
    """Call n of two keys in turn, six hours apart; every fifth has no key."""
    body: dict[str, Any] = {k: f.default for k, f in InvocationSettled.model_fields.items() if not f.is_required()}
    body |= {k: "x" for k, f in InvocationSettled.model_fields.items() if f.is_required()}
    key = b"" if n % 5 == 4 else hashlib.sha256(b"%d" % (n % 2)).digest()
    body |= {"event_id": str(uuid.uuid4()), "occurred_at": (FIRST_MS + n * DAY_MS // 4) * 1000, "tenant": TENANT, "sequence": n + 1}
    body |= {"previous_sha256": bytes(32), "invocation_key": key, "outcome": "succeeded", "status": 200, "calls": 1}
    return codec.encode_dict("InvocationSettled", body)


@pytest.mark.parametrize(("page", "few"), [(1, 200), (3, 0), (32, 1), (50_000, 200), (50_000, 1)])
def test_executions_that_share_a_key_are_classified_page_by_page_as_from_the_log(
    clickhouse: ClickHouse, codec: Codec, monkeypatch: pytest.MonkeyPatch, page: int, few: int
) -> None:
    clickhouse.command("TRUNCATE TABLE usage")
    values = [settled(codec, n) for n in range(CALLS)]
    records = [Record("usage", PARTITION, n, FIRST_MS + n * DAY_MS // 4, TENANT.encode(), v, {}) for n, v in enumerate(values)]
    reader: Any = None
    sink = UsageSink(clickhouse, InsertPlans(reader, codec.schemas), lambda partition, fence: 0, lambda dead_letters: None, lambda: None)
    sink.write(sink.prepare([Chunk("usage", PARTITION, records)]))
    cutoff, book = Cutoff({PARTITION: CALLS}, 1 << 60), PriceBook()
    builder = StatementBuilder(cutoff, book, frozenset())
    for r in records:
        record = Record("usage", PARTITION, r.offset, r.timestamp, r.key, r.value, {})
        builder.add(usage_entry(record, *codec.decode(r.value), hashlib.sha256(r.value or b"").digest()).record)
    monkeypatch.setattr(statements_from_table, "SHARED_KEYS_PAGE", page)
    monkeypatch.setattr(statements_from_table, "EXCEPTIONS_MAX", few)
    statement = UsageTable(clickhouse, TENANT).statement(cutoff, book)
    assert statement == builder.statement()
    assert statement.counts.claimed + statement.counts.duplicate == CALLS and statement.counts.duplicate > 10
