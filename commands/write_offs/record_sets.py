"""One decision of two people about many records: unreadable ones are written off (K9), usage that is held is counted or dismissed (K13).

A set is an exact list and what is to be done with it, and its name is the digest of both: who approves the name approves that and no other,
whatever came since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never

from commands.processor.aggregate_kind import AggregateKind
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, invalid, missing
from commands.write_offs.four_eyes import same_person
from commands.write_offs.records import Untouched, misplaced
from events.facts.write_offs import RecordBytes, RecordSetDecided, RecordSetDecisionRequested, SetDecision
from events.log.record import Coordinate

RecordSetFact = RecordSetDecisionRequested | RecordSetDecided
NAMED_MAX = 10
"""Records that a message names; the others are counted."""
_REMEDY = "take the records from `modelmarket dead-letters list` or `modelmarket usage held`"
PartitionOffset = tuple[int, int]


class RecordOnLog(NamedTuple):
    """`billable`: it is usage that can be read, in the partition of its tenant, which is all that a bill of the tenant looks at; known only where
    records are to be counted."""

    sha256: bytes
    billable: bool


@dataclass(frozen=True, slots=True)
class Requested:
    version: int
    request: RecordSetDecisionRequested
    kind: Literal["requested"] = "requested"


@dataclass(frozen=True, slots=True)
class Decided:
    version: int
    request: RecordSetDecisionRequested
    fact: RecordSetDecided
    kind: Literal["decided"] = "decided"


RecordSetState = Untouched | Requested | Decided


@dataclass(frozen=True, slots=True)
class RequestRecordSetDecision:
    """`records` in any order; `found` is what the log has at each place, for those where it has a record."""

    decision: SetDecision
    log_id: str
    topic: str
    records: Sequence[RecordBytes]
    selection: str
    reason: str
    found: Mapping[PartitionOffset, RecordOnLog]


@dataclass(frozen=True, slots=True)
class ApproveRecordSetDecision:
    """The aggregate's own key names the records that the approver looked at."""


RecordSetCommand = RequestRecordSetDecision | ApproveRecordSetDecision
Decision = tuple[RecordSetFact, ...] | Rejected


def set_name(decision: SetDecision, log_id: str, topic: str, records: Sequence[RecordBytes]) -> str:
    """SHA-256 in hex of the JSON `[decision, log_id, topic, [[partition, offset, sha256], …]]`, sorted, without spaces."""
    listed = sorted((r.partition, r.offset, r.sha256.hex()) for r in records)
    return hashlib.sha256(json.dumps([decision, log_id, topic, listed], separators=(",", ":")).encode()).hexdigest()


def evolve(state: RecordSetState, fact: RecordSetFact) -> RecordSetState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match fact:
        case RecordSetDecisionRequested():
            return Requested(fact.version, fact)
        case RecordSetDecided():
            assert isinstance(state, Requested), "only what was requested is approved"
            return Decided(fact.version, state.request, fact)
        case _:
            assert_never(fact)


RECORD_SET: AggregateKind[RecordSetState] = AggregateKind("record_set", Untouched(), evolve)


def decide(state: RecordSetState, command: RecordSetCommand, context: CommandContext) -> Decision:
    match command:
        case RequestRecordSetDecision():
            return _request(state, command, context)
        case ApproveRecordSetDecision():
            return _approve(state, context)
        case _:
            assert_never(command)


def malformed(decision: SetDecision, topic: str, records: Sequence[RecordBytes]) -> Rejected | None:
    """A rejection when a record has no place in the topic table, two name one place, or the topic holds nothing to decide so about."""
    if decision != "write_off" and topic != "usage":
        return conflict(
            "decision_of_usage", f"only usage is held, so nothing of {topic} is to count or dismiss", "decision", "use write_off"
        )
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


def _request(state: RecordSetState, c: RequestRecordSetDecision, o: CommandContext) -> Decision:
    match state:
        case Decided():
            return _already(state, "records")
        case Requested():
            message = f"{state.request.requested_by} has asked for these very records already"
            group = "dead-letters" if c.decision == "write_off" else "usage"
            remedy = f"another admin approves it: `modelmarket {group} approve {state.request.record_set}`"
            return conflict("already_requested", message, "records", remedy)
        case Untouched():
            pass
        case _:
            assert_never(state)
    wrong = malformed(c.decision, c.topic, c.records) or _not_on_log(c) or _not_billable(c)
    if wrong is not None:
        return wrong
    fact = RecordSetDecisionRequested(
        **o.head(1),
        record_set=set_name(c.decision, c.log_id, c.topic, c.records),
        decision=c.decision,
        log_id=c.log_id,
        topic=c.topic,
        records=tuple(sorted(c.records, key=lambda r: (r.partition, r.offset))),
        selection=c.selection,
        reason=c.reason,
        requested_by=o.by,
    )
    return (fact,)


def _not_on_log(c: RequestRecordSetDecision) -> Rejected | None:
    absent = [r for r in c.records if (r.partition, r.offset) not in c.found]
    if absent:
        return missing("record_missing", f"the log has no record at {_named(c.topic, absent)}", "records", _REMEDY)
    others = [r for r in c.records if c.found[r.partition, r.offset].sha256 != r.sha256]
    if others:
        return conflict("sha256_differs", f"the log has other bytes at {_named(c.topic, others)}", "records", _REMEDY)
    return None


def _not_billable(c: RequestRecordSetDecision) -> Rejected | None:
    """To count what no bill looks at would show usage that nobody is billed for."""
    none = [r for r in c.records if not c.found[r.partition, r.offset].billable] if c.decision == "count" else []
    if not none:
        return None
    message = f"no bill can count {_named(c.topic, none)}: it cannot be read as usage, or is in another partition than its tenant's"
    return conflict("not_billable", message, "records", "leave it out, or `modelmarket usage dismiss` it")


def _named(topic: str, records: Sequence[RecordBytes]) -> str:
    names = ", ".join(f"{topic}/{r.partition}/{r.offset}" for r in records[:NAMED_MAX])
    return f"{names} and {len(records) - NAMED_MAX} more" if len(records) > NAMED_MAX else names


def _approve(state: RecordSetState, o: CommandContext) -> Decision:
    match state:
        case Untouched():
            return missing("not_requested", "nobody asked for a decision about this set", "record_set", "request it first")
        case Decided():
            return _already(state, "record_set")
        case Requested():
            request = state.request
        case _:
            assert_never(state)
    same = same_person(request.requested_by, o)
    if same is not None:
        return same
    given: dict[str, Any] = request.model_dump(include={"record_set", "decision", "log_id", "topic", "reason", "requested_by"})
    return (RecordSetDecided(**o.head(state.version + 1), **given, records_count=len(request.records), approver=o.by),)


def _already(state: Decided, field: str) -> Rejected:
    match state.fact.decision:
        case "write_off":
            return conflict("already_written_off", "these very records are written off as a set", field, "nothing to do")
        case "count" | "dismiss":
            return conflict("already_decided", f"two people decided to {state.fact.decision} these very records", field, "nothing to do")
        case _:
            assert_never(state.fact.decision)
