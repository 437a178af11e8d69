"""What is answered about a write-off, or another decision of two people about records."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from commands.http.answers import Accepted
from events.facts.write_offs import SetDecision


class _WriteOff(BaseModel):
    state: Literal["requested", "written_off"]
    reason: str
    requested_by: str
    approver: str | None


class RecordWriteOffShown(_WriteOff):
    record: str
    sha256: str
    note: str


class RecordWriteOffAnswer(Accepted, RecordWriteOffShown):
    pass


class PlacedBytes(BaseModel):
    partition: int
    offset: int
    sha256: str


class _RecordSet(BaseModel):
    record_set: str
    decision: SetDecision
    state: Literal["requested", "decided"]
    reason: str
    requested_by: str
    approver: str | None
    topic: str
    records_count: int
    selection: str
    note: str


class RecordSetShown(_RecordSet):
    records: list[PlacedBytes]


class RecordSetAnswer(Accepted, _RecordSet):
    pass


class ProducerWriteOffShown(_WriteOff):
    producer: str
    epoch: str


class ProducerWriteOffAnswer(Accepted, ProducerWriteOffShown):
    pass
