"""One round of bills: the log is read once for all of them, what is wrong with one is that one's alone, and two billers issue one bill (K21)."""

from __future__ import annotations

import errno
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from events.facts.meters import METERS, READINGS
from events.facts.topics import TOPICS
from events.log.client import LogUnavailable, Reader
from events.log.partitioner import partition_of
from events.log.record import Record
from projections.bills.from_tables.bill_from_tables import TableRound
from projections.bills.issue import Deferred, Issued, Outcome, cuts_without_bill
from projections.bills.usage_spool import UsageEntry, UsageSpool
from projections.bills.verify import verify
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from rating.bill import Bill
from tests.support.market import HELD, Market, month, running_market

PARTITIONS = TOPICS["usage"].partitions
PRICED = {("*", meter): (1_000_000 if meter == "calls" else 0, 1) for meter in METERS if READINGS[meter].measured}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with running_market(tmp_path_factory.mktemp("rounds")) as market:
        yield market


def with_open_cuts(market: Market, count: int, calls: int = 3) -> list[str]:
    """New tenants with so many calls each, in all partitions in turn, each with a cut that the tables have; no heartbeat is awaited."""
    book, tenants = market.prices(PRICED), list[str]()
    while len(tenants) < count:
        tenant, _ = market.tenant(book)
        tenants.append(tenant)
        market.append(tenant, [market.settled(tenant) for _ in range(calls)])
    for tenant in tenants:
        market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    market.fold_until(lambda: {(t, 1) for t in tenants} <= set(cuts_without_bill(market.clickhouse)), "the cuts")
    waits_for_nothing(market, tenants)
    return tenants


def waits_for_nothing(market: Market, tenants: list[str]) -> None:
    """The newest heartbeat names what was decided; nothing is posted meanwhile."""
    issuer = market.issuer()

    def ready() -> bool:
        found = issuer._ready([(t, 1) for t in tenants], issuer._decided_so_far())  # pyright: ignore[reportPrivateUsage]
        return not any(isinstance(outcome, Deferred) for _, outcome in found)

    market.fold_until(ready, "what was decided is in the tables")


def outcomes(market: Market, tenants: Iterable[str]) -> dict[str, Outcome]:
    return {tenant: outcome for (tenant, _), outcome in market.issuer().issue_all([(t, 1) for t in tenants])}


def billed(market: Market, tenant: str) -> int:
    """Calls that the issued bill claims; recomputed from the log alone it is the same."""
    market.fold_until(lambda: (tenant, 1) not in cuts_without_bill(market.clickhouse), "the bill came through the log")
    (compared,) = verify(market.reader, market.codec, None, tenant, month())
    assert compared.agrees and compared.difference_micros == 0, compared.wrong
    assert compared.billed_micros == compared.facts["claimed"] * 1_000_000
    return compared.facts["claimed"]


def test_a_round_reads_each_topic_once_for_all_its_bills(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = with_open_cuts(market, 9)
    partitions = {partition_of(t.encode(), PARTITIONS) for t in tenants}
    assert len(partitions) > 1 and len(tenants) > 2 * len(partitions)
    reads = Counter[str]()
    read = Reader.read

    def counted(
        self: Reader, topic: str, start: Any = None, end: Mapping[int, int] | None = None, timeout_s: float = 60
    ) -> Iterable[Record]:
        reads[topic] += 1
        return read(self, topic, start, end, timeout_s)

    monkeypatch.setattr(Reader, "read", counted)
    found = outcomes(market, tenants)
    assert all(isinstance(outcome, Issued) for outcome in found.values()), found
    assert reads["usage"] == len(partitions), "one pass for the tenants of each partition"
    assert (reads["bills"], reads["prices"], reads["producers"]) == (1, 1, 1)
    assert reads["accounts"] <= TOPICS["accounts"].partitions
    monkeypatch.undo()
    assert [billed(market, tenant) for tenant in tenants] == [3] * len(tenants)


def test_what_is_wrong_with_one_bill_is_that_ones_alone(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, broken, *others = with_open_cuts(market, 5)
    answered = ClickHouse.rows

    def of_most(self: ClickHouse, sql: str, params: Mapping[str, Any] | None = None, *others: Any, **named: Any) -> Any:
        about = dict(params or {}).get("askers", ())
        if slow in about:
            raise ClickHouseUnavailable("nothing came for 60 s")
        if broken in about and "sum_calls" in sql:
            return [{"s": 0}]
        return answered(self, sql, params, *others, **named)

    monkeypatch.setattr(ClickHouse, "rows", of_most)
    monkeypatch.setattr("projections.bills.biller.ISSUE_S_MAX", 600.0)
    biller = market.biller()
    biller.issue()
    waiting = {name.split("#")[0]: reason for name, reason in biller.waiting.items()}
    assert (waiting[slow], waiting[broken]) == ("no_answer", "not_computable")
    assert not waiting.keys() & set(others) and {f"{slow}#1", f"{broken}#1"} <= biller.alarming.keys()
    assert [billed(market, tenant) for tenant in others] == [3, 3, 3]

    monkeypatch.undo()
    assert {type(outcome) for outcome in outcomes(market, [slow, broken]).values()} == {Issued}
    assert [billed(market, tenant) for tenant in (slow, broken)] == [3, 3]


def test_a_round_asks_the_tables_for_the_tenants_of_a_partition_together(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = with_open_cuts(market, 9)
    asked, rows = list[tuple[str, ...]](), ClickHouse.rows
    fails = tenants[0]

    def noted(self: ClickHouse, sql: str, params: Mapping[str, Any] | None = None, *others: Any, **named: Any) -> Any:
        about = tuple(dict(params or {}).get("askers", ())) if "sum_calls" in sql else ()
        if about:
            asked.append(about)
        if fails in about:
            raise ClickHouseError(241, "memory limit exceeded")
        return rows(self, sql, params, *others, **named)

    monkeypatch.setattr(ClickHouse, "rows", noted)
    issuer = market.issuer()
    found = dict(issuer.issue_all([(t, 1) for t in tenants]))
    assert [t for (t, _), outcome in found.items() if isinstance(outcome, Deferred)] == [fails]
    others = [{t for t in tenants if partition_of(t.encode(), PARTITIONS) == p} for p in range(PARTITIONS)]
    groups = [group for group in others if group and fails not in group]
    assert sorted(map(sorted, (about for about in asked if any(about[0] in group for group in groups)))) == sorted(map(sorted, groups)), (
        "one question for a partition"
    )

    asked.clear()
    fails = "nobody"
    again = [t for t in tenants if partition_of(t.encode(), PARTITIONS) == partition_of(tenants[0].encode(), PARTITIONS)]
    waits_for_nothing(market, again)
    assert {type(outcome) for _, outcome in issuer.issue_all([(t, 1) for t in again])} == {Issued}
    assert {about for about in asked if tenants[0] in about} == {(tenants[0],)}, "one that failed is asked about alone"
    monkeypatch.undo()
    assert [billed(market, tenant) for tenant in tenants] == [3] * len(tenants)


def test_a_bill_that_differs_is_computed_once_more_by_itself(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may have been read again since its group was asked about."""
    tenants = with_open_cuts(market, 3)
    bill = TableRound.bill

    def older(self: TableRound, tenant: str, ended: Any) -> Bill:
        made = bill(self, tenant, ended)
        return replace(made, excluded=(0,)) if len(self._wanted) > 1 else made  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(TableRound, "bill", older)
    assert {type(outcome) for outcome in outcomes(market, tenants).values()} == {Issued}
    assert [billed(market, tenant) for tenant in tenants] == [3] * len(tenants)


def test_where_nobody_gets_an_answer_all_wait_and_no_reason_is_guessed(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = with_open_cuts(market, 2)

    def silent(*_arguments: Any, **_named: Any) -> Any:
        raise ClickHouseUnavailable("connection refused")

    def away_from_now_on(*_arguments: Any) -> Any:
        monkeypatch.setattr(ClickHouse, "value", silent)
        return silent()

    monkeypatch.setattr(TableRound, "bill", away_from_now_on)
    with pytest.raises(ClickHouseUnavailable):
        outcomes(market, tenants)
    monkeypatch.undo()

    def unread(*_arguments: Any, **_named: Any) -> Any:
        raise LogUnavailable("nothing came for 60 s")

    biller = market.biller()
    monkeypatch.setattr("projections.bills.bill_from_log.read_usage", unread)
    with pytest.raises(LogUnavailable):
        biller.issue()
    monkeypatch.undo()
    biller.issue()
    assert not biller.waiting.keys() & {f"{t}#1" for t in tenants}
    assert [billed(market, tenant) for tenant in tenants] == [3, 3]


def test_without_space_for_what_is_read_the_bills_of_that_partition_wait(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = with_open_cuts(market, 5)
    full, *_ = {partition_of(t.encode(), PARTITIONS) for t in tenants}
    add = UsageSpool.add

    def without_space(self: UsageSpool, tenant: str, entry: UsageEntry) -> None:
        if entry.record.partition == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, tenant, entry)

    monkeypatch.setattr(UsageSpool, "add", without_space)
    found = outcomes(market, tenants)
    for tenant, outcome in found.items():
        waits = partition_of(tenant.encode(), PARTITIONS) == full
        assert isinstance(outcome, Deferred if waits else Issued), outcome
        if isinstance(outcome, Deferred):
            assert (outcome.reason, outcome.alarming, "No space" in outcome.message) == ("not_computable", True, True)
    monkeypatch.undo()
    waiting = [tenant for tenant, outcome in found.items() if isinstance(outcome, Deferred)]
    waits_for_nothing(market, waiting)
    assert {type(outcome) for outcome in outcomes(market, waiting).values()} == {Issued}
    assert [billed(market, tenant) for tenant in tenants] == [3] * 5


def test_what_does_not_fit_into_a_round_goes_on_in_the_next(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = with_open_cuts(market, 4)
    monkeypatch.setattr("projections.bills.biller.ISSUE_S_MAX", 0.0)
    biller = market.biller()
    for issued in range(1, 5):
        biller.issue()
        assert biller.issued == issued
    assert [billed(market, tenant) for tenant in tenants] == [3] * 4


def test_a_record_that_the_table_refuses_under_a_strangers_key_holds_nobody_back(market: Market) -> None:
    """It names the tenant, and the table has no row of it: the log must not count it either, nor stumble over it (K9, K26)."""
    tenant, _ = market.tenant(market.prices(PRICED))
    while partition_of(tenant.encode(), PARTITIONS) == HELD:
        tenant, _ = market.tenant(market.prices(PRICED))
    partition = partition_of(tenant.encode(), PARTITIONS)
    market.append(tenant, [market.settled(tenant) for _ in range(3)])
    epoch = str(uuid.uuid4())
    negative = market.settled(tenant, epoch=epoch, bytes_in=-1)
    named = {
        "event_id": "e",
        "occurred_at": 1,
        "producer": "x",
        "tenant": tenant,
        "model": "model-vision-acme-x",
        "by": "x",
        "reason": "",
        "successor": "",
    }
    foreign = market.codec.encode_dict("ModelRetired", {"version": 1, **named})
    for value in (negative, foreign):
        headers = {"ce_type": b"x", **market.usage.proof(value)}
        market.writer.append("usage", b"a stranger", value, headers, partition).result(10)
    market.append(tenant, [market.settled(tenant) for _ in range(2)])
    assert market.issue(tenant, month())["facts"]["claimed"] == 5
    assert billed(market, tenant) == 5
    market.recompute_as_a_stranger(tenant, 1)


def test_two_billers_issue_one_bill(market: Market) -> None:
    tenant, _ = market.tenant(market.prices(PRICED))
    market.append(tenant, [market.settled(tenant)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    issuers = [market.issuer(), market.issuer()]
    market.fold_until(lambda: (tenant, 1) in cuts_without_bill(market.clickhouse), "the cut")
    market.fold_until(lambda: isinstance(issuers[0].issue(tenant, 1), Issued), "the relay's heartbeat")
    again = issuers[1].issue(tenant, 1)
    assert isinstance(again, Issued)
    market.fold_until(lambda: (tenant, 1) not in cuts_without_bill(market.clickhouse), "the bill")
    assert market.clickhouse.value("SELECT count() FROM bills WHERE status = 'issued' AND tenant = {t:String}", {"t": tenant}) == 1


def test_a_wrong_cut_in_the_table_is_no_bill(market: Market) -> None:
    """The log has the cuts too: a row that says another one would else make both sources agree on a wrong bill."""
    tenant, _ = market.tenant(market.prices(PRICED))
    market.append(tenant, [market.settled(tenant) for _ in range(3)])
    first = market.issue(tenant, month())
    market.append(tenant, [market.settled(tenant) for _ in range(4)])
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    market.fold_until(lambda: (tenant, 2) in cuts_without_bill(market.clickhouse), "the cut")
    market.fold_until(lambda: getattr(market.issuer().issue(tenant, 2), "reason", "") != "prices_behind", "the relay's heartbeat")
    for number in (1, 2):
        right = row_of_cut(market, tenant, number)
        cut = json.loads(right["body"])
        less = [{**c, "offset": max(0, c["offset"] - 1)} for c in cut["cuts"]]
        for wrong in ({"cuts": less}, {"until": cut["until"] - 1}, {"number": 7}):
            put_row(market, {**right, "body": json.dumps({**cut, **wrong})})
            outcome = market.issuer().issue(tenant, 2)
            assert isinstance(outcome, Deferred)
            assert (outcome.reason, f"cut {number} of {tenant}" in outcome.message) == ("sources_disagree", True), (wrong, outcome)
            put_row(market, right)
    assert (first["facts"]["claimed"], isinstance(market.issuer().issue(tenant, 2), Issued)) == (3, True)


def put_row(market: Market, row: dict[str, Any]) -> None:
    """Replaces the row; with a token of its own, since the table accepts the same block once."""
    market.clickhouse.insert_rows("history_rows", [row], token=str(uuid.uuid4()))


def row_of_cut(market: Market, tenant: str, number: int) -> dict[str, Any]:
    (row,) = market.clickhouse.rows(
        """SELECT * FROM history_rows FINAL WHERE topic = 'bills' AND fact = 'BillCutFixed' AND key = {tenant:String}
        AND JSONExtractInt(body, 'number') = {number:Int64}""",
        {"tenant": tenant, "number": number},
    )
    return row
