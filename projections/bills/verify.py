"""Verifies bills: recomputes a tenant's bills of a period from Kafka alone and compares them line by line, to the micro-unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.partitioner import partition_of
from events.schema.codec import Codec
from projections.bills.bill_from_log import LogRound, bills_from_log, cutoff_of
from projections.bills.decided_for_bills import DecidedRecord, TenantBills, decided_facts
from projections.ingest.clickhouse import ClickHouse
from rating.statement import Cutoff, Line, LineKey, Statement, difference

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ComparedLine:
    """(quantity, amount in micro-units) as billed and as recomputed."""

    key: LineKey
    billed: tuple[int, int]
    recomputed: tuple[int, int]

    @property
    def agrees(self) -> bool:
        return self.billed == self.recomputed


@dataclass(frozen=True, slots=True)
class ComparedBill:
    """One bill against its recomputation. `wrong` names everything else that does not hold."""

    status: str
    number: int
    currency: str
    lines: tuple[ComparedLine, ...]
    wrong: tuple[str, ...]
    facts: Mapping[str, int]
    records_written_off: int = 0

    @property
    def billed_micros(self) -> int:
        return sum(line.billed[1] for line in self.lines)

    @property
    def recomputed_micros(self) -> int:
        return sum(line.recomputed[1] for line in self.lines)

    @property
    def difference_micros(self) -> int:
        return self.billed_micros - self.recomputed_micros

    @property
    def agrees(self) -> bool:
        return not self.wrong and all(line.agrees for line in self.lines)


Running = tuple[Body, Sequence[Body]]
"""A running bill as ClickHouse has it: its head and its lines."""


def verify(reader: Reader, codec: Codec, running: Running | None, tenant: str, period: str) -> list[ComparedBill]:
    """The issued bills of a period, read from Kafka alone, and its running one when there is one. Empty when there is none."""
    partition = partition_of(tenant.encode(), TOPICS["bills"].partitions)
    mine = [f for f in decided_facts(reader, codec, "bills", partition) if f.body.get("tenant") == tenant]
    decided = TenantBills(tenant)
    for fact in mine:
        decided.add(fact)
    issued = {
        f.body["number"]: {**f.body, "lines": lines_of(mine, f.body), "lines_own": len(f.body["lines"])}
        for f in mine
        if f.name == "BillIssued"
    }
    compared = _issued(reader, codec, decided, issued, period)
    if running:
        compared.append(_running(reader, codec, decided, *running))
    return compared


def lines_of(facts: Sequence[DecidedRecord], issued: Body) -> list[Body]:
    """All lines of an issued bill, in order: of the parts that were listed before it, and its own."""
    parts = (f.body["lines"] for f in facts if f.name == "BillLinesListed" and f.body["number"] == issued["number"])
    return [line for part in (*parts, issued["lines"]) for line in part]


def _issued(reader: Reader, codec: Codec, decided: TenantBills, issued: Mapping[int, Body], period: str) -> list[ComparedBill]:
    asked = sorted(number for number, bill in issued.items() if bill["period"] == period)
    if not asked:
        return []
    compared: list[ComparedBill] = []
    for bill in bills_from_log(reader, codec, decided, range(max(1, asked[0] - 1), asked[-1] + 1)):
        number = bill.cut["number"]
        if number not in asked:
            continue
        issued_body = issued[number]
        wrong: list[str] = []
        if bytes(issued_body["digest"]) != bill.digest():
            wrong.append("the digest is not that of the recomputed bill")
        if issued_body["cut_event_id"] != bill.cut["event_id"]:
            wrong.append("it was issued for another cut")
        if len(issued_body["lines"]) != issued_body["lines_before"] + issued_body["lines_own"]:
            wrong.append(
                f"it says that {issued_body['lines_before']} lines are listed before it, and {len(issued_body['lines']) - issued_body['lines_own']} are"
            )
        if issued_body["total_micros"] != sum(line["amount_micros"] for line in issued_body["lines"]):
            wrong.append("its lines do not add up to its total")
        before = issued[number - 1]["digest"] if number > 1 else bytes(32)
        if bytes(bill.cut["previous_bill_sha256"]) != bytes(before):
            wrong.append("its cut does not name the bill before")
        if issued_body["records_written_off"] != bill.records_written_off:
            wrong.append(f"it says {issued_body['records_written_off']} records were written off, the log says {bill.records_written_off}")
        lines = [_line(body) for body in issued_body["lines"]]
        compared.append(
            ComparedBill(
                "issued", number, issued_body["currency"], _compare(lines, bill.lines), tuple(wrong), bill.facts, bill.records_written_off
            )
        )
    return compared


def _running(reader: Reader, codec: Codec, decided: TenantBills, head: Body, rows: Sequence[Body]) -> ComparedBill:
    log = LogRound(reader, codec)
    cutoff = Cutoff({head["usage_partition"]: head["usage_offset"]}, head["until_us"], decided_position=head["decided_position"])
    asked = [(cutoff, log.prices.book(head["price_book"], head["decided_position"]))]
    base = decided.cuts.get(head["number"] - 1)
    if base:
        excluded = decided.excluded.get(base["number"], ())
        asked.append((cutoff_of(base, excluded), log.prices.book(base["price_book"], base["decided_position"])))
    ((_, found),) = log.statements({decided.tenant: asked})
    if isinstance(found, Exception):
        raise found
    now, *before = found
    lines = difference(now, before[0] if before else Statement())
    billed = [_line(row) for row in rows]
    wrong = () if head["total_micros"] == sum(line.amount_micros for line in billed) else ("its lines do not add up to its total",)
    return ComparedBill("running", head["number"], head["currency"], _compare(billed, lines), wrong, head["facts"])


def running_bill(clickhouse: ClickHouse, tenant: str, period: str) -> Running | None:
    params = {"tenant": tenant, "period": period}
    heads = clickhouse.rows("SELECT * FROM bills_running WHERE tenant = {tenant:String} AND period = {period:String}", params)
    if not heads:
        return None
    lines = "SELECT * FROM bill_lines WHERE status = 'running' AND tenant = {tenant:String} AND period = {period:String}"
    return heads[0], clickhouse.rows(lines, params)


def _line(body: Body) -> Line:
    values: dict[str, Any] = {name: body[name] for name in LineKey._fields}
    values["held"] = bool(values["held"])
    key = LineKey(**values)
    return Line(key, body["quantity"], body["amount_micros"])


def _compare(billed: Sequence[Line], recomputed: Sequence[Line]) -> tuple[ComparedLine, ...]:
    left = {line.key: (line.quantity, line.amount_micros) for line in billed}
    right = {line.key: (line.quantity, line.amount_micros) for line in recomputed}
    return tuple(ComparedLine(key, left.get(key, (0, 0)), right.get(key, (0, 0))) for key in sorted(left.keys() | right.keys()))
