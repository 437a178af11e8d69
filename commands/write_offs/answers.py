"""What is answered about a write-off."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from commands.http.answers import Accepted


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


class _RecordSetWriteOff(_WriteOff):
    record_set: str
    topic: str
    records_count: int
    selection: str
    note: str


class RecordSetWriteOffShown(_RecordSetWriteOff):
    records: list[PlacedBytes]


class RecordSetWriteOffAnswer(Accepted, _RecordSetWriteOff):
    pass


class ProducerWriteOffShown(_WriteOff):
    producer: str
    epoch: str


class ProducerWriteOffAnswer(Accepted, ProducerWriteOffShown):
    pass
