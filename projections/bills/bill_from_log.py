"""Bills from Kafka alone: what was decided (`decided_for_bills`), and each tenant's usage, record by record.

This is the second source of the pure functions in `rating/`; the first is ClickHouse (`bill_from_tables`). They share no other code,
so that a fault of one shows as a difference.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.partitioner import partition_of
from events.schema.codec import Codec, Undecodable
from projections.bills.checkpoints.checkpoint import Checkpoint, Pins, UnreadBelow, digest_of_written_off
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.decided_folds import DecidedFolds
from projections.bills.decided_for_bills import (
    BillDecisions,
    Body,
    KeyTerms,
    LogIncomplete,
    Prices,
    Producers,
    TenantBills,
    usage_partition,
)
from projections.bills.tenant_usage import Asked, TenantUsage
from projections.bills.usage_spool import UsageSpool, Wanted, read_usage
from rating.bill import Bill, make_bill
from rating.key_terms import KeyTerm
from rating.rules import ReachesBack
from rating.statement import Cutoff, Statement

logger = logging.getLogger(__name__)
RECHECKED_EVERY = 100
"""Of so many bills that go on from a checkpoint about one is computed from offset 0 as well."""
_Unknown = LogIncomplete | Undecodable
"""What was decided cannot be known: a record is missing, or nobody here can read it."""


class CheckpointDiffers(Exception):
    """A checkpoint gives another statement than the log from offset 0."""


class Due(NamedTuple):
    """Bills of consecutive cuts, each against the one before. Of a series that does not begin with number 1 the first is only what the second
    is compared with."""

    decided: TenantBills
    numbers: Sequence[int]

    @property
    def rechecked_by_chance(self) -> bool:
        """Every biller chooses the same."""
        cut = self.decided.cuts[self.numbers[-1]]
        chosen = sha256(f"{cut['tenant']} {cut['period']}".encode()).digest()
        return int.from_bytes(chosen[:8]) % RECHECKED_EVERY == 0


class LogRound:
    """What the bills of one round need of the log. Each topic is read once for all of them, when it is first asked for; usage once for the
    tenants of each partition, from the lowest of their checkpoints; and from offset 0 once more for those that need it."""

    def __init__(
        self,
        reader: Reader,
        codec: Codec,
        folds: DecidedFolds | None = None,
        checkpoints: CheckpointFiles | None = None,
    ) -> None:
        """Without `checkpoints` everything is computed from offset 0."""
        self._reader, self._codec = reader, codec
        self._folds, self._checkpoints = folds or DecidedFolds(reader, codec), checkpoints
        self._terms: dict[int, KeyTerms | _Unknown] = {}
        """By partition of `accounts`."""
        self._computed: dict[str, TenantUsage] = {}
        """Of the bill that was given last."""
        self.usage_read = 0
        """Records of `usage`."""

    @cached_property
    def decided(self) -> BillDecisions:
        """Raises LogIncomplete."""
        return self._folds.bills()

    @cached_property
    def producers(self) -> Producers:
        return self._folds.producers()

    @cached_property
    def prices(self) -> Prices:
        """Raises LogIncomplete."""
        return self._folds.prices()

    def statements(
        self, asked: Mapping[str, Sequence[Asked]], after: Mapping[str, Checkpoint] | None = None
    ) -> Iterator[tuple[TenantUsage, list[Statement] | Exception]]:
        """Of tenants of one partition: each tenant's, or why there are none. An error of one tenant's leaves the others theirs. `after`: the
        checkpoints that some go on from; where one is not enough, or is to be compared, the tenant is read from offset 0."""
        after = after or {}
        again = dict[str, Sequence[Asked]]()
        with closing(self._read(asked, after)) as spool:
            for tenant, of in asked.items():
                usage, found = self._statements(tenant, spool, of, after.get(tenant))
                if isinstance(found, ReachesBack) and tenant in after:
                    logger.info("usage of %s is read from offset 0: %s", tenant, found)
                    again[tenant] = of
                else:
                    yield usage, found
        if again:
            yield from self.statements(again)

    def bills(self, due: Mapping[str, Due]) -> Iterator[tuple[str, list[Bill] | Exception]]:
        """The bills of each tenant, or why there are none: LogIncomplete over an unreadable record, and where a cut is not on the log. Raises it
        where prices, or what was decided on bills, are not whole."""
        _ = self.prices, self.decided
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
        for partition, tenants in asked.items():
            left = set(tenants)
            try:
                for usage, found in self._of_partition(partition, tenants, due):
                    left.discard(usage.tenant)
                    self._computed = {usage.tenant: usage}
                    yield usage.tenant, self._bills_or_why(usage, due[usage.tenant], tenants[usage.tenant], found)
            except OSError as e:  # no space for what was read
                yield from ((tenant, e) for tenant in sorted(left))

    def keep(self, bill: Bill) -> None:
        """The next bill goes on behind this one: the one that was given last, and it is issued."""
        usage = self._computed.get(str(bill.cut["tenant"]))
        if self._checkpoints is None or usage is None:
            return
        made = usage.checkpoint(lambda cutoff: _pins(bill.cut, cutoff, bill.digest()))
        if made is not None:
            self._checkpoints.keep(usage.partition, made)
        else:
            self._checkpoints.discard(usage.partition, usage.tenant)

    def doubt(self, tenant: str) -> None:
        """The next try is from offset 0: what went on from the checkpoint is not what the tables say."""
        if self._checkpoints is not None:
            self._checkpoints.discard(usage_partition(tenant), tenant)

    # --- one partition

    def _of_partition(
        self, partition: int, asked: Mapping[str, Sequence[Asked]], due: Mapping[str, Due]
    ) -> Iterator[tuple[TenantUsage, list[Statement] | Exception]]:
        after = {t: kept for t in asked if (kept := self._checkpoint(t, due[t])) is not None}
        rechecked = {t: after.pop(t) for t in list(after) if self._is_rechecked(partition, t, due[t])}
        for usage, found in self.statements(asked, after):
            kept = rechecked.get(usage.tenant)
            yield usage, self._compared(usage, asked[usage.tenant], kept, found) if kept and isinstance(found, list) else found

    def _compared(
        self, usage: TenantUsage, asked: Sequence[Asked], kept: Checkpoint, found: list[Statement]
    ) -> list[Statement] | Exception:
        """Found from offset 0, and again from the checkpoint."""
        _, again = self._statements(usage.tenant, usage.spool, asked, kept)
        if isinstance(again, ReachesBack) or again == found:
            return found
        assert self._checkpoints is not None
        self._checkpoints.discard_all()
        message = f"bill {kept.pins.number + 1} of {usage.tenant} goes on from a checkpoint to other figures than from offset 0"
        return CheckpointDiffers(f"{message}: all checkpoints are discarded")

    def _checkpoint(self, tenant: str, due: Due) -> Checkpoint | None:
        """That of the bill before, if the cut names that very bill."""
        number, cuts = due.numbers[-1], due.decided.cuts
        if self._checkpoints is None or number - 1 not in due.numbers:
            return None
        kept = self._checkpoints.checkpoint(usage_partition(tenant), tenant)
        if kept is None:
            return None
        expected = _pins(cuts[number - 1], self._asked(due.decided, number - 1)[0], bytes(cuts[number]["previous_bill_sha256"]))
        return kept if kept.pins == expected else None

    def _is_rechecked(self, partition: int, tenant: str, due: Due) -> bool:
        number = due.numbers[-1]
        first = self.decided.first.get((partition, str(due.decided.cuts[number]["period"])[:7]))
        return due.rechecked_by_chance or (first is not None and first[1:] == (tenant, number))

    def _statements(
        self, tenant: str, spool: UsageSpool, asked: Sequence[Asked], after: Checkpoint | None
    ) -> tuple[TenantUsage, list[Statement] | Exception]:
        terms = self._terms_of(tenant)
        decisions, known = self.decided.records[usage_partition(tenant)], {} if isinstance(terms, _Unknown) else terms
        usage = TenantUsage(tenant, spool, decisions, self.producers.opened, known, after)
        if isinstance(terms, _Unknown):
            return usage, terms
        try:
            return usage, usage.statements(asked)
        except Exception as e:
            return usage, e

    def _read(self, asked: Mapping[str, Sequence[Asked]], after: Mapping[str, Checkpoint]) -> UsageSpool:
        """What they want of their partition, in one pass."""
        (partition,) = {usage_partition(tenant) for tenant in asked}
        written_off = self.decided.records[partition].written_off
        _ = self.producers, [self._terms_of(tenant) for tenant in asked]  # before the pass: the reader follows one topic at a time
        ends = {t: max((cutoff.cuts.get(partition, 0) for cutoff, _ in of), default=0) for t, of in asked.items()}
        wanted = {t: Wanted(after[t].pins.offset if t in after else 0, end) for t, end in ends.items()}
        known = self._checkpoints.unread(partition) if self._checkpoints is not None else None
        if known is not None and not known.holds(self._codec.schemas.by_id, written_off):
            known = None
        start = min(known.end if known else 0, *(w.start for w in wanted.values()))
        before = {o: u for o, u in known.unread.items() if o < start} if known else {}
        spool = read_usage(self._reader, self._codec, partition, wanted, written_off, before, start)
        end = max(ends.values())
        if self._checkpoints is not None and (known is None or end > known.end):
            self._checkpoints.keep_unread(partition, UnreadBelow(end, spool.unread, digest_of_written_off(written_off, end)))
        self.usage_read += spool.records
        logger.info("usage/%d: read %d records from %d on for %d tenants", partition, spool.records, start, len(asked))
        return spool

    # --- one bill

    def _bills_or_why(
        self, usage: TenantUsage, due: Due, asked: Sequence[Asked], found: list[Statement] | Exception
    ) -> list[Bill] | Exception:
        try:
            return found if isinstance(found, Exception) else self._bills_of(usage, due, asked, found)
        except Exception as e:
            return e

    def _asked(self, decided: TenantBills, number: int) -> Asked:
        cut = decided.cuts[number]
        return cutoff_of(cut, decided.excluded.get(number, ())), self.prices.book(cut["price_book"], cut["decided_position"])

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

    def _terms_of(self, tenant: str) -> dict[str, KeyTerm] | _Unknown:
        partition = partition_of(tenant.encode(), TOPICS["accounts"].partitions)
        if partition not in self._terms:
            try:
                self._terms[partition] = self._folds.terms(partition)
            except (LogIncomplete, Undecodable) as e:
                self._terms[partition] = e
        found = self._terms[partition]
        return found if isinstance(found, _Unknown) else found.of.get(tenant, {})


def _pins(cut: Body, cutoff: Cutoff, bill_sha256: bytes) -> Pins:
    tenant = str(cut["tenant"])
    offset = cutoff.cuts.get(usage_partition(tenant), 0)
    return Pins(
        tenant, cut["number"], str(cut["log_id"]), offset, cutoff.until, cutoff.decided_position, cutoff.rating_version, bill_sha256
    )


def cutoff_of(cut: Body, excluded: Iterable[int] = ()) -> Cutoff:
    """The cut-off that a `BillCutFixed` pins, without what its bill excluded. Raises UnknownRatingVersion."""
    ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
    return Cutoff(ends, cut["until"], cut["rating_version"], frozenset(excluded), cut["decided_position"])


def bills_from_log(reader: Reader, codec: Codec, decided: TenantBills, numbers: Sequence[int]) -> list[Bill]:
    """One tenant's, as `LogRound.bills`. Raises LogIncomplete."""
    ((_, found),) = LogRound(reader, codec).bills({decided.tenant: Due(decided, numbers)})
    if isinstance(found, Exception):
        raise found
    return found
