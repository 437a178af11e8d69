"""The list of epochs: the open one that needs a decision may be the oldest of thousands."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from projections.catalog.tables import STATEMENTS
from projections.ingest.clickhouse import ClickHouse
from projections.usage import held
from projections.usage.producer_epochs import EPOCHS_MAX, epochs
from projections.usage.views import usage_statements
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

STARTS = EPOCHS_MAX + 500
"""Starts of gateways; but for the very first, each of them ended in order."""


def name(start: int) -> str:
    return str(uuid.UUID(int=start))


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("epochs"))
    engine.start()
    client = ClickHouse(engine.settings)
    for statement in (*STATEMENTS, *held.STATEMENTS, *usage_statements("usage")):
        client.command(statement)
    rows = [
        {
            "topic": "producers",
            "kafka_offset": start,
            "step": start,
            "kind": "observed",
            "key": f"gateway-{start}",
            "fact": "ProducerClosed" if start else "ProducerOpened",
            "valid_from_us": 1_000_000 + start,
            "parts": {f"epochs/{name(start)}": json.dumps({"status": "closed" if start else "open", "opened_at": start + 1, "host": "a"})},
        }
        for start in range(STARTS)
    ]
    client.insert_rows("history_rows", rows)
    yield client
    engine.stop()


def test_an_open_epoch_is_shown_however_many_came_after_it(clickhouse: ClickHouse) -> None:
    assert [e.epoch for e in epochs(clickhouse)] == [name(0)]


def test_an_epoch_is_found_by_its_name_however_old_it_is(clickhouse: ClickHouse) -> None:
    (found,) = epochs(clickhouse, only_open=False, epoch=name(3))
    assert (found.producer, found.status) == ("gateway-3", "closed")
    assert epochs(clickhouse, epoch=name(3)) == [] and epochs(clickhouse, only_open=False, epoch="none") == []


def test_the_newest_are_shown_when_all_are_asked_for(clickhouse: ClickHouse) -> None:
    assert [e.epoch for e in epochs(clickhouse, only_open=False)] == [name(s) for s in range(STARTS - 1, STARTS - 1 - EPOCHS_MAX, -1)]
