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


class ProducerWriteOffShown(_WriteOff):
    producer: str
    epoch: str


class ProducerWriteOffAnswer(Accepted, ProducerWriteOffShown):
    pass
