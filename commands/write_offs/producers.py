"""Writing off the epoch of a producer that died and never closed it: one admin asks, another approves, and bills no longer call it open (K13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from commands.processor.aggregate_kind import AggregateKind
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, missing
from commands.write_offs.four_eyes import same_person
from events.facts.producers import ProducerWriteOffRequested, ProducerWrittenOff

ProducerFact = ProducerWriteOffRequested | ProducerWrittenOff
EpochStatus = Literal["unknown", "open", "closed"]
"""What the producer itself wrote about an epoch."""


@dataclass(frozen=True, slots=True)
class ProducerState:
    """What was decided about the epochs of a producer. What it wrote about them itself is on the log and not here."""

    version: int = 0
    requests: Mapping[str, ProducerWriteOffRequested] = field(default_factory=dict[str, ProducerWriteOffRequested])
    written_off: Mapping[str, ProducerWrittenOff] = field(default_factory=dict[str, ProducerWrittenOff])


@dataclass(frozen=True, slots=True)
class RequestProducerWriteOff:
    producer: str
    epoch: str
    reason: str
    status: EpochStatus


@dataclass(frozen=True, slots=True)
class ApproveProducerWriteOff:
    producer: str
    epoch: str
    status: EpochStatus


ProducerCommand = RequestProducerWriteOff | ApproveProducerWriteOff
Decision = tuple[ProducerFact, ...] | Rejected


def evolve(state: ProducerState, fact: ProducerFact) -> ProducerState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match fact:
        case ProducerWriteOffRequested():
            return replace(state, version=fact.version, requests={**state.requests, fact.epoch: fact})
        case ProducerWrittenOff():
            left = {epoch: request for epoch, request in state.requests.items() if epoch != fact.epoch}
            return ProducerState(fact.version, left, {**state.written_off, fact.epoch: fact})
        case _:
            assert_never(fact)


PRODUCER: AggregateKind[ProducerState] = AggregateKind("producer", ProducerState(), evolve)


def decide(state: ProducerState, command: ProducerCommand, context: CommandContext) -> Decision:
    ended = _ended(state, command)
    if ended is not None:
        return ended
    match command:
        case RequestProducerWriteOff():
            return _request(state, command, context)
        case ApproveProducerWriteOff():
            return _approve(state, command, context)
        case _:
            assert_never(command)


def _ended(state: ProducerState, c: ProducerCommand) -> Rejected | None:
    if c.epoch in state.written_off:
        return conflict("already_written_off", f"epoch {c.epoch} is written off", "epoch", "nothing to do")
    match c.status:
        case "unknown":
            message = f"{c.producer} never opened an epoch {c.epoch} on this log"
            return missing("epoch_unknown", message, "epoch", "see `modelmarket producers list --all`")
        case "closed":
            return conflict("epoch_closed", f"its producer closed epoch {c.epoch}", "epoch", "nothing to do: no bill calls it open")
        case "open":
            return None
        case _:
            assert_never(c.status)


def _request(state: ProducerState, c: RequestProducerWriteOff, o: CommandContext) -> Decision:
    asked = state.requests.get(c.epoch)
    if asked is not None:
        message = f"{asked.requested_by} has asked for it already"
        return conflict("already_requested", message, "epoch", "another admin approves it: POST …/approve")
    fields: dict[str, Any] = {**o.head(state.version + 1), "producer": c.producer}
    return (ProducerWriteOffRequested(**fields, epoch=c.epoch, reason=c.reason, requested_by=o.by),)


def _approve(state: ProducerState, c: ApproveProducerWriteOff, o: CommandContext) -> Decision:
    asked = state.requests.get(c.epoch)
    if asked is None:
        return missing("not_requested", "nobody asked for this epoch to be written off", "epoch", "request it first")
    same = same_person(asked.requested_by, o)
    if same is not None:
        return same
    fields: dict[str, Any] = {**o.head(state.version + 1), "producer": c.producer}
    return (ProducerWrittenOff(**fields, epoch=c.epoch, reason=asked.reason, requested_by=asked.requested_by, approver=o.by),)
