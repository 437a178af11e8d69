"""The resource of epochs that their producers never closed: one admin asks for a write-off, another approves; nothing happens in between."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from commands.http.answers import state_answer
from commands.http.bounds import WordPath
from commands.http.command_app import CommandApp
from commands.http.operations import command, reading
from commands.http.problem_answers import rejected_answer
from commands.processor.command_handler import CommandHandler
from commands.processor.rejection import missing
from commands.write_offs.answers import ProducerWriteOffAnswer, ProducerWriteOffShown
from commands.write_offs.log_evidence import EpochStatuses
from commands.write_offs.producers import (
    PRODUCER,
    ApproveProducerWriteOff,
    EpochStatus,
    ProducerCommand,
    ProducerState,
    RequestProducerWriteOff,
    decide,
)
from commands.write_offs.requests import ProducerWriteOffRequest


class ProducerWriteOffs:
    """Epochs of producers that will never close them."""

    def __init__(self, app: CommandApp) -> None:
        self._app, self._epochs = app, EpochStatuses(app.codec)

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/write-offs/producers/{producer}/{epoch}", tags=["write-offs"])
        reading(routes, "", ProducerWriteOffShown)(self.read)
        command(routes, "POST", "", ProducerWriteOffAnswer, created=True)(self.request)
        command(routes, "POST", "/approve", ProducerWriteOffAnswer)(self.approve)
        return routes

    def read(self, producer: WordPath, epoch: WordPath, request: Request) -> Response:
        """Who asked for what, and whether it was approved."""
        call = self._app.authorize(request, "admin")
        state = self._app.aggregates.load(PRODUCER, producer)
        if epoch not in state.requests and epoch not in state.written_off:
            none = missing("not_requested", "nobody asked for this epoch to be written off", "epoch", "request it first")
            return rejected_answer(none, call.headers)
        return state_answer(call.headers, state.version, _epoch_answer(state, epoch))

    def request(self, producer: WordPath, epoch: WordPath, body: ProducerWriteOffRequest, request: Request) -> Response:
        """Requests a write-off of a dead producer's epoch. Whether it is dead cannot be known here: look when its last fact came."""
        call = self._app.authorize(request, "admin")
        command = RequestProducerWriteOff(producer, epoch, body.reason, self._status(producer, epoch))
        return self._app.run(call, REQUEST, producer, command, body)

    def approve(self, producer: WordPath, epoch: WordPath, request: Request) -> Response:
        """A second admin agrees. Bills cut from here on no longer call the epoch open."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, APPROVE, producer, ApproveProducerWriteOff(producer, epoch, self._status(producer, epoch)))

    def _status(self, producer: str, epoch: str) -> EpochStatus:
        with self._app.log_reader() as reader:
            return self._epochs.status(reader, producer, epoch)


def _answer(state: ProducerState, command: ProducerCommand) -> dict[str, Any]:
    return _epoch_answer(state, command.epoch)


def _epoch_answer(state: ProducerState, epoch: str) -> dict[str, Any]:
    approved = state.written_off.get(epoch)
    fact = approved or state.requests[epoch]
    content = {"producer": fact.producer, "epoch": epoch, "state": "written_off" if approved else "requested", "reason": fact.reason}
    return {**content, "requested_by": fact.requested_by, "approver": approved.approver if approved else None}


REQUEST = CommandHandler[ProducerState, RequestProducerWriteOff](PRODUCER, decide, _answer, created=True)
APPROVE = CommandHandler[ProducerState, ApproveProducerWriteOff](PRODUCER, decide, _answer)
