"""Usage that nothing proves is held, shown and alarmed; two people count it or dismiss it, and no issued bill changes (K13)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.app import app
from events.facts.meters import METERS, READINGS
from events.facts.topics import TOPICS
from events.log.partitioner import partition_of
from events.log.record import Coordinate
from events.process.clock import now_us
from projections.bills.bill_from_log import bills_from_log
from projections.bills.decided_for_bills import tenant_bills
from projections.bills.issue import cuts_without_bill
from projections.bills.running import RunningBills
from projections.bills.verify import running_bill, verify
from projections.usage.held_records import HeldFilter, HeldRecord, find_held
from tests.support.market import Market, month, running_market
from tests.support.polling import eventually

PRICED = {("*", meter): (1_000_000 if meter == "calls" else 0, 1) for meter in METERS if READINGS[meter].measured}
PAID = 1_000_000
"""Micro-units a call."""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with running_market(tmp_path_factory.mktemp("held")) as market:
        yield market


@pytest.fixture(scope="module")
def second(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with another admin's key."""
    tenant, _ = market.tenant("standard")
    file = tmp_path_factory.mktemp("second") / "key"
    file.write_text(market.command("POST", f"/v1/tenants/{tenant}/keys", {"scopes": ["admin"], "user": "second"})["api_key"])
    return file


@pytest.fixture
def run(market: Market, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`modelmarket …` on this stack; `code` is the exit code it must have."""
    settings = market.settings
    for name, value in (("STACK", settings.stack), ("BASE_PORT", str(settings.base_port)), ("DATA", str(settings.folder))):
        monkeypatch.setenv(f"MODELMARKET_{name}", value)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == code, done.output
        return done.output

    return run


def like(market: Market, frame: bytes, **changes: Any) -> bytes:
    """A record like this one, with another identity."""
    name, body = market.codec.decode(frame)
    return market.codec.encode_dict(name, {**body, "event_id": str(uuid.uuid4()), **changes})


def put(market: Market, tenant: str, frame: bytes, signed_by: str = "") -> Coordinate:
    headers = market.usage.proof(frame, signed_by) if signed_by else {}
    return market.writer.append("usage", tenant.encode(), frame, headers).result(10)


def forge(market: Market, tenant: str) -> dict[str, Coordinate]:
    """Code → where it is. Two calls of the tenant are whole: those before and behind."""
    other, _ = market.tenant("standard")
    first = market.settled(tenant)
    market.append(tenant, [first])
    behind_it = {"sequence": 2, "previous_sha256": sha256(first).digest()}
    forged = {
        "epoch_unknown": put(market, tenant, like(market, first, epoch="nobody-opened-it")),
        "not_signed": put(market, tenant, like(market, first, **behind_it)),
    }
    market.append(tenant, [market.settled(tenant)])
    forged["sequence_taken"] = put(market, tenant, like(market, first, **behind_it), "epoch-1")
    foreign = market.settled(tenant, key_id=market.key_ids[other])
    forged["key_unknown"] = put(market, tenant, foreign, "epoch-1")
    market.fold()
    return forged


def held_of(market: Market, tenant: str, *, everything: bool = False) -> dict[str, HeldRecord]:
    return {r.code: r for r in find_held(market.clickhouse, HeldFilter(tenant, everything=everything))}


def decide(market: Market, run: Run, second: Path, decision: str, *where: str) -> None:
    """By two admins; then it is in the tables."""
    chosen = [word for term in where for word in ("--where", term)]
    asked = run("usage", decision, *chosen, "--reason", "the gateway's own journal has the calls")
    record_set = re.search("usage approve ([0-9a-f]{64})", asked)
    assert record_set, asked
    assert "already_requested" in run("usage", decision, *chosen, "--reason", "again", code=1)
    assert "same_person" in run("usage", "approve", record_set[1], "--yes", code=1)
    assert f"modelmarket usage approve {record_set[1]}" in run("dead-letters", "approve", record_set[1], "--yes", code=1)
    done = run("usage", "approve", record_set[1], "--yes", "--key-file", str(second))
    assert "requested by admin, approved by second" in done, done
    noted = "SELECT count() FROM usage_decided_rows WHERE record_set = {record_set:String}"
    market.fold_until(lambda: market.clickhouse.value(noted, {"record_set": record_set[1]}), "the decision is in the tables")


def bills_agree(market: Market, tenant: str, numbers: list[int]) -> None:
    """Every issued bill of the tenant is what the log alone says, in all ways of computing it."""
    compared = verify(market.reader, market.codec, None, tenant, month())
    assert [c.number for c in compared] == numbers
    assert all(c.agrees and c.difference_micros == 0 for c in compared), [(c.number, c.wrong) for c in compared]
    computed = bills_from_log(market.reader, market.codec, tenant_bills(market.reader, market.codec, tenant), numbers)
    digests = {b["number"]: bytes(b["digest"]) for b in bodies(market, "bills", "BillIssued") if b["tenant"] == tenant}
    assert {bill.cut["number"]: bill.digest() for bill in computed} == digests
    for number in numbers:
        market.recompute_as_a_stranger(tenant, number)


def bodies(market: Market, topic: str, *names: str) -> list[dict[str, Any]]:
    facts = (market.codec.decode(record.value) for record in market.reader.read(topic))
    return [{**body, "fact": name} for name, body in facts if name in names]


def alert_state(market: Market) -> str:
    known = [a for a in bodies(market, "alerts", "AlertRaised", "AlertResolved") if a["rule"] == "usage.held"]
    return known[-1]["fact"] if known else ""


def test_held_usage_is_shown_and_alarmed_and_two_people_count_it_or_dismiss_it(market: Market, second: Path, run: Run) -> None:
    tenant, key = market.tenant(market.prices(PRICED))
    stranger, foreign_key = market.tenant("standard")
    biller = market.biller()
    biller.verify()
    assert alert_state(market) == ""
    forged = forge(market, tenant)
    assert {code: r.at for code, r in held_of(market, tenant).items()} == forged
    biller.verify()
    eventually(lambda: alert_state(market) == "AlertRaised", "the alert is raised")
    bill = market.issue(tenant, month())
    assert (bill["facts"]["claimed"], bill["facts"]["held"], bill["total_micros"]) == (2, 4, 2 * PAID)
    bills_agree(market, tenant, [1])

    def ask(api_key: str, **params: Any) -> httpx.Response:
        url, headers = f"{market.settings.queries}/v1/usage/held", {"Authorization": f"Bearer {api_key}"}
        return httpx.get(url, params=params, headers=headers, timeout=30)

    page = ask(key, limit=3).json()
    rest = ask(key, limit=3, after=page["next"]).json()
    assert ({r["record"] for r in page["held"] + rest["held"]}, rest["next"]) == ({str(at) for at in forged.values()}, "")
    assert {(r["tenant"], r["state"]) for r in page["held"]} == {(tenant, "held")}
    assert [r["record"] for r in ask(market.admin, tenant=tenant, code="not_signed").json()["held"]] == [str(forged["not_signed"])]
    assert ask(foreign_key).json()["held"] == []
    assert ask(foreign_key, tenant=tenant).status_code == 403
    assert ask(key, code="unknown").status_code == 422
    listed = run("usage", "held", "--tenant", tenant)
    assert all(str(at) in listed and code in listed for code, at in forged.items())
    assert run("usage", "held", "--tenant", stranger).strip() == "no usage is held"

    decide(market, run, second, "count", f"tenant={tenant}", "code=epoch_unknown")
    assert held_of(market, tenant).keys() == forged.keys() - {"epoch_unknown"}
    running = RunningBills(market.clickhouse)
    now = running.compute(tenant, forged["key_unknown"].offset + 1, now_us())
    running.store([now], now_us())
    assert (now.total_micros, now.facts["held"]) == (PAID, 3)
    compared = verify(market.reader, market.codec, running_bill(market.clickhouse, tenant, month()), tenant, month())
    assert [(c.status, c.agrees, c.recomputed_micros) for c in compared] == [("issued", True, 2 * PAID), ("running", True, PAID)]
    bill = market.issue(tenant, month())
    assert (bill["facts"]["claimed"], bill["facts"]["held"], bill["total_micros"]) == (1, 3, PAID)
    biller.verify()
    assert alert_state(market) == "AlertRaised", "nobody decided on three of them"

    decide(market, run, second, "dismiss", f"tenant={tenant}")
    biller.verify()
    eventually(lambda: alert_state(market) == "AlertResolved", "the alert is resolved")
    assert held_of(market, tenant) == {}
    states = {code: r.state for code, r in held_of(market, tenant, everything=True).items()}
    assert states == dict.fromkeys(forged, "dismissed") | {"epoch_unknown": "counted"}
    assert "nothing was requested" in run("usage", "count", "--where", f"tenant={tenant}", "--reason", "r", code=1)
    metered = "SELECT sum(succeeded) FROM metering_daily WHERE tenant = {tenant:String}"
    assert int(market.clickhouse.value(metered, {"tenant": tenant})) == 3

    market.append(tenant, [market.settled(tenant)])
    bill = market.issue(tenant, month())
    assert (bill["facts"]["claimed"], bill["facts"]["held"], bill["total_micros"]) == (1, 3, PAID)
    bills_agree(market, tenant, [1, 2, 3])


def test_usage_in_another_partition_than_its_tenants_cannot_be_counted(market: Market, second: Path, run: Run) -> None:
    """No bill of the tenant looks there, so it would be counted and paid by nobody."""
    tenant, _ = market.tenant("standard")
    first, partitions = market.settled(tenant), TOPICS["usage"].partitions
    market.append(tenant, [first])
    frame = like(market, first, sequence=2, previous_sha256=sha256(first).digest())
    elsewhere = next(k for k in map(str, range(100)) if partition_of(k.encode(), partitions) != partition_of(tenant.encode(), partitions))
    at = market.writer.append("usage", elsewhere.encode(), frame, market.usage.proof(frame, "epoch-1")).result(10)
    market.fold()
    assert {code: r.at for code, r in held_of(market, tenant).items()} == {"wrong_key": at}
    refused = run("usage", "count", "--where", f"tenant={tenant}", "--reason", "it was called", code=1)
    assert "not_billable" in refused and str(at) in refused and "usage dismiss" in refused
    assert held_of(market, tenant)["wrong_key"].state == "held"
    decide(market, run, second, "dismiss", f"tenant={tenant}")
    assert held_of(market, tenant, everything=True)["wrong_key"].state == "dismissed"


def test_a_decision_that_comes_after_a_cut_is_not_in_its_bill_and_is_of_the_very_records_it_names(
    market: Market, second: Path, run: Run
) -> None:
    tenant, _ = market.tenant(market.prices(PRICED))
    forged = forge(market, tenant)
    taken = held_of(market, tenant)["sequence_taken"]
    again = market.reader.record_at("usage", taken.at.partition, taken.at.offset)
    copy = market.writer.append("usage", tenant.encode(), again.value, again.headers).result(10)
    market.fold()
    assert copy in {r.at for r in find_held(market.clickhouse, HeldFilter(tenant))}
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    decide(market, run, second, "count", f"tenant={tenant}", "code=sequence_taken", f"to_offset={taken.at.offset}")

    biller = market.biller()

    def issued() -> bool:
        biller.issue()
        return bool([b for b in bodies(market, "bills", "BillIssued") if b["tenant"] == tenant])

    market.fold_until(lambda: (tenant, 1) in cuts_without_bill(market.clickhouse), "the cut is in the history")
    market.fold_until(issued, f"bill 1: {biller.waiting}")
    (first,) = (b for b in bodies(market, "bills", "BillIssued") if b["tenant"] == tenant)
    assert (first["facts"]["claimed"], first["facts"]["held"], first["total_micros"]) == (2, 5, 2 * PAID)
    bill = market.issue(tenant, month())
    assert (bill["facts"]["claimed"], bill["facts"]["held"], bill["total_micros"]) == (1, 4, PAID)
    assert copy in {r.at for r in find_held(market.clickhouse, HeldFilter(tenant))}, "a copy of what was counted is held as it was"
    bills_agree(market, tenant, [1, 2])
    decide(market, run, second, "count", f"tenant={tenant}")
    bill = market.issue(tenant, month())
    assert (bill["facts"]["claimed"], bill["facts"]["held"], bill["facts"]["copied"], bill["total_micros"]) == (3, 0, 1, 3 * PAID)
    bills_agree(market, tenant, [1, 2, 3])
    assert len(forged) == 4
