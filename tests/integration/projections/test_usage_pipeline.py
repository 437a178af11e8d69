"""From the log to the table under every kind of failure: checked by an oracle that shares no code with the pipeline (K6–K10)."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.prepare import prepare_log
from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.record import Coordinate, Record
from events.log.schemas import open_codec, read_schemas, schemas_on_log
from projections.dead_letters.queries import STATES, find_dead_letters
from projections.ingest.avro_container import TAIL, zigzag
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk
from projections.usage.insert_plans import InsertPlans
from projections.usage.rebuild import Rebuild
from projections.usage.sink import UsageSink
from tests.support.polling import eventually, is_ready
from tests.support.usage_oracle import Schemas, compare, daily, decoded, read_topic, table_rows
from tests.support.usage_stack import UsageStack, running_usage_stack

MUTANTS = 10_000
SESSION_S = 6.0
"""The product's own. A worker that hears nothing of its group for most of it ends itself, also where only the machine is slow."""
UNKNOWN_ID = 987_653
"""Of a schema that the registry does not have."""
PREVIOUS = bytes(range(100, 132))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UsageStack]:
    with running_usage_stack(tmp_path_factory.mktemp("usage"), worker_session_s=SESSION_S) as stack:
        yield stack


@pytest.fixture(autouse=True)
def nothing_left(market: UsageStack) -> Iterator[None]:
    """A test that fails leaves the next one an engine, and no worker but the shared one."""
    yield
    market.end_own_workers()
    if not market.engine.runs:
        market.engine.start()


@contextmanager
def producing(market: UsageStack, records: int, pause_s: float) -> Generator[None]:
    """So many records at a time meanwhile."""
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            market.write(*market.mixed(records))
            stop.wait(pause_s)

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_every_record_becomes_exactly_its_row(market: UsageStack) -> None:
    market.write(*market.mixed(6000))
    with market.working():
        market.write(*market.mixed(3000))
        market.caught_up()
    assert compare(market.settings)["unreadable"] == 0


def test_unreadable_records_of_every_kind_are_set_aside_and_the_projection_goes_on(market: UsageStack) -> None:
    schemas, _ = read_schemas(Reader(market.settings, "test-schemas"))
    wrong_subject = next(i for i, s in schemas.by_id.items() if s.subject == "models-ModelRetired")
    good = market.settled(1)
    garbage: list[bytes | None] = [
        None,
        b"",
        b"\x00",
        b"\x00\x00\x00\x00",
        b"hello, world",
        b'{"json": true}',
        good[:5],
        b"\x00" + (987654).to_bytes(4, "big") + good[5:],
        b"\x00" + wrong_subject.to_bytes(4, "big") + good[5:],
        good + b"x",
        good[:-1],
        good + bytes(900_000),
        b"\x00" * 900_000,
        market.settled(2, bytes_in=-1),
        market.settled(3, event_id="not-a-uuid"),
        market.settled(4, event_id=str(uuid.uuid4()).upper()),
    ]
    with market.working():
        before = market.clickhouse.value("SELECT count() AS n FROM usage_unreadable")
        market.write(*[x for g in garbage for x in (market.settled(10), g, market.refused(11))])
        market.caught_up()
        after = compare(market.settings)
        assert after["unreadable"] - before == len(garbage)
        dead_letters = "SELECT topic, partition, offset, code, value_bytes FROM dead_letters WHERE topic = 'usage'"
        eventually(lambda: len(market.clickhouse.rows(dead_letters)) == after["unreadable"], "every dead letter is in its table")
    coordinates = {(r["partition"], r["offset"]) for r in market.clickhouse.rows(dead_letters)}
    tombs = {
        (r["kafka_partition"], r["kafka_offset"])
        for r in market.clickhouse.rows("SELECT kafka_partition, kafka_offset FROM usage_unreadable")
    }
    assert coordinates == tombs
    codes = {r["code"] for r in market.clickhouse.rows(dead_letters)}
    assert codes >= {
        "no_value",
        "not_framed",
        "unknown_schema",
        "wrong_subject",
        "trailing_bytes",
        "undecodable",
        "too_large",
        "negative_count",
        "not_a_uuid",
    }


def test_unreadable_records_on_alerts_and_schemas_are_set_aside_and_the_next_alert_is_shown(market: UsageStack) -> None:
    def put(topic: str, value: bytes | None, headers: dict[str, bytes] | None = None) -> Coordinate:
        return market.writer.append(topic, b"k", value, headers).result(10)

    shared = {"occurred_at": 1_800_000_000_000_000, "producer": "controller", "subject": "model-vision-core-digits1", "rule": "load_failed"}
    more = {"severity": "critical", "message": "it does not start", "remedy": "deploy another version"}
    raised = str(uuid.uuid4())
    # It reads as a fact, but what it says is no schema: whoever begins after it must begin all the same.
    registered = {"log_id": "l", "schema_id": 987655, "subject": "usage-Nothing", "sha256": bytes(32), "definition": "no schema"}
    frame = market.codec.encode_dict("SchemaRegistered", {"event_id": str(uuid.uuid4()), "occurred_at": 1, "producer": "p", **registered})
    market.rest()
    forged = put("schemas", frame, {"ce_type": b"SchemaRegistered"})
    with market.working():
        dead = {
            forged: "not_signed",
            put("alerts", b"garbage"): "not_framed",
            put("alerts", None): "no_value",
            put("alerts", b"held back?", {"store": b"s", "position": b"9", "previous_sha256": bytes(32)}): "not_framed",
            put("alerts", market.settled(1)): "misplaced",
            put("schemas", b"garbage", {"ce_type": b"SchemaRegistered"}): "not_framed",
            put("schemas", b"\x00" + (987654).to_bytes(4, "big")): "unknown_schema",
        }
        put("alerts", market.codec.encode_dict("AlertRaised", {"event_id": raised, **shared, **more}))
        columns = "subject, rule, severity, message, remedy, toString(raised) AS raised"
        wanted = [{"subject": shared["subject"], "rule": "load_failed", **more, "raised": "2027-01-15 08:00:00.000000"}]
        of = f"FROM alerts WHERE subject = '{shared['subject']}'"
        eventually(lambda: market.clickhouse.rows(f"SELECT {columns} {of}") == wanted, "the alert is shown")

        dead_letters = "SELECT topic, partition, offset, code FROM dead_letters WHERE topic IN ('alerts', 'schemas')"
        eventually(lambda: len(market.clickhouse.rows(dead_letters)) >= len(dead), "the dead letters have their rows")
        found = {Coordinate(r["topic"], r["partition"], r["offset"]): r["code"] for r in market.clickhouse.rows(dead_letters)}
        assert found == dead

        put("alerts", market.codec.encode_dict("AlertResolved", {**shared, "event_id": str(uuid.uuid4()), "raised": raised}))
        eventually(lambda: not market.clickhouse.rows(f"SELECT subject {of}"), "the alert is over")
        folded = "SELECT topic, uniqExact(kafka_offset) AS n FROM history_rows WHERE topic IN ('alerts', 'schemas') GROUP BY topic"

        def rows_of_each() -> bool:
            rows = {row["topic"]: row["n"] for row in market.clickhouse.rows(folded)}
            return rows == {topic: len(read_topic(market.settings, topic)) for topic in ("alerts", "schemas")}

        eventually(rows_of_each, "each of their records has its row")


def test_a_forged_schema_log_or_dead_letter_stops_nobody_and_is_named(market: UsageStack) -> None:
    reader = Reader(market.settings, "test-forged")
    codec, log_id = open_codec(market.settings, reader)
    true = next(s for s in schemas_on_log(reader) if s.name == "InvocationSettled")
    changed = true.definition.replace("tokens", "tokenz", 1)
    base = {"event_id": str(uuid.uuid4()), "occurred_at": 1, "producer": "prepare"}
    named = {**base, "log_id": log_id, "schema_id": true.schema_id, "subject": true.subject, "definition": changed}
    partitions = {t.name: t.partitions for t in TOPICS.values()}

    def put(name: str, body: Mapping[str, object]) -> Coordinate:
        return market.writer.append("schemas", b"k", codec.encode_dict(name, body), {"ce_type": name.encode()}).result(10)

    forged = (
        ("SchemaRegistered", {**named, "sha256": true.sha256}),
        ("SchemaRegistered", {**named, "sha256": hashlib.sha256(changed.encode()).digest()}),
        ("SchemaRegistered", {**named, "schema_id": UNKNOWN_ID, "definition": true.definition, "sha256": true.sha256}),
        ("LogCreated", {**base, "log_id": "another", "partitioner": "murmur2_random", "partitions": partitions}),
        ("LogCreated", {**base, "log_id": log_id, "partitioner": "crc32", "partitions": {"usage": 3}}),
    )
    market.rest()
    dead = {put(name, body): "not_signed" for name, body in forged}
    letter = {**base, "topic": "usage", "partition": 1, "offset": 0, "code": "not_framed", "reason": "forged", "reader": "projections"}
    letter |= {"key": b"", "value": b"", "value_sha256": bytes(32)}
    dead_letters = (letter, {**letter, "partition": 1 << 40}, {**letter, "offset": -1}, {**letter, "topic": "nowhere"})
    for forged in dead_letters:
        value = codec.encode_dict("DeadLettered", forged)
        market.writer.append("dead-letters", b"k", value, {"ce_type": b"DeadLettered"}).result(10)

    prepare_log(market.settings)
    again, same = open_codec(market.settings, reader)
    assert (same, again.schema_for("InvocationSettled").schema_id) == (log_id, true.schema_id)
    assert again.schemas.by_id[true.schema_id].definition == true.definition
    assert UNKNOWN_ID not in again.schemas.by_id
    with market.working():
        market.write(*market.mixed(500))
        market.caught_up()
        sql = "SELECT topic, partition, offset, code FROM dead_letters WHERE topic = 'schemas'"

        def named_dead_letters() -> dict[Coordinate, str]:
            found = {Coordinate(r["topic"], r["partition"], r["offset"]): r["code"] for r in market.clickhouse.rows(sql)}
            return {at: found.get(at, "") for at in dead}

        eventually(lambda: named_dead_letters() == dead, "each forged record is a dead letter")
        alert = "SELECT message FROM alerts WHERE subject = 'schemas/0' AND rule = 'forged_record'"
        eventually(lambda: str(list(dead)[-1]) in str(market.clickhouse.rows(alert)), "the alarm names the record")
        ends = "SELECT uniqExact(kafka_offset) AS n FROM dead_letters_rows"
        eventually(
            lambda: market.clickhouse.value(ends) == len(read_topic(market.settings, "dead-letters")), "every dead letter has its row"
        )
    compare(market.settings)
    assert not [letter for letter in find_dead_letters(market.clickhouse, STATES) if letter.reason == "forged"]
    reader.close()


def test_a_damaged_record_changes_no_other_row_and_forges_none(market: UsageStack) -> None:
    """The attack on a container without a guard: a record that holds a whole row, its tail, and the beginning of a second
    row, whose bytes field swallows the true tail and the next record's beginning. As many rows as records, none of them true."""
    for _ in range(50):
        honest = market.settled(20, tenant="honest", invocation_key=b"", previous_sha256=PREVIOUS)
        good, victim = (
            market.settled(21, tenant="attacker", invocation_key=b"", previous_sha256=PREVIOUS),
            market.settled(22, tenant="victim", invocation_key=b"", previous_sha256=PREVIOUS),
        )
        tail = TAIL.pack(1, market.ends()[1], 0, bytes(32), bytes(16))
        key_at = len(honest) - len(_after_key(honest))
        attack = good + tail + victim[5 : len(victim) - len(_after_key(victim)) - 1] + zigzag(TAIL.size + key_at - 5)
        market.write(attack, honest, partition=1)
    with market.working():
        market.caught_up()
    compare(market.settings)
    assert market.clickhouse.value("SELECT count() AS n FROM usage_rows WHERE tenant = 'victim'") == 0
    assert market.clickhouse.value("SELECT count() AS n FROM usage_rows WHERE tenant = 'honest'") == 50


def _after_key(frame: bytes) -> bytes:
    """What follows the empty `invocation_key`: the field after the 32 bytes of `previous_sha256`."""
    at = frame.index(PREVIOUS) + 32
    assert frame[at] == 0
    return frame[at + 1 :]


def test_a_worker_killed_between_the_parts_of_a_chunk_leaves_no_gap(market: UsageStack) -> None:
    market.write(*market.mixed(4000))
    with market.working():
        market.caught_up()
    # What a crash between two inserts of one chunk leaves: the later schema's rows are there, the earlier one's are not.
    ids = [r["schema_id"] for r in market.clickhouse.rows("SELECT schema_id FROM usage_rows GROUP BY schema_id ORDER BY count()")]
    for schema_id in ids[-2:]:
        market.rest()
        tail = "(SELECT max(kafka_offset) - 800 FROM usage WHERE kafka_partition = 2)"
        market.clickhouse.command(
            f"ALTER TABLE usage DELETE WHERE kafka_partition = 2 AND schema_id = {schema_id} AND kafka_offset > {tail}",
            settings={"mutations_sync": 2},
        )
        with market.working():
            market.caught_up()
        compare(market.settings)


def test_an_older_copy_of_the_tables_is_filled_up_again(market: UsageStack) -> None:
    folder, copy = market.settings.folder / "clickhouse", market.settings.folder / "older"
    market.rest()
    assert market.engine.stop() == 0
    shutil.copytree(folder, copy, symlinks=True)
    market.engine.start()
    with market.working():
        market.write(*market.mixed(3000))
        market.caught_up()
    market.rest()
    market.engine.kill()
    shutil.rmtree(folder)
    shutil.move(copy, folder)
    market.engine.start()
    with market.working():
        market.caught_up()
    compare(market.settings)


def test_killed_workers_and_a_killed_engine_lose_nothing_and_double_nothing(market: UsageStack) -> None:
    market.rest()
    with producing(market, 200, 0.1):
        first = market.worker(0)
        second = market.worker(1)
        first.kill()
        third = market.worker(0)
        market.engine.kill()
        market.engine.start()
        second.stop()
        second = market.worker(1)
        rows = market.rows()
        eventually(lambda: market.rows() > rows, "they work")
        third.kill()
    last = market.worker(0, ready=False)
    try:
        market.caught_up()
    finally:
        last.stop()
        second.stop()
    compare(market.settings)
    doubled = market.clickhouse.value("SELECT count() - uniqExact(kafka_partition, kafka_offset) AS n FROM usage")
    assert doubled == 0, "the local engine's fence and tokens keep even the raw table free of doubles"


def test_a_paused_worker_that_wakes_after_a_take_over_changes_no_figure(market: UsageStack) -> None:
    market.rest()
    paused = market.worker(0)
    market.write(*market.mixed(2000))
    market.caught_up()
    with producing(market, 200, 0.05):
        rows = market.rows()
        eventually(lambda: market.rows() > rows, "the worker is in the middle of its work")
        paused.signal(signal.SIGSTOP)
        paused_port = market.settings.worker_health_port(paused.index)
        successor = market.worker(1)
        rows = market.rows()
        eventually(lambda: market.rows() > rows, "its successor has taken over")
    market.caught_up()
    figures = "SELECT * FROM metering_daily ORDER BY ALL"
    before = table_rows(market.settings, figures)
    paused.signal(signal.SIGCONT)
    eventually(lambda: paused.process.poll() is not None or is_ready(paused_port), "it has ended, or the group has taken it in again")
    assert table_rows(market.settings, figures) == before
    market.write(*market.mixed(400))
    market.caught_up()
    successor.stop()
    paused.stop()
    compare(market.settings)
    assert market.clickhouse.value("SELECT count() - uniqExact(kafka_partition, kafka_offset) AS n FROM usage") == 0


def test_ten_copies_of_every_fact_count_once(market: UsageStack) -> None:
    values = [market.refused(n, "copied-r") if n % 5 == 2 else market.settled(n, f"copied-{n % 7}") for n in range(500)]
    lost = market.settled(5, tenant="copied", bytes_in=1_000_000)
    _, body = decoded(lost, Schemas(market.settings)) or ("", {})
    values += [lost, market.voided(6, body["event_id"], "copied")]
    with market.working():
        for _ in range(10):
            market.write(*values, partition=3)
        twin = market.settled(7, tenant="copied", event_id=body["event_id"], bytes_in=5)
        market.write(twin, partition=3)
        market.caught_up()
    schemas = Schemas(market.settings)
    known = (
        (r.time_ms, d)
        for r in sorted(read_topic(market.settings, "usage"), key=lambda r: (r.partition, r.offset))
        if (d := decoded(r.value, schemas))
    )
    expected = daily((fact, fields, ms * 1000) for ms, (fact, fields) in known if fields["tenant"].startswith("copied"))
    rows = table_rows(
        market.settings,
        "SELECT tenant, model, model_version, calls, succeeded, refused, bytes_in FROM metering_daily WHERE tenant LIKE 'copied%'",
    )
    assert {
        (r["tenant"], r["model"], r["model_version"]): (r["calls"], r["succeeded"], r["refused"], r["bytes_in"]) for r in rows
    } == expected
    (row,) = table_rows(
        market.settings, f"SELECT copies, conflict, is_voided, bytes_in FROM usage_counted WHERE event_id = '{body['event_id']}'"
    )
    assert row == {"copies": 11, "conflict": True, "is_voided": True, "bytes_in": 1_000_000}


def test_a_rebuild_beside_the_live_tables_finds_no_difference_and_takes_their_place(market: UsageStack) -> None:
    market.write(*market.mixed(6000))
    with market.working():
        rebuild = Rebuild(market.settings)
        with producing(market, 100, 0.1):
            report = rebuild.run()
            assert report.equal and report.rows >= 6000, report.listed[:5]
            kept = rebuild.switch()
        market.caught_up()
        compare(market.settings)
        assert market.clickhouse.value(f"SELECT count() > 0 AS there FROM {kept}") == 1
        # A row that somebody changed by hand is found, with the column.
        market.clickhouse.command(
            "ALTER TABLE usage UPDATE bytes_in = bytes_in + 1 WHERE kafka_partition = 1 AND kafka_offset = 5",
            settings={"mutations_sync": 2},
        )
        market.clickhouse.command("ALTER TABLE usage DELETE WHERE kafka_partition = 1 AND kafka_offset = 6", settings={"mutations_sync": 2})
        report = rebuild.run()
        found = {(d.partition, d.offset, d.what, d.columns) for d in report.listed}
        assert found == {(1, 5, "differs", ("bytes_in",)), (1, 6, "only_rebuilt", ())}
        rebuild.switch()
        rebuild.close()
    compare(market.settings)


def test_an_insert_under_way_while_the_tables_are_exchanged_is_brought_over(market: UsageStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the old table, after the rows of that were brought over once."""
    rebuild, command, reader = Rebuild(market.settings), ClickHouse.command, Reader(market.settings, "late")
    old_table = UsageSink(
        market.clickhouse, InsertPlans(reader), lambda partition, fence: 0, lambda dead: None, lambda: None, table="usage_rebuilt"
    )
    market.rest()
    assert rebuild.run().equal
    under_way, brought = list[Record](), list[str]()

    def commanded(self: ClickHouse, sql: str, *more: Any, **named: Any) -> None:
        if sql.startswith("EXCHANGE"):  # the record is on the log, and the insert of a worker begins
            market.write(market.settled(7), partition=2)
            under_way.append(reader.record_at("usage", 2, market.ends()[2] - 1))
        if sql.startswith("INSERT INTO usage ("):
            brought.append(sql)
        if len(brought) == TOPICS["usage"].partitions + 1 and under_way:
            old_table.write(old_table.prepare([Chunk("usage", 2, [under_way.pop()])]))
        command(self, sql, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr(ClickHouse, "command", commanded)
        rebuild.switch()
    rebuild.close()
    reader.close()
    assert not under_way
    compare(market.settings)


def test_a_worker_that_never_rests_does_not_hold_up_a_switch(market: UsageStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes between any two questions; only what was on the log at the exchange must be there."""
    rebuild, rows = Rebuild(market.settings), ClickHouse.rows
    with market.working():
        market.write(*market.mixed(400))
        market.caught_up()
        assert rebuild.run().equal

        def asked(self: ClickHouse, *more: Any, **named: Any) -> list[dict[str, Any]]:
            found = rows(self, *more, **named)
            before = market.rows_of(0)
            market.write(market.settled(1), partition=0)
            eventually(lambda: market.rows_of(0) > before, "the worker has written it")
            return found

        with monkeypatch.context() as patched:
            patched.setattr("projections.usage.rebuild.PATIENCE_S", 3.0)
            patched.setattr(ClickHouse, "rows", asked)
            rebuild.switch()
        rebuild.close()
        market.caught_up()
    compare(market.settings)


def test_ten_thousand_damaged_records_take_no_good_one_with_them_and_forge_none(market: UsageStack) -> None:
    chance = random.Random(8)
    bases = [market.settled(chance.randrange(1000)) for _ in range(200)] + [market.refused(n) for n in range(50)]
    values = list[bytes]()
    for i in range(MUTANTS):
        values += [_damaged(chance.choice(bases), chance), market.settled(i)]
    market.write(*values)
    with market.working():
        market.caught_up()
    assert compare(market.settings)["unreadable"] > MUTANTS // 2


def test_another_log_under_the_same_tables_stops_the_worker(market: UsageStack) -> None:
    market.rest()
    market.stack.down()
    shutil.rmtree(Path(market.settings.folder) / "kafka", ignore_errors=True)
    market.stack.up({"kafka", "registry"})
    prepare_log(market.settings)
    rows = market.clickhouse.value("SELECT count() AS n FROM usage")
    worker = market.worker(0, ready=False)
    assert worker.process.wait(180) != 0
    assert "log_generation_changed" in worker.tail()
    assert market.clickhouse.value("SELECT count() AS n FROM usage") == rows


def _damaged(value: bytes, chance: random.Random) -> bytes:
    b, kind = bytearray(value), chance.randrange(9)
    at = chance.randrange(5, len(b))
    match kind:
        case 0:
            b[at] ^= 1 << chance.randrange(8)
        case 1:
            b[at] = chance.randrange(256)
        case 2:
            del b[at : at + chance.randrange(1, 20)]
        case 3:
            b[at:at] = chance.randbytes(chance.randrange(1, 20))
        case 4:
            b = b[:at]
        case 5:
            b += chance.randbytes(chance.randrange(1, 100))
        case 6:
            b[at : at + 1] = zigzag(chance.choice([2**62, -(2**62), 2**31, 2**40, -1, 10**9, 2**63 - 1, -(2**63), 70_000]))
        case 7:
            b[at : at + 1] = bytes([0xFF] * chance.randrange(1, 11) + [chance.choice([0, 1, 2, 0x7F])])
        case _:
            b[at : at + chance.randrange(1, 4)] = chance.choice([b"\xff\xfe", b"\xc3\x28", b"\x00", b"\xed\xa0\x80"])
    return bytes(b)
