"""The bill a tenant would get now: recomputed whole while its usage comes in, never added to (K10).

It starts from the last issued bill and ends where the usage table ends; its period is the month that runs in the tenant's zone.
Nothing is owed by it. A cut whose bill is still under way is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from projections.bills.from_tables.bill_from_tables import asked_of, facts_of, groups_of
from projections.bills.from_tables.decided_in_tables import PriceBooks, cuts_of, excluded_by, usage_partition
from projections.bills.from_tables.statements_from_table import Asked, statements_of
from projections.bills.from_tables.together import together
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


class _Base(NamedTuple):
    """A tenant's last issued bill: its number, the instant its claims end before, and its statement."""

    number: int
    until: int
    statement: Statement


class RunningBills:
    """Computes and stores running bills. Keeps the statement of each tenant's last issued bill, which does not change."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._bases: dict[str, _Base] = {}

    def compute(self, tenant: str, offset: int, now_us: int, period: str = "") -> RunningBill:
        """`offset`: the table is dense below it. `period`: the month that runs now, if empty. Raises InvalidPeriod."""
        ((_, found),) = self.compute_all([tenant], offset, now_us, period)
        if isinstance(found, Exception):
            raise found
        return found

    def compute_all(
        self, tenants: Sequence[str], offset: int, now_us: int, period: str = ""
    ) -> Iterator[tuple[str, RunningBill | Exception]]:
        """Of tenants of one partition, group after group: each tenant's, or why there is none."""
        partition = usage_partition(tenants[0])
        facts = facts_of(self._clickhouse, partition, offset, tenants) if len(tenants) > 1 else {}
        for group in groups_of(tenants, facts):
            yield from together(self._clickhouse, group, lambda some: self._compute(some, offset, now_us, period))

    def _compute(self, tenants: Sequence[str], offset: int, now_us: int, period: str) -> dict[str, RunningBill]:
        position = max(newest_position(self._clickhouse, topic) for topic in ("prices", "bills"))
        accounts, books, partition = accounts_of(self._clickhouse, tenants), PriceBooks(self._clickhouse), usage_partition(tenants[0])
        numbers = last_issued_numbers(self._clickhouse, tenants)
        asked: list[Asked] = []
        bases = {one.tenant: one for one in self._missing_bases(numbers, books)}
        last_until = {t: bases[t].cutoff.until if t in bases else self._bases[t].until for t in numbers}
        periods = {t: period or month_of(now_us, accounts[t]["timezone"]) for t in tenants}
        for tenant in tenants:
            _, end = period_bounds(periods[tenant], accounts[tenant]["timezone"])
            until = max(end, last_until.get(tenant, 0))  # as the next cut: ends only grow (K20)
            cutoff = Cutoff({partition: offset}, until, RATING_VERSION, decided_position=position)
            asked.append(Asked(tenant, cutoff, books.at(accounts[tenant]["price_book"], position)))
        statements = statements_of(self._clickhouse, partition, [*asked, *bases.values()])
        for one, base in zip(bases.values(), statements[len(asked) :], strict=True):
            self._bases[one.tenant] = _Base(numbers[one.tenant], one.cutoff.until, base)
        found: dict[str, RunningBill] = {}
        for one, now in zip(asked, statements, strict=False):
            tenant = one.tenant
            before = self._bases[tenant].statement if tenant in numbers else Statement()
            found[tenant] = RunningBill(
                tenant=tenant,
                period=periods[tenant],
                number=numbers.get(tenant, 0) + 1,
                currency=accounts[tenant]["currency"],
                price_book=accounts[tenant]["price_book"],
                decided_position=position,
                partition=partition,
                offset=offset,
                until=one.cutoff.until,
                lines=difference(now, before),
                facts={**now.counts.model_dump(), "claimed": now.counts.claimed - before.counts.claimed},
            )
        return found

    def store(self, bills: Sequence[RunningBill], generation: int) -> None:
        """Lines first: a reader takes those of the head's generation or newer, so it never sees half a bill."""
        lines: list[dict[str, object]] = []
        heads: list[dict[str, object]] = []
        for bill in bills:
            mark: dict[str, object] = {"tenant": bill.tenant, "period": bill.period, "generation": generation}
            lines += [{**mark, **line.key._asdict(), "quantity": line.quantity, "amount_micros": line.amount_micros} for line in bill.lines]
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
            heads.append(head)
        if lines:
            self._clickhouse.insert_rows("bill_lines_running_rows", lines)
        if heads:
            self._clickhouse.insert_rows("bills_running_rows", heads)

    def _missing_bases(self, numbers: Mapping[str, int], books: PriceBooks) -> list[Asked]:
        """The statements of last issued bills that are not kept yet."""
        missing = {t: number for t, number in numbers.items() if t not in self._bases or self._bases[t].number != number}
        if not missing:
            return []
        cuts = cuts_of(self._clickhouse, {tenant: [number] for tenant, number in missing.items()})
        excluded = excluded_by(self._clickhouse, list(missing.items()))
        return [asked_of(cuts[tenant][number], excluded[tenant, number], books) for tenant, number in missing.items()]


def accounts_of(clickhouse: ClickHouse, tenants: Sequence[str]) -> dict[str, dict[str, str]]:
    """Price book, currency and zone of each tenant."""
    rows = clickhouse.rows(
        """SELECT key, argMaxIf(head, step, head != '') AS head FROM history WHERE topic = 'accounts' AND key IN {tenants:Array(String)}
        GROUP BY key""",
        {"tenants": list(tenants)},
    )
    heads: dict[str, dict[str, Any]] = {row["key"]: json.loads(row["head"] or "{}") for row in rows}
    return {t: {name: str(heads.get(t, {}).get(name, default)) for name, default in DEFAULT_TENANT.items()} for t in tenants}


def last_issued_numbers(clickhouse: ClickHouse, tenants: Sequence[str]) -> dict[str, int]:
    """Of tenants that have an issued bill."""
    sql = """SELECT key, max(JSONExtractInt(body, 'number')) AS number FROM history
        WHERE topic = 'bills' AND fact = 'BillIssued' AND key IN {tenants:Array(String)} GROUP BY key"""
    return {str(row["key"]): int(row["number"]) for row in clickhouse.rows(sql, {"tenants": list(tenants)})}


def newest_position(clickhouse: ClickHouse, topic: str) -> int:
    """The newest position of the store that the history of a topic has."""
    return int(clickhouse.value("SELECT max(position) FROM history_rows WHERE topic = {topic:String}", {"topic": topic}))
