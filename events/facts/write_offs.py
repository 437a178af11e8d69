"""Records nobody can read, given up by two people so that bills can go on. Topic `bills`, key = record.

What is written off is bytes, not a place: `sha256` is of the record's value (of nothing when it has none), and a reader honours the
write-off only where the record at the coordinate has that hash and cannot be read. Whatever can be read is counted all the same (K9).
"""

from __future__ import annotations

from events.facts.fact import Count, DecidedFact, Sha256, UserId


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
