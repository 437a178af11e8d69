"""The query API: catalog, usage and bills over HTTP, each caller seeing its own. `python -m projections.query_api.app`; OpenAPI at /docs.

A question is refused as a problem document (RFC 9457). Every value travels to ClickHouse as a parameter; every answer is bounded.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from access.bearer import first_admin_digest
from access.codes import MODEL_FOREIGN, PREFIX, keys_stale
from access.principal import Principal
from events.log.client import Reader
from events.log.fold_runner import FoldRunner
from events.log.schemas import open_codec
from events.process.admin_key import admin_key
from events.process.clock import now_us
from events.process.json_logging import start_logging
from events.process.problem import PROBLEM_JSON, Violation, problem
from events.process.settings import Settings
from projections.catalog.queries import END_OF_TIME, PAGE_MAX, Catalog, Wanted, public
from projections.dead_letters.queries import OPEN, STATES, find_dead_letters
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from projections.query_api import usage as api_usage
from projections.query_api.answers import Bill, BillPage, CatalogPage, DeadLetterPage, EpochPage, Health, Model, ModelHistory, UsagePage
from projections.query_api.bills import bill_of, bills_of
from projections.query_api.callers import identify, require, tenant_asked
from projections.query_api.instants import NotAnInstant, instant_of
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.problems import Problem, access_problem, invalid
from projections.usage.producer_epochs import epochs
from rating.period import InvalidPeriod, period_bounds

logger = logging.getLogger(__name__)
Text = Annotated[str, Query(max_length=200)]
TenantFilter = Annotated[str, Query(max_length=100, description="Another tenant's; for admins only.")]
LinesFrom = Annotated[int, Query(ge=0, le=1 << 40, description="Where this page of lines begins: `next_lines_from` of the last one.")]
Instant = Annotated[str, Query(max_length=40, description="ISO 8601 or microseconds since 1970 UTC; now if empty.")]

WATCH_S, GRACE_S = 0.5, 10
DEFAULT_DIMENSIONS = ("day", "model", "model_version")


class Queries:
    """What the endpoints need; made once by `main`, or by a test with its own parts."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        accounts: KeysFromLog,
        age_s: Callable[[], float],
        caught_up: Callable[[], bool],
        staleness_s_max: float,
    ) -> None:
        self.clickhouse, self.accounts = clickhouse, accounts
        self.age_s, self.caught_up, self.staleness_s_max = age_s, caught_up, staleness_s_max
        self.catalog = Catalog(clickhouse)

    def caller(self, authorization: str) -> Principal:
        """K5: who cannot know whether a key was revoked lets nobody in."""
        if not self.caught_up() or self.age_s() > self.staleness_s_max:
            raise access_problem(keys_stale(self.staleness_s_max))
        return identify(self.accounts.keys, authorization, now_us())


_bearer = HTTPBearer(auto_error=False, description=f"An API key: `{PREFIX}…`")


def _queries(request: Request) -> Queries:
    return request.app.state.queries


def _caller(request: Request, _shown_in_docs: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> Principal:
    return _queries(request).caller(request.headers.get("authorization", ""))


def _reader(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    return require(caller, "read")


def _admin(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    return require(caller, "admin")


Parts = Annotated[Queries, Depends(_queries)]
Known = Annotated[Principal, Depends(_caller)]
MayRead = Annotated[Principal, Depends(_reader)]
Admin = Annotated[Principal, Depends(_admin)]


def _instant(text: str, field: str, default: int) -> int:
    try:
        return instant_of(text) if text else default
    except NotAnInstant as e:
        raise invalid("instant_malformed", str(e), field, "write ISO 8601 such as 2026-11-20T09:00:00Z, or microseconds since 1970") from e


def make_app(queries: Queries | None = None) -> FastAPI:
    """The application; without `queries` the composition root sets `app.state.queries` before it serves."""
    app = FastAPIOffline(title="modelmarket queries", version="1", description="Catalog, usage and bills: folds of the facts on the log.")
    app.state.queries = queries
    _add_handlers(app)
    _add_catalog(app)
    _add_usage(app)
    _add_bills(app)
    _add_operations(app)
    return app


def _add_catalog(app: FastAPI) -> None:
    @app.get("/v1/catalog", response_model=CatalogPage, tags=["catalog"])
    def catalog(  # pyright: ignore[reportUnusedFunction]
        parts: Parts,
        caller: Known,
        as_of: Instant = "",
        text: Text = "",
        domain: Text = "",
        task: Text = "",
        scenario: Text = "",
        tag: Text = "",
        tenant: Annotated[str, Query(max_length=100, description="Only this owner's models.")] = "",
        retired: bool = True,
        after: Text = "",
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    ) -> Any:
        """Models as they were at an instant, in the order of their names; `next` goes into `after` for the next page."""
        at = _instant(as_of, "as_of", END_OF_TIME)
        wanted = Wanted(at, text, domain, task, scenario, tag, tenant, retired, after, limit)
        models, following = parts.catalog.page(wanted)
        return {"models": [_shown(caller, m) for m in models], "next": following, "as_of": None if at == END_OF_TIME else at}

    @app.get("/v1/catalog/{model}", response_model=Model, tags=["catalog"])
    def model(parts: Parts, caller: Known, model: str, as_of: Instant = "") -> Any:  # pyright: ignore[reportUnusedFunction]
        """One model with its versions, reviews and deployment as they were at an instant."""
        found = parts.catalog.model(model, _instant(as_of, "as_of", END_OF_TIME))
        if found is None:
            raise Problem(404, Violation("model_unknown", "there was no model of this name then", "model", "look it up in /v1/catalog"))
        return _shown(caller, found)

    @app.get("/v1/catalog/{model}/history", response_model=ModelHistory, tags=["catalog"])
    def history(parts: Parts, caller: Known, model: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Any:  # pyright: ignore[reportUnusedFunction]
        """What happened to a model, newest first, each fact with its place on the log. For its owner and reviewers."""
        found = parts.catalog.model(model)
        if found is not None and not caller.sees(found["tenant"]):
            raise access_problem(MODEL_FOREIGN)
        return {"model": model, "facts": parts.catalog.history(model, limit)}


def _shown(caller: Principal, model: dict[str, Any]) -> dict[str, Any]:
    return model if caller.sees(model["tenant"]) else public(model)


def _add_usage(app: FastAPI) -> None:
    @app.get("/v1/usage", response_model=UsagePage, tags=["usage"])
    def usage(  # pyright: ignore[reportUnusedFunction]
        parts: Parts,
        caller: MayRead,
        group_by: Annotated[tuple[str, ...], Query(max_length=8, description="Dimensions, repeated or with commas")] = DEFAULT_DIMENSIONS,
        since: Annotated[str, Query(alias="from", max_length=40, description="ISO 8601 or µs; 31 days ago if empty.")] = "",
        until: Annotated[str, Query(alias="to", max_length=40, description="ISO 8601 or µs, exclusive; now if empty.")] = "",
        model: Text = "",
        tenant: TenantFilter = "",
        view: Annotated[str, Query(pattern="^(caller|owner)$", description="caller: your calls. owner: calls of your models.")] = "caller",
        limit: Annotated[int, Query(ge=1, le=api_usage.ROWS_MAX)] = 1000,
    ) -> Any:
        """Executions, meters, outcomes and latency by the dimensions asked for. Owners of models see callers only in sum."""
        whose = tenant_asked(caller, tenant)
        owner = view == "owner"
        allowed = api_usage.OWNER_DIMENSIONS if owner else api_usage.ADMIN_DIMENSIONS if caller.admin else api_usage.CALLER_DIMENSIONS
        dimensions = tuple(dict.fromkeys(d for part in group_by for d in part.split(",") if d))
        unknown = [d for d in dimensions if d not in allowed]
        if unknown:
            raise invalid(
                "dimension_unknown", f"cannot group by {unknown[0][:50]!r}", "group_by", f"use some of: {', '.join(sorted(allowed))}"
            )
        end = _instant(until, "to", now_us())
        start = _instant(since, "from", end - 31 * 86_400_000_000)
        if start < 0 or not 0 <= end - start <= api_usage.SPAN_US_MAX:
            raise invalid("span_too_long", "`from` lies after `to`, or more than 400 days before it", "from", "ask for a shorter span")
        question = api_usage.Question(
            start, end, dimensions, parts.accounts.zone(whose), "" if owner else whose, whose if owner else "", model, limit
        )
        rows, truncated = api_usage.usage(parts.clickhouse, question)
        return {"rows": rows, "truncated": truncated, "group_by": list(dimensions), "from": start, "to": end, "view": view}


def _add_bills(app: FastAPI) -> None:
    @app.get("/v1/bills", response_model=BillPage, tags=["bills"])
    def bills(parts: Parts, caller: MayRead, tenant: TenantFilter = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Any:  # pyright: ignore[reportUnusedFunction]
        """Bills, newest first: the issued ones, and the running one that nobody owes yet."""
        return {"bills": bills_of(parts.clickhouse, tenant_asked(caller, tenant), limit)}

    @app.get("/v1/bills/{period}", response_model=Bill, tags=["bills"])
    def bill(parts: Parts, caller: MayRead, period: str, tenant: TenantFilter = "", lines_from: LinesFrom = 0) -> Any:  # pyright: ignore[reportUnusedFunction]
        """A period's bills with their lines, page by page: `YYYY-MM` or `YYYY-MM-DD` in the tenant's zone."""
        whose = tenant_asked(caller, tenant)
        if not whose:
            raise invalid("tenant_missing", "an admin has no bills of its own", "tenant", "name the tenant: ?tenant=…")
        try:
            period_bounds(period, parts.accounts.zone(whose))
        except InvalidPeriod as e:
            raise invalid("period_malformed", "this is no period", "period", "write YYYY-MM or YYYY-MM-DD") from e
        return bill_of(parts.clickhouse, whose, period, lines_from)


def _add_operations(app: FastAPI) -> None:
    @app.get("/v1/dead-letters", response_model=DeadLetterPage, tags=["operation"])
    def dead_letters(parts: Parts, caller: Admin, everything: bool = False) -> Any:  # pyright: ignore[reportUnusedFunction]
        """Records nobody could read: open ones, or all with what became of them. Their bytes stay on the log."""
        return {"dead_letters": [letter.to_json() for letter in find_dead_letters(parts.clickhouse, STATES if everything else OPEN)]}

    @app.get("/v1/producers", response_model=EpochPage, tags=["operation"])
    def producers(parts: Parts, caller: Admin, everything: bool = False) -> Any:  # pyright: ignore[reportUnusedFunction]
        """Epochs of producers, newest first: open ones, or all; and when the last fact of each came."""
        return {"epochs": [asdict(e) for e in epochs(parts.clickhouse, only_open=not everything)]}


def _add_handlers(app: FastAPI) -> None:
    @app.get("/healthz", response_model=Health, tags=["operation"])
    def healthz(parts: Parts, response: Response) -> Any:  # pyright: ignore[reportUnusedFunction]
        """Ready when the keys are folded and ClickHouse answers."""
        age, detail = parts.age_s(), ""
        if not parts.caught_up():
            detail = "folding the keys"
        elif age > parts.staleness_s_max:
            detail = "the newest heartbeat is old: is the relay at work?"
        try:
            parts.clickhouse.value("SELECT 1")
        except (ClickHouseUnavailable, ClickHouseError) as e:
            detail = f"ClickHouse does not answer: {str(e)[:200]}"
        response.status_code = 503 if detail else 200
        said = {"status": "starting" if detail else "ready", "lag": None, "detail": detail}
        return {**said, "age_s": round(age, 3) if age < 1e9 else None}

    @app.exception_handler(Problem)
    def refused(request: Request, e: Problem) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(e.status, e.violation, headers=e.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, e: RequestValidationError) -> Response:  # pyright: ignore[reportUnusedFunction]
        said = [
            Violation("parameter_invalid", str(x["msg"]), ".".join(str(p) for p in x["loc"][1:]), "see /docs for what is taken")
            for x in e.errors()
        ]
        return _answer(422, *said)

    @app.exception_handler(HTTPException)
    def http(request: Request, e: HTTPException) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(e.status_code, Violation("http", str(e.detail), "", "see /docs for what there is"), headers=dict(e.headers or {}))

    @app.exception_handler(ClickHouseUnavailable)
    def away(request: Request, e: ClickHouseUnavailable) -> Response:  # pyright: ignore[reportUnusedFunction]
        logger.warning("ClickHouse does not answer: %s", e)
        return _answer(503, Violation("tables_away", "the tables do not answer", "", "try again"), headers={"Retry-After": "2"})

    @app.exception_handler(ClickHouseError)
    def too_much(request: Request, e: ClickHouseError) -> Response:  # pyright: ignore[reportUnusedFunction]
        if e.code in (159, 160, 241, 396):  # time, estimated time, memory, result size
            return _answer(
                422,
                Violation(
                    "question_too_large",
                    "this question takes too long or too much memory",
                    "",
                    "ask for a shorter span or fewer dimensions",
                ),
            )
        logger.error("ClickHouse refused a question: %s", e)
        return _answer(500, Violation("internal", "the question could not be answered", "", "report it"))


def _answer(status: int, *violations: Violation, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(problem(status, violations), status, headers=dict(headers or {}), media_type=PROBLEM_JSON)


def _end_with(fold_runner: FoldRunner, server: uvicorn.Server) -> None:
    """Without its fold of keys this process answers nobody: it ends, so that the supervisor starts one that folds."""
    while fold_runner.failure is None:
        time.sleep(WATCH_S)
    server.should_exit = True


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
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(queries),
            settings.host,
            settings.query_port,
            log_config=None,
            access_log=False,
            limit_concurrency=256,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    threading.Thread(target=_end_with, args=(fold_runner, server), name="watch", daemon=True).start()
    server.run()
    fold_runner.stop()
    return 1 if fold_runner.failure is not None else 0


if __name__ == "__main__":
    sys.exit(main())
