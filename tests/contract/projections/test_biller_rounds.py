"""The order of billing: cuts that wait for a person do not delay the tenants behind them, however many they are (K21)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import pytest

from projections.bills import biller as biller_module
from projections.bills import issue as bill_issue
from projections.bills import tables
from projections.bills.biller import ALL_PARTITIONS, Biller
from projections.bills.decided_for_bills import usage_partition
from projections.bills.issue import BillNumber, Deferred, Issued, Issuer, Outcome
from projections.catalog.tables import STATEMENTS
from projections.ingest.clickhouse import ClickHouse
from rating.bill import Bill
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.todays_codec import RecordedLog, todays_codec

pytestmark = pytest.mark.engine

BLOCKED = [f"blocked-{n}" for n in range(7)]
LAST = "zeta"


@pytest.fixture
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("rounds"))
    engine.start()
    client = ClickHouse(engine.settings)
    for statement in (*STATEMENTS, *tables.STATEMENTS):
        client.command(statement)
    decided(client, "BillCutFixed", [*BLOCKED, LAST])
    yield client
    engine.stop()


def decided(clickhouse: ClickHouse, fact: str, tenants: list[str], **more: object) -> None:
    row = {"topic": "bills", "kind": "decided", "fact": fact, **more}
    first = int(clickhouse.value("SELECT count() FROM history_rows"))
    clickhouse.insert_rows("history_rows", [{**row, "key": t, "kafka_offset": first + n} for n, t in enumerate(tenants)])


@pytest.fixture
def log() -> RecordedLog:
    return RecordedLog(todays_codec())


class RefusingIssuer(Issuer):
    """Refuses the bill of every tenant but the last, as with an unreadable record."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        nothing = cast(Any, None)
        super().__init__(clickhouse, nothing, nothing, nothing, nothing, commands_url="http://127.0.0.1:1", admin_key="k")
        self.tried = list[str]()
        self.outcome = Deferred("dead_letters", "nobody could read usage/0/1", alarming=True)

    def issue_all(self, due: Sequence[BillNumber]) -> Iterator[tuple[BillNumber, Outcome]]:
        for bill in due:
            self.tried.append(bill[0])
            yield bill, self.outcome if bill[0] in BLOCKED else Issued(Bill({}, (), 0, {}, 0))


@pytest.mark.parametrize("page", [1, 2, 8, 1000])
def test_cuts_that_wait_do_not_starve_the_tenants_behind_them(
    clickhouse: ClickHouse, log: RecordedLog, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(bill_issue, "CUTS_MAX", page)
    issuer = RefusingIssuer(clickhouse)
    biller = Biller(clickhouse, issuer, cast(Any, None), log.alerts("biller"), clock=lambda: 100.0)  # no pause ends while the rounds last
    rounds = len(BLOCKED) // page + 1
    for _ in range(rounds):
        biller.issue()
    assert (biller.issued, sorted(issuer.tried)) == (1, [*BLOCKED, LAST])
    assert sorted(biller.waiting) == [f"{tenant}#1" for tenant in BLOCKED], "all are said, not only those of the last page"
    subjects = {f"biller, usage/{usage_partition(tenant)}" for tenant in BLOCKED}
    raised = [written[:3] for written in log.written]
    assert sorted(raised) == sorted(("Raised", subject, "bills.dead_letters") for subject in subjects), "one a partition, however many wait"
    assert len(subjects) < len(BLOCKED)

    decided(clickhouse, "BillIssued", [BLOCKED[0], LAST])
    decided(clickhouse, "BillCutFixed", ["alpha"])
    for _ in range(rounds + 2):
        biller.issue()
    assert issuer.tried[-1] == "alpha" and biller.issued == 2, "after the last page the first comes again"
    assert sorted(biller.waiting) == [f"{tenant}#1" for tenant in BLOCKED[1:]], "an issued one is said no more"

    decided(clickhouse, "BillIssued", BLOCKED[1:])
    for _ in range(rounds):
        biller.issue()
    assert [written[0] for written in log.written[-len(subjects) :]] == ["Resolved"] * len(subjects) and not biller.alarming


def test_a_table_that_stays_behind_is_logged_as_an_error_with_a_remedy(
    clickhouse: ClickHouse, log: RecordedLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = RefusingIssuer(clickhouse)
    issuer.outcome = Deferred("table_behind", "usage/0 is in the table up to 3, the cut is 4", alarming=False)
    with caplog.at_level(logging.INFO, "projections.bills.biller"):
        Biller(clickhouse, issuer, cast(Any, None), log.alerts("biller")).issue()
        assert {r.levelname for r in caplog.records} == {"INFO"}
        caplog.clear()
        monkeypatch.setattr(biller_module, "BEHIND_S_MAX", -1.0)
        Biller(clickhouse, issuer, cast(Any, None), log.alerts("biller")).issue()
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == len(BLOCKED) and all("start the workers again" in message for message in errors)


class NothingVerified:
    def verified(self, partition: int) -> int:
        return 0


def test_running_bills_are_computed_again_for_whom_something_was_decided_on(
    clickhouse: ClickHouse, log: RecordedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = [*BLOCKED, LAST]
    clickhouse.insert_rows("bills_running_rows", [{"tenant": tenant, "usage_partition": 1} for tenant in everybody])
    biller = Biller(clickhouse, RefusingIssuer(clickhouse), cast(Any, NothingVerified()), log.alerts("biller"), clock=lambda: 100.0)
    computed = list[str]()

    def refreshed() -> list[str]:
        computed.clear()
        biller.refresh()
        return sorted(computed)

    def compute(_self: Biller, tenants: list[str], _end: int) -> None:
        computed.extend(tenants)

    monkeypatch.setattr(Biller, "_recompute", compute)
    assert (refreshed(), refreshed()) == (everybody, []), "a biller that begins knows nothing yet"
    decided(clickhouse, "BillCutFixed", [BLOCKED[0]], position=100)
    decided(clickhouse, "TenantCreated", ["nobody's"], position=101, topic="accounts")
    assert refreshed() == [BLOCKED[0]]
    decided(clickhouse, "BillIssued", [BLOCKED[1]], position=50, kafka_partition=1)
    assert refreshed() == [BLOCKED[1]], "a partition that comes later has older positions"
    for fact, topic in (("PriceBookPublished", "prices"), ("RecordWrittenOff", "bills")):
        decided(clickhouse, fact, ["of all"], position=200, topic=topic)
        assert refreshed() == everybody
    monkeypatch.setattr(biller_module, "NAMED_MAX", 1)
    decided(clickhouse, "BillCutFixed", BLOCKED[:2], position=300)
    assert refreshed() == everybody, "when so many were decided on, all are"

    monkeypatch.setattr(biller_module, "NAMED_MAX", 200)
    monkeypatch.setattr(biller_module, "TENANTS_MAX", 1)
    monkeypatch.setattr(biller_module, "REFRESH_S_MAX", -1.0)
    decided(clickhouse, "BillCutFixed", BLOCKED[:3], position=400)
    assert [refreshed() for _ in range(4)] == [[BLOCKED[0]], [BLOCKED[1]], [BLOCKED[2]], []], "what is left over comes in the next round"


class Divided:
    """As the members of a group: a test says whose the partitions are."""

    def __init__(self, mine: frozenset[int]) -> None:
        self.mine = mine

    def working(self) -> frozenset[int]:
        return self.mine


class Verifies(NothingVerified):
    def __init__(self) -> None:
        self.asked, self.forgotten = set[int](), list[int]()

    def advance(self, ends: Mapping[int, int]) -> bool:
        self.asked = set(ends)
        return True

    def held(self) -> None:
        return None

    def forget(self, partition: int) -> None:
        self.forgotten.append(partition)


class NothingDecided:
    def __init__(self, _clickhouse: ClickHouse) -> None:
        pass

    def note(self) -> list[tuple[str, int]]:
        return []


def test_billers_divide_the_tenants_and_one_takes_over_what_another_had(
    clickhouse: ClickHouse, log: RecordedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(biller_module, "HeldDecisions", NothingDecided)
    monkeypatch.setattr(Biller, "refresh", lambda _self: None)
    everybody = [*BLOCKED, LAST]
    first = frozenset(usage_partition(t) for t in BLOCKED[:2])
    halves = (Divided(first), Divided(ALL_PARTITIONS - first))
    restored, issuers, verifiers = list[int](), [RefusingIssuer(clickhouse) for _ in halves], [Verifies() for _ in halves]
    alerts = [log.alerts("biller") for _ in halves]

    def restore(n: int) -> None:
        restored.append(n)
        alerts[n].restore(todays_codec(), log.frames)

    billers = [
        Biller(
            clickhouse,
            issuers[n],
            cast(Any, verifiers[n]),
            alerts[n],
            clock=lambda: 100.0,
            share=half,
            restore_alerts=partial(restore, n),
        )
        for n, half in enumerate(halves)
    ]
    for issuer in issuers:
        issuer.ends = cast(Any, Ends())
    for biller in billers:
        biller.round()
    tried = [set(issuer.tried) for issuer in issuers]
    assert tried[0] | tried[1] == set(everybody) and not tried[0] & tried[1] and all(tried), "each has its own"
    assert [verifier.asked for verifier in verifiers] == [set(half.mine) for half in halves]
    assert {written[1] for written in log.written} == {f"biller, usage/{usage_partition(t)}" for t in BLOCKED}
    raised = list(log.written)
    assert not any(written[0] == "Resolved" for written in raised), "what another one waits for is not over"

    halves[0].mine, halves[1].mine = frozenset(), ALL_PARTITIONS
    for biller in billers:
        biller.round()
    assert set(issuers[1].tried) == set(everybody) and not billers[0].waiting
    assert sorted(billers[1].waiting) == [f"{t}#1" for t in BLOCKED]
    assert sorted(verifiers[0].forgotten) == sorted(first) and restored == [0, 1, 1]
    assert log.written == raised, "and it does not raise again what is open"


class Ends:
    def end(self, _partition: int) -> int:
        return 0
