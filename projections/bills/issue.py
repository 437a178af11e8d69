"""Issues the bills whose cut is fixed: computed from the table, computed again from the log, posted only when both say the same bytes (K21).

All bills that are due are one round: the log is read once for all of them, and an error of one is that one's alone.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import httpx

from events.log.client import LogUnavailable, Reader
from events.log.heartbeat import Heartbeat, newest_heartbeats
from events.log.schemas import read_schemas
from events.schema.codec import Codec, Undecodable
from projections.bills.bill_from_log import CheckpointDiffers, Due, LogRound
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.decided_folds import DecidedFolds
from projections.bills.decided_for_bills import LogIncomplete
from projections.bills.from_tables.bill_from_tables import TableRound, Wanted, below_of, bill_from_tables
from projections.bills.from_tables.decided_in_tables import (
    LISTED_MAX,
    NAMED_MAX,
    TooManyWrittenOff,
    Unreadable,
    cuts_of,
    unreadable_of,
    usage_partition,
)
from projections.bills.from_tables.together import together
from projections.bills.running import newest_position
from projections.catalog.document import plain
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from projections.ingest.table_offsets import DenseEnds
from projections.usage.held_decisions import HeldDecisions
from projections.usage.verifier import UsageVerifier
from rating.bill import Bill
from rating.period import InvalidPeriod
from rating.statement import UnknownRatingVersion

logger = logging.getLogger(__name__)
CUTS_MAX = 1000
"""Cuts looked at in one round; those behind them have their turn in the next."""

POST_S_MAX = 60
"""A bill of 100 000 lines takes seconds to check; a second post of the same bill does no harm."""

Body = Mapping[str, Any]
T = TypeVar("T")
_EXPECTED = (
    LogIncomplete,
    CheckpointDiffers,
    OSError,
    InvalidPeriod,
    ClickHouseError,
    TooManyWrittenOff,
    Undecodable,
    UnknownRatingVersion,
)
"""What a bill may end with; the message says all. Anything else is a defect."""

Reason = Literal[
    "table_behind",
    "not_verified",
    "prices_behind",
    "decisions_behind",
    "dead_letters",
    "sources_disagree",
    "checkpoint_differs",
    "log_incomplete",
    "not_computable",
    "no_answer",
    "refused",
    "commands_away",
]


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not yet, and why: nothing is wrong, the table or the relay is behind; or something is, and a person must look."""

    reason: Reason
    message: str
    alarming: bool


@dataclass(frozen=True, slots=True)
class Issued:
    bill: Bill


Outcome = Issued | Deferred
BillNumber = tuple[str, int]
"""Tenant and number."""


class _Ready(NamedTuple):
    """A cut that can be issued, by what the tables say; `cuts`: its own and the one before it, by number."""

    number: int
    cuts: Mapping[int, Body]

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.cuts[self.number], self.cuts.get(self.number - 1))

    @property
    def below(self) -> int:
        """The cut in the tenant's partition."""
        return below_of(self.cuts[self.number])


@dataclass(frozen=True, slots=True)
class _Decided:
    """What is in the tables of all that was decided."""

    heartbeat: Heartbeat | None
    prices: int
    """Position of the store."""
    bills: Mapping[int, int]
    """The same, of each partition."""

    def not_sent(self, pinned: int) -> Deferred | None:
        """A heartbeat at or past the pinned position says that all that was decided up to it is on the log (K5)."""
        if self.heartbeat is None or self.heartbeat.position < pinned:
            return Deferred("prices_behind", "no heartbeat of the relay at or past the pinned position", alarming=False)
        return None

    def behind(self, pinned: int, log: LogRound, usage_partition: int) -> Deferred | None:
        """A cut may be seen before a price, or before what people decided about records of its partition, that was decided earlier: they travel in
        different partitions. The log says which of them there are; a partition that brings none to this bill may be behind."""
        wanted = newest_up_to(log.prices.positions, pinned)
        if self.prices < wanted:
            return Deferred("prices_behind", f"prices are in the table up to position {self.prices}, not {wanted}", alarming=False)
        for partition, positions in log.decided.records[usage_partition].positions.items():
            have, wanted = self.bills.get(partition, 0), newest_up_to(positions, pinned)
            if have < wanted:
                message = f"bills/{partition} is in the table up to position {have}, a decision about records stands at {wanted}"
                return Deferred("decisions_behind", message, alarming=False)
        return None


def newest_up_to(positions: Sequence[int], pinned: int) -> int:
    """The last of ascending positions that is not above the pinned one; 0 where there is none."""
    count = bisect_right(positions, pinned)
    return positions[count - 1] if count else 0


def cuts_without_bill(clickhouse: ClickHouse, after: str = "") -> list[tuple[str, int]]:
    """(tenant, number) of cuts without their bill, in the order of tenants from the one after `after`; at most CUTS_MAX."""
    rows = clickhouse.rows(
        f"""SELECT key AS tenant, countIf(fact = 'BillCutFixed') AS fixed FROM history WHERE topic = 'bills' AND key > {{after:String}}
        GROUP BY key HAVING fixed > countIf(fact = 'BillIssued') ORDER BY key LIMIT {CUTS_MAX}""",
        {"after": after},
    )
    return [(str(row["tenant"]), int(row["fixed"])) for row in rows]


class Issuer:
    """One biller. Any number of them may run: they post the same bytes, and the second one gets the answer of the first."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        reader: Reader,
        codec: Codec,
        verifier: UsageVerifier,
        checkpoints: CheckpointFiles,
        *,
        commands_url: str,
        admin_key: str,
    ) -> None:
        self._clickhouse, self._reader, self._codec, self._schemas_end = clickhouse, reader, codec, -1
        self._checkpoints, self._folds = checkpoints, DecidedFolds(reader, codec)
        self.ends, self._verifier, self._decisions = DenseEnds(clickhouse, "usage"), verifier, HeldDecisions(clickhouse)
        self._failed = set[str]()
        """Tenants whose questions to the tables failed: they are asked about alone."""
        self._http = httpx.Client(base_url=commands_url, headers={"Authorization": f"Bearer {admin_key}"}, timeout=POST_S_MAX)

    def issue(self, tenant: str, number: int) -> Outcome:
        """As `issue_all`, of one."""
        ((_, outcome),) = self.issue_all([(tenant, number)])
        return outcome

    def issue_all(self, due: Sequence[BillNumber]) -> Iterator[tuple[BillNumber, Outcome]]:
        """What became of each, as it comes; of each tenant one. The log is read once for all of them, and an error of one is its own outcome.
        Raises ClickHouseUnavailable and LogUnavailable where nobody gets an answer: try again."""
        if not due:
            return
        decided = self._decided_so_far()
        ready: dict[str, _Ready] = {}
        for (tenant, number), found in self._ready(due, decided):
            if isinstance(found, Deferred):
                yield (tenant, number), found
            else:
                ready[tenant] = found
        if not ready:
            return
        self._learn()
        log = LogRound(self._reader, self._codec, self._folds, self._checkpoints)
        tables = TableRound(self._clickhouse, {t: r.wanted for t, r in ready.items()}, self._failed)
        try:
            wanted = dict[str, Due]()
            for tenant, mine in list(ready.items()):
                # Each source has its own cuts: a wrong row of the table must not make both agree on a wrong bill.
                there = log.decided.of(tenant)
                if wrong := [n for n in mine.cuts if not _same_cut(mine.cuts[n], there.cuts.get(n))]:
                    yield (tenant, ready.pop(tenant).number), _another_cut(tenant, wrong[0])
                elif behind := decided.behind(int(there.cuts[mine.number]["decided_position"]), log, usage_partition(tenant)):
                    yield (tenant, ready.pop(tenant).number), behind
                else:
                    wanted[tenant] = Due(there, sorted(mine.cuts))
            for tenant, from_log in log.bills(wanted):
                mine = ready.pop(tenant)
                yield (tenant, mine.number), self._alone(lambda mine=mine, from_log=from_log: self._issue(mine, from_log, tables, log))
        except (LogIncomplete, Undecodable) as e:  # prices, or what was decided on bills: of every tenant
            for tenant, mine in ready.items():
                yield (tenant, mine.number), _deferred(e)

    def _alone(self, what: Callable[[], T]) -> T | Deferred:
        """An error of one tenant's bill does not stop the others: this bill waits, theirs go on."""
        try:
            return what()
        except LogUnavailable:
            raise
        except ClickHouseUnavailable as e:
            self._clickhouse.value("SELECT 1")  # raises the same where nobody gets an answer
            return Deferred("no_answer", f"the tables answer, but not what this bill asks: {e}", alarming=True)
        except Exception as e:
            if not isinstance(e, _EXPECTED):
                logger.exception("a bill could not be computed")
            return _deferred(e)

    def _ready(self, due: Sequence[BillNumber], decided: _Decided) -> Iterator[tuple[BillNumber, _Ready | Deferred]]:
        """Asks about all of them together."""
        numbers, ready, ends = dict(due), dict[int, dict[str, _Ready]](), _Ends(self.ends, self._verifier)
        for start in range(0, len(due), NAMED_MAX):
            wanted = {tenant: range(max(1, number - 1), number + 1) for tenant, number in due[start : start + NAMED_MAX]}
            for tenant, cuts in together(
                self._clickhouse, list(wanted), lambda some, wanted=wanted: cuts_of(self._clickhouse, {t: wanted[t] for t in some})
            ):
                found = self._alone(lambda tenant=tenant, cuts=cuts: _cut_is_known(tenant, numbers[tenant], cuts, decided, ends))
                if isinstance(found, Deferred):
                    yield (tenant, numbers[tenant]), found
                else:
                    ready.setdefault(usage_partition(tenant), {})[tenant] = found
        for of_partition in ready.values():
            for tenant, unreadable in together(
                self._clickhouse,
                list(of_partition),
                lambda some, mine=of_partition: unreadable_of(self._clickhouse, {t: mine[t].below for t in some}),
            ):
                mine = of_partition[tenant]
                yield (tenant, mine.number), self._alone(lambda mine=mine, unreadable=unreadable: _is_readable(mine, unreadable))

    def _issue(self, ready: _Ready, from_log: list[Bill] | Exception, tables: TableRound, log: LogRound) -> Outcome:
        if isinstance(from_log, Exception):
            raise from_log
        wanted, right = ready.wanted, from_log[-1].canonical()
        tenant = str(wanted.cut["tenant"])
        self._failed.add(tenant)
        table = tables.bill(tenant, log.producers.ended)
        self._failed.discard(tenant)
        if table.canonical() != right:
            # It was computed with others, some time ago: a record may have been read again since.
            table = bill_from_tables(self._clickhouse, wanted.cut, wanted.before, log.producers.ended)
        if table.canonical() != right:
            log.doubt(tenant)
            return self._difference(table, from_log[-1])
        outcome = self._post(table)
        if isinstance(outcome, Issued):
            log.keep(table)
        return outcome

    def _learn(self) -> None:
        """An id is on the log before it is used (K2): who has read all schemas now can read whatever lies below a cut. Without those
        that came since this process began, its bill would be another than that of a biller which began today."""
        end = self._reader.end_offsets("schemas")["schemas", 0]
        if end != self._schemas_end:
            self._codec, self._schemas_end = Codec(read_schemas(self._reader)[0]), end
            self._folds = DecidedFolds(self._reader, self._codec)

    def _post(self, bill: Bill) -> Outcome:
        cut = bill.cut
        body = {
            "number": cut["number"],
            "cut_event_id": cut["event_id"],
            "digest": bill.digest().hex(),
            "lines": bill.line_bodies(),
            "total_micros": bill.total_micros,
            "facts": bill.facts,
            "producers_open": bill.producers_open,
            "excluded": bill.excluded,
        }
        try:
            answer = self._http.post(f"/v1/bills/{cut['tenant']}/{cut['period']}/complete", json=body)
        except httpx.TransportError as e:
            return Deferred("commands_away", f"the command API does not answer: {type(e).__name__}: {e}", alarming=False)
        if answer.is_success:
            return Issued(bill)
        return Deferred("refused", f"{answer.status_code}: {answer.text[:500]}", alarming=True)

    def _difference(self, table: Bill, log: Bill) -> Deferred:
        """A written-off record that can be read by now counts in the log at once, and in the table only after `dead-letters retry`."""
        cut = table.cut
        usage = f"usage/{usage_partition(cut['tenant'])}"
        if again := [f"{usage}/{offset}" for offset in sorted(set(table.excluded) - set(log.excluded))]:
            where = ", ".join(again[:LISTED_MAX]) + (f" and {len(again) - LISTED_MAX} more" if len(again) > LISTED_MAX else "")
            how = f"`modelmarket dead-letters retry {again[0] if len(again) == 1 else '--all'}`"
            return Deferred("dead_letters", f"{where}: written off, and can be read now: {how}", alarming=True)
        sums = f"{table.total_micros} from the table and {log.total_micros} from the log"
        left_out = f", without {list(log.excluded)[:LISTED_MAX]} of {usage} in the log alone" if table.excluded != log.excluded else ""
        message = f"bill {cut['number']} of {cut['tenant']} is {sums}, {table.facts} and {log.facts}{left_out}"
        return Deferred("sources_disagree", message, alarming=True)

    def _decided_so_far(self) -> _Decided:
        seen = newest_heartbeats(self._reader)
        rows = self._clickhouse.rows(
            """SELECT kafka_partition, max(position) AS newest FROM history_rows WHERE topic = 'bills' AND kind IN ('decided', 'store')
            GROUP BY kafka_partition"""
        )
        folded = {int(row["kafka_partition"]): int(row["newest"]) for row in rows}
        prices = newest_position(self._clickhouse, "prices")
        self._decisions.note()
        return _Decided(seen[0].heartbeat if seen else None, prices, folded)


@dataclass(slots=True)
class _Ends:
    """How far each partition of the table is dense and verified, asked once in a round."""

    dense: DenseEnds
    verifier: UsageVerifier
    _known: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    def behind(self, cut: Body) -> Deferred | None:
        for p, offset in ((c["partition"], c["offset"]) for c in cut["cuts"]):
            if p not in self._known:
                self._known[p] = self.dense.end(p), self.verifier.verified(p)
            end, verified = self._known[p]
            if end < offset:
                return Deferred("table_behind", f"usage/{p} is in the table up to {end}, the cut is {offset}", alarming=False)
            if verified < offset:
                return Deferred("not_verified", f"usage/{p} is verified up to {verified}, the cut is {offset}", alarming=False)
        return None


def _cut_is_known(tenant: str, number: int, cuts: Mapping[int, Body] | Exception, decided: _Decided, ends: _Ends) -> _Ready | Deferred:
    if isinstance(cuts, Exception):
        raise cuts
    if missing := [n for n in range(max(1, number - 1), number + 1) if n not in cuts]:
        return _another_cut(tenant, missing[0])
    cut = cuts[number]
    return ends.behind(cut) or decided.not_sent(int(cut["decided_position"])) or _Ready(number, cuts)


def _is_readable(ready: _Ready, found: Unreadable | Exception) -> _Ready | Deferred:
    """K9: an unreadable record is the tenant's when its key says so, and may be when a chain of the tenant misses one, until two people write
    it off."""
    if isinstance(found, Exception):
        raise found
    if not found.open:
        return ready
    partition = usage_partition(ready.wanted.cut["tenant"])
    where = ", ".join(f"usage/{partition}/{offset}" for offset in found.open)
    ignored = ", ".join(f"usage/{partition}/{offset}" for offset in found.mistaken)
    more = f"; the write-off of {ignored} names other bytes than lie there and is ignored" if ignored else ""
    return Deferred("dead_letters", f"nobody could read {where}{more}: see `modelmarket dead-letters list`", alarming=True)


def _deferred(e: Exception) -> Deferred:
    if isinstance(e, LogIncomplete):
        return Deferred("log_incomplete", str(e), alarming=True)
    if isinstance(e, CheckpointDiffers):
        return Deferred("checkpoint_differs", str(e), alarming=True)
    return Deferred("not_computable", f"{type(e).__name__}: {e}", alarming=True)


def _same_cut(table: Body, log: Body | None) -> bool:
    """By the fields that both have: a table that another version of this program filled may have one more or less."""
    if log is None:
        return False
    here, there = plain(table), plain(log)
    return all(here[name] == there[name] for name in here.keys() & there.keys())


def _another_cut(tenant: str, number: int) -> Deferred:
    message = f"cut {number} of {tenant} is not in the table as it is on the log: what is decided must be folded into a new database (docs/operations.md)"
    return Deferred("sources_disagree", message, alarming=True)
