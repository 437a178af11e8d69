"""What was billed. A bill is the difference of two statements (K20). Topic `bills`, key = tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.fact import DEFAULT_CURRENCY, BookId, Count, Decided, Micros, Part, Sha256, TenantId, UserId
from events.facts.prices import Meter

Period = Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]


class Cut(Part):
    """Facts of `usage` partition `partition` at or past `offset` are not in this bill."""

    partition: Count
    offset: Count


class BillLine(Part):
    """One model, meter and price: the change since the last bill. `held` = no price known: shown, not charged."""

    model: str
    model_version: str
    provider: str
    meter: Meter
    book_version: Count
    amount_per_micros: Count
    per_units: Count
    quantity: int
    amount_micros: int
    held: bool = False


class BillCutFixed(Decided):
    """Bill `number` of a tenant is fixed in advance: any biller computes the same bytes from it (K21)."""

    tenant: TenantId
    period: Period
    number: Annotated[int, Field(ge=1)]
    log_id: str
    cuts: tuple[Cut, ...]
    until: Micros
    decided_position: Count
    rating_version: Count
    price_book: BookId
    currency: str = DEFAULT_CURRENCY
    previous_bill_sha256: Sha256
    by: UserId


class BillIssued(Decided):
    """The bill is out: these lines are owed, and nothing of it changes. Counts are of the facts below the cut.

    `merkle_root` and `checkpoint` (K23) stay empty until checkpoints are signed.
    """

    tenant: TenantId
    period: Period
    number: Annotated[int, Field(ge=1)]
    cut_event_id: str
    digest: Sha256
    currency: str = DEFAULT_CURRENCY
    total_micros: int
    lines: tuple[BillLine, ...]
    facts_claimed: int
    facts_carried: Count
    facts_copied: Count
    facts_duplicate: Count
    facts_voided: Count
    producers_open: Count
    merkle_root: bytes = b""
    checkpoint: str = ""
    issued_by: Literal["biller", "person"] = "biller"
