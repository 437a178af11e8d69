"""How operations are declared, so that /docs describes each one fully: its answer, every refusal, and the headers that it understands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

from commands.http.answers import Accepted
from commands.http.headers import IDEMPOTENCY_KEY, IF_MATCH
from events.process.openapi import Responses, problems

EVERYWHERE = problems(400, 401, 403, 422, 429, 500, 503)
"""Of every operation."""
_WRITES = problems(404, 408, 409, 412, 413)
_ETAG = {"description": "The version of the aggregate, for If-Match.", "schema": {"type": "string", "pattern": '^"[0-9]+"$'}}
_REPLAYED = {"description": "This request came before; nothing happened again.", "schema": {"const": "true"}}


def _header(name: str, pattern: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string", "pattern": pattern}}


_HEADERS = {
    "parameters": [
        _header("Idempotency-Key", IDEMPOTENCY_KEY, "Of your choice: a command that comes twice with one key happens once."),
        _header("If-Match", IF_MATCH, "An ETag: the only version of the aggregate that the command may be decided on."),
    ]
}
_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def command(
    routes: APIRouter, method: str, path: str, answer: type[Accepted], *, created: bool = False, gone: bool = False
) -> Callable[[_Handler], _Handler]:
    """A route that changes the market. `gone`: it may be about something that was and never will be again."""
    status = 201 if created else 200
    done: Responses = {status: {"model": answer, "headers": {"ETag": _ETAG, "Idempotent-Replayed": _REPLAYED}}}
    responses = done | _WRITES | (problems(410) if gone else {})
    return routes.api_route(path, methods=[method], status_code=status, responses=responses, openapi_extra=_HEADERS)


def reading(routes: APIRouter, path: str, answer: type[BaseModel]) -> Callable[[_Handler], _Handler]:
    """A route that shows the state of an aggregate."""
    return routes.get(path, responses={200: {"model": answer, "headers": {"ETag": _ETAG}}} | problems(404))
