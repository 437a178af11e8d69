"""An unreadable record holds a bill back until two people write it off; a readable one is counted even when written off (K9, K13)."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.app import app
from events.facts.log import SchemaRegistered
from events.facts.meters import METERS, READINGS
from events.facts.topics import TOPICS
from events.log.partitioner import partition_of
from events.log.record import Coordinate
from events.log.schemas import append_signed
from events.process.clock import now_us
from events.process.signing_keys import signing_key
from events.schema.codec import Schema
from events.schema.registry import SchemaRegistry
from projections.bills.bill_from_log import bills_from_log
from projections.bills.decided_for_bills import epochs_ended, tenant_bills
from projections.bills.from_tables.decided_in_tables import cuts_of, unreadable_below
from projections.bills.issue import Deferred, Issued, Outcome, cuts_without_bill
from projections.bills.running import RunningBills
from projections.bills.usage_spool import Wanted, read_usage
from projections.bills.verify import verify
from projections.dead_letters.forged_alerts import ForgedAlerts
from projections.dead_letters.queries import STATES, all_dead_letters, find_dead_letters
from projections.dead_letters.redrive import Redrive
from projections.dead_letters.sink import DeadLetterPublisher
from projections.ingest.sink import DeadLetter
from projections.ingest.table_offsets import dense_end
from projections.usage.producer_epochs import epochs
from tests.support.market import Market, month, running_market

PRICED = {("*", meter): (1_000_000 if meter == "calls" else 0, 1) for meter in METERS if READINGS[meter].measured}
PARTITIONS = TOPICS["usage"].partitions
Run = Callable[..., str]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with running_market(tmp_path_factory.mktemp("writeoffs")) as market:
        yield market


@pytest.fixture(scope="module")
def second(market: Market) -> str:
    """Another admin's key."""
    tenant, _ = market.tenant("standard")
    return str(market.command("POST", f"/v1/tenants/{tenant}/keys", {"scopes": ["admin"], "user": "second"})["api_key"])


@pytest.fixture
def run(market: Market, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`modelmarket …` on this stack; `code` is the exit code it must have, None for any."""
    settings = market.settings
    for name, value in (("STACK", settings.stack), ("BASE_PORT", str(settings.base_port)), ("DATA", str(settings.folder))):
        monkeypatch.setenv(f"MODELMARKET_{name}", value)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, code: int | None = 0) -> str:
        done = CliRunner().invoke(app, list(words))
        assert code in (None, done.exit_code), done.output
        return done.output

    return run


_OF_NOBODY = {"event_id": "e", "occurred_at": 1, "producer": "nobody"}


def _hex(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def put(market: Market, tenant: str, value: bytes | None) -> Coordinate:
    return market.writer.append("usage", tenant.encode(), value, market.usage.proof(value)).result(10)


def post(market: Market, path: str, body: dict[str, Any] | None = None, key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or market.admin}", "Idempotency-Key": str(uuid.uuid4())}
    return httpx.post(market.settings.commands + path, json=body, headers=headers, timeout=30)


def give_up(market: Market, second: str, at: Coordinate, value: bytes | None) -> None:
    sha256 = hashlib.sha256(value or b"").hexdigest()
    path = f"/v1/write-offs/records/{at}"
    assert post(market, path, {"sha256": sha256, "reason": "nobody of ours wrote it"}).status_code == 201
    assert post(market, f"{path}/approve", {"sha256": sha256}, second).status_code == 200


def waits(market: Market, tenant: str, number: int, reason: str) -> None:
    biller = market.biller()

    def refused() -> bool:
        biller.issue()
        return biller.waiting.get(f"{tenant}#{number}") == reason

    market.fold_until(refused, f"the biller says {reason}")


def issued(market: Market, tenant: str, number: int) -> dict[str, Any]:
    """Waits for a bill whose cut is fixed."""
    biller = market.biller()

    def done() -> bool:
        biller.issue()
        return (tenant, number) not in cuts_without_bill(market.clickhouse)

    market.fold_until(done, lambda: f"bill {number} of {tenant}: {biller.waiting}")
    (known,) = [
        body
        for name, body in (market.codec.decode(r.value) for r in market.reader.read("bills"))
        if name == "BillIssued" and (body["tenant"], body["number"]) == (tenant, number)
    ]
    return known


def claimed(market: Market, tenant: str) -> dict[int, tuple[int, int, int]]:
    """number → (calls, difference in micro-units, records written off) of a verification from Kafka alone."""
    compared = verify(market.reader, market.codec, None, tenant, month())
    assert all(c.agrees for c in compared), [(c.number, c.wrong) for c in compared]
    calls = {c.number: sum(line.recomputed[0] for line in c.lines if line.key.meter == "calls") for c in compared}
    return {c.number: (calls[c.number], c.difference_micros, c.records_written_off) for c in compared}


def tenant_of(market: Market, partition: int) -> str:
    """A new tenant whose usage is in this partition."""
    book = market.prices(PRICED)
    while True:
        tenant = f"t{uuid.uuid4().hex[:12]}"
        if partition_of(tenant.encode(), PARTITIONS) == partition:
            market.command("POST", "/v1/tenants", {"tenant": tenant, "display_name": tenant, "price_book": book})
            market.key(tenant)
            return tenant


def test_an_unreadable_record_holds_a_bill_back_until_two_people_write_it_off(market: Market, second: str) -> None:
    tenant = tenant_of(market, 0)
    market.append(tenant, [market.settled(tenant)])
    garbage = [b"garbage", None, market.settled(tenant, epoch="damaged", event_id="NOT-A-UUID")]
    coordinates = [put(market, tenant, value) for value in garbage]
    market.append(tenant, [market.settled(tenant)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    waits(market, tenant, 1, "dead_letters")
    assert {(letter.at, letter.state) for letter in find_dead_letters(market.clickhouse)} >= {(at, "open") for at in coordinates}

    path = f"/v1/write-offs/records/{coordinates[0]}"
    right, wrong = hashlib.sha256(b"garbage").hexdigest(), hashlib.sha256(b"other").hexdigest()
    refusals = [
        (post(market, path, {"sha256": wrong, "reason": "r"}), 409, "sha256_differs", "sha256"),
        (post(market, path, {"sha256": "zz", "reason": "r"}), 422, "string_pattern_mismatch", "sha256"),
        (post(market, path, {"sha256": right, "reason": "x" * 1001}), 422, "string_too_long", "reason"),
        (post(market, f"{path}/approve", {"sha256": right}), 404, "not_requested", "offset"),
        (post(market, "/v1/write-offs/records/usage/9/0", {"sha256": right, "reason": "r"}), 404, "partition_unknown", "partition"),
        (post(market, "/v1/write-offs/records/usage/0/999999", {"sha256": right, "reason": "r"}), 404, "record_missing", "offset"),
        (post(market, "/v1/write-offs/records/nothing/0/0", {"sha256": right, "reason": "r"}), 404, "topic_unknown", "topic"),
    ]
    for answer, status, code, field in refusals:
        known = answer.json()
        assert (answer.status_code, known["code"], known["field"]) == (status, code, field), answer.text
        assert known["remedy"]
    _, reader_key = market.tenant("standard")
    assert post(market, path, {"sha256": right, "reason": "r"}, reader_key).status_code == 403

    for at, value in zip(coordinates, garbage, strict=True):
        sha256 = hashlib.sha256(value or b"").hexdigest()
        path = f"/v1/write-offs/records/{at}"
        assert post(market, path, {"sha256": sha256, "reason": "nobody of ours wrote it"}).status_code == 201
        same = post(market, f"{path}/approve", {"sha256": sha256})
        assert (same.status_code, same.json()["code"]) == (403, "same_person")
    market.fold_until(
        lambda: {letter.at: letter.state for letter in find_dead_letters(market.clickhouse)}.get(coordinates[0]) == "requested", "requested"
    )
    waits(market, tenant, 1, "dead_letters")

    for at, value in zip(coordinates, garbage, strict=True):
        approved = post(market, f"/v1/write-offs/records/{at}/approve", {"sha256": hashlib.sha256(value or b"").hexdigest()}, second)
        assert (approved.status_code, approved.json()["state"], approved.json()["approver"]) == (200, "written_off", "second")
    bill = issued(market, tenant, 1)
    assert (bill["records_written_off"], bill["facts"]["claimed"], bill["total_micros"]) == (3, 2, 2_000_000)
    assert claimed(market, tenant) == {1: (2, 0, 3)}
    assert not [letter for letter in find_dead_letters(market.clickhouse) if letter.at in coordinates]
    assert {letter.state for letter in find_dead_letters(market.clickhouse, STATES) if letter.at in coordinates} == {"written_off"}

    # Both sources by themselves, and the next bill of the partition.
    cut = cuts_of(market.clickhouse, {tenant: [1]})[tenant][1]
    (from_log,) = bills_from_log(market.reader, market.codec, tenant_bills(market.reader, market.codec, tenant), [1])
    below = next(c["offset"] for c in cut["cuts"] if c["partition"] == 0)
    assert from_log.records_written_off == len(unreadable_below(market.clickhouse, tenant, below).excluded) == 3
    neighbour = tenant_of(market, 0)
    market.append(neighbour, [market.settled(neighbour)])
    assert market.issue(neighbour, month())["records_written_off"] == 3
    as_admin = {"Authorization": f"Bearer {market.admin}"}
    admin = httpx.get(f"{market.settings.queries}/v1/bills", headers=as_admin, params={"tenant": tenant}, timeout=30)
    assert [b["records_written_off"] for b in admin.json()["bills"] if b["status"] == "issued"] == [3]


def test_a_readable_record_is_billed_even_when_it_is_written_off(market: Market, second: str) -> None:
    tenant = tenant_of(market, 1)
    value = market.settled(tenant)
    at = put(market, tenant, value)
    answer = post(market, f"/v1/write-offs/records/{at}", {"sha256": hashlib.sha256(value).hexdigest(), "reason": "make it disappear"})
    assert (answer.status_code, "counted all the same" in answer.json()["note"]) == (201, True)
    assert post(market, f"/v1/write-offs/records/{at}/approve", {"sha256": hashlib.sha256(value).hexdigest()}, second).is_success
    bill = market.issue(tenant, month())
    assert (bill["facts"]["claimed"], bill["records_written_off"], bill["total_micros"]) == (1, 0, 1_000_000)
    assert claimed(market, tenant) == {1: (1, 0, 0)}


def test_a_write_off_of_other_bytes_is_ignored_and_reported(market: Market, second: str) -> None:
    """The command compares the hash with the log; should a store's decision meet another log all the same, the readers do."""
    tenant = tenant_of(market, 2)
    at = put(market, tenant, b"garbage")
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    give_up_elsewhere(market, at, b"other bytes")
    waits(market, tenant, 1, "dead_letters")
    found = unreadable_below(market.clickhouse, tenant, at.offset + 1)
    assert (found.open, found.mistaken, found.excluded) == ((at.offset,), (at.offset,), ())
    outcome = market.issuer().issue(tenant, 1)
    assert "other bytes" in getattr(outcome, "message", "")
    elsewhere = {at.offset: {hashlib.sha256(b"other bytes").digest()}}
    with closing(read_usage(market.reader, market.codec, 2, {tenant: Wanted(0, at.offset + 1)}, elsewhere)) as usage:
        assert (usage.unreadable, usage.excluded) == ({at.offset: tenant.encode()}, set())
    give_up(market, second, at, b"garbage")
    assert issued(market, tenant, 1)["records_written_off"] == 1


def give_up_elsewhere(market: Market, at: Coordinate, value: bytes) -> None:
    """As if it had been decided: a row of the history that no command would write."""
    body = f'{{"topic":"{at.topic}","partition":{at.partition},"offset":{at.offset},"sha256":"{hashlib.sha256(value).hexdigest()}"}}'
    row = {"topic": "bills", "kafka_partition": 900, "kafka_offset": 1, "kind": "decided", "fact": "RecordWrittenOff", "key": str(at)}
    market.clickhouse.insert_rows("history_rows", [{**row, "body": body, "sha256": "0" * 64}])


def newer_schema(market: Market, name: str) -> Schema:
    """Of a program that is newer than this one: one more field. The registry has it, the log does not."""
    known = market.codec.schema_for(name)
    fields: dict[str, Any] = json.loads(known.definition)
    fields["fields"].append({"name": f"said_{uuid.uuid4().hex}", "type": "long", "default": 0})
    definition = json.dumps(fields)
    return Schema.of(SchemaRegistry(market.settings).register(known.subject, definition), known.subject, definition)


def written_with(market: Market, newer: Schema, tenant: str) -> bytes:
    """A settled fact of an epoch of its own, so that no other record waits for it."""
    frame = market.settled(tenant, epoch=str(uuid.uuid4()))
    return market.usage.rewritten(tenant, frame, reframed(newer, frame))


def reframed(newer: Schema, frame: bytes) -> bytes:
    return b"\x00" + newer.schema_id.to_bytes(4, "big") + frame[5:] + b"\x02"


def publish(market: Market, schema: Schema) -> None:
    fact = SchemaRegistered(
        event_id=str(uuid.uuid4()),
        occurred_at=now_us(),
        producer="prepare",
        log_id=market.log_id,
        schema_id=schema.schema_id,
        subject=schema.subject,
        sha256=schema.sha256,
        definition=schema.definition,
    )
    append_signed(market.writer, market.codec, signing_key(market.settings, "setup"), fact).result(10)


def test_a_record_whose_schema_came_late_is_read_again_and_billed_once(market: Market) -> None:
    tenant = tenant_of(market, 3)
    lost = len(unreadable_below(market.clickhouse, tenant, 1 << 40).excluded)
    late = newer_schema(market, "InvocationSettled")
    coordinates = [put(market, tenant, value) for value in (written_with(market, late, tenant), written_with(market, late, tenant))]
    market.append(tenant, [market.settled(tenant)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    waits(market, tenant, 1, "dead_letters")
    redrive = Redrive(market.settings, market.clickhouse)
    still = redrive.retry(coordinates[0])
    redrive.close()
    assert (still.kind, "unknown_schema" in still.message) == ("unreadable", True)

    publish(market, late)
    redrive = Redrive(market.settings, market.clickhouse)
    assert [redrive.retry(at).kind for at in (*coordinates, coordinates[0])] == ["redriven", "redriven", "readable"]
    redrive.close()
    assert {letter.state for letter in find_dead_letters(market.clickhouse, STATES) if letter.at in coordinates} == {"redriven"}
    bill = issued(market, tenant, 1)
    assert (bill["facts"]["claimed"], bill["records_written_off"], bill["total_micros"]) == (3, lost, 3_000_000)
    market.read_schemas()
    assert claimed(market, tenant) == {1: (3, 0, lost)}


def test_a_written_off_record_that_is_read_later_is_on_the_next_bill_and_no_issued_bill_changes(market: Market, second: str) -> None:
    tenant = tenant_of(market, 2)
    late = newer_schema(market, "InvocationSettled")
    value = written_with(market, late, tenant)
    at = put(market, tenant, value)
    market.append(tenant, [market.settled(tenant)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    waits(market, tenant, 1, "dead_letters")
    give_up(market, second, at, value)
    first = issued(market, tenant, 1)
    lost = first["records_written_off"]
    assert (first["facts"]["claimed"], at.offset in first["excluded"], len(first["excluded"])) == (1, True, lost)
    assert claimed(market, tenant) == {1: (1, 0, lost)}

    publish(market, late)
    market.read_schemas()
    redrive = Redrive(market.settings, market.clickhouse)
    assert redrive.retry(at).kind == "redriven"
    redrive.close()
    assert claimed(market, tenant) == {1: (1, 0, lost)}, "the issued bill is what it was"
    market.append(tenant, [market.settled(tenant)])
    market.fold()
    running = RunningBills(market.clickhouse).compute(tenant, dense_end(market.clickhouse, "usage", 2), now_us())
    assert running.facts["claimed"] == 2
    then = market.issue(tenant, month())
    assert (then["facts"]["claimed"], then["total_micros"], at.offset in then["excluded"]) == (2, 2_000_000, False)
    assert claimed(market, tenant) == {1: (1, 0, lost), 2: (2, 0, lost - 1)}
    market.recompute_as_a_stranger(tenant, 1)
    market.recompute_as_a_stranger(tenant, 2)


def test_what_follows_a_lost_record_of_its_chain_is_held_and_billed_when_it_is_read(market: Market, second: str) -> None:
    """And an unreadable record holds back nobody's bill but its tenant's (K9, K13)."""
    tenant, neighbour = tenant_of(market, 3), tenant_of(market, 3)
    late = newer_schema(market, "InvocationSettled")
    first, frame = market.settled(tenant), market.settled(tenant)
    value = market.usage.rewritten(tenant, frame, reframed(late, frame))
    market.append(tenant, [first])
    at = put(market, tenant, value)
    market.append(tenant, [market.settled(tenant), market.settled(tenant)])
    market.append(neighbour, [market.settled(neighbour)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    waits(market, tenant, 1, "dead_letters")
    theirs = market.issue(neighbour, month())
    assert (theirs["facts"]["claimed"], theirs["facts"]["held"], at.offset in theirs["excluded"]) == (1, 0, False)

    give_up(market, second, at, value)
    bill = issued(market, tenant, 1)
    lost = bill["records_written_off"]
    assert (bill["facts"]["claimed"], bill["facts"]["held"], at.offset in bill["excluded"]) == (1, 2, True)
    assert claimed(market, tenant) == {1: (1, 0, lost)}

    publish(market, late)
    market.read_schemas()
    market.restart()  # a verifier that knows only what the tables say, and the schemas of today
    redrive = Redrive(market.settings, market.clickhouse)
    assert redrive.retry(at).kind == "redriven"
    redrive.close()
    market.fold()
    assert claimed(market, tenant) == {1: (1, 0, lost)}, "the issued bill is what it was"
    market.verifier.advance(dict.fromkeys(range(PARTITIONS), 0))  # as if an older copy of the tables had been restored
    market.append(tenant, [market.settled(tenant)])
    then = market.issue(tenant, month())
    assert (then["facts"]["claimed"], then["facts"]["held"], at.offset in then["excluded"]) == (4, 0, False)
    assert claimed(market, tenant) == {1: (1, 0, lost), 2: (4, 0, lost - 1)}
    for number in (1, 2):
        market.recompute_as_a_stranger(tenant, number)
    market.recompute_as_a_stranger(neighbour, 1)


def test_a_written_off_record_that_can_be_read_is_reported_until_it_is_read_again(market: Market, second: str, run: Run) -> None:
    """Its schema was published and nobody tried it again: the table still leaves it out, the log has it."""
    tenant, neighbour = tenant_of(market, 2), tenant_of(market, 2)
    late = newer_schema(market, "InvocationSettled")
    value = written_with(market, late, tenant)
    at, rubbish = put(market, tenant, value), put(market, tenant, b"rubbish")
    market.append(tenant, [market.settled(tenant)])
    market.fold()
    give_up(market, second, at, value)
    give_up(market, second, rubbish, b"rubbish")
    first = market.issue(tenant, month())
    assert (first["facts"]["claimed"], at.offset in first["excluded"]) == (1, True)

    publish(market, late)
    market.read_schemas()
    for whose in (neighbour, tenant):
        market.append(whose, [market.settled(whose)])
        market.command("POST", f"/v1/bills/{whose}/{month()}/cut")
    for whose, number in ((neighbour, 1), (tenant, 2)):
        waits(market, whose, number, "dead_letters")
        outcome = market.issuer().issue(whose, number)
        assert isinstance(outcome, Deferred) and outcome.alarming
        assert f"{at}: written off, and can be read now: `modelmarket dead-letters retry {at}`" in outcome.message
        assert str(rubbish) not in outcome.message

    known = " ".join(run("dead-letters", "retry", "--all", code=None).split())
    assert f"{at} redriven" in known
    assert str(rubbish) not in known, "what was given up for good is tried, and no more is said of it"
    then, theirs = issued(market, tenant, 2), issued(market, neighbour, 1)
    assert (then["facts"]["claimed"], at.offset in then["excluded"], rubbish.offset in then["excluded"]) == (2, False, True)
    assert (theirs["facts"]["claimed"], theirs["excluded"] == then["excluded"]) == (1, True)
    assert [c[:2] for c in claimed(market, tenant).values()] == [(1, 0), (2, 0)]


def test_a_biller_that_began_before_a_schema_makes_the_bill_of_one_that_began_after_it(market: Market) -> None:
    tenant, epoch = tenant_of(market, 2), str(uuid.uuid4())
    old, newer = market.issuer(), newer_schema(market, "ProducerClosed")
    publish(market, newer)
    known = {"occurred_at": now_us(), "producer": "gateway-newer", "epoch": epoch}
    market.open_epoch(epoch, "gateway-newer")
    market.append(tenant, [market.settled(tenant, epoch=epoch)])
    end = {**known, "event_id": str(uuid.uuid4()), "last": {tenant: 1}, "closed_by": "gateway-newer"}
    closed = reframed(newer, market.codec.encode_dict("ProducerClosed", end))
    market.writer.append("producers", b"gateway-newer", closed, {}).result(10)
    over = post(market, f"/v1/write-offs/producers/gateway-newer/{epoch}", {"reason": "killed"})
    assert (over.status_code, over.json()["code"]) == (409, "epoch_closed")
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    outcomes: list[Outcome] = []
    market.fold_until(lambda: (tenant, 1) in cuts_without_bill(market.clickhouse), "the cut is in the history")

    def posted() -> bool:
        outcomes.append(old.issue(tenant, 1))
        return isinstance(outcomes[-1], Issued)

    market.fold_until(posted, "the bill is posted")
    assert isinstance(outcomes[-1], Issued) and outcomes[-1].bill.producers_open == 0
    market.read_schemas()
    assert claimed(market, tenant)[1][1] == 0


def test_a_dead_producers_epoch_is_written_off_and_bills_no_longer_list_it_as_open(market: Market, second: str) -> None:
    tenant, epoch, producer = tenant_of(market, 1), str(uuid.uuid4()), f"gateway-{uuid.uuid4().hex[:8]}"
    known = {"event_id": str(uuid.uuid4()), "occurred_at": now_us(), "producer": producer, "epoch": epoch}
    path = f"/v1/write-offs/producers/{producer}/{epoch}"
    unknown = post(market, path, {"reason": "killed"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "epoch_unknown")
    market.open_epoch(epoch, producer)
    market.append(tenant, [market.settled(tenant, epoch=epoch)])
    assert market.issue(tenant, month())["producers_open"] == 1
    (found,) = epochs(market.clickhouse, epoch=epoch)
    assert (found.status, found.last_fact_us > 0) == ("open", True)

    assert post(market, path, {"reason": "killed"}).status_code == 201
    same = post(market, f"{path}/approve")
    assert (same.status_code, same.json()["code"]) == (403, "same_person")
    # Whoever can write to the topic gives nothing up: the fact counts in the relay's chain.
    forged = market.codec.encode_dict("ProducerWrittenOff", {**known, "reason": "r", "approver": "nobody"})
    market.writer.append("producers", producer.encode(), forged, {}).result(10)
    assert market.issue(tenant, month())["producers_open"] == 1
    assert post(market, f"{path}/approve", key=second).status_code == 200
    market.fold_until(lambda: epochs(market.clickhouse, only_open=False, epoch=epoch)[0].status == "written_off", "written off")
    bill = market.issue(tenant, month())
    assert bill["producers_open"] == 0
    assert {n: c[1] for n, c in claimed(market, tenant).items()} == {1: 0, 2: 0, 3: 0}
    before = market.reader.end_offsets("producers")["producers", 0]
    assert epoch in epochs_ended(market.reader, market.codec, before)

    closed, end = {**known, "epoch": str(uuid.uuid4())}, {"last": {tenant: 1}, "closed_by": producer}
    for name, more in (("ProducerOpened", {"log_id": market.log_id, "host": "h", "region": "local"}), ("ProducerClosed", end)):
        value = market.codec.encode_dict(name, {**closed, "event_id": str(uuid.uuid4()), **more})
        market.writer.append("producers", producer.encode(), value, {}).result(10)
    assert closed["epoch"] not in epochs_ended(market.reader, market.codec, before)
    assert {epoch, closed["epoch"]} <= epochs_ended(market.reader, market.codec, market.reader.end_offsets("producers")["producers", 0])
    over = post(market, f"/v1/write-offs/producers/{producer}/{closed['epoch']}", {"reason": "killed"})
    assert (over.status_code, over.json()["code"]) == (409, "epoch_closed")


def test_the_commands_in_the_operations_guide_write_off_records_and_epochs(market: Market, second: str, run: Run, tmp_path: Path) -> None:
    settings = market.settings
    key_file = tmp_path / "second.key"
    key_file.write_text(second)

    tenant = tenant_of(market, 3)
    at = put(market, tenant, b"rubbish")
    where, alert = (market.writer.append(topic, b"stray", b"hello", {}).result(10) for topic in ("models", "alerts"))
    market.fold()
    assert str(at) in run("dead-letters", "list")
    assert "not_framed" in run("dead-letters", "show", str(at))
    assert "unreadable" in run("dead-letters", "retry", str(at), code=1)
    for elsewhere in (where, alert):
        assert "no bill depends on it" in " ".join(run("dead-letters", "retry", str(elsewhere), code=1).split())
    assert "not_framed" in run("dead-letters", "show", str(alert))
    assert "requested by admin" in run("dead-letters", "write-off", str(alert), "--reason", "typed by hand")
    assert "approved by second" in run("dead-letters", "approve", str(alert), "--yes", "--key-file", str(key_file))
    assert "requested by admin" in run("dead-letters", "write-off", str(at), "--reason", "typed by hand")
    assert "same_person" in run("dead-letters", "approve", str(at), "--yes", code=1)
    assert "approved by second" in run("dead-letters", "approve", str(at), "--yes", "--key-file", str(key_file))
    market.fold_until(lambda: not {at, alert} & {letter.at for letter in find_dead_letters(market.clickhouse)}, "closed")
    assert str(at) not in run("dead-letters", "list")
    assert "written off by admin and second" in " ".join(run("dead-letters", "list", "--all").split())
    assert "is written off" in run("dead-letters", "retry", str(at), code=1), "it asks first, and nobody answered"
    assert "unreadable" in run("dead-letters", "retry", str(at), "--yes", code=1)
    admin = {"Authorization": f"Bearer {market.admin}"}
    listed = httpx.get(f"{settings.queries}/v1/dead-letters", headers=admin, timeout=30).json()["dead_letters"]
    assert (str(where), "open") in {(letter["record"], letter["state"]) for letter in listed}

    market.append(tenant, [market.settled(tenant)])
    good = put(market, tenant, market.settled(tenant))
    market.fold()
    assert "can be read and is counted" in run("dead-letters", "write-off", str(good), "--reason", "r", code=1)

    epoch = str(uuid.uuid4())
    known = {"event_id": str(uuid.uuid4()), "occurred_at": now_us(), "producer": "gateway-cli", "epoch": epoch}
    opened = market.codec.encode_dict("ProducerOpened", {**known, "log_id": market.log_id, "host": "h", "region": "local"})
    market.writer.append("producers", b"gateway-cli", opened, {}).result(10)
    market.fold()
    assert epoch in run("producers", "list")
    assert "may be alive" in run("producers", "write-off", epoch, "--reason", "killed", code=1)
    assert "requested by admin" in run("producers", "write-off", epoch, "--reason", "killed", "--force")
    assert "approved by second" in run("producers", "approve", epoch, "--yes", "--force", "--key-file", str(key_file))
    market.fold_until(lambda: epoch not in {e.epoch for e in epochs(market.clickhouse)}, "ended")


def test_the_alert_of_forged_records_is_over_when_two_people_decided_on_the_last_one(market: Market, second: str) -> None:
    rounds = ForgedAlerts(market.clickhouse, market.reader, market.codec, market.writer)
    frame = market.codec.encode_dict("LogCreated", {**_OF_NOBODY, "log_id": "l", "partitioner": "p", "partitions": {}})
    headers = {"ce_type": b"LogCreated"}
    first, later = (market.writer.append("schemas", b"k", frame, headers).result(10) for _ in range(2))

    def alert_ids() -> list[str]:
        rows = market.clickhouse.rows("SELECT event_id FROM alerts WHERE rule = 'forged_record' AND subject = 'schemas/0'")
        return [str(r["event_id"]) for r in rows]

    # A worker that is killed here has told the log, and its table has no row of the records yet.
    forged = [DeadLetter(r, "not_signed", "nobody signed it") for r in market.reader.read("schemas") if r.coordinate in (first, later)]
    DeadLetterPublisher(market.writer, market.codec, "projections").publish(forged)
    market.fold("alerts", "dead-letters")
    (raised,) = alert_ids()
    assert rounds.resolve() == 0, "nothing is open, since no table has met the records"
    market.fold()
    assert alert_ids() == [raised]
    give_up(market, second, first, frame)
    market.fold_until(lambda: first not in {d.at for d in find_dead_letters(market.clickhouse)}, "the first is decided")
    assert rounds.resolve() == 0, "the other one is open"
    assert post(market, f"/v1/write-offs/records/{later}", {"sha256": _hex(frame), "reason": "nobody of ours wrote it"}).status_code == 201
    market.fold_until(lambda: "requested" in {d.state for d in find_dead_letters(market.clickhouse, record=str(later))}, "it is asked for")
    assert rounds.resolve() == 0, "one person does not decide"
    assert post(market, f"/v1/write-offs/records/{later}/approve", {"sha256": _hex(frame)}, second).status_code == 200
    market.fold_until(lambda: later not in {d.at for d in find_dead_letters(market.clickhouse)}, "the other one is decided")

    stray = market.writer.append("dead-letters", b"k", b"rubbish", {}).result(10)
    assert rounds.resolve() == 0, f"{stray} has no row yet, and might be of one more"
    assert alert_ids() == [raised]
    market.fold()
    assert (rounds.resolve(), rounds.resolve()) == (1, 1)
    market.fold()
    assert (alert_ids(), rounds.resolve()) == ([], 0)
    over = market.clickhouse.rows("SELECT kind FROM history WHERE topic = 'alerts' AND fact = 'AlertResolved' AND key = 'schemas/0'")
    assert [r["kind"] for r in over] == ["observed"], "the second is a copy"

    again = market.writer.append("schemas", b"k", frame, headers).result(10)
    market.fold_until(alert_ids, "one more forged record is another alert")
    assert alert_ids() != [raised] and rounds.resolve() == 0
    give_up(market, second, again, frame)
    market.fold_until(rounds.resolve, "which is over, too")


def test_thousands_of_records_are_written_off_with_one_request_and_one_approval(
    market: Market, second: str, run: Run, tmp_path: Path
) -> None:
    tenant = tenant_of(market, 0)
    market.append(tenant, [market.settled(tenant)])
    before = len(unreadable_below(market.clickhouse, tenant, 1 << 40).excluded)
    garbage = [market.writer.append("usage", tenant.encode(), f"garbage {n}".encode(), {}) for n in range(1201)]
    coordinates = {future.result(30) for future in garbage}
    market.append(tenant, [market.settled(tenant)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    elsewhere = put(market, tenant_of(market, 0), b"of another tenant")
    waits(market, tenant, 1, "dead_letters")
    market.fold_until(lambda: elsewhere in {d.at for d in all_dead_letters(market.clickhouse)}, "all are listed")
    chosen = ("--where", "topic=usage", "--where", f"tenant={tenant}", "--where", "code=not_framed")

    first = min(at.offset for at in coordinates)
    tried = run("dead-letters", "retry", *chosen, "--where", f"to_offset={first + 1}", code=1)
    assert [line.split()[:2] for line in tried.splitlines()] == [[f"usage/0/{first + n}", "unreadable:"] for n in range(2)]
    asked = run("dead-letters", "write-off", *chosen, "--reason", "a broken exporter")
    assert "requested by admin: 1201 records of usage" in asked
    record_set = re.search("approve ([0-9a-f]{64})", asked)
    assert record_set
    assert "already_requested" in run("dead-letters", "write-off", *chosen, "--reason", "once more", code=1)
    late = put(market, tenant, b"garbage that nobody has seen yet")
    market.fold_until(lambda: late in {d.at for d in all_dead_letters(market.clickhouse)}, "one more")
    waits(market, tenant, 1, "dead_letters")
    assert "same_person" in run("dead-letters", "approve", record_set[1], "--yes", code=1)
    key_file = tmp_path / "second.key"
    key_file.write_text(second)
    assert "written off: 1201 records" in run("dead-letters", "approve", record_set[1], "--yes", "--key-file", str(key_file))
    assert "already_written_off" in run("dead-letters", "approve", record_set[1], "--yes", "--key-file", str(key_file), code=1)

    bill = issued(market, tenant, 1)
    assert (bill["facts"]["claimed"], bill["records_written_off"], bill["total_micros"]) == (2, before + 1201, 2_000_000)
    assert claimed(market, tenant) == {1: (2, 0, before + 1201)}
    market.recompute_as_a_stranger(tenant, 1)
    states = {d.at: d.state for d in all_dead_letters(market.clickhouse, states=STATES)}
    assert {states[at] for at in coordinates} == {"written_off"}
    assert (states[late], states[elsewhere]) == ("open", "open"), "what came later, or is not in the list, is not written off"
    for at, value in ((late, b"garbage that nobody has seen yet"), (elsewhere, b"of another tenant")):
        give_up(market, second, at, value)
    market.fold_until(lambda: not {late, elsewhere} & {d.at for d in all_dead_letters(market.clickhouse)}, "these, too, are written off")
    assert "nothing was requested" in run("dead-letters", "write-off", *chosen, "--reason", "none is left", code=1)
