"""Rejections as HTTP answers: RFC 9457 documents with code, field and remedy, every violation at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import Response

from access.codes import Refusal
from commands.processor.rejection import Ground, Rejected
from events.process.problem import PROBLEM_JSON, Violation, problem

STATUS: dict[Ground, int] = {"invalid": 422, "conflict": 409, "missing": 404, "forbidden": 403, "stale": 412, "gone": 410}
VIOLATIONS_MAX = 100
"""Violations in one answer: a body of rubbish does not make an answer of megabytes."""

_MISSING = {
    "inputs": "input format definition missing",
    "outputs": "output format definition missing",
    "licence": "licence missing",
    "data_sources": "data sources missing",
    "data_level": "data level missing",
    "compliance": "compliance part of the description missing",
    "technical": "technical part of the description missing",
    "scenario": "scenario missing",
}
_REMEDY = {
    "inputs": "describe each input: name, datatype (FP32, INT64, …) and shape, -1 for a free dimension",
    "outputs": "describe each output: name, datatype (FP32, INT64, …) and shape, -1 for a free dimension",
    "licence": "name the licence the model may be used under",
    "data_sources": "name at least one source of the training data",
    "data_level": "write public, internal, confidential or restricted",
    "security_assessment": "upload the assessment and give its digest sha256:…, or leave it empty",
    "domain": "1 to 40 of a-z and 0-9",
    "team": "1 to 40 of a-z and 0-9",
    "name": "up to 60 of a-z and 0-9, words joined by '-'",
    "version": "write MAJOR.MINOR.PATCH, for example 1.0.0",
    "artifact": "upload the file first (PUT /v1/artifacts/sha256:…) and give the same digest",
    "tenant": "up to 63 of a-z, 0-9 and '-', not beginning with '-'",
    "currency": "three capital letters (ISO 4217), for example CNY",
    "prices": "give at least one price: model, meter, amount_micros, per_units",
}
_REMEDY_BY_CODE = {
    "meter_not_measured": "leave this price out, and price calls, bytes or cpu_us",
    "price_too_high": "give per_units: 20 CNY per hour of CPU is amount_micros 20000000 per_units 3600000000 of cpu_us",
    "tenant_reserved": "choose another id",
    "timezone_unknown": "write an IANA name, for example Asia/Shanghai",
}
_KNOWN_TYPES = {
    "extra_forbidden": ("field_unknown", "this field is not known", "remove it, or check its spelling"),
    "json_invalid": ("json_invalid", "the body is no JSON", "send a JSON object, UTF-8"),
    "model_attributes_type": ("wrong_type", "a JSON object is needed", "send a JSON object"),
}


class HttpProblem(Exception):
    """Carries a finished answer out of a handler."""

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def problem_answer(status: int, violations: Sequence[Violation], headers: Mapping[str, str] | None = None) -> Response:
    body = problem(status, [_printable(v) for v in violations[:VIOLATIONS_MAX]])
    return Response(orjson.dumps(body), status, headers=dict(headers or {}), media_type=PROBLEM_JSON)


def access_answer(refusal: Refusal) -> Response:
    """A refusal of access as the command API answers it."""
    return problem_answer(refusal.status, [refusal.violation], refusal.headers)


def rejected_answer(rejected: Rejected, headers: Mapping[str, str] | None = None) -> Response:
    return problem_answer(STATUS[rejected.ground], rejected.violations, headers)


def unavailable_answer(code: str, message: str, remedy: str, retry_after_s: int = 1, headers: Mapping[str, str] | None = None) -> Response:
    """503: nothing was done, and nothing is wrong with the request."""
    return problem_answer(503, [Violation(code, message, "", remedy)], {**(headers or {}), "Retry-After": str(retry_after_s)})


def violations_of(errors: Sequence[Any]) -> tuple[Violation, ...]:
    """The errors of pydantic in our words; never with the input, which may be secret, huge or unprintable."""
    found = [_violation(e) for e in errors[:VIOLATIONS_MAX]]
    return tuple(dict.fromkeys(found)) or (Violation("invalid", "the request is not valid"),)


def _violation(error: Mapping[str, Any]) -> Violation:
    kind = str(error["type"])
    path = [str(p) for p in error["loc"] if p not in ("body", "query", "path", "header")]
    field = ".".join(path)
    leaf = next((p for p in reversed(path) if not p.isdigit()), "")
    remedy = _REMEDY.get(leaf, "")
    if kind in _KNOWN_TYPES:
        code, message, correction = _KNOWN_TYPES[kind]
        return Violation(code, message, field, correction)
    if kind in ("missing", "too_short", "string_too_short") and leaf in _MISSING:
        return Violation("missing", _MISSING[leaf], field, remedy or "add it; /docs shows the shape")
    if kind == "missing":
        return Violation("missing", f"{leaf or 'the body'} is missing", field, remedy or "add it; /docs shows the shape")
    code = "wrong_type" if kind.endswith(("_type", "_parsing")) else kind
    return Violation(code, str(error["msg"])[:500], field, _REMEDY_BY_CODE.get(kind) or remedy or "see /docs for the shape of this request")


def _printable(v: Violation) -> Violation:
    """A field name may hold half a surrogate pair, which no JSON text can carry."""
    return Violation(*(text.encode("utf-8", "replace").decode()[:1000] for text in (v.code, v.message, v.field, v.remedy)))
