"""The biller's result, with every bound on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commands.bills.decide import CompleteBill
from commands.http.bounds import HEX_256
from events.facts.bills import BillLine, BillResult


class CompleteBillRequest(BillResult):
    digest: Annotated[str, Field(pattern=HEX_256, description="SHA-256 of the canonical bill, in hex.")]
    lines: Annotated[tuple[BillLine, ...], Field(max_length=100_000)]

    def command(self, period: str) -> CompleteBill:
        return CompleteBill(period, bytes.fromhex(self.digest), self.lines, BillResult(**self.shared(BillResult)))
