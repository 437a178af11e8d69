"""Decisions about write-offs of records and epochs: two people, the exact bytes, and only what exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from commands.store.event_store import open_store
from commands.store.rebuild import rebuild
from commands.write_offs import producers as write_off_producer
from commands.write_offs import record_sets as write_off_set
from commands.write_offs import records as write_off_record
from commands.write_offs.log_evidence import GAP_MAX, reading_cost, runs_of
from commands.write_offs.producers import PRODUCER, ApproveProducerWriteOff, ProducerState, RequestProducerWriteOff
from commands.write_offs.record_sets import RECORD_SET, ApproveRecordSetDecision, RecordOnLog, RequestRecordSetDecision, set_name
from commands.write_offs.records import RECORD, ApproveRecordWriteOff, RequestRecordWriteOff, Untouched, WrittenOff
from events.facts.fact import UserId
from events.facts.producers import ProducerWriteOffRequested, ProducerWrittenOff
from events.facts.topics import key_of
from events.facts.write_offs import (
    RECORDS_MAX,
    RecordBytes,
    RecordSetDecided,
    RecordSetDecisionRequested,
    RecordWriteOffRequested,
    RecordWrittenOff,
    SetDecision,
)
from events.log.record import Coordinate
from tests.support.decisions import given
from tests.support.todays_codec import RELAY_KEYS, RelayedLog, settings_with_keys, todays_codec

THESE, OTHERS = b"\x01" * 32, b"\x02" * 32
AT = Coordinate("usage", 2, 1041)
REQUEST = RequestRecordWriteOff("log", AT, THESE, "garbage of an unknown writer", THESE)
EPOCH = RequestProducerWriteOff("gateway-1", "e-1", "killed with its machine", "open")


# --- records


def test_one_admin_asks_and_another_approves() -> None:
    (request,) = given(write_off_record, Untouched()).when(REQUEST, "ann").facts
    assert isinstance(request, RecordWriteOffRequested)
    assert (request.record, request.requested_by, request.version) == ("usage/2/1041", "ann", 1)
    state = write_off_record.evolve(Untouched(), request)
    (fact,) = given(write_off_record, state).when(ApproveRecordWriteOff(THESE), "bob").facts
    assert isinstance(fact, RecordWrittenOff)
    assert (fact.topic, fact.partition, fact.offset, fact.sha256, fact.log_id) == ("usage", 2, 1041, THESE, "log")
    assert (fact.requested_by, fact.approver, fact.reason, fact.version) == ("ann", "bob", REQUEST.reason, 2)


def test_nobody_approves_their_own_request() -> None:
    asked = given(write_off_record, Untouched(), ("ann", REQUEST)).state
    given(write_off_record, asked).when(ApproveRecordWriteOff(THESE), "ann").then_rejected("same_person", "forbidden")
    opened = given(write_off_producer, ProducerState(), ("ann", EPOCH)).state
    approve = ApproveProducerWriteOff("gateway-1", "e-1", "open")
    given(write_off_producer, opened).when(approve, "ann").then_rejected("same_person", "forbidden")


def test_the_approver_names_the_bytes_of_the_request() -> None:
    asked = given(write_off_record, Untouched(), ("ann", REQUEST)).state
    given(write_off_record, asked).when(ApproveRecordWriteOff(OTHERS), "bob").then_rejected("request_differs", "conflict")
    given(write_off_record, Untouched()).when(ApproveRecordWriteOff(THESE), "bob").then_rejected("not_requested", "missing")


@pytest.mark.parametrize(
    ("change", "rejection"),
    [
        ({"at": Coordinate("no-topic", 0, 0)}, ("missing", "topic_unknown")),
        ({"at": Coordinate("heartbeats", 0, 0)}, ("missing", "topic_unknown")),
        ({"at": Coordinate("usage", 4, 0)}, ("missing", "partition_unknown")),
        ({"at": Coordinate("usage", -1, 0)}, ("missing", "partition_unknown")),
        ({"at": Coordinate("usage", 0, -1)}, ("missing", "record_missing")),
        ({"found": None}, ("missing", "record_missing")),
        ({"found": OTHERS}, ("conflict", "sha256_differs")),
    ],
)
def test_only_a_record_that_is_on_the_log_can_be_written_off(change: dict[str, Any], rejection: tuple[str, str]) -> None:
    given(write_off_record, Untouched()).when(replace(REQUEST, **change), "ann").then_rejected(*reversed(rejection))


def test_a_record_is_written_off_once_and_other_bytes_at_its_coordinate_again() -> None:
    asked = given(write_off_record, Untouched(), ("ann", REQUEST)).state
    given(write_off_record, asked).when(REQUEST, "bob").then_rejected("already_requested", "conflict")
    done = given(write_off_record, asked, ("bob", ApproveRecordWriteOff(THESE))).state
    given(write_off_record, done).when(REQUEST, "bob").then_rejected("already_written_off", "conflict")
    given(write_off_record, done).when(ApproveRecordWriteOff(THESE), "bob").then_rejected("already_written_off", "conflict")
    again = replace(REQUEST, sha256=OTHERS, found=OTHERS)
    both = given(write_off_record, done, ("ann", again), ("bob", ApproveRecordWriteOff(OTHERS))).state
    assert isinstance(both, WrittenOff)
    assert both.written_off == {THESE, OTHERS}


def test_a_request_for_other_bytes_replaces_the_one_before() -> None:
    asked = given(write_off_record, Untouched(), ("ann", REQUEST), ("bob", replace(REQUEST, sha256=OTHERS, found=OTHERS))).state
    given(write_off_record, asked).when(ApproveRecordWriteOff(THESE), "cy").then_rejected("request_differs", "conflict")
    given(write_off_record, asked).when(ApproveRecordWriteOff(OTHERS), "bob").then_rejected("same_person", "forbidden")
    assert isinstance(given(write_off_record, asked, ("ann", ApproveRecordWriteOff(OTHERS))).state, WrittenOff)


# --- sets of records

LISTED = [RecordBytes(partition=p, offset=o, sha256=THESE) for p, o in ((1, 9), (0, 1041), (0, 7))]
FOUND = {(r.partition, r.offset): RecordOnLog(r.sha256, True) for r in LISTED}
REQUEST_SET = RequestRecordSetDecision("write_off", "log", "usage", LISTED, "code=not_framed", "a broken exporter", FOUND)
UNTOUCHED_SET = write_off_set.Untouched()


def test_a_set_is_asked_for_by_one_and_approved_by_another_and_is_one_fact_each() -> None:
    (request,) = given(write_off_set, UNTOUCHED_SET).when(REQUEST_SET, "ann").facts
    assert isinstance(request, RecordSetDecisionRequested)
    assert [(r.partition, r.offset) for r in request.records] == [(0, 7), (0, 1041), (1, 9)]
    assert request.record_set == set_name("write_off", "log", "usage", LISTED) == set_name("write_off", "log", "usage", LISTED[::-1])
    asked = write_off_set.evolve(UNTOUCHED_SET, request)
    given(write_off_set, asked).when(ApproveRecordSetDecision(), "ann").then_rejected("same_person", "forbidden")
    (fact,) = given(write_off_set, asked).when(ApproveRecordSetDecision(), "bob").facts
    assert isinstance(fact, RecordSetDecided)
    assert (fact.record_set, fact.records_count, fact.requested_by, fact.approver, fact.version) == (request.record_set, 3, "ann", "bob", 2)
    done = write_off_set.evolve(asked, fact)
    for state, code in ((asked, "already_requested"), (done, "already_written_off")):
        given(write_off_set, state).when(REQUEST_SET, "cy").then_rejected(code, "conflict")
    given(write_off_set, done).when(ApproveRecordSetDecision(), "cy").then_rejected("already_written_off", "conflict")
    given(write_off_set, UNTOUCHED_SET).when(ApproveRecordSetDecision(), "cy").then_rejected("not_requested", "missing")


def test_a_set_of_other_records_bytes_topic_or_log_has_another_name() -> None:
    changed = [LISTED[0].model_copy(update={"sha256": OTHERS}), *LISTED[1:]]
    names = [
        set_name("write_off", "log", "usage", LISTED),
        set_name("write_off", "log", "usage", LISTED[1:]),
        set_name("write_off", "log", "usage", changed),
    ]
    names += [set_name("write_off", "log", "models", LISTED), set_name("write_off", "other", "usage", LISTED)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("decision", ["count", "dismiss"])
def test_held_usage_is_counted_or_dismissed_by_two_people_and_each_decision_has_a_name_of_its_own(decision: SetDecision) -> None:
    command = replace(REQUEST_SET, decision=decision)
    (request,) = given(write_off_set, UNTOUCHED_SET).when(command, "ann").facts
    assert isinstance(request, RecordSetDecisionRequested)
    assert (request.decision, request.record_set) == (decision, set_name(decision, "log", "usage", LISTED))
    asked = write_off_set.evolve(UNTOUCHED_SET, request)
    given(write_off_set, asked).when(ApproveRecordSetDecision(), "ann").then_rejected("same_person", "forbidden")
    (fact,) = given(write_off_set, asked).when(ApproveRecordSetDecision(), "bob").facts
    assert isinstance(fact, RecordSetDecided)
    assert (fact.decision, fact.records_count, fact.requested_by, fact.approver) == (decision, 3, "ann", "bob")
    done = write_off_set.evolve(asked, fact)
    given(write_off_set, done).when(command, "cy").then_rejected("already_decided", "conflict")
    given(write_off_set, done).when(ApproveRecordSetDecision(), "cy").then_rejected("already_decided", "conflict")
    assert len({set_name(d, "log", "usage", LISTED) for d in get_args(SetDecision)}) == 3


@pytest.mark.parametrize("decision", ["count", "dismiss"])
def test_only_usage_is_counted_or_dismissed_and_only_the_bytes_that_are_there(decision: SetDecision) -> None:
    for change, rejection in (
        ({"topic": "models"}, ("decision_of_usage", "conflict")),
        ({"found": {(0, 7): FOUND[0, 7], (1, 9): FOUND[1, 9]}}, ("record_missing", "missing")),
        ({"found": {**FOUND, (0, 7): RecordOnLog(OTHERS, True)}}, ("sha256_differs", "conflict")),
    ):
        given(write_off_set, UNTOUCHED_SET).when(replace(REQUEST_SET, decision=decision, **change), "ann").then_rejected(*rejection)


def test_what_no_bill_looks_at_is_dismissed_or_written_off_and_never_counted() -> None:
    found = {**FOUND, (0, 7): RecordOnLog(THESE, False)}
    rejected = given(write_off_set, UNTOUCHED_SET).when(replace(REQUEST_SET, decision="count", found=found), "ann")
    rejected.then_rejected("not_billable", "conflict")
    for decision in ("dismiss", "write_off"):
        (request,) = given(write_off_set, UNTOUCHED_SET).when(replace(REQUEST_SET, decision=decision, found=found), "ann").facts
        assert isinstance(request, RecordSetDecisionRequested)


@pytest.mark.parametrize(
    ("change", "rejection"),
    [
        ({"topic": "heartbeats"}, ("missing", "topic_unknown")),
        ({"records": [*LISTED, RecordBytes(partition=4, offset=0, sha256=THESE)]}, ("missing", "partition_unknown")),
        ({"records": [*LISTED, LISTED[0]]}, ("invalid", "record_twice")),
        ({"found": {(0, 7): FOUND[0, 7], (1, 9): FOUND[1, 9]}}, ("missing", "record_missing")),
        ({"found": {**FOUND, (0, 7): RecordOnLog(OTHERS, True)}}, ("conflict", "sha256_differs")),
    ],
)
def test_one_wrong_record_refuses_the_whole_set(change: dict[str, Any], rejection: tuple[str, str]) -> None:
    given(write_off_set, UNTOUCHED_SET).when(replace(REQUEST_SET, **change), "ann").then_rejected(*reversed(rejection))


def test_the_largest_set_fits_into_a_fact() -> None:
    records = [RecordBytes(partition=3, offset=(1 << 63) - 1 - n, sha256=THESE) for n in range(RECORDS_MAX)]
    found = {(r.partition, r.offset): RecordOnLog(r.sha256, True) for r in records}
    largest = replace(REQUEST_SET, records=records, found=found, reason="界" * 1000, selection="界" * 1000)
    (request,) = given(write_off_set, UNTOUCHED_SET).when(largest, "ann").facts
    assert len(todays_codec().encode(request)) < 256 * 1024


def test_near_records_are_read_in_one_go_and_far_ones_cost_a_new_position() -> None:
    runs = runs_of([(1, 5), (0, 10), (0, 10 + GAP_MAX), (0, 11 + 2 * GAP_MAX)])
    assert runs == [[(0, 10), (0, 10 + GAP_MAX)], [(0, 11 + 2 * GAP_MAX)], [(1, 5)]]
    assert reading_cost(runs) == 4 * GAP_MAX


# --- epochs of producers


def test_a_dead_epoch_is_written_off_by_two_people_and_the_fact_has_the_key_of_its_producer() -> None:
    (request,) = given(write_off_producer, ProducerState()).when(EPOCH, "ann").facts
    assert isinstance(request, ProducerWriteOffRequested)
    assert (request.producer, request.epoch, request.requested_by) == ("gateway-1", "e-1", "ann")
    state = write_off_producer.evolve(ProducerState(), request)
    (fact,) = given(write_off_producer, state).when(ApproveProducerWriteOff("gateway-1", "e-1", "open"), "bob").facts
    assert isinstance(fact, ProducerWrittenOff)
    assert (fact.producer, fact.epoch, fact.reason) == ("gateway-1", "e-1", EPOCH.reason)
    assert (fact.requested_by, fact.approver, fact.version) == ("ann", "bob", 2)


def test_an_epoch_that_is_closed_or_unknown_is_not_written_off() -> None:
    for status, rejection in (("unknown", ("missing", "epoch_unknown")), ("closed", ("conflict", "epoch_closed"))):
        given(write_off_producer, ProducerState()).when(replace(EPOCH, status=status), "ann").then_rejected(*reversed(rejection))
    asked = given(write_off_producer, ProducerState(), ("ann", EPOCH)).state
    closed = ApproveProducerWriteOff("gateway-1", "e-1", "closed")
    given(write_off_producer, asked).when(closed, "bob").then_rejected("epoch_closed", "conflict")
    given(write_off_producer, asked).when(EPOCH, "bob").then_rejected("already_requested", "conflict")
    other = ApproveProducerWriteOff("gateway-1", "e-2", "open")
    given(write_off_producer, asked).when(other, "bob").then_rejected("not_requested", "missing")
    done = given(write_off_producer, asked, ("bob", ApproveProducerWriteOff("gateway-1", "e-1", "open"))).state
    given(write_off_producer, done).when(EPOCH, "ann").then_rejected("already_written_off", "conflict")


# --- a store rebuilt from the log


def test_a_rebuilt_store_knows_what_was_written_off(tmp_path: Path) -> None:
    codec = todays_codec()
    (record,) = given(write_off_record, Untouched()).when(REQUEST, "ann").facts
    (epoch,) = given(write_off_producer, ProducerState()).when(EPOCH, "ann").facts
    (record_set,) = given(write_off_set, UNTOUCHED_SET).when(REQUEST_SET, "ann").facts
    originators: list[str] = []
    for topic, fact in (("bills", record), ("producers", epoch), ("bills", record_set)):
        body = {**fact.model_dump(), "store": "s", "previous_store": "", "previous_position": 0, "by": "u"}
        opening = codec.encode_dict("StoreOpened", body, topic)
        relayed = RelayedLog()
        frames = enumerate((("StoreOpened", opening), (type(fact).__name__, codec.encode(fact))), start=1)
        records = [
            relayed.record((topic, 0), n, n, frame, key=key_of(fact), headers={"ce_type": name.encode()}) for n, (name, frame) in frames
        ]
        store = open_store(settings_with_keys(store_url=f"sqlite:///{tmp_path / type(fact).__name__}.sqlite"))
        rebuild(store, codec, records, UserId("rebuild"), RELAY_KEYS)
        originators += [event.originator for event in store.notifications(0) if event.name == type(fact).__name__]
        store.close()
    assert originators == [
        RECORD.originator("usage/2/1041"),
        PRODUCER.originator("gateway-1"),
        RECORD_SET.originator(record_set.record_set),
    ]
