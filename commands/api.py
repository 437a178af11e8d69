"""The command API: `python -m commands.api`. What may happen in the market is asked for here; /docs lists it.

Every write is decided, durable and in the order of all decisions before it is answered; the answer names the facts it wrote.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from access.codes import PREFIX, Refusal
from access.principal import Principal
from commands.artifacts.intake import ArtifactIntake
from commands.artifacts.routes import UPLOAD_S_MAX, Artifacts
from commands.bills.routes import Bills
from commands.deployments.routes import Deployments
from commands.http.answers import JSON
from commands.http.command_app import CommandApp, open_command_app
from commands.http.operations import EVERYWHERE
from commands.http.problem_answers import HttpProblem, problem_answer, unavailable_answer, violations_of
from commands.models.routes import Models
from commands.prices.routes import PriceBooks
from commands.relay.resume import StoreMismatch
from commands.store.event_store import StoreUnavailable
from commands.tenants.routes import Tenants
from commands.write_offs.producer_routes import ProducerWriteOffs
from commands.write_offs.record_routes import RecordWriteOffs
from commands.write_offs.record_set_routes import RecordSets
from events.log.client import LogMismatch
from events.log.sign_in import LogDenied
from events.process.clock import now_us
from events.process.http_admission import BODY_S_MAX, CALLER, Admission, NotAdmitted
from events.process.http_api import make_api
from events.process.http_server import make_server
from events.process.json_logging import start_logging
from events.process.problem import Violation
from events.process.settings import Settings

logger = logging.getLogger(__name__)
BODY_BYTES_MAX = 1 << 20
"""A JSON body; a command whose fact fits into 512 KiB fits into this. A bill may have many lines, and takes more: of admins only."""
BILL_BYTES_MAX = 32 << 20
"""100 000 lines of a bill, with names of usual length, and of that one path: it is read beside the loop."""
TENANT_REQUESTS_MAX = 256
"""Under way at once, of one tenant: a quarter of the connections."""


def build(commands: CommandApp) -> FastAPI:
    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(commands.close)

    bearer = HTTPBearer(auto_error=False, description=f"An API key: {PREFIX}…")
    api = make_api("modelmarket commands", __doc__ or "", EVERYWHERE, lifespan=life, dependencies=[Security(bearer)])
    intake = ArtifactIntake(commands.artifacts, commands.settings.folder / "uploads")
    features = (
        Artifacts(commands, intake),
        Models(commands, intake),
        Deployments(commands),
        Tenants(commands),
        PriceBooks(commands),
        Bills(commands),
        RecordWriteOffs(commands),
        RecordSets(commands),
        ProducerWriteOffs(commands),
    )
    for feature in features:
        api.include_router(feature.router())
    _answer_errors(api)

    @api.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        failed = commands.processor.failed
        health: dict[str, Any] = {"status": "failed" if failed else "ready", "waiting": commands.processor.waiting, "lag": None}
        try:
            health["position"] = commands.store.last_position()
        except StoreUnavailable as e:
            health |= {"status": "failed", "message": str(e)[:300]}
        return Response(orjson.dumps(health), 200 if health["status"] == "ready" else 503, media_type=JSON)

    async def identify(authorization: bytes) -> Principal:
        known = commands.keys.recognize(authorization, now_us())
        if isinstance(known, Refusal):  # it may be newer than what was read
            known = await run_in_threadpool(commands.keys.authenticate, authorization, now_us())
        if isinstance(known, Refusal):
            raise NotAdmitted(known.status, known.violation, known.headers)
        return known

    api.add_middleware(BodyBound)
    api.add_middleware(Admission, identify=identify, tenant_requests_max=TENANT_REQUESTS_MAX, limit_s=_body_s_max)
    return api


def _body_s_max(path: str) -> float:
    return UPLOAD_S_MAX if path.startswith("/v1/artifacts/") else BODY_S_MAX


def _answer_errors(api: FastAPI) -> None:
    @api.exception_handler(HttpProblem)
    async def problem(_: Request, e: HttpProblem) -> Response:
        return e.answer

    @api.exception_handler(RequestValidationError)
    async def malformed(_: Request, e: RequestValidationError) -> Response:
        return problem_answer(422, violations_of(e.errors()))

    @api.exception_handler(ValidationError)
    async def invalid(_: Request, e: ValidationError) -> Response:
        return problem_answer(422, violations_of(e.errors(include_input=False, include_context=False, include_url=False)))

    @api.exception_handler(StoreUnavailable)
    async def store_unavailable(_: Request, e: StoreUnavailable) -> Response:
        return unavailable_answer("store_unavailable", "the event store does not answer", "try again with the same Idempotency-Key")

    @api.exception_handler(Exception)
    async def internal_error(request: Request, e: Exception) -> Response:
        logger.error("unexpected failure in %s", request.scope.get("route"), exc_info=e)
        violation = Violation("internal_error", "this is our mistake; it was logged", "", "report it with the X-Correlation-Id")
        return problem_answer(500, [violation])


class BodyBound:
    """Ends a request whose JSON body is longer than allowed, whatever its Content-Length says. Uploads count for themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if CALLER not in scope or path.startswith("/v1/artifacts/"):
            await self._app(scope, receive, send)
            return
        caller: Principal = scope[CALLER]
        limit = BILL_BYTES_MAX if path.startswith("/v1/bills/") and path.endswith("/complete") and caller.admin else BODY_BYTES_MAX
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > limit:
                raise HTTPException(413, f"the body is longer than {limit} bytes", {"Connection": "close"})
            return message

        await self._app(scope, counted, send)


def main() -> int:
    start_logging("commands")
    settings = Settings()
    try:
        commands = open_command_app(settings)
    except (LogMismatch, LogDenied, StoreMismatch) as e:
        raise SystemExit(f"the command API does not start: {e}") from e
    server = make_server(build(commands), settings.host, settings.command_port, address_max=settings.address_connections_max)

    def stop() -> None:
        server.should_exit = True

    commands.processor.when_failed(stop)  # the supervisor starts a new process, which has a working processor
    server.run()
    return 1 if commands.processor.failed is not None else 0


if __name__ == "__main__":
    sys.exit(main())
