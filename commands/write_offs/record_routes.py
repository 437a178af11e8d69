"""The resource of unreadable records: one admin asks for a write-off, another approves; nothing happens in between."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from commands.http.answers import state_answer
from commands.http.bounds import NonNegativePath, WordPath
from commands.http.command_app import CommandApp
from commands.http.operations import command, reading
from commands.http.problem_answers import rejected_answer
from commands.processor.command_handler import CommandHandler
from commands.processor.rejection import missing
from commands.write_offs.answers import RecordWriteOffAnswer, RecordWriteOffShown
from commands.write_offs.log_evidence import sha256_at
from commands.write_offs.records import (
    RECORD,
    ApproveRecordWriteOff,
    RecordCommand,
    RecordState,
    Requested,
    RequestRecordWriteOff,
    Untouched,
    decide,
    misplaced,
)
from commands.write_offs.requests import ApproveRecordRequest, RecordWriteOffRequest
from events.log.record import Coordinate

NOTE = "a record that can be read is counted all the same: only bytes that nobody can read are given up"


class RecordWriteOffs:
    """Unreadable records of the log, by their coordinate."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/write-offs/records/{topic}/{partition}/{offset}", tags=["write-offs"])
        reading(routes, "", RecordWriteOffShown)(self.read)
        command(routes, "POST", "", RecordWriteOffAnswer, created=True)(self.request)
        command(routes, "POST", "/approve", RecordWriteOffAnswer)(self.approve)
        return routes

    def read(self, topic: WordPath, partition: NonNegativePath, offset: NonNegativePath, request: Request) -> Response:
        """Who asked for what, and whether it was approved."""
        call = self._app.authorize(request, "admin")
        state = self._app.aggregates.load(RECORD, str(Coordinate(topic, partition, offset)))
        if isinstance(state, Untouched):
            none = missing("not_requested", "nobody asked for this record to be written off", "offset", "request it first")
            return rejected_answer(none, call.headers)
        return state_answer(call.headers, state.version, _answer(state))

    def request(
        self, topic: WordPath, partition: NonNegativePath, offset: NonNegativePath, body: RecordWriteOffRequest, request: Request
    ) -> Response:
        """Requests a write-off of a record. Another admin approves. What can be read stays counted, whatever is written off."""
        call = self._app.authorize(request, "admin")
        at = Coordinate(topic, partition, offset)
        nowhere = misplaced(at)
        if nowhere is not None:
            return rejected_answer(nowhere, call.headers)
        with self._app.log_reader() as reader:
            found = sha256_at(reader, at)
        return self._app.run(call, REQUEST, str(at), body.command(self._app.log_id, at, found), body)

    def approve(
        self, topic: WordPath, partition: NonNegativePath, offset: NonNegativePath, body: ApproveRecordRequest, request: Request
    ) -> Response:
        """A second admin approves and names the bytes. From here on bills are cut over the record and show it."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, APPROVE, str(Coordinate(topic, partition, offset)), body.command(), body)


def _answer(state: RecordState, _command: RecordCommand | None = None) -> dict[str, Any]:
    assert not isinstance(state, Untouched)
    fact, approver = (state.request, None) if isinstance(state, Requested) else (state.fact, state.fact.approver)
    content = {"record": fact.record, "state": state.kind, "sha256": fact.sha256.hex(), "reason": fact.reason}
    return {**content, "requested_by": fact.requested_by, "approver": approver, "note": NOTE}


REQUEST = CommandHandler[RecordState, RequestRecordWriteOff](RECORD, decide, _answer, created=True)
APPROVE = CommandHandler[RecordState, ApproveRecordWriteOff](RECORD, decide, _answer)
