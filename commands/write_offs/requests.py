"""The requests about write-offs, with every bound on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commands.http.bounds import HEX_256, Reason, RequestBody
from commands.write_offs.records import ApproveRecordWriteOff, RequestRecordWriteOff
from events.log.record import Coordinate


class RecordWriteOffRequest(RequestBody):
    sha256: Annotated[str, Field(pattern=HEX_256, description="SHA-256 of the record's value, in hex.")]
    reason: Reason

    def command(self, log_id: str, at: Coordinate, found: bytes | None) -> RequestRecordWriteOff:
        return RequestRecordWriteOff(log_id, at, bytes.fromhex(self.sha256), self.reason, found)


class ApproveRecordRequest(RequestBody):
    sha256: Annotated[str, Field(pattern=HEX_256, description="Of the bytes that you approve: they must be what was requested.")]

    def command(self) -> ApproveRecordWriteOff:
        return ApproveRecordWriteOff(bytes.fromhex(self.sha256))


class ProducerWriteOffRequest(RequestBody):
    reason: Reason
