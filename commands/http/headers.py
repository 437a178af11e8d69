"""The request headers that every command understands: Idempotency-Key, If-Match, X-Correlation-Id, traceparent."""

from __future__ import annotations

import re

from fastapi import Request

from commands.http.problem_answers import HttpProblem, problem_answer
from events.process.problem import Violation

IDEMPOTENCY_KEY = r"^[\x21-\x7e]{1,255}$"
IF_MATCH = r'^(\*|"?[0-9]{1,15}"?)$'
_IDEMPOTENCY_KEY = re.compile(IDEMPOTENCY_KEY)
_IF_MATCH = re.compile(IF_MATCH)
_CORRELATION_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")


def idempotency_key(request: Request) -> str:
    """Empty when none was sent. Raises HttpProblem."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return ""
    if not _IDEMPOTENCY_KEY.match(key):
        message = "the key is no word of 1 to 255 visible ASCII characters"
        raise _malformed("idempotency_key_malformed", message, "Idempotency-Key", "send a UUID")
    return key


def if_match(request: Request) -> int | None:
    """The version that the caller wants to change; None: any. Raises HttpProblem."""
    given = request.headers.get("if-match")
    if given is None or given == "*":
        return None
    if not _IF_MATCH.match(given):
        raise _malformed("if_match_malformed", "If-Match is no ETag of ours", "If-Match", 'send the ETag you were given, for example "7"')
    return int(given.strip('"'))


def correlation_id(request: Request) -> str:
    """The caller's own id, else the id of the trace (W3C Trace Context), else empty."""
    given = request.headers.get("x-correlation-id", "")
    if _CORRELATION_ID.match(given):
        return given
    trace = _TRACEPARENT.match(request.headers.get("traceparent", ""))
    return trace[1] if trace else ""


def _malformed(code: str, message: str, field: str, remedy: str) -> HttpProblem:
    return HttpProblem(problem_answer(400, [Violation(code, message, field, remedy)]))
