"""Bills from ClickHouse alone: those of a round together, a group of tenants of one partition with one set of questions.

The first source of the pure functions in `rating/`; the second is Kafka (`bill_from_log`). The SQL of the rules stands beside them in `rating.rules`:
`tests/contract/projections/test_statements_together.py` and the biller compare the two to the micro-unit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from projections.bills.from_tables.decided_in_tables import (
    EXCLUDED_MAX,
    NAMED_MAX,
    Body,
    PriceBooks,
    TooManyWrittenOff,
    excluded_by,
    unreadable_of,
    usage_partition,
)
from projections.bills.from_tables.statements_from_table import Asked, statements_of
from projections.bills.from_tables.together import together
from projections.ingest.clickhouse import ClickHouse
from rating.bill import Bill, make_bill
from rating.book import PriceBook
from rating.statement import Cutoff, Statement

GROUP_FACTS_MAX = 2_000_000
"""Facts of one group: telling copies takes about 150 bytes of the engine's memory for each, and a question about them some seconds."""
EXCLUDED_PAIRS_MAX = EXCLUDED_MAX
"""Of one group: they are parameters of each question."""
EndedBelow = Callable[[int], frozenset[str]]
"""The epochs that ended below an offset of `producers`."""


class Wanted(NamedTuple):
    """A cut, and the one before it, whose bill was issued (None for number 1)."""

    cut: Body
    before: Body | None


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one tenant."""

    now: Statement
    before: Statement
    excluded: tuple[int, ...]


class TableRound:
    """The bills of one round, of each tenant one, computed when the first of a group is asked for."""

    def __init__(self, clickhouse: ClickHouse, wanted: Mapping[str, Wanted], alone: Collection[str] = ()) -> None:
        """`alone`: tenants whose questions failed before; nobody is asked about together with them."""
        self._clickhouse, self._wanted, self._alone = clickhouse, wanted, frozenset(alone)
        self._books = PriceBooks(clickhouse)
        self._groups: dict[int, dict[str, list[str]]] = {}
        """Partition → tenant → the tenants of its group."""
        self._found: dict[str, _Found | Exception] = {}
        """What nobody has asked for yet."""
        self._given = set[str]()

    def bill(self, tenant: str, ended: EndedBelow) -> Bill:
        """Raises what went wrong with this tenant's questions, TooManyWrittenOff, and ClickHouseUnavailable where nobody gets an answer."""
        if tenant not in self._found:
            group = [tenant] if tenant in self._given else [t for t in self._group(tenant) if t not in self._given]
            self._found |= together(self._clickhouse, group, self._ask)
        found = self._found.pop(tenant)
        self._given.add(tenant)
        if isinstance(found, Exception):
            raise found
        cut = self._wanted[tenant].cut
        return make_bill(cut, found.now, found.before, ended(cut["producers_offset"]), found.excluded)

    def _group(self, tenant: str) -> list[str]:
        partition = usage_partition(tenant)
        if partition not in self._groups:
            mine = [t for t in self._wanted if usage_partition(t) == partition]
            self._groups[partition] = {t: group for group in self._divided(partition, mine) for t in group}
        return self._groups[partition][tenant]

    def _divided(self, partition: int, tenants: Sequence[str]) -> list[list[str]]:
        ends = [below_of(self._wanted[t].cut) for t in tenants]
        facts = facts_of(self._clickhouse, partition, max(ends), [t for t in tenants if t not in self._alone])
        return [[t] for t in tenants if t in self._alone] + groups_of([t for t in tenants if t not in self._alone], facts)

    def _ask(self, tenants: Sequence[str]) -> dict[str, _Found]:
        wanted = {tenant: self._wanted[tenant] for tenant in tenants}
        earlier = excluded_by(self._clickhouse, [(t, w.before["number"]) for t, w in wanted.items() if w.before])
        if len(tenants) > 1 and sum(map(len, earlier.values())) > EXCLUDED_PAIRS_MAX:
            raise TooManyWrittenOff(f"of {len(tenants)} tenants together")
        unreadable = unreadable_of(self._clickhouse, {tenant: below_of(w.cut) for tenant, w in wanted.items()})
        asked: list[Asked] = []
        for tenant, w in wanted.items():
            if len(unreadable[tenant].excluded) > EXCLUDED_MAX:
                raise TooManyWrittenOff(
                    f"more than {EXCLUDED_MAX} records of usage/{usage_partition(tenant)} are written off below {below_of(w.cut)}"
                )
            asked.append(asked_of(w.cut, frozenset(), self._books))
            if w.before:
                asked.append(asked_of(w.before, earlier[tenant, w.before["number"]], self._books))
        statements = iter(statements_of(self._clickhouse, usage_partition(tenants[0]), asked))
        return {
            tenant: _Found(next(statements), next(statements) if w.before else Statement(), unreadable[tenant].excluded)
            for tenant, w in wanted.items()
        }


def facts_of(clickhouse: ClickHouse, partition: int, below: int, tenants: Sequence[str]) -> dict[str, int]:
    """How many rows a partition has of each of these tenants, about."""
    sql = """SELECT tenant, count() AS facts FROM usage
        WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64} AND tenant IN {tenants:Array(String)} GROUP BY tenant"""
    found: dict[str, int] = {}
    for start in range(0, len(tenants), NAMED_MAX):
        rows = clickhouse.rows(sql, {"partition": partition, "below": below, "tenants": list(tenants[start : start + NAMED_MAX])})
        found |= {str(row["tenant"]): int(row["facts"]) for row in rows}
    return found


def groups_of(tenants: Iterable[str], facts: Mapping[str, int]) -> list[list[str]]:
    """Tenants in their order, divided by what they have and by their number; one with more than fits is a group by itself."""
    groups: list[list[str]] = []
    taken = 0
    for tenant in tenants:
        of_tenant = facts.get(tenant, 0)
        if not groups or taken + of_tenant > GROUP_FACTS_MAX or len(groups[-1]) >= NAMED_MAX:
            groups.append([])
            taken = 0
        groups[-1].append(tenant)
        taken += of_tenant
    return groups


def asked_of(cut: Body, excluded: frozenset[int], books: PriceBooks) -> Asked:
    """The statement that a cut pins, without what its bill excluded. Raises UnknownRatingVersion."""
    ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
    cutoff = Cutoff(ends, cut["until"], cut["rating_version"], excluded, cut["decided_position"])
    return Asked(cut["tenant"], cutoff, books.at(cut["price_book"], cut["decided_position"]))


def bill_from_tables(clickhouse: ClickHouse, cut: Body, before: Body | None, ended: EndedBelow) -> Bill:
    """One bill by itself, from what the tables say now. Raises TooManyWrittenOff."""
    return TableRound(clickhouse, {cut["tenant"]: Wanted(cut, before)}).bill(cut["tenant"], ended)


def below_of(cut: Body) -> int:
    """Where a cut ends its tenant's partition."""
    partition = usage_partition(cut["tenant"])
    return next((c["offset"] for c in cut["cuts"] if c["partition"] == partition), 0)


class UsageTable:
    """One tenant's usage in ClickHouse."""

    def __init__(self, clickhouse: ClickHouse, tenant: str) -> None:
        self._clickhouse, self._tenant = clickhouse, tenant
        self.partition = usage_partition(tenant)

    def statement(self, cutoff: Cutoff, book: PriceBook) -> Statement:
        """The statement at a cut-off, as `StatementBuilder` would build it from the log."""
        (statement,) = statements_of(self._clickhouse, self.partition, [Asked(self._tenant, cutoff, book)])
        return statement
