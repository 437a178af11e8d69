"""One tenant's usage on the log, as statements: from offset 0, or from where a checkpoint stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from events.producers.opened_epochs import OpenedEpochs
from projections.bills.checkpoints.checkpoint import Checkpoint, Pins, digest_of_unread
from projections.bills.decided_for_bills import LogIncomplete, RecordDecisions, usage_partition
from projections.bills.usage_spool import UsageSpool
from projections.bills.usage_verdicts import NOTHING_JUDGED, UsageVerdicts, VerdictState
from rating.book import PriceBook
from rating.key_terms import KeyTerm
from rating.rules import VOIDED, ReachesBack, UsageRecord
from rating.statement import NOTHING, Cutoff, Place, Statement, StatementBuilder, StatementState

Asked = tuple[Cutoff, PriceBook]
"""One statement."""


class TenantUsage:
    """One tenant's usage on the log, below the cuts of what is asked. All of it is in one partition, since the tenant is the key."""

    def __init__(
        self,
        tenant: str,
        spool: UsageSpool,
        decisions: RecordDecisions,
        opened: OpenedEpochs,
        terms: Mapping[str, KeyTerm],
        after: Checkpoint | None = None,
    ) -> None:
        """The spool has the tenant's records from the cut of `after` on."""
        self.tenant, self.partition = tenant, usage_partition(tenant)
        self.spool, self._decisions, self._opened, self._terms, self._after = spool, decisions, opened, terms, after
        self._broken = False
        """Whether a chain of the tenant misses a record below a cut."""
        self._last: tuple[Cutoff, UsageVerdicts, StatementBuilder] | None = None

    def statements(self, asked: Sequence[Asked]) -> list[Statement]:
        """The statement of each cut-off, in two passes: what counts and what was voided first, then everything once. Raises ReachesBack where the
        checkpoint is not enough."""
        for cutoff, _ in asked:
            self._require_usable(cutoff)
        start, judged, counted = self._after_parts()
        verdicts = [UsageVerdicts(self._opened, self._terms, judged) for _ in asked]
        voids: list[UsageRecord] = []
        for entry in self.spool.of(self.tenant, start):
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
            voided = (void.voided for void in known if self._decided(void, at.of(void.offset), position) in ("whole", "decided"))
            builders.append((at, position, StatementBuilder(cutoff, book, frozenset(voided), counted)))
        self._broken = any(at.broken for at in verdicts)
        for entry in self.spool.of(self.tenant, start):
            record = entry.record
            for at, position, builder in builders:
                builder.add(record, self._decided(record, at.of(record.offset), position))
        self._last = asked[-1][0], verdicts[-1], builders[-1][2]
        return [builder.statement() for _, _, builder in builders]

    def checkpoint(self, pins: Callable[[Cutoff], Pins]) -> Checkpoint | None:
        """After `statements`: to go on from the last of them. None where it would hold too much, or where a record is left out that can be
        read."""
        assert self._last is not None
        cutoff, verdicts, builder = self._last
        judged, counted = verdicts.state(), builder.state()
        if judged is None or counted is None or cutoff.excluded - self.spool.unread.keys():
            return None
        decided = frozenset(o for o, other in judged.others.items() if self._is_decided(o, other.sha256, cutoff.decided_position))
        return Checkpoint(pins(cutoff), judged, counted, decided, digest_of_unread(self.spool.unread, cutoff.cuts.get(self.partition, 0)))

    def require_readable(self, below: int) -> None:
        """After `statements`. An unreadable record is the tenant's when its key says so, and may be when a chain of the tenant misses one: then no
        bill is issued (K9). Raises LogIncomplete."""
        unreadable, own = self.spool.unreadable, self.tenant.encode()
        found = sorted(offset for offset, key in unreadable.items() if offset < below and (self._broken or key == own))
        if found:
            raise LogIncomplete(f"usage/{self.partition}: nobody can read the records at {found[:10]}, and they are not written off (K9)")

    def _after_parts(self) -> tuple[int, VerdictState, StatementState]:
        if self._after is None:
            return 0, NOTHING_JUDGED, NOTHING
        return self._after.pins.offset, self._after.verdicts, self._after.statement

    def _require_usable(self, cutoff: Cutoff) -> None:
        """The checkpoint knows nothing that this cut-off does not, and what was decided about its records since changes none of them."""
        if self._after is None:
            return
        below = self._after.pins.offset
        if not self._after.goes_on_to(cutoff, self.partition):
            raise ReachesBack("the checkpoint is behind the cut")
        if digest_of_unread(self.spool.unread, below) != self._after.unread_sha256:
            raise ReachesBack("a record can be read that nobody could read before, or one was written off")
        for offset, other in self._after.verdicts.others.items():
            if self._is_decided(offset, other.sha256, cutoff.decided_position) != (offset in self._after.decided):
                raise ReachesBack(f"people decided about the record at {offset}")

    def _decided(self, record: UsageRecord, place: Place, position: int) -> Place:
        """The place of a record after what two people decided up to a position."""
        if place == "whole":
            return place
        return "decided" if self._is_decided(record.offset, record.sha256, position) else place

    def _is_decided(self, offset: int, sha256: bytes, position: int) -> bool:
        return self._decisions.counted.get((offset, sha256), position + 1) <= position
