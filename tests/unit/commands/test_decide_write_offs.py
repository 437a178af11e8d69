"""Giving up records and epochs, as sentences: two people, the right bytes, and nothing that is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commands.processor.aggregates import PRODUCER, RECORD
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected
from commands.store.event_store import Event
from commands.store.rebuild import take
from commands.write_offs import producers as write_off_producer
from commands.write_offs import records as write_off_record
from commands.write_offs.producers import ApproveProducerWriteOff, ProducerState, RequestProducerWriteOff
from commands.write_offs.records import ApproveRecordWriteOff, RequestRecordWriteOff, Untouched, WrittenOff
from events.facts.fact import UserId
from events.facts.producers import ProducerWriteOffRequested, ProducerWrittenOff
from events.facts.topics import key_of
from events.facts.write_offs import RecordWriteOffRequested, RecordWrittenOff
from events.log.chain import Chain, ChainPosition
from events.log.record import Coordinate, Record
from tests.support.todays_codec import todays_codec

NOW = 1_800_000_000_000_000
THESE, OTHERS = b"\x01" * 32, b"\x02" * 32
AT = Coordinate("usage", 2, 1041)
REQUEST = RequestRecordWriteOff("log", AT, THESE, "garbage of an unknown writer", THESE)
EPOCH = RequestProducerWriteOff("gateway-1", "e-1", "killed with its machine", "open")


def by(user: str) -> CommandContext:
    return CommandContext("00000000-0000-4000-8000-000000000000", NOW, UserId(user), "", "")


def refused(decision: object) -> tuple[str, str]:
    assert isinstance(decision, Rejected), decision
    assert all(v.remedy and v.field for v in decision.violations)
    return decision.ground, decision.code


def after(module: Any, state: Any, *steps: tuple[str, Any]) -> Any:
    for user, command in steps:
        facts = module.decide(state, command, by(user))
        assert not isinstance(facts, Rejected), (command, facts)
        for fact in facts:
            state = module.evolve(state, fact)
    return state


# --- records


def test_one_admin_asks_and_another_approves() -> None:
    (request,) = write_off_record.decide(Untouched(), REQUEST, by("ann"))  # type: ignore[misc]
    assert isinstance(request, RecordWriteOffRequested)
    assert (request.record, request.requested_by, request.version) == ("usage/2/1041", "ann", 1)
    state = write_off_record.evolve(Untouched(), request)
    (fact,) = write_off_record.decide(state, ApproveRecordWriteOff(THESE), by("bob"))  # type: ignore[misc]
    assert isinstance(fact, RecordWrittenOff)
    assert (fact.topic, fact.partition, fact.offset, fact.sha256, fact.log_id) == ("usage", 2, 1041, THESE, "log")
    assert (fact.requested_by, fact.approver, fact.reason, fact.version) == ("ann", "bob", REQUEST.reason, 2)


def test_nobody_approves_what_they_asked_for() -> None:
    asked = after(write_off_record, Untouched(), ("ann", REQUEST))
    assert refused(write_off_record.decide(asked, ApproveRecordWriteOff(THESE), by("ann"))) == ("forbidden", "same_person")
    opened = after(write_off_producer, ProducerState(), ("ann", EPOCH))
    approve = ApproveProducerWriteOff("gateway-1", "e-1", "open")
    assert refused(write_off_producer.decide(opened, approve, by("ann"))) == ("forbidden", "same_person")


def test_the_approver_names_the_bytes_that_were_asked_for() -> None:
    asked = after(write_off_record, Untouched(), ("ann", REQUEST))
    assert refused(write_off_record.decide(asked, ApproveRecordWriteOff(OTHERS), by("bob"))) == ("conflict", "request_differs")
    assert refused(write_off_record.decide(Untouched(), ApproveRecordWriteOff(THESE), by("bob"))) == ("missing", "not_requested")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": Coordinate("no-topic", 0, 0)}, ("missing", "topic_unknown")),
        ({"at": Coordinate("heartbeats", 0, 0)}, ("missing", "topic_unknown")),
        ({"at": Coordinate("usage", 4, 0)}, ("missing", "partition_unknown")),
        ({"at": Coordinate("usage", -1, 0)}, ("missing", "partition_unknown")),
        ({"at": Coordinate("usage", 0, -1)}, ("missing", "record_missing")),
        ({"there": None}, ("missing", "record_missing")),
        ({"there": OTHERS}, ("conflict", "sha256_differs")),
    ],
)
def test_only_what_lies_on_the_log_can_be_given_up(change: dict[str, Any], said: tuple[str, str]) -> None:
    assert refused(write_off_record.decide(Untouched(), replace(REQUEST, **change), by("ann"))) == said


def test_a_record_is_given_up_once_and_other_bytes_at_its_place_once_more() -> None:
    asked = after(write_off_record, Untouched(), ("ann", REQUEST))
    assert refused(write_off_record.decide(asked, REQUEST, by("bob"))) == ("conflict", "already_requested")
    done = after(write_off_record, asked, ("bob", ApproveRecordWriteOff(THESE)))
    assert refused(write_off_record.decide(done, REQUEST, by("bob"))) == ("conflict", "already_written_off")
    assert refused(write_off_record.decide(done, ApproveRecordWriteOff(THESE), by("bob"))) == ("conflict", "already_written_off")
    again = replace(REQUEST, sha256=OTHERS, there=OTHERS)
    both = after(write_off_record, done, ("ann", again), ("bob", ApproveRecordWriteOff(OTHERS)))
    assert isinstance(both, WrittenOff)
    assert both.honoured == {THESE, OTHERS}


def test_a_request_for_other_bytes_takes_the_place_of_the_one_before() -> None:
    asked = after(write_off_record, Untouched(), ("ann", REQUEST), ("bob", replace(REQUEST, sha256=OTHERS, there=OTHERS)))
    assert refused(write_off_record.decide(asked, ApproveRecordWriteOff(THESE), by("cy"))) == ("conflict", "request_differs")
    assert refused(write_off_record.decide(asked, ApproveRecordWriteOff(OTHERS), by("bob"))) == ("forbidden", "same_person")
    assert isinstance(after(write_off_record, asked, ("ann", ApproveRecordWriteOff(OTHERS))), WrittenOff)


# --- epochs of producers


def test_a_dead_epoch_is_given_up_by_two_and_its_fact_lies_beside_its_own() -> None:
    (request,) = write_off_producer.decide(ProducerState(), EPOCH, by("ann"))  # type: ignore[misc]
    assert isinstance(request, ProducerWriteOffRequested)
    assert (request.producer, request.epoch, request.requested_by) == ("gateway-1", "e-1", "ann")
    state = write_off_producer.evolve(ProducerState(), request)
    (fact,) = write_off_producer.decide(state, ApproveProducerWriteOff("gateway-1", "e-1", "open"), by("bob"))  # type: ignore[misc]
    assert isinstance(fact, ProducerWrittenOff)
    assert (fact.producer, fact.epoch, fact.reason) == ("gateway-1", "e-1", EPOCH.reason)
    assert (fact.requested_by, fact.approver, fact.version) == ("ann", "bob", 2)


def test_an_epoch_that_is_over_or_was_never_there_is_not_given_up() -> None:
    for seen, said in (("unknown", ("missing", "epoch_unknown")), ("closed", ("conflict", "epoch_closed"))):
        assert refused(write_off_producer.decide(ProducerState(), replace(EPOCH, seen=seen), by("ann"))) == said
    asked = after(write_off_producer, ProducerState(), ("ann", EPOCH))
    closed = ApproveProducerWriteOff("gateway-1", "e-1", "closed")
    assert refused(write_off_producer.decide(asked, closed, by("bob"))) == ("conflict", "epoch_closed")
    assert refused(write_off_producer.decide(asked, EPOCH, by("bob"))) == ("conflict", "already_requested")
    other = ApproveProducerWriteOff("gateway-1", "e-2", "open")
    assert refused(write_off_producer.decide(asked, other, by("bob"))) == ("missing", "not_requested")
    done = after(write_off_producer, asked, ("bob", ApproveProducerWriteOff("gateway-1", "e-1", "open")))
    assert refused(write_off_producer.decide(done, EPOCH, by("ann"))) == ("conflict", "already_written_off")


# --- a store made again from the log


def test_a_store_made_again_knows_what_was_given_up() -> None:
    codec = todays_codec()
    (record,) = write_off_record.decide(Untouched(), REQUEST, by("ann"))  # type: ignore[misc]
    (epoch,) = write_off_producer.decide(ProducerState(), EPOCH, by("ann"))  # type: ignore[misc]
    originators: list[str] = []
    for topic, fact in (("bills", record), ("producers", epoch)):
        body = {**fact.model_dump(), "store": "s", "previous_store": "", "previous_position": 0, "by": "u"}
        opening = codec.encode_dict("StoreOpened", body, topic)
        chain, events = Chain(), dict[int, Event]()
        for offset, (name, frame) in enumerate((("StoreOpened", opening), (type(fact).__name__, codec.encode(fact)))):
            chain_position = ChainPosition("s", offset + 1, offset)
            take(
                Record(topic, 0, offset, 1, key_of(fact), frame, chain_position.headers | {"ce_type": name.encode()}), codec, chain, events
            )
        originators.append(events[2].originator)
    assert originators == [RECORD.originator("usage/2/1041"), PRODUCER.originator("gateway-1")]
