"""Giving up the epoch of a producer that died without a word: one admin asks, another approves, and bills call it open no more (K13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, missing
from commands.write_offs.four_eyes import same_person
from events.facts.producers import ProducerWriteOffRequested, ProducerWrittenOff

ProducerFact = ProducerWriteOffRequested | ProducerWrittenOff
Seen = Literal["unknown", "open", "closed"]
"""What the log says of an epoch by its own words."""


@dataclass(frozen=True, slots=True)
class ProducerState:
    """What was decided about a producer's epochs; their own words are on the log and not here."""

    version: int = 0
    requests: Mapping[str, ProducerWriteOffRequested] = field(default_factory=dict[str, ProducerWriteOffRequested])
    written_off: Mapping[str, ProducerWrittenOff] = field(default_factory=dict[str, ProducerWrittenOff])


@dataclass(frozen=True, slots=True)
class RequestProducerWriteOff:
    producer: str
    epoch: str
    reason: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class ApproveProducerWriteOff:
    producer: str
    epoch: str
    seen: Seen


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


def decide(state: ProducerState, command: ProducerCommand, origin: CommandContext) -> Decision:
    wrong = _ended(state, command)
    if wrong is not None:
        return wrong
    match command:
        case RequestProducerWriteOff():
            return _request(state, command, origin)
        case ApproveProducerWriteOff():
            return _approve(state, command, origin)
        case _:
            assert_never(command)


def _ended(state: ProducerState, c: ProducerCommand) -> Rejected | None:
    if c.epoch in state.written_off:
        return conflict("already_written_off", f"epoch {c.epoch} is written off", "epoch", "nothing to do")
    match c.seen:
        case "unknown":
            message = f"{c.producer} never opened an epoch {c.epoch} on this log"
            return missing("epoch_unknown", message, "epoch", "see `modelmarket producers list --all`")
        case "closed":
            return conflict("epoch_closed", f"epoch {c.epoch} said itself that it is over", "epoch", "nothing to do: no bill calls it open")
        case "open":
            return None
        case _:
            assert_never(c.seen)


def _request(state: ProducerState, c: RequestProducerWriteOff, o: CommandContext) -> Decision:
    asked = state.requests.get(c.epoch)
    if asked is not None:
        message = f"{asked.requested_by} has asked for it already"
        return conflict("already_requested", message, "epoch", "another admin approves it: POST …/approve")
    said: dict[str, Any] = {**o.head(state.version + 1), "producer": c.producer}
    return (ProducerWriteOffRequested(**said, epoch=c.epoch, reason=c.reason, requested_by=o.by),)


def _approve(state: ProducerState, c: ApproveProducerWriteOff, o: CommandContext) -> Decision:
    asked = state.requests.get(c.epoch)
    if asked is None:
        return missing("not_requested", "nobody asked for this epoch to be written off", "epoch", "request it first")
    refused = same_person(asked.requested_by, o)
    if refused is not None:
        return refused
    said: dict[str, Any] = {**o.head(state.version + 1), "producer": c.producer}
    return (ProducerWrittenOff(**said, epoch=c.epoch, reason=asked.reason, requested_by=asked.requested_by, approver=o.by),)
