"""The resources of giving up: records that nobody can read, and epochs of producers that died. Each is asked for by one admin and
approved by another; nothing happens in between."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from commands.http.bodies import Accepted, ApproveRecordBody, ProducerWriteOffBody, RecordWriteOffBody, WholePath, WordPath
from commands.http.command_app import Call, CommandApp
from commands.http.problems import rejected_response
from commands.processor.aggregates import PRODUCER, RECORD
from commands.processor.rejection import missing
from commands.write_offs import producers as write_off_producer
from commands.write_offs import records as write_off_record
from commands.write_offs.producers import ApproveProducerWriteOff, ProducerCommand, ProducerState, RequestProducerWriteOff, Seen
from commands.write_offs.records import ApproveRecordWriteOff, RecordCommand, RecordState, RequestRecordWriteOff, Untouched, misplaced
from events.facts.fact import DecidedFact
from events.facts.producers import ProducerClosed, ProducerOpened
from events.log.client import LogMismatch, Reader
from events.log.record import Coordinate
from events.log.schemas import read_schemas
from events.schema.codec import Codec, Undecodable

NOTE = "a record that can be read is counted all the same: only bytes that nobody can read are given up"


class RecordWriteOffs:
    """Records of the log that nobody can read, by their coordinate."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/write-offs/records/{topic}/{partition}/{offset}", tags=["write-offs"])
        routes.get("")(self.read)
        routes.post("", status_code=201, responses={201: {"model": Accepted}})(self.request)
        routes.post("/approve", responses={200: {"model": Accepted}})(self.approve)
        return routes

    def read(self, topic: WordPath, partition: WholePath, offset: WholePath, request: Request) -> Response:
        """Who asked for what, and whether it was approved."""
        call = self._app.enter(request, "admin")
        state = self._app.aggregates.load(RECORD, str(Coordinate(topic, partition, offset)))
        if isinstance(state, Untouched):
            return rejected_response(
                missing("not_requested", "nobody asked for this record to be written off", "offset", "request it first"), call.headers
            )
        return _shown(call, state.version, _record_answer(state, ()))

    def request(self, topic: WordPath, partition: WholePath, offset: WholePath, body: RecordWriteOffBody, request: Request) -> Response:
        """Asks that a record be given up. Another admin approves. What can be read stays counted, whatever is written off."""
        call = self._app.enter(request, "admin")
        at = Coordinate(topic, partition, offset)
        wrong = misplaced(at)
        if wrong is not None:
            return rejected_response(wrong, call.headers)
        with self._app.reading() as reader:
            there = sha256_at(reader, at)
        command = RequestRecordWriteOff(self._app.log_id, at, bytes.fromhex(body.sha256), body.reason, there)
        return self._run(call, at, command, "request record write-off", body, 201)

    def approve(self, topic: WordPath, partition: WholePath, offset: WholePath, body: ApproveRecordBody, request: Request) -> Response:
        """A second admin agrees, naming the bytes. From here on bills are cut over the record, and say so."""
        call = self._app.enter(request, "admin")
        command = ApproveRecordWriteOff(bytes.fromhex(body.sha256))
        return self._run(call, Coordinate(topic, partition, offset), command, "approve record write-off", body, 200)

    def _run(
        self, call: Call, at: Coordinate, command: RecordCommand, operation: str, body: RecordWriteOffBody | ApproveRecordBody, status: int
    ) -> Response:
        return self._app.run(
            call,
            RECORD,
            str(at),
            lambda state, origin: write_off_record.decide(state, command, origin),
            operation=operation,
            body=body,
            answer=_record_answer,
            status=status,
        )


class ProducerWriteOffs:
    """Epochs of producers that will never say that they are done."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/write-offs/producers/{producer}/{epoch}", tags=["write-offs"])
        routes.get("")(self.read)
        routes.post("", status_code=201, responses={201: {"model": Accepted}})(self.request)
        routes.post("/approve", responses={200: {"model": Accepted}})(self.approve)
        return routes

    def read(self, producer: WordPath, epoch: WordPath, request: Request) -> Response:
        """Who asked for what, and whether it was approved."""
        call = self._app.enter(request, "admin")
        state = self._app.aggregates.load(PRODUCER, producer)
        if epoch not in state.requests and epoch not in state.written_off:
            return rejected_response(
                missing("not_requested", "nobody asked for this epoch to be written off", "epoch", "request it first"), call.headers
            )
        return _shown(call, state.version, _epoch_answer(state, epoch))

    def request(self, producer: WordPath, epoch: WordPath, body: ProducerWriteOffBody, request: Request) -> Response:
        """Asks that a dead producer's epoch be given up. Whether it is dead nobody here can know: look when its last fact came."""
        call = self._app.enter(request, "admin")
        command = RequestProducerWriteOff(producer, epoch, body.reason, self._seen(producer, epoch))
        return self._run(call, command, "request", body, 201)

    def approve(self, producer: WordPath, epoch: WordPath, request: Request) -> Response:
        """A second admin agrees. Bills cut from here on call the epoch open no more."""
        call = self._app.enter(request, "admin")
        return self._run(call, ApproveProducerWriteOff(producer, epoch, self._seen(producer, epoch)), "approve", None, 200)

    def _seen(self, producer: str, epoch: str) -> Seen:
        with self._app.reading() as reader:
            schemas, _ = read_schemas(reader)  # of today: a newer gateway's words are words, too
            return seen_of(reader, Codec(schemas), producer, epoch)

    def _run(self, call: Call, command: ProducerCommand, verb: str, body: ProducerWriteOffBody | None, status: int) -> Response:
        return self._app.run(
            call,
            PRODUCER,
            command.producer,
            lambda state, origin: write_off_producer.decide(state, command, origin),
            operation=f"{verb} producer write-off {command.epoch}",
            body=body,
            answer=lambda state, _facts: _epoch_answer(state, command.epoch),
            status=status,
        )


def sha256_at(reader: Reader, at: Coordinate) -> bytes | None:
    """Of the value at a coordinate; None when the log has no record there."""
    low, high = reader.bounds(at.topic)[at.topic, at.partition]
    if not low <= at.offset < high:
        return None
    try:
        return hashlib.sha256(reader.record_at(at.topic, at.partition, at.offset).value or b"").digest()
    except LogMismatch:
        return None


def seen_of(reader: Reader, codec: Codec, producer: str, epoch: str) -> Seen:
    """What an epoch said of itself. Reads the whole topic: one record for each start and end of a gateway."""
    seen: Seen = "unknown"
    for record in reader.read("producers"):
        try:
            name, body = codec.decode(record.value)
        except Undecodable:
            continue  # somebody's stray bytes open and close nothing
        if name == ProducerOpened.__name__ and (body["producer"], body["epoch"]) == (producer, epoch) and seen == "unknown":
            seen = "open"
        if name == ProducerClosed.__name__ and body["epoch"] == epoch and seen == "open":
            seen = "closed"
    return seen


def _record_answer(state: RecordState, _facts: Sequence[DecidedFact]) -> dict[str, Any]:
    assert not isinstance(state, Untouched)
    fact = state.request if isinstance(state, write_off_record.Requested) else state.fact
    approver = None if isinstance(state, write_off_record.Requested) else state.fact.approver
    said = {"record": fact.record, "state": state.kind, "sha256": fact.sha256.hex(), "reason": fact.reason}
    return {**said, "requested_by": fact.requested_by, "approver": approver, "note": NOTE}


def _epoch_answer(state: ProducerState, epoch: str) -> dict[str, Any]:
    done = state.written_off.get(epoch)
    fact = done or state.requests[epoch]
    said = {"producer": fact.producer, "epoch": epoch, "state": "written_off" if done else "requested", "reason": fact.reason}
    return {**said, "requested_by": fact.requested_by, "approver": done.approver if done else None}


def _shown(call: Call, version: int, said: dict[str, Any]) -> Response:
    return Response(orjson.dumps(said), 200, {**call.headers, "ETag": f'"{version}"'}, "application/json")
