"""The query API: catalog, usage and bills over HTTP, each caller seeing its own. `python -m projections.query_api.app`; OpenAPI at /docs.

A question is refused as a problem document (RFC 9457). Every value travels to ClickHouse as a parameter; every answer is bounded.
"""

from __future__ import annotations

import sys
import threading
import time

from fastapi import FastAPI

from access.bearer import first_admin_digest
from access.codes import Refusal
from access.principal import Principal
from events.log.client import Reader
from events.log.fold_runner import FoldRunner
from events.log.schemas import open_codec
from events.log.sign_in import ends_when_denied
from events.process.admin_key import admin_key
from events.process.fairness.http_turns import InTurn
from events.process.fairness.turns import TurnBounds
from events.process.http_admission import Admission, NotAdmitted
from events.process.http_api import make_api
from events.process.http_server import CONNECTIONS_MAX, Server, make_server
from events.process.json_logging import start_logging
from events.process.openapi import problems
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouse
from projections.query_api import bill_routes, catalog_routes, operation_routes, usage_routes
from projections.query_api.error_handlers import add_error_handlers
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.request_context import Queries

WATCH_S = 0.5
TENANT_REQUESTS_MAX = 256
"""Under way at once, of one tenant, nearly all of them waiting for their turn: a quarter of the connections."""
TURNS = TurnBounds(running_max=16, alone_max=4, shared_max=2, waiting_max=CONNECTIONS_MAX, wait_s_max=30)
"""Questions at once. The local engine answers four at a time, and a question may take 20 s."""


def make_app(queries: Queries | None = None) -> FastAPI:
    """The application; without `queries` the composition root sets `app.state.queries` before it serves."""
    app = make_api("modelmarket queries", "Catalog, usage and bills: folds of the facts on the log.", problems(422, 500))
    app.state.queries = queries

    async def identify(authorization: bytes) -> Principal:
        found = app.state.queries.caller(authorization)
        if isinstance(found, Refusal):
            raise NotAdmitted(found.status, found.violation, found.headers)
        return found

    app.add_middleware(InTurn, bounds=TURNS, body_bytes_max=lambda scope: 0)
    app.add_middleware(Admission, identify=identify, tenant_requests_max=TENANT_REQUESTS_MAX)
    add_error_handlers(app)
    for routes in (catalog_routes, usage_routes, bill_routes, operation_routes):
        app.include_router(routes.router)
    return app


def _stop_with(fold_runner: FoldRunner, server: Server) -> None:
    """A process whose fold of keys failed cannot answer: it ends, and the supervisor starts another."""
    while fold_runner.failure is None:
        time.sleep(WATCH_S)
    server.should_exit = True


@ends_when_denied
def main() -> int:
    start_logging("queries")
    settings = Settings()
    reader = Reader(settings, "queries")
    codec, log_id = open_codec(settings, reader)
    reader.close()
    accounts = KeysFromLog(first_admin_digest(admin_key(settings)))
    fold_runner = FoldRunner(
        settings, codec, log_id, ["accounts"], accounts, name="queries", snapshot=settings.folder / "queries" / "accounts.snapshot"
    )
    fold_runner.start()
    queries = Queries(
        ClickHouse(settings, patience_s=5), accounts, fold_runner.age_s, lambda: fold_runner.caught_up, settings.staleness_s_max
    )
    server = make_server(make_app(queries), settings.host, settings.query_port, address_max=settings.address_connections_max)
    threading.Thread(target=_stop_with, args=(fold_runner, server), name="watch", daemon=True).start()
    server.run()
    fold_runner.stop()
    return 1 if fold_runner.failure is not None else 0


if __name__ == "__main__":
    sys.exit(main())
