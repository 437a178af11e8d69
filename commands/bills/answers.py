"""What is answered about a tenant's newest bill."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from commands.http.answers import Accepted


class BillShown(BaseModel):
    tenant: str
    period: str
    number: int
    state: Literal["cut_fixed", "issued"]
    cut_event_id: str
    until: int = Field(description="µs UTC: facts from here on are on a later bill.")
    cuts: dict[str, int] = Field(description="Partition of `usage` → the first offset that this bill leaves out.")
    digest: str | None = Field(None, description="SHA-256 of the canonical bill, hex, once it is issued.")


class BillAnswer(Accepted, BillShown):
    pass
