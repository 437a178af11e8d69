"""All open dead letters are found, page after page: thousands of unreadable ones hide none that can be read now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from access.bearer import digest_of
from events.log.partitioner import partition_of
from events.log.record import Coordinate
from projections.bills.from_tables.decided_in_tables import unreadable_below
from projections.catalog.tables import STATEMENTS
from projections.dead_letters import queries as module
from projections.dead_letters.queries import STATES, DeadLetterFilter, all_dead_letters, find_dead_letters
from projections.dead_letters.sink import DEAD_LETTERS_TABLE, DEAD_LETTERS_VIEW
from projections.ingest.clickhouse import ClickHouse
from projections.query_api.app import make_app
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.request_context import Queries
from projections.usage import held
from projections.usage.views import usage_statements
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

OTHERS = [Coordinate(topic, 0, n) for topic in ("deployments", "zeta") for n in range(3)]
USAGE = [Coordinate("usage", n % 3, n) for n in range(14)]
READ = USAGE[4]
SHA256 = "0" * 32
NEVER_MET = [Coordinate(topic, 0, 7_000) for topic in ("usage", "models", "nowhere")]
OTHER_BYTES = [USAGE[0], OTHERS[0]]


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("letters"))
    engine.start()
    client = ClickHouse(engine.settings)
    for statement in (*STATEMENTS, *held.STATEMENTS, *usage_statements("usage"), DEAD_LETTERS_TABLE, DEAD_LETTERS_VIEW):
        client.command(statement)
    key = {USAGE[0]: "acme", USAGE[3]: "acme"}
    listed = [(at, SHA256.encode().hex()) for at in OTHERS + USAGE + NEVER_MET] + [(at, "ab" * 32) for at in OTHER_BYTES]
    rows = [
        {"kafka_offset": n, "event_id": str(n), "topic": at.topic, "partition": at.partition, "offset": at.offset, "value_sha256": sha256}
        | {"key": key.get(at, ""), "code": "not_framed" if at.offset % 2 else "unknown_schema", "kafka_time_us": at.offset}
        for n, (at, sha256) in enumerate(listed)
    ]
    client.insert_rows("dead_letters_rows", rows)
    usage = [{"kafka_partition": at.partition, "kafka_offset": at.offset, "readable": int(at == READ), "sha256": SHA256} for at in USAGE]
    client.insert_rows("usage", usage)
    dead = {"kind": "dead", "sha256": SHA256.encode().hex()}
    client.insert_rows("history_rows", [{"topic": at.topic, "kafka_partition": 0, "kafka_offset": at.offset, **dead} for at in OTHERS])
    yield client
    engine.stop()


@pytest.mark.parametrize("page", [1, 4, 1000])
def test_every_dead_letter_of_a_topic_is_listed_once_on_any_page(
    clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(module, "DEAD_LETTERS_MAX", page)
    wanted = sorted((at for at in USAGE if at != READ), key=lambda at: (at.partition, at.offset))
    assert [letter.at for letter in all_dead_letters(clickhouse, DeadLetterFilter(topic="usage"))] == wanted
    assert len(find_dead_letters(clickhouse)) == min(page, len(OTHERS) + len(wanted))
    assert find_dead_letters(clickhouse)[0].at == OTHERS[0]


def test_the_list_goes_on_page_after_page_for_whoever_asks(clickhouse: ClickHouse) -> None:
    wanted = [*OTHERS, *sorted(at for at in USAGE if at != READ)]
    wanted.sort()
    assert [d.at for d in all_dead_letters(clickhouse)] == wanted
    accounts = KeysFromLog(digest_of(b"mm_first"))
    client = TestClient(
        make_app(Queries(clickhouse, accounts, lambda: 0.0, lambda: True, 60)), headers={"Authorization": "Bearer mm_first"}
    )
    records, after = list[str](), ""
    for _ in wanted:
        page = client.get("/v1/dead-letters", params={"limit": 4, "after": after}).json()
        records += [d["record"] for d in page["dead_letters"]]
        after = page["next"]
        if not after:
            break
    assert records == [str(at) for at in wanted]


def test_a_forged_dead_letter_for_an_unknown_record_or_for_other_bytes_is_ignored(clickhouse: ClickHouse) -> None:
    found = find_dead_letters(clickhouse, STATES)
    assert sorted(letter.at for letter in found) == sorted(OTHERS + USAGE)
    assert {letter.sha256 for letter in found} == {SHA256.encode().hex()}


def test_a_filter_lets_through_what_all_its_fields_say(clickhouse: ClickHouse) -> None:
    def of(**fields: Any) -> list[Coordinate]:
        return [letter.at for letter in all_dead_letters(clickhouse, DeadLetterFilter(**fields))]

    unread = sorted(at for at in USAGE if at != READ)
    assert of(topic="usage", partition=1) == [at for at in unread if at.partition == 1]
    assert of(topic="usage", code="not_framed") == [at for at in unread if at.offset % 2]
    assert of(key="acme") == [USAGE[0], USAGE[3]]
    assert of(topic="usage", from_offset=3, to_offset=5) == [at for at in unread if 3 <= at.offset <= 5]
    assert of(topic="usage", since_us=3, until_us=5) == [USAGE[3]]
    assert of(topic="usage", partition=1, code="unknown_schema", key="acme") == []


@pytest.fixture
def undecided(clickhouse: ClickHouse) -> Iterator[ClickHouse]:
    """What a test decides is gone after it."""
    yield clickhouse
    clickhouse.command("ALTER TABLE history_rows DROP PARTITION 'bills'")


def test_a_set_is_requested_and_then_written_off_for_its_very_bytes_only(undecided: ClickHouse) -> None:
    clickhouse = undecided
    names = [f"t{n}" for n in range(100)]
    name, mine, others = "5e" * 32, [USAGE[7], USAGE[8], OTHERS[1]], USAGE[10]
    given = [{"partition": at.partition, "offset": at.offset, "sha256": SHA256.encode().hex()} for at in mine if at.topic == "usage"]
    given.append({"partition": others.partition, "offset": others.offset, "sha256": "cd" * 32})
    body = {
        "record_set": name,
        "decision": "write_off",
        "topic": "usage",
        "records": given,
        "requested_by": "ann",
        "reason": "a broken exporter",
    }

    def decide(offset: int, fact: str, body: dict[str, Any]) -> None:
        row = {"topic": "bills", "kafka_partition": 3, "kafka_offset": offset, "kind": "decided", "fact": fact, "key": name}
        clickhouse.insert_rows("history_rows", [{**row, "body": json.dumps(body), "head": json.dumps({"record_set": name})}])

    def states() -> dict[Coordinate, tuple[str, str, str, str]]:
        found = find_dead_letters(clickhouse, STATES)
        return {d.at: (d.state, d.requested_by, d.approver, d.record_set) for d in found if d.at in (*mine, others)}

    decide(0, "RecordSetDecisionRequested", body)
    untouched = ("open", "", "", "")
    assert states() == {USAGE[7]: (*("requested", "ann", ""), name), USAGE[8]: ("requested", "ann", "", name)} | {
        OTHERS[1]: untouched,
        others: untouched,
    }
    mine_there, theirs = (next(t for t in names if partition_of(t.encode(), 4) == at.partition) for at in (USAGE[7], others))
    held = {"kafka_partition": others.partition, "kafka_offset": others.offset, "code": "unreadable", "tenant": theirs}
    clickhouse.insert_rows("usage_held_rows", [held])
    assert unreadable_below(clickhouse, mine_there, 100).excluded == ()
    decide(1, "RecordSetDecided", {"record_set": name, "decision": "write_off", "topic": "usage", "approver": "bob"})
    assert states() == {USAGE[7]: ("written_off", "ann", "bob", name), USAGE[8]: ("written_off", "ann", "bob", name)} | {
        OTHERS[1]: untouched,
        others: untouched,
    }
    assert unreadable_below(clickhouse, mine_there, 100).excluded == (USAGE[7].offset,)
    other = unreadable_below(clickhouse, theirs, 100)
    assert (others.offset in other.open, other.mistaken) == (True, (others.offset,))
    of_set = all_dead_letters(clickhouse, DeadLetterFilter(record_set=name), STATES)
    assert [letter.at for letter in of_set] == [USAGE[7], USAGE[8]]
