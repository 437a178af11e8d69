"""Open dead letters are all found, page after page: thousands that nobody will read hide none that can be read by now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events.log.record import Coordinate
from projections.catalog.tables import STATEMENTS
from projections.dead_letters import queries as module
from projections.dead_letters.queries import all_dead_letters, find_dead_letters
from projections.dead_letters.sink import DEAD_LETTERS_TABLE, DEAD_LETTERS_VIEW
from projections.ingest.clickhouse import ClickHouse
from projections.usage.views import usage_statements
from tests.support.clickhouse_process import ClickHouseProcess

OTHERS = [Coordinate(topic, 0, n) for topic in ("deployments", "zeta") for n in range(3)]
USAGE = [Coordinate("usage", n % 3, n) for n in range(14)]
READ = USAGE[4]


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("letters"))
    engine.start()
    client = ClickHouse(engine.settings)
    for statement in (*usage_statements("usage"), DEAD_LETTERS_TABLE, DEAD_LETTERS_VIEW, *STATEMENTS):
        client.command(statement)
    rows = [
        {"kafka_offset": n, "event_id": str(n), "topic": at.topic, "partition": at.partition, "offset": at.offset, "value_sha256": "0" * 64}
        for n, at in enumerate(OTHERS + USAGE)
    ]
    client.insert_rows("dead_letters_rows", rows)
    client.insert_rows("usage", [{"kafka_partition": READ.partition, "kafka_offset": READ.offset, "readable": 1}])
    yield client
    engine.stop()


@pytest.mark.parametrize("page", [1, 4, 1000])
def test_every_letter_letter_of_a_topic_comes_once_whatever_lies_before_it(
    clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(module, "DEAD_LETTERS_MAX", page)
    wanted = sorted((at for at in USAGE if at != READ), key=lambda at: (at.partition, at.offset))
    assert [letter.at for letter in all_dead_letters(clickhouse, "usage")] == wanted
    assert len(find_dead_letters(clickhouse)) == min(page, len(OTHERS) + len(wanted))
    assert find_dead_letters(clickhouse)[0].at == OTHERS[0]
