"""The bill a tenant would get now: recomputed whole while its usage comes in, never added to (K10).

It starts from the last issued bill and ends where the usage table ends; its period is the month that runs in the tenant's zone.
Nothing is owed by it. A cut whose bill is still under way is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from projections.bills.bill_from_tables import UsageTable, cuts_of, excluded_by, price_book_of, statement_of_cut
from projections.ingest.clickhouse import ClickHouse
from rating.period import month_of, period_bounds
from rating.rules import RATING_VERSION
from rating.statement import Cutoff, Line, Statement, difference

DEFAULT_TENANT = {"price_book": "standard", "currency": "CNY", "timezone": "Asia/Shanghai"}
"""What holds for usage of a tenant whose creation this table has not seen yet."""


@dataclass(frozen=True, slots=True)
class RunningBill:
    """`number` is the bill it would become; facts of `partition` below `offset` and before `until` are in it."""

    tenant: str
    period: str
    number: int
    currency: str
    price_book: str
    decided_position: int
    partition: int
    offset: int
    until: int
    lines: tuple[Line, ...]
    facts: Mapping[str, int]

    @property
    def total_micros(self) -> int:
        return sum(line.amount_micros for line in self.lines)


class RunningBills:
    """Computes and stores running bills. Keeps the statement of each tenant's last issued bill, which does not change."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._bases: dict[str, tuple[int, int, Statement]] = {}

    def compute(self, tenant: str, offset: int, now_us: int, period: str = "") -> RunningBill:
        """`offset`: the table is dense below it. `period`: the month that runs now, if empty. Raises InvalidPeriod."""
        account = account_of(self._clickhouse, tenant)
        period = period or month_of(now_us, account["timezone"])
        _, end = period_bounds(period, account["timezone"])
        number, last_until, before = self._base(tenant)
        until = max(end, last_until)  # as the next cut: ends only grow (K20)
        position = max(newest_position(self._clickhouse, topic) for topic in ("prices", "bills"))
        table = UsageTable(self._clickhouse, tenant)
        cutoff = Cutoff({table.partition: offset}, until, RATING_VERSION, decided_position=position)
        now = table.statement(cutoff, price_book_of(self._clickhouse, account["price_book"], position))
        counts = now.counts
        return RunningBill(
            tenant=tenant,
            period=period,
            number=number + 1,
            currency=account["currency"],
            price_book=account["price_book"],
            decided_position=position,
            partition=table.partition,
            offset=offset,
            until=until,
            lines=difference(now, before),
            facts={**counts.model_dump(), "claimed": counts.claimed - before.counts.claimed},
        )

    def store(self, bill: RunningBill, generation: int) -> None:
        """Lines first: a reader takes those of the head's generation or newer, so it never sees half a bill."""
        mark = {"tenant": bill.tenant, "period": bill.period, "generation": generation}
        lines = [{**mark, **line.key._asdict(), "quantity": line.quantity, "amount_micros": line.amount_micros} for line in bill.lines]
        if lines:
            self._clickhouse.insert_rows("bill_lines_running_rows", lines)
        head = {
            **mark,
            "number": bill.number,
            "currency": bill.currency,
            "total_micros": bill.total_micros,
            "usage_partition": bill.partition,
            "usage_offset": bill.offset,
            "until_us": bill.until,
            "price_book": bill.price_book,
            "decided_position": bill.decided_position,
            "facts": bill.facts,
        }
        self._clickhouse.insert_rows("bills_running_rows", [head])

    def _base(self, tenant: str) -> tuple[int, int, Statement]:
        """(number, `until`, statement) of the tenant's last issued bill; (0, 0, nothing) before the first."""
        number = last_issued_number(self._clickhouse, tenant)
        if not number:
            return 0, 0, Statement()
        known = self._bases.get(tenant)
        if known and known[0] == number:
            return known
        (cut,) = cuts_of(self._clickhouse, tenant, [number])
        statement = statement_of_cut(self._clickhouse, cut, excluded_by(self._clickhouse, tenant, number))
        self._bases[tenant] = number, cut["until"], statement
        return self._bases[tenant]


def account_of(clickhouse: ClickHouse, tenant: str) -> dict[str, str]:
    """Price book, currency and zone of a tenant."""
    rows = clickhouse.rows(
        "SELECT argMaxIf(head, step, head != '') AS head FROM history WHERE topic = 'accounts' AND key = {tenant:String}",
        {"tenant": tenant},
    )
    head: dict[str, Any] = json.loads(rows[0]["head"] or "{}") if rows else {}
    return {name: str(head.get(name, default)) for name, default in DEFAULT_TENANT.items()}


def last_issued_number(clickhouse: ClickHouse, tenant: str) -> int:
    sql = "SELECT max(JSONExtractInt(body, 'number')) FROM history WHERE topic = 'bills' AND fact = 'BillIssued' AND key = {tenant:String}"
    return int(clickhouse.value(sql, {"tenant": tenant}))


def newest_position(clickhouse: ClickHouse, topic: str) -> int:
    """The newest position of the store that the history of a topic has."""
    return int(clickhouse.value("SELECT max(position) FROM history_rows WHERE topic = {topic:String}", {"topic": topic}))
