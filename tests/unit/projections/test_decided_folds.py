"""What is decided is folded on from round to round: each record is read once, and it says what a reading from the beginning says (K4, K27)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from events.facts.topics import TOPICS
from events.log.client import LogMismatch
from events.log.heartbeat import Heartbeat
from events.log.partitioner import partition_of
from events.log.record import Record
from projections.bills import decided_folds
from projections.bills.decided_folds import DecidedFolds
from projections.bills.decided_for_bills import BillDecisions, LogIncomplete, TenantBills, decided_on_bills, usage_partition
from projections.bills.issue import newest_up_to
from tests.support.todays_codec import RelayedLog, heartbeat_record, settings_with_keys, todays_codec

CODEC = todays_codec()
DECIDED = {"event_id": "00000000-0000-0000-0000-000000000000", "occurred_at": 1, "producer": "commands", "version": 1, "by": "u"}
PINS = {"log_id": "log", "decided_position": 1, "producers_offset": 0, "rating_version": 1, "price_book": "b", "currency": "CNY"}


class Log:
    """As a Reader of records in memory; counts what is read."""

    def __init__(self) -> None:
        self.settings, self.relay = settings_with_keys(), RelayedLog()
        self.records: dict[tuple[str, int], list[Record]] = {(t, p): [] for t in TOPICS for p in range(TOPICS[t].partitions)}
        self.position, self.read_records = 0, 0

    def put(self, topic: str, key: str, name: str, /, *, signed: bool = True, **body: Any) -> Record:
        self.position += 1
        p = partition_of(key.encode(), TOPICS[topic].partitions)
        value = CODEC.encode_dict(name, {**DECIDED, **body}, topic)
        record = self.relay.record((topic, p), len(self.records[topic, p]), self.position, value, key=key.encode(), signed=signed)
        self.records[topic, p].append(record)
        return record

    def cut(self, tenant: str, number: int, period: str = "2026-11", *, signed: bool = True) -> None:
        cuts = [{"partition": usage_partition(tenant), "offset": number}]
        pins = {**PINS, "period": period, "cuts": cuts, "until": number, "previous_bill_sha256": bytes(32)}
        self.put("bills", tenant, "BillCutFixed", signed=signed, tenant=tenant, number=number, **pins)

    def price(self, effective: int) -> None:
        number = sum(len(r) for (t, _), r in self.records.items() if t == "prices") + 1
        prices = [{"model": "*", "meter": "calls", "amount_micros": number, "per_units": 1}]
        self.put(
            "prices", "b", "PriceBookPublished", book="b", book_version=number, effective_from=effective, currency="CNY", prices=prices
        )

    def write_off(self, offset: int, partition: int) -> None:
        by = {"requested_by": "u", "approver": "w", "reason": "r"}
        place: dict[str, Any] = {
            "record": "r",
            "log_id": "log",
            "topic": "usage",
            "partition": partition,
            "offset": offset,
            "sha256": bytes(32),
        }
        self.put("bills", f"usage/{offset}", "RecordWrittenOff", **by, **place)

    def heartbeat(self) -> None:
        sent = {f"{t}/{p}": position for (t, p), (position, _) in self.relay.heads.items()}
        heartbeat = Heartbeat(self.relay.store, self.position, sent, self.position)
        self.records["heartbeats", 0].append(heartbeat_record(heartbeat, len(self.records["heartbeats", 0])))

    def bounds(self, topic: str) -> dict[tuple[str, int], tuple[int, int]]:
        return {tp: (0, len(records)) for tp, records in self.records.items() if tp[0] == topic}

    def end_offsets(self, topic: str) -> dict[tuple[str, int], int]:
        return {tp: end for tp, (_, end) in self.bounds(topic).items()}

    def read(self, topic: str, start: Mapping[int, int] | None = None, end: Mapping[int, int] | None = None) -> Iterator[Record]:
        for (t, p), records in self.records.items():
            if t == topic:
                for record in records[(start or {}).get(p, 0) : (end or {}).get(p, len(records))]:
                    self.read_records += topic != "heartbeats"
                    yield record


def folds(log: Log) -> DecidedFolds:
    reader: Any = log
    return DecidedFolds(reader, CODEC)


def content(decided: BillDecisions) -> Any:
    tenants = {name: ({n: mine.cuts[n] for n in mine.cuts}, mine.excluded) for name, mine in decided.tenants.items()}
    return tenants, decided.records, decided.first


def test_folded_on_it_says_what_a_reading_from_the_beginning_says_and_reads_each_record_once() -> None:
    chance, log = random.Random(3), Log()
    kept, numbers = folds(log), dict[str, int]()
    bills, prices = kept.bills(), kept.prices()
    for _ in range(60):
        for _ in range(chance.randint(0, 5)):
            what, tenant = chance.random(), f"t{chance.randint(0, 5)}"
            if what < 0.5:
                numbers[tenant] = numbers.get(tenant, 0) + 1
                log.cut(tenant, numbers[tenant], f"2026-{chance.randint(10, 12)}")
            elif what < 0.7:
                log.price(log.position)
            else:
                log.write_off(chance.randint(0, 9), chance.randint(0, 2))
        if chance.random() < 0.2 and (copied := log.records["prices", 0][-1:]):  # the relay was started again
            log.records["prices", 0].append(copied[0])
        bills, prices = kept.bills(), kept.prices()
        fresh = folds(log)
        assert content(bills) == content(fresh.bills())
        assert prices == fresh.prices() and prices.book("b", 7).versions == fresh.prices().book("b", 7).versions
    log.read_records = 0
    assert content(kept.bills()) == content(bills) and kept.prices() == prices
    assert log.read_records == 0, "nothing came"
    log.cut("t0", 100)
    assert kept.bills().of("t0").cuts[100]["until"] == 100 and log.read_records == 1
    assert all(len(mine.cuts) <= 2 for mine in kept.bills().tenants.values()), "of a tenant the two newest are kept"
    reader: Any = log
    assert sorted(decided_on_bills(reader, CODEC, ["t1"]).of("t1").cuts) == list(range(1, numbers["t1"] + 1)), "unless all are asked for"


def test_a_record_that_nothing_proves_waits_and_is_folded_when_its_proof_has_come() -> None:
    log = Log()
    kept = folds(log)
    log.cut("a", 1)
    log.cut("a", 2, signed=False)
    for _ in range(2):
        with pytest.raises(LogIncomplete, match="nothing proves 1 records"):
            kept.bills()
    log.cut("a", 3)
    log.read_records = 0
    assert sorted(kept.bills().of("a").cuts) == [2, 3] and log.read_records == 1


def test_what_another_program_wrote_is_passed_over_once_a_heartbeat_says_so() -> None:
    log = Log()
    log.cut("a", 1)
    kept = folds(log)
    kept.bills()
    forger = RelayedLog()
    p = partition_of(b"a", TOPICS["bills"].partitions)
    forged = forger.record(("bills", p), len(log.records["bills", p]), log.position + 5, b"x", signed=False)
    log.records["bills", p].append(forged)
    with pytest.raises(LogIncomplete):
        kept.bills()
    log.heartbeat()
    assert sorted(kept.bills().of("a").cuts) == [1]


def test_a_fold_that_holds_too_much_is_read_anew_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decided_folds, "KEPT_MAX", 1)
    log = Log()
    for tenant in "abc":
        log.cut(tenant, 1)
    kept = folds(log)
    for _ in range(2):
        log.read_records = 0
        assert sorted(kept.bills().tenants) == ["a", "b", "c"] and log.read_records == 3


def test_a_log_that_ends_before_what_was_read_is_another_log() -> None:
    log = Log()
    log.cut("a", 1)
    kept = folds(log)
    kept.bills()
    for records in log.records.values():
        records.clear()
    with pytest.raises(LogMismatch, match="ends at 0"):
        kept.bills()
    assert kept.bills().of("a").cuts == TenantBills("a").cuts, "it is forgotten"


def test_the_first_bill_of_a_month_and_partition_that_has_one_before_it_is_the_same_whenever_it_is_asked() -> None:
    log = Log()
    partition = usage_partition("t0")
    others = [t for t in (f"t{n}" for n in range(1, 60)) if usage_partition(t) == partition][:2]
    for tenant in (*others, "t0"):
        log.cut(tenant, 1, "2026-10")
    kept = folds(log)
    assert kept.bills().first == {}, "a first bill goes on from nothing"
    log.cut(others[1], 2)
    log.cut("t0", 2)
    log.cut(others[0], 2, "2026-12-01")
    first = kept.bills().first
    assert {month: of[1:] for month, of in first.items()} == {
        (partition, "2026-11"): (others[1], 2),
        (partition, "2026-12"): (others[0], 2),
    }
    log.cut(others[1], 3)
    assert kept.bills().first == first == folds(log).bills().first


def test_of_ascending_positions_the_newest_is_found_that_a_cut_knows() -> None:
    assert [newest_up_to([3, 5, 5, 9], pinned) for pinned in (0, 2, 3, 4, 5, 8, 9, 100)] == [0, 0, 3, 3, 5, 5, 9, 9]
    assert newest_up_to([], 5) == 0
