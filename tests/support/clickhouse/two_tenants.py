"""Two tenants with rows in ClickHouse, and the query API that knows whose their analysts' keys are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

from events.facts.accounts import KEY_DIMENSIONS
from events.log.record import Coordinate
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouse
from projections.query_api.app import make_app
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.request_context import Queries
from projections.tables import apply_tables
from tests.support.servers.server_thread import running_server

TENANTS = ("acme", "globex")
KEYS = {"acme": "mm_acme-reads", "globex": "mm_globex-reads", "caller": "mm_only-calls"}
AT = Coordinate("accounts", 0, 0)


def issued(tenant: str, key: str, *scopes: str) -> dict[str, Any]:
    who = {"tenant": tenant, "key_id": key, "user": "ann", "labels": {}, "expires_at": None, **dict.fromkeys(KEY_DIMENSIONS, "")}
    return {**who, "scopes": list(scopes), "key_sha256": hashlib.sha256(key.encode()).hexdigest()}


def fill_tables(settings: Settings) -> None:
    """Make every table, and give each tenant one row in those that analysts read."""
    apply_tables(settings)
    clickhouse = ClickHouse(settings)
    for tenant in TENANTS:
        row = {"tenant": tenant, "model": f"{tenant}-model", "fact": "InvocationSettled", "readable": 1, "outcome": "succeeded", "calls": 1}
        log = {"kafka_partition": TENANTS.index(tenant), "kafka_offset": 0, "occurred_at": 1_700_000_000_000_000}
        clickhouse.insert_rows("usage", [{**row, **log, "event_id": f"00000000-0000-0000-0000-00000000000{TENANTS.index(tenant)}"}])
        head = json.dumps({"tenant": tenant, "display_name": f"{tenant} Inc.", "name": f"{tenant}-model"})
        documents = (("accounts", tenant), ("bills", tenant), ("models", f"{tenant}-model"), ("alerts", f"{tenant}-alert"))
        common = {"kind": "decided", "head": head, "body": "{}", "kafka_partition": TENANTS.index(tenant)}
        history = [{**common, "topic": t, "key": k, "tenant": "" if t == "alerts" else tenant} for t, k in documents]
        clickhouse.insert_rows("history_rows", history)
        clickhouse.insert_rows("bills_running_rows", [{"tenant": tenant, "period": "2026-11", "generation": 1, "total_micros": 7}])


@contextmanager
def query_api(settings: Settings, accounts: KeysFromLog) -> Generator[None]:
    """The real one, whose keys are folded from facts. A test may apply more of them to `accounts`."""
    for tenant in TENANTS:
        accounts.apply("ApiKeyIssued", issued(tenant, KEYS[tenant], "read"), AT)
    accounts.apply("ApiKeyIssued", issued("acme", KEYS["caller"], "invoke"), AT)
    app = make_app(Queries(ClickHouse(settings), accounts, lambda: 0.0, lambda: True, 60))
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", settings.query_port, log_config=None))
    with running_server(server):
        yield
