"""Writing off an unreadable record: one admin asks, another approves, and bills may be cut over it (K9).

A write-off names bytes: of a record that can be read, or of other bytes than are there, it has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from commands.processor.aggregate_kind import AggregateKind
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, missing
from commands.write_offs.four_eyes import same_person
from events.facts.topics import TOPICS
from events.facts.write_offs import RecordWriteOffRequested, RecordWrittenOff
from events.log.record import Coordinate

RecordFact = RecordWriteOffRequested | RecordWrittenOff
NO_FACTS = frozenset({"heartbeats"})
"""Topics whose records are no facts: nothing waits for them."""
_REMEDY = "see `modelmarket dead-letters list`"


@dataclass(frozen=True, slots=True)
class Untouched:
    version: int = 0
    kind: Literal["untouched"] = "untouched"


@dataclass(frozen=True, slots=True)
class Requested:
    """`written_off` are the SHA-256 of bytes written off before at this coordinate: of another log, or by mistake."""

    version: int
    request: RecordWriteOffRequested
    written_off: frozenset[bytes] = frozenset()
    kind: Literal["requested"] = "requested"


@dataclass(frozen=True, slots=True)
class WrittenOff:
    version: int
    fact: RecordWrittenOff
    written_off: frozenset[bytes]
    kind: Literal["written_off"] = "written_off"


RecordState = Untouched | Requested | WrittenOff


@dataclass(frozen=True, slots=True)
class RequestRecordWriteOff:
    """`found` is the SHA-256 of what the log has at the coordinate, None when it has nothing there."""

    log_id: str
    at: Coordinate
    sha256: bytes
    reason: str
    found: bytes | None


@dataclass(frozen=True, slots=True)
class ApproveRecordWriteOff:
    """`sha256` are the bytes that the approver looked at."""

    sha256: bytes


RecordCommand = RequestRecordWriteOff | ApproveRecordWriteOff
Decision = tuple[RecordFact, ...] | Rejected


def evolve(state: RecordState, fact: RecordFact) -> RecordState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    written_off = frozenset[bytes]() if isinstance(state, Untouched) else state.written_off
    match fact:
        case RecordWriteOffRequested():
            return Requested(fact.version, fact, written_off)
        case RecordWrittenOff():
            return WrittenOff(fact.version, fact, written_off | {fact.sha256})
        case _:
            assert_never(fact)


RECORD: AggregateKind[RecordState] = AggregateKind("record", Untouched(), evolve)


def decide(state: RecordState, command: RecordCommand, context: CommandContext) -> Decision:
    match command:
        case RequestRecordWriteOff():
            return _request(state, command, context)
        case ApproveRecordWriteOff():
            return _approve(state, command, context)
        case _:
            assert_never(command)


def misplaced(at: Coordinate) -> Rejected | None:
    """A rejection when the topic table has no such topic or partition."""
    if at.topic not in TOPICS or at.topic in NO_FACTS:
        return missing("topic_unknown", f"'{at.topic}' is no topic of facts", "topic", "see `modelmarket topics list`")
    partitions = TOPICS[at.topic].partitions
    if not 0 <= at.partition < partitions:
        return missing("partition_unknown", f"{at.topic} has the partitions 0 to {partitions - 1}", "partition", _REMEDY)
    return None


def _request(state: RecordState, c: RequestRecordWriteOff, o: CommandContext) -> Decision:
    wrong = misplaced(c.at)
    if wrong is not None:
        return wrong
    if c.found is None or c.at.offset < 0:
        return missing("record_missing", f"the log has no record at {c.at}", "offset", _REMEDY)
    if c.found != c.sha256:
        remedy = f"look again with `modelmarket dead-letters show {c.at}`"
        return conflict("sha256_differs", f"the record at {c.at} has another hash", "sha256", remedy)
    if not isinstance(state, Untouched) and c.sha256 in state.written_off:
        return conflict("already_written_off", f"{c.at} is written off", "offset", "nothing to do")
    if isinstance(state, Requested) and state.request.sha256 == c.sha256:
        message = f"{state.request.requested_by} has asked for it already"
        return conflict("already_requested", message, "offset", "another admin approves it: POST …/approve")
    fact = RecordWriteOffRequested(
        **o.head(state.version + 1),
        record=str(c.at),
        log_id=c.log_id,
        topic=c.at.topic,
        partition=c.at.partition,
        offset=c.at.offset,
        sha256=c.sha256,
        reason=c.reason,
        requested_by=o.by,
    )
    return (fact,)


def _approve(state: RecordState, c: ApproveRecordWriteOff, o: CommandContext) -> Decision:
    match state:
        case Untouched():
            return missing("not_requested", "nobody asked for this record to be written off", "offset", "request it first")
        case WrittenOff():
            return conflict("already_written_off", f"{state.fact.record} is written off", "offset", "nothing to do")
        case Requested():
            request = state.request
        case _:
            assert_never(state)
    if request.sha256 != c.sha256:
        message = "the request is for other bytes than you approve"
        return conflict("request_differs", message, "sha256", "read the request again: GET the same path")
    same = same_person(request.requested_by, o)
    if same is not None:
        return same
    given = request.model_dump(include={"record", "log_id", "topic", "partition", "offset", "sha256", "reason", "requested_by"})
    return (RecordWrittenOff(**o.head(state.version + 1), **given, approver=o.by),)
