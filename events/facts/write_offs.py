"""What two people decide about records of the log: give up what nobody can read, count or dismiss usage that is held. Topic `bills`, key =
record, or record set.

What is written off is bytes, not a place: `sha256` is of the record's value (of nothing when it has none), and a reader honours the
write-off only where the record at the coordinate has that hash and cannot be read. Whatever can be read is counted all the same (K9).
A record set is an exact list of records and one decision about them. Its name is the digest of both, so that two people mean the same.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.facts.fact import Count, DecidedFact, NestedRecord, Sha256, UserId

RECORDS_MAX = 5000
"""Records of a set: about 210 KiB of a fact's 512 KiB (K3), and 0.6 MiB of the command API's 1 MiB a request."""


class RecordWriteOffRequested(DecidedFact):
    """One admin asks that a record be given up. Nothing changes until another one approves; a request for other bytes takes its place."""

    record: str
    """`topic/partition/offset` in one word: the key."""
    log_id: str
    topic: str
    partition: Count
    offset: Count
    sha256: Sha256
    reason: str
    requested_by: UserId


class RecordWrittenOff(DecidedFact):
    """Two people accept that nobody will read this record: bills are cut over it and say how many there are. No amount changes."""

    record: str
    log_id: str
    topic: str
    partition: Count
    offset: Count
    sha256: Sha256
    reason: str
    requested_by: UserId
    approver: UserId


class RecordBytes(NestedRecord):
    """The bytes at one offset of a topic's partition."""

    partition: Count
    offset: Count
    sha256: Sha256


SetDecision = Literal["write_off", "count", "dismiss"]
"""`write_off`: nobody will read them, and bills are cut over them. `count`: usage that is held is billed all the same, from here on (K13).
`dismiss`: usage that is held stays unbilled, and nobody is alarmed by it any more."""


class RecordSetDecisionRequested(DecidedFact):
    """One admin asks for a decision about these records of a topic, and no others. Nothing changes until another one approves."""

    record_set: str
    """SHA-256 in hex of decision, log, topic and records: the key."""
    decision: SetDecision
    log_id: str
    topic: str
    records: Annotated[tuple[RecordBytes, ...], Field(max_length=RECORDS_MAX)]
    """By partition and offset, each once."""
    selection: str
    """How they were chosen, in words. Only `records` counts."""
    reason: str
    requested_by: UserId


class RecordSetDecided(DecidedFact):
    """Two people have decided about the records of the `RecordSetDecisionRequested` of this name, which is the fact before it. Of a write-off
    each record counts as if it had been written off alone; usage is counted from the position of this fact on."""

    record_set: str
    decision: SetDecision
    log_id: str
    topic: str
    records_count: Count
    reason: str
    requested_by: UserId
    approver: UserId
