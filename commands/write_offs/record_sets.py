"""Writing off a set of records that nobody can read with one approval: the set is an exact list, and its name is the list's digest (K9).

Who approves the name approves those records and no others, whatever came since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from commands.processor.aggregate_kind import AggregateKind
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, invalid, missing
from commands.write_offs.four_eyes import same_person
from commands.write_offs.records import Untouched, misplaced
from events.facts.write_offs import RecordBytes, RecordSetWriteOffRequested, RecordSetWrittenOff
from events.log.record import Coordinate

RecordSetFact = RecordSetWriteOffRequested | RecordSetWrittenOff
NAMED_MAX = 10
"""Records that a message names; the others are counted."""
_REMEDY = "take the records from `modelmarket dead-letters list`"
PartitionOffset = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Requested:
    version: int
    request: RecordSetWriteOffRequested
    kind: Literal["requested"] = "requested"


@dataclass(frozen=True, slots=True)
class WrittenOff:
    version: int
    request: RecordSetWriteOffRequested
    fact: RecordSetWrittenOff
    kind: Literal["written_off"] = "written_off"


RecordSetState = Untouched | Requested | WrittenOff


@dataclass(frozen=True, slots=True)
class RequestRecordSetWriteOff:
    """`records` in any order; `found` is the SHA-256 of what the log has at each place, for those where it has a record."""

    log_id: str
    topic: str
    records: Sequence[RecordBytes]
    selection: str
    reason: str
    found: Mapping[PartitionOffset, bytes]


@dataclass(frozen=True, slots=True)
class ApproveRecordSetWriteOff:
    """The aggregate's own key names the records that the approver looked at."""


RecordSetCommand = RequestRecordSetWriteOff | ApproveRecordSetWriteOff
Decision = tuple[RecordSetFact, ...] | Rejected


def set_name(log_id: str, topic: str, records: Sequence[RecordBytes]) -> str:
    """SHA-256 in hex of the JSON `[log_id, topic, [[partition, offset, sha256], …]]`, sorted, without spaces."""
    listed = sorted((r.partition, r.offset, r.sha256.hex()) for r in records)
    return hashlib.sha256(json.dumps([log_id, topic, listed], separators=(",", ":")).encode()).hexdigest()


def evolve(state: RecordSetState, fact: RecordSetFact) -> RecordSetState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match fact:
        case RecordSetWriteOffRequested():
            return Requested(fact.version, fact)
        case RecordSetWrittenOff():
            assert isinstance(state, Requested), "only what was requested is approved"
            return WrittenOff(fact.version, state.request, fact)
        case _:
            assert_never(fact)


RECORD_SET: AggregateKind[RecordSetState] = AggregateKind("record_set", Untouched(), evolve)


def decide(state: RecordSetState, command: RecordSetCommand, context: CommandContext) -> Decision:
    match command:
        case RequestRecordSetWriteOff():
            return _request(state, command, context)
        case ApproveRecordSetWriteOff():
            return _approve(state, context)
        case _:
            assert_never(command)


def malformed(topic: str, records: Sequence[RecordBytes]) -> Rejected | None:
    """A rejection when a record has no place in the topic table, or two name one place."""
    seen = set[PartitionOffset]()
    for record in records:
        at = Coordinate(topic, record.partition, record.offset)
        wrong = misplaced(at)
        if wrong is not None:
            return wrong
        if (at.partition, at.offset) in seen:
            return invalid("record_twice", f"{at} is in the list twice", "records", "name each record once")
        seen.add((at.partition, at.offset))
    return None


def _request(state: RecordSetState, c: RequestRecordSetWriteOff, o: CommandContext) -> Decision:
    match state:
        case WrittenOff():
            return conflict("already_written_off", "these very records are written off as a set", "records", "nothing to do")
        case Requested():
            message = f"{state.request.requested_by} has asked for these very records already"
            remedy = f"another admin approves it: `modelmarket dead-letters approve {state.request.record_set}`"
            return conflict("already_requested", message, "records", remedy)
        case Untouched():
            pass
        case _:
            assert_never(state)
    wrong = malformed(c.topic, c.records) or _not_on_log(c)
    if wrong is not None:
        return wrong
    fact = RecordSetWriteOffRequested(
        **o.head(1),
        record_set=set_name(c.log_id, c.topic, c.records),
        log_id=c.log_id,
        topic=c.topic,
        records=tuple(sorted(c.records, key=lambda r: (r.partition, r.offset))),
        selection=c.selection,
        reason=c.reason,
        requested_by=o.by,
    )
    return (fact,)


def _not_on_log(c: RequestRecordSetWriteOff) -> Rejected | None:
    absent = [r for r in c.records if (r.partition, r.offset) not in c.found]
    if absent:
        return missing("record_missing", f"the log has no record at {_named(c.topic, absent)}", "records", _REMEDY)
    others = [r for r in c.records if c.found[r.partition, r.offset] != r.sha256]
    if others:
        return conflict("sha256_differs", f"the log has other bytes at {_named(c.topic, others)}", "records", _REMEDY)
    return None


def _named(topic: str, records: Sequence[RecordBytes]) -> str:
    names = ", ".join(f"{topic}/{r.partition}/{r.offset}" for r in records[:NAMED_MAX])
    return f"{names} and {len(records) - NAMED_MAX} more" if len(records) > NAMED_MAX else names


def _approve(state: RecordSetState, o: CommandContext) -> Decision:
    match state:
        case Untouched():
            return missing("not_requested", "nobody asked for this set to be written off", "record_set", "request it first")
        case WrittenOff():
            return conflict("already_written_off", "the set is written off", "record_set", "nothing to do")
        case Requested():
            request = state.request
        case _:
            assert_never(state)
    same = same_person(request.requested_by, o)
    if same is not None:
        return same
    given: dict[str, Any] = request.model_dump(include={"record_set", "log_id", "topic", "reason", "requested_by"})
    return (RecordSetWrittenOff(**o.head(state.version + 1), **given, records_count=len(request.records), approver=o.by),)
