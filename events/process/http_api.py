"""An HTTP API of the market: its pages work without the internet, its OpenAPI document is exact, unknown paths get a problem document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match

from events.process.openapi import Responses, exact
from events.process.problem import PROBLEM_JSON, Violation, problem

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_CODES = {400: "body_unreadable", 404: "no_such_resource", 405: "method_not_allowed", 408: "body_slow", 413: "body_too_large"}


def make_api(title: str, description: str, responses: Responses, **more: Any) -> FastAPI:
    """`responses` are those of every route."""
    api = FastAPIOffline(title=title, version="1", description=description, responses=responses, **more)
    api.openapi = _exact_document(api, api.openapi)  # the way that FastAPI documents

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, e: HTTPException) -> Response:  # pyright: ignore[reportUnusedFunction]
        headers = dict(e.headers or {})
        if e.status_code == 405:
            headers["Allow"] = ", ".join(_methods(api, request))
        violation = Violation(_CODES.get(e.status_code, "refused"), str(e.detail), "", "see /docs")
        return JSONResponse(problem(e.status_code, [violation]), e.status_code, headers, PROBLEM_JSON)

    return api


def _exact_document(api: FastAPI, made: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = exact(made())
        return api.openapi_schema

    return document


def _methods(api: FastAPI, request: Request) -> list[str]:
    """Of every route at the path of the request: the framework names those of the first one only."""
    return [m for m in _METHODS if any(route.matches({**request.scope, "method": m})[0] is Match.FULL for route in api.routes)]
