"""Every failure of a question as a problem document (RFC 9457), in one place."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from events.process.problem import PROBLEM_JSON, Violation, problem
from projections.ingest.clickhouse import ClickHouseError, ClickHouseUnavailable
from projections.query_api.problems import Problem

logger = logging.getLogger(__name__)
TOO_LARGE = frozenset({159, 160, 241, 396})
"""ClickHouse's codes for too much time, estimated time, memory or result."""


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def refused(request: Request, e: Problem) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(e.status, e.violation, headers=e.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, e: RequestValidationError) -> Response:  # pyright: ignore[reportUnusedFunction]
        found_violations = [
            Violation("parameter_invalid", str(x["msg"]), ".".join(str(p) for p in x["loc"][1:]), "see /docs for what is taken")
            for x in e.errors()
        ]
        return _answer(422, *found_violations)

    @app.exception_handler(ClickHouseUnavailable)
    async def away(request: Request, e: ClickHouseUnavailable) -> Response:  # pyright: ignore[reportUnusedFunction]
        logger.warning("ClickHouse does not answer: %s", e)
        return _answer(503, Violation("tables_away", "the tables do not answer", "", "try again"), headers={"Retry-After": "2"})

    @app.exception_handler(ClickHouseError)
    async def too_much(request: Request, e: ClickHouseError) -> Response:  # pyright: ignore[reportUnusedFunction]
        if e.code in TOO_LARGE:
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
