"""The resource of record sets: one admin names records and what is to be done with them, another approves the set by its name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from commands.http.answers import state_answer
from commands.http.bounds import HEX_256
from commands.http.command_app import CommandApp
from commands.http.operations import command, reading
from commands.http.problem_answers import rejected_answer
from commands.processor.command_handler import CommandHandler
from commands.processor.rejection import invalid, missing
from commands.write_offs.answers import RecordSetAnswer, RecordSetShown
from commands.write_offs.log_evidence import RECORDS_READ_MAX, reading_cost, records_at, runs_of
from commands.write_offs.record_sets import (
    RECORD_SET,
    ApproveRecordSetDecision,
    Decided,
    RecordSetCommand,
    RecordSetState,
    RequestRecordSetDecision,
    decide,
    malformed,
    set_name,
)
from commands.write_offs.records import Untouched
from commands.write_offs.requests import RecordSetRequest
from events.facts.write_offs import SetDecision

NOTES: dict[SetDecision, str] = {
    "write_off": "records that can be read are counted all the same: only bytes that nobody can read are written off",
    "count": "each that is held when a bill is cut is billed by it, or by the next one; what is billed already is not billed again",
    "dismiss": "each stays unbilled as it is, and no alert names it any more; it can still be counted later",
}
SetPath = Annotated[str, Path(pattern=HEX_256, description="The set's name: SHA-256 of decision, log, topic and records.")]


class RecordSets:
    """Sets of records of the log, each by the digest of its decision and list."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/record-sets", tags=["write-offs"])
        reading(routes, "/{record_set}", RecordSetShown)(self.read)
        command(routes, "POST", "", RecordSetAnswer, created=True)(self.request)
        command(routes, "POST", "/{record_set}/approve", RecordSetAnswer)(self.approve)
        return routes

    def read(self, record_set: SetPath, request: Request) -> Response:
        """Which records, what is to be done with them, who asked for it and why, and whether it was approved."""
        call = self._app.authorize(request, "admin")
        state = self._app.aggregates.load(RECORD_SET, record_set)
        if isinstance(state, Untouched):
            none = missing("not_requested", "nobody asked for a decision about this set", "record_set", "request it first")
            return rejected_answer(none, call.headers)
        records = [{"partition": r.partition, "offset": r.offset, "sha256": r.sha256.hex()} for r in state.request.records]
        return state_answer(call.headers, state.version, {**_answer(state), "records": records})

    def request(self, body: RecordSetRequest, request: Request) -> Response:
        """Asks that these records of a topic be written off, or that usage that is held be counted or dismissed. The answer's `record_set` is
        the name that another admin approves. Each record must be on the log with those bytes, and one that is counted must be usage that can be
        read, in its tenant's own partition. `note` says what the decision does."""
        call = self._app.authorize(request, "admin")
        records = body.listed()
        wrong = malformed(body.decision, body.topic, records)
        if wrong is not None:
            return rejected_answer(wrong, call.headers)
        runs = runs_of([(r.partition, r.offset) for r in records])
        if reading_cost(runs) > RECORDS_READ_MAX:
            message = f"the records lie too far apart on the log: more than {RECORDS_READ_MAX} must be read to compare their bytes"
            remedy = "make several sets, each of a narrower range of offsets or of one partition"
            return rejected_answer(invalid("set_too_wide", message, "records", remedy), call.headers)
        with self._app.log_reader() as reader:
            found = records_at(reader, body.topic, runs, self._app.codec if body.decision == "count" else None)
        asked = RequestRecordSetDecision(body.decision, self._app.log_id, body.topic, records, body.selection, body.reason, found)
        return self._app.run(call, REQUEST, set_name(body.decision, self._app.log_id, body.topic, records), asked, body)

    def approve(self, record_set: SetPath, request: Request) -> Response:
        """A second admin agrees to this very list. Bills that are cut from here on go by it."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, APPROVE, record_set, ApproveRecordSetDecision())


def _answer(state: RecordSetState, _command: RecordSetCommand | None = None) -> dict[str, Any]:
    assert not isinstance(state, Untouched)
    asked, approver = state.request, state.fact.approver if isinstance(state, Decided) else None
    content = {"record_set": asked.record_set, "decision": asked.decision, "topic": asked.topic, "records_count": len(asked.records)}
    people = {"reason": asked.reason, "requested_by": asked.requested_by, "approver": approver}
    return {**content, "selection": asked.selection, "state": state.kind, **people, "note": NOTES[asked.decision]}


REQUEST = CommandHandler[RecordSetState, RequestRecordSetDecision](RECORD_SET, decide, _answer, created=True)
APPROVE = CommandHandler[RecordSetState, ApproveRecordSetDecision](RECORD_SET, decide, _answer)
