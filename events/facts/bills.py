"""What was billed. A bill is the difference of two statements (K20). Topic `bills`, key = tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.facts.fact import (
    DEFAULT_CURRENCY,
    INT64_MAX,
    BookId,
    Count,
    DecidedFact,
    Line,
    NestedRecord,
    NonNegative,
    OptionalLine,
    Sha256,
    Signed,
    TenantId,
    Timestamp,
    UserId,
)
from events.facts.meters import Meter

Period = Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]


class Cut(NestedRecord):
    """Facts of `usage` partition `partition` at or past `offset` are not in this bill."""

    partition: Count
    offset: Count


class BillLine(NestedRecord):
    """One model, meter and price: the change since the last bill. `held` = no price known: shown, not charged."""

    model: Line
    model_version: OptionalLine
    provider: OptionalLine
    meter: Meter
    book_version: NonNegative
    amount_per_micros: NonNegative
    per_units: NonNegative
    quantity: Signed
    amount_micros: Signed
    held: bool = False


Counter = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]


class BillCounts(NestedRecord):
    """What became of the tenant's records of `usage` below a cut; all but `retimed` and `missing` add up to the records. The one list of
    these counters: statements, bills, request body, table and command line are made from it."""

    claimed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] = 0
    """Billed, and their time is before `until`. In a bill: more than in the bill before."""
    carried: Counter = 0
    """Billed on a later bill: their time is not before `until`."""
    copied: Counter = 0
    conflicting: Counter = 0
    duplicate: Counter = 0
    voided: Counter = 0
    unbilled: Counter = 0
    held: Counter = 0
    """Not billed, since nothing proves that a gateway wrote them for a key of this tenant, or since a record before them is missing (K13)."""
    retimed: Counter = 0
    """Of claimed and carried: those whose own time was out of bounds, so that their append time holds."""
    missing: Counter = 0
    """Sequence numbers below the newest of their epoch whose records are not below the cut (K13)."""

    @property
    def records(self) -> int:
        return self.claimed + self.carried + self.copied + self.conflicting + self.duplicate + self.voided + self.unbilled + self.held


BILL_COUNTERS: tuple[str, ...] = tuple(BillCounts.model_fields)


class CutPins(NestedRecord):
    """What a cut pins, so that any biller computes the same bill from it. The one list of it: command and fact are made from it."""

    period: Period
    log_id: str
    cuts: tuple[Cut, ...]
    decided_position: Count
    producers_offset: Count = 0
    """Records of `producers` at or past this offset say nothing about this bill."""
    rating_version: Count
    price_book: BookId
    currency: str = DEFAULT_CURRENCY


class BillCutFixed(CutPins, DecidedFact):
    """Bill `number` of a tenant is fixed in advance: any biller computes the same bytes from it (K21)."""

    tenant: TenantId
    number: Annotated[int, Field(ge=1)]
    until: Timestamp
    previous_bill_sha256: Sha256
    by: UserId


class BillLinesListed(DecidedFact):
    """A part of a bill whose lines do not fit into one record (K3). The parts come before their `BillIssued`, in order, decided together
    with it; without it they say nothing."""

    tenant: TenantId
    period: Period
    number: Annotated[int, Field(ge=1)]
    lines: tuple[BillLine, ...]


class BillResult(NestedRecord):
    """What a biller computed from a cut, but for the lines and the digest. The one list of it: request, command and fact are made from it."""

    number: Annotated[int, Field(ge=1, le=INT64_MAX)]
    cut_event_id: Annotated[str, Field(max_length=64)]
    total_micros: Signed
    facts: BillCounts
    producers_open: NonNegative
    excluded: Annotated[tuple[NonNegative, ...], Field(max_length=10_000, description="Offsets that two people gave up, in order.")] = ()
    """One that can be read later stays left out of this bill, and the next one counts it."""


class BillIssued(BillResult, DecidedFact):
    """The bill is out: these lines are owed, and nothing of it changes. `facts.claimed` is the difference to the bill before;
    the other counts are of all the tenant's records below the cut, so that the claims of bills 1 to n and the counts of bill n
    add up to every record. `digest` is of the canonical bytes in `rating/bill.py`.

    `merkle_root` and `checkpoint` (K23) stay empty until checkpoints are signed.
    """

    tenant: TenantId
    period: Period
    digest: Sha256
    currency: str = DEFAULT_CURRENCY
    lines: tuple[BillLine, ...]
    lines_before: Count = 0
    """So many of its lines stand in the `BillLinesListed` of its number, and come before `lines`."""
    records_written_off: Count = 0
    """Records of the tenant's usage partition below the cut that nobody can read and two people wrote off: anybody's, billed to nobody.
    `excluded` has their offsets."""
    merkle_root: bytes = b""
    checkpoint: str = ""
    issued_by: Literal["biller", "person"] = "biller"
