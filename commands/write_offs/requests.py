"""The requests about write-offs, with every bound on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commands.http.bounds import HEX_256, REASON_CHARS_MAX, Reason, RequestBody
from commands.write_offs.records import ApproveRecordWriteOff, RequestRecordWriteOff
from events.facts.fact import NonNegative
from events.facts.write_offs import RECORDS_MAX, RecordBytes, SetDecision
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


class PlacedBytesRequest(RequestBody):
    partition: NonNegative
    offset: NonNegative
    sha256: Annotated[str, Field(pattern=HEX_256, description="SHA-256 of the record's value, in hex.")]


class RecordSetRequest(RequestBody):
    decision: Annotated[SetDecision, Field(description="count and dismiss: of usage that is held.")] = "write_off"
    topic: Annotated[str, Field(min_length=1, max_length=100)]
    records: Annotated[list[PlacedBytesRequest], Field(min_length=1, max_length=RECORDS_MAX, description="In any order, each once.")]
    selection: Annotated[str, Field(max_length=REASON_CHARS_MAX, description="How they were chosen, in words, for the approver.")] = ""
    reason: Reason

    def listed(self) -> list[RecordBytes]:
        return [RecordBytes(partition=r.partition, offset=r.offset, sha256=bytes.fromhex(r.sha256)) for r in self.records]


class ProducerWriteOffRequest(RequestBody):
    reason: Reason
