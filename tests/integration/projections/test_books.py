"""Bills, catalog and queries on a real log, compared with what was written: the figures never depend on copies, order or restarts."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from access.bearer import first_admin_digest
from access.codes import KEY_MALFORMED, KEY_MISSING, KEY_UNKNOWN, Refusal
from events.facts.meters import METERS, READINGS
from events.process.clock import now_us
from projections.bills.from_tables import statements_from_table
from projections.bills.from_tables.decided_in_tables import usage_partition
from projections.bills.running import RunningBills
from projections.bills.verify import running_bill, verify
from projections.catalog.queries import Catalog, Wanted
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.table_offsets import dense_end
from projections.query_api.app import make_app
from projections.query_api.bills import bill_of, whole_bill_of
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.request_context import Queries
from tests.support.market import MODEL, Market, key_of, month, running_market
from tests.support.openapi.cases import findings
from tests.support.polling import WITHIN_S, eventually

PRICED = {("*", "calls"): (1_000_003, 7), ("*", "bytes_in"): (3, 1000)} | {
    ("*", meter): (0, 1) for meter in METERS if READINGS[meter].measured and meter not in ("calls", "bytes_in")
}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with running_market(tmp_path_factory.mktemp("books")) as market:
        yield market


def half_up(quantity: int, amount: int, per: int) -> int:
    """The oracle's own arithmetic."""
    return int((quantity * amount * 2 + per) // (per * 2))


def calls(bill: dict[str, Any]) -> int:
    return sum(line["quantity"] for line in bill["lines"] if line["meter"] == "calls")


def difference(market: Market, tenant: str) -> int:
    compared = verify(market.reader, market.codec, running_bill(market.clickhouse, tenant, month()), tenant, month())
    assert compared, "nothing to compare"
    assert all(c.agrees for c in compared), [(c.wrong, [line for line in c.lines if not line.agrees]) for c in compared]
    return sum(abs(c.difference_micros) for c in compared)


def query(market: Market, key: str, path: str, **params: Any) -> httpx.Response:
    """Asks until the key is known there: a key travels as a fact."""
    end = time.monotonic() + WITHIN_S
    while True:
        answer = httpx.get(market.settings.queries + path, params=params, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        if answer.status_code not in (401, 503) or time.monotonic() > end:
            return answer
        time.sleep(0.1)


def run_bill(market: Market, tenant: str) -> dict[str, Any]:
    """The running bill as the biller would store it now."""
    running = RunningBills(market.clickhouse_of_biller)
    partition = usage_partition(tenant)
    bill = running.compute(tenant, dense_end(market.clickhouse, "usage", partition), now_us())
    running.store([bill], now_us())
    return {
        "total_micros": bill.total_micros,
        "facts": dict(bill.facts),
        "lines": [{**li.key._asdict(), "quantity": li.quantity} for li in bill.lines],
    }


# --- live = replay


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 11))])
def test_the_bill_is_that_of_a_full_replay_under_copies_interleavings_and_restarts(
    market: Market, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    book = market.prices(PRICED)
    tenant, _ = market.tenant(book)
    other, _ = market.tenant(book)
    once: list[bytes] = []
    expected = 0
    for i in range(120):
        kind = chance.choice(["plain", "plain", "plain", "retry", "failed", "shadow", "voided", "bodies"])
        match kind:
            case "plain":
                once.append(market.settled(tenant))
                expected += 1
            case "retry":
                once += [market.settled(tenant, invocation_key=key_of(f"{seed}/{i}"), attempt=n) for n in (1, 2, 3)]
                expected += 1
            case "failed":
                once.append(market.settled(tenant, outcome="failed", status=500, invocation_key=key_of(f"{seed}/{i}")))
            case "shadow":
                once.append(market.settled(tenant, shadow=True))
            case "voided":
                event_id = str(uuid.uuid4())
                once += [market.settled(tenant, event_id=event_id), market.voided(tenant, event_id)]
            case _:
                once += [market.settled(tenant, invocation_key=key_of(f"{seed}/{i}/{n}")) for n in range(5)]
                expected += 5
    # Everything ten times, copies anywhere after their first; another tenant's calls in between; restarts while it is folded.
    pieces = [once[i : i + 30] for i in range(0, len(once), 30)]
    written: list[bytes] = []
    for piece in pieces:
        written += piece
        market.append(tenant, piece)
        copies = [chance.choice(written) for _ in range(9 * len(piece))]
        market.append(tenant, copies[: len(copies) // 2])
        market.append(other, [market.settled(other)])
        market.append(tenant, copies[len(copies) // 2 :])
        market.fold(chance=chance)
        if chance.random() < 0.6:
            market.restart()
    market.fold()
    bill = run_bill(market, tenant)
    assert calls(bill) == expected
    assert bill["facts"]["claimed"] == expected
    assert bill["facts"]["copied"] == 9 * len(once)
    assert bill["facts"]["missing"] == 0
    assert bill["total_micros"] == half_up(expected, 1_000_003, 7) + half_up(expected * 100, 3, 1000)
    assert difference(market, tenant) == 0
    run_bill(market, other)
    assert difference(market, other) == 0
    # However many copies, voids and repeated keys are given to the engine with its questions, and how many it looks for itself.
    for few in (0, 30):
        monkeypatch.setattr(statements_from_table, "EXCEPTIONS_MAX", few)
        assert run_bill(market, tenant) == bill
    stored = market.clickhouse.rows("SELECT kafka_partition AS p, count() AS n, uniqExact(kafka_offset) AS u FROM usage FINAL GROUP BY p")
    ends = market.reader.end_offsets("usage")
    assert {r["p"]: (r["n"], r["u"]) for r in stored} == {p: (end, end) for (_, p), end in ends.items() if end}


def test_issued_bills_add_up_and_late_usage_falls_into_the_next_one(market: Market) -> None:
    book = market.prices(PRICED)
    tenant, key = market.tenant(book)
    before_the_cut = now_us()
    market.append(tenant, [market.settled(tenant) for _ in range(7)])
    first = market.issue(tenant, month())
    assert (first["number"], calls(first), first["facts"]["claimed"]) == (1, 7, 7)
    assert first["total_micros"] == half_up(7, 1_000_003, 7) + half_up(700, 3, 1000)
    assert first["producers_open"] == 1

    # It happened before the first cut and comes after it.
    late = [market.settled(tenant, occurred_at=before_the_cut) for _ in range(4)]
    market.append(tenant, [*late, *late])
    second = market.issue(tenant, month())
    assert (second["number"], calls(second), second["facts"]["claimed"], second["facts"]["copied"]) == (2, 4, 4, 4)
    assert first["total_micros"] + second["total_micros"] == half_up(11, 1_000_003, 7) + half_up(1100, 3, 1000)

    third = market.issue(tenant, month())
    assert (third["lines"], third["total_micros"], third["facts"]["claimed"]) == ([], 0, 0)
    run_bill(market, tenant)
    assert difference(market, tenant) == 0
    market.recompute_as_a_stranger(tenant, 1)
    market.recompute_as_a_stranger(tenant, 2)

    answer = query(market, key, f"/v1/bills/{month()}").json()
    listed = [(b["status"], b["number"]) for b in answer["bills"]]
    assert listed == [("issued", 1), ("issued", 2), ("issued", 3), ("running", 4)]
    assert answer["total_micros"] == first["total_micros"] + second["total_micros"]
    assert answer["bills"][0]["digest"] == first["digest"].hex()


def test_usage_daily_metering_and_bills_count_the_same_executions_and_days(market: Market) -> None:
    zone = ZoneInfo("Pacific/Kiritimati")  # the day begins 14 hours before UTC's
    book = market.prices(PRICED)
    tenant, key = market.tenant(book, timezone=str(zone))
    lost = str(uuid.uuid4())
    frames = [market.settled(tenant) for _ in range(3)]
    frames += [
        market.settled(tenant, shadow=True),
        market.settled(tenant, outcome="failed", status=500),
        market.settled(tenant, event_id=lost),
    ]
    market.append(tenant, [*frames, frames[0], market.voided(tenant, lost)])
    today = datetime.now(UTC).astimezone(zone)
    bill = market.issue(tenant, today.strftime("%Y-%m"))
    assert (calls(bill), bill["facts"]["claimed"], bill["facts"]["voided"], bill["facts"]["copied"]) == (3, 3, 1, 1)
    rows = query(market, key, "/v1/usage", group_by="day").json()["rows"]
    assert [(r["day"], r["calls"], r["succeeded"], r["voided"], r["shadows"]) for r in rows] == [(f"{today:%Y-%m-%d}", 3, 3, 1, 1)]
    daily = market.clickhouse.rows("SELECT * FROM metering_daily WHERE tenant = {t:String}", {"t": tenant})
    counted = [(r["day"], r["calls"], r["succeeded"], r["failed"], r["voided_calls"], r["shadow_calls"], r["bytes_in"]) for r in daily]
    assert counted == [(f"{today:%Y-%m-%d}", 3, 3, 1, 1, 1, 300)]


def test_a_call_voided_after_its_bill_is_given_back_on_the_next(market: Market) -> None:
    tenant, _ = market.tenant(market.prices(PRICED))
    event_id = str(uuid.uuid4())
    market.append(tenant, [market.settled(tenant, event_id=event_id), market.settled(tenant)])
    first = market.issue(tenant, month())
    market.append(tenant, [market.voided(tenant, event_id)])
    second = market.issue(tenant, month())
    assert (calls(first), calls(second)) == (2, -1)
    assert first["total_micros"] + second["total_micros"] == half_up(1, 1_000_003, 7) + half_up(100, 3, 1000)
    assert difference(market, tenant) == 0
    market.recompute_as_a_stranger(tenant, 2)


def test_usage_without_a_price_is_held_and_shown_and_charged_once_there_is_one(market: Market) -> None:
    book = market.prices({("*", "bytes_in"): (3, 1000)})
    tenant, _ = market.tenant(book)
    market.append(tenant, [market.settled(tenant) for _ in range(3)])
    bill = market.issue(tenant, month())
    held = {line["meter"]: line for line in bill["lines"] if line["held"]}
    assert set(held) == {"calls", "bytes_out", "cpu_us"}
    assert (held["calls"]["quantity"], held["calls"]["amount_micros"], held["calls"]["book_version"]) == (3, 0, 1)
    assert bill["total_micros"] == half_up(300, 3, 1000)

    market.prices(PRICED, book)
    market.append(tenant, [market.settled(tenant)])
    then = market.issue(tenant, month())
    priced = {line["meter"]: line["amount_micros"] for line in then["lines"] if not line["held"]}
    assert priced["calls"] == half_up(1, 1_000_003, 7)
    assert not [line for line in then["lines"] if line["held"]]
    assert difference(market, tenant) == 0
    market.recompute_as_a_stranger(tenant, then["number"])


def test_a_bill_of_more_lines_than_a_record_holds_is_issued_shown_and_verified(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 512 KiB of lines (K3), and more than one page of them."""
    tenant, key = market.tenant(market.prices(PRICED))
    versions = 2400
    market.append(
        tenant, [market.settled(tenant, model_version=f"1.{i}.0", model=f"model-vision-acme-{'x' * 100}") for i in range(versions)]
    )
    bill = market.issue(tenant, month())
    parts = [
        body["lines"] for name, body in (market.codec.decode(r.value) for r in market.reader.read("bills")) if name == "BillLinesListed"
    ]
    count = sum(len(part) for part in parts) + len(bill["lines"])
    assert (bill["lines_before"], count) == (sum(len(part) for part in parts), versions * 4)
    assert len(parts) >= 2
    (compared,) = [
        c
        for c in verify(market.reader, market.codec, running_bill(market.clickhouse, tenant, month()), tenant, month())
        if c.status == "issued"
    ]
    assert (compared.agrees, compared.difference_micros, len(compared.lines)) == (True, 0, count), compared.wrong
    assert market.clickhouse.value("SELECT count() FROM bill_lines WHERE tenant = {t:String} AND status = 'issued'", {"t": tenant}) == count

    whole = query(market, key, f"/v1/bills/{month()}").json()
    assert (whole["lines_total"], whole["next_lines_from"], len(whole["bills"][0]["lines"])) == (count, None, count)
    rest = query(market, key, f"/v1/bills/{month()}", lines_from=count - 3).json()
    assert rest["bills"][0]["lines"] == whole["bills"][0]["lines"][-3:]
    monkeypatch.setattr("projections.query_api.bills.LINES_MAX", 1000)
    assert bill_of(market.clickhouse, tenant, month())["next_lines_from"] == 1000
    assert whole_bill_of(market.clickhouse, tenant, month())["bills"][0]["lines"] == whole["bills"][0]["lines"]


def test_no_bill_is_issued_over_a_dead_letter(market: Market) -> None:
    tenant, _ = market.tenant(market.prices(PRICED), held=True)
    market.append(tenant, [market.settled(tenant), b"garbage", market.settled(tenant)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    biller = market.biller()

    def refused() -> bool:
        biller.issue()
        return biller.waiting.get(f"{tenant}#1") == "dead_letters"

    market.fold_until(refused, "the biller says why")
    # The figures go on meanwhile, and the other partitions' tenants are billed.
    assert calls(run_bill(market, tenant)) == 2
    assert difference(market, tenant) == 0


# --- the catalog


def compliance() -> dict[str, Any]:
    return {"licence": "MIT", "data_sources": ["public"], "data_level": "public"}


def test_the_catalog_is_what_it_was_at_any_instant(market: Market) -> None:
    name = f"n{uuid.uuid4().hex[:10]}"
    model = f"model-vision-acme-{name}"
    tenant, key = market.tenant("standard", ("models", "read"))
    before = now_us()
    body = {"domain": "vision", "team": "acme", "name": name, "scenario": "mail", "task": "classification", "compliance": compliance()}
    market.command("POST", "/v1/models", {**body, "tags": ["digits"], "tenant": tenant})
    catalog = Catalog(market.clickhouse)
    market.fold_until(lambda: catalog.model(model) is not None, "registered")
    registered = now_us()
    market.command("POST", f"/v1/models/{model}/retire", {"reason": "the end", "successor": ""})
    market.fold_until(lambda: (catalog.model(model) or {})["status"] == "retired", "retired")
    assert catalog.model(model, before) is None
    then = catalog.model(model, registered)
    assert then is not None
    assert (then["status"], then["retired"]) == ("not_deployed", None)

    for at, status in ((registered, "not_deployed"), (now_us(), "retired")):
        stamp = datetime.fromtimestamp(at / 1e6, UTC).isoformat()
        for as_of in (str(at), stamp):
            assert query(market, key, f"/v1/catalog/{model}", as_of=as_of).json()["status"] == status
    assert query(market, key, f"/v1/catalog/{model}", as_of=str(before)).status_code == 404
    history = query(market, key, f"/v1/catalog/{model}/history").json()["facts"]
    assert [f["fact"] for f in history] == ["ModelRetired", "ModelRegistered"]


def test_the_catalog_is_searched_filtered_and_paged(market: Market) -> None:
    team = f"x{uuid.uuid4().hex[:8]}"
    tenant, _ = market.tenant("standard")
    for i in range(5):
        body = {"domain": "vision" if i % 2 else "text", "team": team, "name": f"m{i}", "scenario": "mail", "task": "classification"}
        market.command(
            "POST",
            "/v1/models",
            {**body, "compliance": compliance(), "tags": [f"tag{i}"], "tenant": tenant, "description": f"Reads Letter {i}"},
        )
    catalog = Catalog(market.clickhouse)
    market.fold_until(lambda: len(catalog.page(Wanted(tenant=tenant))[0]) == 5, "all five")

    def names(**wanted: Any) -> list[str]:
        return [m["name"] for m in catalog.page(Wanted(tenant=tenant, **wanted))[0]]

    assert names(domain="vision") == ["m1", "m3"]
    assert names(text="letter 3") == ["m3"]
    assert names(text="%") == []
    assert names(tag="tag4") == ["m4"]
    assert names(task="nothing") == []
    first, after = catalog.page(Wanted(tenant=tenant, limit=3))
    second, end = catalog.page(Wanted(tenant=tenant, limit=3, after=after))
    # Names begin with the domain: text before vision.
    assert [m["name"] for m in first + second] == ["m0", "m2", "m4", "m1", "m3"]
    assert end == ""


def test_a_foreign_record_on_a_decided_topic_is_a_dead_letter_and_the_catalog_goes_on(market: Market) -> None:
    market.writer.append("models", b"stray", b"hello", {}).result(10)
    market.writer.append("models", b"stray", None, {}).result(10)
    tenant, _ = market.tenant("standard")
    name = f"n{uuid.uuid4().hex[:10]}"
    body = {"domain": "vision", "team": "acme", "name": name, "scenario": "mail", "task": "classification", "compliance": compliance()}
    market.command("POST", "/v1/models", {**body, "tenant": tenant})
    market.fold_until(lambda: Catalog(market.clickhouse).model(f"model-vision-acme-{name}") is not None, "registered")
    dead = market.clickhouse.value("SELECT count() FROM history_rows FINAL WHERE topic = 'models' AND kind = 'dead'")
    assert dead == 2
    dead_letters = [market.codec.decode(r.value)[1] for r in market.reader.read("dead-letters")]
    assert {(d["topic"], d["code"]) for d in dead_letters} >= {("models", "not_framed"), ("models", "no_value")}
    ends = market.reader.end_offsets("models")
    for (_, partition), end in ends.items():
        assert (
            dense_end(market.clickhouse, "history_rows", partition, where="topic = 'models' AND kafka_partition = {partition:Int32}") == end
        )


def test_restarted_folds_continue_from_their_tables(market: Market) -> None:
    tenant, _ = market.tenant("standard")
    for i in range(3):
        key = market.command("POST", f"/v1/tenants/{tenant}/keys", {"scopes": ["read"]})
        if i % 2:
            market.fold(chance=random.Random(i))
        market.restart()
        assert key["api_key"]
    market.fold_until(
        lambda: market.clickhouse.value("SELECT count() FROM api_keys WHERE tenant = {t:String}", {"t": tenant}) == 4, "four keys"
    )
    kinds = market.clickhouse.rows("SELECT kind, count() AS n FROM history_rows FINAL WHERE topic = 'accounts' GROUP BY kind")
    assert {r["kind"] for r in kinds} <= {"decided", "store"}


class Killed(BaseException):
    """As by kill -9: nothing runs after it."""


def test_a_worker_killed_between_the_inserts_of_one_chunk_leaves_no_gap(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of decided facts that is too large for one insert is several: the first is in the table, the next is not (K6)."""
    tenant, _ = market.tenant("standard")
    market.fold()
    insert_rows, inserted, keys = ClickHouse.insert_rows, list[str](), list[str]()

    def killed_before_the_second(self: ClickHouse, table: str, rows: Any, fence: str, token: str) -> int:
        if token.endswith("/1"):
            raise Killed
        inserted.append(token)
        return insert_rows(self, table, rows, fence, token)

    def killed() -> bool:
        keys.extend(market.command("POST", f"/v1/tenants/{tenant}/keys", {"scopes": ["read"]})["key_id"] for _ in range(3))
        try:
            market.fold("accounts")
        except Killed:
            return True
        return False

    monkeypatch.setattr("projections.catalog.sink.INSERT_BYTES_MAX", 1)
    with monkeypatch.context() as patched:
        patched.setattr(ClickHouse, "insert_rows", killed_before_the_second)
        eventually(killed, "a chunk of several facts is written")
    assert inserted[-1].endswith("/0")
    there = "SELECT key_id FROM api_keys WHERE tenant = {t:String}"
    before = {r["key_id"] for r in market.clickhouse.rows(there, {"t": tenant})}
    assert not set(keys) <= before, "the kill left something to do"
    market.restart()
    market.fold_until(lambda: set(keys) <= {r["key_id"] for r in market.clickhouse.rows(there, {"t": tenant})}, "all keys are shown")
    rows = "SELECT count() AS n, uniqExact(kafka_partition, kafka_offset) AS u FROM history_rows WHERE topic = 'accounts'"
    (stored,) = market.clickhouse.rows(rows)
    written = sum(market.reader.end_offsets("accounts").values())
    assert (stored["n"], stored["u"]) == (written, written), "each record has its row, and none has two"


# --- who may see what


def test_nobody_sees_another_tenants_figures(market: Market) -> None:
    book = market.prices(PRICED)
    ours, our_key = market.tenant(book)
    theirs, their_key = market.tenant(book)
    blind, blind_key = market.tenant(book, ("invoke",))
    market.append(theirs, [market.settled(theirs, provider=ours, user="secret-user") for _ in range(3)])
    market.append(blind, [market.settled(blind, provider=ours)])
    market.fold()
    run_bill(market, theirs)
    foreign = query(market, our_key, "/v1/usage", tenant=theirs)
    nobody = query(market, our_key, "/v1/usage", tenant="no-such-tenant")
    assert foreign.status_code == nobody.status_code == 403
    assert foreign.json() == nobody.json()
    assert foreign.headers["content-type"] == "application/problem+json"
    for path in ("/v1/bills", f"/v1/bills/{month()}", "/v1/usage"):
        assert query(market, blind_key, path).status_code == 403
        assert query(market, our_key, path, tenant=theirs).status_code == 403
        assert theirs not in query(market, our_key, path).text
    assert sum(r["executions"] for r in query(market, their_key, "/v1/usage").json()["rows"]) == 3
    assert sum(r["executions"] for r in query(market, our_key, "/v1/usage").json()["rows"]) == 0

    owned = query(market, our_key, "/v1/usage", view="owner")
    assert sum(r["executions"] for r in owned.json()["rows"]) == 4
    assert theirs not in owned.text and "secret-user" not in owned.text
    for dimension in ("tenant", "user", "key_id", "department", "labels", "1; DROP TABLE usage"):
        refused = query(market, our_key, "/v1/usage", view="owner", group_by=dimension)
        assert (refused.status_code, refused.json()["field"]) == (422, "group_by")
    admin = query(market, market.admin, "/v1/usage", group_by="tenant", tenant=theirs).json()["rows"]
    assert [(r["tenant"], r["executions"], r["bytes_in"]) for r in admin] == [(theirs, 3, 300)]


@pytest.mark.parametrize(
    ("path", "params", "status", "field"),
    [
        ("/v1/catalog", {"as_of": "yesterday"}, 422, "as_of"),
        ("/v1/catalog", {"as_of": "9" * 39}, 422, "as_of"),
        ("/v1/catalog", {"limit": "201"}, 422, "limit"),
        ("/v1/catalog", {"text": "x" * 201}, 422, "text"),
        ("/v1/catalog", {"text": "' OR 1=1 --\t\n\0\\"}, 200, ""),
        ("/v1/catalog/model-no-such-thing", {}, 404, "model"),
        ("/v1/usage", {"from": "2020-01-01"}, 422, "from"),
        ("/v1/usage", {"to": "0"}, 422, "from"),
        ("/v1/bills/2026-13", {}, 422, "period"),
        ("/v1/bills/2026", {}, 422, "period"),
        ("/v1/nothing", {}, 404, ""),
    ],
)
def test_bad_queries_are_refused_with_the_field_that_is_wrong(
    market: Market, path: str, params: dict[str, str], status: int, field: str
) -> None:
    _, key = market.tenant("standard")
    answer = query(market, key, path, **params)
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] == field
        assert answer.json()["remedy"]


@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        ({}, KEY_MISSING),
        ({"Authorization": "Bearer mm_wrong"}, KEY_UNKNOWN),
        ({"Authorization": "Basic x"}, KEY_MALFORMED),
        ({"Authorization": "Bearer " + "x" * 5000}, KEY_MALFORMED),
    ],
)
def test_without_a_valid_key_every_query_is_refused(market: Market, header: dict[str, str], refusal: Refusal) -> None:
    query(market, market.admin, "/v1/catalog")
    answer = httpx.get(f"{market.settings.queries}/v1/catalog", headers=header, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (401, refusal.code)
    assert answer.headers["www-authenticate"] == refusal.challenge


def test_schemathesis_finds_nothing_in_the_query_api(market: Market) -> None:
    tenant, _ = market.tenant(market.prices(PRICED))
    market.append(tenant, [market.settled(tenant) for _ in range(3)])
    market.issue(tenant, month())
    accounts = KeysFromLog(first_admin_digest(market.admin))
    api = make_app(Queries(market.clickhouse, accounts, lambda: 0.0, lambda: True, 60))
    known = {"tenant": tenant, "period": month(), "model": MODEL}
    cases, found = findings(api, market.admin, known, examples=5, seed=1)
    assert not found, "\n\n".join(found)
    assert cases > 200
