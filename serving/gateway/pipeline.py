"""The steps of every call, in every protocol: identify → limit → route → validate → execute → meter → answer.

`_infer` shows the steps in this order. The protocol is asked twice: to check the body against the version's interface, and to
write the outputs down. Operations that execute nothing take the first steps only.
"""

from __future__ import annotations

from typing import assert_never

from access.principal import Principal
from events.facts.accounts import Scope
from events.process.fairness.turns import NoTurn, TurnBounds, Turns
from serving.gateway.bodies.body_memory import BodyMemoryLimiter
from serving.gateway.bodies.large_bodies import LargeBodies, parsed_here, rendered_here
from serving.gateway.execution import Execution, Outcome
from serving.gateway.identify import identify, require
from serving.gateway.model_list import ModelList
from serving.gateway.request import Request
from serving.gateway.routing import choose_version, find_model, servable_version
from serving.gateway.state import GatewayState
from serving.http import JSON, Answer, whole_number
from serving.inference import Predicted, PredictionFailed
from serving.protocols.operations import CheckReady, DescribeVersion, Infer, ListModels, Operation, ShowDocument
from serving.refused import Refused, unavailable

TURNS = TurnBounds(running_max=512, alone_max=128, shared_max=16, waiting_max=8192, wait_s_max=30)
"""Calls under way in this gateway. Beside others a tenant has so few that what is before another's call takes some milliseconds: parsing them,
a batch of them at a replica, and writing their facts."""


class Pipeline:
    """Raises Refused where a step says no."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._turns = Turns(TURNS)
        self._body_memory = BodyMemoryLimiter()
        self._models = ModelList()
        self._large_bodies = LargeBodies(state.settings.infer_bytes_max)

    async def close(self) -> None:
        await self._large_bodies.close()

    async def answer(self, request: Request, operation: Operation) -> Answer:
        match operation:
            case Infer():
                return await self._infer(request, operation)
            case DescribeVersion():
                return self._describe(request, operation)
            case ListModels():
                return await self._list(request, operation)
            case CheckReady(body):
                return Answer(200 if self._state.ready else 503, JSON, body)
            case ShowDocument(body):
                return Answer(200, JSON, body)
            case _:
                assert_never(operation)

    async def _infer(self, request: Request, operation: Infer) -> Answer:
        state = self._state
        request.operation, request.addressed = "infer", operation.model
        request.require_method("POST")
        # identify
        caller = self._identify(request, "invoke")
        request.model, pinned = find_model(state.routes, operation.model, operation.version)
        request.read_idempotency_key()
        request.require_plain_body()
        # limit: before the body is read, which holds up the connection
        try:
            await self._turns.take(caller.tenant)
        except NoTurn as e:
            raise Refused(429, "overloaded", str(e), "", "slow down, then retry", headers=((b"retry-after", b"1"),)) from None
        try:
            return await self._execute(request, operation, pinned)
        finally:
            self._turns.give_back(caller.tenant)

    async def _execute(self, request: Request, operation: Infer, pinned: str | None) -> Answer:
        assert request.caller is not None and request.model is not None
        state, bytes_max = self._state, self._state.settings.infer_bytes_max
        announced = whole_number(request.headers, "Content-Length")
        with self._body_memory.reserve(request.caller.tenant, bytes_max if announced is None else min(announced, bytes_max)):
            await request.read_body(announced or 0, bytes_max)
            # route
            version, route = choose_version(request.model, pinned, canary_trusted=state.fresh)
            if state.meter.log_unavailable:
                raise unavailable("log_unavailable", "usage cannot be recorded now, so nothing is executed")
            # validate
            if parsed_here(operation.format, request, version.interface):
                inference = operation.format.parse(request.headers, request.body, version.interface)
            else:
                inference = await self._large_bodies.parse(operation.format, request, version)
            # execute
            execution = Execution(state, request, version, route, inference)
            result = await execution.run()
            try:
                match result.prediction:
                    case PredictionFailed(message):
                        remedy = "check the values against what the model was made for"
                        raise Refused(422, "inference_failed", f"the model failed on this input: {message}", "inputs", remedy)
                    case Predicted(outputs) if rendered_here(inference, outputs):
                        body, content_headers = operation.format.render(version, inference, outputs)
                    case Predicted(outputs):
                        body, content_headers = await self._large_bodies.render(operation.format, request, version, (inference, outputs))
                    case _:
                        assert_never(result.prediction)
                request.require_connected()
            except Exception as e:  # it was executed all the same: its fact says how it ended
                status, code = (e.status, e.code) if isinstance(e, Refused) else (500, "internal_error")
                execution.record(Outcome("aborted" if status == 499 else "failed", status, code, result=result))
                raise
            # meter, then answer: the fact is durable before the caller is answered (K12)
            fact = execution.record(Outcome("succeeded", 200, bytes_out=len(body), result=result))
            return Answer(200, (*content_headers, *await execution.receipt(fact)), body)

    def _describe(self, request: Request, operation: DescribeVersion) -> Answer:
        request.operation = operation.name
        request.require_method("GET")
        self._identify(request, "invoke")
        request.model, pinned = find_model(self._state.routes, operation.model, operation.version)
        version = servable_version(request.model, pinned, canary_trusted=False)
        callable_versions = [version.version] if pinned else [v.version for v in request.model.versions.values() if v.ready]
        return Answer(200, JSON, operation.render(version, callable_versions))

    async def _list(self, request: Request, operation: ListModels) -> Answer:
        request.operation = "list"
        request.require_method("GET")
        caller = self._identify(request)
        if not caller.may("invoke"):
            return Answer(200, JSON, operation.document([]))
        routes = self._state.routes
        return Answer(200, JSON, await self._models.render(operation, routes, routes.prices.at(caller.tenant, request.began_us)))

    def _identify(self, request: Request, scope: Scope | None = None) -> Principal:
        """Who calls. Raises Refused: 503 while keys cannot be checked, 401 without a good key, 403 without the scope."""
        self._state.require_fresh_keys()
        request.caller = identify(self._state.routes.keys, request.headers.get(b"authorization"), request.began_us)
        if scope is not None:
            require(request.caller, scope)
        return request.caller
