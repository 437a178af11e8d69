"""What the OpenAPI document of each API says of refusals, and numbers as they are. Sources: OpenAPI 3.1, RFC 9457 (problem documents)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from events.process.problem import PROBLEM_JSON

Responses = dict[int | str, dict[str, Any]]
"""Of a FastAPI route."""

_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
_HEADERS: Mapping[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


class ProblemViolation(BaseModel):
    code: str
    message: str
    field: str
    remedy: str


class Problem(BaseModel):
    """RFC 9457, with our code, field, remedy, and every violation at once."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str
    remedy: str
    violations: list[ProblemViolation]


def problems(*statuses: int) -> Responses:
    """Refusals with these statuses, for the `responses` of a route."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content, "headers": _HEADERS.get(s, {})} for s in statuses}


def exact(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with the schema of problem documents, and with integers where FastAPI writes floats: 2^63 - 1 came out as 2^63."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {**schema.pop("$defs"), "Problem": schema}
    for unused in ("HTTPValidationError", "ValidationError"):  # our refusals are problem documents
        schemas.pop(unused, None)
    return _integers(document)


def _integers(value: Any) -> Any:
    match value:
        case dict():
            return {k: _bound(v) if k in ("minimum", "maximum") else _integers(v) for k, v in value.items()}
        case list():
            return [_integers(v) for v in value]
        case _:
            return value


def _bound(value: Any) -> Any:
    if not isinstance(value, float) or not value.is_integer():
        return _integers(value)
    exactly = int(value)
    return exactly - (exactly == 1 << 63) + (exactly == -(1 << 63))
