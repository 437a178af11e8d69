"""Bills from Kafka alone: what was decided (`decided_for_bills`), and each tenant's usage, record by record.

This is the second source of the pure functions in `rating/`; the first is ClickHouse (`bill_from_tables`). They share no other code,
so that a fault of one shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import NamedTuple

from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.partitioner import partition_of
from events.producers.opened_epochs import OpenedEpochs
from events.schema.codec import Codec, Undecodable
from projections.bills.decided_for_bills import (
    BillDecisions,
    Body,
    DecidedRecord,
    LogIncomplete,
    Producers,
    RecordDecisions,
    TenantBills,
    decided_facts,
    decided_on_bills,
    price_book,
    producers_of,
    terms_of_keys,
)
from projections.bills.usage_spool import UsageSpool, read_usage
from projections.bills.usage_verdicts import UsageVerdicts
from rating.bill import Bill, make_bill
from rating.book import PriceBook
from rating.key_terms import KeyTerm
from rating.rules import VOIDED, UsageRecord
from rating.statement import Cutoff, Place, Statement, StatementBuilder

Asked = tuple[Cutoff, PriceBook]
"""One statement."""
_Unknown = LogIncomplete | Undecodable
"""What was decided cannot be known: a record is missing, or nobody here can read it."""


class TenantUsage:
    """One tenant's usage on the log, below the cuts of what is asked. All of it is in one partition, since the tenant is the key."""

    def __init__(
        self, tenant: str, spool: UsageSpool, decisions: RecordDecisions, opened: OpenedEpochs, terms: Mapping[str, KeyTerm]
    ) -> None:
        self.tenant, self.partition = tenant, usage_partition(tenant)
        self.spool, self._decisions, self._opened, self._terms = spool, decisions, opened, terms
        self._broken = False
        """Whether a chain of the tenant misses a record below a cut."""

    def statements(self, asked: Sequence[Asked]) -> list[Statement]:
        """The statement of each cut-off, in two passes: what counts and what was voided first, then everything once."""
        verdicts = [UsageVerdicts(self._opened, self._terms) for _ in asked]
        voids: list[UsageRecord] = []
        for entry in self.spool.of(self.tenant):
            record = entry.record
            for (cutoff, _), at in zip(asked, verdicts, strict=True):
                if cutoff.knows(self.partition, record.offset):
                    at.add(entry, record)
            if record.fact == VOIDED:
                voids.append(record)
        builders: list[tuple[UsageVerdicts, int, StatementBuilder]] = []
        for (cutoff, book), at in zip(asked, verdicts, strict=True):
            at.settle()
            position = cutoff.decided_position
            known = (void for void in voids if cutoff.knows(self.partition, void.offset))
            counted = (void.voided for void in known if self._decided(void, at.of(void.offset), position) in ("whole", "decided"))
            builders.append((at, position, StatementBuilder(cutoff, book, frozenset(counted))))
        self._broken = any(at.broken for at in verdicts)
        for entry in self.spool.of(self.tenant):
            record = entry.record
            for at, position, builder in builders:
                builder.add(record, self._decided(record, at.of(record.offset), position))
        return [builder.statement() for _, _, builder in builders]

    def _decided(self, record: UsageRecord, place: Place, position: int) -> Place:
        """The place of a record after what two people decided up to a position."""
        if place == "whole":
            return place
        return "decided" if self._decisions.counted.get((record.offset, record.sha256), position + 1) <= position else place

    def require_readable(self, below: int) -> None:
        """After `statements`. An unreadable record is the tenant's when its key says so, and may be when a chain of the tenant misses one: then no
        bill is issued (K9). Raises LogIncomplete."""
        unreadable, own = self.spool.unreadable, self.tenant.encode()
        found = sorted(offset for offset, key in unreadable.items() if offset < below and (self._broken or key == own))
        if found:
            raise LogIncomplete(f"usage/{self.partition}: nobody can read the records at {found[:10]}, and they are not written off (K9)")


class Due(NamedTuple):
    """Bills of consecutive cuts, each against the one before. Of a series that does not begin with number 1 the first is only what the second
    is compared with."""

    decided: TenantBills
    numbers: Sequence[int]


class LogRound:
    """What the bills of one round need of the log. Each topic is read once for all of them, when it is first asked for; usage once for the
    tenants of each partition."""

    def __init__(self, reader: Reader, codec: Codec, tenants: Iterable[str]) -> None:
        self._reader, self._codec, self._tenants = reader, codec, frozenset(tenants)
        self._terms: dict[int, dict[str, dict[str, KeyTerm]] | _Unknown] = {}
        """By partition of `accounts`."""

    @cached_property
    def decided(self) -> BillDecisions:
        """Raises LogIncomplete."""
        return decided_on_bills(self._reader, self._codec, self._tenants)

    @cached_property
    def producers(self) -> Producers:
        return producers_of(self._reader, self._codec)

    def book(self, name: str, position: int) -> PriceBook:
        """Raises LogIncomplete."""
        return price_book(self._prices, name, position)

    def statements(self, asked: Mapping[str, Sequence[Asked]]) -> Iterator[tuple[TenantUsage, list[Statement] | Exception]]:
        """Of tenants of one partition: each tenant's, or why there are none. An error of one tenant's leaves the others theirs."""
        (partition,) = {usage_partition(tenant) for tenant in asked}
        below = {t: max((cutoff.cuts.get(partition, 0) for cutoff, _ in of), default=0) for t, of in asked.items()}
        decisions, opened = self.decided.records[partition], self.producers.opened
        terms = {tenant: self._terms_of(tenant) for tenant in asked}  # before the pass: the reader follows one topic at a time
        with closing(read_usage(self._reader, self._codec, partition, below, decisions.written_off)) as spool:
            for tenant, of in asked.items():
                found = terms[tenant]
                usage = TenantUsage(tenant, spool, decisions, opened, {} if isinstance(found, _Unknown) else found)
                if isinstance(found, _Unknown):
                    yield usage, found
                    continue
                try:
                    statements = usage.statements(of)
                except Exception as e:
                    yield usage, e
                else:
                    yield usage, statements

    def bills(self, due: Mapping[str, Due]) -> Iterator[tuple[str, list[Bill] | Exception]]:
        """The bills of each tenant, or why there are none: LogIncomplete over an unreadable record, and where a cut is not on the log. Raises it
        where prices, or what was decided on bills, are not whole."""
        _ = self._prices, self.decided
        asked: dict[int, dict[str, list[Asked]]] = {}
        for tenant, (decided, numbers) in due.items():
            if missing := [n for n in numbers if n not in decided.cuts]:
                yield tenant, LogIncomplete(f"the log has no cut of {tenant} with the numbers {missing[:10]}")
                continue
            try:
                of = [self._asked(decided, n) for n in numbers]
            except Exception as e:
                yield tenant, e
            else:
                asked.setdefault(usage_partition(tenant), {})[tenant] = of
        for tenants in asked.values():
            left = set(tenants)
            try:
                for usage, found in self.statements(tenants):
                    left.discard(usage.tenant)
                    yield usage.tenant, self._bills_or_why(usage, due[usage.tenant], tenants[usage.tenant], found)
            except OSError as e:  # no space for what was read
                yield from ((tenant, e) for tenant in sorted(left))

    def _bills_or_why(
        self, usage: TenantUsage, due: Due, asked: Sequence[Asked], found: list[Statement] | Exception
    ) -> list[Bill] | Exception:
        try:
            return found if isinstance(found, Exception) else self._bills_of(usage, due, asked, found)
        except Exception as e:
            return e

    def _asked(self, decided: TenantBills, number: int) -> Asked:
        cut = decided.cuts[number]
        return cutoff_of(cut, decided.excluded.get(number, ())), self.book(cut["price_book"], cut["decided_position"])

    def _bills_of(self, usage: TenantUsage, due: Due, asked: Sequence[Asked], statements: Sequence[Statement]) -> list[Bill]:
        usage.require_readable(max(cutoff.cuts.get(usage.partition, 0) for cutoff, _ in asked))
        bills: list[Bill] = []
        for i, (number, now) in enumerate(zip(due.numbers, statements, strict=True)):
            if i == 0 and number != 1:
                continue
            cut, (cutoff, _) = due.decided.cuts[number], asked[i]
            below = cutoff.cuts.get(usage.partition, 0)
            # An offset that the bill excludes is excluded here only when those very bytes are written off.
            excluded = usage.spool.excluded | (usage.spool.written_off & cutoff.excluded)
            ended = self.producers.ended(cut.get("producers_offset", 0))
            bills.append(make_bill(cut, now, statements[i - 1] if i else Statement(), ended, (o for o in excluded if o < below)))
        return bills

    @cached_property
    def _prices(self) -> list[DecidedRecord]:
        return list(decided_facts(self._reader, self._codec, "prices"))

    def _terms_of(self, tenant: str) -> dict[str, KeyTerm] | _Unknown:
        partition = partition_of(tenant.encode(), TOPICS["accounts"].partitions)
        if partition not in self._terms:
            try:
                self._terms[partition] = terms_of_keys(self._reader, self._codec, partition, self._tenants)
            except (LogIncomplete, Undecodable) as e:
                self._terms[partition] = e
        found = self._terms[partition]
        return found if isinstance(found, _Unknown) else found[tenant]


def usage_partition(tenant: str) -> int:
    return partition_of(tenant.encode(), TOPICS["usage"].partitions)


def cutoff_of(cut: Body, excluded: Iterable[int] = ()) -> Cutoff:
    """The cut-off that a `BillCutFixed` pins, without what its bill excluded. Raises UnknownRatingVersion."""
    ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
    return Cutoff(ends, cut["until"], cut["rating_version"], frozenset(excluded), cut["decided_position"])


def bills_from_log(reader: Reader, codec: Codec, decided: TenantBills, numbers: Sequence[int]) -> list[Bill]:
    """One tenant's, as `LogRound.bills`. Raises LogIncomplete."""
    ((_, found),) = LogRound(reader, codec, [decided.tenant]).bills({decided.tenant: Due(decided, numbers)})
    if isinstance(found, Exception):
        raise found
    return found
