"""The biller's result, with every bound on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commands.bills.decide import CompleteBill
from commands.http.bounds import HEX_256, RequestBody
from events.facts.bills import BillCounts, BillLine
from events.facts.fact import NonNegative, Signed


class CompleteBillRequest(RequestBody):
    number: NonNegative
    cut_event_id: Annotated[str, Field(max_length=64)]
    digest: Annotated[str, Field(pattern=HEX_256, description="SHA-256 of the canonical bill, in hex.")]
    lines: Annotated[tuple[BillLine, ...], Field(max_length=100_000)]
    total_micros: Signed
    facts: BillCounts
    producers_open: NonNegative
    excluded: Annotated[tuple[NonNegative, ...], Field(max_length=10_000, description="Offsets that two people gave up, in order.")] = ()

    def command(self, period: str) -> CompleteBill:
        return CompleteBill(
            period,
            self.number,
            self.cut_event_id,
            bytes.fromhex(self.digest),
            self.lines,
            self.total_micros,
            self.facts,
            self.producers_open,
            self.excluded,
        )
